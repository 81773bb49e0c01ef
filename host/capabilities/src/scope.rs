//! The limits on the containers that a recreation may touch in addition to the named container.
//!
//! Dependent containers are replaced with the named one. They are known only after a query of the engine, behind the
//! [guard](super::guard), so grants, counts and approvals are checked for them here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use refit_model::container::{Container, ContainerId};
use refit_model::grants::Grants;

use super::CallError;
use super::approved_scope::ApprovedScope;
use super::guard::Quota;

/// Why a recreation exceeds its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScopeError {
    /// No grant or approval covers it. The text names the grant that would.
    Denied(String),
    /// A count is used up. The text names the limit.
    QuotaExceeded(String),
}

impl ScopeError {
    pub(super) fn into_call_error<E>(self) -> CallError<E> {
        match self {
            Self::Denied(text) => CallError::Denied(text),
            Self::QuotaExceeded(text) => CallError::QuotaExceeded(text),
        }
    }
}

/// The limits of one refresh.
pub struct Scope {
    grants: Arc<Grants>,
    recreates: Quota,
    /// Followers that were counted and that the policy has not named itself since.
    counted: Mutex<HashSet<ContainerId>>,
    approved: Option<Arc<ApprovedScope>>,
}

impl Scope {
    pub fn new(grants: Arc<Grants>, recreates_max: u32) -> Self {
        Self {
            grants,
            recreates: Quota::new("recreates_max", recreates_max),
            counted: Mutex::default(),
            approved: None,
        }
    }

    /// Restrict the scope to an approval, if there is one.
    #[must_use]
    pub fn with_approval(self, approved: Option<Arc<ApprovedScope>>) -> Self {
        Self { approved, ..self }
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.grants
    }

    /// The number of recreations that the policy may still request.
    pub(super) fn recreates_left(&self) -> usize {
        self.recreates.left()
    }

    /// Count a recreation that the policy requested. A container that was counted as a follower is not counted again.
    pub(super) fn count(&self, container: &ContainerId) -> Result<(), ScopeError> {
        if self.lock().remove(container) {
            return Ok(());
        }
        self.recreates.take(1).map_err(ScopeError::QuotaExceeded)
    }

    /// Check whether `followers` may be replaced with their providers, none of which is among them.
    pub(super) fn admit(
        &self,
        providers: &[&str],
        followers: &[&Container],
    ) -> Result<(), ScopeError> {
        for follower in followers {
            if !self.grants.may_follow(follower) {
                return Err(ScopeError::Denied(format!(
                    "`{}` would be recreated with it, and `[grants] containers` and `labels` do not cover it; \
                     `[grants] followers = true` allows that",
                    follower.name
                )));
            }
        }
        if let Some(approved) = &self.approved {
            let covered = approved.covers_followers(providers, followers);
            covered.map_err(ScopeError::Denied)?;
        }
        let mut counted = self.lock();
        let ids = followers.iter().map(|follower| &follower.id);
        let new: Vec<&ContainerId> = ids.filter(|id| !counted.contains(id)).collect();
        self.recreates
            .take(u32::try_from(new.len()).unwrap_or(u32::MAX))
            .map_err(ScopeError::QuotaExceeded)?;
        counted.extend(new.into_iter().cloned());
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<ContainerId>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
