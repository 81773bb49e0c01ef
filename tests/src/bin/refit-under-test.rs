//! The real program, as the suites run it: cargo builds binaries for the tests of their own package only.
//!
//! Not called `refit`, because two packages of one workspace would then write the same file.

use std::process::ExitCode;

fn main() -> ExitCode {
    refit::cli::main()
}
