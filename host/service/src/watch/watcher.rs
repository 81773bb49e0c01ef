//! The watcher: a task that checks registries on a schedule or on request, and submits the updates that nothing defers.
//!
//! [`Watcher`] is the handle: it requests checks, pauses, and returns the state. The task keeps nothing important in memory
//! only: the next check finds the same updates again, and [`super::memory`] holds the state that survives a restart.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use refit_model::diagnostic::Diagnostic;
use refit_refresh::Refresher;
use refit_registry::digests::Digests;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::WatchSettings;
use super::check_queue::CheckQueue;
use super::memory::Pause;
use super::status::Snapshot;
use super::store::{Kept, Store};
use super::task::Task;
use super::update_sink::UpdateSink;

/// The maximum length of the name of whoever pauses.
const BY_CHARACTERS_MAX: usize = 100;

/// The parts of a watcher.
pub struct Watching {
    pub settings: WatchSettings,
    pub digests: Arc<Digests>,
    pub check_queue: Arc<CheckQueue>,
    /// The folder of its file.
    pub state_folder: std::path::PathBuf,
}

/// The handle of the watcher. See the [module documentation](self).
pub struct Watcher {
    pub(super) check_queue: Arc<CheckQueue>,
    pub(super) digests: Arc<Digests>,
    pub(super) kept: Kept,
    snapshot: Mutex<Arc<Snapshot>>,
    pub(super) changed: Notify,
    pub(super) teller: OnceLock<Teller>,
}

/// Receives the snapshot after each check, for notifications. Refit calls it on the watcher's task, so it must not block.
pub type Teller = Arc<dyn Fn(&Snapshot) + Send + Sync>;

impl Watcher {
    /// Creates the handle and the task, which checks for the first time when `ready` is set and ends with `stopping`.
    pub fn new(
        parts: Watching,
        refresher: Arc<Refresher>,
        update_sink: Arc<dyn UpdateSink>,
        ready: CancellationToken,
        stopping: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let kept = Kept::load(Store::new(&parts.state_folder));
        let snapshot = Snapshot {
            enabled: true,
            scheduled: parts.settings.schedule.is_some(),
            paused: kept.memory().paused.clone(),
            problem: kept.last_error(),
            ..Snapshot::disabled()
        };
        let watcher = Arc::new(Self {
            check_queue: parts.check_queue,
            digests: parts.digests,
            kept,
            snapshot: Mutex::new(Arc::new(snapshot)),
            changed: Notify::new(),
            teller: OnceLock::new(),
        });
        let collaborators = (refresher, update_sink);
        let task = Task::new(
            watcher.clone(),
            parts.settings,
            collaborators,
            stopping.clone(),
        );
        let run = async move {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = ready.cancelled() => {}
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = task.run() => {}
            }
        };
        (watcher, run)
    }

    /// Sets the receiver of snapshots. Only the first call has an effect.
    pub fn set_teller(&self, teller: Teller) {
        let _ = self.teller.set(teller);
    }

    pub fn check_queue(&self) -> &Arc<CheckQueue> {
        &self.check_queue
    }

    /// Returns the current state. It is cheap.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().clone()
    }

    /// Returns the requests to registries so far: registry, status (0 if no answer came), number.
    pub fn request_counts(&self) -> Vec<(String, u16, u64)> {
        self.digests.counts()
    }

    /// Pauses updates until [`Self::resume`], also after a restart. Checks continue. An error means that the pause does not
    /// survive a restart.
    pub async fn pause(&self, by: Option<String>) -> Result<(), Diagnostic> {
        let by = by.map(|by| by.chars().take(BY_CHARACTERS_MAX).collect());
        self.set_paused(Some(Pause {
            since: Timestamp::now(),
            by,
        }))
        .await
    }

    pub async fn resume(&self) -> Result<(), Diagnostic> {
        self.set_paused(None).await
    }

    async fn set_paused(&self, pause: Option<Pause>) -> Result<(), Diagnostic> {
        {
            let mut memory = self.kept.memory();
            // Pausing twice, or resuming twice, changes nothing.
            if memory.paused.is_some() != pause.is_some() {
                match &pause {
                    Some(pause) => tracing::info!(by = pause.by, "watcher paused"),
                    None => tracing::info!("watcher resumed"),
                }
                memory.paused = pause;
                memory.is_changed = true;
            }
            let paused = memory.paused.clone();
            drop(memory);
            self.publish(|snapshot| snapshot.paused = paused);
        }
        let result = self.kept.write().await;
        self.publish(|snapshot| snapshot.problem = self.kept.last_error());
        self.changed.notify_one();
        result
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut current = self.lock();
        let mut snapshot = Snapshot::clone(&current);
        change(&mut snapshot);
        *current = Arc::new(snapshot);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Snapshot>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
