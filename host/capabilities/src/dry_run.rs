//! The same capabilities with their hands tied: reads pass, writes are looked at and answered as if they had been done.
//!
//! Nothing is pulled and nothing is created. What an image would become is asked of its registry: through the engine, or of whoever
//! has asked the registry already ([`RemoteDigests`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerSummary, Image};
use refit_model::image::{ImageId, ImageRef};
use refit_model::recreation::Strategy;
use refit_model::unfinished::Unfinished;
use refit_recreate::RecreateError;
use refit_recreate::replace::NewImage;

use super::live::EngineContext;
use super::scope::{Scope, ScopeError};
use super::simulated::random_digits;
use super::{CallError, Capabilities, Follower, PulledImage, Recreated, Recreation, Transfer};

/// Where a plan learns which digest a registry serves under a reference now.
#[async_trait]
pub trait RemoteDigests: Send + Sync {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError>;
}

/// Asks the engine to ask, so that its mirrors, proxies and insecure registries count.
#[async_trait]
impl RemoteDigests for EngineContext {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        let login = self.login(image).await?;
        self.engine.remote_digest(image, login.as_ref()).await
    }
}

pub struct DryRunCapabilities {
    workshop: Arc<EngineContext>,
    digests: Arc<dyn RemoteDigests>,
    scope: Arc<Scope>,
    force: bool,
    /// Whether an image that is not here has its digest for an id.
    shows_digests: bool,
    /// The ids that stand for images that are not here, by digest.
    stand_ins: Mutex<HashMap<String, ImageId>>,
}

impl DryRunCapabilities {
    pub fn new(
        workshop: Arc<EngineContext>,
        digests: Arc<dyn RemoteDigests>,
        scope: Arc<Scope>,
        force: bool,
    ) -> Self {
        Self {
            workshop,
            digests,
            scope,
            force,
            shows_digests: false,
            stand_ins: Mutex::default(),
        }
    }

    pub fn asking_the_engine(workshop: Arc<EngineContext>, scope: Arc<Scope>, force: bool) -> Self {
        Self::new(workshop.clone(), workshop, scope, force)
    }

    /// Images that are not here have their digests for ids: for what people read, and for snapshots, which are the same each time.
    #[must_use]
    pub fn showing_digests(self) -> Self {
        Self {
            shows_digests: true,
            ..self
        }
    }

    /// A follower as it is: nothing is done. A pull would take the tag from its image.
    async fn follower(&self, dependent: Container, pulled: &PulledImage) -> Follower {
        let tag = dependent.image().parse::<ImageRef>();
        let moves =
            pulled.transfer == Transfer::WouldPull && tag.is_ok_and(|it| it == pulled.reference);
        let name = match moves {
            true => {
                let engine = self.workshop.engine.as_ref();
                NewImage::name_without_tag(engine, &dependent.image_id)
                    .await
                    .ok()
            }
            false => None,
        };
        Follower {
            image: name.unwrap_or_else(|| dependent.image().to_owned()),
            name: dependent.name,
            new_id: dependent.id.clone(),
            id: dependent.id,
        }
    }

    /// An id for an image that is not here. An engine names an image by its configuration, which nobody has read, so this is a
    /// random one: it equals no container's image, and a policy cannot tell it from a real one. With Docker's containerd image store
    /// the digest itself is the id.
    fn id_of_absent(&self, digest: &str, other: Option<&Image>) -> ImageId {
        if self.shows_digests || other.is_some_and(Image::is_named_by_manifest) {
            return ImageId::new(digest);
        }
        let mut stand_ins = self
            .stand_ins
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        stand_ins
            .entry(digest.to_owned())
            .or_insert_with(|| ImageId::new(format!("sha256:{}", random_digits())))
            .clone()
    }
}

#[async_trait]
impl Capabilities for DryRunCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        Ok(self.workshop.containers().await?)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
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
        let (local, other) = match local {
            Some(local) if local.has_digest(image, &digest) => (Some(Arc::new(local)), None),
            other => (None, other),
        };
        let (id, transfer) = match &local {
            Some(local) => (local.id.clone(), Transfer::UpToDate),
            None => (
                self.id_of_absent(&digest, other.as_ref()),
                Transfer::WouldPull,
            ),
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
        let dependents = match wanted.strategy {
            Strategy::Remove => vec![],
            Strategy::Replace => self.workshop.dependents(&container).await?,
            Strategy::Overlap => {
                self.workshop.may_overlap(&container).await?;
                vec![]
            }
        };
        let admitted = {
            let followers: Vec<&Container> = dependents.iter().collect();
            self.scope.admit(&[&container.name], &followers)
        };
        admitted.map_err(ScopeError::into_call_error)?;
        let mut followers = Vec::with_capacity(dependents.len());
        for dependent in dependents {
            followers.push(self.follower(dependent, &wanted.image).await);
        }
        let stays = wanted.strategy != Strategy::Remove;
        Ok(Recreated {
            id: stays.then_some(container.id),
            image_id: wanted.image.id,
            from_image_id: container.image_id,
            gap: stays.then_some(Duration::ZERO),
            followers,
            left_over: None,
        })
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.workshop.unfinished().await.unwrap_or_default()
    }
}
