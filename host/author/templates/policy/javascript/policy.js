// Containers with a label follow one image, but those that were started a moment ago are left alone.
//
// Edit the three lines below, then `follows` and `decide`. Nothing here knows WebAssembly: `component.js` asks the host, calls
// these functions and answers. `wit/policy.wit` says what a container can be asked; names are camel case here.

export const NAME = '{{name}}';
export const VERSION = '0.1.0';

// What the containers follow.
export const IMAGE = 'ghcr.io/acme/app:latest';
// Containers with this label follow it, whatever its value.
export const LABEL = 'acme.follow';
// Seconds. Who started a container so recently is still at work in it.
export const SETTLED_AFTER = 30 * 60;

export const SUMMARY = `containers with the label \`${LABEL}\` follow \`${IMAGE}\``;
// The images to follow, by names of your own: `refit refresh --runtime app`.
export const TARGETS = [{ name: 'app', image: IMAGE }];

// Whether this container follows this target.
export function follows(container, target) {
  return container.labels.some(([key]) => key === LABEL);
}

// What becomes of a container that follows `image`.
export function decide(container, image, isCurrent, request, now) {
  const because = (verdict, rule, reason) => ({ verdict, rule, reason });
  const isRunning = container.state === 'running';
  if (isCurrent) {
    return request.force && request.recreate && isRunning
      ? because('recreate', 'forced', `it already runs \`${image}\`, and the request asked to recreate it anyway`)
      : because('current', 'up-to-date', `it runs what \`${image}\` stands for now`);
  }
  if (!isRunning) return because('stale', 'not-running', `it is behind \`${image}\`, but ${STATES[container.state]}`);
  if (!request.recreate) {
    return because('stale', 'recreate-not-asked', `it is behind \`${image}\`, and the request asked to recreate nothing`);
  }
  const age = Math.max(0, now - Number(container.started ?? 0));
  if (age < SETTLED_AFTER && !request.force) {
    return because('stale', 'just-started', `it is behind \`${image}\`, but was started ${Math.floor(age / 60)} min ago`);
  }
  return because('recreate', 'image-moved', `\`${image}\` stands for another image now`);
}

const STATES = {
  created: 'was never started',
  paused: 'is paused',
  restarting: 'is between two starts',
  removing: 'is being removed',
  exited: 'has exited',
  dead: 'is dead',
};
