//! Recreation of a container with a new image. Every caller, whether a person or a program, uses this one path.
//!
//! [`intent`] extracts what the user requested when the container was created, and [`verify`] checks whether a new container
//! matches that; both are pure. [`replace`] defines the order of the steps ([`overlap`] does it without downtime, [`remove`]
//! only removes the container and leaves the rest to others), `rollback` undoes them from any step, and [`health_gate`] decides
//! when a new container is ready. [`recover`] finishes or undoes replacements that another process could not end.
//! [`dependents`] finds the containers that must be replaced together with another one, [`guard`] names the containers that
//! Refit never touches, and [`self_protection`] those that Refit itself needs. [`concurrency`] limits how many steps run at
//! once, [`lease`] records which process works on which container, and [`names`] encodes the state of a replacement in
//! container names. This crate knows the engine's operations, but neither policies nor users.

#![forbid(unsafe_code)]

mod canonical;
pub mod concurrency;
pub mod dependents;
pub mod guard;
pub mod health_gate;
pub mod image_records;
pub mod intent;
pub mod lease;
pub mod names;
pub mod overlap;
mod prepare;
mod reconnect;
pub mod recover;
pub mod remove;
pub mod replace;
pub mod retention;
mod retry;
mod rollback;
pub mod self_protection;
mod stop;
pub mod verify;

use refit_engine::EngineError;
use refit_model::container::ContainerId;
use refit_model::diagnostic::Hints;
use refit_model::image::ImageId;
use refit_model::recreation::Step;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine did what the request said, but the result is not what Refit needs.
    #[error("{0}")]
    Unfit(String),
}

/// Why a container was not recreated. Only `RolledBack`, `Stranded` and `StillStopping` follow a stop.
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
    /// The replacement was created and then removed again.
    #[error("the refresh was ended before `{name}` was stopped; it was not touched")]
    Withdrawn { name: String },
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
        /// Further facts for the user.
        notes: Vec<String>,
        /// Names of replacements that could not be removed.
        left_over: Vec<String>,
    },
    /// The container has no stop timeout, so the engine does not kill it.
    #[error(
        "`{name}` was asked to stop, has no stop timeout and has not ended yet; recovery starts it again when it has"
    )]
    StillStopping { name: String, id: ContainerId },
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

impl RecreateError {
    /// The name of the container that this error is about.
    pub fn name(&self) -> &str {
        match self {
            Self::Current { name }
            | Self::Gone { name }
            | Self::ReplacedByOther { name, .. }
            | Self::Busy { name }
            | Self::Withdrawn { name }
            | Self::Unsupported { name, .. }
            | Self::Aborted { name, .. }
            | Self::RolledBack { name, .. }
            | Self::StillStopping { name, .. }
            | Self::Stranded { name, .. } => name,
        }
    }
}

impl Hints for RecreateError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Stranded { old, undoing, .. } => vec![
                format!("putting it back failed: {undoing}"),
                format!("nothing was deleted: `refit recover` tries again, `docker start {}` starts the old container", old.short()),
            ],
            Self::StillStopping { id, .. } => vec![
                format!("`docker kill {}` ends it at once; `refit recover`, or a running daemon, then starts it again", id.short()),
            ],
            Self::RolledBack { source, notes, left_over, .. } => {
                let mut hints = notes.clone();
                if !left_over.is_empty() {
                    hints.push(format!(
                        "`{}` could not be removed: `refit recover` tries again",
                        left_over.join("`, `")
                    ));
                }
                if let StepError::Engine(source) = source {
                    hints.extend(source.hints());
                }
                hints
            }
            Self::Busy { .. } => vec![
                "wait for it to end; if no other refresh runs, one was killed midway: `refit recover` ends what it began".into(),
            ],
            Self::Aborted { source: StepError::Engine(source), .. } => source.hints(),
            Self::Aborted { .. }
            | Self::Current { .. }
            | Self::Gone { .. }
            | Self::Withdrawn { .. }
            | Self::ReplacedByOther { .. }
            | Self::Unsupported { .. } => vec![],
        }
    }
}
