//! The log messages about a refresh: its start, each image and container, and its end, in a span with its number.
//!
//! Anything to search or count is a field, named as in the report. No field is secret: a record contains no login.

use refit_model::diagnostic::Diagnostic;
use refit_model::event::Event;
use refit_model::pull::ImageOutcome;
use refit_model::report::Report;
use refit_refresh::RefreshError;

use super::RefreshHandle;

pub(super) fn log_began(run: &RefreshHandle) {
    let (request, policy) = (&run.request, &run.policy);
    tracing::info!(
        targets = ?request.targets,
        images = ?request.images,
        recreate = request.recreate,
        force = request.force,
        policy = policy.name,
        policy_version = policy.version,
        generation = policy.generation,
        "a refresh begins"
    );
}

/// Logs the end of a pull or a recreation. Progress is for clients, and would only be noise here.
pub(super) fn log_event(event: &Event) {
    match event {
        Event::PullEnded(record) => {
            let duration_ms = milliseconds(record.duration);
            let outcome = record.outcome.as_str();
            let digest = record.digest.as_deref();
            match &record.failure {
                Some(failure) => {
                    tracing::warn!(image = %record.image, outcome, duration_ms, hints = ?failure.hints, "{}", failure.sentence());
                }
                None if record.outcome == ImageOutcome::Pulled => {
                    tracing::info!(image = %record.image, outcome, digest, duration_ms, "an image was pulled");
                }
                None => {
                    tracing::debug!(image = %record.image, outcome, digest, duration_ms, "an image is up to date");
                }
            }
        }
        // The code that knows its causes logs a failure.
        Event::RecreateEnded(record) => tracing::info!(
            container = record.container,
            outcome = record.outcome.as_str(),
            strategy = record.strategy.as_str(),
            gap_ms = record.gap.map(milliseconds),
            from_image_id = record.from_image_id.as_ref().map(|id| id.as_str()),
            to_image_id = record.to_image_id.as_str(),
            duration_ms = milliseconds(record.duration),
            "a container was worked on"
        ),
        Event::PullStarted { .. }
        | Event::Layer { .. }
        | Event::RecreateStarted { .. }
        | Event::Step { .. } => {}
    }
}

pub(super) fn log_ended(run: &RefreshHandle, answer: &Result<Report, RefreshError>) {
    let entry = run.to_shown().entry;
    let (outcome, duration_ms) = (entry.outcome.as_str(), entry.duration_ms);
    if let Err(error) = answer {
        let diagnostic = Diagnostic::of(error);
        tracing::error!(outcome, duration_ms, hints = ?diagnostic.hints, "a refresh failed: {}", diagnostic.sentence());
        return;
    }
    let summary = entry.summary.unwrap_or_default();
    tracing::info!(
        outcome,
        duration_ms,
        pulled = summary.pulled,
        up_to_date = summary.up_to_date,
        pull_failed = summary.pull_failed,
        recreated = summary.recreated,
        removed = summary.removed,
        current = summary.current,
        unknown = summary.unknown,
        recreate_failed = summary.recreate_failed,
        "a refresh has ended"
    );
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
