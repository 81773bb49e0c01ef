//! The errors of a policy, by kind, in words for its author and its operator.

use std::time::Duration;

use refit_model::diagnostic::Hints;
use refit_model::printable::printable;
use wasmtime::component::ResourceTableError;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::instance::Exceeded;
use super::{CONTRACT, CONTRACT_VERSION, limits};

/// The reason for a policy call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Describe,
    CheckConfig,
    Refresh,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Describe => "describe itself",
            Self::CheckConfig => "check its configuration",
            Self::Refresh => "make a refresh",
        })
    }
}

/// The kind of a policy error, without particulars. For tables, tests and programs that react to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyErrorKind {
    TooLarge,
    NotAComponent,
    Invalid,
    WrongContract,
    Misfit,
    UnknownImport,
    NotAPolicy,
    Unstartable,
    Interrupted,
    TimedOut,
    Exceeded,
    Trapped,
    Exited,
    Broke,
    BadAnswer,
    Config,
    Compiler,
    Host,
}

impl PolicyErrorKind {
    /// The kinds of errors that can end a refresh, when the component is loaded already.
    pub const REFRESH_KINDS: [Self; 8] = [
        Self::Unstartable,
        Self::Interrupted,
        Self::TimedOut,
        Self::Exceeded,
        Self::Trapped,
        Self::Exited,
        Self::Broke,
        Self::BadAnswer,
    ];

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::NotAComponent => "not-a-component",
            Self::Invalid => "invalid",
            Self::WrongContract => "wrong-contract",
            Self::Misfit => "misfit",
            Self::UnknownImport => "unknown-import",
            Self::NotAPolicy => "not-a-policy",
            Self::Unstartable => "unstartable",
            Self::Interrupted => "interrupted",
            Self::TimedOut => "timed-out",
            Self::Exceeded => "exceeded",
            Self::Trapped => "trapped",
            Self::Exited => "exited",
            Self::Broke => "broke",
            Self::BadAnswer => "bad-answer",
            Self::Config => "config",
            Self::Compiler => "compiler",
            Self::Host => "host",
        }
    }
}

/// A problem that a policy finds in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConfigProblem {
    /// The part of the configuration, for example `runtimes[2]`. Empty for the whole.
    pub path: String,
    pub problem: String,
}

impl std::fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.problem),
            path => write!(f, "`{path}`: {}", self.problem),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(
        "`{origin}` has {bytes} bytes, and a policy may have {}",
        limits::COMPONENT_BYTES_MAX
    )]
    TooLarge { origin: String, bytes: usize },
    #[error("`{origin}` is no WebAssembly component: it is {what}")]
    NotAComponent { origin: String, what: &'static str },
    #[error("cannot load the policy `{origin}`: {cause}")]
    Invalid { origin: String, cause: String },
    #[error("cannot examine the policy `{origin}`: {cause}")]
    Examiner { origin: String, cause: String },
    #[error("cannot compile the policy `{origin}`: {cause}")]
    Compiler { origin: String, cause: String },
    #[error(
        "cannot compile the policy `{origin}`: this build of Refit has no compiler, and none of the policies that another one compiled for it is this one"
    )]
    NoCompiler { origin: String },
    #[error("`{origin}` speaks `{wants}`, this host speaks `{CONTRACT}@{CONTRACT_VERSION}`")]
    WrongContract { origin: String, wants: String },
    #[error("`{origin}` wants `{import}`, which this host does not offer")]
    UnknownImport { origin: String, import: String },
    #[error("`{origin}` wants `{function}` of `{interface}`, which this host does not have there")]
    UnknownFunction {
        origin: String,
        interface: String,
        function: String,
    },
    #[error(
        "`{origin}` has another idea of `{CONTRACT}@{CONTRACT_VERSION}` than this host: {cause}"
    )]
    Misfit { origin: String, cause: String },
    #[error("`{origin}` is a component but no policy: it does not export `{CONTRACT}/policy`")]
    NotAPolicy { origin: String },
    #[error("policy `{policy}` cannot be started: {cause}")]
    Unstartable {
        policy: String,
        doing: Task,
        cause: String,
    },
    #[error(
        "policy `{policy}` was stopped: it computed for more than {} while it was to {doing}{place}",
        seconds(.limit)
    )]
    Interrupted {
        policy: String,
        doing: Task,
        limit: Duration,
        place: Place,
    },
    #[error("policy `{policy}` did not {doing} within {}", seconds(.limit))]
    TimedOut {
        policy: String,
        doing: Task,
        limit: Duration,
    },
    #[error("policy `{policy}` went beyond a limit while it was to {doing}: {cause}{place}")]
    Exceeded {
        policy: String,
        doing: Task,
        cause: String,
        place: Place,
    },
    #[error("policy `{policy}` panicked while it was to {doing}: {cause}{place}")]
    Trapped {
        policy: String,
        doing: Task,
        cause: String,
        place: Place,
    },
    #[error("policy `{policy}` ended itself with status {status} while it was to {doing}")]
    Exited {
        policy: String,
        doing: Task,
        status: i32,
    },
    #[error("policy `{policy}` broke the contract while it was to {doing}: {cause}{place}")]
    Broke {
        policy: String,
        doing: Task,
        cause: String,
        place: Place,
    },
    #[error("policy `{policy}` gave an answer that cannot be used: {problem}")]
    BadAnswer { policy: String, problem: String },
    #[error("policy `{policy}` does not accept its configuration")]
    Config {
        policy: String,
        problems: Vec<ConfigProblem>,
    },
    #[error("cannot prepare the policy engine: {0}")]
    Host(String),
}

