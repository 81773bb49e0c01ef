//! Says how the program is linked.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Each pointer in the data of a program that can be moved takes 24 bytes of it, and so packed next to nothing. Not where a
    // libc of the machine's starts the program: it may be too old to know.
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
