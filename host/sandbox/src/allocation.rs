//! Where the memory of instances comes from: from the system, call by call, or from a pool that is reserved beforehand.
//!
//! A pool saves a call some system calls, and bounds how many run at once; docs/benchmarks.md says why it is not the default. What
//! a policy may have is the same: `limits` holds it to it, not the pool. The code that is compiled is the same too, so the
//! compiler process knows nothing of this.

use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::component::Linker;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::instance::HostState;
use super::limits::{
    INSTANCES_MAX, MEMORIES_MAX, MEMORY_BYTES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX,
};
use super::{Metering, bindings, configuration, tick, wasi};

/// Calls that a pool has room for at once. A further one waits for its turn, within its time.
///
/// Each reserves 4 GiB of addresses for each of [`MEMORIES_MAX`] memories, 256 GiB in all, of the 128 TiB that a process has on
/// most machines. A container or a service manager may allow it less (`ulimit -v`).
const CALLS_AT_ONCE: usize = 8;

/// What the host keeps of each instance for itself. Components that want more find no place in the pool.
const INSTANCE_BYTES: usize = 1 << 20;

/// Where the memory of instances comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// From the system, when a policy is called, and back to it.
    #[default]
    OnDemand,
    /// From a pool. Where there are not enough addresses for one, and for components that do not fit, like
    /// [`OnDemand`](Allocation::OnDemand).
    Pooled,
}

/// An engine, and what it offers to guests.
pub(super) struct Machine {
    pub(super) engine: Engine,
    pub(super) linker: Linker<HostState>,
}

/// A machine whose instances come from a pool.
pub(super) struct Pool {
    pub(super) machine: Machine,
    pub(super) turns: Arc<Semaphore>,
}

impl Machine {
    pub(super) fn new(configuration: &Config) -> wasmtime::Result<Self> {
        let engine = Engine::new(configuration)?;
        let mut linker = Linker::new(&engine);
        wasi::link(&mut linker)?;
        bindings::RefreshPolicy::add_to_linker::<_, wasmtime::component::HasSelf<_>>(
            &mut linker,
            |state: &mut HostState| state,
        )?;
        tick(&engine);
        Ok(Self { engine, linker })
    }
}

impl Pool {
    /// `None` where it cannot be had: making the engine reserves all of its addresses, so that is the test.
    pub(super) fn probe() -> Option<Self> {
        match Machine::new(
            configuration(Metering::Off).allocation_strategy(strategy(CALLS_AT_ONCE)),
        ) {
            Ok(machine) => Some(Self {
                machine,
                turns: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            }),
            Err(cause) => {
                tracing::warn!(
                    "policies are called without a pool, which this machine has no room for: {cause:#}"
                );
                None
            }
        }
    }
}

/// A call has its turn before it takes anything, and `limits` ends it before it takes more than its share, so the pool is never
/// found empty.
fn strategy(calls: usize) -> InstanceAllocationStrategy {
    let count = |of_each: usize| u32::try_from(calls * of_each).unwrap_or(u32::MAX);
    let each = |of_each: usize| u32::try_from(of_each).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(count(1))
        .total_core_instances(count(INSTANCES_MAX))
        .total_memories(count(MEMORIES_MAX))
        .total_tables(count(TABLES_MAX))
        .total_stacks(count(1))
        .max_core_instances_per_component(each(INSTANCES_MAX))
        .max_memories_per_component(each(MEMORIES_MAX))
        .max_memories_per_module(each(MEMORIES_MAX))
        .max_tables_per_component(each(TABLES_MAX))
        .max_tables_per_module(each(TABLES_MAX))
        .max_memory_size(MEMORY_BYTES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_core_instance_size(INSTANCE_BYTES)
        .max_component_instance_size(INSTANCE_BYTES)
        // A policy is called a few times a minute: what is left of the last call is nothing to keep.
        .max_unused_warm_slots(0);
    InstanceAllocationStrategy::Pooling(pool)
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;

    /// A pool that the machine could not have is asked for: a petabyte.
    #[test]
    fn a_pool_that_is_not_to_be_had_is_an_error_and_no_abort() {
        let made =
            Machine::new(configuration(Metering::Off).allocation_strategy(strategy(1 << 15)));
        assert!(made.is_err());
    }

    /// Otherwise what the compiler process makes, or the cache keeps, would load with one of them only.
    #[test]
    fn both_run_the_same_code() {
        let hash = |configuration: &Config| {
            let mut hasher = DefaultHasher::new();
            let engine = Engine::new(configuration).unwrap();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let pooled = hash(configuration(Metering::Off).allocation_strategy(strategy(1)));
        assert_eq!(hash(&configuration(Metering::Off)), pooled);
    }
}
