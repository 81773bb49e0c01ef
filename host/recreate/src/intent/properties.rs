//! Property tests of intents, over arbitrary containers and images.
//!
//! [`made`] does what an engine does with a request and an image, after Docker's `merge` (daemon/commit.go); the fidelity suite
//! compares it with a real engine for selected cases.

use proptest::prelude::*;
use serde_json::Value;

use super::tests::container;
use super::*;

/// Returns the configuration of the container that an engine creates from a request and an image.
fn made(wish: &Object, image: &Object) -> Object {
    let mut config = wish.clone();
    config.retain(|_, value| !is_empty(value));
    for (key, default) in image {
        match key.as_str() {
            "Entrypoint" | "Cmd" => {}
            "Env" => {
                let name = |entry: &Value| {
                    entry
                        .as_str()
                        .unwrap()
                        .split('=')
                        .next()
                        .unwrap()
                        .to_owned()
                };
                let own = config
                    .entry("Env")
                    .or_insert_with(|| json!([]))
                    .as_array_mut()
                    .unwrap();
                let names: Vec<String> = own.iter().map(name).collect();
                let given = default
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|entry| !names.contains(&name(entry)));
                own.extend(given.cloned());
            }
            "Labels" | "ExposedPorts" | "Volumes" | "Healthcheck" => {
                let own = config
                    .entry(key.clone())
                    .or_insert_with(|| json!({}))
                    .as_object_mut()
                    .unwrap();
                for (key, value) in default.as_object().unwrap() {
                    own.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            _ => {
                config.entry(key.clone()).or_insert_with(|| default.clone());
            }
        }
    }
    if !config.contains_key("Entrypoint") {
        let of_image = |key: &str| image.get(key).map(|value| (key.to_owned(), value.clone()));
        if !config.contains_key("Cmd") {
            config.extend(of_image("Cmd"));
        }
        config.extend(of_image("Entrypoint"));
    }
    if config.get("Entrypoint") == Some(&json!([""])) {
        config.remove("Entrypoint");
    }
    config
}

/// Returns the intent of a container with this configuration, as the request that would create it.
fn wish(config: &Object, image: &Object) -> Object {
    Intent::from_container(&container(Value::Object(config.clone()), json!({})), image).config
}

fn object(value: Value) -> Object {
    value.as_object().cloned().unwrap()
}

/// Generates some of `names`, each with one of three values that start with `whose`.
fn some(
    names: &'static [&'static str],
    whose: &'static str,
) -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let count = names.len();
    (
        proptest::sample::subsequence(names, 0..=count),
        proptest::collection::vec(0..3, count),
    )
        .prop_map(move |(names, values)| {
            names
                .into_iter()
                .zip(values)
                .map(|(name, value)| (name, format!("{whose}{value}")))
                .collect()
        })
}

/// Generates settings that a user made on a container, or a builder in an image. Different values of `whose` give disjoint
/// settings. Ports and volumes are keys without values: a user has different keys.
fn settings(whose: &'static str) -> impl Strategy<Value = Object> {
    let words = some(
        &[
            "User",
            "WorkingDir",
            "StopSignal",
            "Entrypoint",
            "Cmd",
            "Shell",
        ],
        whose,
    );
    let maps = (
        some(&["A", "B", "C", "D"], whose),
        some(&["a", "b", "c"], whose),
        some(&["Test", "Interval", "Retries", "StartInterval"], whose),
    );
    let keys = (some(&["1", "2", "3"], whose), some(&["x", "y"], whose));
    (words, maps, keys).prop_map(|(words, (env, labels, health), (ports, volumes))| {
        let mut config = Object::new();
        for (key, value) in words {
            let list = matches!(key, "Entrypoint" | "Cmd" | "Shell");
            config.insert(key.into(), if list { json!([value]) } else { json!(value) });
        }
        let mut put = |key: &str, value: Value| {
            if !is_empty(&value) {
                config.insert(key.into(), value);
            }
        };
        put(
            "Env",
            env.into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
        );
        for (key, entries) in [("Labels", labels), ("Healthcheck", health)] {
            put(
                key,
                Value::Object(
                    entries
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), json!(value)))
                        .collect(),
                ),
            );
        }
        for (key, entries) in [("ExposedPorts", ports), ("Volumes", volumes)] {
            put(
                key,
                Value::Object(
                    entries
                        .into_iter()
                        .map(|(_, value)| (value, json!({})))
                        .collect(),
                ),
            );
        }
        config
    })
}

