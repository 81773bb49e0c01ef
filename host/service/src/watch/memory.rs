//! The state of the watcher that survives a restart: when each digest was first seen, failed refreshes, and the pause.
//!
//! This module does no I/O: [`super::store`] saves the state to a file.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::update_sink::AvailableUpdate;

/// The version of the format. It rises when a field changes its meaning or is removed.
const FORMAT: u32 = 1;
/// The maximum number of digests: ten for each of two hundred images. Those not seen for the longest time are removed first.
const SEEN_MAX: usize = 2000;
/// How often a new sighting of a known digest is saved. Each check sees it.
const SEEN_AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// Nothing is adopted until it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = WatchPause)]
pub struct Pause {
    pub since: Timestamp,
    /// Who paused, as they say of themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A digest that a registry has or had for a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    image: String,
    digest: String,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// The number of consecutive refreshes for it that failed or did nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_at: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused: Option<Pause>,
    #[serde(default)]
    seen: Vec<Seen>,
}

#[derive(Debug, Default)]
pub struct Memory {
    pub paused: Option<Pause>,
    seen: BTreeMap<(String, String), Seen>,
    /// Whether the file is outdated.
    pub is_changed: bool,
}

impl Memory {
    /// Records that a registry has this digest now.
    pub fn record_seen(&mut self, image: &str, digest: &str, now: Timestamp) {
        let key = (image.to_owned(), digest.to_owned());
        if let Some(seen) = self.seen.get_mut(&key) {
            // The clock was set back since then.
            if seen.first_seen > now {
                seen.first_seen = now;
                self.is_changed = true;
            }
            if now.duration_since(seen.last_seen).abs() >= SEEN_AGAIN {
                seen.last_seen = now;
                self.is_changed = true;
            }
            return;
        }
        self.is_changed = true;
        let seen = Seen {
            image: key.0.clone(),
            digest: key.1.clone(),
            first_seen: now,
            last_seen: now,
            failures: 0,
            retry_at: None,
        };
        self.seen.insert(key, seen);
        while self.seen.len() > SEEN_MAX {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.last_seen);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.seen.remove(&key);
        }
    }

    /// Corrects future times with `correct_time`, and sets `is_changed` if any was wrong: a clock that was ahead may have
    /// written the file.
    pub fn correct(
        &mut self,
        now: Timestamp,
        wait_most: SignedDuration,
        correct_time: impl Fn(Timestamp) -> Timestamp,
    ) {
        let latest = now.checked_add(wait_most).unwrap_or(Timestamp::MAX);
        for seen in self.seen.values_mut() {
            let before = seen.clone();
            seen.first_seen = correct_time(seen.first_seen).min(now);
            seen.last_seen = correct_time(seen.last_seen).min(now);
            seen.retry_at = seen.retry_at.map(|at| correct_time(at).min(latest));
            self.is_changed |= *seen != before;
        }
        if let Some(pause) = &mut self.paused
            && pause.since > now
        {
            pause.since = now;
            self.is_changed = true;
        }
    }

    pub fn first_seen(&self, update: &AvailableUpdate) -> Option<Timestamp> {
        Some(self.get(update)?.first_seen)
    }

    /// Returns the number of consecutive failed refreshes, and when the next may start.
    pub fn failures(&self, update: &AvailableUpdate) -> (u32, Option<Timestamp>) {
        match self.get(update) {
            Some(seen) => (seen.failures, seen.retry_at),
            None => (0, None),
        }
    }

    pub fn record_failure(&mut self, update: &AvailableUpdate, retry_at: Timestamp) {
        if let Some(seen) = self.seen.get_mut(&key(update)) {
            seen.failures = seen.failures.saturating_add(1);
            seen.retry_at = Some(retry_at);
            self.is_changed = true;
        }
    }

    /// Clears the failures, because a refresh succeeded or a person wants another attempt.
    pub fn clear_failures(&mut self, update: &AvailableUpdate) {
        if let Some(seen) = self.seen.get_mut(&key(update))
            && (seen.failures, seen.retry_at) != (0, None)
        {
            (seen.failures, seen.retry_at) = (0, None);
            self.is_changed = true;
        }
    }

    fn get(&self, update: &AvailableUpdate) -> Option<&Seen> {
        self.seen.get(&key(update))
    }

    /// Parses a saved document. `None` means another format.
    pub(super) fn from_json(text: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let document: Document = serde_json::from_slice(text)?;
        let seen = document.seen.into_iter().take(SEEN_MAX);
        let memory = Self {
            paused: document.paused,
            seen: seen
                .map(|seen| ((seen.image.clone(), seen.digest.clone()), seen))
                .collect(),
            is_changed: false,
        };
        Ok((document.format == FORMAT).then_some(memory))
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            paused: self.paused.clone(),
            seen: self.seen.values().cloned().collect(),
        };
        // Strings, numbers and times cannot fail.
        serde_json::to_vec_pretty(&document).unwrap_or_default()
    }
}

