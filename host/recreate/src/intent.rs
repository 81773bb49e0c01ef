//! The intent of a container: what the user requested when it was created, which is its configuration without the values from
//! its image.
//!
//! A container's inspection shows both as one. An exact copy would freeze the old image's environment, command, labels and
//! health check forever; without the old image's defaults, the new image's defaults apply. A user's value that equals the
//! image's default cannot be distinguished from the default, and follows the new image.
//!
//! Pure: documents in, documents out. Fields that this module does not name are copied unchanged.

use std::collections::BTreeMap;

use refit_engine::CreateRequest;
use refit_model::container::{Container, ContainerId, Object, PublishedPort};
use refit_model::image::ImageId;
use serde_json::{Value, json};

use super::canonical::{Bind, canonicalize, clean_path, is_default_path_list};
use super::{dependents, names};

/// The id of the image that Docker Compose made a container from.
const LABEL_COMPOSE_IMAGE: &str = "com.docker.compose.image";

/// The user's configuration of a container, without any image.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    config: Object,
    host_config: Object,
    /// The network that the container is created with, if any, and the others by name.
    primary: Option<(String, Object)>,
    others: BTreeMap<String, Object>,
}

/// A replacement of a container: the request that creates it, and the networks to connect before its start, by name. If an
/// endpoint has a `NetworkID`, that is the network: an engine may have several networks with one name.
#[derive(Clone, Debug)]
pub struct Replacement {
    pub request: CreateRequest,
    pub networks: Vec<(String, Object)>,
}

/// Returns the id or name to pass to the engine to connect a container to a network of [`Replacement::networks`].
pub fn network_to_connect<'a>(name: &'a str, endpoint: &'a Object) -> &'a str {
    let id = endpoint.get("NetworkID").and_then(Value::as_str);
    id.filter(|id| !id.is_empty()).unwrap_or(name)
}

impl Intent {
    /// Extracts the intent of a container. `image` is the configuration of the image that the container was created from, by id
    /// and not by tag: after a pull the tag points to another image.
    pub fn from_container(container: &Container, image: &Object) -> Self {
        let (mut primary, mut others) = split_endpoints(container);
        let mut host_config = extract_host_config(container);
        // Somebody disconnected it from the network that it was created with. An engine would connect its replacement there
        // again.
        if primary.is_none()
            && let Some((network, endpoint)) = others.pop_first()
        {
            host_config.insert("NetworkMode".into(), json!(network));
            primary = Some((network, endpoint));
        }
        Self {
            config: extract_config(container, image),
            host_config,
            primary,
            others,
        }
    }

    /// Builds the request for the same intent on another image, which has this id.
    pub fn to_replacement(&self, image: &str, id: &ImageId) -> Replacement {
        let mut config = self.config.clone();
        config.insert("Image".into(), json!(image));
        // Compose compares it with the image that the tag points to, and recreates the container if they differ.
        if let Some(label) = config
            .get_mut("Labels")
            .and_then(|labels| labels.get_mut(LABEL_COMPOSE_IMAGE))
        {
            *label = json!(id.as_str());
        }
        let request = CreateRequest {
            config,
            host_config: self.host_config.clone(),
            endpoint: self.primary.clone(),
        };
        Replacement {
            request,
            networks: self.others.clone().into_iter().collect(),
        }
    }

