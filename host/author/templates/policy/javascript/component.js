// The component: asks the host through `docker`, lets `policy.js` decide, and answers. Seldom needs a change.
//
// What `wit/policy.wit` calls `image-id` is `imageId` here; an enum is a string, a variant is `{ tag, val }`, a `u64` is a
// BigInt, and an error of ours is thrown.

import * as docker from 'refit:policy/docker@0.1.0';
import * as host from 'refit:policy/host@0.1.0';
import { NAME, SUMMARY, TARGETS, VERSION, decide, follows } from './policy.js';

export const policy = {
  describe() {
    return { name: NAME, version: VERSION, summary: SUMMARY, configSchema: '' };
  },

  validateConfig(config) {
    const found = problems(config);
    if (found.length) throw found;
  },

  refresh(request, config) {
    const found = problems(config);
    if (found.length) throw { tag: 'invalid-config', val: found };
    const targets = selected(request);
    if (!targets.length) return { targets, decisions: [] };
    const images = docker.pull(targets.map((target) => target.image));
    const containers = listed(request, targets);
    const answers = containers.length ? docker.inspect(containers) : [];
    const now = Number(host.now());
    const decisions = [];
    const wave = [];
    answers.forEach((answer, n) => {
      const decided = decision(answer, targets, images, request, now);
      if (!decided) return;
      const { image, ...rest } = decided;
      decisions.push({ container: containers[n].name(), ...rest });
      if (rest.verdict === 'recreate') wave.push({ container: containers[n], image, strategy: 'replace' });
    });
    if (wave.length) docker.recreate(wave);
    return { targets, decisions };
  },
};

// What `policy.js` says, with the image; nothing where the container follows none.
function decision(answer, targets, images, request, now) {
  if (answer.tag === 'err') {
    if (answer.val.tag === 'not-found') return undefined;
    return { verdict: 'unknown', rule: 'inspect-failed', reason: `it could not be inspected: ${engineError(answer.val)}` };
  }
  const info = answer.val;
  const at = targets.findIndex((target) => follows(info, target.name));
  if (at < 0) return undefined;
  const tag = targets[at].image;
  if (images[at].tag === 'err') {
    return { verdict: 'unknown', rule: 'pull-failed', reason: pullError(tag, images[at].val) };
  }
  const image = images[at].val;
  return { ...decide(info, tag, info.imageId === image.id(), request, now), image };
}

// The targets that the request means.
function selected(request) {
  const known = TARGETS.map((target) => target.name);
  const asked = request.targets.filter((name) => !known.includes(name));
  if (asked.length) throw { tag: 'unknown-targets', val: { asked, known } };
  const repositories = request.images.map(repository);
  return TARGETS.filter(({ name }) => !request.targets.length || request.targets.includes(name)).filter(
    ({ image }) => !repositories.length || repositories.includes(repository(image)),
  );
}

// All containers that the policy is lent.
function listed(request, targets) {
  try {
    return docker.containers();
  } catch (error) {
    // An error of the contract is thrown as it is; whatever else went wrong has no tag.
    const known = typeof error?.tag === 'string' ? error : error?.payload ?? { tag: 'other', val: String(error) };
    if (request.recreate) throw { tag: 'unlisted', val: { error: known, targets } };
    // Only images were asked for, and those are here.
    host.log('warn', `containers could not be listed: ${engineError(known)}`);
    return [];
  }
}

// Why this image is not here, for a person.
function pullError(image, { tag, val }) {
  switch (tag) {
    case 'denied':
      return `\`${image}\` may not be pulled: ${val}`;
    case 'invalid-reference':
      return `\`${image}\` is no image reference: ${val}`;
    case 'not-found':
      return `the registry has no \`${image}\`, as far as it tells`;
    case 'unauthorized':
      return val.credentialsSent
        ? `the registry refused the login it was given for \`${image}\`: ${val.message}`
        : `the registry wants a login for \`${image}\`, and the host has none: ${val.message}`;
    case 'rate-limited':
      return `the registry limits the rate for \`${image}\`${val == null ? '' : `, and asks to wait ${val} s`}`;
    case 'no-space':
      return `this machine has no room for \`${image}\`: ${val}`;
    case 'unavailable':
      return `\`${image}\` could not be reached: ${val}`;
    case 'quota-exceeded':
      return `\`${image}\` was one pull too many: ${val}`;
    case 'cancelled':
      return `the refresh ended before \`${image}\` was pulled`;
    default:
      return `\`${image}\` could not be pulled: ${val}`;
  }
}

// Why a question about containers was not answered, for a person.
function engineError({ tag, val }) {
  switch (tag) {
    case 'not-found':
      return 'it is gone';
    case 'unavailable':
      return `the engine did not answer: ${val}`;
    case 'quota-exceeded':
      return `one question too many: ${val}`;
    case 'cancelled':
      return 'the refresh is being ended';
    default:
      return val;
  }
}

// `ghcr.io/acme/app` of `ghcr.io/acme/app:v1@sha256:…`. A colon before the last slash belongs to a port.
function repository(image) {
  const name = image.split('@')[0];
  const slash = name.lastIndexOf('/') + 1;
  return name.slice(0, slash) + name.slice(slash).split(':')[0];
}

// All that is wrong with a configuration, and where. This policy takes none.
function problems(config) {
  let given;
  try {
    given = JSON.parse(config || '{}');
  } catch (error) {
    return [{ path: '', problem: `this is no JSON: ${error.message}` }];
  }
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    return [{ path: '', problem: 'must be keys and values' }];
  }
  return Object.keys(given).map((path) => ({ path, problem: 'is no key of this policy' }));
}
