//! The events of one refresh. A client can read them from the beginning or from a position, and wait for more until the end.
//!
//! The log is bounded: it keeps the latest progress of each layer, and the end of a very long refresh. A slow client misses
//! progress, and delays nobody.

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

/// The maximum number of events. A container takes a dozen, so this is a complete refresh of three hundred.
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

    /// Returns the name of the event: `pull-started`.
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

/// The position of a client: the number of the last event that it received. 0 is before the first.
pub type Position = u64;

/// The events of one refresh. See the [module documentation](self).
#[derive(Debug)]
pub struct EventLog {
    buffer: Mutex<Buffer>,
    /// The number of the newest event.
    newest: watch::Sender<Position>,
}

#[derive(Debug, Default)]
struct Buffer {
    events: VecDeque<(Position, RefreshEvent)>,
    last: Position,
    ended: bool,
    pulls: HashMap<ImageRef, Transferred>,
}

/// The events after a position.
#[derive(Debug)]
pub struct Since {
    pub events: Vec<(Position, RefreshEvent)>,
    /// No event follows.
    pub ended: bool,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            buffer: Mutex::default(),
            newest: watch::channel(0).0,
        }
    }
}

impl EventLog {
    pub(super) fn record(&self, event: Event) {
        let refresh_event = match event {
            Event::PullStarted { image } => RefreshEvent::PullStarted { image },
            Event::Layer { image, layer } => {
                let mut buffer = self.buffer();
                let pull = buffer.pulls.entry(image.clone()).or_default();
                // Most messages of an engine about a layer contain nothing new.
                if !pull.on(&layer) {
                    return;
                }
                let ((current_bytes, total_bytes), (layers_done, layers)) =
                    (pull.bytes(), pull.layers());
                drop(buffer);
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
                self.buffer().pulls.remove(&record.image);
                RefreshEvent::PullEnded(Box::new(record))
            }
            Event::RecreateStarted { container } => RefreshEvent::RecreateStarted { container },
            Event::Step { container, step } => RefreshEvent::Step { container, step },
            Event::RecreateEnded(record) => RefreshEvent::RecreateEnded(Box::new(record)),
        };
        self.push(refresh_event);
    }

    pub(super) fn push(&self, refresh_event: RefreshEvent) {
        let newest = {
            let mut buffer = self.buffer();
            if buffer.ended {
                return;
            }
            buffer.last += 1;
            let position = buffer.last;
            // Only the latest progress of a layer is useful, and none once its pull has ended.
            match &refresh_event {
                RefreshEvent::PullProgress(new) => buffer.events.retain(|(_, event)| {
                    !matches!(event, RefreshEvent::PullProgress(old) if old.image == new.image && old.layer.id == new.layer.id)
                }),
                RefreshEvent::PullEnded(record) => buffer.events.retain(
                    |(_, event)| !matches!(event, RefreshEvent::PullProgress(old) if old.image == record.image),
                ),
                _ => {}
            }
            buffer.ended = matches!(refresh_event, RefreshEvent::Ended { .. });
            buffer.events.push_back((position, refresh_event));
            if buffer.events.len() > KEPT_MAX {
                buffer.events.pop_front();
            }
            position
        };
        self.newest.send_replace(newest);
    }

    /// Ends the log of a refresh that did not end normally.
    pub(super) fn close(&self) {
        self.buffer().ended = true;
        self.newest.send_modify(|_| {});
    }

    /// Returns the kept events after this position, the oldest first, `most` at most. A position after the last event, such as
    /// one from a refresh with the same number before a restart, means the beginning.
    pub fn events_since(&self, position: Position, most: usize) -> Since {
        let buffer = self.buffer();
        let position = if position > buffer.last { 0 } else { position };
        let from = buffer
            .events
            .partition_point(|(number, _)| *number <= position);
        let newer = buffer.events.range(from..);
        Since {
            ended: buffer.ended && newer.len() <= most,
            events: newer.take(most).cloned().collect(),
        }
    }

