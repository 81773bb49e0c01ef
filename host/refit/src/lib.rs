//! Refit gives running containers a new image under a policy that can be swapped while the platform runs.
//!
//! This crate is the program, and the facade for embedders: each module below is a separate crate under `host/`. In reading order,
//! the lowest first:
//!
//! - [`model`]: the shared types: containers, images, grants, requests, decisions, reports, events. No I/O, nothing async.
//! - [`storage`]: files on disk. [`registry`]: credentials and digests. [`engine`]: the operations of a container engine.
//! - [`recreate`]: the replacement of a container: intent, order of the steps, rollback, recovery.
//! - [`capabilities`]: the operations that a policy can use, on an engine, in a plan, or on a snapshot.
//! - [`sandbox`]: WebAssembly: it loads a policy and calls it within limits.
//! - [`revisions`]: the active policy, the previous ones, and swapping them; artifacts and signatures.
//! - [`refresh`]: one refresh, from its request to its report. [`history`]: the record of all of them.
//! - [`service`]: the background work of a daemon: it watches, asks for approvals, notifies, takes webhooks, counts, recovers.
//! - [`server`]: the HTTP interface. `author`: scenarios, templates and the self-test, with the feature `compiler`.
//! - [`config`], [`setup`]: from a file and flags to a [`refresh::Refresher`]. [`daemon`], [`cli`]: the edges.
//!
//! # Embedding
//!
//! A platform without our daemon builds a [`refresh::Refresher`] and runs it:
//!
//! ```no_run
//! use refit::config::{self, Flags};
//! use refit::model::event::no_events;
//! use refit::model::request::{Mode, Request, Trigger};
//! use refit::revisions::start::Persistence;
//! use refit::sandbox::Isolation;
//!
//! # async fn embedded() -> Result<(), Box<dyn std::error::Error>> {
//! let config = config::load(None, &Flags::default())?.config;
//! // Untrusted policies should be examined and compiled in a separate process, see `Isolation::Process`.
//! let refresher = refit::setup::refresher(&config, Isolation::InProcess, Persistence::Nothing).await.map_err(|error| error.sentence())?;
//! let request = Request { trigger: Trigger::Api, targets: vec!["hermes".into()], images: vec![], recreate: true, force: false };
//! let report = refresher.run(&request, Mode::Plan, no_events(), Default::default()).await?;
//! println!("{} containers to recreate", report.summary.would_recreate);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "compiler")]
pub use refit_author as author;
pub use refit_capabilities as capabilities;
pub use refit_engine as engine;
pub use refit_history as history;
pub use refit_model as model;
pub use refit_recreate as recreate;
pub use refit_refresh as refresh;
pub use refit_registry as registry;
pub use refit_revisions as revisions;
pub use refit_sandbox as sandbox;
pub use refit_server as server;
pub use refit_service as service;
pub use refit_storage as storage;

pub mod cli;
pub mod config;
pub mod daemon;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod setup;
