//! The approvals in memory and on the disk. Readers use the copy in memory; a change is saved to the disk before it is visible.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use refit_model::diagnostic::Diagnostic;

use super::store::{self, Store};
use super::{ApprovalError, ApprovalState, Id, PendingApproval, State};
use crate::watch::update_sink::AvailableUpdate;

/// The maximum number of waiting approvals. Nobody reviews more than that.
pub(super) const WAITING_MAX: usize = 200;
/// The number of rejected approvals that Refit remembers, the newest ones, so that it does not propose the same updates again.
const REJECTED_MAX: usize = 200;
/// The number of other decided approvals that Refit keeps for reference, and for how long.
const DECIDED_MAX: usize = 200;
const DECIDED_DAYS: i64 = 30;
/// How long the clock has to report an expiry before Refit saves it. A clock that is wrong at boot is right once the machine
/// has reached its time server.
pub(super) const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(60 * 60);

pub(super) struct Repository {
    /// The state directory.
    state: PathBuf,
    index: Mutex<Index>,
    /// Serializes changes. `None` until Refit could open the folder.
    store: tokio::sync::Mutex<Option<Arc<Store>>>,
    opened: Instant,
}

#[derive(Default)]
struct Index {
    approvals: BTreeMap<Id, Arc<PendingApproval>>,
    deciding: BTreeSet<Id>,
    /// When the clock first reported that each approval is over. One reading of a clock must not change anything permanently.
    over_since: BTreeMap<Id, Instant>,
    last_error: Option<Diagnostic>,
    damaged: Vec<PathBuf>,
}

/// The exclusive right to decide an approval. Dropping it releases the right.
pub(super) struct Claim<'a> {
    repository: &'a Repository,
    id: Id,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.repository.index().deciding.remove(&self.id);
    }
}

/// The exclusive right to change approvals.
pub(super) struct WriteGuard<'a> {
    repository: &'a Repository,
    store: Arc<Store>,
    _guard: tokio::sync::MutexGuard<'a, Option<Arc<Store>>>,
}

impl Repository {
    pub(super) fn new(state: PathBuf) -> Self {
        Self {
            state,
            index: Mutex::default(),
            store: tokio::sync::Mutex::new(None),
            opened: Instant::now(),
        }
    }

    /// Returns whether there are files to read. Refit does not create the folder before the first approval.
    pub(super) fn exists(&self) -> bool {
        store::folder(&self.state).exists()
    }

    /// Returns whether there are files that Refit could not read, for example because another process held the lock.
    pub(super) async fn is_unloaded(&self) -> bool {
        self.store.lock().await.is_none() && self.exists()
    }

    /// Returns all approvals, the newest first.
    pub(super) fn list(&self, state: Option<State>) -> Vec<Arc<PendingApproval>> {
        let now = Timestamp::now();
        let index = self.index();
        let all = index.approvals.values().rev();
        all.map(|approval| with_current_state(approval, now))
            .filter(|approval| state.is_none_or(|state| approval.state.name() == state))
            .collect()
    }

    pub(super) fn get(&self, id: Id) -> Result<Arc<PendingApproval>, ApprovalError> {
        let now = Timestamp::now();
        let index = self.index();
        let approval = index.approvals.get(&id).ok_or(ApprovalError::NoSuch(id))?;
        Ok(with_current_state(approval, now))
    }

    /// Returns why the last change could not be saved, or which files were corrupt when Refit opened the folder.
    pub(super) fn last_error(&self) -> Option<Diagnostic> {
        let index = self.index();
        if index.last_error.is_some() {
            return index.last_error.clone();
        }
        let first = index.damaged.first()?;
        let count = index.damaged.len();
        let damaged = match count {
            1 => "an approval was damaged, and is not known any more".to_owned(),
            count => format!("{count} approvals were damaged, and are not known any more"),
        };
        let kept = format!("it was kept as `{}`", first.display());
        Some(Diagnostic::new(damaged).hint(kept))
    }

