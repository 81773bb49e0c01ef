//! The plain types of the contract, with convenient methods for Rust.
//!
//! The types are generated from `wit/policy.wit`, whose comments explain each field. This module has only the types that a policy
//! uses; imported functions and handles are elsewhere.

use serde::{Deserialize, Deserializer};

pub use crate::bindings::exports::refit::policy::policy::{
    ConfigProblem, Decision, Description, Failure, Report, Request, Target, Trigger,
    UnknownTargets, Unlisted, Verdict,
};
pub use crate::bindings::refit::policy::host::{Level, StateError};
pub use crate::bindings::refit::policy::types::{
    ContainerInfo, ContainerState, EngineError, FailedStep, Health, PublishedPort, PullError,
    RecreateError, Recreated, Refusal, RestartPolicy, Strategy, Successor, Transport,
};

impl ContainerInfo {
    pub fn is_running(&self) -> bool {
        self.state == ContainerState::Running
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        value(&self.labels, key)
    }

    /// A variable of the container's environment. `None` also if no grant lets this policy read it.
    pub fn variable(&self, name: &str) -> Option<&str> {
        value(&self.environment, name)
    }
}

fn value<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find(|(k, _)| k == key)
        .map(|(_, value)| value.as_str())
}

impl RecreateError {
    /// Whether a replacement was tried and failed, which a canary is meant to find out. The other errors only say that it was not
    /// tried: see [`Evidence`](crate::Evidence).
    pub fn is_failed_replacement(&self) -> bool {
        matches!(
            self,
            Self::Aborted(_) | Self::RolledBack(_) | Self::Stranded(_)
        )
    }
}

impl Target {
    pub fn new(name: impl Into<String>, image: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
        }
    }
}

impl ConfigProblem {
    /// `path` is the place of the problem, for example `runtimes[2]`; `problem` is a sentence fragment, lower case and without a
    /// full stop.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// Accepts the contract's names, so that a configuration can contain a strategy directly.
impl<'de> Deserialize<'de> for Strategy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Name {
            Replace,
            Remove,
            Overlap,
        }
        Ok(match Name::deserialize(deserializer)? {
            Name::Replace => Self::Replace,
            Name::Remove => Self::Remove,
            Name::Overlap => Self::Overlap,
        })
    }
}
