//! A log message that may repeat often: it appears in full a few times a minute, and then as a count.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time in which the full messages are limited.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts the occurrences of one event, and logs the number that was not logged in full.
#[derive(Debug)]
pub(super) struct RateLimitedLog {
    /// The event as a sentence: "a wrong admin token was sent".
    what: &'static str,
    /// The number of full messages in a window.
    full: u32,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    seen: u32,
    more: u64,
}

impl RateLimitedLog {
    pub(super) fn new(what: &'static str, full: u32) -> Arc<Self> {
        Self::with_window(what, full, WINDOW)
    }

    fn with_window(what: &'static str, full: u32, window: Duration) -> Arc<Self> {
        Arc::new(Self {
            what,
            full,
            window,
            state: Mutex::default(),
        })
    }

    /// Count an occurrence, and return whether to log it in full. The others are logged as a number when the window ends.
    pub(super) fn count_occurrence(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        if state.more == 0 && state.began.is_none_or(|began| now - began >= self.window) {
            *state = State {
                began: Some(now),
                ..State::default()
            };
        }
        if state.seen < self.full {
            state.seen += 1;
            return true;
        }
        state.more += 1;
        if state.more == 1 {
            let rest = state
                .began
                .map(|began| (began + self.window).saturating_duration_since(now));
            let log = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(rest.unwrap_or_default()).await;
                log.log_count();
            });
        }
        false
    }

    fn log_count(&self) -> u64 {
        let more = std::mem::take(&mut *self.state()).more;
        tracing::warn!(
            times = more,
            within_seconds = self.window.as_secs(),
            "{}, repeatedly",
            self.what
        );
        more
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_occurrences_are_logged_in_full_and_the_rest_counted() {
        let log = RateLimitedLog::with_window("it happened", 2, Duration::from_secs(3600));
        let logged_in_full: Vec<bool> = (0..5).map(|_| log.count_occurrence()).collect();
        assert_eq!(logged_in_full, [true, true, false, false, false]);
        assert_eq!(log.log_count(), 3);
        assert!(log.count_occurrence(), "a new window");
    }

    #[tokio::test]
    async fn count_is_logged_without_a_further_occurrence() {
        let log = RateLimitedLog::with_window("it happened", 1, Duration::from_millis(5));
        while log.count_occurrence() {}
        let counted = async {
            while log.state().more > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), counted)
            .await
            .unwrap();
    }
}
