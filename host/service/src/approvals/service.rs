//! The state transitions of approvals.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use refit_model::diagnostic::Diagnostic;
use refit_model::request::{Request, Trigger};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::dispatcher::ApprovalDispatcher;
use super::plan::Plan;
use super::repository::{Repository, WAITING_MAX, WriteGuard, decision_error};
use super::{ApprovalError, ApprovalState, Id, PendingApproval, Refreshes, State};
use crate::watch::update_sink::{AvailableUpdate, Proposal, UpdateSink};

/// The maximum length of the reason of a rejection.
const REASON_CHARACTERS_MAX: usize = 500;

/// The first and the longest pause between attempts to start an approved refresh. Each pause is twice as long as the one
/// before.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(5 * 60);

/// Receives each new approval, for notifications. Refit calls it on the task that creates the approval, so it must not block.
pub type Observer = Arc<dyn Fn(&PendingApproval) + Send + Sync>;

/// The settings of approvals.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The state directory.
    pub state: PathBuf,
    /// How long an approval waits for a decision, and how long an approved refresh may wait to start.
    pub life: Duration,
    /// The triggers whose updates need an approval.
    pub required_for: Vec<Trigger>,
}

/// The result of a proposal of the watcher.
#[derive(Debug)]
pub enum Hold {
    Waits(Arc<PendingApproval>),
    /// A person has rejected all of its updates.
    Rejected,
}

/// The result of a request for an approval.
#[derive(Debug)]
pub enum Requested {
    Held(Arc<PendingApproval>),
    /// An equal request was waiting already.
    Same(Arc<PendingApproval>),
    /// The refresh would do nothing.
    NothingToDo(Box<Plan>),
}

/// Creates, decides and starts approvals. See the [module above](super).
pub struct Approvals {
    lifetime: Duration,
    required_for: Vec<Trigger>,
    refreshes: Arc<dyn Refreshes>,
    observer: Option<Observer>,
    repository: Repository,
    /// Signals that an approved refresh could not start.
    unstarted: Notify,
}

/// The content of a new approval.
struct NewApproval {
    request: Request,
    by: Option<String>,
    findings: Vec<AvailableUpdate>,
    plan: Plan,
}

impl Approvals {
    /// Loads the existing approvals. If they cannot be read, Refit reports that and tries again with the next change.
    pub async fn open(
        terms: Terms,
        refreshes: Arc<dyn Refreshes>,
        observer: Option<Observer>,
    ) -> Arc<Self> {
        let approvals = Self {
            lifetime: terms.life,
            required_for: terms.required_for,
            refreshes,
            observer,
            repository: Repository::new(terms.state),
            unstarted: Notify::new(),
        };
        if approvals.repository.exists() {
            // Refit has logged the error already.
            let _ = approvals.repository.write_guard().await;
        }
        Arc::new(approvals)
    }

    /// Returns the sink for the watcher. It creates approvals if necessary, and passes other updates on to `update_sink`.
    pub fn dispatcher(self: &Arc<Self>, update_sink: Arc<dyn UpdateSink>) -> ApprovalDispatcher {
        ApprovalDispatcher::new(update_sink, self.clone(), self.required_for.clone())
    }

    /// Returns all approvals, the newest first.
    pub fn list(&self, state: Option<State>) -> Vec<Arc<PendingApproval>> {
        self.repository.list(state)
    }

    pub fn get(&self, id: Id) -> Result<Arc<PendingApproval>, ApprovalError> {
        self.repository.get(id)
    }

    /// Returns why the last change could not be saved, or which files were corrupt when the daemon started.
    pub fn last_error(&self) -> Option<Diagnostic> {
        self.repository.last_error()
    }

