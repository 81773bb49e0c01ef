//! Builds the default policy (`plugin/workspace`) for `wasm32-wasip2` with the cargo that runs this script, and passes its path to
//! the crate, so that `refit` works without a policy file.
//!
//! The build has a separate target directory, because the outer cargo holds the lock of the workspace's. All flavours (debug,
//! release, clippy) share it, so that each does not build a separate one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const PACKAGE: &str = "refit-policy-workspace";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest
        .ancestors()
        .nth(2)
        .expect("the crate is in a workspace")
        .to_owned();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    // <target>/<profile>/build/<package>-<hash>/out
    let target = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR is that deep")
        .join("policy");
    for path in [
        "plugin/sdk/src",
        "plugin/sdk/Cargo.toml",
        "plugin/workspace/src",
        "plugin/workspace/Cargo.toml",
        "wit",
        "Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }

    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .current_dir(&root)
        .arg("build")
        .args(["--package", PACKAGE, "--lib"]);
    cargo
        .args(["--target", "wasm32-wasip2", "--profile", "policy"])
        .arg("--target-dir")
        .arg(&target);
    // The outer cargo sets these for the host: flags, wrappers (clippy), the target.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let of_cargo = name.starts_with("CARGO_")
            && !matches!(
                name.as_str(),
                "CARGO_HOME" | "CARGO_NET_OFFLINE" | "CARGO_TERM_COLOR"
            );
        let of_rustc = matches!(
            name.as_str(),
            "RUSTFLAGS"
                | "RUSTDOCFLAGS"
                | "RUSTC_WRAPPER"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "TARGET"
                | "HOST"
                | "PROFILE"
                | "OPT_LEVEL"
                | "DEBUG"
        );
        if of_cargo || of_rustc {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", without_paths(&root));
    let built = cargo.status().expect("cargo can be run").success();
    assert!(
        built,
        "cannot build the default policy; is its target there? `rustup target add wasm32-wasip2`"
    );

    let component = target
        .join("wasm32-wasip2/policy")
        .join(PACKAGE.replace('-', "_"))
        .with_extension("wasm");
    // A separate copy: another flavour may rebuild the shared file while this crate is being compiled.
    let copy = out.join("policy.wasm");
    fs::copy(&component, &copy).expect("the component was just built");
    println!("cargo::rustc-env=DEFAULT_POLICY_WASM={}", copy.display());
}

/// Replace the paths of this machine in the component, so that another machine embeds the same bytes. If several prefixes fit,
/// rustc takes the last one.
fn without_paths(root: &Path) -> String {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut prefixes = vec![];
    if let Some(home) = home.and_then(|home| fs::canonicalize(home).ok()) {
        prefixes.push((home, "/cargo"));
    }
    if let Ok(root) = fs::canonicalize(root) {
        prefixes.push((root, "/refit"));
    }
    let flags = prefixes
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    flags.collect::<Vec<_>>().join("\u{1f}")
}
