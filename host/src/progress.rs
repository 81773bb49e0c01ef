//! How far a pull is: what the engine tells of each layer, summed up. Knows no display.

use std::collections::HashMap;

use crate::engine::LayerProgress;

/// The layers of one image, as they come in.
#[derive(Clone, Debug, Default)]
pub struct Transferred {
    /// Bytes so far and in all, by layer.
    layers: HashMap<String, (u64, u64)>,
}

/// Layers of an image that are kept apart. The engine takes 127 at most; what is said beyond is not worth memory.
const LAYERS_MAX: usize = 512;

impl Transferred {
    pub fn on(&mut self, layer: &LayerProgress) {
        match (layer.current_bytes, layer.total_bytes) {
            (Some(current), Some(total)) if layer.status == "Downloading" => {
                if self.layers.len() < LAYERS_MAX || self.layers.contains_key(&layer.layer) {
                    self.layers.insert(layer.layer.clone(), (current, total));
                }
            }
            // Past downloading: all of it is here.
            _ => {
                if let Some((current, total)) = self.layers.get_mut(&layer.layer) {
                    *current = *total;
                }
            }
        }
    }

    /// Bytes so far, and in all of the layers that have begun.
    pub fn bytes(&self) -> (u64, u64) {
        self.layers
            .values()
            .fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1))
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
    fn a_layer_counts_once_and_is_whole_when_it_has_come() {
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
    }
}
