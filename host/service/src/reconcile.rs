//! Ends what was left half done, for as long as anything is: after a refresh that failed, when the engine comes back, when a
//! replacement that another Refit may have begun is over due, and every few minutes.
//!
//! Recovery itself is [`refit_recreate::recover`]. This is the level that it is driven by: what is half done on the engine now, not what
//! was noticed when. Attempts back off, so an engine with a container that cannot be started is not kept busy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use refit_capabilities::live::EngineContext;
use refit_engine::Engine;
use refit_model::diagnostic::Diagnostic;
use refit_model::report::Report;
use refit_model::unfinished::{Unfinished, UnfinishedState};
use refit_recreate::recover::Recovered;
use refit_refresh::RefreshError;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::runs::{Observer, RefreshHandle, RunEvent};

/// Pauses between attempts while something is half done, or the engine does not answer. They double.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MOST: Duration = Duration::from_secs(5 * 60);

/// How often the engine's containers are listed where nothing is known to be half done.
const SWEEP: Duration = Duration::from_secs(5 * 60);

/// How often an engine is asked whether it is there: one that is away, and one that tells no events.
const AWAY_FIRST: Duration = Duration::from_secs(1);
const AWAY_MOST: Duration = Duration::from_secs(30);
/// An engine whose events end sooner than this tells none.
const TELLS_EVENTS: Duration = Duration::from_secs(1);

/// Told what is half done now, each time that this changes, and what it was before.
pub type OnChange = Arc<dyn Fn(&[Unfinished], &[Unfinished]) + Send + Sync>;

/// See the module.
pub struct Reconciler {
    workshop: Arc<EngineContext>,
    wake: Notify,
    unfinished: Mutex<Vec<Unfinished>>,
    on_change: OnChange,
}

impl Reconciler {
    pub fn new(workshop: Arc<EngineContext>, on_change: OnChange) -> Self {
        Self {
            workshop,
            wake: Notify::new(),
            unfinished: Mutex::default(),
            on_change,
        }
    }

    /// There may be something to end: look now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// How many were half done at the last look, and nobody was at work on.
    pub fn abandoned(&self) -> usize {
        self.lock().iter().filter(|it| it.is_abandoned()).count()
    }

    /// Whether somebody lacks a container because of it.
    pub fn is_service_affected(&self) -> bool {
        self.lock().iter().any(|one| match one.state {
            UnfinishedState::HalfDone | UnfinishedState::Stranded => true,
            UnfinishedState::InProgress | UnfinishedState::LeftOver => false,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Unfinished>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Until `stopping`. Sets `looked` after the first attempt, whatever came of it.
    pub async fn run(self: Arc<Self>, stopping: CancellationToken, looked: CancellationToken) {
        let engine = self.workshop.engine.clone();
        let mut engine_returns = Box::pin(until_engine_returns(engine.clone()));
        let mut retry = RETRY_FIRST;
        let mut problem = None;
        loop {
            let attempt = self.workshop.recover().await;
            looked.cancel();
            let wait = match attempt {
                Ok(recovered) => {
                    problem = None;
                    self.note(&recovered)
                }
                Err(error) => {
                    let sentence = Diagnostic::of(&error).sentence();
                    if problem.as_ref() != Some(&sentence) {
                        tracing::warn!(
                            "cannot look for half-done replacements, and tries again: {sentence}"
                        );
                    }
                    problem = Some(sentence);
                    Some(RETRY_MOST)
                }
            };
            let wait = match wait {
                None => {
                    retry = RETRY_FIRST;
                    SWEEP
                }
                Some(due) => {
                    let wait = retry.min(due);
                    retry = (retry * 2).min(RETRY_MOST);
                    wait
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.wake.notified() => retry = RETRY_FIRST,
                () = &mut engine_returns => {
                    engine_returns.set(until_engine_returns(engine.clone()));
                    retry = RETRY_FIRST;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells what has changed; when to try again at the latest, `None` where nothing is half done.
    fn note(&self, recovered: &[Recovered]) -> Option<Duration> {
        let unfinished: Vec<Unfinished> =
            recovered.iter().filter_map(Recovered::unfinished).collect();
        let half_done = recovered.iter().filter(|one| one.unfinished().is_some());
        let due = half_done.map(|one| one.due_in.unwrap_or(RETRY_MOST)).min();
        let before = std::mem::replace(&mut *self.lock(), unfinished.clone());
        let told = |all: &[Unfinished]| -> Vec<(String, UnfinishedState)> {
            all.iter()
                .map(|it| (it.container.clone(), it.state))
                .collect()
        };
        if told(&before) != told(&unfinished) {
            (self.on_change)(&unfinished, &before);
        }
        due
    }
}

/// A refresh that left something behind is looked after at once.
impl Observer for Reconciler {
    fn observe(&self, _: &RefreshHandle, happening: &RunEvent<'_>) {
        let RunEvent::Ended(answer) = happening else {
            return;
        };
        if may_have_left_something(answer) {
            self.wake();
        }
    }
}

fn may_have_left_something(answer: &Result<Report, RefreshError>) -> bool {
    match answer {
        Err(_) => true,
        Ok(report) => {
            let mut recreations = report
                .containers
                .iter()
                .filter_map(|it| it.recreation.as_ref());
            !report.unfinished.is_empty()
                || recreations.any(|it| it.outcome.is_failure() || it.left_over.is_some())
        }
    }
}

/// Returns when the engine has been away and is back.
async fn until_engine_returns(engine: Arc<dyn Engine>) {
    let listening = Instant::now();
    let mut events = engine.daemon_events();
    while let Some(Ok(())) = events.next().await {}
    drop(events);
    if listening.elapsed() < TELLS_EVENTS {
        // It does not tell, so it is asked.
        while engine.version().await.is_ok() {
            tokio::time::sleep(AWAY_MOST).await;
        }
    }
    let mut wait = AWAY_FIRST;
    loop {
        tokio::time::sleep(wait).await;
        if engine.version().await.is_ok() {
            return;
        }
        wait = (wait * 2).min(AWAY_MOST);
    }
}
