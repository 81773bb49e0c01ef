//! What one refresh told so far, for those who watch it: from the beginning, from where they left off, and on to its end.
//!
//! Bounded: of a pull's progress only the latest word is kept, and of a very long refresh only the end. A watcher that is slow
//! misses progress, and holds nobody up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use refit_history::Outcome;
use refit_model::diagnostic::Diagnostic;
use refit_model::event::Event;
use refit_model::image::ImageRef;
use refit_model::pull::{ImageRecord, Transferred};
use refit_model::recreation::{RecreationRecord, Step};
use refit_model::report::{Report, Summary};
use refit_model::request::Request;
use refit_refresh::RefreshError;
use serde::Serialize;
use tokio::sync::watch;

use super::{Id, RefreshHandle};

/// A container is a dozen lines, so this is a refresh of three hundred in whole.
const KEPT_MAX: usize = 4096;

/// One thing that happened. The JSON is documented in `docs/http.md` and stable.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
#[schema(as = RefreshEvent)]
pub enum RefreshEvent {
    Began {
        id: Id,
        started: jiff::Timestamp,
        request: Request,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    PullStarted {
        image: ImageRef,
    },
    /// A layer came further.
    PullProgress(Box<PullProgress>),
    PullEnded(Box<ImageRecord>),
    RecreateStarted {
        container: String,
    },
    Step {
        container: String,
        step: Step,
    },
    RecreateEnded(Box<RecreationRecord>),
    /// The last one.
    Ended {
        outcome: Outcome,
        #[serde(skip_serializing_if = "Option::is_none")]
        summary: Option<Summary>,
        #[serde(skip_serializing_if = "Option::is_none")]
        failure: Option<Diagnostic>,
    },
}

/// How far a pull is: one layer, and all of them.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PullProgress {
    pub image: ImageRef,
    pub layer: LayerTold,
    /// Bytes of all layers that have begun.
    pub current_bytes: u64,
    pub total_bytes: u64,
    /// Layers that the engine has named so far.
    pub layers: usize,
    /// Of them, those that are here.
    pub layers_done: usize,
}

/// A layer, in the words of the engine.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = LayerProgress)]
pub struct LayerTold {
    pub id: String,
    /// For example `Downloading`, `Extracting` or `Pull complete`.
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

impl RefreshEvent {
    pub(super) fn began(run: &RefreshHandle) -> Self {
        Self::Began {
            id: run.id,
            started: run.started,
            request: run.request.clone(),
            by: run.by.clone(),
        }
    }

    pub(super) fn ended(outcome: Outcome, answer: &Result<Report, RefreshError>) -> Self {
        let (summary, failure) = match answer {
            Ok(report) => (Some(report.summary), None),
            Err(error) => (
                error.partial().map(|report| report.summary),
                Some(Diagnostic::of(error)),
            ),
        };
        Self::Ended {
            outcome,
            summary,
            failure,
        }
    }

    /// The name under which it is told: `pull-started`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Began { .. } => "began",
            Self::PullStarted { .. } => "pull-started",
            Self::PullProgress(_) => "pull-progress",
            Self::PullEnded(_) => "pull-ended",
            Self::RecreateStarted { .. } => "recreate-started",
            Self::Step { .. } => "step",
            Self::RecreateEnded(_) => "recreate-ended",
            Self::Ended { .. } => "ended",
        }
    }
}

/// Where somebody is who watches: the number of the last thing that they were told. 0 is before the first.
pub type Position = u64;

/// See the module.
#[derive(Debug)]
pub struct EventLog {
    kept: Mutex<Buffer>,
    /// The number of the newest.
    newest: watch::Sender<Position>,
}

#[derive(Debug, Default)]
struct Buffer {
    told: VecDeque<(Position, RefreshEvent)>,
    last: Position,
    ended: bool,
    pulls: HashMap<ImageRef, Transferred>,
}

