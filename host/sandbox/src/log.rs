//! What a policy says, on its way to our log: bounded, and unable to pass for anybody else.

use refit_model::printable::printable;

use super::bindings::refit::policy::host::Level;
use super::limits::{LOG_BYTES_MAX, LOG_LINE_BYTES_MAX, LOG_LINES_MAX};

/// What was left out of what a policy logged and printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub lines_dropped: u32,
    pub lines_cut: u32,
    pub printed_bytes_dropped: u64,
}

/// A line that a policy logged or printed, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LogLine {
    pub level: &'static str,
    pub text: String,
}

pub(super) struct GuestLog {
    policy: String,
    lines: Vec<LogLine>,
    lines_left: u32,
    bytes_left: usize,
    left_out: LeftOut,
}

impl GuestLog {
    pub(super) fn new(policy: &str) -> Self {
        Self {
            policy: policy.to_owned(),
            lines: Vec::new(),
            lines_left: LOG_LINES_MAX,
            bytes_left: LOG_BYTES_MAX,
            left_out: LeftOut::default(),
        }
    }

    pub(super) fn write(&mut self, level: Level, message: &str) {
        let Some(line) = self.admit(message) else {
            return;
        };
        let policy = self.policy.as_str();
        let level = match level {
            Level::Debug => {
                tracing::debug!(policy, "{line}");
                "debug"
            }
            Level::Info => {
                tracing::info!(policy, "{line}");
                "info"
            }
            Level::Warn => {
                tracing::warn!(policy, "{line}");
                "warn"
            }
            Level::Error => {
                tracing::error!(policy, "{line}");
                "error"
            }
        };
        self.lines.push(LogLine { level, text: line });
    }

    /// A line of standard output, or of standard error, which is where a panic says what happened.
    pub(super) fn printed(&mut self, level: Level, line: &str) {
        let Some(line) = self.admit(line) else {
            return;
        };
        let policy = self.policy.as_str();
        let level = match level {
            Level::Debug | Level::Info => {
                tracing::info!(policy, printed = true, "{line}");
                "stdout"
            }
            Level::Warn | Level::Error => {
                tracing::warn!(policy, printed = true, "{line}");
                "stderr"
            }
        };
        self.lines.push(LogLine { level, text: line });
    }

    pub(super) fn take_lines(&mut self) -> Vec<LogLine> {
        std::mem::take(&mut self.lines)
    }

    pub(super) fn printed_beyond(&mut self, bytes: u64) {
        self.left_out.printed_bytes_dropped =
            self.left_out.printed_bytes_dropped.saturating_add(bytes);
    }

    pub(super) fn left_out(&self) -> LeftOut {
        self.left_out
    }

    fn admit(&mut self, message: &str) -> Option<String> {
        let line = printable(message, LOG_LINE_BYTES_MAX);
        if self.lines_left == 0 || line.len() > self.bytes_left {
            self.left_out.lines_dropped = self.left_out.lines_dropped.saturating_add(1);
            return None;
        }
        self.lines_left -= 1;
        self.bytes_left -= line.len();
        if message.len() > LOG_LINE_BYTES_MAX {
            self.left_out.lines_cut = self.left_out.lines_cut.saturating_add(1);
        }
        Some(line)
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        let LeftOut {
            lines_dropped,
            lines_cut: _,
            printed_bytes_dropped,
        } = self.left_out;
        if lines_dropped > 0 || printed_bytes_dropped > 0 {
            tracing::warn!(
                policy = self.policy.as_str(),
                lines_dropped,
                printed_bytes_dropped,
                "the policy logged or printed more than is kept"
            );
        }
    }
}
