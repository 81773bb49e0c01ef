//! The part of WASI that a standard library needs: clocks, randomness, streams, and the functions whose answer is "nothing":
//! arguments, environment, files, input.
//!
//! Sockets and HTTP are not linked, so a component that imports them does not load. Rust and C import sockets only if they use
//! them; Python imports everything, unless it is built with `componentize-py --stub-wasi`.

use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::{Deterministic, HostMonotonicClock, HostWallClock, WasiCtx, WasiView as _};

use super::captured_output::CapturedOutput;
use super::instance::{Clock, HostState};
use super::limits::RANDOM_BYTES_MAX;

/// The linked interfaces, without their versions.
const LINKED: &[&str] = &[
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:clocks/wall-clock",
    "wasi:clocks/monotonic-clock",
    "wasi:random/random",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:filesystem/types",
    "wasi:filesystem/preopens",
];

/// Whether the linker has an import of this name. Within `0.2` the linker accepts any version for any other.
pub(super) fn is_linked(import: &str) -> bool {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    LINKED.contains(&interface) && version.starts_with("0.2.")
}

pub(super) fn link(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    // Streams, clocks, randomness, standard input and output.
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(linker)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, |state| state.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, |state| {
        state.ctx().ctx.random()
    })?;
    cli::environment::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, HostState::filesystem)?;
    // A guest gets no descriptor to call these with, but its standard library imports them.
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, HostState::filesystem)
}

/// A context without files, environment, arguments and input.
pub(super) fn context(clock: Clock, stdout: CapturedOutput, stderr: CapturedOutput) -> WasiCtx {
    let mut builder = WasiCtx::builder();
    builder
        .wall_clock(Stopped(clock))
        .monotonic_clock(Stopped(clock))
        .secure_random(Deterministic::new(NOT_RANDOM.to_vec()))
        .insecure_random(Deterministic::new(NOT_RANDOM.to_vec()))
        .insecure_random_seed(u128::from_le_bytes(NOT_RANDOM))
        .stdout(stdout)
        .stderr(stderr)
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .build()
}

/// The repeated bytes in place of random ones, so that a policy decides the same each time. Any sixteen different bytes would do.
const NOT_RANDOM: [u8; 16] = *b"it is not random";

/// A WASI clock that shows the time of `host.now`.
struct Stopped(Clock);

impl HostWallClock for Stopped {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::from_secs(self.0.now())
    }
}

impl HostMonotonicClock for Stopped {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}