    /// Replaces references to `provider` with references to `replacement`, which does not have the provider's name yet.
    pub fn follow_provider(&mut self, provider: &Container, replacement: &ContainerId) {
        for key in ["NetworkMode", "IpcMode", "PidMode"] {
            let Some(mode) = self.host_config.get_mut(key) else {
                continue;
            };
            let followed = mode
                .as_str()
                .and_then(|mode| mode.strip_prefix("container:"))
                .is_some_and(|id| id == provider.id.as_str());
            if followed {
                *mode = json!(format!("container:{replacement}"));
            }
        }
        let entries =
            |host_config: &mut Object, key: &str, change: &dyn Fn(&str) -> Option<String>| {
                let list = host_config.get_mut(key).and_then(Value::as_array_mut);
                for entry in list.into_iter().flatten() {
                    if let Some(changed) = entry.as_str().and_then(change) {
                        *entry = json!(changed);
                    }
                }
            };
        // The engine stores the container and not this name, and shows the link under the container's present name.
        let temporary_name = names::temporary_name(&provider.id);
        entries(&mut self.host_config, "Links", &|link| {
            let alias = link.strip_prefix(&provider.name)?.strip_prefix(':')?;
            Some(format!("{temporary_name}:{alias}"))
        });
        // A reference by name stays: the name will mean the replacement, and the volumes are the same.
        entries(&mut self.host_config, "VolumesFrom", &|wish| {
            let source = dependents::parse_provider(wish);
            let by_id = source != provider.name
                && dependents::refers_to(source, &provider.id, &provider.name);
            by_id.then(|| wish.replacen(source, replacement.as_str(), 1))
        });
    }
}

fn extract_config(container: &Container, image: &Object) -> Object {
    let mut config = Object::new();
    let (entrypoint, cmd) = extract_command(&container.config, image);
    for (key, value) in &container.config {
        let default = image.get(key);
        let kept = match key.as_str() {
            "Image" => None,
            "Entrypoint" => entrypoint.clone(),
            "Cmd" => cmd.clone(),
            "Env" => list_without(value, default),
            "Labels" => object_without(value, default),
            "ExposedPorts" | "Volumes" => keys_without(key, value, default),
            "Healthcheck" => object_without(value, default),
            "User" | "WorkingDir" | "StopSignal" | "Shell" | "OnBuild" | "ArgsEscaped" => {
                let is_default = default.is_some_and(|default| {
                    default == value || canonicalize(key, default) == canonicalize(key, value)
                });
                (!is_default && !is_empty(value)).then(|| value.clone())
            }
            "Hostname" => extract_hostname(container, value),
            "Domainname" if shares_uts_namespace(container) => None,
            _ => Some(value.clone()),
        };
        if let Some(kept) = kept.filter(|kept| !kept.is_null()) {
            config.insert(key.clone(), kept);
        }
    }
    // `--entrypoint ""` leaves none in the inspection, and without it in the request the image's entrypoint would come back.
    if entrypoint.is_some() && !config.contains_key("Entrypoint") {
        config.extend(entrypoint.map(|entrypoint| ("Entrypoint".to_owned(), entrypoint)));
    }
    config
}

/// Extracts the entrypoint and the command. A user's entrypoint makes the engine ignore the image's command, so the two are
/// decided together.
fn extract_command(container: &Object, image: &Object) -> (Option<Value>, Option<Value>) {
    let of = |object: &Object, key: &str| object.get(key).filter(|value| !is_empty(value)).cloned();
    let (entrypoint, cmd) = (of(container, "Entrypoint"), of(container, "Cmd"));
    let (image_entrypoint, image_cmd) = (of(image, "Entrypoint"), of(image, "Cmd"));
    if entrypoint == image_entrypoint {
        if cmd == image_cmd {
            return (None, None);
        }
        if cmd.is_some() {
            return (None, cmd);
        }
        // The image has a command and the container has none: only an explicit entrypoint causes that.
        return (entrypoint, None);
    }
    (entrypoint.or_else(|| Some(json!([""]))), cmd)
}

/// Extracts the hostname. The engine uses a container's short id as its hostname, which is not a user's setting; and if the
/// container uses the namespace of another one, the engine refuses a hostname.
fn extract_hostname(container: &Container, value: &Value) -> Option<Value> {
    let given_by_engine = value.as_str() == Some(container.id.short());
    (!given_by_engine && !shares_uts_namespace(container)).then(|| value.clone())
}

