//! `refit approvals …`: the refreshes that wait for approval in a daemon. Each command calls the daemon.

use bytes::Bytes;
use http::Method;
use refit_model::diagnostic::Diagnostic;
use refit_model::pull::ImageOutcome;
use refit_model::report::Summary;
use refit_service::approvals::plan::Plan;
use refit_service::approvals::{ApprovalState, Entry, PendingApproval};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::arguments::{ApprovalsArguments, ApprovalsCommand, ByArguments};
use super::super::remote::{Answer, Ask, Daemon};
use super::super::{Status, table, tell};
use super::Common;
use super::history::asked_for;
use super::policy::{self, JSON, answered, read};
use crate::config::Flags;

pub(in super::super) async fn approvals(
    common: Common,
    arguments: ApprovalsArguments,
) -> Result<Status, Diagnostic> {
    let config = common.load(Flags::default())?.config;
    match arguments.command {
        ApprovalsCommand::List {
            state,
            json,
            server,
        } => {
            let query = state.map(|state| format!("?state={}", state.as_str()));
            let path = format!("/v1/approvals{}", query.unwrap_or_default());
            let daemon = policy::daemon(&config, &server)?;
            answered(daemon.ask(read(&path)).await?, json, list)
        }
        ApprovalsCommand::Show { id, json, server } => {
            let daemon = policy::daemon(&config, &server)?;
            let ask = read(&format!("/v1/approvals/{id}"));
            answered(daemon.ask(ask).await?, json, |body| {
                format_body(body, approval_text)
            })
        }
        ApprovalsCommand::Request {
            runtimes,
            no_recreate,
            force,
            by,
            json,
            server,
        } => {
            let body = json!({ "targets": runtimes, "recreate": !no_recreate, "force": force });
            let ask = post("/v1/approvals".to_owned(), Some(&body));
            let daemon = policy::daemon(&config, &server)?;
            print_change(asked(&daemon, by, ask).await?, json, request_text)
        }
        ApprovalsCommand::Approve {
            id,
            by,
            json,
            server,
        } => {
            let ask = post(format!("/v1/approvals/{id}/approve"), None);
            let daemon = policy::daemon(&config, &server)?;
            print_change(asked(&daemon, by, ask).await?, json, |body| {
                format_body(body, decision_text)
            })
        }
        ApprovalsCommand::Reject {
            id,
            reason,
            by,
            json,
            server,
        } => {
            let body = json!({ "reason": reason });
            let ask = post(format!("/v1/approvals/{id}/reject"), Some(&body));
            let daemon = policy::daemon(&config, &server)?;
            print_change(asked(&daemon, by, ask).await?, json, |body| {
                format_body(body, decision_text)
            })
        }
    }
}

fn post(path: String, body: Option<&Value>) -> Ask<'static> {
    Ask {
        method: Method::POST,
        path,
        expected: None,
        body: body.map(|body| (JSON, Bytes::from(body.to_string()))),
    }
}

async fn asked(daemon: &Daemon, by: ByArguments, ask: Ask<'_>) -> Result<Answer, Diagnostic> {
    let by = by.by.unwrap_or_else(policy::caller);
    daemon.ask_as(Some(&by), ask).await
}

/// A refusal is a valid answer of the daemon: it runs, and nothing was changed.
fn print_change(
    answer: Answer,
    json: bool,
    words: impl Fn(&Value) -> String,
) -> Result<Status, Diagnostic> {
    if let Answer::Refused(problem) = &answer {
        tell(problem);
        return Ok(Status::SomeFailed);
    }
    answered(answer, json, words)
}

/// A daemon of another version may use unknown words.
fn format_body<T: DeserializeOwned>(body: &Value, words: impl Fn(&T) -> String) -> String {
    match serde_json::from_value(body.clone()) {
        Ok(value) => words(&value),
        Err(_) => {
            "the daemon is another version of Refit: `--json` prints what it says\n".to_owned()
        }
    }
}

fn list(body: &Value) -> String {
    let mut lines = String::new();
    for entry in body["approvals"].as_array().into_iter().flatten() {
        lines += &format_body(entry, entry_line);
    }
    if lines.is_empty() {
        lines += "no refresh is held that is like this\n";
    }
    if body["problem"].is_object() {
        lines += &format_body(&body["problem"], |problem: &Diagnostic| {
            format!("\n{problem}")
        });
    }
    lines
}

/// One line: id, time, state, requester, subject, and counts.
fn entry_line(entry: &Entry) -> String {
    let images = entry.findings.iter().map(|found| found.image.to_string());
    let images: Vec<String> = images.collect();
    let line = format!(
        "{:<6} {}  {:<11} {:<16} {}  {}",
        entry.id,
        table::format_time(entry.created),
        state_word(&entry.state),
        table::trigger_text(entry.request.trigger, entry.by.as_deref()),
        counts_text(&entry.summary),
        images.join(", ")
    );
    line.trim_end().to_owned() + "\n"
}

