//! The watcher: a task that looks when it is time or when it rings, and has what it finds adopted when nothing holds it.
//!
//! [`Watcher`] is the handle: to ring, pause, and see what is known. The task keeps no promise in memory that matters: what it
//! found is found again by the next look, and what must outlive it is in [`super::memory`].

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

/// Longest name of whoever pauses.
const BY_CHARACTERS_MAX: usize = 100;

/// What a watcher is made with, besides those that it works for.
pub struct Watching {
    pub settings: WatchSettings,
    pub digests: Arc<Digests>,
    pub bell: Arc<CheckQueue>,
    /// Where it remembers.
    pub state_folder: std::path::PathBuf,
}

/// See the module.
pub struct Watcher {
    pub(super) bell: Arc<CheckQueue>,
    pub(super) digests: Arc<Digests>,
    pub(super) kept: Kept,
    snapshot: Mutex<Arc<Snapshot>>,
    pub(super) changed: Notify,
    pub(super) teller: OnceLock<Teller>,
}

/// Told of what is known after each look, for notifications. Called on the task of the watcher, so it must not wait.
pub type Teller = Arc<dyn Fn(&Snapshot) + Send + Sync>;

impl Watcher {
    /// The handle, and the task behind it, which looks for the first time when `ready` is set and ends with `stopping`.
    pub fn new(
        parts: Watching,
        refresher: Arc<Refresher>,
        adopt: Arc<dyn UpdateSink>,
        ready: CancellationToken,
        stopping: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let kept = Kept::load(Store::in_folder(&parts.state_folder));
        let snapshot = Snapshot {
            enabled: true,
            scheduled: parts.settings.ticks.is_some(),
            paused: kept.memory().paused.clone(),
            problem: kept.trouble(),
            ..Snapshot::off()
        };
        let watcher = Arc::new(Self {
            bell: parts.bell,
            digests: parts.digests,
            kept,
            snapshot: Mutex::new(Arc::new(snapshot)),
            changed: Notify::new(),
            teller: OnceLock::new(),
        });
        let for_whom = (refresher, adopt);
        let task = Task::new(watcher.clone(), parts.settings, for_whom, stopping.clone());
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

    /// Only the first one is told.
    pub fn tell_after_looks(&self, teller: Teller) {
        let _ = self.teller.set(teller);
    }

    pub fn bell(&self) -> &Arc<CheckQueue> {
        &self.bell
    }

    /// What is known now. Cheap.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().clone()
    }

    /// Requests to registries so far: registry, status (0 where no answer came), number.
    pub fn requests(&self) -> Vec<(String, u16, u64)> {
        self.digests.counts()
    }

    /// Nothing is adopted until it is resumed, over restarts too. Looks go on. An error means that it does not outlive a restart.
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
            // Who pauses what is paused already changes nothing.
            if memory.paused.is_some() != pause.is_some() {
                match &pause {
                    Some(pause) => tracing::info!(by = pause.by, "the watcher is paused"),
                    None => tracing::info!("the watcher is resumed"),
                }
                memory.paused = pause;
                memory.is_changed = true;
            }
            let paused = memory.paused.clone();
            drop(memory);
            self.publish(|snapshot| snapshot.paused = paused);
        }
        let written = self.kept.write().await;
        self.publish(|snapshot| snapshot.problem = self.kept.trouble());
        self.changed.notify_one();
        written
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
