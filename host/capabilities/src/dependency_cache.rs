//! What the containers of an engine have of each other, kept between the looks.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, ContainerSummary};
use refit_recreate::dependents::{Dependencies, Node};

/// Inspections that are under way at once when the dependents of a container are looked for.
const LOOKS_AT_ONCE: usize = 8;

/// How long one look waits for another, whose findings it can use. One that the engine does not answer keeps nobody else longer.
const ANOTHER_LOOK: Duration = Duration::from_secs(10);

/// What every container of an engine has of others, as far as it was looked at. It never changes but for links, so each
/// container is inspected once; those that are gone are forgotten.
#[derive(Default)]
pub struct DependencyCache {
    known: Mutex<HashMap<ContainerId, Dependencies>>,
    /// Replacements begin together: each would inspect all that no one knows yet.
    looking: tokio::sync::Mutex<()>,
}

impl DependencyCache {
    pub(super) async fn of(
        &self,
        engine: &dyn Engine,
        listed: &[ContainerSummary],
    ) -> Result<Vec<Node>, EngineError> {
        let _looking = tokio::time::timeout(ANOTHER_LOOK, self.looking.lock()).await;
        let mut known = self.lock().clone();
        let ids = listed.iter().map(|listed| &listed.id);
        let unknown: Vec<ContainerId> =
            ids.filter(|id| !known.contains_key(*id)).cloned().collect();
        let looks = unknown.into_iter().map(|id| async move {
            match engine.inspect(&id).await {
                Ok(container) => Ok(Some(container)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        });
        let found: Vec<Option<Container>> = futures_util::stream::iter(looks)
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        let found = found.into_iter().flatten();
        known.extend(found.map(|container| {
            (
                container.id.clone(),
                Dependencies::from_container(&container),
            )
        }));
        let nodes = listed.iter().filter_map(|listed| {
            Some(Node {
                id: listed.id.clone(),
                name: listed.name.clone(),
                ties: known.get(&listed.id)?.clone(),
            })
        });
        let nodes: Vec<Node> = nodes.collect();
        let lasting = nodes.iter().filter(|node| node.ties.is_stable());
        *self.lock() = lasting
            .map(|node| (node.id.clone(), node.ties.clone()))
            .collect();
        Ok(nodes)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Dependencies>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
