//! The route from this process to the engine, and the containers that may be on it: a socket proxy, or a program that forwards
//! to one.
//!
//! Refit compares the engine's address with the addresses, names and published ports of a container, and a socket's listener
//! with the container of its process. A container that may be on the route counts as being on it: without the route, nothing
//! could start that container again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use refit_engine::address::{EngineAddress, Way};
use refit_model::container::{Container, Mount, PublishedPort};
use serde_json::Value;

use super::process::{ProcessFacts, parse_cgroup_ids};

/// A healthy resolver answers in milliseconds.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a resolved address is reused, since a refresh needs it for each container. A container's address changes when the
/// container is started again.
const RESOLVED_FRESH: Duration = Duration::from_secs(5);
/// A socket of this machine accepts a connection at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Folders that contain the socket of the machine's own engine.
const ENGINE_FOLDERS: [&str; 4] = ["/", "/run", "/var/run", "/run/podman"];

/// How this process reaches its engine.
#[derive(Debug, Default)]
pub(super) struct EngineRoute {
    /// The engine address as configured, for messages.
    url: String,
    target: Target,
    resolved: Mutex<Option<(Instant, Resolved)>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Target {
    /// No container can be on the route.
    #[default]
    None,
    Socket(String),
    Network {
        host: String,
        port: u16,
        /// Whether the engine's API is at that port, and not SSH.
        is_engine: bool,
    },
}

/// The addresses of the engine's host.
#[derive(Clone, Debug, Default)]
struct Resolved {
    /// Empty if the name could not be resolved.
    addresses: Vec<IpAddr>,
}

impl EngineRoute {
    pub(super) fn new(address: &EngineAddress) -> Self {
        Self {
            url: address.url.clone(),
            target: parse_target(address),
            resolved: Mutex::default(),
        }
    }

    pub(super) fn is_network(&self) -> bool {
        matches!(self.target, Target::Network { .. })
    }

    /// Returns why this container itself may be on the route; completes "Refit reaches the engine …".
    pub(super) async fn passes_through(
        &self,
        container: &Container,
        process: &ProcessFacts,
    ) -> Option<String> {
        match &self.target {
            Target::None => None,
            Target::Socket(path) => {
                let listeners = listener_containers(path).await;
                listeners
                    .contains(container.id.as_str())
                    .then(|| format!("through it: a program in it listens at `{path}`"))
            }
            Target::Network {
                host,
                port,
                is_engine,
            } => {
                let resolved = self.resolve(host, *port).await;
                match_address(container, &resolved, &self.url)
                    .or_else(|| match_name(container, host, &resolved, process, &self.url))
                    .or_else(|| match_published_port(container, *port, &resolved, &self.url))
                    .or_else(|| match_host_network(container, *port, *is_engine, &self.url))
            }
        }
    }

    /// Reports whether the address means this network namespace itself, so that any container in it may be the listener.
    pub(super) async fn is_loopback(&self) -> bool {
        match &self.target {
            Target::Network { host, port, .. } => {
                let resolved = self.resolve(host, *port).await;
                resolved.addresses.iter().any(IpAddr::is_loopback)
            }
            Target::None | Target::Socket(_) => false,
        }
    }

    /// Returns why a container that shares a folder with Refit's own may be on the route: the engine's socket is in that
    /// folder.
    pub(super) fn shares_socket_folder(
        &self,
        container: &Container,
        own: &[Mount],
    ) -> Option<String> {
        let Target::Socket(path) = &self.target else {
            return None;
        };
        let folder = own
            .iter()
            .filter(|mount| contains_path(&mount.destination, path))
            .max_by_key(|mount| mount.destination.len())?;
        let shared = container.mounts.iter().any(|mount| {
            let same_volume = mount.name.is_some() && mount.name == folder.name;
            let source = mount.source.as_deref().map(|it| it.trim_end_matches('/'));
            let same_folder = source.is_some_and(|source| {
                !ENGINE_FOLDERS.contains(&source)
                    && folder.source.as_deref().map(|it| it.trim_end_matches('/')) == Some(source)
            });
            mount.read_write && (same_volume || same_folder)
        });
        shared.then(|| {
            format!("at `{path}`, in a folder that this container can write to: it may be the one that listens there")
        })
    }

