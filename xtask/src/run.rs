//! Runs programs, and reports their duration. It is independent of the tasks.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A failed step: what failed, the cause, and a hint.
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

    /// The sentence alone, for a failure that does not end the task.
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

/// Print a line for a person on stderr, since stdout belongs to the program that a task runs.
pub(crate) fn say(text: &str) {
    // A closed stderr is no reason to fail.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Print `what`, run the command with our stdin and output, and print its duration.
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

/// Run a command like [`step`], but end it after `limit`. For commands that wait for a network.
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

/// The cargo that runs us, with a build directory that survives the checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.env("CARGO_TARGET_DIR", target_directory());
    // Variables of the outer cargo about `xtask`. A crate whose build reads them (ring) would be built again, with all that depends
    // on it, on each change between `cargo test` and `cargo xtask test`.
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

/// The build directory: `CARGO_TARGET_DIR`, or a folder in the user's cache.
pub(crate) fn target_directory() -> PathBuf {
    match set("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => cache_directory().join("target"),
    }
}

/// Our folder in the user's cache.
pub(crate) fn cache_directory() -> PathBuf {
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    // Without a home there is no cache, so use the folder of cargo's own output.
    cache.map_or_else(PathBuf::new, |cache| cache.join("refit"))
}

fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}
