//! Approvals: refreshes that wait for a person's decision, with their plan, their expiry and their result.
//!
//! Invariants:
//!
//! - *An approval covers exactly its plan.* Refit plans again before it starts the refresh. If a digest has moved, a new
//!   approval supersedes the old one. An [`ApprovedScope`] then limits the refresh to the images and containers of the plan,
//!   since a tag may move at any time.
//! - *An approved refresh starts*: at once, when there is room, or at the next start of the daemon. Refit saves "approved" to
//!   the disk before the refresh starts, and the number of the refresh afterwards. If the daemon dies between the two, the next
//!   daemon starts the refresh. If the refresh had already started, the second one finds its work done. So no approval is lost,
//!   and no work is done twice.
//! - *A request to approve that got no answer* either did not take effect or starts the refresh: the approval waits until
//!   "approved" is on the disk.
//! - *Expiry needs no timer*: Refit computes it on each read, and saves it with the next change.
//!
//! [`store`] reads and writes the files, `repository` holds the approvals in memory, [`plan`] describes and compares plans,
//! `service` implements the state transitions, and [`dispatcher`] sits between the watcher and the refreshes. This module does
//! not depend on HTTP.

pub mod dispatcher;
pub mod plan;
mod repository;
mod service;
pub mod store;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use refit_capabilities::approved_scope::ApprovedScope;
use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::event::no_events;
use refit_model::report::{Report, Summary};
use refit_model::request::{Mode, Request};
use refit_refresh::RefreshError;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::plan::Plan;
use self::store::StoreError;
use crate::runs::{RefreshManager, StartError};
use crate::watch::update_sink::AvailableUpdate;

pub use self::service::{Approvals, Hold, Observer, Requested, Terms};

/// The number of an approval. It rises with each approval, and is never used twice.
pub type Id = u64;

/// A refresh that waits for a person, or has waited. The JSON is documented in `docs/approvals.md` and stable.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Approval)]
pub struct PendingApproval {
    pub id: Id,
    pub created: Timestamp,
    /// Until then it may be approved.
    pub expires: Timestamp,
    #[serde(flatten)]
    pub state: ApprovalState,
    pub request: Request,
    /// Who asked, as they say of themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The images that it is about.
    pub findings: Vec<AvailableUpdate>,
    pub plan: Plan,
}

/// One without its plan.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ApprovalEntry)]
pub struct Entry {
    pub id: Id,
    pub created: Timestamp,
    pub expires: Timestamp,
    #[serde(flatten)]
    pub state: ApprovalState,
    pub request: Request,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub findings: Vec<AvailableUpdate>,
    pub summary: Summary,
}

