//! `refit watch …`: show the state of a daemon's watcher, pause or resume it, or request a check.

use std::time::{Duration, Instant};

use http::Method;
use refit_model::diagnostic::Diagnostic;
use refit_model::image::ImageRef;
use serde_json::{Value, json};

use super::super::arguments::{ServerArguments, WatchArguments, WatchCommand};
use super::super::remote::{Answer, Ask, Daemon};
use super::super::{Status, print};
use super::Common;
use super::policy::{JSON, answered, caller, daemon, print_json, read, text};
use crate::config::Flags;

const PATH: &str = "/v1/watch";
/// The time limit of a check. A hundred images take a second or two; the daemon gives up on a hanging registry after three minutes.
const CHECK_TIMEOUT: Duration = Duration::from_secs(4 * 60);
const ASK_AGAIN: Duration = Duration::from_millis(250);

pub(in super::super) async fn watch(
    common: Common,
    arguments: WatchArguments,
) -> Result<Status, Diagnostic> {
    let config = common.load(Flags::default())?.config;
    let to = |server: &ServerArguments| daemon(&config, server);
    match arguments.command {
        WatchCommand::Status { json, server } => {
            answered(to(&server)?.ask(read(PATH)).await?, json, format_status)
        }
        WatchCommand::Pause { json, server } => {
            let ask = post("pause", &json!({ "by": caller() }));
            answered(to(&server)?.ask(ask).await?, json, format_status)
        }
        WatchCommand::Resume { json, server } => {
            let ask = post("resume", &json!({}));
            answered(to(&server)?.ask(ask).await?, json, format_status)
        }
        WatchCommand::Check {
            images,
            json,
            server,
        } => check(&to(&server)?, &images, json).await,
    }
}

fn post(what: &str, body: &Value) -> Ask<'static> {
    Ask {
        method: Method::POST,
        path: format!("{PATH}/{what}"),
        expected: None,
        body: Some((JSON, body.to_string().into())),
    }
}

