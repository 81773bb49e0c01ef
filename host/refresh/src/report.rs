//! Builds the report of a refresh from what the policy decided and what the host recorded.

use std::time::Instant;

use refit_capabilities::journal::Record;
use refit_model::decision::{Decision, Verdict};
use refit_model::image::ImageId;
use refit_model::pull::{ImageOutcome, ImageRecord};
use refit_model::recreation::RecreationOutcome;
use refit_model::report::{ContainerReport, FORMAT, Report, Summary};
use refit_model::request::{Mode, Request};
use refit_revisions::Generation;
use refit_sandbox::Decisions;

/// The SDK's name of this rule.
const RULE_NOT_RUNNING: &str = "not-running";

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
        // Whatever the policy decides, a container that does not run is not up to date.
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
    let abandoned = record
        .unfinished
        .iter()
        .filter(|unfinished| unfinished.is_abandoned());
    Report {
        format: FORMAT,
        mode,
        started,
        duration_ms: u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
        policy: generation.policy_report(),
        request: request.clone(),
        summary: Summary {
            unfinished: abandoned.count(),
            ..summarize(&record.images, &containers)
        },
        targets: decisions.targets,
        images: record.images,
        containers,
        unfinished: record.unfinished,
    }
}

/// Names absent images by their digest: in a plan, an image that is not on this machine has a random id, which means nothing to
/// readers.
fn name_absent_images(images: &[ImageRecord], containers: &mut [ContainerReport]) {
    for recreation in containers
        .iter_mut()
        .filter_map(|container| container.recreation.as_mut())
    {
        let absent_image = images.iter().find(|record| {
            record.outcome == ImageOutcome::WouldPull
                && Some(&record.image) == recreation.image.as_ref()
        });
        if let Some(digest) = absent_image.and_then(|record| record.digest.clone()) {
            recreation.to_image_id = ImageId::new(digest);
        }
    }
}

fn summarize(images: &[ImageRecord], containers: &[ContainerReport]) -> Summary {
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
            // The policy's verdict, if the host did nothing.
            None => match container.verdict {
                Some(Verdict::Current) => summary.current += 1,
                Some(Verdict::Stale) => summary.stale += 1,
                Some(Verdict::Unknown) => summary.unknown += 1,
                // The policy reports `recreate` and never requested it: a bug in the policy, or a wave that was cut short.
                Some(Verdict::Recreate) => summary.recreate_failed += 1,
                Some(Verdict::Leave) | None => {}
            },
        }
    }
    summary
}
