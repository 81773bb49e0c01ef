//! Giving a container its new image: the one way in which it is done, whoever asks.
//!
//! [`intent`] says what the user asked for when the container was made; it is pure. [`replace`] is the order of the steps and
//! the way back from each; [`guard`] says which containers are never touched. Knows the engine's verbs, and neither policies
//! nor people.

pub mod guard;
pub mod intent;
pub mod replace;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::container::ContainerId;
use crate::diagnostic::Hints;
use crate::engine::EngineError;
use crate::image::ImageId;

/// Whom a container replaces, by id. Read by whoever finds a half-done replacement.
pub const LABEL_REPLACES: &str = "io.refit.replaces";
/// The name that it is to have, or has.
pub const LABEL_NAME: &str = "io.refit.name";

/// The name of a replacement until it takes over. Derived from the id of the one it replaces, so that the engine, whose names
/// are unique, lets only one of two Refits make it. Must not contain `ws-`: the platform's own healers remove what does.
pub fn candidate_name(replaced: &ContainerId) -> String {
    format!("refit-new-{}", replaced.short())
}

/// The name of the old container while its replacement proves itself.
pub fn parked_name(replaced: &ContainerId) -> String {
    format!("refit-old-{}", replaced.short())
}

/// A step of a recreation, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Inspect,
    Create,
    Connect,
    Verify,
    Stop,
    Park,
    Rename,
    Start,
    Prove,
    Remove,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inspect => "inspect",
            Self::Create => "create",
            Self::Connect => "connect",
            Self::Verify => "verify",
            Self::Stop => "stop",
            Self::Park => "park",
            Self::Rename => "rename",
            Self::Start => "start",
            Self::Prove => "prove",
            Self::Remove => "remove",
        })
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine did as told, and what came of it is not what we need.
    #[error("{0}")]
    Unfit(String),
}

/// Why a container was not recreated. Only after `RolledBack` and `Stranded` was it ever stopped.
#[derive(Debug, thiserror::Error)]
pub enum RecreateError {
    #[error("`{name}` already runs this image")]
    Current { name: String },
    #[error("`{name}` is gone")]
    Gone { name: String },
    #[error("`{name}` was replaced by somebody else since it was listed")]
    ReplacedByOther {
        name: String,
        id: ContainerId,
        image_id: ImageId,
        current: bool,
    },
    #[error("another refresh is at work on `{name}`")]
    Busy { name: String },
    #[error("`{name}` cannot be recreated: {reason}")]
    Unsupported { name: String, reason: String },
    #[error("cannot {step} the replacement of `{name}`; the container was never stopped")]
    Aborted {
        name: String,
        step: Step,
        source: StepError,
    },
    #[error("cannot {step} the replacement of `{name}`; the old container is running again")]
    RolledBack {
        name: String,
        step: Step,
        source: StepError,
    },
    #[error(
        "cannot {step} the replacement of `{name}`, and the old container could not be put back: it is kept as `{kept_as}` ({old}), its replacement is {new}"
    )]
    Stranded {
        name: String,
        step: Step,
        source: StepError,
        old: ContainerId,
        new: ContainerId,
        kept_as: String,
        undoing: Box<EngineError>,
    },
}

impl Hints for RecreateError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Stranded { old, undoing, .. } => vec![
                format!("putting it back failed: {undoing}"),
                format!("nothing was deleted: `docker start {}` starts the old container", old.short()),
            ],
            Self::Busy { .. } => vec![
                "wait for it to end; if no other refresh runs, one was killed midway and left a container named `refit-new-…`".into(),
            ],
            Self::RolledBack { source: StepError::Engine(source), .. } | Self::Aborted { source: StepError::Engine(source), .. } => {
                source.hints()
            }
            Self::RolledBack { .. }
            | Self::Aborted { .. }
            | Self::Current { .. }
            | Self::Gone { .. }
            | Self::ReplacedByOther { .. }
            | Self::Unsupported { .. } => vec![],
        }
    }
}

/// Which containers somebody is at work on. Two callers in this process never hold one container at once; two processes are
/// kept apart by the engine, where the name of a replacement can be taken only once.
#[derive(Clone, Debug, Default)]
pub struct Locks(Arc<Mutex<HashSet<ContainerId>>>);

/// Held while a container is worked on.
#[derive(Debug)]
pub struct Lock {
    locks: Locks,
    id: ContainerId,
}

impl Locks {
    /// `None` where somebody else holds it.
    pub fn take(&self, id: &ContainerId) -> Option<Lock> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(id.clone()).then(|| Lock {
            locks: self.clone(),
            id: id.clone(),
        })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locks
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_held_once_and_let_go() {
        let (locks, id) = (Locks::default(), ContainerId::new("a"));
        let held = locks.take(&id).unwrap();
        assert!(locks.take(&id).is_none());
        assert!(locks.take(&ContainerId::new("b")).is_some());
        drop(held);
        assert!(locks.take(&id).is_some());
    }

    #[test]
    fn names_of_our_own_never_look_like_a_workspace() {
        let id = ContainerId::new("f".repeat(64));
        for name in [candidate_name(&id), parked_name(&id)] {
            assert!(
                !name.contains("ws-"),
                "`{name}` would be removed by the platform's healers"
            );
        }
    }
}
