//! Installs the engine of another Debian release, so that tests and benchmarks can run on it.
//!
//! debootstrap installs a whole system into a folder, whose `/usr` the test kit mounts to start an engine. The user's cache keeps
//! it: a second call costs nothing. Remove the folder to get a newer engine.

use std::fs;
use std::io::{self, Write as _, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run::{Failed, cache_directory, say, step};
use crate::setup;

/// The engine, and the programs that it calls: for its network rules, and for unpacking.
const PACKAGES: &str = "docker.io iptables xz-utils";

/// The folder with the engine of this release.
pub(crate) fn install(release: &str) -> Result<PathBuf, Failed> {
    let plain = !release.is_empty() && release.bytes().all(|byte| byte.is_ascii_lowercase());
    if !plain {
        return Err(
            Failed::new(format!("`{release}` is not the name of a Debian release"))
                .hint("it is a word such as `trixie`"),
        );
    }
    let systems = cache_directory().join("engines");
    let system = systems.join(release);
    if engine(&system).exists() {
        return Ok(system);
    }
    if !setup::is_there("debootstrap") {
        setup::apt("debootstrap", "what makes a Debian system in a folder")?;
    }
    // An unfinished installation is removed.
    let unfinished = systems.join(format!("{release}.unfinished"));
    remove(&unfinished)?;
    let made = run_debootstrap(release, &unfinished).and_then(|()| {
        fs::rename(&unfinished, &system).map_err(|error| {
            Failed::new(format!(
                "cannot rename {} to {}: {error}",
                unfinished.display(),
                system.display()
            ))
        })
    });
    if made.is_err() {
        let _ = remove(&unfinished);
    }
    made?;
    step(
        "asking which engine that is",
        Command::new("chroot")
            .arg(&system)
            .args(["dockerd", "--version"])
            .stdout(stderr()),
    )?;
    Ok(system)
}

fn engine(system: &Path) -> PathBuf {
    system.join("usr/sbin/dockerd")
}

fn remove(folder: &Path) -> Result<(), Failed> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failed::new(format!(
            "cannot remove {}: {error}",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

fn run_debootstrap(release: &str, folder: &Path) -> Result<(), Failed> {
    // debootstrap knows each release that is older than itself, and installs others like `sid`.
    let known = Path::new("/usr/share/debootstrap/scripts").join(release);
    let mut debootstrap = Command::new("timeout");
    debootstrap
        .args(["15m", "debootstrap", "--variant=minbase", release])
        .arg(folder);
    if !known.exists() {
        debootstrap.args([mirror()?.as_str(), "sid"]);
    }
    let script = format!("apt-get install -y -qq --no-install-recommends {PACKAGES}");
    let mut install = Command::new("timeout");
    install
        .args(["15m", "chroot"])
        .arg(folder)
        .args(["sh", "-c", &script])
        .env("DEBIAN_FRONTEND", "noninteractive");
    run_with_log(
        &format!("making a Debian {release} in {}", folder.display()),
        &mut debootstrap,
        folder,
    )?;
    run_with_log("installing docker.io there", &mut install, folder)?;
    if engine(folder).exists() {
        return Ok(());
    }
    Err(Failed::new(format!(
        "Debian {release} has no `dockerd` in its docker.io"
    )))
}

/// Run a command whose output goes to a file next to the folder, because both write a line for each package.
fn run_with_log(what: &str, command: &mut Command, folder: &Path) -> Result<(), Failed> {
    let log = folder.with_extension("log");
    let cannot = |error| Failed::new(format!("cannot write {}: {error}", log.display()));
    if let Some(systems) = folder.parent() {
        fs::create_dir_all(systems).map_err(cannot)?;
    }
    let file = fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(cannot)?;
    let too = file.try_clone().map_err(cannot)?;
    step(what, command.stdin(Stdio::null()).stdout(file).stderr(too)).map_err(|failed| {
        failed.hint(format!(
            "all that it said is in {}; it takes root, and a mirror of Debian's packages that has this release",
            log.display()
        ))
    })
}

/// The mirror of this machine's own packages.
fn mirror() -> Result<String, Failed> {
    let asked = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["Created-By: Packages", "Origin: Debian"])
        .output();
    let text = asked
        .ok()
        .and_then(|answer| String::from_utf8(answer.stdout).ok())
        .unwrap_or_default();
    // The archive of security fixes is separate, and lacks the base system.
    let mirror = text.lines().find(|line| !line.contains("security"));
    mirror.map(str::to_owned).ok_or_else(|| {
        Failed::new("cannot find out where this machine's packages come from")
            .hint("it takes a Debian whose apt has been told of a mirror")
    })
}

/// Print the folder for a person, and on stdout for a program.
pub(crate) fn print_folder(system: &Path) {
    if let Err(error) = writeln!(stdout(), "{}", system.display()) {
        say(&format!("xtask: nobody hears where it is: {error}"));
    }
}
