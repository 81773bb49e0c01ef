//! The place where components are parsed and compiled: in this process, or in a separate process with limits.
//!
//! Parsers and compilers have the largest attack surface that a component reaches. Small components can make them run for hours or
//! take gigabytes, and nothing interrupts them from within. So the daemon does neither: it starts a *worker*, which is the same
//! program with the hidden subcommand [`WORKER_SUBCOMMAND`]. The worker limits its time and memory, gives up all system calls that
//! it does not need (`restrict`), and only then reads the component (`worker`). The daemon limits the size of the answer, and kills
//! a worker that takes too long (`process`).

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

/// The subcommand that runs the worker.
pub const WORKER_SUBCOMMAND: &str = "policy-worker";

/// The task of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Check that the component is valid, and list its imports and exports.
    Examine,
    /// Compile the component to machine code.
    Compile(Metering),
}

/// The place where components are parsed and compiled.
#[derive(Clone, Debug, Default)]
pub enum Isolation {
    /// In this process, without limits. For a program that embeds the library and loads only its own policies.
    #[default]
    InProcess,
    /// In a separate process. `program` has the subcommand [`WORKER_SUBCOMMAND`], which calls [`run_worker`].
    Process {
        program: PathBuf,
        limits: WorkerLimits,
    },
}

/// The resources that a worker may use.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
    /// The computing time of all its threads together.
    pub computing: Duration,
    /// The address space.
    pub memory_bytes: u64,
}

impl Isolation {
    /// Use the running program as its own worker.
    pub fn this_program(limits: WorkerLimits) -> Self {
        // The exact file of this process, even after an upgrade has replaced the file at its path: the new file is another
        // compiler, and this process could not use its code.
        let itself = PathBuf::from("/proc/self/exe");
        let program = if itself.exists() {
            itself
        } else {
            std::env::current_exe().unwrap_or_else(|_| "refit".into())
        };
        Self::Process { program, limits }
    }

    /// Check that the bytes are a valid component, and list its facts. This compiles and runs nothing.
    pub(super) async fn examine(
        &self,
        bytes: Bytes,
        origin: &str,
    ) -> Result<Examined, PolicyError> {
        error::check_file_format(&bytes, origin)?;
        let invalid = |cause| PolicyError::Invalid {
            origin: origin.to_owned(),
            cause,
        };
        let facts = match self {
            // The built-in policy is part of this program, and is trusted.
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
                // This takes tens of milliseconds for the largest component, so it must not block an async thread.
                match tokio::task::spawn_blocking(move || Facts::read(&component)).await {
                    Ok(facts) => facts.map_err(invalid)?,
                    Err(panicked) => return Err(invalid(panicked.to_string())),
                }
            }
        };
        Ok(Examined::new(bytes, origin, facts))
    }

    /// Compile a component to machine code.
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
