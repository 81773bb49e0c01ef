//! The kit of those who write policies: a project to begin with, how it becomes a component, and scenarios to try it out in.
//!
//! Knows nothing of engines and daemons, nor how a policy decides.

#![forbid(unsafe_code)]

pub mod project;
pub mod scenario;
pub mod selftest;
pub mod template;

mod prerequisite;
