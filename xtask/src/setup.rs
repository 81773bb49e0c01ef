//! Installs the build requirements that rustup lacks. Each check only looks at the disk, so a second run costs nothing.
//!
//! Engine and registry are not here: the test kit finds or installs those when a test needs them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Failed, step};

pub(crate) const WASM: &str = "wasm32-wasip2";

pub(crate) fn all() -> Result<(), Failed> {
    c_compiler()?;
    wasm_target()
}

/// ring contains C code, and rustc links with `cc`.
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

/// The default policy is a component, which is built with the host.
pub(crate) fn wasm_target() -> Result<(), Failed> {
    target(WASM)
}

/// The requirements of a static program: Rust's target, and a C compiler for the crates with C code (ring, SQLite).
pub(crate) fn musl(triple: &str) -> Result<(), Failed> {
    target(triple)?;
    let architecture = triple.split('-').next().unwrap_or(triple);
    let ours = architecture == env::consts::ARCH;
    let compiler = match ours {
        true => "musl-gcc".to_owned(),
        false => format!("{architecture}-linux-musl-gcc"),
    };
    if is_there(&compiler) {
        return Ok(());
    }
    if !ours {
        return Err(Failed::new(format!("there is no `{compiler}` on this machine"))
            .hint("install a cross compiler for musl, whichever it comes from: it has to be on the path by that name"));
    }
    apt(
        "musl-tools",
        "a C compiler that links no libc of the machine's",
    )
}

/// Install a Debian package, if the user is root.
pub(crate) fn apt(package: &str, what: &str) -> Result<(), Failed> {
    let can = is_there("apt-get") && Path::new("/etc/debian_version").exists();
    if !can {
        return Err(Failed::new(format!("this machine lacks {what}")).hint(format!(
            "install what Debian calls `{package}`; as root on Debian or Ubuntu this is done for you"
        )));
    }
    // The script waits for another apt on this machine, but not for a hanging mirror.
    let script = format!(
        "apt-get update -qq && apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 {package}"
    );
    step(
        &format!("installing {package} with apt-get"),
        Command::new("timeout")
            .args(["15m", "sh", "-c", &script])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(std::process::Stdio::null())
            .stdout(std::io::stderr()),
    )
    .map_err(|failed| failed.hint(format!("install `{package}` by hand, and run again")))
}

fn target(triple: &str) -> Result<(), Failed> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", triple])
        .output();
    let folder = asked
        .ok()
        .and_then(|answer| String::from_utf8(answer.stdout).ok())
        .map(|text| PathBuf::from(text.trim()));
    if folder.is_some_and(|folder| folder.is_dir()) {
        return Ok(());
    }
    rustup(&["target", "add", triple])
}

/// Install a part of the toolchain that a minimal installation lacks.
pub(crate) fn component(name: &str, program: &str) -> Result<(), Failed> {
    // rustup installs a proxy program of that name even without the component, so running it is the only check.
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
