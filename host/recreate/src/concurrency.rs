//! How many replacements do what at once. The engine is the bottleneck: what runs beside a gap makes it longer, and a proof is
//! nothing but waiting.
//!
//! A replacement passes three stages. It is made ready (create, connect, verify), it takes over (the gap), and behind that it
//! proves itself, for which it needs no lane, before the old one is removed. Knows nothing of what is done in them.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

/// See the module. Shared by all refreshes on one engine.
#[derive(Debug)]
pub struct ConcurrencyLimits {
    gap: Arc<Semaphore>,
    aside: Arc<Semaphore>,
}

/// What is made ready or removed at once, over all refreshes. A create takes an engine 20 to 60 ms and a removal 15 to 40 beside
/// a stop and a start of 600, so that one lane keeps ahead of the gaps.
const ASIDE: usize = 1;

impl ConcurrencyLimits {
    /// `gaps` is how many containers may be down at once. Who asks for one wants the shortest gap that there is, so then nothing else
    /// is done beside it.
    pub fn new(gaps: usize) -> Self {
        let gap = Arc::new(Semaphore::new(gaps.max(1)));
        let aside = match gaps {
            0 | 1 => gap.clone(),
            _ => Arc::new(Semaphore::new(ASIDE)),
        };
        Self { gap, aside }
    }

    /// To be held while the container is down. First come, first served; bounded by the others' gaps, which are by the engine's
    /// time limits. Nobody may hold both lanes.
    pub async fn gap(&self) -> Option<SemaphorePermit<'_>> {
        // Closed by nobody.
        self.gap.acquire().await.ok()
    }

    /// To be held for work that the engine does while the container runs.
    pub async fn aside(&self) -> Option<SemaphorePermit<'_>> {
        self.aside.acquire().await.ok()
    }
}

impl Default for ConcurrencyLimits {
    /// One at a time.
    fn default() -> Self {
        Self::new(1)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn with_one_gap_nothing_is_done_beside_it() {
        for (gaps, beside) in [(0, false), (1, false), (2, true)] {
            let lanes = ConcurrencyLimits::new(gaps);
            let gap = lanes.gap().now_or_never().flatten();
            assert!(gap.is_some(), "{gaps}");
            let aside = lanes.aside().now_or_never().flatten();
            assert_eq!(aside.is_some(), beside, "{gaps}");
            drop(gap);
            assert!(aside.is_some() || lanes.aside().now_or_never().is_some());
        }
    }
}
