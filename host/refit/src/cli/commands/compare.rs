//! `refit policy swap --shadow | shadow | record`: shadow runs of a policy next to the active one, and recorded snapshots.

use refit_model::diagnostic::Diagnostic;
use refit_model::request::{Request, Trigger};
use refit_revisions::start::Persistence;
use serde_json::Value;

use super::super::arguments::RecordArguments;
use super::super::remote::Answer;
use super::super::{Status, print, tell};
use super::policy::{answered, text};
use super::{Common, isolation};
use crate::config::{Flags, PolicyFlags};
use crate::setup;

/// Print the start of a shadow run, or the refusal of the candidate.
pub(super) fn print_start(answer: Answer, json: bool) -> Result<Status, Diagnostic> {
    if let Answer::Refused(problem) = &answer {
        tell(problem);
        return Ok(Status::SomeFailed);
    }
    answered(answer, json, trial)
}

pub(super) fn trial(body: &Value) -> String {
    let mut lines = format!(
        "on trial          {} {}, beside generation {}",
        text(&body["name"]),
        text(&body["version"]),
        body["beside"]
    );
    if let Some(after) = body["after"].as_u64() {
        lines += &format!("; takes over after {after} in a row that agree");
    }
    lines += &format!(
        "\ncompared          {}, agreed {}, {} in a row; skipped {}\n",
        body["compared"], body["agreed"], body["agreed_in_a_row"], body["skipped"]
    );
    for comparison in body["differing"].as_array().into_iter().flatten() {
        lines += &comparison_lines(comparison);
    }
    lines
}

/// Format one comparison in which the two policies decided differently.
pub(super) fn comparison_lines(comparison: &Value) -> String {
    let mut lines = String::new();
    let at = text(&comparison["at"])
        .split('.')
        .next()
        .unwrap_or_default();
    if let Some(error) = comparison["error"].as_str() {
        let causes = comparison["causes"].as_array().into_iter().flatten();
        let causes: String = causes.map(|cause| format!(": {}", text(cause))).collect();
        lines += &format!("{at}  {error}{causes}\n");
    }
    for difference in comparison["differences"].as_array().into_iter().flatten() {
        lines += &format!("{at}  {}\n", text(&difference["container"]));
        for (side, said) in [
            ("active", &difference["old"]),
            ("candidate", &difference["new"]),
        ] {
            lines += &format!("    {side:<10} {}\n", decision_line(said));
        }
    }
    if let Some(more) = comparison["more"].as_u64() {
        lines += &format!("{at}  and {more} more\n");
    }
    lines
}

/// Format a decision: `recreate  image-moved: the tag moved; replace to sha256:…`.
pub(super) fn decision_line(decision: &Value) -> String {
    if decision.is_null() {
        return "says nothing of it".to_owned();
    }
    let mut line = match (decision["verdict"].as_str(), text(&decision["rule"])) {
        (None, _) => "decided nothing".to_owned(),
        (Some(verdict), rule) => format!("{verdict}  {rule}: {}", text(&decision["reason"])),
    };
    if decision["recreation"].is_object() {
        line += &format!(
            "; {} to {}",
            text(&decision["recreation"]["strategy"]),
            text(&decision["recreation"]["to_image_id"])
        );
    }
    line
}

pub(super) async fn record(
    common: Common,
    arguments: RecordArguments,
) -> Result<Status, Diagnostic> {
    let flags = Flags {
        policy: arguments.policy.map(|component| PolicyFlags { component }),
        ..Flags::default()
    };
    let config = common.load(flags)?.config;
    let refresher = setup::refresher(&config, isolation(&config), Persistence::Nothing).await?;
    let request = Request {
        trigger: Trigger::Operator,
        targets: vec![],
        images: vec![],
        recreate: true,
        force: false,
    };
    let mut snapshot = refresher.record_snapshot(&request).await?;
    snapshot.redact();
    match arguments.output {
        None => print(&snapshot.to_text()),
        Some(path) => std::fs::write(&path, snapshot.to_text()).map_err(|error| {
            Diagnostic::new(format!("cannot write the snapshot `{}`", path.display()))
                .because(error.to_string())
        })?,
    }
    Ok(Status::Done)
}
