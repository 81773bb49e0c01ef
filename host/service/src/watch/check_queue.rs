//! "This image may have changed": rung by webhooks and operators, heard by the watcher.
//!
//! Ringing never waits, and however often it rings there is one entry a repository. What is heard is a reason to look, never
//! a reason to do: what a webhook claims is asked of the registry.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use refit_model::request::Trigger;
use tokio::sync::Notify;

/// Images whose announced digest is remembered until it is taken.
const ANNOUNCED_MAX: usize = 256;

/// Repositories that wait to be looked at. A platform has dozens; one that rings for more is answered by a look at all.
const REPOSITORIES_MAX: usize = 256;

/// What somebody rang for, since it was last heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckRequest {
    /// These repositories, `registry/path` without tag, and who rang for each last.
    For(BTreeMap<String, Trigger>),
    /// More than can be told apart, or all of them.
    ForAll(Trigger),
}

/// See the module.
#[derive(Debug, Default)]
pub struct CheckQueue {
    pending: Mutex<Pending>,
    rung: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// By image, with its tag.
    announced: BTreeMap<String, String>,
    what: Option<CheckRequest>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl CheckQueue {
    /// No repository means all.
    pub fn ring(&self, trigger: Trigger, repositories: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        {
            let mut pending = self.pending();
            let mut repositories = repositories.into_iter().peekable();
            let what = match (pending.what.take(), repositories.peek().is_some()) {
                (Some(CheckRequest::ForAll(_)), _) | (_, false) => CheckRequest::ForAll(trigger),
                (before, true) => {
                    let mut all = match before {
                        Some(CheckRequest::For(all)) => all,
                        Some(CheckRequest::ForAll(_)) | None => BTreeMap::new(),
                    };
                    all.extend(repositories.map(|repository| (repository, trigger)));
                    if all.len() > REPOSITORIES_MAX {
                        CheckRequest::ForAll(trigger)
                    } else {
                        CheckRequest::For(all)
                    }
                }
            };
            pending.what = Some(what);
            pending.first.get_or_insert(now);
            pending.last = Some(now);
        }
        self.rung.notify_one();
    }

    /// Somebody says which digest each of these images has from now on. Those beyond the bound are looked at once, and not again.
    pub fn announce(&self, announced: impl IntoIterator<Item = (String, String)>) {
        let mut pending = self.pending();
        for (image, digest) in announced {
            let all = &mut pending.announced;
            if all.len() < ANNOUNCED_MAX || all.contains_key(&image) {
                all.insert(image, digest);
            }
        }
    }

    /// All that was announced since this was last asked.
    pub fn take_announced(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.pending().announced)
    }

    /// When it rang first and last since it was last heard.
    pub fn since(&self) -> Option<(Instant, Instant)> {
        let pending = self.pending();
        pending.first.zip(pending.last)
    }

    /// Hears it: all that was rung for, which is forgotten.
    pub fn take(&self) -> Option<CheckRequest> {
        let mut pending = self.pending();
        (pending.first, pending.last) = (None, None);
        pending.what.take()
    }

    /// Awaits that it rings, or has since this was last awaited.
    pub async fn rings(&self) {
        self.rung.notified().await;
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_rings_are_one_and_name_each_repository_once() {
        let bell = CheckQueue::default();
        for _ in 0..3 {
            bell.ring(
                Trigger::Webhook,
                ["ghcr.io/acme/a".into(), "ghcr.io/acme/b".into()],
            );
        }
        bell.rings().await;
        let Some(CheckRequest::For(all)) = bell.take() else {
            panic!("it was rung for two")
        };
        assert_eq!(
            all.keys().collect::<Vec<_>>(),
            ["ghcr.io/acme/a", "ghcr.io/acme/b"]
        );
        assert_eq!(bell.take(), None);
        assert_eq!(bell.since(), None);
    }

    #[test]
    fn a_flood_of_names_is_a_look_at_all_and_so_is_no_name() {
        let bell = CheckQueue::default();
        bell.ring(
            Trigger::Webhook,
            (0..=REPOSITORIES_MAX).map(|n| format!("ghcr.io/acme/{n}")),
        );
        assert_eq!(bell.take(), Some(CheckRequest::ForAll(Trigger::Webhook)));
        bell.ring(Trigger::Webhook, ["ghcr.io/acme/a".into()]);
        bell.ring(Trigger::Operator, []);
        bell.ring(Trigger::Webhook, ["ghcr.io/acme/a".into()]);
        assert_eq!(bell.take(), Some(CheckRequest::ForAll(Trigger::Webhook)));
    }

    #[test]
    fn last_announcement_of_an_image_counts_and_their_number_is_bounded() {
        let bell = CheckQueue::default();
        let announce = |image: &str, digest: &str| {
            bell.announce([(image.to_owned(), digest.to_owned())]);
        };
        for n in 0..ANNOUNCED_MAX + 9 {
            announce(&format!("ghcr.io/acme/{n}:1"), "sha256:a");
        }
        announce("ghcr.io/acme/0:1", "sha256:b");
        let announced = bell.take_announced();
        assert_eq!(announced.len(), ANNOUNCED_MAX);
        assert_eq!(announced["ghcr.io/acme/0:1"], "sha256:b");
        assert_eq!(bell.take_announced(), BTreeMap::new());
    }
}