/// The location of a trap in the guest, as the end of a sentence: the innermost function and its callers. Empty if it is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    functions: Vec<String>,
    frames: usize,
}

impl Place {
    /// The guest chooses the names, so they may contain anything.
    fn of(error: &wasmtime::Error) -> Self {
        const NAME_BYTES_MAX: usize = 120;
        let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
            return Self::default();
        };
        let frames = backtrace.frames();
        let named = frames.iter().filter_map(|frame| frame.func_name());
        // Without the hash, which means nothing to a person.
        let names = named.map(|name| format!("{:#}", rustc_demangle::demangle(name)));
        let mut functions: Vec<String> =
            names.map(|name| printable(&name, NAME_BYTES_MAX)).collect();
        // A recursion repeats the same line a dozen times.
        functions.dedup();
        functions.truncate(limits::SHOWN_FRAMES_MAX);
        Self {
            functions,
            frames: frames.len(),
        }
    }

    /// The innermost functions, by name.
    pub fn functions(&self) -> &[String] {
        &self.functions
    }

    /// The number of all frames that were seen.
    pub fn frames(&self) -> usize {
        self.frames
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, name) in self.functions.iter().enumerate() {
            let before = if index == 0 { ", in" } else { ", called by" };
            write!(f, "{before} `{name}`")?;
        }
        Ok(())
    }
}