fn shares_uts_namespace(container: &Container) -> bool {
    let uts_host = container.host_config.get("UTSMode").and_then(Value::as_str) == Some("host");
    uts_host || container.network_mode().starts_with("container:")
}

fn extract_host_config(container: &Container) -> Object {
    let mut host_config = to_request_form(&container.host_config);
    host_config.retain(|field, value| !is_default_path_list(field, value));
    keep_anonymous_volumes(container, &mut host_config);
    keep_chosen_ports(container, &mut host_config);
    host_config
}

/// Converts values that an inspection writes differently into the form that a request accepts, and drops unset ones.
pub(super) fn to_request_form(host_config: &Object) -> Object {
    let mut host_config = host_config.clone();
    host_config.retain(|_, value| !value.is_null());
    if let Some(links) = host_config.get_mut("Links").and_then(Value::as_array_mut) {
        for link in links {
            let requested = link.as_str().map(link_to_request_form);
            *link = requested.map_or(Value::Null, Value::String);
        }
    }
    if let Some(ulimits) = host_config.get_mut("Ulimits").and_then(Value::as_array_mut) {
        for ulimit in ulimits {
            // Podman returns `RLIMIT_NOFILE` and accepts only `nofile`.
            let requested = ulimit["Name"]
                .as_str()
                .and_then(|name| name.strip_prefix("RLIMIT_"))
                .map(str::to_lowercase);
            if let Some(requested) = requested {
                ulimit["Name"] = json!(requested);
            }
        }
    }
    // Podman shows one setting in both of its forms, and no engine accepts both.
    let is_set = |field: &str| host_config.get(field).and_then(Value::as_i64) > Some(0);
    if is_set("NanoCpus") && is_set("CpuPeriod") && is_set("CpuQuota") {
        host_config.remove("CpuPeriod");
        host_config.remove("CpuQuota");
    }
    host_config
}

/// Converts `/provider:/container/alias`, as an inspection shows a link, back to `provider:alias`.
fn link_to_request_form(link: &str) -> String {
    let (provider, alias) = link.split_once(':').unwrap_or((link, link));
    let alias = alias.rsplit('/').next().unwrap_or(alias);
    format!("{}:{alias}", provider.trim_start_matches('/'))
}

/// Keeps unnamed volumes: their data still belongs to the container's owner, so the request mounts them again by their
/// generated names.
fn keep_anonymous_volumes(container: &Container, host_config: &mut Object) {
    for mount in container
        .mounts
        .iter()
        .filter(|mount| mount.is_anonymous_volume())
    {
        let Some(name) = &mount.name else { continue };
        let mut requested = host_config
            .get_mut("Mounts")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        let is_there = |path: &str| clean_path(path) == clean_path(&mount.destination);
        let requested =
            requested.find(|requested| requested["Target"].as_str().is_some_and(is_there));
        if let Some(requested) = requested {
            requested["Source"] = json!(name);
            continue;
        }
        let mode = if mount.read_write { "" } else { ":ro" };
        let bind = format!("{name}:{}{mode}", mount.destination);
        let binds = host_config.entry("Binds").or_insert_with(|| json!([]));
        let Some(binds) = binds.as_array_mut() else {
            continue;
        };
        let bound = binds.iter_mut().find(|bound| {
            bound
                .as_str()
                .is_some_and(|bound| is_there(Bind::parse(bound).destination))
        });
        match bound {
            Some(bound)
                if Bind::parse(bound.as_str().unwrap_or_default())
                    .source
                    .is_none() =>
            {
                *bound = json!(bind);
            }
            Some(_) => {}
            None => binds.push(json!(bind)),
        }
    }
}