/// What came since a position.
#[derive(Debug)]
pub struct Since {
    pub told: Vec<(Position, RefreshEvent)>,
    /// Nothing comes after these.
    pub ended: bool,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            newest: watch::channel(0).0,
        }
    }
}

impl EventLog {
    pub(super) fn on(&self, event: Event) {
        let told = match event {
            Event::PullStarted { image } => RefreshEvent::PullStarted { image },
            Event::Layer { image, layer } => {
                let mut kept = self.kept();
                let pull = kept.pulls.entry(image.clone()).or_default();
                // Most words of an engine about a layer say nothing new.
                if !pull.on(&layer) {
                    return;
                }
                let ((current_bytes, total_bytes), (layers_done, layers)) =
                    (pull.bytes(), pull.layers());
                drop(kept);
                RefreshEvent::PullProgress(Box::new(PullProgress {
                    image,
                    layer: LayerTold {
                        id: layer.layer,
                        status: layer.status,
                        current_bytes: layer.current_bytes,
                        total_bytes: layer.total_bytes,
                    },
                    current_bytes,
                    total_bytes,
                    layers,
                    layers_done,
                }))
            }
            Event::PullEnded(record) => {
                self.kept().pulls.remove(&record.image);
                RefreshEvent::PullEnded(Box::new(record))
            }
            Event::RecreateStarted { container } => RefreshEvent::RecreateStarted { container },
            Event::Step { container, step } => RefreshEvent::Step { container, step },
            Event::RecreateEnded(record) => RefreshEvent::RecreateEnded(Box::new(record)),
        };
        self.tell(told);
    }

    pub(super) fn tell(&self, told: RefreshEvent) {
        let newest = {
            let mut kept = self.kept();
            if kept.ended {
                return;
            }
            kept.last += 1;
            let position = kept.last;
            // Only the latest word about a layer is worth keeping, and none once its pull has ended.
            match &told {
                RefreshEvent::PullProgress(new) => kept.told.retain(|(_, told)| {
                    !matches!(told, RefreshEvent::PullProgress(old) if old.image == new.image && old.layer.id == new.layer.id)
                }),
                RefreshEvent::PullEnded(record) => kept.told.retain(
                    |(_, told)| !matches!(told, RefreshEvent::PullProgress(old) if old.image == record.image),
                ),
                _ => {}
            }
            kept.ended = matches!(told, RefreshEvent::Ended { .. });
            kept.told.push_back((position, told));
            if kept.told.len() > KEPT_MAX {
                kept.told.pop_front();
            }
            position
        };
        self.newest.send_replace(newest);
    }

    /// Nothing comes any more. Only where it did not come to its end.
    pub(super) fn close(&self) {
        self.kept().ended = true;
        self.newest.send_modify(|_| {});
    }

    /// What came after this position and is still kept, the oldest first, and this many at most. A position that nothing was told
    /// at yet, such as one of a refresh that had this number before a restart, is the beginning.
    pub fn since(&self, position: Position, most: usize) -> Since {
        let kept = self.kept();
        let position = if position > kept.last { 0 } else { position };
        let from = kept.told.partition_point(|(number, _)| *number <= position);
        let newer = kept.told.range(from..);
        Since {
            ended: kept.ended && newer.len() <= most,
            told: newer.take(most).cloned().collect(),
        }
    }