    pub(super) fn claim(&self, id: Id) -> Result<Claim<'_>, ApprovalError> {
        if !self.index().deciding.insert(id) {
            return Err(ApprovalError::BeingDecided(id));
        }
        Ok(Claim {
            repository: self,
            id,
        })
    }

    /// Returns the waiting approvals that have not expired.
    pub(super) fn waiting(
        &self,
        filter: impl Fn(&PendingApproval) -> bool,
    ) -> Vec<Arc<PendingApproval>> {
        let now = Timestamp::now();
        let index = self.index();
        let waiting = index
            .approvals
            .values()
            .filter(|approval| approval.state_at(now) == ApprovalState::Waiting);
        waiting
            .filter(|approval| filter(approval))
            .cloned()
            .collect()
    }

    /// Returns the approved ones, the oldest first.
    pub(super) fn approved(
        &self,
        filter: impl Fn(&PendingApproval) -> bool,
    ) -> Vec<Arc<PendingApproval>> {
        let index = self.index();
        let approved = index
            .approvals
            .values()
            .filter(|approval| approval.state.name() == State::Approved);
        approved
            .filter(|approval| filter(approval))
            .cloned()
            .collect()
    }

    /// Returns the approvals whose refresh has not started and that nobody is deciding now.
    pub(super) fn unstarted(&self) -> Vec<Id> {
        let index = self.index();
        let unstarted = index.approvals.values().filter(|approval| {
            matches!(
                approval.state,
                ApprovalState::Approved { refresh: None, .. }
            ) && !index.deciding.contains(&approval.id)
        });
        unstarted.map(|approval| approval.id).collect()
    }

    pub(super) fn has_rejected(&self, updates: &[AvailableUpdate]) -> bool {
        let index = self.index();
        let rejected = index
            .approvals
            .values()
            .filter(|approval| approval.state.name() == State::Rejected);
        let rejected: Vec<&AvailableUpdate> =
            rejected.flat_map(|approval| &approval.findings).collect();
        updates.iter().all(|update| rejected.contains(&update))
    }

    /// Returns the right to change approvals, after any other change has finished. It opens the folder first if necessary.
    pub(super) async fn write_guard(&self) -> Result<WriteGuard<'_>, ApprovalError> {
        let mut guard = self.store.lock().await;
        if let Some(store) = guard.as_ref() {
            return Ok(WriteGuard {
                repository: self,
                store: store.clone(),
                _guard: guard,
            });
        }
        let state = self.state.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&state)).await;
        let opened = match opened {
            Ok(opened) => opened.map_err(|source| ApprovalError::Store { source }),
            Err(_) => Err(ApprovalError::Panicked),
        };
        let (store, contents) =
            opened.inspect_err(|error| self.set_last_error(Some(error.diagnostic())))?;
        {
            let mut index = self.index();
            index.damaged = contents.damaged;
            let approvals = contents.approvals.into_iter();
            index.approvals = approvals
                .map(|approval| (approval.id, Arc::new(approval)))
                .collect();
        }
        let store = Arc::new(store);
        *guard = Some(store.clone());
        let write_guard = WriteGuard {
            repository: self,
            store,
            _guard: guard,
        };
        write_guard.clean_up().await;
        Ok(write_guard)
    }

    fn set_last_error(&self, now: Option<Diagnostic>) {
        let mut index = self.index();
        if index.last_error == now {
            return;
        }
        if let Some(diagnostic) = &now {
            tracing::warn!(hints = ?diagnostic.hints, "{}", diagnostic.sentence());
        }
        index.last_error = now;
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteGuard<'_> {
    /// Returns an unused number.
    pub(super) fn next_id(&self) -> Id {
        self.store.next_id()
    }

    /// Saves the approval, and then makes it visible.
    pub(super) async fn save(
        &self,
        approval: PendingApproval,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let approval = Arc::new(approval);
        let (store, written) = (self.store.clone(), approval.clone());
        let result = tokio::task::spawn_blocking(move || store.write(&written)).await;
        let result = result.map_err(|_| ApprovalError::Panicked)?;
        if let Err(source) = result {
            let error = ApprovalError::Store { source };
            self.repository.set_last_error(Some(error.diagnostic()));
            return Err(error);
        }
        self.repository.set_last_error(None);
        Ok(self.remember(approval))
    }

    /// Makes the approval visible without saving it.
    pub(super) fn remember(&self, approval: Arc<PendingApproval>) -> Arc<PendingApproval> {
        let mut index = self.repository.index();
        index.approvals.insert(approval.id, approval.clone());
        approval
    }

    /// Returns an error unless the approval is still as the caller saw it.
    pub(super) fn check_unchanged(&self, approval: &PendingApproval) -> Result<(), ApprovalError> {
        let index = self.repository.index();
        let current = index.approvals.get(&approval.id);
        let current = current.ok_or(ApprovalError::NoSuch(approval.id))?;
        // If it expires during the decision, the decision was in time.
        match current.state == approval.state {
            true => Ok(()),
            false => Err(decision_error(current)),
        }
    }

    /// Saves expiries, and removes old approvals. If a write fails, Refit reports that, and the approval stays as it is. It
    /// does both only after the clock has been consistent for a while: a clock that was ahead for a moment must not make an
    /// approval expire permanently.
    pub(super) async fn clean_up(&self) {
        self.clean_up_at(Timestamp::now(), Instant::now()).await;
    }

    pub(super) async fn clean_up_at(&self, now: Timestamp, clock: Instant) {
        let expired: Vec<PendingApproval> = {
            let mut index = self.repository.index();
            let over: BTreeSet<Id> = index
                .approvals
                .values()
                .filter(|approval| {
                    approval.state_at(now) == ApprovalState::Expired
                        || is_from_the_future(approval, now)
                })
                .map(|approval| approval.id)
                .collect();
            index.over_since.retain(|id, _| over.contains(id));
            for id in over {
                index.over_since.entry(id).or_insert(clock);
            }
            let long_over =
                |since: &Instant| clock.saturating_duration_since(*since) >= CLOCK_BELIEVED_AFTER;
            let confirmed: BTreeSet<Id> = index
                .over_since
                .iter()
                .filter(|(_, since)| long_over(since))
                .map(|(id, _)| *id)
                .collect();
            let expired = index.approvals.values().filter(|approval| {
                approval.state == ApprovalState::Waiting
                    && confirmed.contains(&approval.id)
                    && !index.deciding.contains(&approval.id)
            });
            let updated = |approval: &Arc<PendingApproval>| match is_from_the_future(approval, now)
            {
                true => approval.restarted_at(now),
                false => approval.with_state(ApprovalState::Expired),
            };
            expired.map(updated).collect()
        };
        for approval in expired {
            if self.save(approval).await.is_err() {
                return;
            }
        }
        let removed_ids = {
            let mut index = self.repository.index();
            // The limit on their number always applies. The limit on their age applies only after this process has run for long
            // enough to trust its clock.
            let is_clock_trusted =
                clock.saturating_duration_since(self.repository.opened) >= CLOCK_BELIEVED_AFTER;
            let removed_ids = removable_ids(&index.approvals, is_clock_trusted.then_some(now));
            index.approvals.retain(|id, _| !removed_ids.contains(id));
            removed_ids
        };
        if removed_ids.is_empty() {
            return;
        }
        let store = self.store.clone();
        let removal = tokio::task::spawn_blocking(move || {
            removed_ids.iter().for_each(|id| store.remove(*id));
        });
        let _ = removal.await;
    }
}

