//! The configuration: what is refused, with which words, all of it at once, and that the schema says the same.

use refit_policy::{Policy, configuration};
use refit_policy_canary::{Canary, Config, SCHEMA};
use serde_json::{Value, json};

#[track_caller]
fn check(config: &Value, expected: &[(&str, &str)]) {
    let problems = configuration::<Canary>(&config.to_string())
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
            "images": {"app": "ghcr.io/acme/app:latest", "db": "localhost:5000/db"}, "containers": "ws-*", "canary_label": "first",
            "soak_minutes": 0, "wave": 3, "strategy": "remove",
        }),
        &[],
    );
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let sixty_five = "n".repeat(65);
    check(
        &json!({
            "images": {"a": "acme/app", "b b": "acme/b", "c": "docker.io/acme/app:other", "d": "https://acme", sixty_five.as_str(): "acme/n"},
            "containers": "/ws", "canary_label": "", "soak_minutes": 43201, "strategy": "remove",
        }),
        &[
            (
                "images.b b",
                "a name is 1 to 64 letters, digits, `.`, `_` and `-`",
            ),
            (
                "images.c",
                "`docker.io/acme/app:other` is of the same repository as `images.a`, so that nothing would follow it",
            ),
            (
                "images.d",
                "`https:` is no registry: a host name with an optional port is expected",
            ),
            (
                &format!("images.{sixty_five}"),
                "a name is 1 to 64 letters, digits, `.`, `_` and `-`",
            ),
            (
                "containers",
                "`/ws` matches no container: names have no leading slash",
            ),
            ("canary_label", "must not be empty"),
            ("soak_minutes", "43201 is more than 43200, which is a month"),
            (
                "strategy",
                "`remove` leaves no container that could prove itself: set `soak_minutes = 0`, or use another strategy",
            ),
        ],
    );
    let no_images = "must name at least one image, for example `app = \"ghcr.io/acme/app:latest\"`";
    check(&json!({}), &[("images", no_images)]);
    let many: serde_json::Map<String, Value> = (0..33)
        .map(|n| (format!("i{n}"), json!(format!("acme/i{n}"))))
        .collect();
    check(
        &json!({ "images": many }),
        &[("images", "33 images are more than 32")],
    );
}

#[test]
fn what_has_the_wrong_shape_is_named_by_its_path() {
    for (config, path) in [
        (
            json!({"images": {"a": "acme/a"}, "soak_minutes": -1}),
            "soak_minutes",
        ),
        (json!({"images": {"a": "acme/a"}, "wave": 1.5}), "wave"),
        (json!({"images": ["acme/a"]}), "images"),
        (json!({"image": "acme/a"}), "image"),
    ] {
        let problems = configuration::<Canary>(&config.to_string()).unwrap_err();
        assert_eq!(problems.len(), 1, "{config}");
        assert_eq!(problems[0].path, path, "{config}");
    }
}

#[test]
fn the_schema_names_the_same_keys_and_defaults() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let Config {
        images,
        containers,
        canary_label,
        soak_minutes,
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
            ("canary_label", json!(canary_label)),
            ("containers", json!(containers)),
            ("soak_minutes", json!(soak_minutes)),
            ("strategy", json!("replace")),
            ("wave", json!(wave)),
        ]
    );
    assert_eq!(properties.len(), 6, "and `images`, which has none");
    assert_eq!(Canary::describe().config_schema, SCHEMA);
}
