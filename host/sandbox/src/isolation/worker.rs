//! The worker: it restricts itself, reads a component from stdin, and writes its answer to stdout.
//!
//! The input is the component's length (8 bytes, little-endian) and the component. The answer is a byte for its kind, followed by
//! the facts as JSON, the machine code, or a message.

use std::io::{Error, Read as _, Result, Write as _};

use super::process::{DONE, INVALID};
use super::{Job, WorkerLimits, restrict};
#[cfg(feature = "compiler")]
use crate::Metering;
use crate::examine::Facts;
use crate::limits::COMPONENT_BYTES_MAX;

/// Do one job. This restricts the process permanently, so the caller does nothing afterwards, and has started no thread before.
pub fn run_worker(job: Job, limits: WorkerLimits) -> Result<()> {
    restrict::limit_resources(limits)?;
    restrict::limit_system_calls();
    let bytes = read_component()?;
    let answer = match job {
        Job::Examine => match Facts::read(&bytes) {
            Ok(facts) => Ok(serde_json::to_vec(&facts)?),
            Err(cause) => Err(cause),
        },
        #[cfg(feature = "compiler")]
        Job::Compile(metering) => compile(metering, &bytes),
        #[cfg(not(feature = "compiler"))]
        Job::Compile(_) => return Err(Error::other("this build of Refit has no compiler")),
    };
    let mut stdout = std::io::stdout().lock();
    match answer {
        Ok(answer) => {
            stdout.write_all(&[DONE])?;
            stdout.write_all(&answer)?;
        }
        Err(cause) => {
            stdout.write_all(&[INVALID])?;
            stdout.write_all(cause.as_bytes())?;
        }
    }
    stdout.flush()
}

fn read_component() -> Result<Vec<u8>> {
    let mut stdin = std::io::stdin().lock();
    let mut length = [0; 8];
    stdin.read_exact(&mut length)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > COMPONENT_BYTES_MAX {
        return Err(Error::other("the component is too large"));
    }
    let mut bytes = vec![0; length];
    stdin.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Compile with the configuration of the daemon's engine, which refuses other code.
#[cfg(feature = "compiler")]
fn compile(metering: Metering, bytes: &[u8]) -> std::result::Result<Vec<u8>, String> {
    wasmtime::Engine::new(&crate::configuration(metering))
        .and_then(|engine| engine.precompile_component(bytes))
        .map_err(|cause| format!("{cause:#}"))
}
