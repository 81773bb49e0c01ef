//! Whole outputs, with what differs from run to run taken out. The one place that says what that is.

use refit_tests::World;

/// Pattern and what stands in its place, in this order.
const FILTERS: &[(&str, &str)] = &[
    // Registries get ports from the range that systems hand out; ours is 8787.
    (r"127\.0\.0\.1:\d{5}\b", "REGISTRY"),
    (r"sha256:[0-9a-f]{64}", "sha256:…"),
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"refit-(new|old)-[0-9a-f]{12}", "refit-$1-ID"),
    (r"\d+ ms\b", "N ms"),
    (r"\d+\.\d s\b", "N s"),
    (r"/tmp/(\.tmp|refit-)[A-Za-z0-9_.-]+", "HOME"),
    (r"(?m)[ \t]+$", ""),
];

/// Without the replacements of tests beside this one, on the same engine: a report tells of them too.
pub(crate) fn of_world(w: &World, text: &str) -> String {
    let is_ours = |line: &&str| !line.starts_with("in progress") || line.contains(w.prefix());
    let lines = text.split_inclusive('\n').filter(is_ours);
    lines.collect()
}

pub(crate) fn settings(w: Option<&World>) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    if let Some(w) = w {
        settings.add_filter(w.prefix(), "PREFIX");
    }
    for (pattern, instead) in FILTERS {
        settings.add_filter(pattern, *instead);
    }
    settings
}

/// The lines of progress on stderr, which come in any order. Without those of the log, where a Refit also tells what it sees
/// of the replacements of other tests.
pub(crate) fn progress(stderr: &str) -> String {
    let is_log = |line: &&str| line.contains("Z  WARN ") || line.contains("Z ERROR ");
    let mut lines: Vec<_> = stderr.lines().filter(|line| !is_log(line)).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// `snapshot!(world, text, @"…")`; without a world, `snapshot!(text, @"…")`.
macro_rules! snapshot {
    ($world:expr, $text:expr, @$expected:literal) => {{
        let text = $crate::snapshot::of_world($world, &$text);
        $crate::snapshot::settings(Some($world))
            .bind(|| insta::assert_snapshot!(text, @$expected))
    }};
    ($text:expr, @$expected:literal) => {{
        let text = $text;
        $crate::snapshot::settings(None).bind(|| insta::assert_snapshot!(text, @$expected))
    }};
}

pub(crate) use snapshot;
