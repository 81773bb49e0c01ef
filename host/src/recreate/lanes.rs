//! How many replacements do what at once. The engine is the bottleneck: what runs beside a gap makes it longer, and a proof is
//! nothing but waiting.
//!
//! A replacement passes three stages. It is made ready (create, connect, verify), it takes over (the gap), and behind that it
//! proves itself, for which it needs no lane, before the old one is removed. Knows nothing of what is done in them.

use tokio::sync::{Semaphore, SemaphorePermit};

/// See the module. Shared by all refreshes on one engine.
#[derive(Debug)]
pub struct Lanes {
    gap: Semaphore,
    aside: Semaphore,
}

/// What is made ready or removed at once, over all refreshes. One: such work is short, and every create or removal that an
/// engine does beside a gap was measured to be in it.
const ASIDE: usize = 1;

impl Lanes {
    /// `gaps` is how many containers may be down at once.
    pub fn new(gaps: usize) -> Self {
        Self {
            gap: Semaphore::new(gaps.max(1)),
            aside: Semaphore::new(ASIDE),
        }
    }

    /// To be held while the container is down. First come, first served; bounded by the others' gaps, which are by the engine's
    /// time limits.
    pub async fn gap(&self) -> Option<SemaphorePermit<'_>> {
        // Closed by nobody.
        self.gap.acquire().await.ok()
    }

    /// To be held for work that the engine does while the container runs.
    pub async fn aside(&self) -> Option<SemaphorePermit<'_>> {
        self.aside.acquire().await.ok()
    }
}

impl Default for Lanes {
    /// One at a time.
    fn default() -> Self {
        Self::new(1)
    }
}