    async fn resolve(&self, host: &str, port: u16) -> Resolved {
        let cached = self.lock().clone();
        if let Some((when, resolved)) = cached
            && when.elapsed() < RESOLVED_FRESH
        {
            return resolved;
        }
        let lookup = tokio::net::lookup_host((host, port));
        let lookup = tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await;
        let addresses = match lookup {
            Ok(Ok(addresses)) => addresses
                .map(|address| address.ip().to_canonical())
                .collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        let resolved = Resolved { addresses };
        *self.lock() = Some((Instant::now(), resolved.clone()));
        resolved
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Resolved)>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_target(address: &EngineAddress) -> Target {
    let network = |default: u16, is_engine| {
        let uri = address.url.parse::<http::Uri>().ok();
        let authority = uri.as_ref().and_then(http::Uri::authority);
        authority.map_or(Target::None, |authority| Target::Network {
            host: authority
                .host()
                .trim_matches(['[', ']'])
                .trim_end_matches('.')
                .to_owned(),
            port: authority.port_u16().unwrap_or(default),
            is_engine,
        })
    };
    match &address.way {
        Way::Local => match address.url.strip_prefix("unix://") {
            Some(path) => Target::Socket(path.to_owned()),
            None => Target::None,
        },
        Way::Plain => network(2375, true),
        Way::Tls(_) => network(2376, true),
        Way::Ssh(destination) => Target::Network {
            host: destination.host.clone(),
            port: destination.port.unwrap_or(22),
            is_engine: false,
        },
    }
}

fn match_address(container: &Container, resolved: &Resolved, url: &str) -> Option<String> {
    let address =
        container_addresses(container).find(|address| resolved.addresses.contains(address))?;
    Some(format!("through it: `{url}` is its address {address}"))
}

fn match_name(
    container: &Container,
    host: &str,
    resolved: &Resolved,
    process: &ProcessFacts,
    url: &str,
) -> Option<String> {
    // Outside of containers, a name that resolves is not a container's name.
    if !resolved.addresses.is_empty() && !process.in_container {
        return None;
    }
    container_names(container)
        .any(|name| name.eq_ignore_ascii_case(host))
        .then(|| format!("through it: `{url}` is its name"))
}

fn match_published_port(
    container: &Container,
    port: u16,
    resolved: &Resolved,
    url: &str,
) -> Option<String> {
    let published = container.published_ports.iter();
    let published = published
        .filter(|published| published.protocol == "tcp" && published.host_port == port)
        .find(|published| is_bound_to_any(published, &resolved.addresses))?;
    Some(format!(
        "through it: it publishes port {} of `{url}`",
        published.host_port
    ))
}

/// Reports whether the port is bound to one of the addresses. A name that cannot be resolved may mean every address.
fn is_bound_to_any(published: &PublishedPort, addresses: &[IpAddr]) -> bool {
    match published.host_address.parse::<IpAddr>() {
        Ok(bound) if !bound.is_unspecified() => {
            addresses.is_empty() || addresses.contains(&bound.to_canonical())
        }
        _ => true,
    }
}

/// Matches a container in the machine's network: it listens on the machine itself, and the engine does not report at which
/// port.
fn match_host_network(
    container: &Container,
    port: u16,
    is_engine: bool,
    url: &str,
) -> Option<String> {
    if container.network_mode() != "host" {
        return None;
    }
    let exposed = container
        .config
        .get("ExposedPorts")
        .and_then(Value::as_object);
    let exposes = exposed.is_some_and(|ports| ports.contains_key(&format!("{port}/tcp")));
    let forwards = is_engine && container.mounts.iter().any(mounts_engine_socket);
    (exposes || forwards).then(|| {
        let why = if exposes {
            format!("it exposes port {port}")
        } else {
            "it has the engine's socket".to_owned()
        };
        format!("at `{url}`, and this container may be the one that listens there: it uses the machine's network, and {why}")
    })
}

fn mounts_engine_socket(mount: &Mount) -> bool {
    mount.source.as_deref().is_some_and(|source| {
        let source = source.trim_end_matches('/');
        source.ends_with("docker.sock")
            || source.ends_with("podman.sock")
            || ENGINE_FOLDERS.contains(&source)
    })
}

fn container_addresses(container: &Container) -> impl Iterator<Item = IpAddr> {
    let endpoints = container.endpoints.values();
    endpoints
        .flat_map(|endpoint| {
            ["IPAddress", "GlobalIPv6Address"]
                .into_iter()
                .filter_map(|key| endpoint.get(key).and_then(Value::as_str))
        })
        .filter_map(|address| address.parse::<IpAddr>().ok())
}

/// Lists all names under which the engine's name server knows the container.
fn container_names(container: &Container) -> impl Iterator<Item = String> {
    let endpoints = container.endpoints.iter();
    let aliases = endpoints.flat_map(|(network, endpoint)| {
        let lists = ["Aliases", "DNSNames"].into_iter();
        let lists = lists.filter_map(|key| endpoint.get(key).and_then(Value::as_array));
        let mut names: Vec<String> = lists
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        names.push(container.name.clone());
        // `proxy.network` means the same as `proxy`.
        let qualified: Vec<String> = names
            .iter()
            .map(|name| format!("{name}.{network}"))
            .collect();
        names.extend(qualified);
        names
    });
    let text = |key: &str| {
        let value = container.config.get(key).and_then(Value::as_str);
        value.filter(|it| !it.is_empty()).map(str::to_owned)
    };
    let hostname = text("Hostname");
    let qualified = hostname
        .clone()
        .zip(text("Domainname"))
        .map(|(host, domain)| format!("{host}.{domain}"));
    // In the machine's UTS namespace the host name is the machine's.
    let uses_host_name = container.host_config.get("UTSMode").and_then(Value::as_str)
        == Some("host")
        || container.network_mode() == "host";
    let hostnames = [hostname, qualified]
        .into_iter()
        .flatten()
        .filter(move |_| !uses_host_name);
    let ids = [
        container.id.short().to_owned(),
        container.id.as_str().to_owned(),
    ];
    aliases
        .chain(hostnames)
        .chain(ids)
        .chain([container.name.clone()])
}

/// Reports whether the path is below the folder.
fn contains_path(folder: &str, path: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Returns the containers of the process that listens at a socket, as far as the kernel shows it to this process.
async fn listener_containers(path: &str) -> BTreeSet<String> {
    let connection = tokio::net::UnixStream::connect(path);
    let Ok(Ok(stream)) = tokio::time::timeout(CONNECT_TIMEOUT, connection).await else {
        return BTreeSet::new();
    };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    // Zero: the listener is in a process namespace that this process does not see.
    let cgroup = pid
        .filter(|pid| *pid > 0)
        .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    cgroup
        .map(|cgroup| parse_cgroup_ids(&cgroup))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::tests::container;
    use refit_engine::address::{EngineEnvironment, choose};
    use serde_json::json;

    fn route(url: &str, resolved: &[&str]) -> EngineRoute {
        let address = choose(Some(url), &EngineEnvironment::default()).unwrap();
        let route = EngineRoute::new(&address);
        let addresses = resolved.iter().map(|it| it.parse().unwrap()).collect();
        *route.lock() = Some((Instant::now(), Resolved { addresses }));
        route
    }

    fn inside() -> ProcessFacts {
        ProcessFacts {
            in_container: true,
            ..ProcessFacts::default()
        }
    }

    fn proxy() -> Container {
        let mut proxy = container(json!({ "Hostname": "proxyhost" }), json!({}));
        proxy.name = "app-proxy-1".into();
        let endpoint = json!({
            "IPAddress": "172.20.0.5", "GlobalIPv6Address": "fd00::5", "Aliases": ["proxy"], "DNSNames": ["proxy.internal"],
        });
        let serde_json::Value::Object(endpoint) = endpoint else {
            unreachable!()
        };
        proxy.endpoints = [("app_default".to_owned(), endpoint)].into();
        proxy
    }

    fn published(host_address: &str, host_port: u16) -> Container {
        let mut proxy = proxy();
        proxy.published_ports = vec![PublishedPort {
            container_port: 2375,
            protocol: "tcp".into(),
            host_address: host_address.into(),
            host_port,
        }];
        proxy
    }

    async fn passes(route: &EngineRoute, container: &Container, process: &ProcessFacts) -> bool {
        route.passes_through(container, process).await.is_some()
    }

    #[tokio::test]
    async fn address_of_container_is_recognized() {
        for (url, resolved) in [
            ("tcp://172.20.0.5:2375", "172.20.0.5"),
            ("tcp://whatever:2375", "172.20.0.5"),
            ("http://whatever", "172.20.0.5"),
            ("tcp://[fd00::5]:2375", "fd00::5"),
            ("ssh://root@whatever", "172.20.0.5"),
        ] {
            let route = route(url, &[resolved]);
            assert!(
                passes(&route, &proxy(), &ProcessFacts::default()).await,
                "{url}"
            );
        }
        let elsewhere = route("tcp://172.20.0.6:2375", &["172.20.0.6"]);
        assert!(!passes(&elsewhere, &proxy(), &inside()).await);
    }

    #[tokio::test]
    async fn name_of_container_is_recognized() {
        for name in [
            "proxy",
            "PROXY",
            "proxy.app_default",
            "proxy.internal",
            "app-proxy-1",
            "app-proxy-1.app_default",
            "proxyhost",
            "proxy.",
        ] {
            let url = format!("tcp://{name}:2375");
            assert!(
                passes(&route(&url, &[]), &proxy(), &ProcessFacts::default()).await,
                "{url}"
            );
            // A virtual address, for example.
            assert!(
                passes(&route(&url, &["10.0.0.9"]), &proxy(), &inside()).await,
                "{url}"
            );
        }
        // Outside of containers, the name belongs to another machine.
        let far = route("tcp://proxy:2375", &["10.0.0.9"]);
        assert!(!passes(&far, &proxy(), &ProcessFacts::default()).await);
        assert!(!passes(&route("tcp://other:2375", &[]), &proxy(), &inside()).await);
    }

    #[tokio::test]
    async fn published_port_is_recognized() {
        for (bound, resolved) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("", "192.168.1.4"),
            ("::", "::1"),
            ("192.168.1.4", "192.168.1.4"),
        ] {
            let route = route("tcp://engine:2399", &[resolved]);
            let process = ProcessFacts::default();
            assert!(
                passes(&route, &published(bound, 2399), &process).await,
                "{bound}"
            );
            assert!(
                !passes(&route, &published(bound, 2398), &process).await,
                "{bound}"
            );
        }
        let loopback = route("tcp://engine:2399", &["127.0.0.1"]);
        let other = published("192.168.1.4", 2399);
        assert!(!passes(&loopback, &other, &ProcessFacts::default()).await);
    }

    #[tokio::test]
    async fn host_network_is_in_doubt_with_engine_socket_only() {
        let route = route("tcp://127.0.0.1:2375", &["127.0.0.1"]);
        let process = ProcessFacts::default();
        let host = json!({ "NetworkMode": "host", "UTSMode": "host" });
        let plain = container(json!({ "Hostname": "127.0.0.1" }), host.clone());
        assert!(!passes(&route, &plain, &process).await);
        let mut with_socket = plain.clone();
        with_socket.mounts = vec![Mount {
            kind: "bind".into(),
            name: None,
            source: Some("/var/run/docker.sock".into()),
            destination: "/docker.sock".into(),
            read_write: true,
        }];
        assert!(passes(&route, &with_socket, &process).await);
        let exposing = container(json!({ "ExposedPorts": { "2375/tcp": {} } }), host);
        assert!(passes(&route, &exposing, &process).await);
    }

    #[tokio::test]
    async fn socket_of_the_machine_passes_no_container() {
        let route = EngineRoute::new(&choose(None, &EngineEnvironment::default()).unwrap());
        assert!(!route.is_network());
        assert!(!passes(&route, &published("0.0.0.0", 2375), &inside()).await);
    }

    #[test]
    fn folder_of_the_socket_is_compared() {
        let address = choose(
            Some("unix:///proxy/docker.sock"),
            &EngineEnvironment::default(),
        );
        let route = EngineRoute::new(&address.unwrap());
        let mount = |name: Option<&str>, source: &str, destination: &str| Mount {
            kind: if name.is_some() { "volume" } else { "bind" }.into(),
            name: name.map(str::to_owned),
            source: Some(source.into()),
            destination: destination.into(),
            read_write: true,
        };
        let own = [
            mount(None, "/etc/refit", "/etc/refit"),
            mount(Some("socket"), "/v/socket/_data", "/proxy"),
        ];
        let mut other = proxy();
        other.mounts = vec![mount(Some("socket"), "/v/socket/_data", "/run/out")];
        assert!(route.shares_socket_folder(&other, &own).is_some());
        other.mounts[0].read_write = false;
        assert!(route.shares_socket_folder(&other, &own).is_none());
        other.mounts = vec![mount(None, "/etc/refit", "/etc/refit")];
        assert!(route.shares_socket_folder(&other, &own).is_none());
        // The engine's own folder does not belong to a proxy.
        let own = [mount(None, "/var/run", "/proxy")];
        other.mounts = vec![mount(None, "/var/run", "/x")];
        assert!(route.shares_socket_folder(&other, &own).is_none());
    }
}