/// A duration such as `10 s` or `0.3 s`.
fn seconds(limit: &Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

/// The trap happened while the component was being instantiated.
#[derive(Debug, thiserror::Error)]
#[error("at instantiation")]
pub(super) struct InstantiationError;

impl PolicyError {
    pub(super) fn host(cause: wasmtime::Error) -> Self {
        Self::Host(format!("{cause:#}"))
    }

    #[cfg(feature = "compiler")]
    pub(super) fn invalid(origin: &str, cause: &wasmtime::Error) -> Self {
        Self::Invalid {
            origin: origin.to_owned(),
            cause: printable(&format!("{cause:#}"), limits::TEXT_BYTES_MAX),
        }
    }

    /// The error of a component that expects other types under the right names, or lacks a function that we call.
    pub(super) fn from_link_error(origin: &str, cause: &wasmtime::Error) -> Self {
        Self::Misfit {
            origin: origin.to_owned(),
            cause: printable(&format!("{cause:#}"), limits::TEXT_BYTES_MAX),
        }
    }

    /// Classify a trap by its type, never by the words of an error.
    pub(super) fn from_trap(
        policy: String,
        doing: Task,
        compute: Duration,
        error: &wasmtime::Error,
    ) -> Self {
        tracing::debug!(
            policy,
            "{}",
            printable(&format!("{error:?}"), 4 * limits::TEXT_BYTES_MAX)
        );
        let place = Place::of(error);
        if let Some(I32Exit(status)) = error.downcast_ref() {
            return Self::Exited {
                policy,
                doing,
                status: *status,
            };
        }
        if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
            return Self::Exceeded {
                policy,
                doing,
                cause: exceeded.to_string(),
                place,
            };
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return Self::Exceeded {
                policy,
                doing,
                cause: format!("it holds more than {} handles", limits::HANDLES_MAX),
                place,
            };
        }
        let cause = printable(&error.root_cause().to_string(), limits::TEXT_BYTES_MAX);
        let Some(trap) = error.downcast_ref::<Trap>() else {
            // wasmtime has only words for these, and they do not depend on the function that was called.
            return if error.downcast_ref::<InstantiationError>().is_some() {
                Self::Unstartable {
                    policy,
                    doing,
                    cause,
                }
            } else {
                Self::Broke {
                    policy,
                    doing,
                    cause,
                    place,
                }
            };
        };
        match trap {
            Trap::Interrupt => Self::Interrupted {
                policy,
                doing,
                limit: compute,
                place,
            },
            Trap::StackOverflow => Self::Exceeded {
                policy,
                doing,
                cause: format!(
                    "its functions call each other so deeply that {} KiB of stack are not enough",
                    limits::STACK_BYTES_MAX >> 10
                ),
                place,
            },
            // Traps of a program that fails by itself.
            Trap::UnreachableCodeReached
            | Trap::MemoryOutOfBounds
            | Trap::HeapMisaligned
            | Trap::TableOutOfBounds
            | Trap::IndirectCallToNull
            | Trap::BadSignature
            | Trap::IntegerOverflow
            | Trap::IntegerDivisionByZero
            | Trap::BadConversionToInteger
            | Trap::NullReference
            | Trap::ArrayOutOfBounds
            | Trap::CastFailure => Self::Trapped {
                policy,
                doing,
                cause,
                place,
            },
            // Only a broken or hostile component gets here: its calls and answers violate the component model.
            _ => Self::Broke {
                policy,
                doing,
                cause,
                place,
            },
        }
    }

    /// The call in which the policy was stopped. `None` if none of its code ran, or if it answered and the answer is invalid.
    pub fn task(&self) -> Option<Task> {
        match self {
            Self::Unstartable { doing, .. }
            | Self::Interrupted { doing, .. }
            | Self::TimedOut { doing, .. }
            | Self::Exceeded { doing, .. }
            | Self::Trapped { doing, .. }
            | Self::Exited { doing, .. }
            | Self::Broke { doing, .. } => Some(*doing),
            Self::TooLarge { .. }
            | Self::NotAComponent { .. }
            | Self::Invalid { .. }
            | Self::WrongContract { .. }
            | Self::UnknownImport { .. }
            | Self::UnknownFunction { .. }
            | Self::Misfit { .. }
            | Self::NotAPolicy { .. }
            | Self::BadAnswer { .. }
            | Self::Config { .. }
            | Self::Examiner { .. }
            | Self::Compiler { .. }
            | Self::NoCompiler { .. }
            | Self::Host(_) => None,
        }
    }

    pub fn kind(&self) -> PolicyErrorKind {
        use PolicyErrorKind as Kind;
        match self {
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::NotAComponent { .. } => Kind::NotAComponent,
            Self::Invalid { .. } => Kind::Invalid,
            Self::WrongContract { .. } => Kind::WrongContract,
            Self::UnknownImport { .. } => Kind::UnknownImport,
            Self::UnknownFunction { .. } | Self::Misfit { .. } => Kind::Misfit,
            Self::NotAPolicy { .. } => Kind::NotAPolicy,
            Self::Unstartable { .. } => Kind::Unstartable,
            Self::Interrupted { .. } => Kind::Interrupted,
            Self::TimedOut { .. } => Kind::TimedOut,
            Self::Exceeded { .. } => Kind::Exceeded,
            Self::Trapped { .. } => Kind::Trapped,
            Self::Exited { .. } => Kind::Exited,
            Self::Broke { .. } => Kind::Broke,
            Self::BadAnswer { .. } => Kind::BadAnswer,
            Self::Config { .. } => Kind::Config,
            Self::Examiner { .. } | Self::Compiler { .. } | Self::NoCompiler { .. } => {
                Kind::Compiler
            }
            Self::Host(_) => Kind::Host,
        }
    }
}

