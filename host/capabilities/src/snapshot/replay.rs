//! Acts as the engine of a snapshot. It changes nothing outside and gives the same answers each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerId, ContainerSummary, State};
use refit_model::image::{ImageId, ImageRef};
use refit_model::recreation::Strategy;
use refit_recreate::{RecreateError, guard};

use super::{ContainerFacts, ImageFacts, PullFault, Snapshot};
use crate::{CallError, Capabilities, PulledImage, Recreated, Recreation, Transfer};

/// Capabilities that answer from a snapshot. A recreated container runs the new image afterwards, as on a real engine.
pub struct SnapshotCapabilities {
    now: Mutex<Snapshot>,
    force: bool,
    fallback: Option<Fallback>,
}

/// The source of data that the snapshot lacks because no policy requested it when the snapshot was taken.
struct Fallback {
    listed: Vec<ContainerSummary>,
    /// Capabilities that must not change anything.
    plan: Arc<dyn Capabilities>,
}

impl SnapshotCapabilities {
    pub fn new(snapshot: Snapshot, force: bool) -> Self {
        Self {
            now: Mutex::new(snapshot),
            force,
            fallback: None,
        }
    }

    /// Also list all containers that existed at that time, and query `plan` for what the snapshot lacks.
    pub fn with_plan(
        snapshot: Snapshot,
        force: bool,
        listed: Vec<ContainerSummary>,
        plan: Arc<dyn Capabilities>,
    ) -> Self {
        Self {
            now: Mutex::new(snapshot),
            force,
            fallback: Some(Fallback { listed, plan }),
        }
    }

    /// The snapshot with the changes since.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken_error(action: String, why: &str) -> EngineError {
    EngineError::Broken {
        action,
        source: why.to_owned().into(),
    }
}

fn not_found_error(container: &ContainerSummary) -> EngineError {
    EngineError::NotFound {
        action: format!("inspect container `{}`", container.name),
        source: "the snapshot has no such container".into(),
    }
}

#[async_trait]
impl Capabilities for SnapshotCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        if let Some(fallback) = &self.fallback {
            return Ok(fallback.listed.clone());
        }
        let now = self.lock();
        if let Some(why) = &now.listing_fails {
            return Err(broken_error("list the containers".to_owned(), why).into());
        }
        let mut listed: Vec<ContainerSummary> =
            now.containers.iter().map(ContainerFacts::summary).collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        let known = {
            let now = self.lock();
            if let Some(why) = now.inspections_fail.get(&container.name) {
                let action = format!("inspect container `{}`", container.name);
                return Err(broken_error(action, why).into());
            }
            let found = now.containers.iter().find(|facts| facts.id == container.id);
            found.map(ContainerFacts::container)
        };
        match (known, &self.fallback) {
            (Some(container), _) => Ok(container),
            (None, Some(fallback)) => fallback.plan.inspect(container).await,
            (None, None) => Err(not_found_error(container).into()),
        }
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let known = self.lock().images.get(&image.to_string()).cloned();
        match (known, &self.fallback) {
            (Some(ImageFacts::Pulled { id, digest }), _) => Ok(PulledImage {
                reference: image.clone(),
                id,
                digest,
                local: None,
                replaced: None,
                transfer: Transfer::UpToDate,
            }),
            (Some(ImageFacts::Failed { failed, message }), _) => {
                Err(failed.error(image, &message).into())
            }
            (None, Some(fallback)) => fallback.plan.pull(image).await,
            (None, None) => Err(PullFault::NotFound
                .error(image, "the snapshot knows nothing of this image")
                .into()),
        }
    }

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        match (self.recreate_known(&recreation), &self.fallback) {
            (Some(outcome), _) => Ok(outcome?),
            (None, Some(fallback)) => fallback.plan.recreate(recreation).await,
            (None, None) => Err(RecreateError::Gone {
                name: recreation.container.name,
            }
            .into()),
        }
    }
}

impl SnapshotCapabilities {
    /// The result, or `None` if the snapshot does not have the container.
    fn recreate_known(&self, recreation: &Recreation) -> Option<Result<Recreated, RecreateError>> {
        let name = recreation.container.name.clone();
        let mut now = self.lock();
        let at = now
            .containers
            .iter()
            .position(|facts| facts.id == recreation.container.id)?;
        if let Some(fault) = now.recreations.get(&name) {
            return Some(Err(fault.error(&recreation.container)));
        }
        let facts = &mut now.containers[at];
        if facts.image_id == recreation.image.id && !self.force {
            return Some(Err(RecreateError::Current { name }));
        }
        if facts.state != State::Running {
            let reason = guard::not_running(facts.state);
            return Some(Err(RecreateError::Unsupported { name, reason }));
        }
        let from_image_id = std::mem::replace(&mut facts.image_id, recreation.image.id.clone());
        let stays = recreation.strategy != Strategy::Remove;
        if stays {
            facts.image = recreation.image.reference.to_string();
            facts.id = successor(&facts.id, &recreation.image.id);
        }
        let id = stays.then(|| facts.id.clone());
        if !stays {
            now.containers.remove(at);
        }
        Some(Ok(Recreated {
            id,
            image_id: recreation.image.id.clone(),
            from_image_id,
            gap: stays.then_some(Duration::ZERO),
            followers: vec![],
            left_over: None,
        }))
    }
}

/// A different id, the same each time.
fn successor(old: &ContainerId, image: &ImageId) -> ContainerId {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(format!("{old} {}", image.as_str()));
    ContainerId::new(
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
    )
}
