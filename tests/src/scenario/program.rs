//! The real program, run once: what it said, how it ended, and its death when a fault asks for it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

/// The longest a run may take: a stop that hangs is given up after half a minute, and putting back tries for some seconds; an engine
/// that is away is waited for.
const RUN: Duration = Duration::from_secs(240);
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Status(i32),
    /// By us, because a fault said so.
    Killed,
    /// By us, because it did not end.
    TooLong,
    /// By somebody else's signal.
    Signal,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Killed => f.write_str("SIGKILL, as planned"),
            Self::TooLong => write!(f, "SIGKILL after {RUN:?} without an end"),
            Self::Signal => f.write_str("a signal"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Run {
    pub ending: Ending,
    /// stdout, then stderr.
    pub said: String,
    pub took: Duration,
}

pub(super) struct Program<'a> {
    program: &'a Path,
    folder: &'a Path,
    config: PathBuf,
    text: String,
}

impl<'a> Program<'a> {
    pub(super) fn new(program: &'a Path, folder: &'a Path, text: String) -> Self {
        Self {
            program,
            folder,
            config: folder.join("refit.toml"),
            text,
        }
    }

    pub(super) fn program(&self) -> &'a Path {
        self.program
    }

    /// `kill_is_due` returns when it is to be killed.
    pub(super) async fn run(
        &self,
        arguments: &[&str],
        engine: &str,
        kill_is_due: impl Future<Output = ()>,
    ) -> anyhow::Result<Run> {
        fs::write(&self.config, &self.text)
            .with_context(|| format!("cannot write {}", self.config.display()))?;
        let (out, err) = (self.folder.join("stdout"), self.folder.join("stderr"));
        let file = |path: &Path| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        let began = Instant::now();
        let mut child = Command::new(self.program)
            .args(arguments)
            .args(["--engine", engine, "--log", "refit=info"])
            // Nothing of whoever runs the tests: neither logins nor another engine nor `REFIT_…`.
            .env_clear()
            .env("HOME", self.folder)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("REFIT_CONFIG", &self.config)
            .env("REFIT_STATE_DIR", self.folder.join("state"))
            .stdin(Stdio::null())
            .stdout(file(&out)?)
            .stderr(file(&err)?)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut kill_is_due = std::pin::pin!(kill_is_due);
        let ending = loop {
            if let Some(status) = child.try_wait().context("cannot wait for refit")? {
                break status.code().map_or(Ending::Signal, Ending::Status);
            }
            let killed = tokio::time::timeout(LOOK, &mut kill_is_due).await.is_ok();
            if killed || began.elapsed() > RUN {
                child.kill().context("cannot kill refit")?;
                child.wait().context("cannot wait for refit")?;
                break if killed {
                    Ending::Killed
                } else {
                    Ending::TooLong
                };
            }
        };
        let took = began.elapsed();
        let read = |path: &Path| {
            fs::read(path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default()
        };
        Ok(Run {
            ending,
            said: read(&out) + &read(&err),
            took,
        })
    }
}
