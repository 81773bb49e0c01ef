//! The tools for policy authors: project templates, builds, and scenarios for testing.
//!
//! This crate does not depend on engines and daemons, nor on how a policy decides.

#![forbid(unsafe_code)]

pub mod project;
pub mod scenario;
pub mod selftest;
pub mod template;

mod prerequisite;
