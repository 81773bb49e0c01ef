//! A scenario: an engine's state, a request, and the expected decisions of a policy, in one file for a review.
//!
//! `document` has the file format, `run` calls the policy, and `expect` compares.

mod document;
mod expect;
mod run;

pub use self::document::{Scenario, ScenarioError, read_all};
pub use self::expect::Mismatch;
pub use self::run::{Ran, RanStep, run};

#[cfg(test)]
mod tests;
