//! A message: the text for people, and the same content as JSON for programs. It contains all notifications of some seconds.

use refit_model::request::Trigger;
use serde::Serialize;

use super::notification::{Context, DedupKey, Kind, Notification, Urgency};

/// The version of the format. It rises when a field changes its meaning or is removed.
const FORMAT: u32 = 1;

/// The maximum number of notifications in the text. The history has all of them.
const TEXT_FINDINGS_MAX: usize = 20;
/// The maximum length of a sentence: registries and policies may send anything.
const SENTENCE_MAX: usize = 500;

/// One message to a sink. `docs/notifications.md` documents its JSON, which is stable.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    format: u32,
    /// The machine that the daemon runs on.
    host: String,
    sent: jiff::Timestamp,
    pub title: String,
    /// The text for people: lines of plain text.
    pub text: String,
    pub urgency: Urgency,
    findings: Vec<Notification>,
    /// The number of notifications that Refit dropped because the queue was full.
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

    /// Creates a message that tests whether the sink receives messages.
    pub fn test(host: &str) -> Self {
        Self {
            title: format!("Refit on {host}: a test"),
            text: "This is a test of `refit notify test`. Nothing was done.\n".into(),
            ..Self::new(host, vec![], 0)
        }
    }

    /// Returns the keys that Refit remembers after delivery.
    pub fn dedup_keys(&self) -> impl Iterator<Item = &DedupKey> {
        self.findings
            .iter()
            .filter_map(|finding| finding.dedup_key.as_ref())
    }

    /// Returns the number of notifications of each kind, the worst kind first.
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
        order.iter().position(|other| *other == kind)
    };
    sorted.sort_by_key(|finding| (finding.context.refresh, rank(finding.kind)));
    let mut text = String::new();
    let mut before: Option<&Context> = None;
    for finding in sorted.iter().take(TEXT_FINDINGS_MAX) {
        if let Some(before) = before.filter(|before| **before != finding.context) {
            text.push_str(&origin(before));
            text.push('\n');
        }
        before = Some(&finding.context);
        text.push_str(&finding_text(finding));
    }
    if let Some(before) = before {
        text.push_str(&origin(before));
    }
    if sorted.len() > TEXT_FINDINGS_MAX {
        text.push_str(&format!(
            "And {} more: see `refit history`.\n",
            sorted.len() - TEXT_FINDINGS_MAX
        ));
    }
    if dropped > 0 {
        text.push_str(&format!(
            "{dropped} more were not told: more came than can be kept.\n"
        ));
    }
    text
}

fn finding_text(finding: &Notification) -> String {
    let word = word(finding.kind).to_uppercase();
    let mut text = format!("{word}: {}\n", sentence(&finding.what));
    text.push_str(&format!("  Now: {}\n", sentence(&finding.now)));
    for next in &finding.next {
        text.push_str(&format!("  Next: {}\n", sentence(next)));
    }
    text
}

/// Returns the text with a punctuation mark at its end.
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

/// Returns the text on one line, truncated. Texts of policies, registries and engines pass through here.
fn plain(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    let spaced = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    match text.char_indices().nth(SENTENCE_MAX) {
        Some(_) => spaced.take(SENTENCE_MAX).chain("…".chars()).collect(),
        None => spaced.collect(),
    }
}

/// Truncates the text to this many bytes, at the boundary of a character.
pub fn truncate(text: &str, bytes_max: usize) -> &str {
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
    fn message_lists_worst_first_with_one_origin_per_refresh() {
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
    fn message_length_is_bounded() {
        let mut long = finding(Kind::Failed, "ws-a", 1);
        long.what = "é".repeat(100_000);
        let message = Message::new("box", vec![long; 100], 0);
        assert!(message.text.len() < 50_000, "{}", message.text.len());
        assert!(message.text.contains("And 80 more"));
        assert_eq!(truncate("aé", 2), "a");
    }
}
