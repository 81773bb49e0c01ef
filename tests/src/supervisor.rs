//! Servers that live exactly as long as this process, however it ends.
//!
//! `Drop` is no help against SIGKILL and does not run for statics. So every server is the child of a small shell script,
//! `supervisor.sh`, whose stdin is a pipe held here: when this process is gone the kernel closes the pipe, and the script stops
//! the server and removes its directory. Knows nothing of engines or registries.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::watch;

use crate::report::progress;

const SCRIPT: &str = include_str!("supervisor.sh");
/// A Unix socket's path may have 107 bytes, and a `TMPDIR` can be longer than that.
const PARENT: &str = "/tmp";
/// How long to wait for a lock. Its holder may be a whole test suite in another checkout.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long a server may take to end after SIGTERM. An engine gives its containers 10 s, then needs a few to unmount.
const GRACE: Duration = Duration::from_secs(20);
/// The script's own work after the server's end: bridges, and ten attempts at removing the directory.
const AFTER_GRACE: Duration = Duration::from_secs(15);
/// How much of a log goes into an error message.
const LOG_LINES: usize = 15;

/// What to keep alive.
pub(crate) struct ProcessSpec<'a> {
    /// Names the server in messages, and its directory.
    pub(crate) name: &'a str,
    pub(crate) directory: PathBuf,
    /// Held as long as the server lives: one private engine per machine.
    pub(crate) lock: Option<&'a Path>,
    pub(crate) environment: Vec<(&'a str, String)>,
    pub(crate) command: Vec<String>,
}

/// A server that is being kept alive.
#[derive(Debug)]
pub(crate) struct ManagedProcess {
    name: String,
    directory: PathBuf,
    // Closing it is what ends the server.
    _hold: ChildStdin,
    script: Child,
    state: watch::Receiver<State>,
}

/// What the script has said so far.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Waiting for the lock, perhaps.
    Preparing,
    Started,
    Ended(String),
}

/// A fresh directory for a server. From `ManagedProcess::start` on the script removes it.
pub(crate) fn directory(name: &str) -> anyhow::Result<PathBuf> {
    let directory = tempfile::Builder::new()
        .prefix(&format!("refit-{name}-"))
        .tempdir_in(PARENT)
        .with_context(|| format!("cannot create a directory for the {name} in {PARENT}"))?;
    Ok(directory.keep())
}

impl ManagedProcess {
    pub(crate) fn start(keep: ProcessSpec<'_>) -> anyhow::Result<Self> {
        let script = keep.directory.join("supervisor.sh");
        fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
        let mut command = Command::new("sh");
        command
            .arg(&script)
            .arg(&keep.directory)
            .arg(keep.lock.unwrap_or(Path::new("-")))
            .args([PATIENCE.as_secs().to_string(), GRACE.as_secs().to_string()])
            // Should the script itself be killed, the server must not outlive it.
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(&keep.command)
            .envs(keep.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not ours: whoever reads our stderr to its end would wait for the script too.
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C must reach the test, and the script must survive it.
            .process_group(0);
        let mut script = command.spawn().with_context(|| {
            let _ = fs::remove_dir_all(&keep.directory);
            format!("cannot run `sh` to keep the {}", keep.name)
        })?;
        let hold = script.stdin.take().expect("stdin was asked to be a pipe");
        let output = script.stdout.take().expect("stdout was asked to be a pipe");

        let (sender, state) = watch::channel(State::Preparing);
        let name = keep.name.to_owned();
        let listener_name = name.clone();
        // A thread and not a task: each test has its own runtime, and this outlives all of them.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match line.split_once(' ').unwrap_or((&line, "")) {
                    ("waiting", _) => progress(&format!(
                        "another private {listener_name} runs on this machine; waiting for it to end, at most {PATIENCE:?}"
                    )),
                    ("started", _) => _ = sender.send_replace(State::Started),
                    (_, reason) => _ = sender.send_replace(State::Ended(reason.to_owned())),
                }
            }
        });
        Ok(Self {
            name,
            directory: keep.directory,
            _hold: hold,
            script,
            state,
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the server wrote to stdout.
    pub(crate) fn output(&self) -> PathBuf {
        self.directory.join("stdout.log")
    }

    /// Awaits `ready`, which starts counting once the lock is ours; ends early if the server does.
    pub(crate) async fn until<T>(
        &self,
        limit: Duration,
        ready: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let mut state = self.state.clone();
        let begun = state.wait_for(|state| *state != State::Preparing);
        // The script gives up first, and says why.
        let begun = tokio::time::timeout(PATIENCE + GRACE, begun).await;
        let begun = begun.with_context(|| {
            format!(
                "cannot start the {}: its supervisor says nothing",
                self.name
            )
        })?;
        drop(
            begun
                .with_context(|| format!("cannot start the {}: its supervisor died", self.name))?,
        );
        tokio::select! {
            answer = tokio::time::timeout(limit, ready) => match answer {
                Ok(answer) => answer.with_context(|| format!("cannot reach the {}; its log ends with\n{}", self.name, self.last_log_lines())),
                Err(_) => bail!("cannot reach the {} within {limit:?}; its log ends with\n{}", self.name, self.last_log_lines()),
            },
            why = self.ended() => Err(anyhow!("cannot start the {}: it ended ({why}); its log ends with\n{}", self.name, self.last_log_lines())),
        }
    }

    /// Awaits the end of the server and says what is known about it.
    async fn ended(&self) -> String {
        let mut state = self.state.clone();
        match state
            .wait_for(|state| matches!(state, State::Ended(_)))
            .await
            .as_deref()
        {
            Ok(State::Ended(reason)) => reason.clone(),
            Ok(State::Preparing | State::Started) | Err(_) => "its supervisor is gone".to_owned(),
        }
    }

    /// Kills the server, as it is. What it left stays until [`ManagedProcess::stop`].
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        let directory = self.directory.display().to_string();
        for entry in fs::read_dir("/proc").context("cannot list processes")? {
            let id = entry?.file_name().to_string_lossy().into_owned();
            // It may have ended since it was listed. The script and `unshare` name the directory too.
            let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.starts_with("dockerd ") && command.contains(&directory) {
                let killed = Command::new("kill").args(["-KILL", &id]).status();
                killed.with_context(|| format!("cannot kill the {}", self.name))?;
            }
        }
        Ok(())
    }

    /// Stops the server and removes what it left, and waits for both.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let Self {
            name,
            _hold: hold,
            mut script,
            ..
        } = self;
        drop(hold);
        let end = tokio::task::spawn_blocking(move || script.wait());
        tokio::time::timeout(GRACE + AFTER_GRACE, end)
            .await
            .with_context(|| {
                format!(
                    "cannot stop the {name}: no end after {:?}",
                    GRACE + AFTER_GRACE
                )
            })?
            .context("cannot wait for a supervisor")?
            .with_context(|| format!("cannot wait for the supervisor of the {name}"))?;
        Ok(())
    }

    fn last_log_lines(&self) -> String {
        let path = self.directory.join("stderr.log");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let lines: Vec<_> = text.lines().collect();
                lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
            }
            Err(error) => format!("(no log at {}: {error})", path.display()),
        }
    }
}
