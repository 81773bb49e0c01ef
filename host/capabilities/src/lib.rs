//! The capabilities that a policy can use: list, inspect, pull and recreate, as in the WIT interface `docker`.
//!
//! Each mode of a refresh is an implementation of the trait [`Capabilities`], and a policy cannot distinguish them: [`live`] acts
//! on the engine, [`dry_run`] only checks and records. [`guard`] (grants, counts, cancellation) and the [`journal`]
//! wrap either. This crate does not depend on WebAssembly.

#![forbid(unsafe_code)]

pub mod approved_scope;
pub mod dependency_cache;
pub mod digest_error;
mod disk_space;
pub mod dry_run;
pub mod guard;
pub mod journal;
pub mod live;
pub mod operation_permissions;
pub mod prefetch;
pub mod scope;
pub mod simulated;
pub mod snapshot;
mod wave;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerId, ContainerSummary, Image};
use refit_model::image::{ImageId, ImageRef};
use refit_model::recreation::Strategy;
use refit_model::unfinished::Unfinished;
use refit_recreate::RecreateError;

/// Why a capability did not do its work: the host refused the call, or the call failed.
#[derive(Debug)]
pub enum CallError<E> {
    /// No grant covers the call. The text names the grant that would.
    Denied(String),
    /// A call count is used up. The text names the limit.
    QuotaExceeded(String),
    /// The refresh is being ended.
    Cancelled,
    Failed(E),
}

impl<E> CallError<E> {
    /// Convert each case with its own function, into the errors of a contract.
    pub fn map_or_else<T>(
        self,
        denied: impl FnOnce(String) -> T,
        quota: impl FnOnce(String) -> T,
        cancelled: T,
        failed: impl FnOnce(E) -> T,
    ) -> T {
        match self {
            Self::Denied(grant) => denied(grant),
            Self::QuotaExceeded(limit) => quota(limit),
            Self::Cancelled => cancelled,
            Self::Failed(error) => failed(error),
        }
    }
}

impl<E> From<E> for CallError<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

/// The effect of a pull on the image of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// The engine fetched the image: the reference points to another image now.
    Pulled,
    /// The image was up to date already.
    UpToDate,
    /// In a plan: the engine would fetch the image.
    WouldPull,
}

/// An image that is on this machine or, in a plan, would be.
#[derive(Clone, Debug)]
pub struct PulledImage {
    pub reference: ImageRef,
    /// The id of the image. In a plan, a placeholder if the engine would have to fetch it.
    pub id: ImageId,
    /// The digest that the reference names or that the engine reported.
    pub digest: Option<String>,
    /// The inspected image, if it is on this machine.
    pub local: Option<Arc<Image>>,
    /// The image that the reference pointed to on this machine before the pull, if that was another one.
    pub replaced: Option<Arc<Image>>,
    pub transfer: Transfer,
}

impl PulledImage {
    /// Whether the image's repository also serves this image under `digest`.
    pub fn has_digest(&self, digest: &str) -> bool {
        let local = self.local.as_ref();
        self.digest.as_deref() == Some(digest)
            || local.is_some_and(|local| local.has_digest(&self.reference, digest))
    }
}

#[derive(Clone, Debug)]
pub struct Recreation {
    pub container: ContainerSummary,
    pub image: PulledImage,
    pub strategy: Strategy,
}

#[derive(Clone, Debug)]
pub struct Recreated {
    /// The new container, or `None` after `remove`.
    pub id: Option<ContainerId>,
    pub image_id: ImageId,
    /// The image that the old container ran.
    pub from_image_id: ImageId,
    /// The downtime, or `None` after `remove`.
    pub gap: Option<Duration>,
    /// The dependent containers that were replaced with this one.
    pub followers: Vec<Follower>,
    /// Names of containers that could not be removed, for a person.
    pub left_over: Option<String>,
}

/// A container that was replaced together with a container that it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    pub name: String,
    pub id: ContainerId,
    pub new_id: ContainerId,
    /// The reference that the new container is created from. It runs the same image as the old container.
    pub image: String,
}

#[async_trait]
pub trait Capabilities: Send + Sync {
    /// List the containers, sorted by name.
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>>;
    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>>;
    /// Announce the images that are pulled next, one by one, so that an implementation can look them up in one batch.
    async fn expect_pulls(&self, _: &[ImageRef]) {}
    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>>;
    /// Announce the containers that are recreated next, one by one, so that dependent ones can be replaced together.
    async fn expect_recreations(&self, _: &[Recreation]) {}
    async fn recreate(&self, recreation: Recreation)
    -> Result<Recreated, CallError<RecreateError>>;
    /// Replacements that were started, have not ended, and that no Refit is working on.
    async fn unfinished(&self) -> Vec<Unfinished> {
        Vec::new()
    }
}