/// Keeps ports that the engine chose: users may already know such a port, and the replacement would get another one. The port
/// is free by then, since the old container has stopped.
fn keep_chosen_ports(container: &Container, host_config: &mut Object) {
    let all = host_config.get("PublishAllPorts") == Some(&Value::Bool(true));
    let mut unclaimed: Vec<&PublishedPort> = container.published_ports.iter().collect();
    let requested = host_config
        .get("PortBindings")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let (mut fixed, mut chosen) = (Vec::new(), Vec::new());
    for (port, bindings) in &requested {
        for binding in bindings.as_array().into_iter().flatten() {
            let list = if is_engine_chosen(binding) {
                &mut chosen
            } else {
                &mut fixed
            };
            list.push((port, binding));
        }
    }
    // A port that was requested exactly cannot satisfy another binding.
    for (port, binding) in fixed {
        let host_port = text(binding, "HostPort");
        unclaimed.retain(|published| {
            !(satisfies(published, port, binding) && published.host_port.to_string() == host_port)
        });
    }
    let mut resolved: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (port, binding) in chosen {
        let answer = take_published(&mut unclaimed, port, binding);
        resolved.entry(port.clone()).or_default().extend(answer);
    }
    if all {
        let any = json!({ "HostIp": "", "HostPort": "" });
        while let Some(published) = unclaimed.first() {
            let port = port_key(published);
            let answer = take_published(&mut unclaimed, &port, &any);
            resolved.entry(port).or_default().extend(answer);
        }
    }
    if resolved.is_empty() {
        return;
    }
    let mut bindings = requested;
    for (port, resolved) in resolved {
        let fixed = bindings
            .get(&port)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let fixed = fixed
            .into_iter()
            .filter(|binding| !is_engine_chosen(binding));
        let mut all: Vec<Value> = fixed.chain(resolved).collect();
        // A binding without a published port stays as requested, after the ports, where the next replacement leaves it.
        all.sort_by_key(is_engine_chosen);
        bindings.insert(port, Value::Array(all));
    }
    host_config.insert("PortBindings".into(), Value::Object(bindings));
}

/// Takes the ports that were published for a requested binding, in the form of a request; returns the binding itself if there
/// are none. A port that is taken cannot satisfy another binding. An engine may give the two address families different ports
/// for one binding.
fn take_published(unclaimed: &mut Vec<&PublishedPort>, port: &str, wish: &Value) -> Vec<Value> {
    let mut taken: Vec<(String, u16)> = Vec::new();
    let mut of_family = |ipv6: bool| {
        let index = unclaimed.iter().position(|published| {
            satisfies(published, port, wish) && published.host_address.contains(':') == ipv6
        });
        if let Some(index) = index {
            let published = unclaimed.remove(index);
            taken.push((published.host_address.clone(), published.host_port));
        }
    };
    of_family(false);
    of_family(true);
    let one = |address: &str, port: u16| json!({ "HostIp": address, "HostPort": port.to_string() });
    match taken.as_slice() {
        [] => vec![wish.clone()],
        [(_, port)] => vec![one(text(wish, "HostIp"), *port)],
        [(_, first), (_, second), ..] if first == second => vec![one(text(wish, "HostIp"), *first)],
        both => both
            .iter()
            .map(|(address, port)| one(address, *port))
            .collect(),
    }
}

fn text<'a>(binding: &'a Value, key: &str) -> &'a str {
    binding[key].as_str().unwrap_or_default()
}

/// Reports whether the binding leaves the port to the engine: it names no port, or a range.
fn is_engine_chosen(binding: &Value) -> bool {
    let port = text(binding, "HostPort");
    matches!(port, "" | "0") || port.contains('-')
}

/// Reports whether this port was published for the requested binding.
fn satisfies(published: &PublishedPort, port: &str, wish: &Value) -> bool {
    let address = text(wish, "HostIp");
    port_key(published) == port && (address.is_empty() || address == published.host_address)
}

fn port_key(published: &PublishedPort) -> String {
    format!("{}/{}", published.container_port, published.protocol)
}

