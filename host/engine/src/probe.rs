//! Whether the engine answers, asked as often as anybody likes and of the engine once a second at most.
//!
//! Also of one that hangs: then nobody waits longer than two seconds and a turn. Knows nothing of who asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use refit_model::diagnostic::Diagnostic;

use super::Engine;

/// An engine that is well answers within milliseconds. Those who look after processes wait one second to ten.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer holds.
const FRESH: Duration = Duration::from_secs(1);

/// See the module.
pub struct Probe {
    engine: Arc<dyn Engine>,
    /// Held while the engine is asked, so that all who come meanwhile share one question.
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

    /// Why it does not is in the log, once.
    pub async fn is_up(&self) -> bool {
        let _turn = self.turn.lock().await;
        let last = *self.last();
        if let Some((when, up)) = last
            && when.elapsed() < FRESH
        {
            return up;
        }
        let asked = tokio::time::timeout(PATIENCE, self.engine.version()).await;
        let trouble = match asked {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Diagnostic::of(&error).sentence()),
            Err(_) => Some(format!("it did not answer within {} s", PATIENCE.as_secs())),
        };
        let up = trouble.is_none();
        match (last.is_none_or(|(_, up)| up), &trouble) {
            (true, Some(why)) => tracing::warn!("the container engine does not answer: {why}"),
            (false, None) => tracing::info!("the container engine answers again"),
            (true, None) | (false, Some(_)) => {}
        }
        *self.last() = Some((Instant::now(), up));
        up
    }

    /// What was found the last time, whenever that was.
    pub fn last_known(&self) -> Option<bool> {
        self.last().map(|(_, up)| up)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<(Instant, bool)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
