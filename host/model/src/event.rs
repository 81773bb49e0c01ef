//! Events of a refresh, for progress displays.

use std::sync::Arc;

use crate::image::ImageRef;
use crate::pull::{ImageRecord, LayerProgress};
use crate::recreation::{RecreationRecord, Step};

/// An event of a refresh, for displays. Refit sends it at once, and never waits for a receiver.
#[derive(Clone, Debug)]
pub enum Event {
    PullStarted {
        image: ImageRef,
    },
    Layer {
        image: ImageRef,
        layer: LayerProgress,
    },
    PullEnded(ImageRecord),
    RecreateStarted {
        container: String,
    },
    Step {
        container: String,
        step: Step,
    },
    RecreateEnded(RecreationRecord),
}

pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// Returns a receiver that drops all events.
pub fn no_events() -> Events {
    Arc::new(|_| {})
}
