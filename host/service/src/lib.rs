//! What a daemon does by itself: it keeps the refreshes under way, watches for updates, asks for approvals, notifies, takes webhooks,
//! counts, and recovers replacements that were left half done.

#![forbid(unsafe_code)]

pub mod approvals;
pub mod hooks;
pub mod metrics;
pub mod notify;
pub mod reconcile;
pub mod runs;
pub mod watch;
