//! The refreshes of a daemon. Each runs in its own task; clients can follow it, and observers receive its events and its
//! result.
//!
//! All callers (the HTTP interface, the watcher, an approval) start refreshes here. A refresh continues if its caller goes
//! away. This module does not depend on HTTP, notifications or metrics: they are [`Observer`]s.

pub mod event_log;
pub mod idempotency;
mod log;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use refit_capabilities::approved_scope::ApprovedScope;
use refit_history::{Entry, Outcome, Shown};
use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::event::{Event, Events};
use refit_model::recreation::RecreationOutcome;
use refit_model::report::{PolicyReport, Report, Summary};
use refit_model::request::Request;
use refit_refresh::{RefreshError, Refresher};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::event_log::{EventLog, RefreshEvent};
use self::idempotency::Keys;

/// The maximum number of refreshes under way. Two refreshes never work on one container, and more than a few only wait for the
/// engine; this bounds the memory that a client with many requests can use.
const UNDER_WAY_MAX: usize = 32;

/// The number of ended refreshes whose events are still available.
const ENDED_MAX: usize = 32;

/// The number of a refresh in the history. A refresh that is not in the history has a negative number, which only this process
/// knows.
pub type Id = refit_history::Id;

/// Receives the events of all refreshes. Refit calls it on the task of the refresh, so it must not block.
pub trait Observer: Send + Sync {
    fn observe(&self, run: &RefreshHandle, event: &RunEvent<'_>);
}

/// An event for an observer.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent<'a> {
    Began,
    Event(&'a Event),
    Ended(&'a Result<Report, RefreshError>),
}

/// A refresh, running or ended.
#[derive(Debug)]
pub struct RefreshHandle {
    pub id: Id,
    pub request: Request,
    /// The client's name, as the client gives it.
    pub by: Option<String>,
    /// The policy of the refresh. It does not change until the end.
    pub policy: PolicyReport,
    pub started: jiff::Timestamp,
    pub event_log: EventLog,
    clock: Instant,
    cancel: CancellationToken,
    end: OnceLock<End>,
}

/// The result of a refresh.
#[derive(Debug)]
struct End {
    outcome: Outcome,
    duration: Duration,
    summary: Option<Summary>,
    rolled_back: u32,
    stranded: u32,
    failure: Option<Diagnostic>,
    /// The report, if the refresh is not in the history.
    report: Option<serde_json::Value>,
}

impl RefreshHandle {
    /// Cancels the refresh: it finishes what it has started, and starts nothing new. Returns `false` if it has ended already.
    pub fn cancel(&self) -> bool {
        let is_under_way = self.end.get().is_none();
        if is_under_way {
            self.cancel.cancel();
        }
        is_under_way
    }

    /// Returns whether the refresh was cancelled and has not ended yet.
    pub fn is_cancelling(&self) -> bool {
        self.end.get().is_none() && self.cancel.is_cancelled()
    }

    /// Returns the outcome, which is `Running` until the end.
    pub fn outcome(&self) -> Outcome {
        self.end.get().map_or(Outcome::Running, |end| end.outcome)
    }

    /// Returns how long the refresh took, or has run so far.
    pub fn duration(&self) -> Duration {
        let end = self.end.get();
        end.map_or_else(|| self.clock.elapsed(), |end| end.duration)
    }

    pub fn is_in_history(&self) -> bool {
        self.id > 0
    }

    /// Returns the entry that the history would have, for when the history is unavailable.
    pub fn to_shown(&self) -> Shown {
        let end = self.end.get();
        Shown {
            entry: Entry {
                id: self.id,
                started: self.started,
                outcome: self.outcome(),
                duration_ms: end
                    .map(|end| u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX)),
                by: self.by.clone(),
                request: self.request.clone(),
                policy: self.policy.clone(),
                summary: end.and_then(|end| end.summary),
                rolled_back: end.map_or(0, |end| end.rolled_back),
                stranded: end.map_or(0, |end| end.stranded),
                failure: end.and_then(|end| end.failure.clone()),
                container: None,
            },
            report: end.and_then(|end| end.report.clone()),
        }
    }

    fn set_ended(&self, answer: &Result<Report, RefreshError>) -> Outcome {
        let outcome = refit_refresh::outcome(answer, self.cancel.is_cancelled());
        let report = match answer {
            Ok(report) => Some(report),
            Err(error) => error.partial(),
        };
        let count = |outcome: RecreationOutcome| {
            let all = report.iter().flat_map(|report| &report.containers);
            let recreations = all.filter_map(|container| container.recreation.as_ref());
            u32::try_from(
                recreations
                    .filter(|recreation| recreation.outcome == outcome)
                    .count(),
            )
            .unwrap_or(u32::MAX)
        };
        let _ = self.end.set(End {
            outcome,
            duration: self.clock.elapsed(),
            summary: report.map(|report| report.summary),
            rolled_back: count(RecreationOutcome::RolledBack),
            stranded: count(RecreationOutcome::Stranded),
            failure: answer.as_ref().err().map(Diagnostic::of),
            report: report
                .filter(|_| !self.is_in_history())
                .and_then(|report| serde_json::to_value(report).ok()),
        });
        outcome
    }

    /// Sets the result of a refresh that panicked.
    fn set_interrupted(&self) {
        let _ = self.end.set(End {
            outcome: Outcome::Interrupted,
            duration: self.clock.elapsed(),
            summary: None,
            rolled_back: 0,
            stranded: 0,
            failure: None,
            report: None,
        });
    }
}

/// Why a refresh could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the daemon is stopping")]
    Stopping,
    #[error("{UNDER_WAY_MAX} refreshes are under way, and no more are begun")]
    TooMany,
    #[error("it could not be held for approval: {}", .0.sentence())]
    NotHeld(Diagnostic),
}