    /// Requests a refresh that a person has to approve. An equal request, while the first one waits, returns the same approval.
    /// If something has moved, the new approval supersedes the old one.
    pub async fn request(
        &self,
        request: Request,
        by: Option<String>,
    ) -> Result<Requested, ApprovalError> {
        let plan = self.plan(&request).await?;
        if !plan.has_work() {
            return Ok(Requested::NothingToDo(Box::new(plan)));
        }
        let write_guard = self.repository.write_guard().await?;
        let earlier = self
            .repository
            .waiting(|approval| is_same_request(&approval.request, &request));
        if let Some(same) = earlier
            .iter()
            .find(|approval| plan.is_covered_by(&approval.plan))
        {
            return Ok(Requested::Same(same.clone()));
        }
        let new_approval = NewApproval {
            request,
            by,
            findings: plan.available_updates(),
            plan,
        };
        Ok(Requested::Held(
            self.create(&write_guard, new_approval, &earlier).await?,
        ))
    }

    /// Proposes updates that the watcher has found.
    pub async fn propose(&self, proposal: Proposal) -> Result<Hold, ApprovalError> {
        let Proposal {
            request,
            findings,
            plan,
        } = proposal;
        let write_guard = self.repository.write_guard().await?;
        // While an approved refresh for these updates is unfinished, no new approval is necessary.
        let unfinished = self.repository.approved(|approval| {
            is_subset(&findings, &approval.findings) && self.is_unfinished(&approval.state)
        });
        if let Some(approval) = unfinished.first() {
            return Ok(Hold::Waits(approval.clone()));
        }
        if self.repository.has_rejected(&findings) {
            return Ok(Hold::Rejected);
        }
        let has_same_image = |approval: &PendingApproval| {
            let mut images = approval.findings.iter().map(|update| &update.image);
            images.any(|image| findings.iter().any(|update| update.image == *image))
        };
        let earlier = self
            .repository
            .waiting(|approval| was_proposed(approval) && has_same_image(approval));
        let same = earlier
            .iter()
            .find(|approval| is_subset(&findings, &approval.findings));
        if let Some(same) = same {
            return Ok(Hold::Waits(same.clone()));
        }
        let new_approval = NewApproval {
            request,
            by: None,
            findings,
            plan: Plan::from_report(&plan),
        };
        Ok(Hold::Waits(
            self.create(&write_guard, new_approval, &earlier).await?,
        ))
    }

    /// Approves a refresh, and returns when it has started, or will start as soon as there is room. Call it in a separate task:
    /// a client that disconnects has still approved.
    pub async fn approve(
        &self,
        id: Id,
        by: Option<String>,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let _claim = self.repository.claim(id)?;
        let approval = self.get_waiting(id)?;
        self.revalidate(&approval).await?;
        let approved = ApprovalState::Approved {
            decided_by: by,
            decided_at: Timestamp::now(),
            refresh: None,
        };
        let approval = self.decide(&approval, approved).await?;
        let started = self.start_refresh(&approval).await;
        if started.is_none() {
            self.unstarted.notify_one();
        }
        Ok(started.unwrap_or(approval))
    }

    pub async fn reject(
        &self,
        id: Id,
        by: Option<String>,
        reason: Option<String>,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let _claim = self.repository.claim(id)?;
        let approval = self.get_waiting(id)?;
        let reason = reason.map(|reason| {
            let words = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            let printable = words.chars().filter(|c| !c.is_control());
            printable.take(REASON_CHARACTERS_MAX).collect::<String>()
        });
        let rejected = ApprovalState::Rejected {
            decided_by: by,
            decided_at: Timestamp::now(),
            reason: reason.filter(|reason| !reason.is_empty()),
        };
        self.decide(&approval, rejected).await
    }

