//! The limits on policies, with the reason for each number.
//!
//! [`Limit`] lists them. A guest of the self-test (`refit-author`) exceeds each; a limit that no guest exceeds fails a test.

use std::time::Duration;

/// The tick of the clock that interrupts guests. Ten milliseconds is finer than any limit below, and costs one wake-up of one
/// thread.
pub const TICK: Duration = Duration::from_millis(10);

/// The computing time of a policy in one call, without the time that it waits for the host. Deciding over 1,000 containers took 140
/// ms in Python on a busy machine; a policy that takes ten seconds does not end.
pub const COMPUTE_SECONDS_MAX: u64 = 10;

/// The total time of `describe` or `validate-config`, which only compute.
pub const PROBE_SECONDS_MAX: u64 = 15;

/// The linear memory of all modules of a policy together. A Python policy needed 13 MiB to start and 22 MiB for 5,000 containers.
pub const MEMORY_BYTES_MAX: usize = 64 << 20;

/// The stack of calls within a policy. This is wasmtime's default, at which all known guests run; it is explicit because
/// [`STACK_BYTES`] must exceed it.
pub const STACK_BYTES_MAX: usize = 512 << 10;

/// The stack of a call. The part above [`STACK_BYTES_MAX`] is for the host's own functions.
pub const STACK_BYTES: usize = 2 << 20;

/// Elements of a table. Python needs 5,684, JavaScript 788.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Core instances in a component. Python needs 38.
pub const INSTANCES_MAX: usize = 64;
pub const MEMORIES_MAX: usize = 8;
pub const TABLES_MAX: usize = 16;

/// The data that one host call may copy. An inspection of 5,000 containers copies some 5 MiB to the guest.
pub const HOSTCALL_BYTES_MAX: usize = 32 << 20;

/// The calls of `docker` and `host` in one call of a policy. Names and ids are calls too: five for each of 20,000 containers and
/// their images are 100,000.
pub const HOST_CALLS_MAX: u64 = 200_000;

/// The text between policy and host in one call, in both directions, and the host's data behind its handles. For one of 20,000
/// containers with 4 KiB of labels, listing takes 4 KiB and inspecting 8 KiB.
pub const HOST_BYTES_MAX: usize = 256 << 20;

/// The handles that a policy may hold at a time: a container and an image for each of some thousands of containers.
pub const HANDLES_MAX: usize = 20_000;

/// The number of container lists in one refresh. Each is a query to the engine. This allows a list before each wave of one
/// container, on an engine with a thousand.
pub const LISTS_MAX: u32 = 1_000;

/// The random bytes in one call. A key or a seed has 32.
pub const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// The largest component that Refit reads. A Python policy is 19 MB.
pub const COMPONENT_BYTES_MAX: usize = 48 << 20;

/// The bytes of all declarations of a component: types, imports, exports, functions, aliases, instances and the like. Python's, the
/// largest example, declares 314 KiB. Types take the most memory to validate: 0.7 MB of them took 37 MB (2026-11-29).
pub const DECLARATION_BYTES_MAX: usize = 1 << 20;

/// The modules and components within a component, at any depth. Python's has 40. An empty one has ten bytes, and took 1.2 KB to
/// validate (2026-11-29).
pub const NESTED_MAX: usize = 1_000;

/// The functions that a component imports, and the names that it exports. An instance type can be imported repeatedly, with all its
/// functions.
pub const NAMES_MAX: usize = 10_000;

/// The log lines of a policy in one refresh. A thousand lines of two hundred characters fit, and some backtraces.
pub const LOG_LINES_MAX: u32 = 1_000;
pub const LOG_LINE_BYTES_MAX: usize = 4 << 10;
pub const LOG_BYTES_MAX: usize = 1 << 20;

/// The output of a policy that the log keeps, for standard output and error each.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// The frames of a backtrace that Refit reads, and those of them in a sentence. The rest is at debug level.
pub const BACKTRACE_FRAMES_MAX: usize = 32;
pub const SHOWN_FRAMES_MAX: usize = 5;

/// The decisions and targets in a report. No known engine has more containers than this.
pub const REPORT_ENTRIES_MAX: usize = 20_000;

/// The longest text in a report or a description: a name, a rule, a reason. A longer text does not explain, it dumps.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// The longest name of a policy. It is also a file name, and every message contains it and the version.
pub const NAME_BYTES_MAX: usize = 64;

/// The JSON Schema of a policy's configuration. The default policy's has 2 KiB.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// The problems of a configuration, or unknown targets, in a message. People do not read more.
pub const PROBLEMS_MAX: usize = 64;

/// The calls in one batch.
pub const BATCH_MAX: usize = 20_000;

/// The stored state of a policy: keys, bytes of a key, bytes of a value.
pub const STATE_KEYS_MAX: usize = 64;
pub const STATE_KEY_BYTES_MAX: usize = 128;
pub const STATE_VALUE_BYTES_MAX: usize = 16 << 10;

/// The writes of that state in one call. Each is flushed to the disk, which takes milliseconds.
pub const STATE_WRITES_MAX: u32 = 256;

