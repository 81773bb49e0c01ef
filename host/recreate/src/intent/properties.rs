//! What holds of every intent, whatever the container and its images: tried with made-up ones.
//!
//! [`made`] does what an engine does with a request and an image, after Docker's `merge` (daemon/commit.go); the fidelity suite
//! asks a real engine the same for chosen cases.

use proptest::prelude::*;
use serde_json::Value;

use super::tests::container;
use super::*;

/// The configuration of the container that an engine makes from a request and an image.
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

/// The intent of a container with this configuration, as the request that would be made of it.
fn wish(config: &Object, image: &Object) -> Object {
    Intent::of(&container(Value::Object(config.clone()), json!({})), image).config
}

fn object(value: Value) -> Object {
    value.as_object().cloned().unwrap()
}

/// Some of `names`, each with one of three values that begin with `whose`.
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

/// What somebody may have set: a user on a container, or whoever made an image. What `whose` differs in has no value in common.
/// Ports and volumes are keys without values: a user's are of his own.
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

/// An image from which a container can be made.
fn image(whose: &'static str) -> impl Strategy<Value = Object> {
    settings(whose).prop_map(|mut image| {
        if !image.contains_key("Cmd") && !image.contains_key("Entrypoint") {
            image.insert("Cmd".into(), json!(["sh"]));
        }
        image
    })
}

/// Lists of variables, whose order says nothing, in one order.
fn sorted(mut config: Object) -> Object {
    if let Some(variables) = config.get_mut("Env").and_then(Value::as_array_mut) {
        variables.sort_by_key(|variable| variable.as_str().unwrap_or_default().to_owned());
    }
    config
}

proptest! {
    /// The heart of it: the container comes back as if the user had asked for the same again, and named the new image. So what
    /// the user set survives, and what only the old image had said follows the new one.
    #[test]
    fn it_comes_back_as_if_it_were_asked_for_again(asked in settings("mine"), old in image("old"), new in image("new")) {
        let before = made(&asked, &old);
        let after = made(&wish(&before, &old), &new);
        prop_assert_eq!(sorted(after), sorted(made(&asked, &new)));
    }

    #[test]
    fn a_value_that_a_user_set_survives(asked in settings("mine"), old in image("old"), new in image("new")) {
        let after = made(&wish(&made(&asked, &old), &old), &new);
        for (key, value) in asked {
            let kept = match &value {
                Value::Object(entries) => entries.iter().all(|(name, value)| after[&key].get(name) == Some(value)),
                Value::Array(items) if key == "Env" => items.iter().all(|item| after[&key].as_array().unwrap().contains(item)),
                _ => after.get(&key) == Some(&value),
            };
            prop_assert!(kept, "{key}: {value} became {:?}", after.get(&key));
        }
    }

    #[test]
    fn a_default_that_nobody_touched_follows_the_new_image(old in image("old"), new in image("new")) {
        prop_assert_eq!(wish(&made(&Object::new(), &old), &old), Object::new());
        prop_assert_eq!(made(&wish(&made(&Object::new(), &old), &old), &new), new);
    }

    /// Again and again: what is asked for does not grow, and does not wear off.
    #[test]
    fn an_intent_is_stable(asked in settings("mine"), old in image("old"), new in image("new")) {
        let first = wish(&made(&asked, &old), &old);
        let second = wish(&made(&first, &new), &new);
        prop_assert_eq!(sorted(second), sorted(first));
    }

    /// On its own image it comes back as it is, also where a user said what the image says.
    #[test]
    fn on_the_same_image_nothing_changes(asked in settings("any"), image in image("any")) {
        let before = made(&asked, &image);
        let after = made(&wish(&before, &image), &image);
        prop_assert_eq!(sorted(after), sorted(before));
    }

    /// Settings of the host have no defaults in an image: those that we do not have to say in other words go through as they are.
    #[test]
    fn settings_of_the_host_go_through(settings in proptest::collection::btree_map("[A-Z][a-z]{3,8}X", proptest::option::of(0..5_i64), 0..8)) {
        let before: Object = settings.into_iter().map(|(key, value)| (key, json!(value))).collect();
        let intent = Intent::of(&container(json!({}), Value::Object(before.clone())), &Object::new());
        let expected: Object = before.into_iter().filter(|(_, value)| !value.is_null()).collect();
        prop_assert_eq!(&intent.host_config, &expected);
        let again = Intent::of(&container(json!({}), Value::Object(expected)), &Object::new());
        prop_assert_eq!(again.host_config, intent.host_config);
    }
}

/// What the made-up ones leave out.
#[test]
fn an_entrypoint_that_a_user_took_away_stays_away() {
    let old = object(json!({"Entrypoint": ["old"], "Cmd": ["c"]}));
    let new = object(json!({"Entrypoint": ["new"], "Cmd": ["d"]}));
    let asked = object(json!({"Entrypoint": [""], "Cmd": ["mine"]}));
    let before = made(&asked, &old);
    assert_eq!(
        made(&wish(&before, &old), &new),
        object(json!({"Cmd": ["mine"]}))
    );
}
