//! Tests of the guaranteed names, and of the rules of Prometheus for them.

use std::collections::{BTreeMap, BTreeSet};

use refit_model::report::PolicyReport;

use super::*;

fn metrics() -> Metrics {
    let metrics = Metrics::default();
    metrics.set_sources(Sources {
        unfinished: Box::new(|| 1),
        under_way: Box::new(|| 2),
        policy: Box::new(|| PolicyReport {
            name: "night \"shift\"\n".into(),
            version: "1.0".into(),
            digest: "sha256:abc".into(),
            generation: 7,
        }),
        history_writable: Box::new(|| Some(false)),
        engine_up: Box::new(|| Some(true)),
    });
    metrics.set_watched(Watched {
        images: Box::new(|| {
            Some(ImageCounts {
                behind: 1,
                current: 5,
                unknown: 2,
            })
        }),
        registry_requests: Box::new(|| vec![("ghcr.io".into(), 200, 9), ("ghcr.io".into(), 0, 1)]),
    });
    metrics
}

/// Returns the types of the families by name, and the samples.
fn families(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
    let mut types = BTreeMap::new();
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let before = types.insert(name.to_owned(), kind.to_owned());
            assert_eq!(before, None, "`{name}` is there twice");
        } else if !line.starts_with('#') {
            samples.push(line.to_owned());
        }
    }
    (types, samples)
}

#[test]
fn names_types_and_units_follow_prometheus_rules() {
    let text = metrics().text(Format::Prometheus);
    let (types, samples) = families(&text);
    for (name, kind) in &types {
        assert!(
            name.starts_with("refit_") || name.starts_with("process_"),
            "{name}"
        );
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{name}"
        );
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} {kind}");
        let help = format!("# HELP {name} ");
        assert!(text.contains(&help), "{name} has no help");
        for unit in ["_ms", "_milliseconds", "_minutes", "_kb", "_count", "_sum"] {
            assert!(!name.ends_with(unit), "{name}");
        }
        if kind == "histogram" {
            assert!(name.ends_with("_seconds"), "{name}");
        }
    }
    let mut seen = BTreeSet::new();
    for sample in &samples {
        let (series, value) = sample.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{sample}");
        assert!(seen.insert(series), "{series} is there twice");
    }
}

#[test]
fn documented_metrics_exist_from_the_start() {
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/observing.md"
    ))
    .unwrap();
    let (types, _) = families(&metrics().text(Format::Prometheus));
    for (name, kind) in &types {
        let is_documented = page
            .lines()
            .any(|line| line.starts_with(&format!("| `{name}`")) && line.contains(kind.as_str()));
        assert!(
            is_documented,
            "docs/observing.md does not have the {kind} `{name}`"
        );
    }
    for line in page.lines() {
        let Some((name, _)) = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split_once('`'))
        else {
            continue;
        };
        if name.starts_with("refit_") || name.starts_with("process_") {
            assert!(
                types.contains_key(name),
                "docs/observing.md has `{name}`, which is not there"
            );
        }
    }
}

#[test]
fn sources_are_read_and_label_values_escaped() {
    let metrics = metrics();
    let text = metrics.text(Format::Prometheus);
    for sample in [
        "refit_refreshes_under_way 2",
        "refit_policy_generation 7",
        r#"refit_policy_info{name="night \"shift\"\n",version="1.0",digest="sha256:abc"} 1"#,
        "refit_history_writable 0",
        "refit_engine_up 1",
        r#"refit_images{state="behind"} 1"#,
        r#"refit_images{state="unknown"} 2"#,
        "refit_images_behind 1",
        r#"refit_registry_requests_total{registry="ghcr.io",code="0"} 1"#,
        r#"refit_refreshes_total{trigger="webhook",outcome="some-failed"} 0"#,
        r#"refit_policy_traps_total{kind="exceeded"} 0"#,
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}\n{text}");
    }
    let open = metrics.text(Format::OpenMetrics);
    assert!(open.ends_with("# EOF\n"), "{open}");
    assert!(
        open.contains("# UNIT refit_gap_seconds seconds\n"),
        "{open}"
    );
    assert!(
        open.contains("# TYPE refit_policy_traps counter\n"),
        "{open}"
    );
}

#[test]
fn label_values_equal_json_names() {
    for kind in PolicyErrorKind::REFRESH_KINDS {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
    for outcome in RecreationOutcome::ALL {
        assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
    }
    for trigger in Trigger::ALL {
        assert_eq!(serde_json::to_value(trigger).unwrap(), trigger.as_str());
    }
}