/// The state of things after a policy was stopped.
fn describe_aftermath(doing: Task) -> String {
    match doing {
        Task::Describe | Task::CheckConfig => {
            "it was not put in force, and nothing was changed".into()
        }
        Task::Refresh => {
            "what it had begun was finished or put back; nothing else was changed".into()
        }
    }
}

impl Hints for PolicyError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NotAComponent { .. } => vec![
                "build it for `wasm32-wasip2`, which makes components: `cargo build --target wasm32-wasip2 --release`".into(),
            ],
            Self::WrongContract { .. } => {
                vec![
                    format!("rebuild it against `{CONTRACT}@{CONTRACT_VERSION}` (in Rust: with `refit-policy` {CONTRACT_VERSION}), or run a host that speaks its version"),
                    "`refit policy wit` prints the contract of this host".into(),
                ]
            }
            Self::UnknownFunction { .. } | Self::Misfit { .. } => vec![
                "it was built against a `policy.wit` that somebody has changed: take the one that `refit policy wit` prints, and build again".into(),
            ],
            Self::UnknownImport { import, .. } => {
                let mut hints = vec![format!("a policy may import `{CONTRACT}` and what the standard library takes from WASI 0.2, nothing else")];
                if import.starts_with("wasi:sockets/") || import.starts_with("wasi:http/") {
                    hints.push("a policy has no network; a Python one is built with `componentize-py componentize --stub-wasi`".into());
                }
                hints
            }
            Self::NotAPolicy { .. } => vec!["see `wit/policy.wit` for what a policy exports".into()],
            Self::Interrupted { doing, .. } => vec![
                describe_aftermath(*doing),
                "time that it waits for the host does not count; look for a loop without an end".into(),
            ],
            Self::TimedOut { doing: Task::Refresh, .. } => vec![
                describe_aftermath(Task::Refresh),
                "`[limits] refresh_seconds` is the time for a whole refresh".into(),
            ],
            Self::Unstartable { doing, .. } | Self::TimedOut { doing, .. } => vec![describe_aftermath(*doing)],
            Self::Exceeded { doing, .. } => vec![
                describe_aftermath(*doing),
                "what a policy may use is not configured: docs/hostile-guests.md has the limits".into(),
            ],
            Self::Trapped { doing, .. } | Self::Exited { doing, .. } => vec![
                describe_aftermath(*doing),
                "what it printed is in the log; `--log debug` adds the whole backtrace".into(),
            ],
            Self::Broke { doing, .. } => vec![
                describe_aftermath(*doing),
                "a policy that was built with an SDK cannot do this: report it to whoever made the policy".into(),
            ],
            Self::Config { problems, .. } => problems.iter().map(ToString::to_string).collect(),
            Self::Examiner { .. } | Self::Compiler { .. } => {
                vec!["`[limits] compile_seconds` and `compile_megabytes` limit what examining and compiling a policy may take".into()]
            }
            Self::NoCompiler { .. } => vec![
                format!("run a Refit {} that has one, on this machine, with the same state folder: `refit policy check FILE` compiles a policy, `refit doctor` the one that is configured", env!("CARGO_PKG_VERSION")),
            ],
            Self::BadAnswer { .. } => vec!["report it to whoever made the policy".into()],
            Self::TooLarge { .. } | Self::Invalid { .. } | Self::Host(_) => vec![],
        }
    }
}

/// Check untrusted bytes for the first time.
pub(super) fn check_file_format(bytes: &[u8], origin: &str) -> Result<(), PolicyError> {
    let refuse = |what| {
        Err(PolicyError::NotAComponent {
            origin: origin.to_owned(),
            what,
        })
    };
    if bytes.len() > limits::COMPONENT_BYTES_MAX {
        return Err(PolicyError::TooLarge {
            origin: origin.to_owned(),
            bytes: bytes.len(),
        });
    }
    match bytes {
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => refuse("a core module"),
        [b'\0', b'a', b's', b'm', ..] => {
            refuse("of a version of WebAssembly that this host does not know")
        }
        // Compiled code runs without further checks, so it is never accepted from outside.
        [0x7f, b'E', b'L', b'F', ..] => {
            refuse("machine code (a precompiled `.cwasm`, or a program)")
        }
        [] => refuse("empty"),
        _ => refuse("something else"),
    }
}
