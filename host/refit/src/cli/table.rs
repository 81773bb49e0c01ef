//! Formats reports for a person.

use std::fmt::Write as _;

use refit_history::Entry;
use refit_model::decision::Verdict;
use refit_model::diagnostic::Diagnostic;
use refit_model::pull::{ImageOutcome, ImageRecord};
use refit_model::recreation::{RecreationOutcome, RecreationRecord};
use refit_model::report::{ContainerReport, Report};
use refit_model::request::{Mode, Trigger};
use refit_model::unfinished::UnfinishedState;
use refit_recreate::recover::{Outcome, Recovered};

/// A line such as `pulled       ghcr.io/…/workspace-template-hermes:latest`.
pub(super) fn image_line(record: &ImageRecord) -> String {
    let word = match record.outcome {
        ImageOutcome::Pulled => "pulled",
        ImageOutcome::UpToDate => "up to date",
        ImageOutcome::WouldPull => "would pull",
        ImageOutcome::Failed => "not pulled",
    };
    line(word, &record.image.to_string(), "")
}

pub(super) fn recreation_line(record: &RecreationRecord) -> String {
    let detail = match record.gap {
        Some(gap) => format!("{} ms down", gap.as_millis()),
        None => String::new(),
    };
    line(word(record.outcome), &record.container, &detail)
}

/// One line: id, time, duration, outcome, requester, policy, and counts.
pub(super) fn history_line(entry: &Entry) -> String {
    let took = match entry.duration_ms {
        Some(milliseconds) => format!("{:.1} s", milliseconds as f64 / 1000.0),
        None => "-".to_owned(),
    };
    let policy = &entry.policy;
    let policy = format!("{} {} #{}", policy.name, policy.version, policy.generation);
    let line = format!(
        "{:<6} {} {took:>9}  {:<11} {:<16} {policy:<24} {}",
        entry.id,
        format_time(entry.started),
        outcome_word(entry.outcome),
        requester_text(entry),
        result_text(entry)
    );
    line.trim_end().to_owned()
}

pub(super) fn format_time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// The outcome, in capitals if a person should act on it.
pub(super) fn outcome_word(outcome: refit_history::Outcome) -> &'static str {
    match outcome {
        refit_history::Outcome::Running => "running",
        refit_history::Outcome::Done => "done",
        refit_history::Outcome::SomeFailed => "SOME FAILED",
        refit_history::Outcome::Cancelled => "cancelled",
        refit_history::Outcome::Failed => "FAILED",
        refit_history::Outcome::Interrupted => "INTERRUPTED",
    }
}

pub(super) fn requester_text(entry: &Entry) -> String {
    trigger_text(entry.request.trigger, entry.by.as_deref())
}

/// The trigger and the requester.
pub(super) fn trigger_text(trigger: Trigger, by: Option<&str>) -> String {
    let trigger = trigger.as_str();
    match by {
        Some(by) => format!("{trigger} {by}"),
        None => trigger.to_owned(),
    }
}

fn result_text(entry: &Entry) -> String {
    if let Some(container) = &entry.container {
        let gap = container.gap_ms.map(|gap| format!(", {gap} ms down"));
        return format!(
            "{} {}{}",
            container.name,
            container.outcome,
            gap.unwrap_or_default()
        );
    }
    let summary = entry.summary.unwrap_or_default();
    let named = (entry.rolled_back + entry.stranded) as usize;
    let counted = [
        (summary.recreated, "recreated"),
        (summary.removed, "removed"),
        (entry.rolled_back as usize, "rolled back"),
        (entry.stranded as usize, "STRANDED"),
        (
            summary.recreate_failed.saturating_sub(named),
            "not recreated",
        ),
        (summary.unknown, "unknown"),
        (summary.stale, "stale"),
        (summary.current, "current"),
        (summary.pulled, "pulled"),
        (summary.pull_failed, "not pulled"),
    ];
    let counted = counts(&counted);
    match (&entry.failure, counted) {
        (Some(failure), None) => failure.error.clone(),
        (Some(failure), Some(counted)) => format!("{counted}; {}", failure.error),
        (None, counted) => counted.unwrap_or_default(),
    }
}

/// A line for each interrupted replacement.
pub(super) fn recovered_lines(recovered: &[Recovered]) -> String {
    let word = |outcome| match outcome {
        Outcome::Finished => "finished",
        Outcome::Undone => "undone",
        Outcome::Superseded => "superseded",
        Outcome::InProgress => "in progress",
        Outcome::LeftOver => "left over",
        Outcome::Stranded => "STRANDED",
    };
    recovered
        .iter()
        .map(|recovered| {
            line(
                word(recovered.outcome),
                &recovered.container,
                &recovered.detail,
            ) + "\n"
        })
        .collect()
}

