//! Builds the hostile guests of `refit selftest` (`selftest/build.rs`), and lists the projects of `refit policy new`
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
        .ancestors()
        .nth(2)
        .expect("the crate is in a workspace");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    if let Err(error) = selftest::build(&manifest, root, &out) {
        panic!("cannot build the hostile guests: {error:#}");
    }
    if let Err(error) = templates::build(&manifest, root, &out) {
        panic!("cannot list the templates of policies: {error}");
    }
}
