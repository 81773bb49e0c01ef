//! What can be wrong with a policy, by kind, in words for whoever wrote it or runs it.

use std::time::Duration;

use wasmtime::Trap;

use super::instance::Exceeded;
use super::limits;
use super::{CONTRACT, CONTRACT_VERSION};
use crate::diagnostic::Hints;

/// What a policy says of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConfigProblem {
    /// `runtimes[2]`; empty for the whole.
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
    #[error("cannot read the policy `{origin}`")]
    Unreadable {
        origin: String,
        source: std::io::Error,
    },
    #[error(
        "`{origin}` has {bytes} bytes, and a policy may have {}",
        limits::COMPONENT_BYTES_MAX
    )]
    TooLarge { origin: String, bytes: usize },
    #[error("`{origin}` is no WebAssembly component: it is {what}")]
    NotAComponent { origin: String, what: &'static str },
    #[error("cannot load the policy `{origin}`: {cause}")]
    Invalid { origin: String, cause: String },
    #[error("cannot compile the policy `{origin}`: {cause}")]
    Compiler { origin: String, cause: String },
    #[error("`{origin}` speaks `{wants}`, this host speaks `{CONTRACT}@{CONTRACT_VERSION}`")]
    WrongContract { origin: String, wants: String },
    #[error("`{origin}` wants `{import}`, which this host does not offer")]
    UnknownImport { origin: String, import: String },
    #[error("`{origin}` is a component but no policy: it does not export `{CONTRACT}/policy`")]
    NotAPolicy { origin: String },
    #[error(
        "policy `{policy}` was stopped: it computed for more than {} s while it was to {doing}",
        limits::COMPUTE_SECONDS_MAX
    )]
    Interrupted { policy: String, doing: &'static str },
    #[error("policy `{policy}` did not {doing} within {} s", .limit.as_secs())]
    TimedOut {
        policy: String,
        doing: &'static str,
        limit: Duration,
    },
    #[error("policy `{policy}` went beyond a limit while it was to {doing}: {cause}")]
    Exceeded {
        policy: String,
        doing: &'static str,
        cause: String,
    },
    #[error("policy `{policy}` panicked while it was to {doing}: {cause}")]
    Trapped {
        policy: String,
        doing: &'static str,
        cause: String,
    },
    #[error("policy `{policy}` broke the contract while it was to {doing}: {cause}")]
    Broke {
        policy: String,
        doing: &'static str,
        cause: String,
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

impl PolicyError {
    pub(super) fn host(cause: wasmtime::Error) -> Self {
        Self::Host(format!("{cause:#}"))
    }

    pub(super) fn invalid(origin: &str, cause: &wasmtime::Error) -> Self {
        Self::Invalid {
            origin: origin.to_owned(),
            cause: format!("{cause:#}"),
        }
    }

    /// By type, never by the words of an error.
    pub(super) fn of_trap(policy: String, doing: &'static str, error: &wasmtime::Error) -> Self {
        tracing::debug!(policy, "{error:?}");
        let cause = error.root_cause().to_string();
        if error.downcast_ref::<Exceeded>().is_some() {
            return Self::Exceeded {
                policy,
                doing,
                cause,
            };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Interrupted { policy, doing },
            Some(Trap::StackOverflow) => Self::Exceeded {
                policy,
                doing,
                cause,
            },
            Some(_) => Self::Trapped {
                policy,
                doing,
                cause,
            },
            None => Self::Broke {
                policy,
                doing,
                cause,
            },
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
                vec![format!("rebuild it with an SDK for `{CONTRACT}@{CONTRACT_VERSION}`, or run a host that speaks its version")]
            }
            Self::UnknownImport { .. } => {
                vec![format!("a policy may import `{CONTRACT}` and what the standard library takes from WASI 0.2, nothing else")]
            }
            Self::NotAPolicy { .. } => vec!["see `wit/policy.wit` for what a policy exports".into()],
            Self::Interrupted { .. } | Self::TimedOut { .. } | Self::Exceeded { .. } | Self::Trapped { .. } | Self::Broke { .. } => vec![
                "what it had begun was finished or put back; nothing else was changed".into(),
                "its own output is in the log: run again with `--log debug`".into(),
            ],
            Self::Config { problems, .. } => problems.iter().map(ToString::to_string).collect(),
            Self::Unreadable { .. } => vec![
                "`--policy FILE` and `[policy] component` name it; without either, the built-in policy is used".into(),
            ],
            Self::Compiler { .. } => {
                vec!["`[limits] compile_seconds` and `compile_megabytes` say what compiling may take".into()]
            }
            Self::TooLarge { .. } | Self::Invalid { .. } | Self::BadAnswer { .. } | Self::Host(_) => vec![],
        }
    }
}

/// The first look at bytes that nobody vouches for.
pub(super) fn admit(bytes: &[u8], origin: &str) -> Result<(), PolicyError> {
    let not = |what| {
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
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => not("a core module"),
        [b'\0', b'a', b's', b'm', ..] => {
            not("of a version of WebAssembly that this host does not know")
        }
        // Compiled code is trusted by whoever runs it, so it is never taken from outside.
        [0x7f, b'E', b'L', b'F', ..] => not("machine code (a precompiled `.cwasm`, or a program)"),
        [] => not("empty"),
        _ => not("something else"),
    }
}
