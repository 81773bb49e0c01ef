//! Fidelity: a container comes back as it was, on another image, or is not touched. On a real engine.
//!
//! `docs/recreate-cases.md` lists the cases and names the tests. [`bench`] is what every test works at, [`between`] an
//! engine that does what this one does not, and [`changes`] what differs between before and after; [`fields`] says what an
//! engine's interface has, so that a field nobody thought of fails a test. What single calls that fail do is for the suite of
//! faults; what a policy decides and how a report reads is for the end-to-end suite.

// One document says all that a host can be asked for.
#![recursion_limit = "256"]

mod bench;
mod changes;
mod engine_faults;
mod fields;

mod concurrency;
mod config;
mod dependents;
mod host_config;
mod image_store;
mod interference;
mod left_down;
mod leftovers;
mod networks;
mod newer_engines;
mod overlap;
mod permissions;
mod ports;
mod precondition;
mod proof;
mod recovery;
mod restart;
mod spelling;
mod state;
mod storage;
mod verified;
