//! Something that happens again and again, logged in full a few times a minute and then by its count.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What somebody who reads the log wants to hear at most of one thing.
const WINDOW: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct RateLimitedLog {
    /// As a sentence: "a wrong admin token was sent".
    what: &'static str,
    /// How many in a window are logged in full.
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
        Self::within(what, full, WINDOW)
    }

    fn within(what: &'static str, full: u32, window: Duration) -> Arc<Self> {
        Arc::new(Self {
            what,
            full,
            window,
            state: Mutex::default(),
        })
    }

    /// It happened. Whether this one is to be logged in full; those that are not are told by their number when the window ends.
    pub(super) fn happened(self: &Arc<Self>) -> bool {
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
            let repeated = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(rest.unwrap_or_default()).await;
                repeated.tell();
            });
        }
        false
    }

    fn tell(&self) -> u64 {
        let more = std::mem::take(&mut *self.state()).more;
        tracing::warn!(
            times = more,
            within_seconds = self.window.as_secs(),
            "{}, again and again",
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
    async fn the_first_few_are_told_in_full_and_the_rest_is_counted() {
        let repeated = RateLimitedLog::within("it happened", 2, Duration::from_secs(3600));
        let told: Vec<bool> = (0..5).map(|_| repeated.happened()).collect();
        assert_eq!(told, [true, true, false, false, false]);
        assert_eq!(repeated.tell(), 3);
        assert!(repeated.happened(), "a new window");
    }

    #[tokio::test]
    async fn what_was_counted_is_told_although_nothing_more_happens() {
        let repeated = RateLimitedLog::within("it happened", 1, Duration::from_millis(5));
        while repeated.happened() {}
        let counted = async {
            while repeated.state().more > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), counted)
            .await
            .unwrap();
    }
}
