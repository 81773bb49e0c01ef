//! Verifies that the engine created what Refit requested. Engines change some requests silently; Refit does not replace a
//! container that would come back different.
//!
//! Pure: the inputs are the request and the inspection of the result.

use refit_model::container::{Container, Object};
use serde_json::Value;

use super::canonical::{canonicalize, canonicalize_endpoint};
use super::intent::{Replacement, to_request_form};

/// Returns the fields that differ, each with the requested and the actual value. Empty if none differs.
///
/// Usually a value comes back exactly as requested: then no canonical form is computed.
pub fn find_differences(wanted: &Replacement, made: &Container) -> Vec<String> {
    let mut differences = Vec::new();
    for (field, requested) in &wanted.request.config {
        let actual = made.config.get(field).unwrap_or(&Value::Null);
        // The caller compares the image by id.
        if field != "Image" && requested != actual {
            let same = covers_all(
                &canonicalize(field, requested),
                &canonicalize(field, actual),
            );
            check_field(
                &format!("Config.{field}"),
                requested,
                actual,
                same,
                &mut differences,
            );
        }
    }
    let made_host_config = to_request_form(&made.host_config);
    for (field, requested) in &wanted.request.host_config {
        let name = format!("HostConfig.{field}");
        let actual = made_host_config.get(field).unwrap_or(&Value::Null);
        if requested == actual {
            continue;
        }
        if field == "NetworkMode" && is_bridge_by_another_name(wanted, made, requested, actual) {
            continue;
        }
        let (wish, made) = (canonicalize(field, requested), canonicalize(field, actual));
        // An image adds nothing here: any value beyond the request is the engine's.
        let engine_adds = ["SecurityOpt", "Ulimits"].contains(&field.as_str());
        let more_is_relevant = !is_absent(requested) || PATH_LISTS.contains(&field.as_str());
        let more = !engine_adds && more_is_relevant && !covers_made(&wish, &made);
        let same = covers_all(&wish, &made);
        if more {
            differences.push(describe_difference(&name, requested, actual));
        } else {
            check_field(&name, requested, actual, same, &mut differences);
        }
    }
    for (network, requested) in wanted.request.endpoint.iter().chain(&wanted.networks) {
        match find_endpoint(wanted, made, network) {
            Some(endpoint) => {
                for (field, requested) in requested {
                    let actual = endpoint.get(field).unwrap_or(&Value::Null);
                    if requested == actual {
                        continue;
                    }
                    // Not every engine reports it before the start.
                    if field == "NetworkID" && is_absent(actual) {
                        continue;
                    }
                    let (wish, made) = (
                        canonicalize_endpoint(field, requested),
                        canonicalize_endpoint(field, actual),
                    );
                    let name = format!("network `{network}`, {field}");
                    check_field(
                        &name,
                        requested,
                        actual,
                        covers_all(&wish, &made),
                        &mut differences,
                    );
                }
            }
            None => differences.push(format!("network `{network}` is missing")),
        }
    }
    differences
}

/// Lists that a user can set to be empty.
const PATH_LISTS: [&str; 2] = ["MaskedPaths", "ReadonlyPaths"];

/// Reports whether Podman's `bridge` is only another word for the requested network. Podman says `bridge` for any bridge
/// network, including its default, `podman`. The comparison of endpoints checks whether the container is in the requested
/// network.
fn is_bridge_by_another_name(
    wanted: &Replacement,
    made: &Container,
    requested: &Value,
    actual: &Value,
) -> bool {
    let network = requested.as_str().unwrap_or_default();
    actual.as_str() == Some("bridge")
        && !made.endpoints.contains_key("bridge")
        && wanted
            .request
            .endpoint
            .as_ref()
            .is_some_and(|(name, _)| name == network)
        && find_endpoint(wanted, made, network).is_some()
}

/// Finds the endpoint of a network by name, or by the id that the request used. Before its start a container's endpoint does
/// not contain the id of its network; it is then the only endpoint that no other requested network has.
fn find_endpoint<'a>(
    wanted: &Replacement,
    made: &'a Container,
    network: &str,
) -> Option<&'a Object> {
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

