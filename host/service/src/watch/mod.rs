//! The watcher: checks registries for new images, and starts or proposes refreshes for them.
//!
//! In reading order: [`schedule`] and [`windows`] say when; [`registry_poller`] makes one check, through the policy; [`status`]
//! holds its results and what defers an update; [`watcher`] is the handle, and `task` runs the loop; [`memory`] is the state
//! that survives a restart.
//!
//! [`check_queue`] lets others (webhooks, an operator) report that an image may have changed. [`update_sink`] takes an update:
//! it starts a refresh, or creates an approval. This module does not depend on HTTP.

pub mod check_queue;
mod clock;
pub mod memory;
pub mod registry_poller;
pub mod schedule;
pub mod status;
pub mod store;
mod task;
pub mod update_sink;
pub mod watcher;
pub mod windows;

pub use self::watcher::Watcher;

/// When to check, and when to apply an update.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// `None`: only on request, and once at the start.
    pub schedule: Option<schedule::Schedule>,
    pub windows: windows::Windows,
    pub minimum_age: jiff::SignedDuration,
    /// The pause after a failed refresh. It doubles with each failure.
    pub retry: std::time::Duration,
}