    /// Returns a receiver that signals new events. Take it before you call [`Self::events_since`], so that you miss none.
    pub fn subscribe(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    fn buffer(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
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
        since.events.iter().map(|(number, _)| *number).collect()
    }

    #[test]
    fn only_latest_progress_of_a_pull_is_kept() {
        let event_log = EventLog::default();
        event_log.record(Event::PullStarted { image: image() });
        event_log.record(layer(1));
        event_log.record(layer(50));
        event_log.record(layer(50));
        let since = event_log.events_since(0, usize::MAX);
        assert_eq!(numbers(&since), [1, 3]);
        let (_, latest) = &since.events[1];
        assert!(
            matches!(latest, RefreshEvent::PullProgress(progress) if (progress.current_bytes, progress.total_bytes) == (50, 100)),
            "{latest:?}"
        );
        assert!(!since.ended);
    }

    #[test]
    fn layer_progress_is_kept_until_pull_ends() {
        let layer_status = |id: &str, status: &str| Event::Layer {
            image: image(),
            layer: LayerProgress {
                layer: id.into(),
                status: status.into(),
                current_bytes: None,
                total_bytes: None,
            },
        };
        let event_log = EventLog::default();
        event_log.record(layer_status("a", "Waiting"));
        event_log.record(layer_status("b", "Waiting"));
        event_log.record(layer_status("a", "Pull complete"));
        event_log.record(layer_status("b", "Waiting"));
        let since = event_log.events_since(0, usize::MAX);
        assert_eq!(numbers(&since), [2, 3]);
        let RefreshEvent::PullProgress(progress) = &since.events[1].1 else {
            panic!("{since:?}")
        };
        assert_eq!((progress.layers, progress.layers_done), (2, 1));
        let ended = ImageRecord {
            image: image(),
            outcome: refit_model::pull::ImageOutcome::Pulled,
            id: None,
            digest: None,
            failure: None,
            duration: std::time::Duration::ZERO,
        };
        event_log.record(Event::PullEnded(ended));
        assert_eq!(numbers(&event_log.events_since(0, usize::MAX)), [4]);
    }

    #[test]
    fn events_are_read_in_pages_until_the_end() {
        let event_log = EventLog::default();
        event_log.record(step("a"));
        event_log.record(step("b"));
        event_log.push(end());
        let first = event_log.events_since(0, 2);
        assert_eq!((numbers(&first), first.ended), (vec![1, 2], false));
        let last = event_log.events_since(2, 2);
        assert_eq!((numbers(&last), last.ended), (vec![3], true));
        let after_restart = event_log.events_since(99, usize::MAX);
        assert_eq!(numbers(&after_restart), [1, 2, 3]);
    }

    #[test]
    fn returning_client_reads_the_rest_until_the_end() {
        let event_log = EventLog::default();
        let mut changes = event_log.subscribe();
        event_log.record(step("a"));
        event_log.record(step("b"));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        event_log.push(end());
        event_log.record(step("c"));
        assert_eq!(numbers(&event_log.events_since(1, usize::MAX)), [2, 3]);
        assert!(event_log.events_since(3, usize::MAX).ended);
        assert!(event_log.events_since(3, usize::MAX).events.is_empty());
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn number_of_events_is_bounded() {
        let event_log = EventLog::default();
        for _ in 0..KEPT_MAX + 10 {
            event_log.record(step("a"));
        }
        let since = event_log.events_since(0, usize::MAX);
        assert_eq!(since.events.len(), KEPT_MAX);
        assert_eq!(since.events[0].0, 11);
    }

    #[test]
    fn event_json_is_flat_and_has_its_name() {
        let event_log = EventLog::default();
        event_log.record(step("ws-ana"));
        let (_, event) = &event_log.events_since(0, usize::MAX).events[0];
        let json = serde_json::to_value(event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "event": event.name(), "container": "ws-ana", "step": "stop" })
        );
    }
}
