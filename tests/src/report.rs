//! The two ways the kit speaks to people. Nobody else in this crate prints, and the suites use the first.

#![expect(
    clippy::print_stderr,
    reason = "the test harness captures eprintln! with the test it belongs to"
)]

use std::io::Write;

/// A step that takes long, shown at once: written past the test harness, which would keep it until the test has failed.
pub fn progress(message: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stderr(), "refit-tests: {message}");
}

/// What a failed test leaves to look at, printed with that test's own output.
pub(crate) fn diagnosis(text: &str) {
    eprintln!("{text}");
}
