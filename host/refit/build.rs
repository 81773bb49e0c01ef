//! Sets linker options of the program.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Each pointer in the data of a position-independent program takes 24 bytes; packed, it takes next to nothing. The machine's
    // libc may be too old to read the packed form, so programs that it starts do not use it.
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