/// The state, in capitals if a person should act on it.
fn state_word(fate: &ApprovalState) -> &'static str {
    match fate {
        ApprovalState::Waiting => "WAITING",
        other => other.name().as_str(),
    }
}

fn counts_text(summary: &Summary) -> String {
    let counted = [
        (summary.would_pull, "to pull"),
        (summary.would_recreate, "to recreate"),
        (summary.unknown, "unknown"),
        (summary.pull_failed, "not to be had"),
    ];
    table::counts(&counted).unwrap_or_else(|| "nothing to do".to_owned())
}

fn request_text(body: &Value) -> String {
    if body["state"] == "nothing-to-do" {
        return "nothing to do, and nothing is held\n".to_owned();
    }
    format_body(body, |held: &PendingApproval| {
        format!(
            "held              approval {}, until {}: {}\n",
            held.id,
            table::format_time(held.expires),
            counts_text(&held.plan.summary)
        )
    })
}

fn decision_text(held: &PendingApproval) -> String {
    let what = match &held.state {
        ApprovalState::Approved {
            refresh: Some(refresh),
            ..
        } => format!("refresh {refresh} has begun; `refit history show {refresh}` tells of it"),
        ApprovalState::Approved { refresh: None, .. } => "it begins as soon as it can".to_owned(),
        _ => counts_text(&held.plan.summary),
    };
    let word = held.state.name().as_str();
    format!("{word:<17} approval {}: {what}\n", held.id)
}

fn approval_text(held: &PendingApproval) -> String {
    let mut text = format!(
        "approval  {}, {}\nheld      {}, until {}\nasked by  {}, for {}\n",
        held.id,
        result_text(&held.state),
        table::format_time(held.created),
        table::format_time(held.expires),
        table::trigger_text(held.request.trigger, held.by.as_deref()),
        asked_for(&held.request),
    );
    let policy = &held.plan.policy;
    text += &format!(
        "policy    {} {}, generation {}, {}\n\n",
        policy.name, policy.version, policy.generation, policy.digest
    );
    text += &plan(&held.plan);
    text
}

fn result_text(fate: &ApprovalState) -> String {
    let by = |who: &Option<String>| {
        let who = who.as_ref().map(|who| format!(" by {who}"));
        who.unwrap_or_default()
    };
    let word = state_word(fate);
    match fate {
        ApprovalState::Waiting | ApprovalState::Expired => word.to_owned(),
        ApprovalState::Approved {
            decided_by,
            decided_at,
            refresh,
        } => {
            let refresh = match refresh {
                Some(refresh) => format!("refresh {refresh}"),
                None => "not begun yet".to_owned(),
            };
            let when = table::format_time(*decided_at);
            format!("{word}{} at {when}, {refresh}", by(decided_by))
        }
        ApprovalState::Rejected {
            decided_by,
            decided_at,
            reason,
        } => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}"));
            let when = table::format_time(*decided_at);
            format!(
                "{word}{} at {when}{}",
                by(decided_by),
                reason.unwrap_or_default()
            )
        }
        ApprovalState::Superseded {
            decided_at,
            superseded_by,
            moved,
        } => {
            let by = superseded_by.map(|id| format!(" by approval {id}"));
            let moved: String = moved
                .iter()
                .map(|what| format!("\n          {what}"))
                .collect();
            let when = table::format_time(*decided_at);
            format!("{word}{} at {when}{moved}", by.unwrap_or_default())
        }
    }
}

/// The plan like `refit plan`, with the approved digests.
fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    for image in &plan.images {
        let word = match image.outcome {
            ImageOutcome::WouldPull => "would pull",
            ImageOutcome::UpToDate => "up to date",
            ImageOutcome::Pulled => "pulled",
            ImageOutcome::Failed => "not to be had",
        };
        let detail = image.digest.as_ref().or(image.problem.as_ref());
        let detail = detail.map(String::as_str).unwrap_or_default();
        text += &(table::line(word, &image.image.to_string(), detail) + "\n");
    }
    if !plan.images.is_empty() && !plan.containers.is_empty() {
        text += "\n";
    }
    for container in &plan.containers {
        let mut detail = container.reason.clone().unwrap_or_default();
        if !container.followed.is_empty() {
            detail += &format!("; with it {}", container.followed.join(", "));
        }
        text += &(table::line("would recreate", &container.name, &detail) + "\n");
    }
    text + "\n" + &counts_text(&plan.summary) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_state_of_another_version_is_shown() {
        let text = format_body(&json!({ "id": "seven" }), decision_text);
        assert!(text.contains("another version"), "{text}");
    }
}
