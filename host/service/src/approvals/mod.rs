//! Refreshes that are held until a person approves them: what is held, until when, and what became of it.
//!
//! What must stay true:
//!
//! - *Approving does what was approved, and no more.* The plan is made again first; where a digest has moved, what was held is
//!   superseded by what is so now. The refresh itself is then bound to images and containers of the plan by a
//!   [`ApprovedScope`], since a tag may move at any time.
//! - *What is approved is begun*: at once, or when there is room, or by the next start of the daemon. "Approved" is on the disk
//!   before a refresh begins, and its number after it has begun. So one whose daemon dies between the two is begun at the next
//!   start, and where it had begun already, what it did by then is found done: it is never lost, and what is done is not done again.
//! - *An approval that was not answered did not happen*, or is begun: until "approved" is on the disk it still waits.
//! - *Expiry needs no timer*: it is judged whenever somebody looks, and written down when something else is.
//!
//! [`store`] knows the files, `book` what is known, [`plan`] what is looked at, `desk` how one state becomes the next, and [`gate`]
//! stands before the watcher. Knows nothing of HTTP.

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

/// Rises with each approval, and is not used twice.
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
    pub fate: ApprovalState,
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
    pub fate: ApprovalState,
    pub request: Request,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub findings: Vec<AvailableUpdate>,
    pub summary: Summary,
}

impl Entry {
    pub fn of(held: &PendingApproval) -> Self {
        Self {
            id: held.id,
            created: held.created,
            expires: held.expires,
            fate: held.fate.clone(),
            request: held.request.clone(),
            by: held.by.clone(),
            findings: held.findings.clone(),
            summary: held.plan.summary,
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
    pub fn state(&self) -> State {
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
        let found = Self::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| StateError(text.chars().take(80).collect()))
    }
}

impl PendingApproval {
    /// As it is at this time: one that has waited too long has expired, whether anybody has written that down or not.
    fn at(&self, now: Timestamp) -> ApprovalState {
        match &self.fate {
            ApprovalState::Waiting if now >= self.expires => ApprovalState::Expired,
            fate => fate.clone(),
        }
    }

    /// The same for as long as it was to wait, from now on.
    fn begun_again(&self, now: Timestamp) -> Self {
        let life = self.expires.duration_since(self.created);
        Self {
            created: now,
            expires: now.checked_add(life).unwrap_or(Timestamp::MAX),
            ..self.clone()
        }
    }

    fn with(&self, fate: ApprovalState) -> Self {
        Self {
            fate,
            ..self.clone()
        }
    }
}

/// Why none was made, or it was not decided.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error("there is no approval {0}")]
    NoSuch(Id),
    #[error("approval {id} was {} at {when}{}", .state.as_str(), by(.decided_by.as_deref()))]
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

fn by(who: Option<&str>) -> String {
    who.map(|who| format!(" by {who}")).unwrap_or_default()
}

impl ApprovalError {
    /// What a person needs to know besides: what has moved, what could not be seen.
    pub fn told(&self) -> Diagnostic {
        let mut told = Diagnostic::of(self);
        if let Self::Superseded { moved: list, .. } | Self::Unseen { problems: list, .. } = self {
            told.causes.extend(list.iter().cloned());
        }
        told
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

/// The refreshes that approvals are for. [`RefreshManager`], but for tests of the desk alone.
#[async_trait]
pub trait Refreshes: Send + Sync {
    async fn plan(&self, request: &Request) -> Result<Report, RefreshError>;

    /// Returns when it has begun.
    async fn begin(
        &self,
        request: Request,
        by: Option<String>,
        approved: ApprovedScope,
    ) -> Result<refit_history::Id, StartError>;

    fn is_under_way(&self, refresh: refit_history::Id) -> bool;

    /// Nothing is begun any more, and plans are cut short.
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
        let begun = self.begin_within(request, by, Arc::new(approved)).await?;
        Ok(begun.run.id)
    }

    fn is_under_way(&self, refresh: refit_history::Id) -> bool {
        self.under_way().iter().any(|run| run.id == refresh)
    }

    fn is_stopping(&self) -> bool {
        self.stopping().is_cancelled()
    }
}

/// What the folder is like, for those who only look.
#[derive(Clone, Debug)]
pub struct Health {
    pub kept: usize,
    /// Damaged ones that were moved aside, the oldest first.
    pub damaged: Vec<PathBuf>,
}

/// `state` is the state directory.
pub fn health(state: &Path) -> Result<Health, StoreError> {
    let (kept, damaged) = store::look(state)?;
    Ok(Health { kept, damaged })
}