impl Hints for StartError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Stopping => vec![],
            Self::TooMany => vec!["ask again when one of them has ended".into()],
            Self::NotHeld(diagnostic) => diagnostic.hints.clone(),
        }
    }
}

/// A refresh panicked. The next refresh finds its unfinished replacements by their labels, and ends them.
#[derive(Debug, thiserror::Error)]
#[error("a refresh panicked")]
pub struct Panicked;

impl Hints for Panicked {
    fn hints(&self) -> Vec<String> {
        vec!["this is a fault of Refit: its log has the place, please report it".into()]
    }
}

/// A running refresh. It continues if this is dropped.
#[derive(Debug)]
pub struct StartedRefresh {
    pub run: Arc<RefreshHandle>,
    ended: oneshot::Receiver<Result<Report, RefreshError>>,
}

impl StartedRefresh {
    /// Waits for the end of the refresh. `limits.refresh_seconds` bounds it.
    pub async fn wait(self) -> Result<Result<Report, RefreshError>, Panicked> {
        self.ended.await.map_err(|_| Panicked)
    }
}

/// Starts refreshes, and keeps those that are under way.
pub struct RefreshManager {
    refresher: Arc<Refresher>,
    observers: Vec<Arc<dyn Observer>>,
    work: TaskTracker,
    stopping: CancellationToken,
    index: Mutex<Index>,
    keys: Keys,
}

#[derive(Default)]
struct Index {
    under_way: Vec<Arc<RefreshHandle>>,
    /// The newest last.
    ended: VecDeque<Arc<RefreshHandle>>,
    /// The number of refreshes that have started and have no number yet.
    beginning: usize,
    unsaved: Id,
}

