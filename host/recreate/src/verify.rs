//! Whether what the engine made is what was asked for. Engines change some requests without a word; a container that would come
//! back different is not replaced.
//!
//! Pure: the request, and the inspection of what came of it.

use refit_model::container::{Container, Object};
use serde_json::Value;

use super::canonical::{canonical, canonical_endpoint};
use super::intent::{Replacement, as_may_be_asked};

/// The fields that differ, each with what was asked for and what was made. Empty where none does.
///
/// What came back as it was asked for, letter by letter, is the usual case: no canonical form is made of it.
pub fn differences(wanted: &Replacement, made: &Container) -> Vec<String> {
    let mut found = Vec::new();
    for (field, asked) in &wanted.request.config {
        let is = made.config.get(field).unwrap_or(&Value::Null);
        // The image is compared by id, by whoever knows it.
        if field != "Image" && asked != is {
            let same = covers_all(&canonical(field, asked), &canonical(field, is));
            compare(&format!("Config.{field}"), asked, is, same, &mut found);
        }
    }
    let made_host_config = as_may_be_asked(&made.host_config);
    for (field, asked) in &wanted.request.host_config {
        let name = format!("HostConfig.{field}");
        let is = made_host_config.get(field).unwrap_or(&Value::Null);
        if asked == is {
            continue;
        }
        if field == "NetworkMode" && is_bridge_by_another_name(wanted, made, asked, is) {
            continue;
        }
        let (wish, made) = (canonical(field, asked), canonical(field, is));
        // Nothing of an image comes in here: what is there beside what was asked for is the engine's own.
        let engine_adds = ["SecurityOpt", "Ulimits"].contains(&field.as_str());
        let more_is_told = !is_nothing(asked) || PATH_LISTS.contains(&field.as_str());
        let more = !engine_adds && more_is_told && !covers_back(&wish, &made);
        let same = covers_all(&wish, &made);
        if more {
            found.push(difference(&name, asked, is));
        } else {
            compare(&name, asked, is, same, &mut found);
        }
    }
    for (network, asked) in wanted.request.endpoint.iter().chain(&wanted.networks) {
        match endpoint(wanted, made, network) {
            Some(endpoint) => {
                for (field, asked) in asked {
                    let is = endpoint.get(field).unwrap_or(&Value::Null);
                    if asked == is {
                        continue;
                    }
                    // Not every engine tells before the start.
                    if field == "NetworkID" && is_nothing(is) {
                        continue;
                    }
                    let (wish, made) = (
                        canonical_endpoint(field, asked),
                        canonical_endpoint(field, is),
                    );
                    let name = format!("network `{network}`, {field}");
                    compare(&name, asked, is, covers_all(&wish, &made), &mut found);
                }
            }
            None => found.push(format!("network `{network}` is missing")),
        }
    }
    found
}

/// Where no path at all is a wish.
const PATH_LISTS: [&str; 2] = ["MaskedPaths", "ReadonlyPaths"];

/// Podman says `bridge` of a container in any network that is one, also of its own default, `podman`. Whether the container is in
/// the network that was asked for is compared below.
fn is_bridge_by_another_name(
    wanted: &Replacement,
    made: &Container,
    asked: &Value,
    is: &Value,
) -> bool {
    let network = asked.as_str().unwrap_or_default();
    is.as_str() == Some("bridge")
        && !made.endpoints.contains_key("bridge")
        && wanted
            .request
            .endpoint
            .as_ref()
            .is_some_and(|(name, _)| name == network)
        && endpoint(wanted, made, network).is_some()
}

/// By name, or by the id under which it was asked for. Before its start a container's endpoint does not say which id its network
/// has; it is then the one that none of the other networks is.
fn endpoint<'a>(wanted: &Replacement, made: &'a Container, network: &str) -> Option<&'a Object> {
    let by_id =
        |endpoint: &&Object| endpoint.get("NetworkID").and_then(Value::as_str) == Some(network);
    let named = made
        .endpoints
        .get(network)
        .or_else(|| made.endpoints.values().find(by_id));
    if named.is_some() || !is_network_id(network) {
        return named;
    }
    let is_other = |name: &String| wanted.networks.iter().any(|(other, _)| other == name);
    let mut left = made.endpoints.iter().filter(|(name, _)| !is_other(name));
    match (left.next(), left.next()) {
        (Some((_, endpoint)), None) => Some(endpoint),
        _ => None,
    }
}

