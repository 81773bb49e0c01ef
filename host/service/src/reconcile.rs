//! The reconciler: finishes or undoes unfinished replacements. It runs after a failed refresh, when the engine returns, when a
//! replacement that another Refit may have started is overdue, and every few minutes.
//!
//! [`refit_recreate::recover`] implements the recovery. This loop is driven by the state of the engine now, not by earlier
//! events. Attempts back off, so a container that cannot start does not keep the engine busy.

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

/// The first and the longest pause between attempts while a replacement is unfinished or the engine does not answer. Each pause
/// is twice as long as the one before.
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_MOST: Duration = Duration::from_secs(5 * 60);

/// How often Refit lists the containers of the engine if it knows of no unfinished replacement.
const SWEEP: Duration = Duration::from_secs(5 * 60);

/// The first and the longest pause between requests to an engine that is down, or that sends no events.
const POLL_FIRST: Duration = Duration::from_secs(1);
const POLL_MOST: Duration = Duration::from_secs(30);
/// An engine whose event stream ends sooner than this sends no events.
const EVENTS_MIN: Duration = Duration::from_secs(1);

/// Receives the unfinished replacements of now and of before, each time they change.
pub type OnChange = Arc<dyn Fn(&[Unfinished], &[Unfinished]) + Send + Sync>;

/// Recovers unfinished replacements. See the [module documentation](self).
pub struct Reconciler {
    context: Arc<EngineContext>,
    wake: Notify,
    unfinished: Mutex<Vec<Unfinished>>,
    on_change: OnChange,
}

impl Reconciler {
    pub fn new(context: Arc<EngineContext>, on_change: OnChange) -> Self {
        Self {
            context,
            wake: Notify::new(),
            unfinished: Mutex::default(),
            on_change,
        }
    }

    /// Makes the reconciler run now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Returns how many replacements were unfinished at the last attempt, with no process working on them.
    pub fn abandoned_count(&self) -> usize {
        self.lock()
            .iter()
            .filter(|unfinished| unfinished.is_abandoned())
            .count()
    }

    /// Returns whether a container is missing because of an unfinished replacement.
    pub fn is_service_affected(&self) -> bool {
        self.lock().iter().any(|unfinished| match unfinished.state {
            UnfinishedState::HalfDone | UnfinishedState::Stranded => true,
            UnfinishedState::InProgress | UnfinishedState::LeftOver => false,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Unfinished>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until `stopping` is set. Sets `first_attempt_done` after the first attempt, whatever its result.
    pub async fn run(
        self: Arc<Self>,
        stopping: CancellationToken,
        first_attempt_done: CancellationToken,
    ) {
        let engine = self.context.engine.clone();
        let mut engine_returns = Box::pin(wait_for_engine_return(engine.clone()));
        let mut retry = RETRY_FIRST;
        let mut last_error = None;
        loop {
            let attempt = self.context.recover().await;
            first_attempt_done.cancel();
            let wait = match attempt {
                Ok(recovered) => {
                    last_error = None;
                    self.record(&recovered)
                }
                Err(error) => {
                    let sentence = Diagnostic::of(&error).sentence();
                    if last_error.as_ref() != Some(&sentence) {
                        tracing::warn!("cannot look for unfinished replacements: {sentence}");
                    }
                    last_error = Some(sentence);
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
                    engine_returns.set(wait_for_engine_return(engine.clone()));
                    retry = RETRY_FIRST;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Records the unfinished replacements, and reports a change. Returns when to try again at the latest, `None` if nothing is
    /// unfinished.
    fn record(&self, recovered: &[Recovered]) -> Option<Duration> {
        let unfinished: Vec<Unfinished> =
            recovered.iter().filter_map(Recovered::unfinished).collect();
        let unfinished_recoveries = recovered
            .iter()
            .filter(|recovered| recovered.unfinished().is_some());
        let due = unfinished_recoveries
            .map(|recovered| recovered.due_in.unwrap_or(RETRY_MOST))
            .min();
        let before = std::mem::replace(&mut *self.lock(), unfinished.clone());
        let states = |all: &[Unfinished]| -> Vec<(String, UnfinishedState)> {
            all.iter()
                .map(|unfinished| (unfinished.container.clone(), unfinished.state))
                .collect()
        };
        if states(&before) != states(&unfinished) {
            (self.on_change)(&unfinished, &before);
        }
        due
    }
}

/// Starts a recovery after a refresh that left something behind.
impl Observer for Reconciler {
    fn observe(&self, _: &RefreshHandle, event: &RunEvent<'_>) {
        let RunEvent::Ended(answer) = event else {
            return;
        };
        if may_need_recovery(answer) {
            self.wake();
        }
    }
}

fn may_need_recovery(answer: &Result<Report, RefreshError>) -> bool {
    match answer {
        Err(_) => true,
        Ok(report) => {
            let mut recreations = report
                .containers
                .iter()
                .filter_map(|container| container.recreation.as_ref());
            !report.unfinished.is_empty()
                || recreations.any(|recreation| {
                    recreation.outcome.is_failure() || recreation.left_over.is_some()
                })
        }
    }
}

/// Returns when the engine has been down and answers again.
async fn wait_for_engine_return(engine: Arc<dyn Engine>) {
    let listening = Instant::now();
    let mut events = engine.daemon_events();
    while let Some(Ok(())) = events.next().await {}
    drop(events);
    if listening.elapsed() < EVENTS_MIN {
        // The engine sends no events, so poll it.
        while engine.version().await.is_ok() {
            tokio::time::sleep(POLL_MOST).await;
        }
    }
    let mut wait = POLL_FIRST;
    loop {
        tokio::time::sleep(wait).await;
        if engine.version().await.is_ok() {
            return;
        }
        wait = (wait * 2).min(POLL_MOST);
    }
}