    /// To await that something comes: take it before [`Self::since`], and nothing is missed.
    pub fn changes(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::pull::LayerProgress;

    fn image() -> ImageRef {
        "ghcr.io/acme/app:1".parse().unwrap()
    }

    fn layer(current: u64) -> Event {
        let layer = LayerProgress {
            layer: "a".into(),
            status: "Downloading".into(),
            current_bytes: Some(current),
            total_bytes: Some(100),
        };
        Event::Layer {
            image: image(),
            layer,
        }
    }

    fn step(container: &str) -> Event {
        Event::Step {
            container: container.into(),
            step: Step::Stop,
        }
    }

    fn end() -> RefreshEvent {
        RefreshEvent::Ended {
            outcome: Outcome::Done,
            summary: None,
            failure: None,
        }
    }

    fn numbers(since: &Since) -> Vec<Position> {
        since.told.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn progress_is_told_by_its_latest_word_and_a_word_that_moves_nothing_is_none() {
        let feed = EventLog::default();
        feed.on(Event::PullStarted { image: image() });
        feed.on(layer(1));
        feed.on(layer(50));
        feed.on(layer(50));
        let since = feed.since(0, usize::MAX);
        assert_eq!(numbers(&since), [1, 3]);
        let (_, latest) = &since.told[1];
        assert!(
            matches!(latest, RefreshEvent::PullProgress(told) if (told.current_bytes, told.total_bytes) == (50, 100)),
            "{latest:?}"
        );
        assert!(!since.ended);
    }

    #[test]
    fn each_layer_keeps_its_latest_word_until_the_pull_has_ended() {
        let word = |id: &str, status: &str| Event::Layer {
            image: image(),
            layer: LayerProgress {
                layer: id.into(),
                status: status.into(),
                current_bytes: None,
                total_bytes: None,
            },
        };
        let feed = EventLog::default();
        feed.on(word("a", "Waiting"));
        feed.on(word("b", "Waiting"));
        feed.on(word("a", "Pull complete"));
        feed.on(word("b", "Waiting"));
        let since = feed.since(0, usize::MAX);
        assert_eq!(numbers(&since), [2, 3]);
        let RefreshEvent::PullProgress(told) = &since.told[1].1 else {
            panic!("{since:?}")
        };
        assert_eq!((told.layers, told.layers_done), (2, 1));
        let ended = ImageRecord {
            image: image(),
            outcome: refit_model::pull::ImageOutcome::Pulled,
            id: None,
            digest: None,
            failure: None,
            duration: std::time::Duration::ZERO,
        };
        feed.on(Event::PullEnded(ended));
        assert_eq!(numbers(&feed.since(0, usize::MAX)), [4]);
    }

    #[test]
    fn it_is_told_in_pieces_and_ends_with_the_last_of_them() {
        let feed = EventLog::default();
        feed.on(step("a"));
        feed.on(step("b"));
        feed.tell(end());
        let first = feed.since(0, 2);
        assert_eq!((numbers(&first), first.ended), (vec![1, 2], false));
        let last = feed.since(2, 2);
        assert_eq!((numbers(&last), last.ended), (vec![3], true));
        let of_another = feed.since(99, usize::MAX);
        assert_eq!(numbers(&of_another), [1, 2, 3]);
    }

    #[test]
    fn who_comes_back_is_told_the_rest_and_nothing_comes_after_the_end() {
        let feed = EventLog::default();
        let mut changes = feed.changes();
        feed.on(step("a"));
        feed.on(step("b"));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        feed.tell(end());
        feed.on(step("c"));
        assert_eq!(numbers(&feed.since(1, usize::MAX)), [2, 3]);
        assert!(feed.since(3, usize::MAX).ended);
        assert!(feed.since(3, usize::MAX).told.is_empty());
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn a_refresh_without_end_does_not_fill_the_memory() {
        let feed = EventLog::default();
        for _ in 0..KEPT_MAX + 10 {
            feed.on(step("a"));
        }
        let since = feed.since(0, usize::MAX);
        assert_eq!(since.told.len(), KEPT_MAX);
        assert_eq!(since.told[0].0, 11);
    }

    #[test]
    fn the_json_is_flat_and_names_what_it_is() {
        let feed = EventLog::default();
        feed.on(step("ws-ana"));
        let (_, told) = &feed.since(0, usize::MAX).told[0];
        let json = serde_json::to_value(told).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "event": told.name(), "container": "ws-ana", "step": "stop" })
        );
    }
}
