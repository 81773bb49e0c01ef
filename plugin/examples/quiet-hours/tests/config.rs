//! The configuration: what is refused, with which words, all of it at once, and that the schema says the same.

use refit_policy::{Policy, configuration};
use refit_policy_quiet_hours::{Config, QuietHours, SCHEMA};
use serde_json::{Value, json};

#[track_caller]
fn check(config: &Value, expected: &[(&str, &str)]) {
    let problems = configuration::<QuietHours>(&config.to_string())
        .err()
        .unwrap_or_default();
    let found: Vec<_> = problems
        .iter()
        .map(|p| (p.path.as_str(), p.problem.as_str()))
        .collect();
    assert_eq!(found, expected, "{config}");
}

#[test]
fn good_ones_pass() {
    check(&json!({"images": {"app": "acme/app"}}), &[]);
    check(
        &json!({
            "images": {"app": "acme/app", "web": "acme/web"}, "containers": "ws-*", "from": "00:00", "to": "24:00", "days": ["sat", "sun"],
            "utc_offset": "-05:30", "operator_ignores_window": true, "busy_label": "busy", "cooldown_hours": 0, "canaries": 0, "wave": 2,
            "strategy": "overlap",
        }),
        &[],
    );
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    check(
        &json!({
            "images": {"a": "acme/app", "b": "acme/app:x", "c d": "acme/"}, "containers": "", "from": "24:00", "to": "25:00",
            "days": ["mon", "Tue"], "utc_offset": "CET", "busy_label": "", "cooldown_hours": 745,
        }),
        &[
            (
                "images.b",
                "`acme/app:x` is of the same repository as `images.a`, so that nothing would follow it",
            ),
            (
                "images.c d",
                "a name is 1 to 64 letters, digits, `.`, `_` and `-`",
            ),
            (
                "images.c d",
                "`` cannot be part of a repository: lower case letters and digits, separated by `.`, `_`, `__` or hyphens, are expected",
            ),
            ("containers", "must not be empty: `*` stands for all names"),
            (
                "from",
                "`24:00` is no time of day: `00:00` to `23:59` is expected",
            ),
            (
                "to",
                "`25:00` is no time of day: `00:00` to `24:00` is expected",
            ),
            (
                "days[1]",
                "`Tue` is none of mon, tue, wed, thu, fri, sat, sun",
            ),
            (
                "utc_offset",
                "`CET` is no offset from UTC: `+01:00` or `-05:30` is expected, at most 14 hours",
            ),
            ("busy_label", "must not be empty"),
            ("cooldown_hours", "745 is more than 744, which is a month"),
        ],
    );
    check(
        &json!({"from": "06:00", "days": []}),
        &[
            (
                "images",
                "must name at least one image, for example `app = \"ghcr.io/acme/app:latest\"`",
            ),
            (
                "to",
                "`06:00` is when the window opens; for whole days take `00:00` and `24:00`",
            ),
            ("days", "must name at least one day"),
        ],
    );
}

#[test]
fn the_schema_names_the_same_keys_and_defaults() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let Config {
        images,
        containers,
        from,
        to,
        days,
        utc_offset,
        operator_ignores_window,
        busy_label,
        cooldown_hours,
        canaries,
        wave,
        strategy,
    } = Config::default();
    assert!(images.is_empty());
    assert_eq!(strategy, refit_policy::Strategy::Replace);
    let properties = schema["properties"].as_object().unwrap();
    let defaults: Vec<_> = properties
        .iter()
        .filter_map(|(key, property)| Some((key.as_str(), property.get("default")?.clone())))
        .collect();
    assert_eq!(
        defaults,
        [
            ("busy_label", json!(busy_label)),
            ("canaries", json!(canaries)),
            ("containers", json!(containers)),
            ("cooldown_hours", json!(cooldown_hours)),
            ("days", json!(days)),
            ("from", json!(from)),
            ("operator_ignores_window", json!(operator_ignores_window)),
            ("strategy", json!("replace")),
            ("to", json!(to)),
            ("utc_offset", json!(utc_offset)),
            ("wave", json!(wave)),
        ]
    );
    assert_eq!(properties.len(), 12, "and `images`, which has none");
    assert_eq!(QuietHours::describe().config_schema, SCHEMA);
}
