//! The kit of those who write policies: a project to begin with, and how it becomes a component.
//!
//! Knows nothing of engines and daemons, nor how a policy decides.

pub mod project;
pub mod template;

mod need;