fn key(update: &AvailableUpdate) -> (String, String) {
    (update.image.to_string(), update.digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn update(digest: &str) -> AvailableUpdate {
        AvailableUpdate {
            image: "ghcr.io/acme/app:1".parse().unwrap(),
            digest: digest.to_owned(),
        }
    }

    #[test]
    fn first_sighting_of_returning_digest_counts() {
        let mut memory = Memory::default();
        for (digest, second) in [("a", 0), ("b", 10), ("a", 20)] {
            memory.record_seen("ghcr.io/acme/app:1", digest, at(second));
        }
        assert_eq!(memory.first_seen(&update("a")), Some(at(0)));
        assert_eq!(memory.first_seen(&update("b")), Some(at(10)));
        // The clock was set back by an hour.
        memory.record_seen("ghcr.io/acme/app:1", "b", at(-3600));
        assert_eq!(memory.first_seen(&update("b")), Some(at(-3600)));
    }

    #[test]
    fn times_from_a_clock_ahead_are_corrected() {
        const YEAR: i64 = 365 * 24 * 3600;
        let hours = SignedDuration::from_hours(6);
        let mut memory = Memory::default();
        memory.record_seen("ghcr.io/acme/app:1", "a", at(-100));
        memory.record_seen("ghcr.io/acme/app:1", "b", at(YEAR));
        memory.record_failure(&update("a"), at(300));
        memory.record_failure(&update("b"), at(YEAR + 300));
        memory.is_changed = false;
        memory.correct(at(0), hours, |at| at);
        assert!(memory.is_changed);
        assert_eq!(memory.first_seen(&update("a")), Some(at(-100)));
        assert_eq!(memory.first_seen(&update("b")), Some(at(0)));
        assert_eq!(memory.failures(&update("a")), (1, Some(at(300))));
        let six_hours = at(6 * 3600);
        assert_eq!(memory.failures(&update("b")), (1, Some(six_hours)));
        memory.is_changed = false;
        memory.correct(at(0), hours, |at| at);
        assert!(!memory.is_changed);
    }

    #[test]
    fn repeated_sighting_is_not_saved_each_time() {
        let mut memory = Memory::default();
        memory.record_seen("a", "b", at(0));
        assert!(std::mem::take(&mut memory.is_changed));
        memory.record_seen("a", "b", at(300));
        assert!(!memory.is_changed);
        memory.record_seen("a", "b", at(25 * 3600));
        assert!(memory.is_changed);
    }

    #[test]
    fn digests_are_bounded_and_least_recently_seen_are_removed() {
        let mut memory = Memory::default();
        for n in 0..SEEN_MAX + 10 {
            memory.record_seen(&format!("i{n}"), "d", at(n as i64));
        }
        assert_eq!(memory.seen.len(), SEEN_MAX);
        assert!(
            memory
                .seen
                .keys()
                .all(|(image, _)| image != "i0" && image != "i9")
        );
        assert!((memory.to_json().len() as u64) < crate::watch::store::FILE_BYTES_MAX);
    }
}
