//! The same capabilities with their hands tied: reads pass, writes are looked at and answered as if they had been done.
//!
//! Nothing is pulled and nothing is created. What an image would become is asked of its registry: through the engine, or of whoever
//! has asked the registry already ([`RemoteDigests`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::live::Workshop;
use super::{CallError, Capabilities, PulledImage, Recreated, Recreation, Strategy, Transfer};
use crate::container::{Container, Listed};
use crate::engine::{EngineError, PullError};
use crate::image::{ImageId, ImageRef};
use crate::recreate::RecreateError;
use crate::recreate::recover::Unfinished;

/// Where a plan learns which digest a registry serves under a reference now.
#[async_trait]
pub trait RemoteDigests: Send + Sync {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError>;
}

/// Asks the engine to ask, so that its mirrors, proxies and insecure registries count.
#[async_trait]
impl RemoteDigests for Workshop {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        let login = self.login(image).await?;
        self.engine.remote_digest(image, login.as_ref()).await
    }
}

pub struct Plan {
    pub workshop: Arc<Workshop>,
    pub digests: Arc<dyn RemoteDigests>,
    pub force: bool,
}

impl Plan {
    pub fn asking_the_engine(workshop: Arc<Workshop>, force: bool) -> Self {
        Self {
            digests: workshop.clone(),
            workshop,
            force,
        }
    }
}

#[async_trait]
impl Capabilities for Plan {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        Ok(self.workshop.containers().await?)
    }

    async fn inspect(&self, container: &Listed) -> Result<Container, CallError<EngineError>> {
        Ok(self.workshop.engine.inspect(&container.id).await?)
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let digest = self.digests.digest(image).await?;
        let local = match self.workshop.engine.image(&image.to_string()).await {
            Ok(local) => Some(local),
            Err(error) if error.is_not_found() => None,
            Err(source) => {
                return Err(PullError::Engine {
                    image: image.clone(),
                    source,
                }
                .into());
            }
        };
        let local = local
            .filter(|local| local.has_digest(image, &digest))
            .map(Arc::new);
        let (id, transfer) = match &local {
            Some(local) => (local.id.clone(), Transfer::UpToDate),
            // A digest names a manifest and an id names a configuration, so this equals no container's image.
            None => (ImageId::new(digest.clone()), Transfer::WouldPull),
        };
        Ok(PulledImage {
            reference: image.clone(),
            id,
            digest: Some(digest),
            local,
            replaced: None,
            transfer,
        })
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        let container = self.workshop.examine(&wanted, self.force).await?;
        let followed = match wanted.strategy {
            Strategy::Remove => vec![],
            Strategy::Replace => self.workshop.dependents(&container).await?,
            Strategy::Overlap => {
                self.workshop.may_overlap(&container).await?;
                vec![]
            }
        };
        let stays = wanted.strategy != Strategy::Remove;
        Ok(Recreated {
            id: stays.then_some(container.id),
            image_id: wanted.image.id,
            from_image_id: container.image_id,
            gap: stays.then_some(Duration::ZERO),
            followed: followed.into_iter().map(|followed| followed.name).collect(),
            left_over: None,
        })
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.workshop.unfinished().await.unwrap_or_default()
    }
}
