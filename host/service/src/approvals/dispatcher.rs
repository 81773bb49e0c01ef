//! Decides whether an update needs an approval. It creates an approval for an update that needs one, and passes any other
//! update on.

use std::sync::Arc;

use async_trait::async_trait;
use refit_model::request::Trigger;

use super::{ApprovalError, Approvals, Hold};
use crate::runs::StartError;
use crate::watch::update_sink::{Disposition, Proposal, UpdateSink};

/// Sits between the watcher and the refreshes. See the [module documentation](self).
pub struct ApprovalDispatcher {
    /// Takes updates that need no approval.
    update_sink: Arc<dyn UpdateSink>,
    approvals: Arc<Approvals>,
    required_for: Vec<Trigger>,
}

impl ApprovalDispatcher {
    pub(super) fn new(
        update_sink: Arc<dyn UpdateSink>,
        approvals: Arc<Approvals>,
        required_for: Vec<Trigger>,
    ) -> Self {
        Self {
            update_sink,
            approvals,
            required_for,
        }
    }

    /// Returns whether a refresh with this trigger needs an approval. A manual check only makes the watcher check earlier: the
    /// refresh that follows needs the same approval as one that the schedule or a webhook started.
    fn needs_approval(&self, trigger: Trigger) -> bool {
        let is_required = |trigger| self.required_for.contains(&trigger);
        match trigger {
            Trigger::Schedule | Trigger::Webhook => is_required(trigger),
            Trigger::Operator | Trigger::Api => {
                is_required(trigger)
                    || is_required(Trigger::Schedule)
                    || is_required(Trigger::Webhook)
            }
        }
    }
}

#[async_trait]
impl UpdateSink for ApprovalDispatcher {
    async fn submit(&self, proposal: Proposal) -> Disposition {
        if !self.needs_approval(proposal.request.trigger) {
            return self.update_sink.submit(proposal).await;
        }
        // A separate task: if the caller stops waiting for the disk, the state in memory must not differ from the saved one.
        let approvals = self.approvals.clone();
        let creation = tokio::spawn(async move { approvals.propose(proposal).await });
        match creation.await.unwrap_or(Err(ApprovalError::Panicked)) {
            Ok(Hold::Waits(approval)) => Disposition::Held(approval.id),
            Ok(Hold::Rejected) => Disposition::Rejected,
            Err(error) => Disposition::NotBegun(StartError::NotHeld(error.diagnostic())),
        }
    }
}
