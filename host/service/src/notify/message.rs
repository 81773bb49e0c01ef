//! What a person reads: one message for all that was found within some seconds. And the same as JSON, for programs.

use refit_model::request::Trigger;
use serde::Serialize;

use super::notification::{Context, DedupKey, Kind, Notification, Urgency};

/// Raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;

/// Of findings in the text. Who wants all of them looks into the history.
const TOLD_MAX: usize = 20;
/// Of a sentence: registries and policies may say anything.
const SENTENCE_MAX: usize = 500;

/// See the module. The JSON is documented in `docs/notifications.md` and stable.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    format: u32,
    /// The machine that the daemon runs on.
    host: String,
    sent: jiff::Timestamp,
    pub title: String,
    /// For people, lines of plain text.
    pub text: String,
    pub urgency: Urgency,
    findings: Vec<Notification>,
    /// Findings that were not told, since more came than can be kept.
    dropped: u64,
}

impl Message {
    pub fn new(host: &str, findings: Vec<Notification>, dropped: u64) -> Self {
        let urgencies = findings.iter().map(|finding| finding.urgency);
        Self {
            format: FORMAT,
            host: host.to_owned(),
            sent: jiff::Timestamp::now(),
            title: title(host, &findings),
            text: text(&findings, dropped),
            urgency: urgencies.max().unwrap_or(Urgency::Normal),
            findings,
            dropped,
        }
    }

    /// To try whether anybody hears.
    pub fn test(host: &str) -> Self {
        Self {
            title: format!("Refit on {host}: a test"),
            text: "This is a test of `refit notify test`. Nothing was done.\n".into(),
            ..Self::new(host, vec![], 0)
        }
    }

    /// What is remembered when it was told.
    pub fn sameness(&self) -> impl Iterator<Item = &DedupKey> {
        self.findings
            .iter()
            .filter_map(|finding| finding.same.as_ref())
    }

    /// Of each kind that there is, the worst first.
    pub fn kinds(&self) -> Vec<(Kind, usize)> {
        counts(&self.findings)
    }
}

fn counts(findings: &[Notification]) -> Vec<(Kind, usize)> {
    let all = [
        Kind::Failed,
        Kind::Held,
        Kind::Unknown,
        Kind::Behind,
        Kind::Recreated,
    ];
    let count = |kind: Kind| {
        findings
            .iter()
            .filter(|finding| finding.kind == kind)
            .count()
    };
    let counted = all.into_iter().map(|kind| (kind, count(kind)));
    counted.filter(|(_, count)| *count > 0).collect()
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Failed => "failed",
        Kind::Held => "to approve",
        Kind::Unknown => "unknown",
        Kind::Behind => "behind",
        Kind::Recreated => "recreated",
    }
}

fn title(host: &str, findings: &[Notification]) -> String {
    let counted = counts(findings);
    let counted: Vec<String> = counted
        .iter()
        .map(|(kind, count)| format!("{count} {}", word(*kind)))
        .collect();
    format!("Refit on {host}: {}", counted.join(", "))
}

fn text(findings: &[Notification], dropped: u64) -> String {
    let mut sorted: Vec<&Notification> = findings.iter().collect();
    let rank = |kind: Kind| {
        let order = [
            Kind::Failed,
            Kind::Held,
            Kind::Unknown,
            Kind::Behind,
            Kind::Recreated,
        ];
        order.iter().position(|it| *it == kind)
    };
    sorted.sort_by_key(|finding| (finding.context.refresh, rank(finding.kind)));
    let mut text = String::new();
    let mut before: Option<&Context> = None;
    for finding in sorted.iter().take(TOLD_MAX) {
        if let Some(before) = before.filter(|before| **before != finding.context) {
            text.push_str(&origin(before));
            text.push('\n');
        }
        before = Some(&finding.context);
        text.push_str(&told(finding));
    }
    if let Some(before) = before {
        text.push_str(&origin(before));
    }
    if sorted.len() > TOLD_MAX {
        text.push_str(&format!(
            "And {} more: see `refit history`.\n",
            sorted.len() - TOLD_MAX
        ));
    }
    if dropped > 0 {
        text.push_str(&format!(
            "{dropped} more were not told: more came than can be kept.\n"
        ));
    }
    text
}