/// Adds a difference if a requested value is missing.
fn check_field(
    field: &str,
    requested: &Value,
    actual: &Value,
    same: bool,
    differences: &mut Vec<String>,
) {
    // `--entrypoint ""` is a list with an empty word in the request, and absent in the result.
    let is_cleared = *requested == serde_json::json!([""]) && is_absent(actual);
    if !same && !is_absent(requested) && !is_cleared {
        differences.push(describe_difference(field, requested, actual));
    }
}

/// Checks whether `made` contains everything in `requested`, lists in any order. The image adds to lists and objects, so there may
/// be more.
fn covers_all(requested: &Value, made: &Value) -> bool {
    match (requested, made) {
        (Value::Array(requested), Value::Array(made)) => requested
            .iter()
            .all(|requested| made.iter().any(|made| covers(requested, made))),
        _ => covers(requested, made),
    }
}

/// Checks whether a list in `made` contains only requested items.
fn covers_made(requested: &Value, made: &Value) -> bool {
    match (requested, made) {
        (Value::Array(requested), Value::Array(made)) => made
            .iter()
            .all(|made| requested.iter().any(|requested| covers(requested, made))),
        _ => true,
    }
}

fn describe_difference(field: &str, requested: &Value, made: &Value) -> String {
    format!("{field}: asked for {requested}, made {made}")
}

/// Checks whether `made` contains everything in `requested`.
fn covers(requested: &Value, made: &Value) -> bool {
    match (requested, made) {
        (Value::Object(requested), Value::Object(made)) => {
            requested.iter().all(|(key, requested)| {
                is_absent(requested) || made.get(key).is_some_and(|made| covers(requested, made))
            })
        }
        (Value::Array(requested), Value::Array(made)) => {
            requested.len() == made.len()
                && requested
                    .iter()
                    .zip(made)
                    .all(|(requested, made)| covers(requested, made))
        }
        (Value::Number(requested), Value::Number(made)) => requested.as_f64() == made.as_f64(),
        _ => requested == made || (is_absent(requested) && is_absent(made)),
    }
}