impl RefreshManager {
    /// Creates a manager. It spawns refreshes on `work`, so that a caller can wait for all; `stopping` ends them early and
    /// prevents new ones.
    pub fn new(
        refresher: Arc<Refresher>,
        observers: Vec<Arc<dyn Observer>>,
        work: TaskTracker,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            refresher,
            observers,
            work,
            stopping,
            index: Mutex::default(),
            keys: Keys::default(),
        })
    }

    pub fn refresher(&self) -> &Arc<Refresher> {
        &self.refresher
    }

    /// Returns the token that is set when no refresh may start any more.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Starts a refresh, and returns when it has a number. The refresh starts even if the caller stops waiting.
    pub async fn begin(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
    ) -> Result<StartedRefresh, StartError> {
        self.begin_refresh(request, by, None).await
    }

    /// Starts a refresh as [`Self::begin`] does, limited to the approved scope.
    pub async fn begin_limited_to(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
        approved: Arc<ApprovedScope>,
    ) -> Result<StartedRefresh, StartError> {
        self.begin_refresh(request, by, Some(approved)).await
    }

    async fn begin_refresh(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
        approved: Option<Arc<ApprovedScope>>,
    ) -> Result<StartedRefresh, StartError> {
        if self.stopping.is_cancelled() {
            return Err(StartError::Stopping);
        }
        {
            let mut index = self.index();
            if index.under_way.len() + index.beginning >= UNDER_WAY_MAX {
                return Err(StartError::TooMany);
            }
            index.beginning += 1;
        }
        let slot = Slot {
            manager: self.clone(),
            run: None,
        };
        let (numbered, number) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let parameters = (request, by, approved);
        self.work.spawn(run(slot, parameters, numbered, end));
        // Only a panic drops the sender.
        let run = number.await.map_err(|_| StartError::Stopping)?;
        Ok(StartedRefresh { run, ended })
    }

    /// Returns a refresh that is running or ended recently.
    pub fn find(&self, id: Id) -> Option<Arc<RefreshHandle>> {
        let index = self.index();
        let mut all = index.under_way.iter().chain(&index.ended);
        all.find(|run| run.id == id).cloned()
    }

    /// Returns the running refreshes, the oldest first.
    pub fn under_way(&self) -> Vec<Arc<RefreshHandle>> {
        self.index().under_way.clone()
    }

    /// Returns the refreshes that are not in the history, the newest first.
    pub fn unsaved(&self) -> Vec<Arc<RefreshHandle>> {
        let index = self.index();
        let all = index.ended.iter().chain(&index.under_way);
        let mut unsaved: Vec<_> = all.filter(|run| !run.is_in_history()).cloned().collect();
        unsaved.sort_by_key(|run| run.id);
        unsaved
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the [`UNDER_WAY_MAX`] slots for running refreshes. Dropping it releases the slot, also after a panic.
struct Slot {
    manager: Arc<RefreshManager>,
    run: Option<Arc<RefreshHandle>>,
}

impl Slot {
    fn assign_number(
        &mut self,
        started: &refit_refresh::Started,
        request: Request,
        by: Option<String>,
    ) -> Arc<RefreshHandle> {
        let mut index = self.manager.index();
        let id = started.id().unwrap_or_else(|| {
            index.unsaved -= 1;
            index.unsaved
        });
        let run = Arc::new(RefreshHandle {
            id,
            request,
            by,
            policy: started.policy(),
            started: jiff::Timestamp::now(),
            event_log: EventLog::default(),
            clock: Instant::now(),
            cancel: self.manager.stopping.child_token(),
            end: OnceLock::new(),
        });
        index.beginning -= 1;
        index.under_way.push(run.clone());
        self.run = Some(run.clone());
        run
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut index = self.manager.index();
        let Some(run) = self.run.take() else {
            index.beginning -= 1;
            return;
        };
        // A client that follows a refresh that panicked must not wait forever.
        run.set_interrupted();
        run.event_log.close();
        index.under_way.retain(|other| !Arc::ptr_eq(other, &run));
        index.ended.push_back(run);
        if index.ended.len() > ENDED_MAX {
            index.ended.pop_front();
        }
    }
}

async fn run(
    slot: Slot,
    (request, by, approved): (Request, Option<String>, Option<Arc<ApprovedScope>>),
    numbered: oneshot::Sender<Arc<RefreshHandle>>,
    end: oneshot::Sender<Result<Report, RefreshError>>,
) {
    // The span adds the number to all log messages of the refresh.
    let span = tracing::info_span!(
        "refresh",
        id = tracing::field::Empty,
        trigger = request.trigger.as_str(),
        by
    );
    let work = run_numbered(slot, (request, by, approved), numbered).instrument(span);
    let answer = work.await;
    let _ = end.send(answer);
}

async fn run_numbered(
    mut slot: Slot,
    (request, by, approved): (Request, Option<String>, Option<Arc<ApprovedScope>>),
    numbered: oneshot::Sender<Arc<RefreshHandle>>,
) -> Result<Report, RefreshError> {
    let manager = slot.manager.clone();
    let started = manager.refresher.start(request.clone(), by.clone()).await;
    let run = slot.assign_number(&started, request, by);
    let started = started.limited_to(approved);
    tracing::Span::current().record("id", run.id);
    log::log_began(&run);
    let observe = |event: &RunEvent<'_>| {
        for observer in &manager.observers {
            observer.observe(&run, event);
        }
    };
    run.event_log.push(RefreshEvent::began(&run));
    observe(&RunEvent::Began);
    // The caller may have stopped waiting.
    let _ = numbered.send(run.clone());
    let answer = manager
        .refresher
        .finish(started, event_handler(&manager, &run), run.cancel.clone())
        .await;
    let outcome = run.set_ended(&answer);
    log::log_ended(&run, &answer);
    run.event_log.push(RefreshEvent::ended(outcome, &answer));
    observe(&RunEvent::Ended(&answer));
    answer
}

fn event_handler(manager: &Arc<RefreshManager>, run: &Arc<RefreshHandle>) -> Events {
    let (manager, run) = (manager.clone(), run.clone());
    Arc::new(move |event| {
        log::log_event(&event);
        for observer in &manager.observers {
            observer.observe(&run, &RunEvent::Event(&event));
        }
        run.event_log.record(event);
    })
}