fn told(finding: &Notification) -> String {
    let word = word(finding.kind).to_uppercase();
    let mut told = format!("{word}: {}\n", sentence(&finding.what));
    told.push_str(&format!("  Now: {}\n", sentence(&finding.now)));
    for next in &finding.next {
        told.push_str(&format!("  Next: {}\n", sentence(next)));
    }
    told
}

/// With a mark at its end, where it has none.
fn sentence(text: &str) -> String {
    let text = plain(text);
    match text.ends_with(['.', '!', '?']) {
        true => text,
        false => text + ".",
    }
}

fn origin(context: &Context) -> String {
    let mut parts = Vec::new();
    if let Some(trigger) = context.trigger {
        let trigger = match trigger {
            Trigger::Operator => "an operator",
            Trigger::Api => "the API",
            Trigger::Schedule => "the schedule",
            Trigger::Webhook => "a webhook",
        };
        let by = context.by.as_ref().map(|by| format!(" ({})", plain(by)));
        parts.push(format!("asked by {trigger}{}", by.unwrap_or_default()));
    }
    if let Some(policy) = &context.policy {
        let digest: String = policy
            .digest
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        parts.push(format!(
            "policy {} {}, generation {} ({digest})",
            plain(&policy.name),
            plain(&policy.version),
            policy.generation
        ));
    }
    if let Some(refresh) = context.refresh {
        parts.push(format!("`refit history show {refresh}`"));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!("({})\n", parts.join("; ")),
    }
}

/// On one line, and no longer than a person reads. Words of policies, registries and engines come through here.
fn plain(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    let spaced = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    match text.char_indices().nth(SENTENCE_MAX) {
        Some(_) => spaced.take(SENTENCE_MAX).chain("…".chars()).collect(),
        None => spaced.collect(),
    }
}

/// No longer than this many bytes, and whole characters.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    match text.len() <= bytes_max {
        true => text,
        false => &text[..text.floor_char_boundary(bytes_max)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(kind: Kind, subject: &str, refresh: i64) -> Notification {
        let context = Context {
            refresh: Some(refresh),
            trigger: Some(Trigger::Webhook),
            by: None,
            policy: None,
        };
        Notification {
            next: vec!["look at it".into()],
            ..Notification::new(
                kind,
                subject,
                format!("`{subject}` changed.\nreally"),
                "it runs",
                &context,
            )
        }
    }

    #[test]
    fn a_message_says_the_worst_first_and_who_asked_once() {
        let findings = vec![
            finding(Kind::Recreated, "ws-b", 7),
            finding(Kind::Failed, "ws-a", 7),
            finding(Kind::Failed, "ws-c", 8),
        ];
        let message = Message::new("box", findings, 2);
        assert_eq!(message.title, "Refit on box: 2 failed, 1 recreated");
        assert_eq!(
            message.text,
            "FAILED: `ws-a` changed. really.\n  Now: it runs.\n  Next: look at it.\n\
             RECREATED: `ws-b` changed. really.\n  Now: it runs.\n  Next: look at it.\n\
             (asked by a webhook; `refit history show 7`)\n\n\
             FAILED: `ws-c` changed. really.\n  Now: it runs.\n  Next: look at it.\n\
             (asked by a webhook; `refit history show 8`)\n\
             2 more were not told: more came than can be kept.\n"
        );
    }

    #[test]
    fn a_message_is_bounded_whatever_somebody_says() {
        let mut long = finding(Kind::Failed, "ws-a", 1);
        long.what = "é".repeat(100_000);
        let message = Message::new("box", vec![long; 100], 0);
        assert!(message.text.len() < 50_000, "{}", message.text.len());
        assert!(message.text.contains("And 80 more"));
        assert_eq!(cut("aé", 2), "a");
    }
}
