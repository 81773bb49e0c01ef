//! The strategy `remove`: Refit removes the container, and another program creates a new one when it needs one.

use refit_engine::{Engine, Removal};
use refit_model::container::Container;
use refit_model::recreation::Step;

use super::RecreateError;
use super::retry::ensure_removed;

/// Removes a container by force and keeps its volumes. If the engine's response got lost, Refit checks again, so the result is
/// true.
pub async fn remove(engine: &dyn Engine, container: &Container) -> Result<(), RecreateError> {
    ensure_removed(engine, &container.id, Removal::Force)
        .await
        .map_err(|error| RecreateError::Aborted {
            name: container.name.clone(),
            step: Step::Remove,
            source: error.into(),
        })
}
