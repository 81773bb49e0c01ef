//! Watching for new images: what rings, what is looked at, and when what was found is adopted.
//!
//! In reading order: [`schedule`] and [`windows`] say when; [`look`] is one look, through the policy; [`status`] is what it has
//! shown and what holds it; [`watcher`] is the handle, and `task` does all of this; [`memory`] is what outlives it.
//!
//! [`bell`] is how others (webhooks, an operator) say that an image may have changed; [`adopt`] is what becomes of a finding: a
//! refresh at once, or one that waits for approval. Knows nothing of HTTP.

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

/// When to look, and when to adopt.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// `None`: only when it rings, and once at the start.
    pub ticks: Option<schedule::Schedule>,
    pub windows: windows::Windows,
    pub minimum_age: jiff::SignedDuration,
    /// After a refresh that failed, doubled each time.
    pub retry: std::time::Duration,
}
