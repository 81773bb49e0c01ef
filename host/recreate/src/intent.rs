//! What the user asked for when a container was made: its configuration without what its image gave it.
//!
//! A container's inspection shows both as one. Copied as it is, it would freeze the old image's environment, command, labels
//! and health check for ever; with the image's defaults taken out, the new image's come through. What a user set to the very
//! value of the image's default cannot be told from the default, and follows the new image.
//!
//! Pure: documents in, documents out. Whatever is not named here is carried as it is.

use std::collections::BTreeMap;

use refit_engine::CreateRequest;
use refit_model::container::{Container, ContainerId, Object, PublishedPort};
use refit_model::image::ImageId;
use serde_json::{Value, json};

use super::canonical::{Bind, canonical, clean_path, is_default_path_list};
use super::{dependents, names};

/// The id of the image that Docker Compose made a container from.
const LABEL_COMPOSE_IMAGE: &str = "com.docker.compose.image";

/// What a user asked for, without any image.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    config: Object,
    host_config: Object,
    /// The network it is made with, if any, and the others by name.
    primary: Option<(String, Object)>,
    others: BTreeMap<String, Object>,
}

/// What replaces a container: the request that makes it, and the networks to connect before it is started, by name. Where an
/// endpoint says which `NetworkID` it is in, that is the network: an engine may have several of one name.
#[derive(Clone, Debug)]
pub struct Replacement {
    pub request: CreateRequest,
    pub networks: Vec<(String, Object)>,
}

/// What an engine is to be called with to connect a container to a network of [`Replacement::networks`].
pub fn network_to_connect<'a>(name: &'a str, endpoint: &'a Object) -> &'a str {
    let id = endpoint.get("NetworkID").and_then(Value::as_str);
    id.filter(|id| !id.is_empty()).unwrap_or(name)
}

impl Intent {
    /// `image` is the configuration of the image that the container was made from, by id and not by tag: after a pull the tag
    /// means another one.
    pub fn of(container: &Container, image: &Object) -> Self {
        let (mut primary, mut others) = endpoints(container);
        let mut host_config = host_config(container);
        // Somebody took it out of the network that it was made with. An engine would put its replacement there again.
        if primary.is_none()
            && let Some((network, endpoint)) = others.pop_first()
        {
            host_config.insert("NetworkMode".into(), json!(network));
            primary = Some((network, endpoint));
        }
        Self {
            config: config(container, image),
            host_config,
            primary,
            others,
        }
    }

    /// The same wish on another image, which has this id.
    pub fn on(&self, image: &str, id: &ImageId) -> Replacement {
        let mut config = self.config.clone();
        config.insert("Image".into(), json!(image));
        // Compose compares it with the image that the tag means, and makes the container once more where they differ.
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

    /// Whoever had something of `provider` has it of `replacement`, which does not bear the provider's name yet.
    pub fn follow(&mut self, provider: &Container, replacement: &ContainerId) {
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
        // The engine remembers the container and not this name, and shows the link under whatever name it gets.
        let candidate = names::temporary_name(&provider.id);
        entries(&mut self.host_config, "Links", &|link| {
            let alias = link.strip_prefix(&provider.name)?.strip_prefix(':')?;
            Some(format!("{candidate}:{alias}"))
        });
        // By name it stays: the name will mean the replacement, and the volumes are the same ones.
        entries(&mut self.host_config, "VolumesFrom", &|wish| {
            let source = dependents::provider(wish);
            let by_id = source != provider.name
                && dependents::is_meant(source, &provider.id, &provider.name);
            by_id.then(|| wish.replacen(source, replacement.as_str(), 1))
        });
    }
}

fn config(container: &Container, image: &Object) -> Object {
    let mut config = Object::new();
    let (entrypoint, cmd) = command(&container.config, image);
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
                    default == value || canonical(key, default) == canonical(key, value)
                });
                (!is_default && !is_empty(value)).then(|| value.clone())
            }
            "Hostname" => hostname(container, value),
            "Domainname" if shares_names(container) => None,
            _ => Some(value.clone()),
        };
        if let Some(kept) = kept.filter(|kept| !kept.is_null()) {
            config.insert(key.clone(), kept);
        }
    }
    // `--entrypoint ""` leaves none in the inspection, and saying nothing would bring the image's back.
    if entrypoint.is_some() && !config.contains_key("Entrypoint") {
        config.extend(entrypoint.map(|entrypoint| ("Entrypoint".to_owned(), entrypoint)));
    }
    config
}

/// What to ask for as entrypoint and command. An entrypoint that a user gives makes the engine forget the image's command, so
/// the two are decided together.
fn command(container: &Object, image: &Object) -> (Option<Value>, Option<Value>) {
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
        // The image has a command and the container has none: only an explicit entrypoint does that.
        return (entrypoint, None);
    }
    (entrypoint.or_else(|| Some(json!([""]))), cmd)
}

