//! Whether two inspections are of what should be the same container.

use std::collections::{BTreeMap, BTreeSet};

use refit::model::container::{Container, Object};
use serde_json::Value;

/// What differs between two inspections of what should be the same container, field by field. What every container has of its
/// own (its id as a hostname and alias, a dynamic address) is no difference, and neither is what two versions of [`ImageSpec`]
/// differ in. A volume and a port that the engine chose are asked for by name afterwards: they are compared by what came of it.
///
/// [`ImageSpec`]: refit_tests::ImageSpec
pub(crate) fn changes(before: &Container, after: &Container) -> Vec<String> {
    let mut changes = Vec::new();
    compare("Config", &config(before), &config(after), &mut changes);
    compare(
        "HostConfig",
        &host_config(before),
        &host_config(after),
        &mut changes,
    );
    let names = |container: &Container| container.endpoints.keys().cloned().collect::<Vec<_>>();
    if names(before) != names(after) {
        changes.push(format!(
            "networks: {:?} became {:?}",
            names(before),
            names(after)
        ));
    }
    for (network, endpoint) in &after.endpoints {
        if let Some(was) = before.endpoints.get(network) {
            compare(
                network,
                &wishes(before, was),
                &wishes(after, endpoint),
                &mut changes,
            );
        }
    }
    let mounts = |container: &Container| {
        let mounts = container.mounts.iter();
        mounts
            .map(|mount| (mount.destination.clone(), format!("{mount:?}")))
            .collect::<BTreeMap<_, _>>()
    };
    if mounts(before) != mounts(after) {
        changes.push(format!(
            "mounts: {:#?} became {:#?}",
            mounts(before),
            mounts(after)
        ));
    }
    if published(before) != published(after) {
        changes.push(format!(
            "ports: {:?} became {:?}",
            published(before),
            published(after)
        ));
    }
    changes
}

/// The ports that are bound on the machine.
pub(crate) fn published(container: &Container) -> BTreeSet<String> {
    let ports = container.published_ports.iter();
    ports
        .map(|port| {
            format!(
                "{}:{}->{}/{}",
                port.host_address, port.host_port, port.container_port, port.protocol
            )
        })
        .collect()
}

fn compare(part: &str, before: &Object, after: &Object, changes: &mut Vec<String>) {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let of = |object: &Object| object.get(key).cloned().unwrap_or_default();
        if of(before) != of(after) {
            changes.push(format!("{part}.{key}: {} became {}", of(before), of(after)));
        }
    }
}

fn config(container: &Container) -> Object {
    let mut config = container.config.clone();
    config.remove("Image");
    if let Some(variables) = config.get_mut("Env").and_then(Value::as_array_mut) {
        let of_version =
            |text: &str| text.starts_with("WS_VERSION=") || text.starts_with("MODEL_DEFAULT=");
        variables.retain(|variable| !variable.as_str().is_some_and(of_version));
    }
    if let Some(labels) = config.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.remove("org.opencontainers.image.version");
    }
    if config.get("Hostname").and_then(Value::as_str) == Some(container.id.short()) {
        config.remove("Hostname");
    }
    config
}

fn host_config(container: &Container) -> Object {
    let mut host_config = container.host_config.clone();
    host_config.remove("PortBindings");
    if let Some(binds) = host_config.get_mut("Binds").and_then(Value::as_array_mut) {
        let chosen = |source: &str| {
            source.len() == 64 && source.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        binds.retain(|bind| {
            !bind
                .as_str()
                .and_then(|bind| bind.split(':').next())
                .is_some_and(chosen)
        });
        if binds.is_empty() {
            host_config.remove("Binds");
        }
    }
    // The engine keeps links without an order.
    if let Some(links) = host_config.get_mut("Links").and_then(Value::as_array_mut) {
        links.sort_by_key(Value::to_string);
    }
    host_config.retain(|_, value| !value.is_null());
    host_config
}

fn wishes(container: &Container, endpoint: &Object) -> Object {
    let mut wishes = endpoint.clone();
    // From API 1.44 on the engine says which names it gives an endpoint: aliases, name, hostname, and the container's id.
    let own = [
        "DNSNames",
        "EndpointID",
        "IPAddress",
        "MacAddress",
        "GlobalIPv6Address",
    ];
    for own in own {
        wishes.remove(own);
    }
    if let Some(aliases) = wishes.get_mut("Aliases").and_then(Value::as_array_mut) {
        aliases.retain(|alias| alias.as_str() != Some(container.id.short()));
    }
    wishes.retain(|_, value| !matches!(value, Value::Array(items) if items.is_empty()));
    wishes
}
