//! The program `refit`. The library has all of its code, so that other programs can run it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    refit::cli::main()
}
