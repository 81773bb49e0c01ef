//! The parts of the daemon that run without a client: running refreshes, the watcher, approvals, notifications, webhooks,
//! metrics, and the recovery of unfinished replacements.

#![forbid(unsafe_code)]

pub mod approvals;
pub mod hooks;
pub mod metrics;
pub mod notify;
pub mod reconcile;
pub mod runs;
pub mod watch;