/// Request a check, and wait for its result.
async fn check(daemon: &Daemon, images: &[ImageRef], json: bool) -> Result<Status, Diagnostic> {
    let asked = daemon
        .ask(post("check", &json!({ "images": images })))
        .await?;
    let asked = match asked {
        Answer::Refused(problem) => return Err(problem),
        Answer::Done(body) => time(&body["asked"]),
    };
    let started = Instant::now();
    loop {
        let body = match daemon.ask(read(PATH)).await? {
            Answer::Refused(problem) => return Err(problem),
            Answer::Done(body) => body,
        };
        let looked = time(&body["last_look"]["started"]);
        if looked.is_some() && looked >= asked {
            match json {
                true => print_json(&body),
                false => print(&format_status(&body)),
            }
            return Ok(match body["last_look"]["failure"].is_object() {
                true => Status::SomeFailed,
                false => Status::Done,
            });
        }
        if started.elapsed() > CHECK_TIMEOUT {
            let error = format!(
                "the daemon has not looked within {} s",
                CHECK_TIMEOUT.as_secs()
            );
            return Err(Diagnostic::new(error).hint("`refit watch status` shows what it does"));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn time(value: &Value) -> Option<jiff::Timestamp> {
    text(value).parse().ok()
}

/// Format the state for a person: the schedule first, then a line for each image.
fn format_status(body: &Value) -> String {
    if body["enabled"] == false {
        return "nothing is watched: `[watch] enabled` is false\n".to_owned();
    }
    let mut lines = String::new();
    let mut line = |word: &str, what: String| lines += &format!("{word:<11} {what}\n");
    if let Some(pause) = body["paused"].as_object() {
        let by = pause
            .get("by")
            .map_or(String::new(), |by| format!(", by {}", text(by)));
        line(
            "PAUSED",
            format!("since {}{by}", format_time(&pause["since"])),
        );
    }
    let last = &body["last_look"];
    if last.is_object() {
        let took = last["duration_ms"].as_u64().unwrap_or_default() as f64 / 1000.0;
        let (images, trigger) = (&last["images"], text(&last["trigger"]));
        let when = format_time(&last["started"]);
        line(
            "last look",
            format!("{when}, {images} images in {took:.1} s ({trigger})"),
        );
        if last["failure"].is_object() {
            line("FAILED", problem_sentence(&last["failure"]));
        }
    }
    line(
        "next look",
        match body["next_look"].is_string() {
            true => format_time(&body["next_look"]),
            false if body["last_look"].is_null() => {
                "the first, as soon as the daemon is ready (`/readyz` says what it waits for)"
                    .into()
            }
            false => "when somebody rings".to_owned(),
        },
    );
    if body["problem"].is_object() {
        line("PROBLEM", problem_sentence(&body["problem"]));
    }
    for image in body["images"].as_array().into_iter().flatten() {
        let verdict = match text(&image["verdict"]) {
            "unknown" => "UNKNOWN",
            other => other,
        };
        line(
            verdict,
            format!("{}{}", text(&image["image"]), detail(image)),
        );
    }
    lines
}

fn detail(image: &Value) -> String {
    if image["reason"].is_object() {
        return format!(": {}", problem_sentence(&image["reason"]));
    }
    if image["verdict"] == "current" {
        return String::new();
    }
    let short = |digest: &Value| {
        text(digest)
            .chars()
            .take("sha256:".len() + 12)
            .collect::<String>()
    };
    let containers = image["containers"].as_array().map_or(0, Vec::len);
    let mut detail = format!(": {}", short(&image["remote"]));
    if image["local"] != image["remote"] && image["local"].is_string() {
        detail += &format!(" over {}", short(&image["local"]));
    }
    detail += &format!(
        ", {containers} containers, since {}",
        format_time(&image["since"])
    );
    let held = &image["held"];
    if held.is_object() {
        detail += &format!(", waits for {}", text(&held["by"]));
        if let Some(approval) = held["approval"].as_u64() {
            detail += &format!(" {approval}");
        }
        if held["until"].is_string() {
            detail += &format!(" until {}", format_time(&held["until"]));
        }
    }
    detail
}

fn problem_sentence(problem: &Value) -> String {
    let causes = problem["causes"].as_array().into_iter().flatten();
    let causes: String = causes.map(|cause| format!(": {}", text(cause))).collect();
    format!("{}{causes}", text(&problem["error"]))
}

/// Format a time to the second.
fn format_time(value: &Value) -> String {
    time(value).map_or_else(String::new, super::super::table::format_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_is_a_line() {
        let body = json!({
            "enabled": true, "scheduled": true, "paused": { "since": "2026-11-25T12:00:00.5Z", "by": "ana" },
            "next_look": "2026-11-25T12:10:00Z", "looks": 3,
            "last_look": { "started": "2026-11-25T12:05:00Z", "duration_ms": 340, "trigger": "schedule", "images": 3 },
            "images": [
                { "image": "ghcr.io/acme/a:1", "verdict": "current", "since": "2026-11-25T12:00:00Z" },
                { "image": "ghcr.io/acme/b:1", "verdict": "behind", "since": "2026-11-25T12:05:00Z", "local": "sha256:0123456789abcdef",
                  "remote": "sha256:fedcba9876543210", "containers": ["ws-1", "ws-2"], "held": { "by": "age", "until": "2026-11-25T13:05:00Z" } },
                { "image": "ghcr.io/acme/c:1", "verdict": "unknown", "since": "2026-11-25T12:00:00Z",
                  "reason": { "error": "registry `ghcr.io` refused `ghcr.io/acme/c:1`", "causes": ["it refused"] } },
            ],
        });
        assert_eq!(
            format_status(&body),
            "PAUSED      since 2026-11-25 12:00:00Z, by ana\n\
             last look   2026-11-25 12:05:00Z, 3 images in 0.3 s (schedule)\n\
             next look   2026-11-25 12:10:00Z\n\
             current     ghcr.io/acme/a:1\n\
             behind      ghcr.io/acme/b:1: sha256:fedcba987654 over sha256:0123456789ab, 2 containers, since 2026-11-25 12:05:00Z, \
             waits for age until 2026-11-25 13:05:00Z\n\
             UNKNOWN     ghcr.io/acme/c:1: registry `ghcr.io` refused `ghcr.io/acme/c:1`: it refused\n"
        );
    }
}
