//! The refreshes of a daemon: each begun in a task of its own, watched while it runs, and told of when it ends.
//!
//! Whoever asks for one (the HTTP interface, the watcher, an approval) begins it here, and it goes on when they are gone. Knows
//! nothing of HTTP, of notifications or of metrics: those who want to know are [`Observer`]s.

pub mod feed;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::feed::{Feed, Told};
use crate::capabilities::warrant::Warrant;
use crate::diagnostic::{Diagnostic, Hints};
use crate::history;
use crate::journal::{Event, Events};
use crate::refresh::{self, RefreshError, Refresher, Report, Request};

/// Refreshes under way at once. Two of one container cannot be, and more than a few only wait for the engine; this is what
/// somebody who asks again and again may hold of memory.
const UNDER_WAY_MAX: usize = 32;

/// Ended ones that can still be watched from their beginning.
const ENDED_MAX: usize = 32;

/// As in the history. One that is not written down has a negative number, and is known to this process alone.
pub type Id = history::Id;

/// Somebody who is told of every refresh. Called on the task of the refresh, so it must not wait for anything.
pub trait Observer: Send + Sync {
    fn observe(&self, run: &Run, happening: &Happening<'_>);
}

/// What an observer is told.
#[derive(Clone, Copy, Debug)]
pub enum Happening<'a> {
    Began,
    Event(&'a Event),
    Ended(&'a Result<Report, RefreshError>),
}

/// One refresh, under way or ended.
#[derive(Debug)]
pub struct Run {
    pub id: Id,
    pub request: Request,
    /// Who asked, as they say of themselves.
    pub by: Option<String>,
    pub started: jiff::Timestamp,
    pub feed: Feed,
}

/// Why none was begun.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    #[error("the daemon is stopping")]
    Stopping,
    #[error("{UNDER_WAY_MAX} refreshes are under way, and no more are begun")]
    TooMany,
    #[error("it could not be held for approval: {}", .0.sentence())]
    NotHeld(Diagnostic),
}

impl Hints for NotBegun {
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
pub struct Begun {
    pub run: Arc<Run>,
    ended: oneshot::Receiver<Result<Report, RefreshError>>,
}

impl Begun {
    /// Waits for its end. Bounded by `limits.refresh_seconds`.
    pub async fn ended(self) -> Result<Result<Report, RefreshError>, Panicked> {
        self.ended.await.map_err(|_| Panicked)
    }
}

/// Begins refreshes, and knows those that are under way.
pub struct Runs {
    refresher: Arc<Refresher>,
    observers: Vec<Arc<dyn Observer>>,
    work: TaskTracker,
    stopping: CancellationToken,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    under_way: Vec<Arc<Run>>,
    /// The newest last.
    ended: VecDeque<Arc<Run>>,
    /// Begun, and not yet with a number.
    beginning: usize,
    unwritten: Id,
}

impl Runs {
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
    ) -> Result<Begun, NotBegun> {
        self.begin_as(request, by, None).await
    }

    /// The same, of one that does no more than this.
    pub async fn begin_within(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
        warrant: Arc<Warrant>,
    ) -> Result<Begun, NotBegun> {
        self.begin_as(request, by, Some(warrant)).await
    }

    async fn begin_as(
        self: &Arc<Self>,
        request: Request,
        by: Option<String>,
        warrant: Option<Arc<Warrant>>,
    ) -> Result<Begun, NotBegun> {
        if self.stopping.is_cancelled() {
            return Err(NotBegun::Stopping);
        }
        {
            let mut known = self.known();
            if known.under_way.len() + known.beginning >= UNDER_WAY_MAX {
                return Err(NotBegun::TooMany);
            }
            known.beginning += 1;
        }
        let place = Place {
            runs: self.clone(),
            run: None,
        };
        let (numbered, number) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let asked = (request, by, warrant);
        self.work.spawn(run(place, asked, numbered, end));
        // The sender is dropped by a panic alone.
        let run = number.await.map_err(|_| NotBegun::Stopping)?;
        Ok(Begun { run, ended })
    }

    /// One that is under way, or has ended a while ago.
    pub fn find(&self, id: Id) -> Option<Arc<Run>> {
        let known = self.known();
        let mut all = known.under_way.iter().chain(&known.ended);
        all.find(|run| run.id == id).cloned()
    }

    /// Those that are under way, the oldest first.
    pub fn under_way(&self) -> Vec<Arc<Run>> {
        self.known().under_way.clone()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the places that are bounded by [`UNDER_WAY_MAX`]. Given back also by a panic.
struct Place {
    runs: Arc<Runs>,
    run: Option<Arc<Run>>,
}

impl Place {
    fn number(&mut self, id: Option<Id>, request: Request, by: Option<String>) -> Arc<Run> {
        let mut known = self.runs.known();
        let id = id.unwrap_or_else(|| {
            known.unwritten -= 1;
            known.unwritten
        });
        let run = Arc::new(Run {
            id,
            request,
            by,
            started: jiff::Timestamp::now(),
            feed: Feed::default(),
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
        run.feed.close();
        known.under_way.retain(|other| !Arc::ptr_eq(other, &run));
        known.ended.push_back(run);
        if known.ended.len() > ENDED_MAX {
            known.ended.pop_front();
        }
    }
}

async fn run(
    mut place: Place,
    (request, by, warrant): (Request, Option<String>, Option<Arc<Warrant>>),
    numbered: oneshot::Sender<Arc<Run>>,
    end: oneshot::Sender<Result<Report, RefreshError>>,
) {
    let runs = place.runs.clone();
    let started = runs.refresher.start(request.clone(), by.clone()).await;
    let started = started.within(warrant);
    let run = place.number(started.id(), request, by);
    let observe = |happening: &Happening<'_>| {
        for observer in &runs.observers {
            observer.observe(&run, happening);
        }
    };
    run.feed.tell(Told::began(&run));
    observe(&Happening::Began);
    // Nobody may wait for it any more.
    let _ = numbered.send(run.clone());
    let answer = runs
        .refresher
        .finish(started, events(&runs, &run), runs.stopping.clone())
        .await;
    if let Err(error) = &answer {
        let told = Diagnostic::of(error);
        tracing::error!(id = run.id, hints = ?told.hints, "a refresh failed: {}", told.sentence());
    }
    let outcome = refresh::outcome(&answer, runs.stopping.is_cancelled());
    run.feed.tell(Told::ended(outcome, &answer));
    observe(&Happening::Ended(&answer));
    drop(place);
    let _ = end.send(answer);
}

fn events(runs: &Arc<Runs>, run: &Arc<Run>) -> Events {
    let (runs, run) = (runs.clone(), run.clone());
    Arc::new(move |event| {
        for observer in &runs.observers {
            observer.observe(&run, &Happening::Event(&event));
        }
        run.feed.on(event);
    })
}
