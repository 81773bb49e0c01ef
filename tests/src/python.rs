//! Python environments for the checkers that others wrote. Each is made once, from its `requirements.txt`, and kept in the user's
//! cache. Knows no checker.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::report::progress;

/// Fetching packages, over a slow network.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// A folder of programs, `python` among them, with what `requirements` lists. Another process that wants the same one waits.
pub async fn environment(requirements: &Path) -> anyhow::Result<PathBuf> {
    let wanted = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let name = requirements.parent().and_then(Path::file_name);
    let name = name.context("requirements.txt is in no folder")?;
    let parent = cache().join("refit/tools/python").join(name);
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let lock = File::create(parent.join("lock"))?;
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let (venv, installed) = (parent.join("venv"), parent.join("installed"));
    let programs = venv.join("bin");
    let complete = fs::read_to_string(&installed).is_ok_and(|text| text == wanted);
    if complete && programs.join("python").exists() {
        return Ok(programs);
    }
    progress(&format!(
        "installing the Python packages of {}",
        requirements.display()
    ));
    let _ = fs::remove_file(&installed);
    let mut python = Command::new("python3");
    python.args(["-m", "venv", "--clear"]).arg(&venv);
    output_within(&mut python, INSTALL_TIMEOUT).await.context(
        "python3 with its module `venv` is needed (`python3-venv` on Debian and Ubuntu)",
    )?;
    let mut pip = Command::new(programs.join("python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ])
    .arg("--requirement")
    .arg(requirements);
    output_within(&mut pip, INSTALL_TIMEOUT)
        .await
        .context("cannot fetch Python packages from PyPI: can this machine reach it?")?;
    fs::write(&installed, wanted)?;
    Ok(programs)
}

/// What a command prints, if it succeeds within `limit`.
pub async fn output_within(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    command.kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output
        .with_context(|| format!("{command:?} did not end within {} s", limit.as_secs()))?
        .with_context(|| format!("cannot run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// The user's; without a home directory that of temporary files.
fn cache() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.unwrap_or_else(env::temp_dir)
}
