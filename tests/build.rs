//! Compiles `stamp`, the one program in every test image, and hands its path to the kit.
//!
//! It calls `rustc` itself: a cargo target would be linked dynamically, and the images have no libc.
//! `src/image.rs` embeds the result.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "stamp/stamp.rs";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var("RUSTC").expect("cargo sets RUSTC for build scripts");
    let target = env::var("TARGET").expect("cargo sets TARGET for build scripts");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    let program = out.join("stamp");

    let status = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "stamp",
            "--target",
            &target,
            "-O",
        ])
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "-C",
            "panic=abort",
            "-o",
        ])
        .arg(&program)
        .arg(source)
        .status()
        .unwrap_or_else(|e| {
            panic!("cannot run rustc to compile {source}: {e}; is the toolchain complete?")
        });
    assert!(
        status.success(),
        "cannot compile {source} as a static program ({status}); a linker and static C library are needed (`apt-get install gcc libc6-dev`)"
    );
    println!("cargo::rustc-env=STAMP_PROGRAM={}", program.display());
}
