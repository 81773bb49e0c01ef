//! The allocation of the memory of instances: from the system for each call, or from a pool that is reserved in advance.
//!
//! A pool saves some system calls per policy call and limits the concurrent calls; docs/benchmarks.md says why it is not the
//! default. `limits` enforces a policy's limits, not the pool, so they are the same in both. The compiled code is the same too, so
//! the compiler process is independent of the choice.

use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::component::Linker;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::instance::HostState;
use super::limits::{
    INSTANCES_MAX, MEMORIES_MAX, MEMORY_BYTES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX,
};
use super::{Metering, bindings, configuration, tick, wasi};

/// The concurrent calls that a pool has room for. A further call waits for its turn, within its time limit.
///
/// Each reserves 4 GiB of addresses for each of [`MEMORIES_MAX`] memories, 256 GiB in all, of the 128 TiB that a process has on
/// most machines. A container or a service manager may allow less (`ulimit -v`).
const CONCURRENT_CALLS: usize = 8;

/// The host's own data for each instance. A component that needs more does not fit into the pool.
const INSTANCE_BYTES: usize = 1 << 20;

/// How the memory of instances is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// Allocate from the system at each call of a policy, and free it afterwards.
    #[default]
    OnDemand,
    /// Allocate from a pool. If there are not enough addresses for a pool, and for components that do not fit, behave like
    /// [`OnDemand`](Allocation::OnDemand).
    Pooled,
}

/// A wasmtime engine with the functions that it offers to guests.
pub(super) struct Machine {
    pub(super) engine: Engine,
    pub(super) linker: Linker<HostState>,
}

/// A machine that allocates instances from a pool.
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
    /// Create a pool, or return `None` if it is unavailable. Creating the engine reserves all of its addresses, so that is the
    /// test.
    pub(super) fn try_new() -> Option<Self> {
        match Machine::new(
            configuration(Metering::Off).allocation_strategy(pool_strategy(CONCURRENT_CALLS)),
        ) {
            Ok(machine) => Some(Self {
                machine,
                turns: Arc::new(Semaphore::new(CONCURRENT_CALLS)),
            }),
            Err(cause) => {
                tracing::warn!(
                    "no room for a pool on this machine, policies are called without it: {cause:#}"
                );
                None
            }
        }
    }
}

/// The settings of the pool. It never runs out: a call waits for its turn before it allocates, and `limits` ends it before it takes
/// more than its share.
fn pool_strategy(calls: usize) -> InstanceAllocationStrategy {
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
        // A policy is called a few times a minute, so warm slots are not worth keeping.
        .max_unused_warm_slots(0);
    InstanceAllocationStrategy::Pooling(pool)
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;

    /// The test requests a pool of a petabyte, which no machine has.
    #[test]
    fn unavailable_pool_is_an_error() {
        let made =
            Machine::new(configuration(Metering::Off).allocation_strategy(pool_strategy(1 << 15)));
        assert!(made.is_err());
    }

    /// Otherwise the output of the compiler process, and the cache, would load with only one of them.
    #[test]
    fn both_allocations_run_the_same_code() {
        let hash = |configuration: &Config| {
            let mut hasher = DefaultHasher::new();
            let engine = Engine::new(configuration).unwrap();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let pooled = hash(configuration(Metering::Off).allocation_strategy(pool_strategy(1)));
        assert_eq!(hash(&configuration(Metering::Off)), pooled);
    }
}
