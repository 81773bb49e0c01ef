//! The daemon's side of a worker: it starts the worker, sends the component, and limits the time and the size of the answer.

use std::path::Path;
use std::process::{ExitStatus, Stdio};

use bytes::Bytes;
use refit_model::printable::printable;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Job, WORKER_SUBCOMMAND, WorkerLimits};
use crate::Metering;
use crate::compile::COMPILED_BYTES_MAX;

/// The limit on a worker's error output, and on its message about an invalid component.
const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// The limit on the facts about a component. The largest example, Python's, has 15 KB.
const FACTS_BYTES_MAX: usize = 4 << 20;

/// The wall-clock limit as a multiple of the computing time, so that a busy machine does not make a swap fail.
const WALL_CLOCK_FACTOR: u32 = 4;

pub(super) enum Answer {
    Done(Bytes),
    /// The component is invalid, for this reason.
    Invalid(String),
}

/// The first byte of an answer.
pub(super) const DONE: u8 = 0;
pub(super) const INVALID: u8 = 1;

/// Let a worker do a job. The error says how the worker ended without an answer.
pub(super) async fn run(
    program: &Path,
    limits: WorkerLimits,
    job: Job,
    bytes: &Bytes,
) -> Result<Answer, String> {
    let limit = limits.computing * WALL_CLOCK_FACTOR;
    match tokio::time::timeout(limit, exchange(program, limits, job, bytes)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Err(format!("its process did not run: {error}")),
        Err(_) => Err(format!("it took more than {} s", limit.as_secs())),
    }
}

async fn exchange(
    program: &Path,
    limits: WorkerLimits,
    job: Job,
    bytes: &Bytes,
) -> std::io::Result<Result<Answer, String>> {
    let (name, is_metered, answer_bytes_max) = match job {
        Job::Examine => ("examine", false, FACTS_BYTES_MAX),
        Job::Compile(metering) => (
            "compile",
            metering == Metering::Instructions,
            COMPILED_BYTES_MAX,
        ),
    };
    let mut command = tokio::process::Command::new(program);
    command
        .args([WORKER_SUBCOMMAND, name])
        .args(["--cpu-seconds", &limits.computing.as_secs().to_string()])
        .args(["--memory-bytes", &limits.memory_bytes.to_string()])
        .args(is_metered.then_some("--metering"))
        // The worker needs no token or login, so it gets none.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    command.arg0("refit");
    let mut child = command.spawn()?;
    let missing = || std::io::Error::other("a pipe to it is missing");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let writing = async move {
        // If the process has ended early, this pipe is broken, and its exit status says more about that.
        let _ = stdin.write_all(&(bytes.len() as u64).to_le_bytes()).await;
        let _ = stdin.write_all(bytes).await;
    };
    let reading = async {
        let mut answer = Vec::new();
        let bound = answer_bytes_max as u64 + 2;
        stdout.take(bound).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let reading_errors = async {
        let mut text = Vec::new();
        let bound = MESSAGE_BYTES_MAX as u64;
        let _ = stderr.take(bound).read_to_end(&mut text).await;
        text
    };
    let ((), answer, errors) = tokio::join!(writing, reading, reading_errors);
    let (mut answer, status) = (answer?, child.wait().await?);
    if answer.len() > answer_bytes_max + 1 {
        return Ok(Err(format!(
            "its result is larger than {} MiB",
            answer_bytes_max >> 20
        )));
    }
    if !status.success() || answer.is_empty() {
        return Ok(Err(describe_end(status, &errors, limits)));
    }
    let kind = answer.remove(0);
    Ok(Ok(match kind {
        DONE => Answer::Done(Bytes::from(answer)),
        _ => Answer::Invalid(printable(
            &String::from_utf8_lossy(&answer),
            MESSAGE_BYTES_MAX,
        )),
    }))
}

/// Describe the end of the worker by its status, and quote its last line on stderr.
fn describe_end(status: ExitStatus, errors: &[u8], limits: WorkerLimits) -> String {
    let errors = String::from_utf8_lossy(errors);
    let mut lines = errors.lines().filter(|line| !line.trim().is_empty());
    // The line after it explains how to get a backtrace.
    let last = lines.rfind(|line| !line.starts_with("note: "));
    let quoted = last.map_or_else(String::new, |line| {
        format!(" (it said: {})", printable(line.trim(), 300))
    });
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;

        use rustix::process::Signal;
        let signal = status.signal().and_then(Signal::from_named_raw);
        // The kernel sends XCPU at the soft time limit, and KILL at the hard one.
        if signal == Some(Signal::XCPU) {
            return format!(
                "it took more than {} s of computing time",
                limits.computing.as_secs()
            );
        }
        // Rust aborts if an allocation fails. musl's abort ends with SEGV in a thread that may not signal itself.
        if signal == Some(Signal::ABORT) || signal == Some(Signal::SEGV) {
            return format!(
                "it needed more than {} MiB of memory, or more stack than there is{quoted}",
                limits.memory_bytes >> 20
            );
        }
    }
    format!("its process ended with {status}{quoted}")
}
