//! The engine that a snapshot makes. Nothing is done, and the same is answered each time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::{ContainerFacts, ImageFacts, PullFault, Snapshot};
use crate::capabilities::{
    CallError, Capabilities, PulledImage, Recreated, Recreation, Strategy, Transfer,
};
use crate::container::{Container, ContainerId, Listed, State};
use crate::engine::{EngineError, PullError};
use crate::image::ImageId;
use crate::image::ImageRef;
use crate::recreate::RecreateError;

/// A snapshot that answers. Containers that are recreated run the new image afterwards, as on a real engine.
pub struct Replay {
    now: Mutex<Snapshot>,
    force: bool,
}

impl Replay {
    pub fn new(snapshot: Snapshot, force: bool) -> Self {
        Self {
            now: Mutex::new(snapshot),
            force,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn absent(container: &Listed) -> EngineError {
    EngineError::NotFound {
        action: format!("inspect container `{}`", container.name),
        source: "the snapshot has no such container".into(),
    }
}

#[async_trait]
impl Capabilities for Replay {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        let mut listed: Vec<Listed> = self
            .lock()
            .containers
            .iter()
            .map(ContainerFacts::listed)
            .collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    async fn inspect(&self, container: &Listed) -> Result<Container, CallError<EngineError>> {
        let now = self.lock();
        let found = now.containers.iter().find(|facts| facts.id == container.id);
        Ok(found.ok_or_else(|| absent(container))?.container())
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        match self.lock().images.get(&image.to_string()) {
            Some(ImageFacts::Pulled { id, digest }) => Ok(PulledImage {
                reference: image.clone(),
                id: id.clone(),
                digest: digest.clone(),
                transfer: Transfer::UpToDate,
            }),
            Some(ImageFacts::Failed { failed, message }) => {
                Err(failed.error(image, message).into())
            }
            None => Err(PullFault::NotFound
                .error(image, "the snapshot knows nothing of this image")
                .into()),
        }
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        let name = wanted.container.name.clone();
        let mut now = self.lock();
        if let Some(fault) = now.recreations.get(&name) {
            return Err(fault.error(&wanted.container).into());
        }
        let mut containers = now.containers.iter_mut();
        let Some(facts) = containers.find(|facts| facts.id == wanted.container.id) else {
            return Err(RecreateError::Gone { name }.into());
        };
        if facts.image_id == wanted.image.id && !self.force {
            return Err(RecreateError::Current { name }.into());
        }
        if facts.state != State::Running {
            let reason = format!(
                "it is {}, and only running containers are recreated",
                facts.state
            );
            return Err(RecreateError::Unsupported { name, reason }.into());
        }
        let from_image_id = std::mem::replace(&mut facts.image_id, wanted.image.id.clone());
        let stays = wanted.strategy != Strategy::Remove;
        if stays {
            facts.image = wanted.image.reference.to_string();
            facts.id = successor(&facts.id, &wanted.image.id);
        }
        let id = stays.then(|| facts.id.clone());
        if !stays {
            now.containers
                .retain(|facts| facts.id != wanted.container.id);
        }
        Ok(Recreated {
            id,
            image_id: wanted.image.id,
            from_image_id,
            gap: stays.then_some(Duration::ZERO),
            followed: vec![],
            left_over: None,
        })
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
