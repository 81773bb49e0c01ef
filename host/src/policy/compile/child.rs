//! The compiler as a process of its own.
//!
//! A compiler that is fed bytes nobody vouches for can be made to take hours or all of the memory, and cannot be interrupted
//! from within. So it runs in a process of its own (`refit compile-policy`, hidden), which limits itself before it looks at a
//! byte, and which its parent kills when time is up. Both make their engine by [`configuration`], or one would refuse the
//! other's work.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasmtime::Engine;

use super::{COMPILED_BYTES_MAX, CompileLimits, SUBCOMMAND};
use crate::policy::limits::COMPONENT_BYTES_MAX;
use crate::policy::{Metering, configuration};
use crate::printable::printable;

/// What the compiler process may say on its way out, or of a component that is wrong.
const COMPILER_SAYS_BYTES_MAX: usize = 8 << 10;

/// How far the wall clock may run beyond the computing time: a busy machine must not fail a swap.
const PATIENCE: u32 = 4;

pub(super) enum Answer {
    Code(Bytes),
    /// The component's fault.
    Invalid(String),
    /// The process ended before it had an answer. How, for people.
    Ended(String),
}

const CODE: u8 = 0;
const INVALID: u8 = 1;

pub(super) async fn run(
    program: &PathBuf,
    limits: CompileLimits,
    metering: Metering,
    bytes: &Bytes,
) -> std::io::Result<Answer> {
    let mut command = tokio::process::Command::new(program);
    command
        .arg(SUBCOMMAND)
        .args(["--cpu-seconds", &limits.computing.as_secs().to_string()])
        .args(["--memory-bytes", &limits.memory_bytes.to_string()])
        .args((metering == Metering::Instructions).then_some("--metering"))
        // It has no use for a token or a login, so it does not get any.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    command.arg0("refit");
    let mut child = command.spawn()?;
    let gone = || std::io::Error::other("a pipe to it is missing");
    let mut stdin = child.stdin.take().ok_or_else(gone)?;
    let stdout = child.stdout.take().ok_or_else(gone)?;
    let stderr = child.stderr.take().ok_or_else(gone)?;
    let asking = async move {
        // A process that ended early has closed its end; how it ended says more than the broken pipe.
        let _ = stdin.write_all(&(bytes.len() as u64).to_le_bytes()).await;
        let _ = stdin.write_all(bytes).await;
    };
    let answering = async {
        let mut answer = Vec::new();
        let most = COMPILED_BYTES_MAX as u64 + 2;
        stdout.take(most).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let saying = async {
        let mut said = Vec::new();
        let most = COMPILER_SAYS_BYTES_MAX as u64;
        let _ = stderr.take(most).read_to_end(&mut said).await;
        said
    };
    let whole = async {
        let (_, answer, said) = tokio::join!(asking, answering, saying);
        Ok::<_, std::io::Error>((answer?, said, child.wait().await?))
    };
    let wall = limits.computing * PATIENCE;
    let Ok(ended) = tokio::time::timeout(wall, whole).await else {
        return Ok(Answer::Ended(format!(
            "it took more than {} s",
            wall.as_secs()
        )));
    };
    let (mut answer, said, status) = ended?;
    if !status.success() || answer.is_empty() {
        return Ok(Answer::Ended(end_of(status, &said, limits)));
    }
    if answer.len() > COMPILED_BYTES_MAX + 1 {
        return Ok(Answer::Ended(format!(
            "the compiled code is larger than {} MiB",
            COMPILED_BYTES_MAX >> 20
        )));
    }
    let kind = answer.remove(0);
    Ok(match kind {
        CODE => Answer::Code(Bytes::from(answer)),
        _ => Answer::Invalid(printable(
            &String::from_utf8_lossy(&answer),
            COMPILER_SAYS_BYTES_MAX,
        )),
    })
}

/// How the process ended, by its status; what it printed last is only quoted.
fn end_of(status: ExitStatus, said: &[u8], limits: CompileLimits) -> String {
    let said = String::from_utf8_lossy(said);
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    let quoted = last.map_or_else(String::new, |line| {
        format!(" (it said: {})", printable(line.trim(), 300))
    });
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        let signal = status
            .signal()
            .and_then(rustix::process::Signal::from_named_raw);
        // At the soft limit the system sends XCPU, at the hard one KILL; memory that is not to be had makes Rust abort.
        if signal == Some(rustix::process::Signal::XCPU) {
            return format!(
                "it took more than {} s of computing time",
                limits.computing.as_secs()
            );
        }
        if signal == Some(rustix::process::Signal::ABORT) {
            return format!(
                "it needed more than {} MiB of memory, or more stack than there is{quoted}",
                limits.memory_bytes >> 20
            );
        }
    }
    format!("the compiler ended with {status}{quoted}")
}

/// What the compiler process does: it limits itself, reads a component from stdin, compiles it and writes the code to stdout.
///
/// The component comes after its length (8 bytes, little-endian), the answer after a byte that says which kind it is.
pub fn compile_from_stdin(limits: CompileLimits, metering: Metering) -> std::io::Result<()> {
    restrict(limits)?;
    let mut stdin = std::io::stdin().lock();
    let mut length = [0; 8];
    stdin.read_exact(&mut length)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > COMPONENT_BYTES_MAX {
        return Err(std::io::Error::other("the component is too large"));
    }
    let mut bytes = vec![0; length];
    stdin.read_exact(&mut bytes)?;
    let compiled = Engine::new(&configuration(metering))
        .and_then(|engine| engine.precompile_component(&bytes));
    let mut stdout = std::io::stdout().lock();
    match compiled {
        Ok(code) => {
            stdout.write_all(&[CODE])?;
            stdout.write_all(&code)?;
        }
        Err(cause) => {
            stdout.write_all(&[INVALID])?;
            stdout.write_all(format!("{cause:#}").as_bytes())?;
        }
    }
    stdout.flush()
}

#[cfg(unix)]
fn restrict(limits: CompileLimits) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let seconds = limits.computing.as_secs().max(1);
    let most = |resource, soft: u64, hard: u64| {
        let limit = Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        };
        setrlimit(resource, limit)
    };
    most(Resource::Cpu, seconds, seconds + 1)?;
    // It writes to a pipe and nowhere else, and leaves no copy of itself behind.
    most(Resource::Fsize, 0, 0)?;
    most(Resource::Core, 0, 0)?;
    // Not every system has this one; the time is limited on all.
    let _ = most(Resource::As, limits.memory_bytes, limits.memory_bytes);
    Ok(())
}

#[cfg(not(unix))]
fn restrict(_: CompileLimits) -> std::io::Result<()> {
    Ok(())
}
