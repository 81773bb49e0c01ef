//! Limits on how many replacement steps run at once. The engine is the bottleneck: any work during a container's downtime makes
//! that downtime longer, and a health check is nothing but waiting.
//!
//! A replacement has three stages. Refit prepares the new container (create, connect, verify), then it swaps the containers
//! (the downtime), then it waits until the new container is healthy and removes the old one. The wait needs no permit. This
//! module does not know what happens in the stages.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Limits the number of concurrent replacement steps. All refreshes on one engine share it.
#[derive(Debug)]
pub struct ConcurrencyLimits {
    downtime: Arc<Semaphore>,
    background: Arc<Semaphore>,
}

/// How many containers all refreshes prepare or remove at once. An engine takes 20 to 60 ms for a create and 15 to 40 ms for a
/// removal, compared with 600 ms for a stop and a start, so one permit is enough to stay ahead of the swaps.
const BACKGROUND_PERMITS: usize = 1;

impl ConcurrencyLimits {
    /// Creates limits that allow `max_down` containers to be down at once. A caller that allows only one wants the shortest
    /// possible downtime, so then no other work runs during it.
    pub fn new(max_down: usize) -> Self {
        let downtime = Arc::new(Semaphore::new(max_down.max(1)));
        let background = match max_down {
            0 | 1 => downtime.clone(),
            _ => Arc::new(Semaphore::new(BACKGROUND_PERMITS)),
        };
        Self {
            downtime,
            background,
        }
    }

    /// Acquires a permit that the caller holds while its container is down. Permits are granted in order of request. The wait
    /// is bounded by the downtimes of the others, which the engine's timeouts bound. No caller may hold both kinds of permit.
    pub async fn downtime(&self) -> Option<SemaphorePermit<'_>> {
        // Nothing closes this semaphore.
        self.downtime.acquire().await.ok()
    }

    /// Acquires a permit that the caller holds for engine work while the container runs.
    pub async fn background(&self) -> Option<SemaphorePermit<'_>> {
        self.background.acquire().await.ok()
    }
}

impl Default for ConcurrencyLimits {
    /// Allows one container to be down at a time.
    fn default() -> Self {
        Self::new(1)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn single_downtime_excludes_background_work() {
        for (max_down, has_background) in [(0, false), (1, false), (2, true)] {
            let limits = ConcurrencyLimits::new(max_down);
            let downtime = limits.downtime().now_or_never().flatten();
            assert!(downtime.is_some(), "{max_down}");
            let background = limits.background().now_or_never().flatten();
            assert_eq!(background.is_some(), has_background, "{max_down}");
            drop(downtime);
            assert!(background.is_some() || limits.background().now_or_never().is_some());
        }
    }
}
