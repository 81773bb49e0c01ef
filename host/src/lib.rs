//! Refit gives running containers a new image under a policy that can be swapped while the platform runs.
//!
//! In reading order:
//!
//! - [`image`], [`container`], [`grants`], [`secret`]: facts. No I/O, nothing async.
//! - [`engine`]: the container engine as a narrow set of verbs; [`registry`]: whose login is for whom, what a refusal means.
//! - [`recreate`]: the one way to replace a container: what the user asked for, the order of the steps, the way back.
//! - [`capabilities`]: what a policy can have done, for real or as a plan, behind grants and counts.
//! - [`journal`]: the host's own record of what was done.
//! - [`artifact`]: policies as people ship them: files, artifacts in registries, signatures.
//! - [`snapshot`]: what a policy saw at one moment, to decide over it again.
//! - [`policy`]: WebAssembly: loading a policy, calling it within its limits.
//! - [`generation`]: which policy is in use, which was before it, and the way from one to the next.
//! - [`refresh`]: one refresh, start to end, and its report; [`retention`]: what becomes of images that were replaced;
//!   [`image_records`]: what an engine forgets of them;
//!   [`history`]: what became of each refresh; [`runs`]: those of a daemon, while they run; [`metrics`]: all of it in numbers.
//! - [`reconcile`]: what a daemon does about replacements that were left half done.
//! - [`private`]: files for their owner alone; [`admin_token`]: the token that a daemon makes; [`child_environment`]: what the programs get that Refit runs; [`notify`]: who is told what came of them.
//! - [`watch`]: what finds out that there is something to refresh; [`hooks`]: what others say of it; [`approvals`]: what waits
//!   until a person says yes.
//! - [`author`]: the kit of those who write policies.
//! - [`selftest`]: hostile policies, and what the host must make of each.
//! - [`operations`]: which engine calls each of them needs.
//! - [`config`], [`setup`]: from a file and flags to a [`refresh::Refresher`].
//! - [`server`], [`daemon`], [`cli`]: the edges. Nobody inside names them.
//!
//! # Embedding
//!
//! A platform that wants no daemon of ours builds a [`refresh::Refresher`] and runs it:
//!
//! ```no_run
//! use refit::config::{self, Flags};
//! use refit::generation::start::Keep;
//! use refit::journal::no_events;
//! use refit::policy::Isolation;
//! use refit::refresh::{Mode, Request, Trigger};
//!
//! # async fn embedded() -> Result<(), Box<dyn std::error::Error>> {
//! let config = config::load(None, &Flags::default())?.config;
//! // Policies of others are better examined and compiled in a process of their own, see `Isolation::Process`.
//! let refresher = refit::setup::refresher(&config, Isolation::InProcess, Keep::Nothing).await.map_err(|error| error.sentence())?;
//! let request = Request { trigger: Trigger::Api, targets: vec!["hermes".into()], images: vec![], recreate: true, force: false };
//! let report = refresher.run(&request, Mode::Plan, no_events(), Default::default()).await?;
//! println!("{} containers to recreate", report.summary.would_recreate);
//! # Ok(())
//! # }
//! ```

// Allowed in one function, `policy::compile::Compiled::adopt`, which says why; tests/tests/tidy.rs counts.
#![deny(unsafe_code)]

pub use refit_capabilities as capabilities;
pub use refit_engine as engine;
pub use refit_history as history;
pub use refit_model as model;
pub use refit_recreate as recreate;
pub use refit_refresh as refresh;
pub use refit_registry as registry;
pub use refit_revisions as revisions;
pub use refit_sandbox as sandbox;
pub use refit_storage as storage;

pub mod admin_token;
pub mod approvals;
#[cfg(feature = "compiler")]
pub mod author;
pub mod cli;
pub mod config;
pub mod daemon;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hooks;
pub mod metrics;
pub mod notify;
pub mod reconcile;
pub mod runs;
#[cfg(feature = "compiler")]
pub mod selftest;
pub mod server;
pub mod setup;
pub mod watch;
