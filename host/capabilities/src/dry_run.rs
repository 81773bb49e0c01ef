//! The capabilities of a plan: they pass reads on, and check each write and answer it as if it had been done.
//!
//! They pull and create nothing. The registry tells the digest that an image would get: through the engine, or from a cache of
//! digests that were requested already ([`RemoteDigests`]).

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

/// A source of the digest that a registry serves under a reference now.
#[async_trait]
pub trait RemoteDigests: Send + Sync {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError>;
}

/// Queries the registry through the engine, so that the engine's mirrors, proxies and insecure registries apply.
#[async_trait]
impl RemoteDigests for EngineContext {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        let login = self.login(image).await?;
        self.engine.remote_digest(image, login.as_ref()).await
    }
}

pub struct DryRunCapabilities {
    context: Arc<EngineContext>,
    digests: Arc<dyn RemoteDigests>,
    scope: Arc<Scope>,
    force: bool,
    /// Whether an image that is not on this machine has its digest for an id.
    digests_as_ids: bool,
    /// The placeholder ids of images that are not on this machine, by digest.
    placeholder_ids: Mutex<HashMap<String, ImageId>>,
}

impl DryRunCapabilities {
    pub fn new(
        context: Arc<EngineContext>,
        digests: Arc<dyn RemoteDigests>,
        scope: Arc<Scope>,
        force: bool,
    ) -> Self {
        Self {
            context,
            digests,
            scope,
            force,
            digests_as_ids: false,
            placeholder_ids: Mutex::default(),
        }
    }

    pub fn with_engine_digests(
        context: Arc<EngineContext>,
        scope: Arc<Scope>,
        force: bool,
    ) -> Self {
        Self::new(context.clone(), context, scope, force)
    }

    /// Use the digests as ids of images that are not on this machine. Reports for people need that, and snapshots, which have to be
    /// reproducible.
    #[must_use]
    pub fn with_digests_as_ids(self) -> Self {
        Self {
            digests_as_ids: true,
            ..self
        }
    }

    /// The follower as it is now, since a plan replaces nothing. If the pull takes the tag from its image, the follower is named by
    /// a digest.
    async fn follower(&self, dependent: Container, pulled: &PulledImage) -> Follower {
        let tag = dependent.image().parse::<ImageRef>();
        let moves =
            pulled.transfer == Transfer::WouldPull && tag.is_ok_and(|it| it == pulled.reference);
        let name = match moves {
            true => {
                let engine = self.context.engine.as_ref();
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

    /// The id of an image that is not on this machine. An engine names an image by its configuration, which is unknown before the
    /// pull, so this id is random: it equals no container's image, and a policy cannot distinguish it from a real id. With Docker's
    /// containerd image store the digest itself is the id.
    fn placeholder_id(&self, digest: &str, other: Option<&Image>) -> ImageId {
        if self.digests_as_ids || other.is_some_and(Image::is_named_by_manifest) {
            return ImageId::new(digest);
        }
        let mut placeholder_ids = self
            .placeholder_ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        placeholder_ids
            .entry(digest.to_owned())
            .or_insert_with(|| ImageId::new(format!("sha256:{}", random_digits())))
            .clone()
    }
}

#[async_trait]
impl Capabilities for DryRunCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        Ok(self.context.containers().await?)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        Ok(self.context.engine.inspect(&container.id).await?)
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let digest = self.digests.digest(image).await?;
        let local = match self.context.engine.image(&image.to_string()).await {
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
                self.placeholder_id(&digest, other.as_ref()),
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

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        let container = self.context.examine(&recreation, self.force).await?;
        let dependents = match recreation.strategy {
            Strategy::Remove => vec![],
            Strategy::Replace => self.context.dependents(&container).await?,
            Strategy::Overlap => {
                self.context.check_overlap(&container).await?;
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
            followers.push(self.follower(dependent, &recreation.image).await);
        }
        let stays = recreation.strategy != Strategy::Remove;
        Ok(Recreated {
            id: stays.then_some(container.id),
            image_id: recreation.image.id,
            from_image_id: container.image_id,
            gap: stays.then_some(Duration::ZERO),
            followers,
            left_over: None,
        })
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.context.unfinished().await.unwrap_or_default()
    }
}
