//! The recreation of one container: its strategy, its steps, and its result.

use std::fmt;
use std::time::Duration;

use crate::container::ContainerId;
use crate::diagnostic::{Diagnostic, Failure};
use crate::image::{ImageId, ImageRef};
use crate::milliseconds;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[derive(utoipa::ToSchema)]
pub enum Strategy {
    Replace,
    Remove,
    Overlap,
}

impl Strategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Remove => "remove",
            Self::Overlap => "overlap",
        }
    }
}

/// A step of a recreation, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
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

/// What became of a container that a policy gave to `recreate`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct RecreationRecord {
    pub container: String,
    pub strategy: Strategy,
    pub outcome: RecreationOutcome,
    pub old_id: ContainerId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_id: Option<ContainerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image_id: Option<ImageId>,
    pub to_image_id: ImageId,
    /// The image that it was, or would be, recreated with, as the policy named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// How long nothing ran under the name.
    #[serde(
        default,
        rename = "gap_ms",
        with = "milliseconds::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub gap: Option<Duration>,
    /// Containers that depend on it and were, or would be, replaced with it, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followed: Vec<String>,
    /// The ids that these had, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follower_ids: Vec<ContainerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_over: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Failure)]
    pub failure: Option<Diagnostic>,
    #[serde(rename = "duration_ms", with = "milliseconds")]
    #[schema(value_type = u64)]
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum RecreationOutcome {
    /// Done and proven.
    Recreated,
    Removed,
    /// A plan: it would be.
    WouldRecreate,
    /// The container ran the image already, or another program had replaced it by a container that does.
    Current,
    /// Somebody else replaced or removed it, and what is there now is not known to run the image.
    ReplacedByOther,
    Busy,
    /// A grant, a count or a rule of the host forbade it, or the refresh was being ended. Left alone.
    Refused,
    /// The replacement could not be made. Never stopped.
    Aborted,
    /// It did not come up. The old one runs.
    RolledBack,
    /// A person is needed.
    Stranded,
}

impl RecreationOutcome {
    pub const ALL: [Self; 10] = [
        Self::Recreated,
        Self::Removed,
        Self::WouldRecreate,
        Self::Current,
        Self::ReplacedByOther,
        Self::Busy,
        Self::Refused,
        Self::Aborted,
        Self::RolledBack,
        Self::Stranded,
    ];

    /// Returns the word for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recreated => "recreated",
            Self::Removed => "removed",
            Self::WouldRecreate => "would-recreate",
            Self::Current => "current",
            Self::ReplacedByOther => "replaced-by-other",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled-back",
            Self::Stranded => "stranded",
        }
    }

    /// Reports whether a user who requested this refresh did not get the requested result.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Recreated | Self::Removed | Self::WouldRecreate | Self::Current => false,
            Self::ReplacedByOther
            | Self::Busy
            | Self::Refused
            | Self::Aborted
            | Self::RolledBack
            | Self::Stranded => true,
        }
    }
}