fn word(outcome: RecreationOutcome) -> &'static str {
    match outcome {
        RecreationOutcome::Recreated => "recreated",
        RecreationOutcome::Removed => "removed",
        RecreationOutcome::WouldRecreate => "would recreate",
        RecreationOutcome::Current => "current",
        RecreationOutcome::ReplacedByOther => "replaced by other",
        RecreationOutcome::Busy => "busy",
        RecreationOutcome::Refused => "refused",
        RecreationOutcome::Aborted => "not recreated",
        RecreationOutcome::RolledBack => "rolled back",
        RecreationOutcome::Stranded => "STRANDED",
    }
}

pub(super) fn line(word: &str, subject: &str, detail: &str) -> String {
    format!(
        "{word:<17} {subject}{}{detail}",
        if detail.is_empty() { "" } else { "  " }
    )
}

/// The whole report: images, containers with the reason for each, failures with their causes, and totals.
pub(super) fn format_report(report: &Report) -> String {
    let mut text = String::new();
    for image in &report.images {
        let _ = writeln!(text, "{}", image_line(image));
    }
    if !report.images.is_empty() && !report.containers.is_empty() {
        text.push('\n');
    }
    for container in &report.containers {
        let _ = writeln!(text, "{}", container_line(container));
    }
    for unfinished in &report.unfinished {
        let word = match unfinished.state {
            UnfinishedState::HalfDone => "HALF DONE",
            UnfinishedState::InProgress => "in progress",
            UnfinishedState::LeftOver => "left over",
            UnfinishedState::Stranded => "STRANDED",
        };
        let _ = writeln!(
            text,
            "{}",
            line(word, &unfinished.container, &unfinished.detail)
        );
    }
    let failures = report
        .images
        .iter()
        .filter_map(|image| image.failure.as_ref());
    let failures = failures.chain(
        report
            .containers
            .iter()
            .filter_map(|it| it.recreation.as_ref()?.failure.as_ref()),
    );
    // Eight images that fail for one reason need its hint once.
    let mut hints: Vec<&str> = Vec::new();
    for failure in failures {
        let _ = write!(
            text,
            "\n{}",
            Diagnostic {
                hints: vec![],
                ..failure.clone()
            }
        );
        for hint in &failure.hints {
            if !hints.contains(&hint.as_str()) {
                hints.push(hint);
            }
        }
    }
    if !hints.is_empty() {
        text.push('\n');
    }
    for hint in hints {
        let _ = writeln!(text, "hint: {hint}");
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let _ = writeln!(text, "{}", totals_line(report));
    text
}

fn container_line(container: &ContainerReport) -> String {
    let word = match (&container.recreation, container.verdict) {
        (Some(recreation), _) => word(recreation.outcome),
        (None, Some(Verdict::Current)) => "current",
        (None, Some(Verdict::Stale)) => "stale",
        (None, Some(Verdict::Unknown)) => "unknown",
        (None, Some(Verdict::Leave)) => "left",
        (None, Some(Verdict::Recreate) | None) => "not recreated",
    };
    let mut detail = String::new();
    if let Some(gap) = container
        .recreation
        .as_ref()
        .and_then(|recreation| recreation.gap)
    {
        let _ = write!(detail, "{} ms down; ", gap.as_millis());
    }
    detail.push_str(
        container
            .reason
            .as_deref()
            .unwrap_or("the policy gave no reason"),
    );
    if let Some(recreation) = &container.recreation
        && !recreation.followed.is_empty()
    {
        let _ = write!(detail, "; with it {}", recreation.followed.join(", "));
    }
    line(word, &container.name, &detail)
}

fn totals_line(report: &Report) -> String {
    let summary = &report.summary;
    let counted = [
        (summary.pulled, "pulled"),
        (summary.would_pull, "to pull"),
        (summary.up_to_date, "up to date"),
        (summary.pull_failed, "not pulled"),
    ];
    let images = counts(&counted).unwrap_or_else(|| "none".into());
    let counted = [
        (summary.recreated, "recreated"),
        (summary.removed, "removed"),
        (summary.would_recreate, "to recreate"),
        (summary.current, "current"),
        (summary.stale, "stale"),
        (summary.unknown, "unknown"),
        (summary.recreate_failed, "not recreated"),
        (summary.unfinished, "unfinished from before"),
    ];
    let containers = counts(&counted).unwrap_or_else(|| "none".into());
    let what = match report.mode {
        Mode::Refresh => "done",
        Mode::Plan => "plan, nothing was changed",
    };
    format!(
        "images: {images}; containers: {containers} ({what} in {:.1} s)",
        report.duration_ms as f64 / 1000.0
    )
}

pub(super) fn counts(counted: &[(usize, &str)]) -> Option<String> {
    let said: Vec<String> = counted
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
    (!said.is_empty()).then(|| said.join(", "))
}
