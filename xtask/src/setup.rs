//! Gets what building takes and rustup does not bring. Each check is a look at the disk, so a second run costs nothing.
//!
//! Engine and registry are not here: the test kit finds or installs those when a test asks for them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Failed, step};

pub(crate) const WASM: &str = "wasm32-wasip2";

pub(crate) fn all() -> Result<(), Failed> {
    c_compiler()?;
    wasm_target()
}

/// ring has C in it, and rustc links through `cc`.
fn c_compiler() -> Result<(), Failed> {
    if is_there("cc") {
        return Ok(());
    }
    step(
        "getting a C compiler",
        Command::new("sh")
            .arg(root().join("xtask/cc"))
            .arg("--version"),
    )
}

/// The default policy is a component, and is built along with the host.
pub(crate) fn wasm_target() -> Result<(), Failed> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", WASM])
        .output();
    let folder = asked
        .ok()
        .and_then(|answer| String::from_utf8(answer.stdout).ok())
        .map(|text| PathBuf::from(text.trim()));
    if folder.is_some_and(|folder| folder.is_dir()) {
        return Ok(());
    }
    rustup(&["target", "add", WASM])
}

/// A part of the toolchain that a minimal installation lacks.
pub(crate) fn component(name: &str, program: &str) -> Result<(), Failed> {
    // rustup puts a program of that name there whether or not the component is installed; only it can tell.
    let works = Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|answer| answer.status.success());
    if works {
        return Ok(());
    }
    rustup(&["component", "add", name])
}

fn rustup(arguments: &[&str]) -> Result<(), Failed> {
    let what = arguments.join(" ");
    if !is_there("rustup") {
        return Err(
            Failed::new(format!("this toolchain lacks something, and there is no rustup to `{what}`"))
                .hint("install Rust with rustup (https://rustup.rs), or get the same from where your Rust came from"),
        );
    }
    step(
        &format!("rustup {what}"),
        Command::new("rustup").args(arguments),
    )
    .map_err(|failed| failed.hint("rustup fetches it from the network: can this machine reach it?"))
}

pub(crate) fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
