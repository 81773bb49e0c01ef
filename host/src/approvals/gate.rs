//! Stands between the watcher and the refreshes: what needs approval is held, anything else begins at once.

use std::sync::Arc;

use async_trait::async_trait;

use super::{ApprovalError, Approvals, Hold};
use crate::refresh::Trigger;
use crate::runs::NotBegun;
use crate::watch::adopt::{Adopt, Adopted, Proposal};

/// See the module.
pub struct Gate {
    /// For what needs nobody's approval.
    open: Arc<dyn Adopt>,
    approvals: Arc<Approvals>,
    required_for: Vec<Trigger>,
}

impl Gate {
    pub(super) fn new(
        open: Arc<dyn Adopt>,
        approvals: Arc<Approvals>,
        required_for: Vec<Trigger>,
    ) -> Self {
        Self {
            open,
            approvals,
            required_for,
        }
    }
}

#[async_trait]
impl Adopt for Gate {
    async fn adopt(&self, proposal: Proposal) -> Adopted {
        if !self.required_for.contains(&proposal.request.trigger) {
            return self.open.adopt(proposal).await;
        }
        match self.approvals.propose(proposal).await {
            Ok(Hold::Waits(held)) => Adopted::Held(held.id),
            Ok(Hold::Rejected) => Adopted::Rejected,
            Err(error) => Adopted::NotBegun(not_held(&error)),
        }
    }
}

fn not_held(error: &ApprovalError) -> NotBegun {
    NotBegun::NotHeld(error.told())
}
