// The policy without a host: `npm test`. What it does on one is in `scenarios`.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IMAGE, LABEL, SETTLED_AFTER, decide, follows } from '../policy.js';

const NOW = 1_000_000;

// The rule for a container that was started so many seconds ago.
function decided(seconds, { force = false, isCurrent = false, state = 'running' } = {}) {
  const container = { started: BigInt(NOW - seconds), state };
  return decide(container, IMAGE, isCurrent, { recreate: true, force }, NOW).rule;
}

test('a container that has settled gets its image', () => {
  assert.equal(decided(SETTLED_AFTER), 'image-moved');
});

test('one that was just started stays unless somebody insists', () => {
  assert.equal(decided(60), 'just-started');
  assert.equal(decided(60, { force: true }), 'image-moved');
});

test('one that is up to date or stands still stays', () => {
  assert.equal(decided(SETTLED_AFTER, { isCurrent: true }), 'up-to-date');
  assert.equal(decided(SETTLED_AFTER, { state: 'exited' }), 'not-running');
});

test('only containers with the label follow', () => {
  assert.ok(follows({ labels: [[LABEL, '']] }, 'app'));
  assert.ok(!follows({ labels: [] }, 'app'));
});
