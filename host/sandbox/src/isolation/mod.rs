//! Where the bytes of components are parsed and compiled: in this process, or in a process of its own with limits.
//!
//! Parsers and compilers have the largest attack surface of all that a component reaches. Small components can make them take hours
//! or gigabytes, and nothing interrupts them from within. So the daemon does neither: it starts a *worker*, its own program with the
//! hidden subcommand [`WORKER_SUBCOMMAND`]. The worker limits its time and memory, gives up all system calls that it does not need
//! (`restrict`), and only then reads the component (`worker`). The daemon bounds what it reads of the answer, and kills a worker that
//! takes too long (`process`).

mod process;
mod restrict;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
#[cfg(feature = "compiler")]
use wasmtime::Engine;

use self::process::Answer;
#[cfg(feature = "compiler")]
use super::compile::Compiled;
use super::examine::{Examined, Facts};
use super::{DEFAULT_POLICY, Metering, PolicyError, error};

pub use self::worker::run_worker;

/// The subcommand that is the worker.
pub const WORKER_SUBCOMMAND: &str = "policy-worker";

/// What a worker does with a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Say whether it is valid, and what it imports and exports.
    Examine,
    /// Make machine code of it.
    Compile(Metering),
}

/// Where components are parsed and compiled.
#[derive(Clone, Debug, Default)]
pub enum Isolation {
    /// In this process, without a limit. For a program that embeds the library and loads its own policies only.
    #[default]
    InProcess,
    /// In a process of its own. `program` has the subcommand [`WORKER_SUBCOMMAND`], which calls [`run_worker`].
    Process {
        program: PathBuf,
        limits: WorkerLimits,
    },
}

/// What a worker may use.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
    /// Computing time of all its threads together.
    pub computing: Duration,
    /// Address space.
    pub memory_bytes: u64,
}

impl Isolation {
    /// The program that runs now, as its own worker.
    pub fn this_program(limits: WorkerLimits) -> Self {
        // The very file that was started, also after an upgrade has put another one at its path: that one would be another compiler,
        // and this process could not use its work.
        let itself = PathBuf::from("/proc/self/exe");
        let program = if itself.exists() {
            itself
        } else {
            std::env::current_exe().unwrap_or_else(|_| "refit".into())
        };
        Self::Process { program, limits }
    }

    /// Whether the bytes are a valid component, and what it says of itself. Nothing of it is compiled, and nothing of it runs.
    pub(super) async fn examine(
        &self,
        bytes: Bytes,
        origin: &str,
    ) -> Result<Examined, PolicyError> {
        error::admit(&bytes, origin)?;
        let invalid = |cause| PolicyError::Invalid {
            origin: origin.to_owned(),
            cause,
        };
        let facts = match self {
            // The built-in policy is part of this program, and trusted as it is.
            Self::Process { program, limits } if bytes != DEFAULT_POLICY => {
                let answer = process::run(program, *limits, Job::Examine, &bytes).await;
                let answer = answer.map_err(|cause| PolicyError::Examiner {
                    origin: origin.to_owned(),
                    cause,
                })?;
                match answer {
                    Answer::Done(facts) => {
                        serde_json::from_slice(&facts).map_err(|error| PolicyError::Examiner {
                            origin: origin.to_owned(),
                            cause: format!("its answer is invalid: {error}"),
                        })?
                    }
                    Answer::Invalid(cause) => return Err(invalid(cause)),
                }
            }
            Self::Process { .. } | Self::InProcess => {
                let component = bytes.clone();
                // Tens of milliseconds for the largest, during which no thread of ours may wait.
                match tokio::task::spawn_blocking(move || Facts::read(&component)).await {
                    Ok(facts) => facts.map_err(invalid)?,
                    Err(panicked) => return Err(invalid(panicked.to_string())),
                }
            }
        };
        Ok(Examined::new(bytes, origin, facts))
    }

    /// Machine code of a component.
    #[cfg(feature = "compiler")]
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
                let compiling = move || Compiled::compile(&engine, &bytes);
                match tokio::task::spawn_blocking(compiling).await {
                    Ok(compiled) => compiled.map_err(|cause| PolicyError::invalid(origin, &cause)),
                    Err(panicked) => Err(PolicyError::Invalid {
                        origin: origin.to_owned(),
                        cause: panicked.to_string(),
                    }),
                }
            }
            Self::Process { program, limits } => {
                match process::run(program, *limits, Job::Compile(metering), bytes).await {
                    Ok(Answer::Done(code)) => Ok(Compiled::from_worker(code)),
                    Ok(Answer::Invalid(cause)) => Err(PolicyError::Invalid {
                        origin: origin.to_owned(),
                        cause,
                    }),
                    Err(cause) => Err(PolicyError::Compiler {
                        origin: origin.to_owned(),
                        cause,
                    }),
                }
            }
        }
    }
}
