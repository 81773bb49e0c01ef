//! All that is known of approvals: in memory for those who look, and on the disk before anybody is told of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use refit_model::diagnostic::Diagnostic;

use super::store::{self, Store};
use super::{ApprovalError, ApprovalState, Id, PendingApproval, State};
use crate::watch::update_sink::AvailableUpdate;

/// Those that wait at once. Whoever has so many does not look at them.
pub(super) const WAITING_MAX: usize = 200;
/// Those that were rejected and are remembered, so that they are not proposed again: the newest.
const REJECTED_MAX: usize = 200;
/// The others that are kept for whoever looks back, and how long.
const DECIDED_MAX: usize = 200;
const DECIDED_DAYS: i64 = 30;
/// How long the clock has to say that something is over before that is written down. A clock that is wrong at a start is right
/// when the machine has reached its time server.
pub(super) const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(60 * 60);

pub(super) struct Book {
    /// The state directory.
    state: PathBuf,
    known: Mutex<Known>,
    /// One change at a time. `None` until the folder could be opened.
    store: tokio::sync::Mutex<Option<Arc<Store>>>,
    opened: Instant,
}

#[derive(Default)]
struct Known {
    held: BTreeMap<Id, Arc<PendingApproval>>,
    deciding: BTreeSet<Id>,
    /// Since when the clock says of each that it is over. One reading of a clock decides nothing that lasts.
    doubted: BTreeMap<Id, Instant>,
    trouble: Option<Diagnostic>,
    damaged: Vec<PathBuf>,
}

/// The right to decide one. Given back when it is dropped.
pub(super) struct Claim<'a> {
    book: &'a Book,
    id: Id,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.book.known().deciding.remove(&self.id);
    }
}

/// The right to change what is known.
pub(super) struct Turn<'a> {
    book: &'a Book,
    store: Arc<Store>,
    _turn: tokio::sync::MutexGuard<'a, Option<Arc<Store>>>,
}

impl Book {
    pub(super) fn new(state: PathBuf) -> Self {
        Self {
            state,
            known: Mutex::default(),
            store: tokio::sync::Mutex::new(None),
            opened: Instant::now(),
        }
    }

    /// Whether there is anything to read. Nothing is made before something is to be kept.
    pub(super) fn is_there(&self) -> bool {
        store::folder(&self.state).exists()
    }

    /// There is something to read, and it could not be read: another process held it perhaps.
    pub(super) async fn is_unread(&self) -> bool {
        self.store.lock().await.is_none() && self.is_there()
    }

    /// The newest first.
    pub(super) fn list(&self, state: Option<State>) -> Vec<Arc<PendingApproval>> {
        let now = Timestamp::now();
        let known = self.known();
        let all = known.held.values().rev().map(|held| seen(held, now));
        all.filter(|held| state.is_none_or(|state| held.fate.state() == state))
            .collect()
    }

    pub(super) fn get(&self, id: Id) -> Result<Arc<PendingApproval>, ApprovalError> {
        let now = Timestamp::now();
        let known = self.known();
        let held = known.held.get(&id).ok_or(ApprovalError::NoSuch(id))?;
        Ok(seen(held, now))
    }

    /// Why the last change could not be kept, or what was damaged when the folder was opened.
    pub(super) fn problem(&self) -> Option<Diagnostic> {
        let known = self.known();
        if known.trouble.is_some() {
            return known.trouble.clone();
        }
        let first = known.damaged.first()?;
        let count = known.damaged.len();
        let damaged = match count {
            1 => "an approval was damaged, and is not known any more".to_owned(),
            count => format!("{count} approvals were damaged, and are not known any more"),
        };
        let kept = format!("it was kept as `{}`", first.display());
        Some(Diagnostic::new(damaged).hint(kept))
    }

