//! One call of a policy: a fresh store, its limits, and the state that the guest works with. The call drops all of it at its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use refit_capabilities::{CallError, Capabilities, PulledImage, Recreated, Recreation};
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerSummary};
use refit_model::grants::Grants;
use refit_model::image::ImageRef;
use refit_recreate::RecreateError;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::bindings::refit::policy::host::Level;
use super::captured_output::CapturedOutput;
use super::log::GuestLog;
use super::state::PolicyState;
use super::{Cost, limits, wasi};

/// The number of concurrent calls of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    pub inspects: usize,
    pub pulls: usize,
    pub recreates: usize,
}

/// The time that a policy sees, in `host.now` and in WASI. It stands still during a call: a refresh takes longer than a plan, and a
/// policy must not be able to distinguish them.
#[derive(Clone, Copy, Debug)]
pub struct Clock(pub jiff::Timestamp);

impl Clock {
    /// Seconds since the Unix epoch.
    pub(super) fn now(self) -> u64 {
        u64::try_from(self.0.as_second()).unwrap_or_default()
    }
}

/// The host's resources for one call.
pub struct Session {
    pub capabilities: Arc<dyn Capabilities>,
    pub grants: Arc<Grants>,
    pub concurrency: Concurrency,
    pub state: PolicyState,
    pub clock: Clock,
}

pub(super) struct HostState {
    pub(super) clock: Clock,
    pub(super) table: ResourceTable,
    pub(super) grants: Arc<Grants>,
    pub(super) concurrency: Concurrency,
    pub(super) state: PolicyState,
    pub(super) log: GuestLog,
    pub(super) spent: HostCallBudget,
    /// The names of all containers that the policy has received. It may decide about these.
    pub(super) lent: BTreeSet<String>,
    /// The container names in each call of `recreate`.
    pub(super) waves: Vec<Vec<String>>,
    capabilities: Arc<dyn Capabilities>,
    wasi: WasiCtx,
    stdout: CapturedOutput,
    stderr: CapturedOutput,
    growth: Growth,
}

impl HostState {
    pub(super) fn new(session: Session, policy: &str) -> Self {
        let (stdout, stderr) = (CapturedOutput::default(), CapturedOutput::default());
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits::HANDLES_MAX);
        Self {
            clock: session.clock,
            table,
            grants: session.grants,
            concurrency: session.concurrency,
            state: session.state,
            log: GuestLog::new(policy),
            spent: HostCallBudget::default(),
            lent: BTreeSet::new(),
            waves: Vec::new(),
            capabilities: session.capabilities,
            wasi: wasi::context(session.clock, stdout.clone(), stderr.clone()),
            stdout,
            stderr,
            growth: Growth::default(),
        }
    }

    pub(super) fn capabilities(&self) -> Arc<dyn Capabilities> {
        self.capabilities.clone()
    }

    pub(super) fn cost(&self, instructions: Option<u64>) -> Cost {
        Cost {
            instructions,
            memory_bytes: self.growth.memory_bytes,
            host_calls: self.spent.calls,
            host_bytes: self.spent.bytes,
        }
    }

    /// Move the guest's output to its log when the call has ended, in whatever way.
    pub(super) fn take_output(&mut self) {
        for (write_printed, level) in [(&self.stdout, Level::Info), (&self.stderr, Level::Warn)] {
            let (bytes, dropped) = write_printed.take();
            for line in String::from_utf8_lossy(&bytes).lines() {
                self.log.write_printed(level, line);
            }
            self.log.count_dropped_output(dropped);
        }
    }
}

/// Counts resources that cost the guest nothing and the host something, over one call of a policy. wasmtime limits a single host
/// call; this limits a million small ones.
#[derive(Debug, Default)]
pub(super) struct HostCallBudget {
    calls: u64,
    bytes: usize,
    lists: u32,
    state_writes: u32,
}

impl HostCallBudget {
    /// Charge one host call, at its beginning.
    pub(super) fn call(&mut self) -> Result<(), Exceeded> {
        self.calls(1)
    }

    /// Charge the calls of a batch: each entry counts as one. The journal has the refused ones too.
    pub(super) fn calls(&mut self, count: usize) -> Result<(), Exceeded> {
        self.calls = self.calls.saturating_add(count as u64);
        if self.calls > limits::HOST_CALLS_MAX {
            return Err(Exceeded {
                asked: usize::try_from(self.calls).unwrap_or(usize::MAX),
                of: "calls of its host",
                limit: usize::try_from(limits::HOST_CALLS_MAX).unwrap_or(usize::MAX),
            });
        }
        Ok(())
    }

    /// Charge text in either direction, or data that the host keeps for the guest.
    pub(super) fn text(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limits::HOST_BYTES_MAX {
            return Err(Exceeded {
                asked: self.bytes,
                of: "bytes exchanged with its host",
                limit: limits::HOST_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// Charge a container list. The refusal is a value and no trap, because a policy can do without one more list or write.
    pub(super) fn list(&mut self) -> Result<(), String> {
        take(&mut self.lists, limits::LISTS_MAX).map_err(|most| {
            format!("the containers are listed at most {most} times in one refresh")
        })
    }

    pub(super) fn state_write(&mut self) -> Result<(), String> {
        take(&mut self.state_writes, limits::STATE_WRITES_MAX).map_err(|most| {
            format!("a policy has a number of writes in one call of at most {most}")
        })
    }
}

fn take(used: &mut u32, most: u32) -> Result<(), u32> {
    if *used == most {
        return Err(most);
    }
    *used += 1;
    Ok(())
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Limits memory growth. Growth beyond a limit traps here, because a guest whose allocator fails would only report `unreachable`.
#[derive(Debug, Default)]
struct Growth {
    memory_bytes: usize,
}

/// The error of a guest that exceeds a limit.
#[derive(Debug, thiserror::Error)]
#[error("it asked for {asked} {of}, and {limit} is the limit")]
pub(super) struct Exceeded {
    pub(super) asked: usize,
    pub(super) of: &'static str,
    pub(super) limit: usize,
}

impl ResourceLimiter for Growth {
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

/// Create the store of one call. `compute` is the time that the guest may compute.
pub(super) fn store(engine: &Engine, state: HostState, compute: Duration) -> Store<HostState> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.growth);
    store.set_hostcall_fuel(limits::HOSTCALL_BYTES_MAX);
    store.set_max_component_handles(limits::HANDLES_MAX);
    // A plain deadline would also run while the guest waits for a three-minute pull. This one counts at each check, and only a
    // computing guest reaches a check; the ticks during a wait cost it one at the next check.
    let mut ticks_left = compute.as_millis() / limits::TICK.as_millis();
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

/// The capabilities in `describe` and `validate-config`: none.
pub(super) struct NoCapabilities;

impl NoCapabilities {
    fn denied<T, E>() -> Result<T, CallError<E>> {
        Err(CallError::Denied(
            "nothing is lent while a policy is loaded".into(),
        ))
    }
}

#[async_trait]
impl Capabilities for NoCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        Self::denied()
    }

    async fn inspect(&self, _: &ContainerSummary) -> Result<Container, CallError<EngineError>> {
        Self::denied()
    }

    async fn pull(&self, _: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        Self::denied()
    }

    async fn recreate(&self, _: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        Self::denied()
    }
}
