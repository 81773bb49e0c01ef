//! Giving a container its new image: the one way in which it is done, whoever asks.
//!
//! [`intent`] says what the user asked for when the container was made, and [`verify`] whether a new one is that; both are
//! pure. [`replace`] is the order of the steps ([`overlap`] the one without a gap, [`remove`] the one that leaves the rest to
//! others), `rollback` the way back from each, [`proof`] when a new one has proven itself,
//! [`recover`] what is done about replacements that somebody could not end. [`dependents`] says who must follow when a
//! container is replaced, [`guard`] which containers are never touched, [`self_protection`] which of them Refit needs itself,
//! [`lanes`] how many do what at once, [`lease`] who is at work on which, [`names`] what is written down of it. Knows the engine's verbs, and neither policies nor
//! people.

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
    /// Its replacement was made and is gone again.
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
        /// What a person should know besides.
        notes: Vec<String>,
        /// Names of replacements that could not be removed.
        left_over: Vec<String>,
    },
    /// It has no stop timeout, so the engine does not end it.
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
    /// The container that it is about.
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