    pub(super) fn claim(&self, id: Id) -> Result<Claim<'_>, ApprovalError> {
        if !self.known().deciding.insert(id) {
            return Err(ApprovalError::BeingDecided(id));
        }
        Ok(Claim { book: self, id })
    }

    /// Those that wait, and have not expired.
    pub(super) fn waiting(
        &self,
        which: impl Fn(&PendingApproval) -> bool,
    ) -> Vec<Arc<PendingApproval>> {
        let now = Timestamp::now();
        let known = self.known();
        let waiting = known
            .held
            .values()
            .filter(|held| held.at(now) == ApprovalState::Waiting);
        waiting.filter(|held| which(held)).cloned().collect()
    }

    /// What was approved, the oldest first.
    pub(super) fn approved(
        &self,
        which: impl Fn(&PendingApproval) -> bool,
    ) -> Vec<Arc<PendingApproval>> {
        let known = self.known();
        let approved = known
            .held
            .values()
            .filter(|held| held.fate.state() == State::Approved);
        approved.filter(|held| which(held)).cloned().collect()
    }

    /// Approved, not begun, and nobody is at it.
    pub(super) fn unbegun(&self) -> Vec<Id> {
        let known = self.known();
        let open = known.held.values().filter(|held| {
            matches!(held.fate, ApprovalState::Approved { refresh: None, .. })
                && !known.deciding.contains(&held.id)
        });
        open.map(|held| held.id).collect()
    }

    pub(super) fn has_rejected(&self, findings: &[AvailableUpdate]) -> bool {
        let known = self.known();
        let rejected = known
            .held
            .values()
            .filter(|held| held.fate.state() == State::Rejected);
        let rejected: Vec<&AvailableUpdate> = rejected.flat_map(|held| &held.findings).collect();
        findings.iter().all(|found| rejected.contains(&found))
    }

    /// Waits for whoever changes something now: a write to the disk.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, ApprovalError> {
        let mut guard = self.store.lock().await;
        if let Some(store) = guard.as_ref() {
            return Ok(Turn {
                book: self,
                store: store.clone(),
                _turn: guard,
            });
        }
        let state = self.state.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&state)).await;
        let opened = match opened {
            Ok(opened) => opened.map_err(|source| ApprovalError::Store { source }),
            Err(_) => Err(ApprovalError::Panicked),
        };
        let (store, found) = opened.inspect_err(|error| self.trouble(Some(error.told())))?;
        {
            let mut known = self.known();
            known.damaged = found.damaged;
            let held = found.held.into_iter();
            known.held = held.map(|held| (held.id, Arc::new(held))).collect();
        }
        let store = Arc::new(store);
        *guard = Some(store.clone());
        let turn = Turn {
            book: self,
            store,
            _turn: guard,
        };
        turn.tidy().await;
        Ok(turn)
    }

    fn trouble(&self, now: Option<Diagnostic>) {
        let mut known = self.known();
        if known.trouble == now {
            return;
        }
        if let Some(told) = &now {
            tracing::warn!(hints = ?told.hints, "{}", told.sentence());
        }
        known.trouble = now;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// For a new one.
    pub(super) fn number(&self) -> Id {
        self.store.number()
    }

    /// On the disk, and then known.
    pub(super) async fn keep(
        &self,
        held: PendingApproval,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let held = Arc::new(held);
        let (store, written) = (self.store.clone(), held.clone());
        let put = tokio::task::spawn_blocking(move || store.put(&written)).await;
        let put = put.map_err(|_| ApprovalError::Panicked)?;
        if let Err(source) = put {
            let error = ApprovalError::Store { source };
            self.book.trouble(Some(error.told()));
            return Err(error);
        }
        self.book.trouble(None);
        Ok(self.know(held))
    }

    /// Known, though it is not on the disk.
    pub(super) fn know(&self, held: Arc<PendingApproval>) -> Arc<PendingApproval> {
        self.book.known().held.insert(held.id, held.clone());
        held
    }

    /// It is as it was when somebody looked; otherwise why it cannot be decided.
    pub(super) fn unchanged(&self, held: &PendingApproval) -> Result<(), ApprovalError> {
        let known = self.book.known();
        let now = known.held.get(&held.id);
        let now = now.ok_or(ApprovalError::NoSuch(held.id))?;
        // One that expires while it is decided was decided in time.
        match now.fate == held.fate {
            true => Ok(()),
            false => Err(refusal(now)),
        }
    }

    /// Writes down what has expired, and lets go of what nobody needs. What cannot be written is told, and stays as it is. Both
    /// only where the clock has said so for a while: one that was ahead for a moment must not make an approval expire for good.
    pub(super) async fn tidy(&self) {
        self.tidy_at(Timestamp::now(), Instant::now()).await;
    }

    pub(super) async fn tidy_at(&self, now: Timestamp, clock: Instant) {
        let expired: Vec<PendingApproval> = {
            let mut known = self.book.known();
            let over: BTreeSet<Id> = known
                .held
                .values()
                .filter(|held| {
                    held.at(now) == ApprovalState::Expired || is_from_the_future(held, now)
                })
                .map(|held| held.id)
                .collect();
            known.doubted.retain(|id, _| over.contains(id));
            for id in over {
                known.doubted.entry(id).or_insert(clock);
            }
            let long_over =
                |since: &Instant| clock.saturating_duration_since(*since) >= CLOCK_BELIEVED_AFTER;
            let is_over: BTreeSet<Id> = known
                .doubted
                .iter()
                .filter(|(_, since)| long_over(since))
                .map(|(id, _)| *id)
                .collect();
            let expired = known.held.values().filter(|held| {
                held.fate == ApprovalState::Waiting
                    && is_over.contains(&held.id)
                    && !known.deciding.contains(&held.id)
            });
            let ended = |held: &Arc<PendingApproval>| match is_from_the_future(held, now) {
                true => held.begun_again(now),
                false => held.with(ApprovalState::Expired),
            };
            expired.map(ended).collect()
        };
        for held in expired {
            if self.keep(held).await.is_err() {
                return;
            }
        }
        let forgotten = {
            let mut known = self.book.known();
            // By number always; by age where this process has seen for long enough that time goes on.
            let is_believed =
                clock.saturating_duration_since(self.book.opened) >= CLOCK_BELIEVED_AFTER;
            let forgotten = forgettable(&known.held, is_believed.then_some(now));
            known.held.retain(|id, _| !forgotten.contains(id));
            forgotten
        };
        if forgotten.is_empty() {
            return;
        }
        let store = self.store.clone();
        let removed =
            tokio::task::spawn_blocking(move || forgotten.iter().for_each(|id| store.remove(*id)));
        let _ = removed.await;
    }
}

