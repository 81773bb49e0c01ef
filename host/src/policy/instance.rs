//! One call of a policy: a fresh store, its limits, and what the guest finds in it. Nothing outlives the call.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::limits;
use super::log::GuestLog;
use super::state::PolicyState;
use crate::capabilities::{CallError, Capabilities, PulledImage, Recreated, Recreation};
use crate::container::{Container, Listed};
use crate::engine::{EngineError, PullError};
use crate::grants::Grants;
use crate::image::ImageRef;
use crate::recreate::RecreateError;

/// How many calls of a batch are under way at once.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    pub inspects: usize,
    pub pulls: usize,
    pub recreates: usize,
}

/// What the host lends to one call.
pub struct Session {
    pub capabilities: Arc<dyn Capabilities>,
    pub grants: Arc<Grants>,
    pub concurrency: Concurrency,
    pub state: PolicyState,
}

pub(super) struct HostState {
    pub(super) table: ResourceTable,
    pub(super) grants: Arc<Grants>,
    pub(super) concurrency: Concurrency,
    pub(super) state: PolicyState,
    pub(super) log: GuestLog,
    capabilities: Arc<dyn Capabilities>,
    wasi: WasiCtx,
    output: MemoryOutputPipe,
    limits: Limits,
}

impl HostState {
    pub(super) fn new(session: Session, policy: &str) -> Self {
        let output = MemoryOutputPipe::new(limits::OUTPUT_BYTES_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::HANDLES_MAX);
        Self {
            table,
            grants: session.grants,
            concurrency: session.concurrency,
            state: session.state,
            log: GuestLog::new(policy),
            capabilities: session.capabilities,
            // No files, no environment, no arguments, no network: only what the standard library of a guest cannot do without.
            wasi: WasiCtx::builder()
                .stdout(output.clone())
                .stderr(output.clone())
                .allow_tcp(false)
                .allow_udp(false)
                .allow_ip_name_lookup(false)
                .build(),
            output,
            limits: Limits::default(),
        }
    }

    pub(super) fn capabilities(&self) -> Arc<dyn Capabilities> {
        self.capabilities.clone()
    }

    /// What the guest printed goes to its log when the call has ended, however it ended.
    pub(super) fn take_output(&mut self) {
        let printed = self.output.contents();
        for line in String::from_utf8_lossy(&printed).lines() {
            self.log.printed(line);
        }
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Growth beyond a limit traps, rather than tell the guest: a guest whose allocator fails only says `unreachable`.
#[derive(Debug, Default)]
struct Limits {
    memory_bytes: usize,
}

/// The guest wanted more memory or larger tables than it may have.
#[derive(Debug, thiserror::Error)]
#[error("it asked for {asked} {of}, and {limit} is the limit")]
pub(super) struct Exceeded {
    asked: usize,
    of: &'static str,
    limit: usize,
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let asked = self
            .memory_bytes
            .saturating_add(desired.saturating_sub(current));
        if asked > limits::MEMORY_BYTES_MAX {
            return Err(Exceeded {
                asked,
                of: "bytes of memory",
                limit: limits::MEMORY_BYTES_MAX,
            }
            .into());
        }
        self.memory_bytes = asked;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > limits::TABLE_ELEMENTS_MAX {
            return Err(Exceeded {
                asked: desired,
                of: "table elements",
                limit: limits::TABLE_ELEMENTS_MAX,
            }
            .into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        limits::INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        limits::MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        limits::TABLES_MAX
    }
}

pub(super) fn store(engine: &Engine, state: HostState) -> Store<HostState> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limits);
    store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
    store.set_max_component_handles(limits::HANDLES_MAX);
    // A plain deadline runs also while the guest waits for a three-minute pull. This one is charged at a check, and only a
    // guest that computes comes to a check; a tick that passed while it waited costs it one at the next.
    let mut ticks_left =
        Duration::from_secs(limits::COMPUTE_SECONDS_MAX).as_millis() / limits::TICK.as_millis();
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        if ticks_left == 0 {
            return Ok(UpdateDeadline::Interrupt);
        }
        ticks_left -= 1;
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(tokio::task::yield_now()),
        ))
    });
    store
}

/// What `describe` and `validate-config` find: nothing is lent to them.
pub(super) struct Nothing;

impl Nothing {
    fn denied<T, E>() -> Result<T, CallError<E>> {
        Err(CallError::Denied(
            "nothing is lent while a policy is loaded".into(),
        ))
    }
}

#[async_trait]
impl Capabilities for Nothing {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        Self::denied()
    }

    async fn inspect(&self, _: &Listed) -> Result<Container, CallError<EngineError>> {
        Self::denied()
    }

    async fn pull(&self, _: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        Self::denied()
    }

    async fn recreate(&self, _: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        Self::denied()
    }
}
