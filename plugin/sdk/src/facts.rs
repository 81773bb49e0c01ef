//! The plain types of the contract, and what makes them pleasant to use from Rust.
//!
//! The types themselves are generated from `wit/policy.wit`, whose comments say what each field means. Only those that a policy
//! meets are named here; imported functions and handles are not.

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

    /// A variable of its environment. Absent also where no grant lets this policy see it.
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
    /// Whether a replacement was tried and failed, which is what a canary is for. The others only say that it was not tried:
    /// see [`Evidence`](crate::Evidence).
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
    /// `path` is where it is, for example `runtimes[2]`; `problem` a sentence fragment, lower case and without a full stop.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

/// By the names used in the contract, so that a configuration can hold a strategy as it is.
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
