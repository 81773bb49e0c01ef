//! A scenario: an engine as it might be, a question, and what a policy is expected to make of it. One file, for a review.
//!
//! `document` is the file, `run` asks a policy, `expect` compares.

mod document;
mod expect;
mod run;

pub use self::document::{Scenario, ScenarioError, read_all};
pub use self::expect::Mismatch;
pub use self::run::{Ran, RanStep, run};

#[cfg(test)]
mod tests;
