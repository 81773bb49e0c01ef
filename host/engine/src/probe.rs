//! Checks whether the engine responds. Callers may check as often as they like; the engine gets at most one request per second.
//!
//! This also works for an engine that hangs: then no caller waits longer than two seconds and one turn.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use refit_model::diagnostic::Diagnostic;

use super::Engine;

/// How long to wait for a response. A healthy engine responds within milliseconds. Programs that supervise processes wait one
/// to ten seconds.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a result stays valid.
const RESULT_LIFETIME: Duration = Duration::from_secs(1);

/// A rate-limited liveness check of one engine.
pub struct Probe {
    engine: Arc<dyn Engine>,
    /// Locked during a request, so that concurrent callers share it.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Probe {
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            engine,
            turn: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Checks whether the engine responds. The log contains the reason once if it does not.
    pub async fn is_up(&self) -> bool {
        let _turn = self.turn.lock().await;
        let last = *self.last();
        if let Some((when, up)) = last
            && when.elapsed() < RESULT_LIFETIME
        {
            return up;
        }
        let result = tokio::time::timeout(TIMEOUT, self.engine.version()).await;
        let failure = match result {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Diagnostic::of(&error).sentence()),
            Err(_) => Some(format!("it did not answer within {} s", TIMEOUT.as_secs())),
        };
        let up = failure.is_none();
        match (last.is_none_or(|(_, up)| up), &failure) {
            (true, Some(why)) => tracing::warn!("the container engine does not answer: {why}"),
            (false, None) => tracing::info!("the container engine answers again"),
            (true, None) | (false, Some(_)) => {}
        }
        *self.last() = Some((Instant::now(), up));
        up
    }

    /// Returns the last result, of any age.
    pub fn last_known(&self) -> Option<bool> {
        self.last().map(|(_, up)| up)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<(Instant, bool)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