/// The engine gives a container its short id as hostname. That is no wish; and where the name space is somebody else's, a
/// hostname is refused.
fn hostname(container: &Container, value: &Value) -> Option<Value> {
    let given_by_engine = value.as_str() == Some(container.id.short());
    (!given_by_engine && !shares_names(container)).then(|| value.clone())
}

fn shares_names(container: &Container) -> bool {
    let uts_host = container.host_config.get("UTSMode").and_then(Value::as_str) == Some("host");
    uts_host || container.network_mode().starts_with("container:")
}

fn host_config(container: &Container) -> Object {
    let mut host_config = as_may_be_asked(&container.host_config);
    host_config.retain(|field, value| !is_default_path_list(field, value));
    keep_anonymous_volumes(container, &mut host_config);
    keep_chosen_ports(container, &mut host_config);
    host_config
}

/// What inspection says in other words than a request may use, in those of a request; and without what is unset.
pub(super) fn as_may_be_asked(host_config: &Object) -> Object {
    let mut host_config = host_config.clone();
    host_config.retain(|_, value| !value.is_null());
    if let Some(links) = host_config.get_mut("Links").and_then(Value::as_array_mut) {
        for link in links {
            let asked = link.as_str().map(link_as_asked);
            *link = asked.map_or(Value::Null, Value::String);
        }
    }
    if let Some(ulimits) = host_config.get_mut("Ulimits").and_then(Value::as_array_mut) {
        for ulimit in ulimits {
            // Podman answers `RLIMIT_NOFILE` and takes only `nofile`.
            let asked = ulimit["Name"]
                .as_str()
                .and_then(|name| name.strip_prefix("RLIMIT_"))
                .map(str::to_lowercase);
            if let Some(asked) = asked {
                ulimit["Name"] = json!(asked);
            }
        }
    }
    // Podman shows one wish in both of its forms, and no engine takes both.
    let is_set = |field: &str| host_config.get(field).and_then(Value::as_i64) > Some(0);
    if is_set("NanoCpus") && is_set("CpuPeriod") && is_set("CpuQuota") {
        host_config.remove("CpuPeriod");
        host_config.remove("CpuQuota");
    }
    host_config
}

/// `/provider:/container/alias`, as inspection shows a link, back to `provider:alias`.
fn link_as_asked(link: &str) -> String {
    let (provider, alias) = link.split_once(':').unwrap_or((link, link));
    let alias = alias.rsplit('/').next().unwrap_or(alias);
    format!("{}:{alias}", provider.trim_start_matches('/'))
}