fn is_network_id(network: &str) -> bool {
    network.len() == 64 && network.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What was asked for must be there.
fn compare(field: &str, asked: &Value, is: &Value, same: bool, found: &mut Vec<String>) {
    // `--entrypoint ""` is asked for as a list with an empty word, and made as none.
    let is_cleared = *asked == serde_json::json!([""]) && is_nothing(is);
    if !same && !is_nothing(asked) && !is_cleared {
        found.push(difference(field, asked, is));
    }
}

/// Whether everything in `asked` is in `made`, lists in whatever order. The image adds to lists and objects, so there may be more.
fn covers_all(asked: &Value, made: &Value) -> bool {
    match (asked, made) {
        (Value::Array(asked), Value::Array(made)) => asked
            .iter()
            .all(|asked| made.iter().any(|made| covers(asked, made))),
        _ => covers(asked, made),
    }
}

/// Whether everything that was made, where it is a list, was asked for.
fn covers_back(asked: &Value, made: &Value) -> bool {
    match (asked, made) {
        (Value::Array(asked), Value::Array(made)) => made
            .iter()
            .all(|made| asked.iter().any(|asked| covers(asked, made))),
        _ => true,
    }
}

fn difference(field: &str, asked: &Value, made: &Value) -> String {
    format!("{field}: asked for {asked}, made {made}")
}

/// Whether everything in `asked` is in `made`.
fn covers(asked: &Value, made: &Value) -> bool {
    match (asked, made) {
        (Value::Object(asked), Value::Object(made)) => asked.iter().all(|(key, asked)| {
            is_nothing(asked) || made.get(key).is_some_and(|made| covers(asked, made))
        }),
        (Value::Array(asked), Value::Array(made)) => {
            asked.len() == made.len()
                && asked
                    .iter()
                    .zip(made)
                    .all(|(asked, made)| covers(asked, made))
        }
        (Value::Number(asked), Value::Number(made)) => asked.as_f64() == made.as_f64(),
        _ => asked == made || (is_nothing(asked) && is_nothing(made)),
    }
}

/// Engines write the same absence in many ways.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // An exposed port or a volume is a key with an empty object: its absence is told by the key.
        Value::Object(_) | Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Intent;
    use crate::intent::tests::container;
    use refit_model::image::ImageId;
    use serde_json::json;

    fn wanted(config: Value, host_config: Value) -> Replacement {
        Intent::of(&container(config, host_config), &Object::new())
            .on("x:latest", &ImageId::new("sha256:new"))
    }

    #[test]
    fn what_the_image_adds_is_no_difference() {
        let wanted = wanted(
            json!({"Env": ["A=1"], "Labels": {"a": "1"}, "ExposedPorts": {"80/tcp": {}}}),
            json!({"Memory": 0, "Binds": ["v:/d"]}),
        );
        let made = container(
            json!({"Env": ["PATH=/bin", "A=1"], "Labels": {"a": "1", "of-image": "2"}, "ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}),
            json!({"Binds": ["v:/d"], "Runtime": "runc"}),
        );
        assert_eq!(differences(&wanted, &made), Vec::<String>::new());
    }

    #[test]
    fn other_words_for_the_same_are_no_difference() {
        let wanted = wanted(
            json!({}),
            json!({"Links": ["/db:/ws-a/db"], "Ulimits": [{"Name": "nofile", "Soft": 1}]}),
        );
        let made = container(
            json!({}),
            json!({"Links": ["/db:/refit-new.0/db"], "Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 1}]}),
        );
        assert_eq!(differences(&wanted, &made), Vec::<String>::new());
    }

    #[test]
    fn what_the_engine_dropped_or_changed_is_named() {
        let wanted = wanted(
            json!({"Env": ["A=1"], "ExposedPorts": {"80/tcp": {}}}),
            json!({"CapAdd": ["NET_ADMIN"], "Memory": 5, "NewKnob": {"a": 1}}),
        );
        let made = container(json!({"Env": ["A=2"]}), json!({"Memory": 6, "NewKnob": {}}));
        assert_eq!(
            differences(&wanted, &made),
            [
                r#"Config.Env: asked for ["A=1"], made ["A=2"]"#,
                r#"Config.ExposedPorts: asked for {"80/tcp":{}}, made null"#,
                r#"HostConfig.CapAdd: asked for ["NET_ADMIN"], made null"#,
                "HostConfig.Memory: asked for 5, made 6",
                r#"HostConfig.NewKnob: asked for {"a":1}, made {}"#,
            ]
        );
    }

    #[test]
    fn a_link_is_the_same_under_another_name() {
        let links = |link: &str| json!({ "Links": [link] });
        let wanted = wanted(json!({}), links("/db:/ws-a/database"));
        let made = |link| container(json!({}), links(link));
        assert_eq!(
            differences(&wanted, &made("/db:/refit-new.0/database")),
            Vec::<String>::new()
        );
        assert_eq!(
            differences(&wanted, &made("/db:/refit-new.0/other")).len(),
            1
        );
    }

    #[test]
    fn a_setting_of_the_host_that_nobody_asked_for_is_named() {
        let wanted = wanted(
            json!({}),
            json!({"MaskedPaths": ["/a"], "SecurityOpt": ["x"]}),
        );
        let made = container(
            json!({}),
            json!({"MaskedPaths": ["/a", "/b"], "SecurityOpt": ["x", "label=disable"]}),
        );
        assert_eq!(
            differences(&wanted, &made),
            [r#"HostConfig.MaskedPaths: asked for ["/a"], made ["/a","/b"]"#]
        );
    }

    /// What engines make of one wish, each in its own words.
    #[test]
    fn newer_engines_words_are_no_difference() {
        let wanted = wanted(
            json!({"WorkingDir": "/w/", "StopSignal": "SIGTERM", "ExposedPorts": {"80": {}}, "Volumes": {"/data/": {}}}),
            json!({
                "NetworkMode": "default", "CapAdd": ["chown"], "SecurityOpt": ["label:disable"], "PidsLimit": -1,
                "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "Binds": ["v:/d/:rw"],
                "Mounts": [{"Type": "volume", "Source": "v", "Target": "/m/"}],
                "ExtraHosts": ["Db:10.0.0.1"], "Dns": ["10.0.0.1", "10.0.0.2"],
            }),
        );
        let made = container(
            json!({"WorkingDir": "/w", "StopSignal": "15", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}}),
            json!({
                "NetworkMode": "bridge", "CapAdd": ["CAP_CHOWN"], "SecurityOpt": ["label=disable"],
                "RestartPolicy": {"Name": "", "MaximumRetryCount": 0}, "Binds": ["v:/d"],
                "Mounts": [{"Type": "volume", "Source": "v", "Target": "/m"}],
                "ExtraHosts": ["db:10.0.0.1"], "Dns": ["10.0.0.2", "10.0.0.1"],
            }),
        );
        assert_eq!(differences(&wanted, &made), Vec::<String>::new());
    }

    #[test]
    fn masking_that_nobody_asked_for_is_named() {
        let wanted = wanted(json!({}), json!({"MaskedPaths": [], "CapAdd": []}));
        let made = |masked| container(json!({}), json!({ "MaskedPaths": masked }));
        assert_eq!(
            differences(&wanted, &made(json!(["/proc/kcore"]))),
            [r#"HostConfig.MaskedPaths: asked for [], made ["/proc/kcore"]"#]
        );
        assert_eq!(differences(&wanted, &made(json!([]))), Vec::<String>::new());
    }

    #[test]
    fn another_network_of_the_same_name_is_named() {
        let in_network = |id: &str| {
            let mut container = container(json!({}), json!({ "NetworkMode": "net" }));
            let endpoint = json!({ "NetworkID": id }).as_object().cloned().unwrap();
            container.endpoints = [("net".into(), endpoint)].into();
            container
        };
        let wanted = Intent::of(&in_network("one"), &Object::new())
            .on("x:latest", &ImageId::new("sha256:new"));
        // Before its start an engine may not say which it is.
        for made in ["one", ""] {
            assert_eq!(
                differences(&wanted, &in_network(made)),
                Vec::<String>::new()
            );
        }
        assert_eq!(
            differences(&wanted, &in_network("two")),
            [r#"network `net`, NetworkID: asked for "one", made "two""#]
        );
    }

    #[test]
    fn podmans_word_for_any_bridge_is_no_difference_where_the_network_is_the_same() {
        let in_network = |name: &str| {
            let mut container = container(json!({}), json!({ "NetworkMode": "bridge" }));
            container.endpoints = [(name.to_owned(), Object::new())].into();
            container
        };
        let wanted = Intent::of(&in_network("podman"), &Object::new())
            .on("x:latest", &ImageId::new("sha256:new"));
        assert_eq!(
            differences(&wanted, &in_network("podman")),
            Vec::<String>::new()
        );
        // Docker's own bridge, and another network, are others.
        for other in ["bridge", "net"] {
            assert!(!differences(&wanted, &in_network(other)).is_empty());
        }
    }

    #[test]
    fn a_network_that_is_known_by_its_id_is_found_before_the_start() {
        let id = "e".repeat(64);
        let mut old = container(json!({}), json!({ "NetworkMode": id }));
        let endpoint = |id: &str| {
            json!({"NetworkID": id, "Aliases": ["web"]})
                .as_object()
                .cloned()
                .unwrap()
        };
        old.endpoints = [
            ("net".into(), endpoint(&id)),
            ("other".into(), endpoint("f")),
        ]
        .into();
        let wanted = Intent::of(&old, &Object::new()).on("x:latest", &ImageId::new("sha256:new"));
        let mut made = container(json!({}), json!({ "NetworkMode": id }));
        made.endpoints = [
            ("net".into(), endpoint("")),
            ("other".into(), endpoint("f")),
        ]
        .into();
        assert_eq!(differences(&wanted, &made), Vec::<String>::new());
        made.endpoints.remove("net");
        assert_eq!(
            differences(&wanted, &made),
            [format!("network `{id}` is missing")]
        );
    }
}
