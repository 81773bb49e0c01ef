//! Stands between the watcher and the refreshes: what needs approval is held, anything else begins at once.

use std::sync::Arc;

use async_trait::async_trait;
use refit_model::request::Trigger;

use super::{ApprovalError, Approvals, Hold};
use crate::runs::StartError;
use crate::watch::update_sink::{Disposition, Proposal, UpdateSink};

/// See the module.
pub struct ApprovalDispatcher {
    /// For what needs nobody's approval.
    open: Arc<dyn UpdateSink>,
    approvals: Arc<Approvals>,
    required_for: Vec<Trigger>,
}

impl ApprovalDispatcher {
    pub(super) fn new(
        open: Arc<dyn UpdateSink>,
        approvals: Arc<Approvals>,
        required_for: Vec<Trigger>,
    ) -> Self {
        Self {
            open,
            approvals,
            required_for,
        }
    }

    /// A check by hand only makes the watcher look earlier. The refresh that follows needs the approval that the schedule or a webhook
    /// needs.
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
    async fn adopt(&self, proposal: Proposal) -> Disposition {
        if !self.needs_approval(proposal.request.trigger) {
            return self.open.adopt(proposal).await;
        }
        // A task of its own: whoever does not wait for the disk must not leave it saying something else than is known.
        let approvals = self.approvals.clone();
        let proposing = tokio::spawn(async move { approvals.propose(proposal).await });
        match proposing.await.unwrap_or(Err(ApprovalError::Panicked)) {
            Ok(Hold::Waits(held)) => Disposition::Held(held.id),
            Ok(Hold::Rejected) => Disposition::Rejected,
            Err(error) => Disposition::NotBegun(StartError::NotHeld(error.told())),
        }
    }
}