/// Returns whether a clock that was ahead created the approval. It would wait until that time comes.
fn is_from_the_future(approval: &PendingApproval, now: Timestamp) -> bool {
    approval.state == ApprovalState::Waiting && approval.created > now
}

/// Returns why an approval that is not waiting cannot be decided.
pub(super) fn decision_error(approval: &PendingApproval) -> ApprovalError {
    let id = approval.id;
    match approval.state.clone() {
        ApprovalState::Waiting => ApprovalError::BeingDecided(id),
        ApprovalState::Expired => ApprovalError::Expired {
            id,
            when: approval.expires,
        },
        ApprovalState::Superseded {
            superseded_by,
            moved,
            ..
        } => ApprovalError::Superseded {
            id,
            superseded_by,
            moved,
        },
        ApprovalState::Approved {
            decided_by,
            decided_at,
            refresh,
        } => ApprovalError::Decided {
            id,
            state: State::Approved,
            decided_by,
            when: decided_at,
            refresh,
        },
        ApprovalState::Rejected {
            decided_by,
            decided_at,
            ..
        } => ApprovalError::Decided {
            id,
            state: State::Rejected,
            decided_by,
            when: decided_at,
            refresh: None,
        },
    }
}

fn with_current_state(approval: &Arc<PendingApproval>, now: Timestamp) -> Arc<PendingApproval> {
    let state = approval.state_at(now);
    if state == approval.state {
        return approval.clone();
    }
    Arc::new(approval.with_state(state))
}

/// Returns the approvals that exceed the limits on age and number; without `now`, only the limit on their number. The newest
/// approval always stays: its number must not be used again.
pub(super) fn removable_ids(
    approvals: &BTreeMap<Id, Arc<PendingApproval>>,
    now: Option<Timestamp>,
) -> BTreeSet<Id> {
    let newest = approvals.keys().next_back().copied();
    let (mut rejected, mut decided) = (0, 0);
    let mut removable = BTreeSet::new();
    for (id, approval) in approvals.iter().rev() {
        let is_removable = match &approval.state {
            ApprovalState::Waiting | ApprovalState::Approved { refresh: None, .. } => false,
            ApprovalState::Rejected { .. } => {
                rejected += 1;
                rejected > REJECTED_MAX
            }
            ApprovalState::Approved { .. }
            | ApprovalState::Expired
            | ApprovalState::Superseded { .. } => {
                decided += 1;
                let days = now.map(|now| now.duration_since(approval.expires).as_hours() / 24);
                decided > DECIDED_MAX || days.is_some_and(|days| days >= DECIDED_DAYS)
            }
        };
        if is_removable && Some(*id) != newest {
            removable.insert(*id);
        }
    }
    removable
}
