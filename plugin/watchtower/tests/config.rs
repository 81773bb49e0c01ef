//! The configuration: what is refused, with which words, all of it at once, and that the schema says the same.

use refit_policy::{Policy, Strategy, configuration};
use refit_policy_watchtower::{Config, SCHEMA, Watchtower};
use serde_json::{Value, json};

#[track_caller]
fn check(config: &Value, expected: &[(&str, &str)]) {
    let problems = configuration::<Watchtower>(&config.to_string())
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
    check(&json!({}), &[]);
    check(
        &json!({
            "containers": ["/nginx", "redis", "ws-*"], "disable-containers": ["ws-b"], "label-enable": true, "scope": "none",
            "monitor-only": true, "no-pull": true, "label-take-precedence": true, "rolling-restart": true, "include-stopped": true,
            "include-restarting": true, "strategy": "overlap",
        }),
        &[],
    );
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    check(
        &json!({"containers": ["ok", "", "^web$"], "disable-containers": ["a|b"], "scope": ""}),
        &[
            (
                "containers[1]",
                "must not be empty: `*` stands for all names",
            ),
            (
                "containers[2]",
                "`^web$` matches no container: a name cannot hold `^`, and only `*` and `?` stand for other characters",
            ),
            (
                "disable-containers[0]",
                "`a|b` matches no container: a name cannot hold `|`, and only `*` and `?` stand for other characters",
            ),
            (
                "scope",
                "must not be empty: `none` means containers without a scope, and leaving it out means all",
            ),
        ],
    );
    let problems = configuration::<Watchtower>(r#"{"cleanup": true}"#).unwrap_err();
    assert_eq!(problems[0].path, "cleanup", "a flag that is the host's");
}

#[test]
fn the_schema_names_the_same_keys_and_defaults() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let Config {
        containers,
        disable_containers,
        label_enable,
        scope,
        monitor_only,
        no_pull,
        label_take_precedence,
        rolling_restart,
        include_stopped,
        include_restarting,
        strategy,
    } = Config::default();
    assert_eq!((scope, strategy), (None, Strategy::Replace));
    let properties = schema["properties"].as_object().unwrap();
    let defaults: Vec<_> = properties
        .iter()
        .filter_map(|(key, property)| Some((key.as_str(), property.get("default")?.clone())))
        .collect();
    assert_eq!(
        defaults,
        [
            ("containers", json!(containers)),
            ("disable-containers", json!(disable_containers)),
            ("include-restarting", json!(include_restarting)),
            ("include-stopped", json!(include_stopped)),
            ("label-enable", json!(label_enable)),
            ("label-take-precedence", json!(label_take_precedence)),
            ("monitor-only", json!(monitor_only)),
            ("no-pull", json!(no_pull)),
            ("rolling-restart", json!(rolling_restart)),
            ("strategy", json!("replace")),
        ]
    );
    assert_eq!(properties.len(), 11, "and `scope`, which has none");
    assert_eq!(Watchtower::describe().config_schema, SCHEMA);
}
