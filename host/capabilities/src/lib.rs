//! What a policy can have done: list, inspect, pull and recreate, as the WIT interface `docker` offers them.
//!
//! Every mode of a refresh is another implementation behind this trait, and a policy cannot tell them apart: [`live`] does the
//! work, [`plan`] looks and records. Around either stand [`guard`] (grants, counts, cancellation) and the
//! [journal](crate::journal). Knows nothing of WebAssembly.

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

/// Why a capability did not do as asked: the host did not let it, or it failed.
#[derive(Debug)]
pub enum CallError<E> {
    /// No grant covers it; the text names the one that would.
    Denied(String),
    /// A count is used up; the text names the limit.
    QuotaExceeded(String),
    /// The refresh is being ended.
    Cancelled,
    Failed(E),
}

impl<E> CallError<E> {
    /// One value for each case: a mapping into the errors of a contract.
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

/// What became of the image on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// It was fetched: what the reference means here has changed.
    Pulled,
    /// It was the same already.
    UpToDate,
    /// A plan: it would be fetched.
    WouldPull,
}

/// An image that is on this machine, or, in a plan, would be.
#[derive(Clone, Debug)]
pub struct PulledImage {
    pub reference: ImageRef,
    /// In a plan the registry's digest, where the image would first be fetched.
    pub id: ImageId,
    /// The one that was asked for, or that the engine reported.
    pub digest: Option<String>,
    /// The image as inspection shows it, where it is on this machine.
    pub local: Option<Arc<Image>>,
    /// What the reference meant on this machine before it was pulled, if that was another image.
    pub replaced: Option<Arc<Image>>,
    pub transfer: Transfer,
}

impl PulledImage {
    /// Whether its repository serves this very image under this digest, too.
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
    /// `None` after `remove`.
    pub id: Option<ContainerId>,
    pub image_id: ImageId,
    /// The image that it ran before.
    pub from_image_id: ImageId,
    /// `None` after `remove`.
    pub gap: Option<Duration>,
    /// Containers that depend on it and are replaced with it.
    pub followers: Vec<Follower>,
    /// Something that could not be tidied up, for a person.
    pub left_over: Option<String>,
}

/// A container that was replaced with one that it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    pub name: String,
    pub id: ContainerId,
    pub new_id: ContainerId,
    /// The reference that the new one is made from. It runs the same image as the old one.
    pub image: String,
}

#[async_trait]
pub trait Capabilities: Send + Sync {
    /// Sorted by name.
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>>;
    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>>;
    /// These are pulled next, one by one: whoever can find out about all of them at once may do so now.
    async fn expect_pulls(&self, _: &[ImageRef]) {}
    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>>;
    /// These are recreated next, one by one: those that depend on each other can be replaced together.
    async fn expect_recreations(&self, _: &[Recreation]) {}
    async fn recreate(&self, recreation: Recreation)
    -> Result<Recreated, CallError<RecreateError>>;
    /// Replacements that were begun, have not ended, and that nobody is at work on.
    async fn unfinished(&self) -> Vec<Unfinished> {
        Vec::new()
    }
}
