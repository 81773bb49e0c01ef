//! The program `refit`. All of it is in the library, so that other programs can be it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    refit::cli::main()
}
