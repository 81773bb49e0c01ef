//! The kit of those who write policies: a project to begin with, how it becomes a component, and scenarios to try it out in.
//!
//! Knows nothing of engines and daemons, nor how a policy decides.

pub mod project;
pub mod scenario;
pub mod template;

mod need;
