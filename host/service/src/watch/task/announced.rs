//! Digests that a webhook has announced and the registry does not show yet: registries behind caches and replicas show a push
//! seconds after they have told of it.
//!
//! What was announced stays a claim. It decides only how often a registry is asked: a few times, at growing distances, and then no
//! more until its next turn. Time is an argument: nothing here waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use refit_model::image::ImageRef;

/// After the check that the webhook caused, and after each one that has not shown the digest.
const DELAYS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(45),
    Duration::from_secs(120),
];

/// Images that are waited for at once, however many webhooks come.
const IMAGES_MAX: usize = 256;

#[derive(Debug)]
struct Awaited {
    digest: String,
    /// Checks that did not show it.
    checks: usize,
    next_check: Instant,
}

/// By image, as its reference is written.
#[derive(Debug, Default)]
pub(super) struct Announced {
    awaited: BTreeMap<String, Awaited>,
}

/// What a check has shown of an announced digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Yes,
    /// It is checked again after this time.
    NotYet(Duration),
    /// It was checked as often as it is.
    GivenUp,
}

impl Announced {
    /// The check that the webhook caused comes next. A newer digest takes the place of the one before it.
    pub(super) fn add(&mut self, announced: BTreeMap<String, String>, now: Instant) {
        for (image, digest) in announced {
            // Written as the watcher writes it.
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

    /// Repositories to be checked again by now.
    pub(super) fn due(&self, now: Instant) -> BTreeSet<String> {
        let due = self.awaited.iter().filter(|(_, it)| it.next_check <= now);
        due.filter_map(|(image, _)| Some(image.parse::<ImageRef>().ok()?.repository()))
            .collect()
    }

    pub(super) fn next_check(&self) -> Option<Instant> {
        self.awaited.values().map(|it| it.next_check).min()
    }

    /// After a check of these images: what was found of each, `None` where nothing is known. What was not awaited is left out.
    pub(super) fn checked(
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

    /// Nobody watches other images.
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
    fn registry_that_is_slower_than_its_webhook_is_asked_four_times_more() {
        let mut now = Instant::now();
        let mut announced = announced(now);
        let mut waits = Vec::new();
        loop {
            assert_eq!(announced.due(now), ["ghcr.io/acme/app".to_owned()].into());
            let (digest, shown) = announced.checked(IMAGE, Some("sha256:a"), now).unwrap();
            assert_eq!(digest, "sha256:b");
            let Shown::NotYet(delay) = shown else {
                assert_eq!(shown, Shown::GivenUp);
                break;
            };
            // A check in between, for another reason, is none of them.
            assert_eq!(announced.checked(IMAGE, Some("sha256:a"), now), None);
            assert!(announced.due(now).is_empty());
            waits.push(delay.as_secs());
            now += delay;
            assert_eq!(announced.next_check(), Some(now));
        }
        assert_eq!(waits, [5, 15, 45, 120]);
        assert_eq!(announced.next_check(), None);
    }

    #[test]
    fn digest_that_is_shown_is_awaited_no_more() {
        let now = Instant::now();
        let mut announced = announced(now);
        announced.checked(IMAGE, None, now);
        // Whatever the check was for.
        let shown = announced.checked(IMAGE, Some("sha256:b"), now);
        assert_eq!(shown, Some(("sha256:b".into(), Shown::Yes)));
        assert_eq!(announced.checked(IMAGE, Some("sha256:a"), now), None);
    }

    #[test]
    fn newer_announcement_begins_anew_and_unwatched_images_are_dropped() {
        let now = Instant::now();
        let mut announced = announced(now);
        announced.checked(IMAGE, None, now);
        announced.add([(IMAGE.to_owned(), "sha256:c".to_owned())].into(), now);
        let (digest, shown) = announced.checked(IMAGE, Some("sha256:b"), now).unwrap();
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
