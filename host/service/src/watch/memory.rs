//! What the watcher must know after a restart: since when each digest is known, what has failed, and whether it is paused.
//!
//! Does no I/O: [`super::store`] keeps it in a file.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::update_sink::AvailableUpdate;

/// Raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// Digests that are remembered: ten of each of two hundred images. Those that were not seen for longest go first.
const SEEN_MAX: usize = 2000;
/// Each is seen at every look; this often that is worth a write.
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

/// A digest that a registry has, or had, under a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    image: String,
    digest: String,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Refreshes for it in a row that did not come to anything.
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
    /// Whether the file is behind.
    pub is_changed: bool,
}

impl Memory {
    /// A registry has this now.
    pub fn sees(&mut self, image: &str, digest: &str, now: Timestamp) {
        let key = (image.to_owned(), digest.to_owned());
        if let Some(seen) = self.seen.get_mut(&key) {
            // By a clock that was set back since, it comes from the future.
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

    /// Times that lie ahead are put right, and told whether any was: what is kept may have been written by a clock that was ahead.
    pub fn correct(
        &mut self,
        now: Timestamp,
        wait_most: SignedDuration,
        by: impl Fn(Timestamp) -> Timestamp,
    ) {
        let latest = now.checked_add(wait_most).unwrap_or(Timestamp::MAX);
        for seen in self.seen.values_mut() {
            let before = seen.clone();
            seen.first_seen = by(seen.first_seen).min(now);
            seen.last_seen = by(seen.last_seen).min(now);
            seen.retry_at = seen.retry_at.map(|at| by(at).min(latest));
            self.is_changed |= *seen != before;
        }
        if let Some(pause) = &mut self.paused
            && pause.since > now
        {
            pause.since = now;
            self.is_changed = true;
        }
    }

    pub fn first_seen(&self, finding: &AvailableUpdate) -> Option<Timestamp> {
        Some(self.of(finding)?.first_seen)
    }

    /// Refreshes for it that failed in a row, and when the next may be.
    pub fn failures(&self, finding: &AvailableUpdate) -> (u32, Option<Timestamp>) {
        match self.of(finding) {
            Some(seen) => (seen.failures, seen.retry_at),
            None => (0, None),
        }
    }

    pub fn failed(&mut self, finding: &AvailableUpdate, retry_at: Timestamp) {
        if let Some(seen) = self.seen.get_mut(&key(finding)) {
            seen.failures = seen.failures.saturating_add(1);
            seen.retry_at = Some(retry_at);
            self.is_changed = true;
        }
    }

    /// It came to something, or a person wants it to be tried again.
    pub fn forgives(&mut self, finding: &AvailableUpdate) {
        if let Some(seen) = self.seen.get_mut(&key(finding))
            && (seen.failures, seen.retry_at) != (0, None)
        {
            (seen.failures, seen.retry_at) = (0, None);
            self.is_changed = true;
        }
    }

    fn of(&self, finding: &AvailableUpdate) -> Option<&Seen> {
        self.seen.get(&key(finding))
    }

    /// Of a document that was kept. `None`: of another format.
    pub(super) fn read(text: &[u8]) -> Result<Option<Self>, serde_json::Error> {
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

    pub(super) fn text(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            paused: self.paused.clone(),
            seen: self.seen.values().cloned().collect(),
        };
        // Strings, numbers and times: it has no way to fail.
        serde_json::to_vec_pretty(&document).unwrap_or_default()
    }
}

fn key(finding: &AvailableUpdate) -> (String, String) {
    (finding.image.to_string(), finding.digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn finding(digest: &str) -> AvailableUpdate {
        AvailableUpdate {
            image: "ghcr.io/acme/app:1".parse().unwrap(),
            digest: digest.to_owned(),
        }
    }

    #[test]
    fn the_first_sight_counts_also_of_one_that_comes_back() {
        let mut memory = Memory::default();
        for (digest, second) in [("a", 0), ("b", 10), ("a", 20)] {
            memory.sees("ghcr.io/acme/app:1", digest, at(second));
        }
        assert_eq!(memory.first_seen(&finding("a")), Some(at(0)));
        assert_eq!(memory.first_seen(&finding("b")), Some(at(10)));
        // The clock was set back by an hour.
        memory.sees("ghcr.io/acme/app:1", "b", at(-3600));
        assert_eq!(memory.first_seen(&finding("b")), Some(at(-3600)));
    }

    #[test]
    fn times_of_a_clock_that_was_ahead_are_put_right() {
        const YEAR: i64 = 365 * 24 * 3600;
        let hours = SignedDuration::from_hours(6);
        let mut memory = Memory::default();
        memory.sees("ghcr.io/acme/app:1", "a", at(-100));
        memory.sees("ghcr.io/acme/app:1", "b", at(YEAR));
        memory.failed(&finding("a"), at(300));
        memory.failed(&finding("b"), at(YEAR + 300));
        memory.is_changed = false;
        memory.correct(at(0), hours, |at| at);
        assert!(memory.is_changed);
        assert_eq!(memory.first_seen(&finding("a")), Some(at(-100)));
        assert_eq!(memory.first_seen(&finding("b")), Some(at(0)));
        assert_eq!(memory.failures(&finding("a")), (1, Some(at(300))));
        let six_hours = at(6 * 3600);
        assert_eq!(memory.failures(&finding("b")), (1, Some(six_hours)));
        memory.is_changed = false;
        memory.correct(at(0), hours, |at| at);
        assert!(!memory.is_changed);
    }

    #[test]
    fn what_is_seen_at_each_look_is_not_written_each_time() {
        let mut memory = Memory::default();
        memory.sees("a", "b", at(0));
        assert!(std::mem::take(&mut memory.is_changed));
        memory.sees("a", "b", at(300));
        assert!(!memory.is_changed);
        memory.sees("a", "b", at(25 * 3600));
        assert!(memory.is_changed);
    }

    #[test]
    fn it_is_bounded_and_forgets_what_it_has_not_seen_for_longest() {
        let mut memory = Memory::default();
        for n in 0..SEEN_MAX + 10 {
            memory.sees(&format!("i{n}"), "d", at(n as i64));
        }
        assert_eq!(memory.seen.len(), SEEN_MAX);
        assert!(
            memory
                .seen
                .keys()
                .all(|(image, _)| image != "i0" && image != "i9")
        );
        assert!((memory.text().len() as u64) < crate::watch::store::FILE_BYTES_MAX);
    }
}
