//! What becomes of an update that was found: a refresh at once, or one that is held until a person approves it.

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

/// A refresh that no person asked for, and why it is proposed.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Names the repositories of the findings in its `images`.
    pub request: Request,
    /// Sorted by image.
    pub findings: Vec<AvailableUpdate>,
    /// What it would do.
    pub plan: Report,
}

/// What became of a proposal.
#[derive(Debug)]
pub enum Disposition {
    /// It runs.
    Begun(StartedRefresh),
    /// It waits for a person, under this number. Proposing the same findings again changes nothing.
    Held(u64),
    /// A person has rejected these findings. They are not adopted until one of them changes.
    Rejected,
    /// It could not be begun. The findings stay due.
    NotBegun(StartError),
}

#[async_trait]
pub trait UpdateSink: Send + Sync {
    async fn adopt(&self, proposal: Proposal) -> Disposition;
}

/// Nobody needs to approve anything.
#[async_trait]
impl UpdateSink for Arc<RefreshManager> {
    async fn adopt(&self, proposal: Proposal) -> Disposition {
        match self.begin(proposal.request, None).await {
            Ok(begun) => Disposition::Begun(begun),
            Err(not_begun) => Disposition::NotBegun(not_begun),
        }
    }
}
