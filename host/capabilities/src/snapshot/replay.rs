//! The engine that a snapshot makes. Nothing is done, and the same is answered each time.

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

/// A snapshot that answers. Containers that are recreated run the new image afterwards, as on a real engine.
pub struct SnapshotCapabilities {
    now: Mutex<Snapshot>,
    force: bool,
    beyond: Option<Beyond>,
}

/// Where to look for what the snapshot does not have: nobody looked at it when the snapshot was taken.
struct Beyond {
    listed: Vec<ContainerSummary>,
    /// Which must not do anything.
    plan: Arc<dyn Capabilities>,
}

impl SnapshotCapabilities {
    pub fn new(snapshot: Snapshot, force: bool) -> Self {
        Self {
            now: Mutex::new(snapshot),
            force,
            beyond: None,
        }
    }

    /// With all containers that were listed at that time; what is not known of them is asked of `plan`.
    pub fn with_plan(
        snapshot: Snapshot,
        force: bool,
        listed: Vec<ContainerSummary>,
        plan: Arc<dyn Capabilities>,
    ) -> Self {
        Self {
            now: Mutex::new(snapshot),
            force,
            beyond: Some(Beyond { listed, plan }),
        }
    }

    /// The engine as it has become.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fails(action: String, why: &str) -> EngineError {
    EngineError::Broken {
        action,
        source: why.to_owned().into(),
    }
}

fn absent(container: &ContainerSummary) -> EngineError {
    EngineError::NotFound {
        action: format!("inspect container `{}`", container.name),
        source: "the snapshot has no such container".into(),
    }
}

#[async_trait]
impl Capabilities for SnapshotCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        if let Some(beyond) = &self.beyond {
            return Ok(beyond.listed.clone());
        }
        let now = self.lock();
        if let Some(why) = &now.listing_fails {
            return Err(fails("list the containers".to_owned(), why).into());
        }
        let mut listed: Vec<ContainerSummary> =
            now.containers.iter().map(ContainerFacts::listed).collect();
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
                return Err(fails(action, why).into());
            }
            let found = now.containers.iter().find(|facts| facts.id == container.id);
            found.map(ContainerFacts::container)
        };
        match (known, &self.beyond) {
            (Some(container), _) => Ok(container),
            (None, Some(beyond)) => beyond.plan.inspect(container).await,
            (None, None) => Err(absent(container).into()),
        }
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let known = self.lock().images.get(&image.to_string()).cloned();
        match (known, &self.beyond) {
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
            (None, Some(beyond)) => beyond.plan.pull(image).await,
            (None, None) => Err(PullFault::NotFound
                .error(image, "the snapshot knows nothing of this image")
                .into()),
        }
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        match (self.recreate_known(&wanted), &self.beyond) {
            (Some(outcome), _) => Ok(outcome?),
            (None, Some(beyond)) => beyond.plan.recreate(wanted).await,
            (None, None) => Err(RecreateError::Gone {
                name: wanted.container.name,
            }
            .into()),
        }
    }
}

impl SnapshotCapabilities {
    /// `None` where the snapshot does not have the container.
    fn recreate_known(&self, wanted: &Recreation) -> Option<Result<Recreated, RecreateError>> {
        let name = wanted.container.name.clone();
        let mut now = self.lock();
        let at = now
            .containers
            .iter()
            .position(|facts| facts.id == wanted.container.id)?;
        if let Some(fault) = now.recreations.get(&name) {
            return Some(Err(fault.error(&wanted.container)));
        }
        let facts = &mut now.containers[at];
        if facts.image_id == wanted.image.id && !self.force {
            return Some(Err(RecreateError::Current { name }));
        }
        if facts.state != State::Running {
            let reason = guard::not_running(facts.state);
            return Some(Err(RecreateError::Unsupported { name, reason }));
        }
        let from_image_id = std::mem::replace(&mut facts.image_id, wanted.image.id.clone());
        let stays = wanted.strategy != Strategy::Remove;
        if stays {
            facts.image = wanted.image.reference.to_string();
            facts.id = successor(&facts.id, &wanted.image.id);
        }
        let id = stays.then(|| facts.id.clone());
        if !stays {
            now.containers.remove(at);
        }
        Some(Ok(Recreated {
            id,
            image_id: wanted.image.id.clone(),
            from_image_id,
            gap: stays.then_some(Duration::ZERO),
            followers: vec![],
            left_over: None,
        }))
    }
}

/// Another id, the same each time.
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
