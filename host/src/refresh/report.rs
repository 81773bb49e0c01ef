//! What a refresh came to: the host's record of what was done, and beside it the policy's reasons.
//!
//! The JSON of this is documented in `docs/report.md` and stable within a `format`.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Mode, Request};
use crate::generation::Generation;
use crate::image::ImageId;
use crate::journal::{ImageOutcome, ImageRecord, Record, RecreationOutcome, RecreationRecord};
use crate::policy::{Decision, Decisions, Target, Verdict};
use crate::recreate::recover::Unfinished;

/// Raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;

/// As the SDK calls it.
const RULE_NOT_RUNNING: &str = "not-running";

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
    /// Whether something that was asked for did not come about. A missing image alone is such a thing.
    pub fn has_failures(&self) -> bool {
        let summary = &self.summary;
        summary.pull_failed + summary.recreate_failed + summary.unknown + summary.unfinished > 0
    }

    /// Whether a plan found something to do.
    pub fn has_work(&self) -> bool {
        self.summary.would_pull + self.summary.would_recreate > 0
    }

    /// The record of what was done about an image, by the reference that the policy gave for it.
    pub fn image(&self, reference: &str) -> Option<&ImageRecord> {
        let wanted = reference.parse::<crate::image::ImageRef>().ok()?;
        self.images
            .iter()
            .rev()
            .find(|record| record.image == wanted)
    }
}

impl PolicyReport {
    pub fn of(generation: &Generation) -> Self {
        let policy = generation.policy();
        Self {
            name: policy.name.clone(),
            version: policy.version.clone(),
            digest: policy.digest.clone(),
            generation: generation.number,
        }
    }
}

pub(super) fn build(
    generation: &Generation,
    request: &Request,
    mode: Mode,
    (started, clock): (jiff::Timestamp, Instant),
    decisions: Decisions,
    mut record: Record,
) -> Report {
    record.images.sort_by_key(|record| record.image.to_string());
    let mut containers: Vec<ContainerReport> = Vec::new();
    for (name, mut decision) in decisions.by_container {
        // Whatever a policy says: what does not run is not up to date.
        if decision.verdict == Verdict::Current
            && let Some(state) = record.stopped.get(&name)
        {
            decision = Decision {
                verdict: Verdict::Leave,
                rule: RULE_NOT_RUNNING.into(),
                reason: format!(
                    "it is {state}; the policy calls it current: {}",
                    decision.reason
                ),
            };
        }
        containers.push(ContainerReport {
            name,
            verdict: Some(decision.verdict),
            rule: Some(decision.rule),
            reason: Some(decision.reason),
            recreation: None,
        });
    }
    for recreation in record.recreations {
        let name = recreation.container.clone();
        match containers
            .iter_mut()
            .find(|container| container.name == name)
        {
            Some(container) => container.recreation = Some(recreation),
            None => {
                containers.push(ContainerReport {
                    name,
                    verdict: None,
                    rule: None,
                    reason: None,
                    recreation: Some(recreation),
                });
            }
        }
    }
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    name_absent_images(&record.images, &mut containers);
    let abandoned = record.unfinished.iter().filter(|it| it.is_abandoned());
    Report {
        format: FORMAT,
        mode,
        started,
        duration_ms: u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
        policy: PolicyReport::of(generation),
        request: request.clone(),
        summary: Summary {
            unfinished: abandoned.count(),
            ..summarise(&record.images, &containers)
        },
        targets: decisions.targets,
        images: record.images,
        containers,
        unfinished: record.unfinished,
    }
}

/// In a plan an image that is not here has a random id, which says nothing to anybody: reports name it by its digest.
fn name_absent_images(images: &[ImageRecord], containers: &mut [ContainerReport]) {
    for recreation in containers
        .iter_mut()
        .filter_map(|it| it.recreation.as_mut())
    {
        let absent = images.iter().find(|record| {
            record.outcome == ImageOutcome::WouldPull
                && Some(&record.image) == recreation.image.as_ref()
        });
        if let Some(digest) = absent.and_then(|record| record.digest.clone()) {
            recreation.to_image_id = ImageId::new(digest);
        }
    }
}

fn summarise(images: &[ImageRecord], containers: &[ContainerReport]) -> Summary {
    let mut summary = Summary::default();
    for image in images {
        match image.outcome {
            ImageOutcome::Pulled => summary.pulled += 1,
            ImageOutcome::UpToDate => summary.up_to_date += 1,
            ImageOutcome::WouldPull => summary.would_pull += 1,
            ImageOutcome::Failed => summary.pull_failed += 1,
        }
    }
    for container in containers {
        match container
            .recreation
            .as_ref()
            .map(|recreation| recreation.outcome)
        {
            Some(RecreationOutcome::Recreated) => summary.recreated += 1,
            Some(RecreationOutcome::Removed) => summary.removed += 1,
            Some(RecreationOutcome::WouldRecreate) => summary.would_recreate += 1,
            Some(RecreationOutcome::Current) => summary.current += 1,
            Some(_) => summary.recreate_failed += 1,
            // What the policy says, and the host did nothing about.
            None => match container.verdict {
                Some(Verdict::Current) => summary.current += 1,
                Some(Verdict::Stale) => summary.stale += 1,
                Some(Verdict::Unknown) => summary.unknown += 1,
                // It says `recreate` and never asked for it: a lie, or a wave cut short.
                Some(Verdict::Recreate) => summary.recreate_failed += 1,
                Some(Verdict::Leave) | None => {}
            },
        }
    }
    summary
}
