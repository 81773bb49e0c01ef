//! The strategy `remove`: the container goes, and somebody else makes a new one when it is needed.

use refit_engine::{Engine, Removal};
use refit_model::container::Container;
use refit_model::recreation::Step;

use super::RecreateError;
use super::retry::ensure_removed;

/// Removed by force, its volumes kept. It is looked at again where the answer got lost, so the outcome says what is true.
pub async fn remove(engine: &dyn Engine, container: &Container) -> Result<(), RecreateError> {
    ensure_removed(engine, &container.id, Removal::Force)
        .await
        .map_err(|error| RecreateError::Aborted {
            name: container.name.clone(),
            step: Step::Remove,
            source: error.into(),
        })
}
