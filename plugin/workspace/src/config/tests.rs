//! The configuration: what is refused, with which words, and that the schema says the same.

use super::*;
use crate::Workspace;
use refit_policy::configuration;
use serde_json::{Map, Value, json};

#[track_caller]
fn check(config: &Value, expected: &[(&str, &str)]) {
    let problems = match configuration::<Workspace>(&config.to_string()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems,
    };
    let found: Vec<_> = problems
        .iter()
        .map(|p| (p.path.as_str(), p.problem.as_str()))
        .collect();
    assert_eq!(found, expected, "{config}");
}

#[test]
fn defaults_and_other_good_ones_pass() {
    check(&json!({}), &[]);
    check(
        &json!({"images": "localhost:5000/t/{runtime}", "runtimes": ["a", "b.c", "d_e"]}),
        &[],
    );
    check(
        &json!({"images": "{runtime}.example.com/t", "runtimes": ["a"]}),
        &[],
    );
    check(&json!({"containers": "*", "strategy": "overlap"}), &[]);
}

#[test]
fn a_template_without_one_place_for_the_runtime_is_refused() {
    check(
        &json!({"images": "acme/app:latest"}),
        &[(
            "images",
            "`acme/app:latest` must hold `{runtime}` where the name of a runtime goes",
        )],
    );
    check(
        &json!({"images": "acme/{runtime}:{runtime}"}),
        &[(
            "images",
            "`acme/{runtime}:{runtime}` holds `{runtime}` 2 times, and must hold it once",
        )],
    );
    check(
        &json!({"images": "workspace-template:{runtime}"}),
        &[(
            "images",
            "`workspace-template:{runtime}` holds `{runtime}` in its tag, so that all runtimes would be one repository: it must stand before the tag",
        )],
    );
}

#[test]
fn a_template_that_makes_no_reference_is_refused_once() {
    check(
        &json!({"images": "https://ghcr.io/{runtime}"}),
        &[(
            "images",
            "`https://ghcr.io/{runtime}` makes no image reference: `https:` is no registry: a host name with an optional port is expected",
        )],
    );
    check(
        &json!({"images": "ghcr.io/{runtime}-{arch}"}),
        &[(
            "images",
            "`ghcr.io/{runtime}-{arch}` makes no image reference: `a-{arch}` cannot be part of a repository: lower case letters and digits, separated by `.`, `_`, `__` or hyphens, are expected",
        )],
    );
}

#[test]
fn runtimes_are_at_least_one_distinct_and_fit_into_the_template() {
    check(
        &json!({"runtimes": []}),
        &[("runtimes", "must name at least one runtime")],
    );
    check(
        &json!({"runtimes": ["hermes", "Claude", "", "hermes", "a b", "x."]}),
        &[
            (
                "runtimes[1]",
                "`Claude` may hold only lower case letters, digits, `.`, `_` and `-`",
            ),
            ("runtimes[2]", "must not be empty"),
            ("runtimes[3]", "`hermes` is already at `runtimes[0]`"),
            (
                "runtimes[4]",
                "`a b` may hold only lower case letters, digits, `.`, `_` and `-`",
            ),
            (
                "runtimes[5]",
                "`x.` makes no image reference of the template: `workspace-template-x.` cannot be part of a repository: lower case letters and digits, separated by `.`, `_`, `__` or hyphens, are expected",
            ),
        ],
    );
}

#[test]
fn a_name_pattern_that_can_match_nothing_is_refused() {
    check(
        &json!({"containers": ""}),
        &[("containers", "must not be empty: `*` stands for all names")],
    );
    check(
        &json!({"containers": "/ws-*"}),
        &[(
            "containers",
            "`/ws-*` matches no container: names have no leading slash",
        )],
    );
    check(
        &json!({"containers": "ws-[0-9]*"}),
        &[(
            "containers",
            "`ws-[0-9]*` matches no container: a name cannot hold `[`, and only `*` and `?` stand for other characters",
        )],
    );
}

#[test]
fn wrong_shapes_say_where() {
    check(
        &json!({"runtime": ["hermes"]}),
        &[(
            "runtime",
            "unknown field `runtime`, expected one of `images`, `runtimes`, `containers`, `strategy`",
        )],
    );
    check(
        &json!({"strategy": "restart"}),
        &[(
            "strategy",
            "unknown variant `restart`, expected one of `replace`, `remove`, `overlap`",
        )],
    );
    check(
        &json!({"runtimes": ["a", 1]}),
        &[(
            "runtimes[1]",
            "invalid type: integer `1`, expected a string",
        )],
    );
}

#[test]
fn all_problems_come_at_once() {
    let config = json!({"images": "x", "runtimes": ["A"], "containers": ""}).to_string();
    let problems = configuration::<Workspace>(&config).unwrap_err();
    let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["images", "runtimes[0]", "containers"]);
}

#[test]
fn the_schema_has_every_key_with_its_default() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    // Taken apart by name, so that a new key cannot be forgotten here.
    let Config {
        images,
        runtimes,
        containers,
        strategy,
    } = Config::default();
    assert_eq!(strategy, Strategy::Replace);
    let expected = json!({
        "images": images, "runtimes": runtimes, "containers": containers, "strategy": "replace",
    });
    let properties = schema["properties"].as_object().unwrap();
    let defaults: Map<String, Value> = properties
        .iter()
        .map(|(key, property)| (key.clone(), property["default"].clone()))
        .collect();
    assert_eq!(Value::Object(defaults.clone()), expected);
    assert_eq!(
        configuration::<Workspace>(&Value::Object(defaults).to_string()).unwrap(),
        Config::default()
    );
    assert_eq!(schema["additionalProperties"], json!(false));
}

#[test]
fn the_schema_lists_the_strategies_that_are_accepted() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let strategies = schema["properties"]["strategy"]["enum"].as_array().unwrap();
    assert_eq!(strategies.len(), 3);
    for strategy in strategies {
        check(&json!({ "strategy": strategy }), &[]);
    }
}
