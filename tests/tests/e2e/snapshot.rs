//! Whole outputs, with what differs from run to run taken out. The one place that says what that is.

use refit_tests::World;

/// Pattern and what stands in its place, in this order.
const FILTERS: &[(&str, &str)] = &[
    (r"127\.0\.0\.1:\d+", "REGISTRY"),
    (r"sha256:[0-9a-f]{64}", "sha256:…"),
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"refit-(new|old)-[0-9a-f]{12}", "refit-$1-ID"),
    (r"\d+ ms\b", "N ms"),
    (r"\d+\.\d s\b", "N s"),
    (r"/tmp/(\.tmp|refit-)[A-Za-z0-9_.-]+", "HOME"),
    (r"(?m)[ \t]+$", ""),
];

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

/// `snapshot!(world, text, @"…")`; without a world, `snapshot!(text, @"…")`.
macro_rules! snapshot {
    ($world:expr, $text:expr, @$expected:literal) => {{
        let text = $text;
        $crate::snapshot::settings(Some($world))
            .bind(|| insta::assert_snapshot!(text, @$expected))
    }};
    ($text:expr, @$expected:literal) => {{
        let text = $text;
        $crate::snapshot::settings(None).bind(|| insta::assert_snapshot!(text, @$expected))
    }};
}

pub(crate) use snapshot;