/// It was held by a clock that was ahead, and would wait until that time comes.
fn is_from_the_future(held: &PendingApproval, now: Timestamp) -> bool {
    held.fate == ApprovalState::Waiting && held.created > now
}

/// Why one that does not wait cannot be decided.
pub(super) fn refusal(held: &PendingApproval) -> ApprovalError {
    let id = held.id;
    match held.fate.clone() {
        ApprovalState::Waiting => ApprovalError::BeingDecided(id),
        ApprovalState::Expired => ApprovalError::Expired {
            id,
            when: held.expires,
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

fn seen(held: &Arc<PendingApproval>, now: Timestamp) -> Arc<PendingApproval> {
    let fate = held.at(now);
    if fate == held.fate {
        return held.clone();
    }
    Arc::new(held.with(fate))
}

/// What is too old or too much; without `now` only what is too much. The newest of all stays: its number is not to be used again.
pub(super) fn forgettable(
    held: &BTreeMap<Id, Arc<PendingApproval>>,
    now: Option<Timestamp>,
) -> BTreeSet<Id> {
    let newest = held.keys().next_back().copied();
    let (mut rejected, mut decided) = (0, 0);
    let mut forgettable = BTreeSet::new();
    for (id, one) in held.iter().rev() {
        let goes = match &one.fate {
            ApprovalState::Waiting | ApprovalState::Approved { refresh: None, .. } => false,
            ApprovalState::Rejected { .. } => {
                rejected += 1;
                rejected > REJECTED_MAX
            }
            ApprovalState::Approved { .. }
            | ApprovalState::Expired
            | ApprovalState::Superseded { .. } => {
                decided += 1;
                let days = now.map(|now| now.duration_since(one.expires).as_hours() / 24);
                decided > DECIDED_MAX || days.is_some_and(|days| days >= DECIDED_DAYS)
            }
        };
        if goes && Some(*id) != newest {
            forgettable.insert(*id);
        }
    }
    forgettable
}