/// Returns the requested settings of each network, by the network's name.
pub(super) fn requested_endpoints(container: &Container) -> BTreeMap<String, Object> {
    let endpoints = container.endpoints.iter();
    endpoints
        .map(|(name, endpoint)| {
            (
                name.clone(),
                to_requested_endpoint(container, name, endpoint),
            )
        })
        .collect()
}

/// The endpoint of the network that the container was created with, if any, and the others by network.
fn split_endpoints(container: &Container) -> (Option<(String, Object)>, BTreeMap<String, Object>) {
    let mode = container.network_mode();
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return (None, BTreeMap::new());
    }
    let mut primary = None;
    let mut others = BTreeMap::new();
    for (name, endpoint) in &container.endpoints {
        let requested = to_requested_endpoint(container, name, endpoint);
        // The request may have named a network by its id, while endpoints are listed by name.
        let by_id = endpoint
            .get("NetworkID")
            .and_then(Value::as_str)
            .is_some_and(|id| id == mode);
        if name == mode || by_id {
            primary = Some((mode.to_owned(), requested));
        } else {
            others.insert(name.clone(), requested);
        }
    }
    (primary, others)
}

/// Extracts an endpoint's requested settings without its present state: a static address is in `IPAMConfig`, a dynamic one is
/// in no field that this reads.
fn to_requested_endpoint(container: &Container, network: &str, endpoint: &Object) -> Object {
    let mut requested = Object::new();
    // The networks that every engine has are found by name, and get another id when the engine starts again.
    let has_own_id = !matches!(network, "bridge" | "host" | "none" | "podman");
    let id = endpoint
        .get("NetworkID")
        .filter(|id| has_own_id && !is_empty(id));
    requested.extend(id.map(|id| ("NetworkID".to_owned(), id.clone())));
    for key in ["IPAMConfig", "Links", "DriverOpts", "GwPriority"] {
        requested.extend(
            endpoint
                .get(key)
                .filter(|value| !is_empty(value))
                .map(|value| (key.to_owned(), value.clone())),
        );
    }
    // The engine gives every container its short id and its hostname as aliases, and the container answers to its name anyway.
    // The default network accepts no aliases.
    let hostname = container
        .config
        .get("Hostname")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let given = [container.id.short(), hostname, container.name.as_str()];
    let aliases: Vec<Value> = endpoint
        .get("Aliases")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|alias| alias.as_str().is_some_and(|alias| !given.contains(&alias)))
        .cloned()
        .collect();
    if !aliases.is_empty() && network != "bridge" {
        requested.insert("Aliases".into(), Value::Array(aliases));
    }
    requested
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Returns the items that are not in the default; `None` if none is left.
fn list_without(value: &Value, default: Option<&Value>) -> Option<Value> {
    let default = default
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let kept: Vec<Value> = value
        .as_array()?
        .iter()
        .filter(|item| !default.contains(item))
        .cloned()
        .collect();
    (!kept.is_empty()).then_some(Value::Array(kept))
}

/// Returns the entries that differ from the default's; `None` if none is left.
fn object_without(value: &Value, default: Option<&Value>) -> Option<Value> {
    let kept: Object = value
        .as_object()?
        .iter()
        .filter(|(key, value)| default.and_then(|default| default.get(key.as_str())) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    (!kept.is_empty()).then_some(Value::Object(kept))
}

/// Returns the keys that are not in the default, in any spelling (their values have no meaning); `None` if none is left.
fn keys_without(field: &str, value: &Value, default: Option<&Value>) -> Option<Value> {
    let default = default.map(|default| canonicalize(field, default));
    let is_default = |key: &str| {
        let one = canonicalize(field, &json!({ key: {} }));
        let mut spelled = one.as_object().into_iter().flat_map(Object::keys);
        spelled.all(|key| {
            default
                .as_ref()
                .is_some_and(|default| default.get(key).is_some())
        })
    };
    let kept: Object = value
        .as_object()?
        .iter()
        .filter(|(key, _)| !is_default(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    (!kept.is_empty()).then_some(Value::Object(kept))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;
