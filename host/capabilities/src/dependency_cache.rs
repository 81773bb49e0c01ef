//! A cache of the dependencies between an engine's containers, kept from one inspection of them to the next.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, ContainerSummary};
use refit_recreate::dependents::{Dependencies, Node};

/// The number of concurrent inspections in a search for the dependents of a container.
const CONCURRENT_INSPECTIONS: usize = 8;

/// How long a search waits for another search, whose results it can use. If the engine does not answer that one, the wait ends.
const SEARCH_WAIT_MAX: Duration = Duration::from_secs(10);

/// The dependencies of every container that was inspected. Only links change during a container's life, so each other container is
/// inspected once. The cache drops containers that no longer exist.
#[derive(Default)]
pub struct DependencyCache {
    known: Mutex<HashMap<ContainerId, Dependencies>>,
    /// Allows one search at a time: replacements start together, and each would inspect all unknown containers.
    search: tokio::sync::Mutex<()>,
}

impl DependencyCache {
    /// The dependencies of all listed containers. Inspects the containers that are not in the cache.
    pub(super) async fn nodes(
        &self,
        engine: &dyn Engine,
        listed: &[ContainerSummary],
    ) -> Result<Vec<Node>, EngineError> {
        let _search = tokio::time::timeout(SEARCH_WAIT_MAX, self.search.lock()).await;
        let mut known = self.lock().clone();
        let ids = listed.iter().map(|listed| &listed.id);
        let unknown: Vec<ContainerId> =
            ids.filter(|id| !known.contains_key(*id)).cloned().collect();
        let inspections = unknown.into_iter().map(|id| async move {
            match engine.inspect(&id).await {
                Ok(container) => Ok(Some(container)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        });
        let containers: Vec<Option<Container>> = futures_util::stream::iter(inspections)
            .buffered(CONCURRENT_INSPECTIONS)
            .try_collect()
            .await?;
        let containers = containers.into_iter().flatten();
        known.extend(containers.map(|container| {
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
