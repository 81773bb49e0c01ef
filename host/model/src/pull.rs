//! The pull of one image: its progress, and its result.

use std::collections::HashMap;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Failure};
use crate::image::{ImageId, ImageRef};
use crate::milliseconds;

/// The progress of one layer of a pull, as the engine reports it.
#[derive(Clone, Debug)]
pub struct LayerProgress {
    /// Twelve digits.
    pub layer: String,
    /// `Downloading`, `Extracting`, `Pull complete`, …
    pub status: String,
    pub current_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
}

/// What became of an image.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ImageRecord {
    pub image: ImageRef,
    pub outcome: ImageOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ImageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Failure)]
    pub failure: Option<Diagnostic>,
    #[serde(rename = "duration_ms", with = "milliseconds")]
    #[schema(value_type = u64)]
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum ImageOutcome {
    Pulled,
    UpToDate,
    WouldPull,
    Failed,
}

impl ImageOutcome {
    /// Returns the word for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::UpToDate => "up-to-date",
            Self::WouldPull => "would-pull",
            Self::Failed => "failed",
        }
    }
}

/// The progress of all layers of one image.
#[derive(Clone, Debug, Default)]
pub struct Transferred {
    layers: HashMap<String, Layer>,
}

#[derive(Clone, Debug, Default)]
struct Layer {
    status: String,
    /// Bytes so far and in total. `None` until the first bytes arrive, and for a layer that was here before.
    bytes: Option<(u64, u64)>,
}

/// The number of tracked layers of an image. The engine accepts 127 at most; further ones are not worth the memory.
const LAYERS_MAX: usize = 512;

impl Transferred {
    /// Records the progress of a layer. Returns whether it is new: another status, or more bytes.
    pub fn on(&mut self, layer: &LayerProgress) -> bool {
        // This is about the tag, and not about a layer.
        if layer.status.starts_with("Pulling from ") {
            return false;
        }
        let known = self.layers.contains_key(&layer.layer);
        if !known && self.layers.len() >= LAYERS_MAX {
            return false;
        }
        let kept = self.layers.entry(layer.layer.clone()).or_default();
        let bytes = match (layer.current_bytes, layer.total_bytes) {
            (Some(current), Some(total)) if layer.status == "Downloading" => Some((current, total)),
            // The download is complete: the whole layer is here.
            _ => kept.bytes.map(|(_, total)| (total, total)),
        };
        let news = kept.status != layer.status || kept.bytes != bytes;
        kept.bytes = bytes;
        if kept.status != layer.status {
            kept.status.clone_from(&layer.status);
        }
        news
    }

    /// Returns the bytes so far, and the total bytes of the layers that have started.
    pub fn bytes(&self) -> (u64, u64) {
        let begun = self.layers.values().filter_map(|layer| layer.bytes);
        begun.fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1))
    }

    /// Returns the number of complete layers, and of all known layers.
    pub fn layers(&self) -> (usize, usize) {
        let here = |layer: &&Layer| matches!(&*layer.status, "Pull complete" | "Already exists");
        (self.layers.values().filter(here).count(), self.layers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, status: &str, bytes: Option<(u64, u64)>) -> LayerProgress {
        LayerProgress {
            layer: name.into(),
            status: status.into(),
            current_bytes: bytes.map(|bytes| bytes.0),
            total_bytes: bytes.map(|bytes| bytes.1),
        }
    }

    #[test]
    fn complete_layer_counts_once_and_fully() {
        let mut transferred = Transferred::default();
        transferred.on(&layer("a", "Downloading", Some((1, 10))));
        transferred.on(&layer("a", "Downloading", Some((4, 10))));
        transferred.on(&layer("b", "Downloading", Some((1, 2))));
        assert_eq!(transferred.bytes(), (5, 12));
        transferred.on(&layer("a", "Extracting", Some((1, 99))));
        transferred.on(&layer("b", "Pull complete", None));
        assert_eq!(transferred.bytes(), (12, 12));
        transferred.on(&layer("c", "Already exists", None));
        assert_eq!(transferred.bytes(), (12, 12), "nothing is fetched of it");
        assert_eq!(transferred.layers(), (2, 3), "`a` is being extracted");
    }

    #[test]
    fn repeated_status_is_not_new() {
        let mut transferred = Transferred::default();
        assert!(!transferred.on(&layer("latest", "Pulling from acme/app", None)));
        assert!(transferred.on(&layer("a", "Waiting", None)));
        assert!(!transferred.on(&layer("a", "Waiting", None)));
        assert!(transferred.on(&layer("a", "Downloading", Some((1, 10)))));
        assert!(transferred.on(&layer("a", "Downloading", Some((2, 10)))));
        assert!(transferred.on(&layer("a", "Extracting", Some((1, 10)))));
        assert!(!transferred.on(&layer("a", "Extracting", Some((9, 10)))));
        assert_eq!(transferred.layers(), (0, 1));
    }
}
