//! Compiling a component: where, and within what.
//!
//! A compiler that is fed bytes nobody vouches for can be made to take hours or all of the memory, and cannot be interrupted
//! from within. So it runs in a process of its own (`refit compile-policy`, hidden), which limits itself before it looks at a
//! byte, and which its parent kills when time is up. Both make their engine by [`super::configuration`], or one would refuse the
//! other's work. What was compiled once is kept in [`super::cache`].

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::limits::COMPONENT_BYTES_MAX;
use super::{Metering, PolicyError, configuration};

/// The subcommand that is the compiler process.
pub const SUBCOMMAND: &str = "compile-policy";

/// Machine code of a component. A Python policy of 18 MB made 34 MB, a JavaScript one of 12 MB 36 MB.
pub(super) const COMPILED_BYTES_MAX: usize = 256 << 20;

/// What the compiler process may say on its way out, or of a component that is wrong.
const COMPILER_SAYS_BYTES_MAX: usize = 8 << 10;

/// How far the wall clock may run beyond the computing time: a busy machine must not fail a swap.
const PATIENCE: u32 = 4;

/// Where components are compiled.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// In this process, without a limit. For a program that embeds the library and loads its own policies only.
    InProcess,
    /// In a process of its own. `program` understands [`SUBCOMMAND`] as [`compile_from_stdin`] does it.
    Child {
        program: PathBuf,
        limits: CompileLimits,
    },
}

/// What the compiler process may use.
#[derive(Clone, Copy, Debug)]
pub struct CompileLimits {
    /// Of all its threads together.
    pub computing: Duration,
    /// Address space.
    pub memory_bytes: u64,
}

impl Compiler {
    /// The program that runs now, as its own compiler.
    pub fn this_program(limits: CompileLimits) -> Self {
        // The very file that was started, also where an upgrade has put another one at its path: that would be another
        // compiler, and its work of no use to us.
        let itself = PathBuf::from("/proc/self/exe");
        let program = if itself.exists() {
            itself
        } else {
            std::env::current_exe().unwrap_or_else(|_| "refit".into())
        };
        Self::Child { program, limits }
    }

    pub(super) async fn compile(
        &self,
        engine: &Engine,
        metering: Metering,
        bytes: &Bytes,
        origin: &str,
    ) -> Result<Compiled, PolicyError> {
        match self {
            Self::InProcess => {
                let (engine, bytes) = (engine.clone(), bytes.clone());
                let compiled =
                    tokio::task::spawn_blocking(move || engine.precompile_component(&bytes)).await;
                match compiled {
                    Ok(code) => Ok(Compiled(Bytes::from(
                        code.map_err(|cause| PolicyError::invalid(origin, &cause))?,
                    ))),
                    Err(panicked) => Err(PolicyError::Invalid {
                        origin: origin.to_owned(),
                        cause: panicked.to_string(),
                    }),
                }
            }
            Self::Child { program, limits } => {
                let failed = |cause| PolicyError::Compiler {
                    origin: origin.to_owned(),
                    cause,
                };
                match in_child(program, *limits, metering, bytes).await {
                    Ok(Answer::Code(code)) => Ok(Compiled(code)),
                    Ok(Answer::Invalid(cause)) => Err(PolicyError::Invalid {
                        origin: origin.to_owned(),
                        cause,
                    }),
                    Ok(Answer::Ended(how)) => Err(failed(how)),
                    Err(error) => Err(failed(format!("the compiler did not run: {error}"))),
                }
            }
        }
    }
}

/// Machine code for a component. Made by our own compiler, or read from a cache whose seal held; by nothing else.
pub(super) struct Compiled(Bytes);

impl Compiled {
    /// Of bytes whose seal was found whole: they are what [`Compiled::code`] gave to the cache.
    pub(super) fn unsealed(code: Bytes) -> Self {
        Self(code)
    }

    pub(super) fn code(&self) -> &Bytes {
        &self.0
    }

    /// Makes it callable. Whether it was compiled by this version of wasmtime for this machine and these settings, wasmtime
    /// looks at itself; whether it was tampered with, it does not.
    #[expect(
        unsafe_code,
        reason = "machine code cannot be checked, only traced to where it came from"
    )]
    pub(super) fn adopt(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: `deserialize` asks for bytes that a wasmtime compiler has put out and nobody has changed since. A `Compiled`
        // is made in three places: from `precompile_component` here; from the pipe of our own program, started by us to do
        // the same; from a cache entry that carries an HMAC over exactly these bytes, under a key that only this user can
        // read. Nothing that an operator or a guest hands in becomes one (`error::admit` refuses precompiled files), and the
        // bytes are in our memory, where no other process changes them between the check and the use.
        unsafe { Component::deserialize(engine, &self.0) }
    }
}

enum Answer {
    Code(Bytes),
    /// The component's fault.
    Invalid(String),
    /// The process ended before it had an answer. How, for people.
    Ended(String),
}

const CODE: u8 = 0;
const INVALID: u8 = 1;

async fn in_child(
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
        _ => Answer::Invalid(super::printable(
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
        format!(" (it said: {})", super::printable(line.trim(), 300))
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