/// The time limits of a call. Tests that exceed them use shorter limits than operators would.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub compute: Duration,
    pub probe: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            compute: Duration::from_secs(COMPUTE_SECONDS_MAX),
            probe: Duration::from_secs(PROBE_SECONDS_MAX),
        }
    }
}

macro_rules! limits {
    ($($limit:ident = $key:literal, $value:expr;)*) => {
        /// A limit, by name, for tables and tests.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit { $($limit,)* }

        impl Limit {
            pub const ALL: &[Self] = &[$(Self::$limit,)*];

            /// The name of the constant here, or the key in `[limits]` of the configuration.
            pub fn key(self) -> &'static str {
                match self { $(Self::$limit => $key,)* }
            }

            /// The value, or `None` if the configuration has it.
            pub fn value(self) -> Option<u64> {
                match self { $(Self::$limit => $value,)* }
            }
        }
    };
}

limits! {
    Compute = "COMPUTE_SECONDS_MAX", Some(COMPUTE_SECONDS_MAX);
    Probe = "PROBE_SECONDS_MAX", Some(PROBE_SECONDS_MAX);
    Refresh = "refresh_seconds", None;
    Memory = "MEMORY_BYTES_MAX", Some(MEMORY_BYTES_MAX as u64);
    Stack = "STACK_BYTES_MAX", Some(STACK_BYTES_MAX as u64);
    TableElements = "TABLE_ELEMENTS_MAX", Some(TABLE_ELEMENTS_MAX as u64);
    Instances = "INSTANCES_MAX", Some(INSTANCES_MAX as u64);
    Memories = "MEMORIES_MAX", Some(MEMORIES_MAX as u64);
    Tables = "TABLES_MAX", Some(TABLES_MAX as u64);
    HostcallBytes = "HOSTCALL_BYTES_MAX", Some(HOSTCALL_BYTES_MAX as u64);
    HostCalls = "HOST_CALLS_MAX", Some(HOST_CALLS_MAX);
    HostBytes = "HOST_BYTES_MAX", Some(HOST_BYTES_MAX as u64);
    Handles = "HANDLES_MAX", Some(HANDLES_MAX as u64);
    Lists = "LISTS_MAX", Some(LISTS_MAX as u64);
    RandomBytes = "RANDOM_BYTES_MAX", Some(RANDOM_BYTES_MAX);
    ComponentBytes = "COMPONENT_BYTES_MAX", Some(COMPONENT_BYTES_MAX as u64);
    DeclarationBytes = "DECLARATION_BYTES_MAX", Some(DECLARATION_BYTES_MAX as u64);
    Nested = "NESTED_MAX", Some(NESTED_MAX as u64);
    Names = "NAMES_MAX", Some(NAMES_MAX as u64);
    LogLines = "LOG_LINES_MAX", Some(LOG_LINES_MAX as u64);
    LogLineBytes = "LOG_LINE_BYTES_MAX", Some(LOG_LINE_BYTES_MAX as u64);
    LogBytes = "LOG_BYTES_MAX", Some(LOG_BYTES_MAX as u64);
    OutputBytes = "OUTPUT_BYTES_MAX", Some(OUTPUT_BYTES_MAX as u64);
    BacktraceFrames = "BACKTRACE_FRAMES_MAX", Some(BACKTRACE_FRAMES_MAX as u64);
    ShownFrames = "SHOWN_FRAMES_MAX", Some(SHOWN_FRAMES_MAX as u64);
    ReportEntries = "REPORT_ENTRIES_MAX", Some(REPORT_ENTRIES_MAX as u64);
    TextBytes = "TEXT_BYTES_MAX", Some(TEXT_BYTES_MAX as u64);
    NameBytes = "NAME_BYTES_MAX", Some(NAME_BYTES_MAX as u64);
    SchemaBytes = "SCHEMA_BYTES_MAX", Some(SCHEMA_BYTES_MAX as u64);
    Problems = "PROBLEMS_MAX", Some(PROBLEMS_MAX as u64);
    Batch = "BATCH_MAX", Some(BATCH_MAX as u64);
    StateKeys = "STATE_KEYS_MAX", Some(STATE_KEYS_MAX as u64);
    StateKeyBytes = "STATE_KEY_BYTES_MAX", Some(STATE_KEY_BYTES_MAX as u64);
    StateValueBytes = "STATE_VALUE_BYTES_MAX", Some(STATE_VALUE_BYTES_MAX as u64);
    StateWrites = "STATE_WRITES_MAX", Some(STATE_WRITES_MAX as u64);
    Inspects = "inspects_max", None;
    Pulls = "pulls_max", None;
    Recreates = "recreates_max", None;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A constant that is missing in the list would be a limit without a guest.
    #[test]
    fn every_constant_is_listed() {
        let here = include_str!("limits.rs");
        let constants = here.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("pub const ")?.split_once(':')?;
            name.ends_with("_MAX").then_some(name)
        });
        for constant in constants {
            assert!(
                Limit::ALL.iter().any(|limit| limit.key() == constant),
                "`{constant}` is not in the list of limits"
            );
        }
    }
}
