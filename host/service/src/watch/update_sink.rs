//! Takes the updates that the watcher finds: it starts a refresh at once, or creates an approval.

use std::sync::Arc;

use async_trait::async_trait;
use refit_model::image::ImageRef;
use refit_model::report::Report;
use refit_model::request::Request;

use crate::runs::{RefreshManager, StartError, StartedRefresh};

/// An image behind which something is: what its registry has is not here, or containers do not run it yet.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct AvailableUpdate {
    pub image: ImageRef,
    /// What the registry has.
    pub digest: String,
}

/// A refresh that the watcher proposes, and why.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The request. Its `images` are the repositories of the updates.
    pub request: Request,
    /// The updates, sorted by image.
    pub findings: Vec<AvailableUpdate>,
    /// The plan of the refresh.
    pub plan: Report,
}

/// The result of a proposal.
#[derive(Debug)]
pub enum Disposition {
    /// The refresh runs.
    Begun(StartedRefresh),
    /// The refresh waits for approval, under this number. Proposing the same updates again changes nothing.
    Held(u64),
    /// A person has rejected these updates. Refit does not apply them until one of them changes.
    Rejected,
    /// The refresh could not start. The updates stay due.
    NotBegun(StartError),
}

#[async_trait]
pub trait UpdateSink: Send + Sync {
    async fn submit(&self, proposal: Proposal) -> Disposition;
}

/// Starts each refresh without approval.
#[async_trait]
impl UpdateSink for Arc<RefreshManager> {
    async fn submit(&self, proposal: Proposal) -> Disposition {
        match self.begin(proposal.request, None).await {
            Ok(started_refresh) => Disposition::Begun(started_refresh),
            Err(error) => Disposition::NotBegun(error),
        }
    }
}
