//! Runs programs, and says what takes time. Knows no chore.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A step that did not come about: what was to be done, why not, and what a person can do.
#[derive(Debug)]
pub(crate) struct Failed {
    error: String,
    hints: Vec<String>,
}

impl Failed {
    pub(crate) fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            hints: Vec::new(),
        }
    }

    /// The sentence alone, for a failure that a chore goes on after.
    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for hint in &self.hints {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// A line for a person. On stderr, since stdout belongs to the program that a chore runs.
pub(crate) fn say(text: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says `what`, runs the command with our own stdin and output, and says how long it took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<(), Failed> {
    say(&format!("xtask: {what}"));
    let began = Instant::now();
    let ended = command.status().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        Failed::new(format!("cannot run `{program}`: {error}"))
    })?;
    let short = what.split(" (").next().unwrap_or(what);
    let took = format!("{:.1} s", began.elapsed().as_secs_f64());
    if !ended.success() {
        return Err(Failed::new(format!(
            "{short}: failed after {took} ({ended})"
        )));
    }
    say(&format!("xtask: {short}: done in {took}"));
    Ok(())
}

/// As [`step`], but ends the command after `limit`. For what waits for a network.
pub(crate) fn step_within(
    what: &str,
    command: &mut Command,
    limit: Duration,
) -> Result<(), Failed> {
    const PAUSE: Duration = Duration::from_millis(100);
    say(&format!("xtask: {what}"));
    let short = what.split(" (").next().unwrap_or(what);
    let began = Instant::now();
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |problem: String| Failed::new(format!("{short}: {problem}"));
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("cannot run `{program}`: {error}")))?;
    while began.elapsed() < limit {
        let ended = child
            .try_wait()
            .map_err(|error| failed(format!("cannot wait for `{program}`: {error}")))?;
        let took = began.elapsed().as_secs_f64();
        match ended {
            Some(status) if status.success() => {
                say(&format!("xtask: {short}: done in {took:.1} s"));
                return Ok(());
            }
            Some(status) => return Err(failed(format!("failed after {took:.1} s ({status})"))),
            #[expect(
                clippy::disallowed_methods,
                reason = "the standard library waits for a child without a limit or not at all"
            )]
            None => std::thread::sleep(PAUSE),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(failed(format!("not done after {} s", limit.as_secs())))
}

/// The cargo that runs us, with the build directory that outlives a checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.env("CARGO_TARGET_DIR", target_directory());
    // What the outer cargo tells `xtask` about `xtask`. A crate whose build looks at these (ring) would be built anew, with all
    // that depends on it, each time that somebody changes between `cargo test` and `cargo xtask test`.
    for (name, _) in env::vars_os() {
        let about_us = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
            "CARGO_PRIMARY_",
        ];
        let text = name.to_string_lossy();
        if about_us.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// `CARGO_TARGET_DIR`, or a folder in the user's cache.
pub(crate) fn target_directory() -> PathBuf {
    match set("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => cache_directory().join("target"),
    }
}

/// Ours, in the user's cache.
pub(crate) fn cache_directory() -> PathBuf {
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    // No home, no cache: where cargo's own output would go.
    cache.map_or_else(PathBuf::new, |cache| cache.join("refit"))
}

fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}