/// Reports whether the value means absence: engines write it in many ways.
fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // An exposed port or a volume is a key with an empty object: the missing key shows its absence.
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
        Intent::from_container(&container(config, host_config), &Object::new())
            .to_replacement("x:latest", &ImageId::new("sha256:new"))
    }

    #[test]
    fn additions_of_image_are_no_difference() {
        let wanted = wanted(
            json!({"Env": ["A=1"], "Labels": {"a": "1"}, "ExposedPorts": {"80/tcp": {}}}),
            json!({"Memory": 0, "Binds": ["v:/d"]}),
        );
        let made = container(
            json!({"Env": ["PATH=/bin", "A=1"], "Labels": {"a": "1", "of-image": "2"}, "ExposedPorts": {"80/tcp": {}, "81/tcp": {}}}),
            json!({"Binds": ["v:/d"], "Runtime": "runc"}),
        );
        assert_eq!(find_differences(&wanted, &made), Vec::<String>::new());
    }

    #[test]
    fn other_spellings_are_no_difference() {
        let wanted = wanted(
            json!({}),
            json!({"Links": ["/db:/ws-a/db"], "Ulimits": [{"Name": "nofile", "Soft": 1}]}),
        );
        let made = container(
            json!({}),
            json!({"Links": ["/db:/refit-new.0/db"], "Ulimits": [{"Name": "RLIMIT_NOFILE", "Soft": 1}]}),
        );
        assert_eq!(find_differences(&wanted, &made), Vec::<String>::new());
    }

    #[test]
    fn dropped_and_changed_fields_are_reported() {
        let wanted = wanted(
            json!({"Env": ["A=1"], "ExposedPorts": {"80/tcp": {}}}),
            json!({"CapAdd": ["NET_ADMIN"], "Memory": 5, "NewKnob": {"a": 1}}),
        );
        let made = container(json!({"Env": ["A=2"]}), json!({"Memory": 6, "NewKnob": {}}));
        assert_eq!(
            find_differences(&wanted, &made),
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
    fn link_under_temporary_name_is_no_difference() {
        let links = |link: &str| json!({ "Links": [link] });
        let wanted = wanted(json!({}), links("/db:/ws-a/database"));
        let made = |link| container(json!({}), links(link));
        assert_eq!(
            find_differences(&wanted, &made("/db:/refit-new.0/database")),
            Vec::<String>::new()
        );
        assert_eq!(
            find_differences(&wanted, &made("/db:/refit-new.0/other")).len(),
            1
        );
    }

    #[test]
    fn unrequested_host_setting_is_reported() {
        let wanted = wanted(
            json!({}),
            json!({"MaskedPaths": ["/a"], "SecurityOpt": ["x"]}),
        );
        let made = container(
            json!({}),
            json!({"MaskedPaths": ["/a", "/b"], "SecurityOpt": ["x", "label=disable"]}),
        );
        assert_eq!(
            find_differences(&wanted, &made),
            [r#"HostConfig.MaskedPaths: asked for ["/a"], made ["/a","/b"]"#]
        );
    }

    /// Different engines write the same setting differently.
    #[test]
    fn spellings_of_newer_engines_are_no_difference() {
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
        assert_eq!(find_differences(&wanted, &made), Vec::<String>::new());
    }

    #[test]
    fn unrequested_masked_path_is_reported() {
        let wanted = wanted(json!({}), json!({"MaskedPaths": [], "CapAdd": []}));
        let made = |masked| container(json!({}), json!({ "MaskedPaths": masked }));
        assert_eq!(
            find_differences(&wanted, &made(json!(["/proc/kcore"]))),
            [r#"HostConfig.MaskedPaths: asked for [], made ["/proc/kcore"]"#]
        );
        assert_eq!(
            find_differences(&wanted, &made(json!([]))),
            Vec::<String>::new()
        );
    }

    #[test]
    fn other_network_of_same_name_is_reported() {
        let in_network = |id: &str| {
            let mut container = container(json!({}), json!({ "NetworkMode": "net" }));
            let endpoint = json!({ "NetworkID": id }).as_object().cloned().unwrap();
            container.endpoints = [("net".into(), endpoint)].into();
            container
        };
        let wanted = Intent::from_container(&in_network("one"), &Object::new())
            .to_replacement("x:latest", &ImageId::new("sha256:new"));
        // Before its start an engine may not report the id.
        for made in ["one", ""] {
            assert_eq!(
                find_differences(&wanted, &in_network(made)),
                Vec::<String>::new()
            );
        }
        assert_eq!(
            find_differences(&wanted, &in_network("two")),
            [r#"network `net`, NetworkID: asked for "one", made "two""#]
        );
    }

    #[test]
    fn podman_bridge_mode_is_no_difference_on_same_network() {
        let in_network = |name: &str| {
            let mut container = container(json!({}), json!({ "NetworkMode": "bridge" }));
            container.endpoints = [(name.to_owned(), Object::new())].into();
            container
        };
        let wanted = Intent::from_container(&in_network("podman"), &Object::new())
            .to_replacement("x:latest", &ImageId::new("sha256:new"));
        assert_eq!(
            find_differences(&wanted, &in_network("podman")),
            Vec::<String>::new()
        );
        // Docker's default bridge and any other network are different networks.
        for other in ["bridge", "net"] {
            assert!(!find_differences(&wanted, &in_network(other)).is_empty());
        }
    }

    #[test]
    fn network_requested_by_id_is_found_before_start() {
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
        let wanted = Intent::from_container(&old, &Object::new())
            .to_replacement("x:latest", &ImageId::new("sha256:new"));
        let mut made = container(json!({}), json!({ "NetworkMode": id }));
        made.endpoints = [
            ("net".into(), endpoint("")),
            ("other".into(), endpoint("f")),
        ]
        .into();
        assert_eq!(find_differences(&wanted, &made), Vec::<String>::new());
        made.endpoints.remove("net");
        assert_eq!(
            find_differences(&wanted, &made),
            [format!("network `{id}` is missing")]
        );
    }
}
