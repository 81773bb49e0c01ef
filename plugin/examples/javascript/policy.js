// A Refit policy in JavaScript: `ws-*` containers follow their image, but for those that an operator put on hold.
//
// The contract is `wit/policy.wit`. Names are camel case here, an enum is a string, a variant is `{ tag, val }`, and an error
// of ours is thrown. A policy has no files, no network and no clock of its own: what it knows, it is told through `docker`.

import * as docker from 'refit:policy/docker@0.1.0';

const PREFIX = 'ws-';
// A container with this label, whatever its value, stays on the image that it has.
const HOLD = 'refit.hold';
const DEFAULTS = {
  images: 'ghcr.io/molecule-ai/workspace-template-{runtime}:latest',
  runtimes: ['claude-code', 'langgraph', 'crewai', 'autogen', 'deepagents', 'hermes', 'gemini-cli', 'openclaw'],
};
const SCHEMA = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  additionalProperties: false,
  properties: {
    images: { type: 'string', default: DEFAULTS.images },
    runtimes: { type: 'array', items: { type: 'string' }, minItems: 1, uniqueItems: true, default: DEFAULTS.runtimes },
  },
};

export const policy = {
  describe() {
    return {
      name: 'hold-javascript',
      version: '0.1.0',
      summary: 'running workspaces follow the image of their runtime, but for those with the label `refit.hold`',
      configSchema: JSON.stringify(SCHEMA),
    };
  },

  validateConfig(config) {
    const found = problems(config);
    if (found.length) throw found;
  },

  refresh(request, config) {
    const found = problems(config);
    if (found.length) throw { tag: 'invalid-config', val: found };
    const targets = selected(settings(config), request);
    if (!targets.length) return { targets, decisions: [] };
    const images = docker.pull(targets.map((target) => target.image));
    const containers = list(targets).filter((container) => container.name().startsWith(PREFIX));
    const decisions = [];
    const wave = [];
    docker.inspect(containers).forEach((answer, n) => {
      const decided = decide(containers[n], answer, targets, images, request);
      if (!decided) return;
      const { image, ...decision } = decided;
      decisions.push(decision);
      if (image) wave.push({ container: containers[n], image, strategy: 'replace' });
    });
    if (wave.length) docker.recreate(wave);
    return { targets, decisions };
  },
};

function list(targets) {
  try {
    return docker.containers();
  } catch (error) {
    // An error of ours is thrown as it is; whatever else went wrong has no tag.
    const known = typeof error?.tag === 'string' ? error : error?.payload ?? { tag: 'other', val: String(error) };
    throw { tag: 'unlisted', val: { error: known, targets } };
  }
}

// What becomes of a container, with the image that it gets where it is to be recreated; nothing where it is none of ours.
function decide(container, answer, targets, images, request) {
  const name = container.name();
  const because = (verdict, rule, reason, image) => ({ container: name, verdict, rule, reason, image });
  if (answer.tag === 'err') {
    return answer.val.tag === 'not-found' ? undefined : because('unknown', 'inspect-failed', 'it could not be inspected');
  }
  const info = answer.val;
  const at = targets.findIndex((target) => repository(target.image) === repository(info.image));
  if (at < 0) return undefined;
  const tag = targets[at].image;
  if (images[at].tag === 'err') {
    return because('unknown', 'pull-failed', `\`${tag}\` could not be pulled, so nobody knows whether it is behind`);
  }
  const image = images[at].val;
  const running = info.state === 'running';
  if (info.imageId === image.id()) {
    return request.force && request.recreate && running
      ? because('recreate', 'forced', `it already runs \`${tag}\`, and the request asked to recreate it anyway`, image)
      : because('current', 'up-to-date', `it runs what \`${tag}\` stands for now`);
  }
  if (!running) return because('stale', 'not-running', `it is behind \`${tag}\`, but it does not run`);
  if (info.labels.some(([key]) => key === HOLD)) {
    return because('stale', 'on-hold', `it is behind \`${tag}\`, but its label \`${HOLD}\` says that it stays`);
  }
  if (!request.recreate) {
    return because('stale', 'recreate-not-asked', `it is behind \`${tag}\`, and the request asked to change no container`);
  }
  return because('recreate', 'image-moved', `\`${tag}\` stands for another image now`, image);
}

// The targets that the request means, in the order of the configuration.
function selected({ images, runtimes }, request) {
  const asked = request.targets.filter((name) => !runtimes.includes(name));
  if (asked.length) throw { tag: 'unknown-targets', val: { asked, known: runtimes } };
  const repositories = request.images.map(repository);
  return runtimes
    .map((name) => ({ name, image: images.replace('{runtime}', name) }))
    .filter(({ name }) => !request.targets.length || request.targets.includes(name))
    .filter(({ image }) => !repositories.length || repositories.includes(repository(image)));
}

// `ghcr.io/acme/app` of `ghcr.io/acme/app:v1@sha256:…`. A colon before the last slash belongs to a port.
function repository(image) {
  const name = image.split('@')[0];
  const slash = name.lastIndexOf('/') + 1;
  return name.slice(0, slash) + name.slice(slash).split(':')[0];
}

function settings(text) {
  return { ...DEFAULTS, ...JSON.parse(text || '{}') };
}

// All that is wrong with a configuration, and where.
function problems(text) {
  let given;
  try {
    given = JSON.parse(text || '{}');
  } catch {
    given = null;
  }
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    return [{ path: '', problem: 'must be a JSON object' }];
  }
  const found = Object.keys(given)
    .filter((key) => !Object.hasOwn(DEFAULTS, key))
    .map((path) => ({ path, problem: 'is no key of this policy' }));
  const { images, runtimes } = { ...DEFAULTS, ...given };
  if (typeof images !== 'string' || repository(images).split('{runtime}').length !== 2) {
    found.push({ path: 'images', problem: 'must hold `{runtime}` once, before the tag' });
  }
  if (!Array.isArray(runtimes) || !runtimes.length || !runtimes.every((name) => typeof name === 'string')) {
    found.push({ path: 'runtimes', problem: 'must be a list of at least one name' });
  } else if (new Set(runtimes).size < runtimes.length) {
    found.push({ path: 'runtimes', problem: 'must name each runtime once' });
  }
  return found;
}
