//! Gets the two programs a fresh Debian or Ubuntu lacks, once, and says so.
//!
//! Knows packages, not what they are for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, bail};

use crate::report::progress;

/// Two threads that miss something must not both start apt.
static INSTALLING: Mutex<()> = Mutex::new(());
/// Another apt on this machine (unattended upgrades, say) is waited for this long, in seconds.
const DPKG_LOCK_SECONDS: u32 = 300;
/// All of apt. A slow mirror takes minutes for docker.io's 100 MB; past this it is stuck. In `timeout`'s notation.
const APT_LIMIT: &str = "15m";

/// Makes sure that each program is there; installs its package if not. Blocking: may take minutes.
pub fn ensure(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let _one_at_a_time = INSTALLING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let packages = packages.join(" ");
    if !is_root() || !Path::new("/etc/debian_version").exists() {
        bail!(
            "cannot find the programs the tests need on this machine: install {packages} (the names of Debian's packages), \
             or run the tests as root on Debian or Ubuntu, where they install them, or set DOCKER_HOST if the engine is what is missing"
        );
    }

    progress(&format!(
        "installing {packages} with apt-get, this takes a minute or two"
    ));
    let log = env::temp_dir().join(format!("refit-tests-apt-{}.log", std::process::id()));
    let script = format!(
        "apt-get update && apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout={DPKG_LOCK_SECONDS} {packages}"
    );
    let output =
        fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = Command::new("timeout")
        .args([APT_LIMIT, "sh", "-c", &script])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("cannot share apt's log file")?)
        .stderr(output)
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!(
            "cannot install {packages} ({status}): see {}; install them by hand and run again",
            log.display()
        );
    }
    let _ = fs::remove_file(&log);
    match missing.iter().find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => {
            bail!("cannot find `{program}` although {package} is installed: is /usr/sbin there?")
        }
        None => Ok(()),
    }
}

/// Where a program is. Looks into the system directories too: a user's PATH on Debian lacks them.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    // The second field of `Uid:` is the effective one. No libc, so the kernel is asked in text.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|line| line.split_whitespace().nth(1)) == Some("0")
}
