//! Writes a policy's messages to Refit's log, within limits and marked as the policy's.

use refit_model::printable::printable;

use super::bindings::refit::policy::host::Level;
use super::limits::{LOG_BYTES_MAX, LOG_LINE_BYTES_MAX, LOG_LINES_MAX};

/// The amount of a policy's log and output that was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub lines_dropped: u32,
    pub lines_cut: u32,
    pub printed_bytes_dropped: u64,
}

/// A line that a policy logged or printed, as Refit shows it.
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

    /// Log a line of standard output or standard error. A panic writes its message to the latter.
    pub(super) fn write_printed(&mut self, level: Level, line: &str) {
        let Some(line) = self.admit(line) else {
            return;
        };
        let policy = self.policy.as_str();
        let level = match level {
            Level::Debug | Level::Info => {
                tracing::info!(policy, write_printed = true, "{line}");
                "stdout"
            }
            Level::Warn | Level::Error => {
                tracing::warn!(policy, write_printed = true, "{line}");
                "stderr"
            }
        };
        self.lines.push(LogLine { level, text: line });
    }

    pub(super) fn take_lines(&mut self) -> Vec<LogLine> {
        std::mem::take(&mut self.lines)
    }

    pub(super) fn count_dropped_output(&mut self, bytes: u64) {
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
                "log of the policy is full, dropped lines or output"
            );
        }
    }
}