/// The data in volumes that nobody named belongs to the container's owner all the same: they are mounted again by their names.
fn keep_anonymous_volumes(container: &Container, host_config: &mut Object) {
    for mount in container
        .mounts
        .iter()
        .filter(|mount| mount.is_anonymous_volume())
    {
        let Some(name) = &mount.name else { continue };
        let mut asked = host_config
            .get_mut("Mounts")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        let is_there = |path: &str| clean_path(path) == clean_path(&mount.destination);
        let asked = asked.find(|asked| asked["Target"].as_str().is_some_and(is_there));
        if let Some(asked) = asked {
            asked["Source"] = json!(name);
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

/// A port that the engine chose is kept: somebody was told of it, and the replacement would get another one. It is free by
/// then, since the old container has stopped.
fn keep_chosen_ports(container: &Container, host_config: &mut Object) {
    let all = host_config.get("PublishAllPorts") == Some(&Value::Bool(true));
    let mut unasked: Vec<&PublishedPort> = container.published_ports.iter().collect();
    let asked = host_config
        .get("PortBindings")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let (mut fixed, mut chosen) = (Vec::new(), Vec::new());
    for (port, bindings) in &asked {
        for binding in bindings.as_array().into_iter().flatten() {
            let list = if is_chosen(binding) {
                &mut chosen
            } else {
                &mut fixed
            };
            list.push((port, binding));
        }
    }
    // What was asked for exactly is nobody else's answer.
    for (port, binding) in fixed {
        let host_port = text(binding, "HostPort");
        unasked.retain(|published| {
            !(answers(published, port, binding) && published.host_port.to_string() == host_port)
        });
    }
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (port, binding) in chosen {
        let answer = take(&mut unasked, port, binding);
        found.entry(port.clone()).or_default().extend(answer);
    }
    if all {
        let any = json!({ "HostIp": "", "HostPort": "" });
        while let Some(published) = unasked.first() {
            let port = port_of(published);
            let answer = take(&mut unasked, &port, &any);
            found.entry(port).or_default().extend(answer);
        }
    }
    if found.is_empty() {
        return;
    }
    let mut bindings = asked;
    for (port, found) in found {
        let fixed = bindings
            .get(&port)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let fixed = fixed.into_iter().filter(|binding| !is_chosen(binding));
        let mut all: Vec<Value> = fixed.chain(found).collect();
        // A wish that no port answers stays a wish, behind the ports, where the next replacement leaves it.
        all.sort_by_key(is_chosen);
        bindings.insert(port, Value::Array(all));
    }
    host_config.insert("PortBindings".into(), Value::Object(bindings));
}

/// The ports that were published for a wish, as they may be asked for; the wish itself where none was. What is taken is nobody
/// else's answer. An engine may give the two families of addresses different ports for one wish.
fn take(unasked: &mut Vec<&PublishedPort>, port: &str, wish: &Value) -> Vec<Value> {
    let mut taken: Vec<(String, u16)> = Vec::new();
    let mut of_family = |ipv6: bool| {
        let index = unasked.iter().position(|published| {
            answers(published, port, wish) && published.host_address.contains(':') == ipv6
        });
        if let Some(index) = index {
            let published = unasked.remove(index);
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

/// Whether it leaves the port to the engine: none is named, or a range of them.
fn is_chosen(binding: &Value) -> bool {
    let port = text(binding, "HostPort");
    matches!(port, "" | "0") || port.contains('-')
}

/// Whether this is a port that was published for the wish.
fn answers(published: &PublishedPort, port: &str, wish: &Value) -> bool {
    let address = text(wish, "HostIp");
    port_of(published) == port && (address.is_empty() || address == published.host_address)
}

fn port_of(published: &PublishedPort) -> String {
    format!("{}/{}", published.container_port, published.protocol)
}

/// The endpoint of the network that the container was made with, and those of the others.
/// What was asked for in each network, by the network's name.
pub(super) fn endpoints_asked(container: &Container) -> BTreeMap<String, Object> {
    let endpoints = container.endpoints.iter();
    endpoints
        .map(|(name, endpoint)| (name.clone(), endpoint_as_asked(container, name, endpoint)))
        .collect()
}

fn endpoints(container: &Container) -> (Option<(String, Object)>, BTreeMap<String, Object>) {
    let mode = container.network_mode();
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return (None, BTreeMap::new());
    }
    let mut primary = None;
    let mut others = BTreeMap::new();
    for (name, endpoint) in &container.endpoints {
        let asked = endpoint_as_asked(container, name, endpoint);
        // A network may have been asked for by its id, while endpoints go by name.
        let by_id = endpoint
            .get("NetworkID")
            .and_then(Value::as_str)
            .is_some_and(|id| id == mode);
        if name == mode || by_id {
            primary = Some((mode.to_owned(), asked));
        } else {
            others.insert(name.clone(), asked);
        }
    }
    (primary, others)
}

/// An endpoint's wishes without its present state: a static address is in `IPAMConfig`, a dynamic one nowhere here.
fn endpoint_as_asked(container: &Container, network: &str, endpoint: &Object) -> Object {
    let mut asked = Object::new();
    // Those that every engine has are found by name, and get another id when it starts again.
    let has_own_id = !matches!(network, "bridge" | "host" | "none" | "podman");
    let id = endpoint
        .get("NetworkID")
        .filter(|id| has_own_id && !is_empty(id));
    asked.extend(id.map(|id| ("NetworkID".to_owned(), id.clone())));
    for key in ["IPAMConfig", "Links", "DriverOpts", "GwPriority"] {
        asked.extend(
            endpoint
                .get(key)
                .filter(|value| !is_empty(value))
                .map(|value| (key.to_owned(), value.clone())),
        );
    }
    // The engine gives every container its short id and its hostname as aliases, and it answers to its name anyway. The default
    // network takes none.
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
        asked.insert("Aliases".into(), Value::Array(aliases));
    }
    asked
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

/// The items that the default does not have; `None` where nothing is left.
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

/// The entries that differ from the default's; `None` where nothing is left.
fn object_without(value: &Value, default: Option<&Value>) -> Option<Value> {
    let kept: Object = value
        .as_object()?
        .iter()
        .filter(|(key, value)| default.and_then(|default| default.get(key.as_str())) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    (!kept.is_empty()).then_some(Value::Object(kept))
}

/// The keys that the default does not have, in whatever spelling (their values say nothing); `None` where nothing is left.
fn keys_without(field: &str, value: &Value, default: Option<&Value>) -> Option<Value> {
    let default = default.map(|default| canonical(field, default));
    let is_default = |key: &str| {
        let one = canonical(field, &json!({ key: {} }));
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
