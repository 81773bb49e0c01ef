//! The refreshes of a daemon: each begun in a task of its own, watched while it runs, and told of when it ends.
//!
//! Whoever asks for one (the HTTP interface, the watcher, an approval) begins it here, and it goes on when they are gone. Knows
//! nothing of HTTP, of notifications or of metrics: those who want to know are [`Observer`]s.

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

/// Refreshes under way at once. Two of one container cannot be, and more than a few only wait for the engine; this is what
/// somebody who asks again and again may hold of memory.
const UNDER_WAY_MAX: usize = 32;

/// Ended ones that can still be watched from their beginning.
const ENDED_MAX: usize = 32;

/// As in the history. One that is not written down has a negative number, and is known to this process alone.
pub type Id = refit_history::Id;

/// Somebody who is told of every refresh. Called on the task of the refresh, so it must not wait for anything.
pub trait Observer: Send + Sync {
    fn observe(&self, run: &RefreshHandle, happening: &RunEvent<'_>);
}

/// What an observer is told.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent<'a> {
    Began,
    Event(&'a Event),
    Ended(&'a Result<Report, RefreshError>),
}

/// One refresh, under way or ended.
#[derive(Debug)]
pub struct RefreshHandle {
    pub id: Id,
    pub request: Request,
    /// Who asked, as they say of themselves.
    pub by: Option<String>,
    /// The one that it uses to its end.
    pub policy: PolicyReport,
    pub started: jiff::Timestamp,
    pub feed: EventLog,
    clock: Instant,
    cancel: CancellationToken,
    end: OnceLock<End>,
}

/// What a refresh came to.
#[derive(Debug)]
struct End {
    outcome: Outcome,
    duration: Duration,
    summary: Option<Summary>,
    rolled_back: u32,
    stranded: u32,
    failure: Option<Diagnostic>,
    /// Only of one that is not written down: others have it in the history.
    report: Option<serde_json::Value>,
}

impl RefreshHandle {
    /// Ends it early: what was begun is finished, nothing new is begun. `false` where it has ended.
    pub fn cancel(&self) -> bool {
        let under_way = self.end.get().is_none();
        if under_way {
            self.cancel.cancel();
        }
        under_way
    }

    /// Whether it was told to end early, and has not ended.
    pub fn is_ending(&self) -> bool {
        self.end.get().is_none() && self.cancel.is_cancelled()
    }

    /// What it came to, or that it runs.
    pub fn outcome(&self) -> Outcome {
        self.end.get().map_or(Outcome::Running, |end| end.outcome)
    }

    /// How long it took, or has so far.
    pub fn took(&self) -> Duration {
        let end = self.end.get();
        end.map_or_else(|| self.clock.elapsed(), |end| end.duration)
    }

    pub fn is_written_down(&self) -> bool {
        self.id > 0
    }

    /// As the history has it, where that cannot be asked.
    pub fn shown(&self) -> Shown {
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

    fn ended(&self, answer: &Result<Report, RefreshError>) -> Outcome {
        let outcome = refit_refresh::outcome(answer, self.cancel.is_cancelled());
        let report = match answer {
            Ok(report) => Some(report),
            Err(error) => error.partial(),
        };
        let count = |outcome: RecreationOutcome| {
            let all = report.iter().flat_map(|report| &report.containers);
            let done = all.filter_map(|one| one.recreation.as_ref());
            u32::try_from(done.filter(|one| one.outcome == outcome).count()).unwrap_or(u32::MAX)
        };
        let _ = self.end.set(End {
            outcome,
            duration: self.clock.elapsed(),
            summary: report.map(|report| report.summary),
            rolled_back: count(RecreationOutcome::RolledBack),
            stranded: count(RecreationOutcome::Stranded),
            failure: answer.as_ref().err().map(Diagnostic::of),
            report: report
                .filter(|_| !self.is_written_down())
                .and_then(|report| serde_json::to_value(report).ok()),
        });
        outcome
    }

    /// It panicked.
    fn interrupted(&self) {
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

/// Why none was begun.
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
            Self::NotHeld(told) => told.hints.clone(),
        }
    }
}

/// A refresh panicked. What it had begun is found by its labels, and ended by the next.
#[derive(Debug, thiserror::Error)]
#[error("a refresh panicked")]
pub struct Panicked;

impl Hints for Panicked {
    fn hints(&self) -> Vec<String> {
        vec!["this is a fault of Refit: its log has the place, please report it".into()]
    }
}

/// A refresh that runs. It goes on when this is dropped.
#[derive(Debug)]
pub struct StartedRefresh {
    pub run: Arc<RefreshHandle>,
    ended: oneshot::Receiver<Result<Report, RefreshError>>,
}

impl StartedRefresh {
    /// Waits for its end. Bounded by `limits.refresh_seconds`.
    pub async fn ended(self) -> Result<Result<Report, RefreshError>, Panicked> {
        self.ended.await.map_err(|_| Panicked)
    }
}

/// Begins refreshes, and knows those that are under way.
pub struct RefreshManager {
    refresher: Arc<Refresher>,
    observers: Vec<Arc<dyn Observer>>,
    work: TaskTracker,
    stopping: CancellationToken,
    known: Mutex<Known>,
    keys: Keys,
}

#[derive(Default)]
struct Known {
    under_way: Vec<Arc<RefreshHandle>>,
    /// The newest last.
    ended: VecDeque<Arc<RefreshHandle>>,
    /// Begun, and not yet with a number.
    beginning: usize,
    unwritten: Id,
}

impl RefreshManager {
    /// `work` has each refresh, for whoever waits for all of them to end; `stopping` ends them early and lets none begin.
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
            known: Mutex::default(),
            keys: Keys::default(),
        })
    }

    pub fn refresher(&self) -> &Arc<Refresher> {
        &self.refresher
    }

    /// Set when none is begun any more.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Returns when it has a number. It has begun then, and also when whoever asked does not wait for that.
    pub async fn begin(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
    ) -> Result<StartedRefresh, StartError> {
        self.begin_as(request, by, None).await
    }

    /// The same, of one that does no more than this.
    pub async fn begin_within(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
        approved: Arc<ApprovedScope>,
    ) -> Result<StartedRefresh, StartError> {
        self.begin_as(request, by, Some(approved)).await
    }

    async fn begin_as(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
        approved: Option<Arc<ApprovedScope>>,
    ) -> Result<StartedRefresh, StartError> {
        if self.stopping.is_cancelled() {
            return Err(StartError::Stopping);
        }
        {
            let mut known = self.known();
            if known.under_way.len() + known.beginning >= UNDER_WAY_MAX {
                return Err(StartError::TooMany);
            }
            known.beginning += 1;
        }
        let place = Place {
            runs: self.clone(),
            run: None,
        };
        let (numbered, number) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let asked = (request, by, approved);
        self.work.spawn(run(place, asked, numbered, end));
        // The sender is dropped by a panic alone.
        let run = number.await.map_err(|_| StartError::Stopping)?;
        Ok(StartedRefresh { run, ended })
    }

    /// One that is under way, or has ended a while ago.
    pub fn find(&self, id: Id) -> Option<Arc<RefreshHandle>> {
        let known = self.known();
        let mut all = known.under_way.iter().chain(&known.ended);
        all.find(|run| run.id == id).cloned()
    }

    /// Those that are under way, the oldest first.
    pub fn under_way(&self) -> Vec<Arc<RefreshHandle>> {
        self.known().under_way.clone()
    }

    /// Those that are known to this process alone, the newest first.
    pub fn unwritten(&self) -> Vec<Arc<RefreshHandle>> {
        let known = self.known();
        let all = known.ended.iter().chain(&known.under_way);
        let mut unwritten: Vec<_> = all.filter(|run| !run.is_written_down()).cloned().collect();
        unwritten.sort_by_key(|run| run.id);
        unwritten
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the places that are bounded by [`UNDER_WAY_MAX`]. Given back also by a panic.
struct Place {
    runs: Arc<RefreshManager>,
    run: Option<Arc<RefreshHandle>>,
}

impl Place {
    fn number(
        &mut self,
        started: &refit_refresh::Started,
        request: Request,
        by: Option<String>,
    ) -> Arc<RefreshHandle> {
        let mut known = self.runs.known();
        let id = started.id().unwrap_or_else(|| {
            known.unwritten -= 1;
            known.unwritten
        });
        let run = Arc::new(RefreshHandle {
            id,
            request,
            by,
            policy: started.policy(),
            started: jiff::Timestamp::now(),
            feed: EventLog::default(),
            clock: Instant::now(),
            cancel: self.runs.stopping.child_token(),
            end: OnceLock::new(),
        });
        known.beginning -= 1;
        known.under_way.push(run.clone());
        self.run = Some(run.clone());
        run
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = self.runs.known();
        let Some(run) = self.run.take() else {
            known.beginning -= 1;
            return;
        };
        // Whoever watches one that panicked must not wait for ever.
        run.interrupted();
        run.feed.close();
        known.under_way.retain(|other| !Arc::ptr_eq(other, &run));
        known.ended.push_back(run);
        if known.ended.len() > ENDED_MAX {
            known.ended.pop_front();
        }
    }
}

async fn run(
    place: Place,
    (request, by, approved): (Request, Option<String>, Option<Arc<ApprovedScope>>),
    numbered: oneshot::Sender<Arc<RefreshHandle>>,
    end: oneshot::Sender<Result<Report, RefreshError>>,
) {
    // All that is logged on the way is found by its number.
    let span = tracing::info_span!(
        "refresh",
        id = tracing::field::Empty,
        trigger = request.trigger.as_str(),
        by
    );
    let working = work(place, (request, by, approved), numbered).instrument(span);
    let answer = working.await;
    let _ = end.send(answer);
}

async fn work(
    mut place: Place,
    (request, by, approved): (Request, Option<String>, Option<Arc<ApprovedScope>>),
    numbered: oneshot::Sender<Arc<RefreshHandle>>,
) -> Result<Report, RefreshError> {
    let runs = place.runs.clone();
    let started = runs.refresher.start(request.clone(), by.clone()).await;
    let run = place.number(&started, request, by);
    let started = started.within(approved);
    tracing::Span::current().record("id", run.id);
    log::began(&run);
    let observe = |happening: &RunEvent<'_>| {
        for observer in &runs.observers {
            observer.observe(&run, happening);
        }
    };
    run.feed.tell(RefreshEvent::began(&run));
    observe(&RunEvent::Began);
    // Nobody may wait for it any more.
    let _ = numbered.send(run.clone());
    let answer = runs
        .refresher
        .finish(started, events(&runs, &run), run.cancel.clone())
        .await;
    let outcome = run.ended(&answer);
    log::ended(&run, &answer);
    run.feed.tell(RefreshEvent::ended(outcome, &answer));
    observe(&RunEvent::Ended(&answer));
    answer
}

fn events(runs: &Arc<RefreshManager>, run: &Arc<RefreshHandle>) -> Events {
    let (runs, run) = (runs.clone(), run.clone());
    Arc::new(move |event| {
        log::event(&event);
        for observer in &runs.observers {
            observer.observe(&run, &RunEvent::Event(&event));
        }
        run.feed.on(event);
    })
}