    /// Starts approved refreshes that have not started, because a daemon died or there was no room. Ends when `stopping` is
    /// set.
    pub async fn start_approved(&self, stopping: CancellationToken) {
        let mut pause = RETRY_FIRST;
        loop {
            if self.repository.is_unloaded().await {
                // Refit has logged the error already.
                let _ = self.repository.write_guard().await;
            }
            for id in self.repository.unstarted() {
                self.start(id).await;
            }
            let is_done =
                self.repository.unstarted().is_empty() && !self.repository.is_unloaded().await;
            let retry = async {
                match is_done {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(pause).await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.unstarted.notified() => pause = RETRY_FIRST,
                () = retry => pause = (pause * 2).min(RETRY_MAX),
            }
        }
    }

    async fn start(&self, id: Id) {
        // Another task is deciding it.
        let Ok(_claim) = self.repository.claim(id) else {
            return;
        };
        let Ok(approval) = self.repository.get(id) else {
            return;
        };
        let ApprovalState::Approved {
            decided_at,
            refresh: None,
            ..
        } = approval.state
        else {
            return;
        };
        if Timestamp::now() >= add_lifetime(decided_at, self.lifetime) {
            tracing::warn!(id, "approved refresh expired before it could start");
            // A failed write is logged where it happens.
            let _ = self.decide(&approval, ApprovalState::Expired).await;
            return;
        }
        if let Err(error) = self.revalidate(&approval).await {
            let diagnostic = error.diagnostic();
            tracing::warn!(id, hints = ?diagnostic.hints, "cannot start approved refresh: {}", diagnostic.sentence());
            return;
        }
        if let Some(started) = self.start_refresh(&approval).await {
            tracing::info!(id, state = ?started.state, "approved refresh started");
        }
    }

    /// Plans again and compares the result with the approval. If something has changed, a new approval supersedes this one, and
    /// the result is an error.
    async fn revalidate(&self, approval: &PendingApproval) -> Result<(), ApprovalError> {
        let now = self.plan(&approval.request).await?;
        let changes = approval.plan.compare(&now);
        let id = approval.id;
        match (changes.moved.is_empty(), changes.unknown.is_empty()) {
            (true, true) => return Ok(()),
            (true, false) => {
                let problems = changes.unknown;
                return Err(ApprovalError::Unseen { id, problems });
            }
            (false, _) => {}
        }
        let write_guard = self.repository.write_guard().await?;
        write_guard.check_unchanged(approval)?;
        let new = match now.has_work() {
            false => None,
            true => {
                let new_approval = NewApproval {
                    request: approval.request.clone(),
                    by: approval.by.clone(),
                    findings: now.available_updates(),
                    plan: now,
                };
                Some(
                    write_guard
                        .save(self.pending_approval(&write_guard, new_approval))
                        .await?,
                )
            }
        };
        let superseded_by = new.as_ref().map(|new| new.id);
        let superseded = approval.with_state(ApprovalState::Superseded {
            decided_at: Timestamp::now(),
            superseded_by,
            moved: changes.moved,
        });
        let superseded = write_guard.save(superseded).await?;
        if let Some(new) = &new {
            self.announce(new);
        }
        Err(decision_error(&superseded))
    }

    /// Starts the refresh of an approval. Returns `None` if it could not start now.
    async fn start_refresh(&self, approval: &PendingApproval) -> Option<Arc<PendingApproval>> {
        let ApprovalState::Approved {
            decided_by,
            decided_at,
            ..
        } = &approval.state
        else {
            return None;
        };
        let name = decided_by.as_deref().unwrap_or("somebody");
        let by = format!("{name} (approval {})", approval.id);
        let approved_scope = approval.plan.approved_scope(approval.id);
        let start = self
            .refreshes
            .begin(approval.request.clone(), Some(by), approved_scope);
        let refresh = match start.await {
            Ok(refresh) => refresh,
            Err(error) => {
                tracing::warn!(id = approval.id, "approved refresh starts later: {error}");
                return None;
            }
        };
        let started = approval.with_state(ApprovalState::Approved {
            decided_by: decided_by.clone(),
            decided_at: *decided_at,
            refresh: Some(refresh),
        });
        let write_guard = match self.repository.write_guard().await {
            Ok(write_guard) => write_guard,
            Err(_) => return Some(Arc::new(started)),
        };
        match write_guard.save(started.clone()).await {
            Ok(started) => Some(started),
            // The write has logged its error. The refresh runs; the next daemon would start it again, and find its work done.
            Err(_) => Some(write_guard.remember(Arc::new(started))),
        }
    }

    /// Changes the state of an approval, unless it has changed since the caller read it.
    async fn decide(
        &self,
        approval: &PendingApproval,
        state: ApprovalState,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let write_guard = self.repository.write_guard().await?;
        write_guard.check_unchanged(approval)?;
        write_guard.save(approval.with_state(state)).await
    }

    /// Creates an approval that supersedes the earlier ones.
    async fn create(
        &self,
        write_guard: &WriteGuard<'_>,
        new_approval: NewApproval,
        earlier: &[Arc<PendingApproval>],
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        write_guard.clean_up().await;
        if self.repository.waiting(|_| true).len() >= WAITING_MAX + earlier.len() {
            return Err(ApprovalError::TooMany { most: WAITING_MAX });
        }
        let new = write_guard
            .save(self.pending_approval(write_guard, new_approval))
            .await?;
        self.announce(&new);
        for approval in earlier {
            let superseded = ApprovalState::Superseded {
                decided_at: new.created,
                superseded_by: Some(new.id),
                moved: approval.plan.compare(&new.plan).moved,
            };
            write_guard.save(approval.with_state(superseded)).await?;
        }
        Ok(new)
    }

    fn pending_approval(
        &self,
        write_guard: &WriteGuard<'_>,
        new_approval: NewApproval,
    ) -> PendingApproval {
        let created = Timestamp::now();
        let NewApproval {
            request,
            by,
            findings,
            plan,
        } = new_approval;
        PendingApproval {
            id: write_guard.next_id(),
            created,
            expires: add_lifetime(created, self.lifetime),
            state: ApprovalState::Waiting,
            request,
            by,
            findings,
            plan,
        }
    }

    fn announce(&self, new: &PendingApproval) {
        tracing::info!(
            id = new.id,
            images = new.findings.len(),
            containers = new.plan.containers.len(),
            "refresh waits for approval"
        );
        if let Some(observer) = &self.observer {
            observer(new);
        }
    }

    async fn plan(&self, request: &Request) -> Result<Plan, ApprovalError> {
        let planned = self.refreshes.plan(request).await;
        // A plan that was cut short is incomplete.
        if self.refreshes.is_stopping() {
            return Err(ApprovalError::Stopping);
        }
        match planned {
            Ok(report) => Ok(Plan::from_report(&report)),
            Err(source) => Err(ApprovalError::Unplanned { source }),
        }
    }

    fn get_waiting(&self, id: Id) -> Result<Arc<PendingApproval>, ApprovalError> {
        let approval = self.repository.get(id)?;
        match approval.state {
            ApprovalState::Waiting => Ok(approval),
            _ => Err(decision_error(&approval)),
        }
    }

    fn is_unfinished(&self, state: &ApprovalState) -> bool {
        match state {
            ApprovalState::Approved { refresh, .. } => {
                refresh.is_none_or(|refresh| self.refreshes.is_under_way(refresh))
            }
            _ => false,
        }
    }
}

fn is_same_request(one: &Request, other: &Request) -> bool {
    one.trigger == other.trigger
        && one.targets == other.targets
        && one.images == other.images
        && one.recreate == other.recreate
        && one.force == other.force
}

fn was_proposed(approval: &PendingApproval) -> bool {
    match approval.request.trigger {
        Trigger::Schedule | Trigger::Webhook => true,
        Trigger::Operator | Trigger::Api => false,
    }
}

fn is_subset(updates: &[AvailableUpdate], others: &[AvailableUpdate]) -> bool {
    updates.iter().all(|update| others.contains(update))
}

fn add_lifetime(time: Timestamp, lifetime: Duration) -> Timestamp {
    time.checked_add(lifetime).unwrap_or(Timestamp::MAX)
}
