//! Every number that bounds a policy, and where it comes from.

use std::time::Duration;

/// How often the clock that interrupts guests ticks. Ten milliseconds is finer than any limit below, and costs one wake-up of
/// one thread.
pub const TICK: Duration = Duration::from_millis(10);

/// How long a policy may compute in one call, not counting the time it waits for the host. Deciding over 1,000 containers took
/// 140 ms in Python on a busy machine; ten seconds is a policy that does not end.
pub const COMPUTE_SECONDS_MAX: u64 = 10;

/// How long `describe` or `validate-config` may take in all. They compute only.
pub const PROBE_SECONDS_MAX: u64 = 15;

/// Linear memory of all of a policy's modules together. A Python policy was seen to need 13 MiB to start and 22 MiB for 5,000
/// containers.
pub const MEMORY_BYTES_MAX: usize = 64 << 20;

/// Elements of a table. Python needs 5,684, JavaScript 788.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Core instances in a component. Python needs 38.
pub const INSTANCES_MAX: usize = 64;
pub const MEMORIES_MAX: usize = 8;
pub const TABLES_MAX: usize = 16;

/// Data that one host call may copy. An inspection of 5,000 containers is some 5 MiB on its way in.
pub const HOSTCALL_BYTES_MAX: usize = 32 << 20;

/// Handles that a policy may hold at once: a container and an image for each of some thousands of containers.
pub const HANDLES_MAX: usize = 20_000;

/// The largest component we look at. A Python policy is 19 MB.
pub const COMPONENT_BYTES_MAX: usize = 48 << 20;

/// Machine code of a component. A Python policy of 18 MB made 34 MB, a JavaScript one of 12 MB 36 MB.
pub const COMPILED_BYTES_MAX: usize = 256 << 20;

/// What the compiler process may say on its way out, or of a component that is wrong.
pub const COMPILER_SAYS_BYTES_MAX: usize = 8 << 10;

/// Compiled components that are kept: some versions of some policies, for more than one version of Refit.
pub const CACHE_ENTRIES_MAX: usize = 16;
pub const CACHE_BYTES_MAX: u64 = 512 << 20;

/// What a policy may log in one refresh.
pub const LOG_LINES_MAX: u32 = 1_000;
pub const LOG_LINE_BYTES_MAX: usize = 4 << 10;

/// What a policy prints is kept for the log up to here.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Decisions and targets in a report. More containers than this on one engine nobody has.
pub const REPORT_ENTRIES_MAX: usize = 20_000;

/// The longest text in a report or a description that is kept: a name, a rule, a reason. A policy that needs more is not
/// explaining, it is dumping.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// Calls in one batch.
pub const BATCH_MAX: usize = 20_000;

/// What a policy may keep: keys, bytes of a key, bytes of a value.
pub const STATE_KEYS_MAX: usize = 64;
pub const STATE_KEY_BYTES_MAX: usize = 128;
pub const STATE_VALUE_BYTES_MAX: usize = 16 << 10;
