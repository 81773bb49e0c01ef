//! The queue of requests to check images. Webhooks and operators add requests; the watcher takes them.
//!
//! Adding a request never blocks, and the queue has one entry per repository. A request only causes a check: Refit verifies the
//! claim of a webhook at the registry.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use refit_model::request::Trigger;
use tokio::sync::Notify;

/// The maximum number of images whose announced digest the queue remembers.
const ANNOUNCED_MAX: usize = 256;

/// The maximum number of waiting repositories. A platform has dozens; if more are requested, Refit checks all images.
const REPOSITORIES_MAX: usize = 256;

/// The requests since the last check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckRequest {
    /// These repositories, `registry/path` without a tag, and the last trigger for each.
    For(BTreeMap<String, Trigger>),
    /// All repositories, or more than the queue holds.
    ForAll(Trigger),
}

/// The queue of requests to check images. See the [module documentation](self).
#[derive(Debug, Default)]
pub struct CheckQueue {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// The announced digests, by image with its tag.
    announced: BTreeMap<String, String>,
    request: Option<CheckRequest>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl CheckQueue {
    /// Requests a check of these repositories; none means all.
    pub fn enqueue(&self, trigger: Trigger, repositories: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        {
            let mut pending = self.pending();
            let mut repositories = repositories.into_iter().peekable();
            let request = match (pending.request.take(), repositories.peek().is_some()) {
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
            pending.request = Some(request);
            pending.first.get_or_insert(now);
            pending.last = Some(now);
        }
        self.changed.notify_one();
    }

    /// Records the digests that a webhook announced for these images. Images beyond the bound get one check and no retries.
    pub fn announce(&self, announced: impl IntoIterator<Item = (String, String)>) {
        let mut pending = self.pending();
        for (image, digest) in announced {
            let digests = &mut pending.announced;
            if digests.len() < ANNOUNCED_MAX || digests.contains_key(&image) {
                digests.insert(image, digest);
            }
        }
    }

    /// Removes and returns the announced digests.
    pub fn take_announced(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.pending().announced)
    }

    /// Returns the times of the first and the last waiting request.
    pub fn waiting_since(&self) -> Option<(Instant, Instant)> {
        let pending = self.pending();
        pending.first.zip(pending.last)
    }

    /// Removes and returns the waiting requests.
    pub fn take(&self) -> Option<CheckRequest> {
        let mut pending = self.pending();
        (pending.first, pending.last) = (None, None);
        pending.request.take()
    }

    /// Waits for a new request since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_merged_by_repository() {
        let queue = CheckQueue::default();
        for _ in 0..3 {
            queue.enqueue(
                Trigger::Webhook,
                ["ghcr.io/acme/a".into(), "ghcr.io/acme/b".into()],
            );
        }
        queue.changed().await;
        let Some(CheckRequest::For(all)) = queue.take() else {
            panic!("two were requested")
        };
        assert_eq!(
            all.keys().collect::<Vec<_>>(),
            ["ghcr.io/acme/a", "ghcr.io/acme/b"]
        );
        assert_eq!(queue.take(), None);
        assert_eq!(queue.waiting_since(), None);
    }

    #[test]
    fn too_many_or_no_repositories_request_all() {
        let queue = CheckQueue::default();
        queue.enqueue(
            Trigger::Webhook,
            (0..=REPOSITORIES_MAX).map(|n| format!("ghcr.io/acme/{n}")),
        );
        assert_eq!(queue.take(), Some(CheckRequest::ForAll(Trigger::Webhook)));
        queue.enqueue(Trigger::Webhook, ["ghcr.io/acme/a".into()]);
        queue.enqueue(Trigger::Operator, []);
        queue.enqueue(Trigger::Webhook, ["ghcr.io/acme/a".into()]);
        assert_eq!(queue.take(), Some(CheckRequest::ForAll(Trigger::Webhook)));
    }

    #[test]
    fn last_announcement_counts_and_their_number_is_bounded() {
        let queue = CheckQueue::default();
        let announce = |image: &str, digest: &str| {
            queue.announce([(image.to_owned(), digest.to_owned())]);
        };
        for n in 0..ANNOUNCED_MAX + 9 {
            announce(&format!("ghcr.io/acme/{n}:1"), "sha256:a");
        }
        announce("ghcr.io/acme/0:1", "sha256:b");
        let announced = queue.take_announced();
        assert_eq!(announced.len(), ANNOUNCED_MAX);
        assert_eq!(announced["ghcr.io/acme/0:1"], "sha256:b");
        assert_eq!(queue.take_announced(), BTreeMap::new());
    }
}
