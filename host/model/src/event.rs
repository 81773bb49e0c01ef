//! What happens during a refresh, for those who watch it.

use std::sync::Arc;

use crate::image::ImageRef;
use crate::pull::{ImageRecord, LayerProgress};
use crate::recreation::{RecreationRecord, Step};

/// Something that happens during a refresh, for displays. Told as it happens, and never waited for.
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

/// Nobody watches.
pub fn no_events() -> Events {
    Arc::new(|_| {})
}
