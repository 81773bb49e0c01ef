//! Makes the hostile guests of `refit selftest` (`selftest/build.rs`) and lists the projects of `refit policy new`
//! (`templates/build.rs`).

use std::env;
use std::path::PathBuf;

#[path = "selftest/build.rs"]
mod selftest;
#[path = "templates/build.rs"]
mod templates;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest
        .parent()
        .expect("the crate is in a workspace")
        .to_owned();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    // What is for authors of policies goes with the compiler.
    if env::var_os("CARGO_FEATURE_COMPILER").is_some() {
        if let Err(error) = selftest::build(&manifest, &root, &out) {
            panic!("cannot build the hostile guests: {error:#}");
        }
        if let Err(error) = templates::build(&manifest, &root, &out) {
            panic!("cannot list the templates of policies: {error}");
        }
    }
    // Each pointer in the data of a program that can be moved takes 24 bytes of it, and so packed next to nothing. Not where a
    // libc of the machine's starts the program: it may be too old to know.
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