/// Generates an image from which a container can be created.
fn image(whose: &'static str) -> impl Strategy<Value = Object> {
    settings(whose).prop_map(|mut image| {
        if !image.contains_key("Cmd") && !image.contains_key("Entrypoint") {
            image.insert("Cmd".into(), json!(["sh"]));
        }
        image
    })
}

/// Sorts the variables, whose order has no meaning.
fn sorted(mut config: Object) -> Object {
    if let Some(variables) = config.get_mut("Env").and_then(Value::as_array_mut) {
        variables.sort_by_key(|variable| variable.as_str().unwrap_or_default().to_owned());
    }
    config
}

proptest! {
    /// The main property: the container comes back as if the user had made the same request again, with the new image. So a
    /// user's settings survive, and values of the old image follow the new one.
    #[test]
    fn replacement_equals_same_request_on_new_image(requested in settings("mine"), old in image("old"), new in image("new")) {
        let before = made(&requested, &old);
        let after = made(&wish(&before, &old), &new);
        prop_assert_eq!(sorted(after), sorted(made(&requested, &new)));
    }

    #[test]
    fn user_value_survives(requested in settings("mine"), old in image("old"), new in image("new")) {
        let after = made(&wish(&made(&requested, &old), &old), &new);
        for (key, value) in requested {
            let kept = match &value {
                Value::Object(entries) => entries.iter().all(|(name, value)| after[&key].get(name) == Some(value)),
                Value::Array(items) if key == "Env" => items.iter().all(|item| after[&key].as_array().unwrap().contains(item)),
                _ => after.get(&key) == Some(&value),
            };
            prop_assert!(kept, "{key}: {value} became {:?}", after.get(&key));
        }
    }

    #[test]
    fn image_default_follows_new_image(old in image("old"), new in image("new")) {
        prop_assert_eq!(wish(&made(&Object::new(), &old), &old), Object::new());
        prop_assert_eq!(made(&wish(&made(&Object::new(), &old), &old), &new), new);
    }

    /// Repeated replacements neither add to the intent nor remove anything from it.
    #[test]
    fn intent_is_stable(requested in settings("mine"), old in image("old"), new in image("new")) {
        let first = wish(&made(&requested, &old), &old);
        let second = wish(&made(&first, &new), &new);
        prop_assert_eq!(sorted(second), sorted(first));
    }

    /// On its own image a container comes back unchanged, also if a user's value equals the image's.
    #[test]
    fn same_image_changes_nothing(requested in settings("any"), image in image("any")) {
        let before = made(&requested, &image);
        let after = made(&wish(&before, &image), &image);
        prop_assert_eq!(sorted(after), sorted(before));
    }

    /// Host settings have no defaults in an image: those that need no conversion pass through unchanged.
    #[test]
    fn host_settings_pass_through(settings in proptest::collection::btree_map("[A-Z][a-z]{3,8}X", proptest::option::of(0..5_i64), 0..8)) {
        let before: Object = settings.into_iter().map(|(key, value)| (key, json!(value))).collect();
        let intent = Intent::from_container(&container(json!({}), Value::Object(before.clone())), &Object::new());
        let expected: Object = before.into_iter().filter(|(_, value)| !value.is_null()).collect();
        prop_assert_eq!(&intent.host_config, &expected);
        let again = Intent::from_container(&container(json!({}), Value::Object(expected)), &Object::new());
        prop_assert_eq!(again.host_config, intent.host_config);
    }
}

/// A case that the generated ones do not cover.
#[test]
fn cleared_entrypoint_stays_cleared() {
    let old = object(json!({"Entrypoint": ["old"], "Cmd": ["c"]}));
    let new = object(json!({"Entrypoint": ["new"], "Cmd": ["d"]}));
    let requested = object(json!({"Entrypoint": [""], "Cmd": ["mine"]}));
    let before = made(&requested, &old);
    assert_eq!(
        made(&wish(&before, &old), &new),
        object(json!({"Cmd": ["mine"]}))
    );
}
