//! Compiling a component: where, and within what.
//!
//! A program without a compiler (the feature `compiler`) has what another Refit compiled and [`super::cache`] kept.

#[cfg(feature = "compiler")]
mod child;

#[cfg(feature = "compiler")]
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::{Metering, PolicyError};

#[cfg(feature = "compiler")]
pub use self::child::compile_from_stdin;

/// The subcommand that is the compiler process.
pub const SUBCOMMAND: &str = "compile-policy";

/// Machine code of a component. A Python policy of 18 MB made 34 MB, a JavaScript one of 12 MB 36 MB.
pub(super) const COMPILED_BYTES_MAX: usize = 256 << 20;

/// Where components are compiled.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// Nowhere.
    #[cfg_attr(not(feature = "compiler"), default)]
    Absent,
    /// In this process, without a limit. For a program that embeds the library and loads its own policies only.
    #[cfg(feature = "compiler")]
    #[default]
    InProcess,
    /// In a process of its own. `program` understands [`SUBCOMMAND`] as [`compile_from_stdin`] does it.
    #[cfg(feature = "compiler")]
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
    /// The program that runs now, as its own compiler. One without a compiler has none.
    #[cfg(not(feature = "compiler"))]
    pub fn this_program(_: CompileLimits) -> Self {
        Self::Absent
    }

    /// The program that runs now, as its own compiler.
    #[cfg(feature = "compiler")]
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

    #[cfg_attr(
        not(feature = "compiler"),
        expect(unused_variables, reason = "there is nobody to give them to")
    )]
    pub(super) async fn compile(
        &self,
        engine: &Engine,
        metering: Metering,
        bytes: &Bytes,
        origin: &str,
    ) -> Result<Compiled, PolicyError> {
        match self {
            Self::Absent => Err(PolicyError::NoCompiler {
                origin: origin.to_owned(),
            }),
            #[cfg(feature = "compiler")]
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
            #[cfg(feature = "compiler")]
            Self::Child { program, limits } => {
                let failed = |cause| PolicyError::Compiler {
                    origin: origin.to_owned(),
                    cause,
                };
                match child::run(program, *limits, metering, bytes).await {
                    Ok(child::Answer::Code(code)) => Ok(Compiled(code)),
                    Ok(child::Answer::Invalid(cause)) => Err(PolicyError::Invalid {
                        origin: origin.to_owned(),
                        cause,
                    }),
                    Ok(child::Answer::Ended(how)) => Err(failed(how)),
                    Err(error) => Err(failed(format!("the compiler did not run: {error}"))),
                }
            }
        }
    }
}

/// Says that it cannot be done here.
#[cfg(not(feature = "compiler"))]
pub fn compile_from_stdin(_: CompileLimits, _: Metering) -> std::io::Result<()> {
    Err(std::io::Error::other("this build of Refit has no compiler"))
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
