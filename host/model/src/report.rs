//! The report of a refresh: the host's record of its actions, with the policy's reasons.

use serde::{Deserialize, Serialize};

use crate::decision::{Target, Verdict};
use crate::pull::ImageRecord;
use crate::recreation::RecreationRecord;
use crate::request::{Mode, Request};
use crate::unfinished::Unfinished;

/// The version of this format. It increases if a field changes its meaning or is removed.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Report {
    pub format: u32,
    pub mode: Mode,
    pub started: jiff::Timestamp,
    pub duration_ms: u64,
    pub policy: PolicyReport,
    pub request: Request,
    pub summary: Summary,
    /// What the policy calls the images.
    pub targets: Vec<Target>,
    /// Sorted by reference.
    pub images: Vec<ImageRecord>,
    /// Sorted by name.
    pub containers: Vec<ContainerReport>,
    /// Replacements that were begun before, have not ended, and that nobody is at work on: a person may be needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<Unfinished>,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyReport {
    pub name: String,
    pub version: String,
    pub digest: String,
    /// Which of the daemon's policies it was, counted from 1; 1 where nothing can be swapped.
    pub generation: u64,
}

/// A container that the policy decided about, or gave to the host.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ContainerReport {
    pub name: String,
    /// `None` where the policy ended before it said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the host did about it. `None` where it was not asked to do anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recreation: Option<RecreationRecord>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Summary {
    pub pulled: usize,
    pub up_to_date: usize,
    pub would_pull: usize,
    pub pull_failed: usize,
    pub recreated: usize,
    pub removed: usize,
    pub would_recreate: usize,
    pub current: usize,
    pub stale: usize,
    pub unknown: usize,
    /// Recreations that did not come to what was asked: refused, aborted, rolled back, stranded, busy.
    pub recreate_failed: usize,
    /// Replacements that were begun before, have not ended, and that nobody is at work on.
    #[serde(default)]
    pub unfinished: usize,
}

impl Report {
    /// Reports whether a requested result was not reached. A missing image alone counts.
    pub fn has_failures(&self) -> bool {
        let summary = &self.summary;
        summary.pull_failed + summary.recreate_failed + summary.unknown + summary.unfinished > 0
    }

    /// Reports whether a plan contains any work.
    pub fn has_work(&self) -> bool {
        self.summary.would_pull + self.summary.would_recreate > 0
    }

    /// Returns the record of an image, by the reference that the policy gave for it.
    pub fn image(&self, reference: &str) -> Option<&ImageRecord> {
        let wanted = reference.parse::<crate::image::ImageRef>().ok()?;
        self.images
            .iter()
            .rev()
            .find(|record| record.image == wanted)
    }
}