impl Entry {
    pub fn from_approval(approval: &PendingApproval) -> Self {
        Self {
            id: approval.id,
            created: approval.created,
            expires: approval.expires,
            state: approval.state.clone(),
            request: approval.request.clone(),
            by: approval.by.clone(),
            findings: approval.findings.clone(),
            summary: approval.plan.summary,
        }
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
#[schema(as = ApprovalState)]
pub enum ApprovalState {
    Waiting,
    Approved {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decided_by: Option<String>,
        decided_at: Timestamp,
        /// In the history, once it has begun.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refresh: Option<refit_history::Id>,
    },
    Rejected {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decided_by: Option<String>,
        decided_at: Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Expired,
    Superseded {
        decided_at: Timestamp,
        /// What is held in its place; nothing where nothing is to be done any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        superseded_by: Option<Id>,
        /// What had moved, a sentence each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        moved: Vec<String>,
    },
}

impl ApprovalState {
    pub fn name(&self) -> State {
        match self {
            Self::Waiting => State::Waiting,
            Self::Approved { .. } => State::Approved,
            Self::Rejected { .. } => State::Rejected,
            Self::Expired => State::Expired,
            Self::Superseded { .. } => State::Superseded,
        }
    }
}

/// A fate's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
#[schema(as = ApprovalStateName)]
pub enum State {
    Waiting,
    Approved,
    Rejected,
    Expired,
    Superseded,
}

impl State {
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Approved,
        Self::Rejected,
        Self::Expired,
        Self::Superseded,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not what an approval can be: waiting, approved, rejected, expired or superseded")]
pub struct StateError(String);

impl FromStr for State {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let state = Self::ALL.into_iter().find(|state| state.as_str() == text);
        state.ok_or_else(|| StateError(text.chars().take(80).collect()))
    }
}

impl PendingApproval {
    /// Returns the state at this time. A waiting approval past its expiry has expired, even if nothing has saved that yet.
    fn state_at(&self, now: Timestamp) -> ApprovalState {
        match &self.state {
            ApprovalState::Waiting if now >= self.expires => ApprovalState::Expired,
            state => state.clone(),
        }
    }

    /// Returns the same approval with its full lifetime starting now.
    fn restarted_at(&self, now: Timestamp) -> Self {
        let lifetime = self.expires.duration_since(self.created);
        Self {
            created: now,
            expires: now.checked_add(lifetime).unwrap_or(Timestamp::MAX),
            ..self.clone()
        }
    }

    fn with_state(&self, state: ApprovalState) -> Self {
        Self {
            state,
            ..self.clone()
        }
    }
}

/// Why Refit did not create an approval, or why a decision did not take effect.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error("there is no approval {0}")]
    NoSuch(Id),
    #[error("approval {id} was {} at {when}{}", .state.as_str(), by_suffix(.decided_by.as_deref()))]
    Decided {
        id: Id,
        state: State,
        decided_by: Option<String>,
        when: Timestamp,
        refresh: Option<refit_history::Id>,
    },
    #[error("approval {id} has expired at {when}")]
    Expired { id: Id, when: Timestamp },
    #[error("approval {id} is superseded: what it was for is otherwise now")]
    Superseded {
        id: Id,
        superseded_by: Option<Id>,
        moved: Vec<String>,
    },
    #[error("approval {0} is being decided by somebody else")]
    BeingDecided(Id),
    #[error("cannot see whether approval {id} still says what is so")]
    Unseen { id: Id, problems: Vec<String> },
    #[error("cannot see what would be done")]
    Unplanned { source: RefreshError },
    #[error("the daemon is stopping")]
    Stopping,
    #[error("{most} refreshes wait for approval, and no more are held")]
    TooMany { most: usize },
    #[error("approvals cannot be kept")]
    Store { source: StoreError },
    #[error("Refit itself failed at an approval")]
    Panicked,
}

fn by_suffix(decided_by: Option<&str>) -> String {
    decided_by
        .map(|name| format!(" by {name}"))
        .unwrap_or_default()
}

impl ApprovalError {
    /// Returns the error for people, with the digests that moved or the problems that prevented the check.
    pub fn diagnostic(&self) -> Diagnostic {
        let mut diagnostic = Diagnostic::of(self);
        if let Self::Superseded { moved: list, .. } | Self::Unseen { problems: list, .. } = self {
            diagnostic.causes.extend(list.iter().cloned());
        }
        diagnostic
    }
}

impl Hints for ApprovalError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NoSuch(_) => "`refit approvals list` lists those there are".to_owned(),
            Self::Decided {
                refresh: Some(refresh),
                ..
            } => format!("`refit history show {refresh}` tells what came of it"),
            Self::Expired { .. } => "ask for it anew: what it was for may still be due".to_owned(),
            Self::Superseded {
                superseded_by: Some(id),
                ..
            } => format!("approval {id} is held in its place: look at it, and approve that one"),
            Self::Superseded {
                superseded_by: None,
                ..
            } => "nothing is to be done any more".to_owned(),
            Self::Unseen { .. } => "it still waits: try again".to_owned(),
            Self::TooMany { .. } => "approve or reject some of them".to_owned(),
            Self::Unplanned { source } => return source.hints(),
            Self::Store { source } => return source.hints(),
            Self::Panicked => "this is a fault of Refit: its log has the place".to_owned(),
            Self::Decided { refresh: None, .. } | Self::BeingDecided(_) | Self::Stopping => {
                return vec![];
            }
        };
        vec![hint]
    }
}

/// Plans and starts refreshes for approvals. [`RefreshManager`] implements it; unit tests of approvals use their own
/// implementation.
#[async_trait]
pub trait Refreshes: Send + Sync {
    async fn plan(&self, request: &Request) -> Result<Report, RefreshError>;

    /// Starts a refresh within the approved scope, and returns when it has started.
    async fn begin(
        &self,
        request: Request,
        by: Option<String>,
        approved: ApprovedScope,
    ) -> Result<refit_history::Id, StartError>;

    fn is_under_way(&self, refresh: refit_history::Id) -> bool;

    /// Returns whether the daemon is stopping: no refresh starts any more, and plans end early.
    fn is_stopping(&self) -> bool;
}

#[async_trait]
impl Refreshes for Arc<RefreshManager> {
    async fn plan(&self, request: &Request) -> Result<Report, RefreshError> {
        let stopping: CancellationToken = self.stopping().clone();
        let refresher = self.refresher();
        refresher
            .run(request, Mode::Plan, no_events(), stopping)
            .await
    }

    async fn begin(
        &self,
        request: Request,
        by: Option<String>,
        approved: ApprovedScope,
    ) -> Result<refit_history::Id, StartError> {
        let started_refresh = self
            .begin_limited_to(request, by, Arc::new(approved))
            .await?;
        Ok(started_refresh.run.id)
    }

    fn is_under_way(&self, refresh: refit_history::Id) -> bool {
        self.under_way().iter().any(|run| run.id == refresh)
    }

    fn is_stopping(&self) -> bool {
        self.stopping().is_cancelled()
    }
}

/// The state of the folder of approvals, for commands that only read it.
#[derive(Clone, Debug)]
pub struct Health {
    pub kept: usize,
    /// Corrupt files that Refit has renamed, the oldest first.
    pub damaged: Vec<PathBuf>,
}

/// Inspects the folder of approvals in the state directory `state`.
pub fn health(state: &Path) -> Result<Health, StoreError> {
    let (kept, damaged) = store::inspect(state)?;
    Ok(Health { kept, damaged })
}
