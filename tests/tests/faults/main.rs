//! No single fault loses a container: every engine call of a refresh, gone wrong in every way, then `refit recover`.
//!
//! ```text
//! cargo test -p refit-tests --test faults                            # a sample of 70 cases, another one each day
//! REFIT_FAULTS=all cargo test -p refit-tests --test faults           # the whole matrix
//! REFIT_FAULTS=all REFIT_FAULTS_SCENARIO=two-networks cargo test …   # one scenario of it
//! REFIT_FAULTS_CASE=replace:12:cut-after cargo test …                # one case; several with commas
//! ```
//!
//! `recovery` lets the recovery go wrong as well, in cases that are drawn.
//!
//! `REFIT_FAULTS_SEED` repeats a sample, `REFIT_FAULTS_SLOTS` is how many cases run at once. What is checked and how calls are
//! numbered is said in [`refit_tests::scenario`] and [`refit_tests::faulty`]; a line per case is in `faults.log` in cargo's
//! temporary folder. Runs two per core and waits most of the time: with many more at once the engine gets slower than Refit's
//! time limits, which would be a second fault. Such cases are run again.

mod calls;
mod matrix;
mod others;
mod proxy;
mod recovery;

use std::path::Path;

/// The real program.
fn refit() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_refit-under-test"))
}
