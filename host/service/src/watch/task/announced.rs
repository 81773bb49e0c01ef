//! Digests that a webhook announced and the registry does not show yet: registries behind caches and replicas show a push
//! seconds after they report it.
//!
//! An announcement stays a claim. It only decides how often Refit asks the registry: a few times, at growing intervals, and
//! then not before the next scheduled check. Time is an argument: nothing here waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use refit_model::image::ImageRef;

/// The pauses after the check that the webhook caused, and after each check that does not show the digest.
const DELAYS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(45),
    Duration::from_secs(120),
];

/// The maximum number of awaited images, however many webhooks arrive.
const IMAGES_MAX: usize = 256;

#[derive(Debug)]
struct Awaited {
    digest: String,
    /// The number of checks that did not show it.
    checks: usize,
    next_check: Instant,
}

/// The awaited digests, by image reference.
#[derive(Debug, Default)]
pub(super) struct Announced {
    awaited: BTreeMap<String, Awaited>,
}

/// Whether a check showed an announced digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Yes,
    /// Refit checks again after this time.
    NotYet(Duration),
    /// No more checks follow.
    GivenUp,
}

impl Announced {
    /// Adds announced digests. The check that the webhook caused comes next. A newer digest replaces an earlier one.
    pub(super) fn add(&mut self, announced: BTreeMap<String, String>, now: Instant) {
        for (image, digest) in announced {
            // Use the watcher's spelling of the image.
            let Ok(image) = image.parse::<ImageRef>() else {
                continue;
            };
            let image = image.to_string();
            if self.awaited.len() < IMAGES_MAX || self.awaited.contains_key(&image) {
                let awaited = Awaited {
                    digest,
                    checks: 0,
                    next_check: now,
                };
                self.awaited.insert(image, awaited);
            }
        }
    }

    /// Returns the repositories whose next check is due.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<String> {
        let due = self
            .awaited
            .iter()
            .filter(|(_, awaited)| awaited.next_check <= now);
        due.filter_map(|(image, _)| Some(image.parse::<ImageRef>().ok()?.repository()))
            .collect()
    }

    pub(super) fn next_check(&self) -> Option<Instant> {
        self.awaited
            .values()
            .map(|awaited| awaited.next_check)
            .min()
    }

    /// Records the digest that a check found for an image, `None` if it is unknown. Returns `None` if the image is not awaited.
    pub(super) fn record_check(
        &mut self,
        image: &str,
        found: Option<&str>,
        now: Instant,
    ) -> Option<(String, Shown)> {
        let awaited = self.awaited.get_mut(image)?;
        let digest = awaited.digest.clone();
        if found == Some(digest.as_str()) {
            self.awaited.remove(image);
            return Some((digest, Shown::Yes));
        }
        if awaited.next_check > now {
            return None;
        }
        let Some(delay) = DELAYS.get(awaited.checks) else {
            self.awaited.remove(image);
            return Some((digest, Shown::GivenUp));
        };
        awaited.checks += 1;
        awaited.next_check = now + *delay;
        Some((digest, Shown::NotYet(*delay)))
    }

    /// Removes images that are no longer watched.
    pub(super) fn retain(&mut self, is_watched: impl Fn(&str) -> bool) {
        self.awaited.retain(|image, _| is_watched(image));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "ghcr.io/acme/app:1";

    fn announced(now: Instant) -> Announced {
        let mut announced = Announced::default();
        announced.add([(IMAGE.to_owned(), "sha256:b".to_owned())].into(), now);
        announced
    }

    #[test]
    fn slow_registry_is_checked_four_more_times() {
        let mut now = Instant::now();
        let mut announced = announced(now);
        let mut waits = Vec::new();
        loop {
            assert_eq!(announced.due(now), ["ghcr.io/acme/app".to_owned()].into());
            let (digest, shown) = announced
                .record_check(IMAGE, Some("sha256:a"), now)
                .unwrap();
            assert_eq!(digest, "sha256:b");
            let Shown::NotYet(delay) = shown else {
                assert_eq!(shown, Shown::GivenUp);
                break;
            };
            // An additional check for another reason does not count.
            assert_eq!(announced.record_check(IMAGE, Some("sha256:a"), now), None);
            assert!(announced.due(now).is_empty());
            waits.push(delay.as_secs());
            now += delay;
            assert_eq!(announced.next_check(), Some(now));
        }
        assert_eq!(waits, [5, 15, 45, 120]);
        assert_eq!(announced.next_check(), None);
    }

    #[test]
    fn shown_digest_is_no_longer_awaited() {
        let now = Instant::now();
        let mut announced = announced(now);
        announced.record_check(IMAGE, None, now);
        // The reason for the check does not matter.
        let shown = announced.record_check(IMAGE, Some("sha256:b"), now);
        assert_eq!(shown, Some(("sha256:b".into(), Shown::Yes)));
        assert_eq!(announced.record_check(IMAGE, Some("sha256:a"), now), None);
    }

    #[test]
    fn newer_announcement_restarts_and_unwatched_images_are_removed() {
        let now = Instant::now();
        let mut announced = announced(now);
        announced.record_check(IMAGE, None, now);
        announced.add([(IMAGE.to_owned(), "sha256:c".to_owned())].into(), now);
        let (digest, shown) = announced
            .record_check(IMAGE, Some("sha256:b"), now)
            .unwrap();
        assert_eq!(
            (digest.as_str(), shown),
            ("sha256:c", Shown::NotYet(DELAYS[0]))
        );
        announced.retain(|_| false);
        assert_eq!(announced.next_check(), None);
        let many = (0..IMAGES_MAX + 9).map(|n| (format!("ghcr.io/acme/a{n}:1"), "d".to_owned()));
        announced.add(many.collect(), now);
        assert_eq!(announced.awaited.len(), IMAGES_MAX);
    }
}
