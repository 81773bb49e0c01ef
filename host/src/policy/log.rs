//! What a policy says, on its way to our log: bounded, and unable to pass for anybody else.

use super::bindings::refit::policy::host::Level;
use super::limits::{LOG_LINE_BYTES_MAX, LOG_LINES_MAX};

pub(super) struct GuestLog {
    policy: String,
    lines_left: u32,
    dropped: u32,
}

impl GuestLog {
    pub(super) fn new(policy: &str) -> Self {
        Self {
            policy: policy.to_owned(),
            lines_left: LOG_LINES_MAX,
            dropped: 0,
        }
    }

    pub(super) fn write(&mut self, level: Level, message: &str) {
        let Some(line) = self.admit(message) else {
            return;
        };
        let policy = self.policy.as_str();
        match level {
            Level::Debug => tracing::debug!(policy, "{line}"),
            Level::Info => tracing::info!(policy, "{line}"),
            Level::Warn => tracing::warn!(policy, "{line}"),
            Level::Error => tracing::error!(policy, "{line}"),
        }
    }

    /// A line of standard output or error.
    pub(super) fn printed(&mut self, line: &str) {
        if let Some(line) = self.admit(line) {
            tracing::info!(policy = self.policy.as_str(), printed = true, "{line}");
        }
    }

    fn admit(&mut self, message: &str) -> Option<String> {
        if self.lines_left == 0 {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.lines_left -= 1;
        Some(printable(message, LOG_LINE_BYTES_MAX))
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        if self.dropped > 0 {
            tracing::warn!(
                policy = self.policy.as_str(),
                dropped = self.dropped,
                "the policy logged more than {LOG_LINES_MAX} lines"
            );
        }
    }
}

/// One line that cannot move the cursor, change colours, reverse the direction of text or begin a line of its own; cut at
/// `bytes_max`.
pub(crate) fn printable(text: &str, bytes_max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        if line.len() + c.len_utf8() > bytes_max {
            line.push('…');
            break;
        }
        let direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || direction || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_has_no_colour() {
        assert_eq!(
            printable("a\n{\"level\":\"x\"}\x1b[31m\u{202e}b", 100),
            "a\\n{\"level\":\"x\"}\\u{1b}[31m\\u{202e}b"
        );
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        assert_eq!(printable("äää", 5), "ää…");
    }
}
