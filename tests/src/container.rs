//! Containers to be made: what a user could have asked an engine for.
//!
//! Only describes; `world::run` makes them, under the world's names and labels.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig,
    PortBinding, RestartPolicy, RestartPolicyNameEnum,
};

/// A container to be made. Whatever has no method here can be set with [`ContainerSpec::body`].
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    pub(crate) name: Name,
    pub(crate) image: String,
    pub(crate) body: ContainerCreateBody,
    /// In the order they are joined; the first is the one it is created in.
    pub(crate) networks: Vec<(String, EndpointSettings)>,
    pub(crate) waits: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Name {
    /// `a` becomes `ws-<prefix>-a`.
    Workspace(String),
    Exact(String),
}

impl ContainerSpec {
    /// The workspace `ws-<prefix>-<suffix>`, made from `image`.
    pub fn new(suffix: &str, image: &str) -> Self {
        Self::with_name(Name::Workspace(suffix.to_owned()), image)
    }

    /// A container with exactly this name. It should contain the world's prefix, as tests run in parallel.
    pub fn named(name: &str, image: &str) -> Self {
        Self::with_name(Name::Exact(name.to_owned()), image)
    }

    fn with_name(name: Name, image: &str) -> Self {
        let body = ContainerCreateBody {
            host_config: Some(HostConfig::default()),
            ..ContainerCreateBody::default()
        };
        Self {
            name,
            image: image.to_owned(),
            body,
            networks: Vec::new(),
            waits: true,
        }
    }

    pub fn env(self, name: &str, value: &str) -> Self {
        self.body(|body| {
            body.env
                .get_or_insert_default()
                .push(format!("{name}={value}"))
        })
    }

    pub fn label(self, name: &str, value: &str) -> Self {
        self.body(|body| {
            _ = body
                .labels
                .get_or_insert_default()
                .insert(name.to_owned(), value.to_owned())
        })
    }

    pub fn cmd(self, arguments: &[&str]) -> Self {
        self.body(|body| {
            body.cmd = Some(
                arguments
                    .iter()
                    .map(|argument| (*argument).to_owned())
                    .collect(),
            )
        })
    }

    /// Joins a network, where others may reach it by `aliases` too.
    pub fn network(self, network: &str, aliases: &[&str]) -> Self {
        self.endpoint(network, aliases, None)
    }

    /// Joins a network at a fixed address. The network must have been made with a subnet of its own.
    pub fn network_at(self, network: &str, aliases: &[&str], address: &str) -> Self {
        self.endpoint(network, aliases, Some(address))
    }

    fn endpoint(mut self, network: &str, aliases: &[&str], address: Option<&str>) -> Self {
        let settings = EndpointSettings {
            aliases: Some(aliases.iter().map(|alias| (*alias).to_owned()).collect()),
            ipam_config: address.map(|address| EndpointIpamConfig {
                ipv4_address: Some(address.to_owned()),
                ..EndpointIpamConfig::default()
            }),
            ..EndpointSettings::default()
        };
        self.networks.push((network.to_owned(), settings));
        self
    }

    /// Mounts a named volume, or a directory of the host if `source` is an absolute path.
    pub fn volume(self, source: &str, path: &str) -> Self {
        self.host(|host| {
            host.binds
                .get_or_insert_default()
                .push(format!("{source}:{path}"))
        })
    }

    pub fn anonymous_volume(self, path: &str) -> Self {
        self.body(|body| body.volumes.get_or_insert_default().push(path.to_owned()))
    }

    /// Publishes a port on loopback, where the engine finds a free one.
    pub fn publish(self, port: u16) -> Self {
        self.publish_binding(port, String::new())
    }

    /// Publishes a port on a given port of loopback.
    pub fn publish_at(self, port: u16, host_port: u16) -> Self {
        self.publish_binding(port, host_port.to_string())
    }

    fn publish_binding(self, port: u16, host_port: String) -> Self {
        let binding = PortBinding {
            host_ip: Some("127.0.0.1".to_owned()),
            host_port: Some(host_port),
        };
        let port = format!("{port}/tcp");
        let spec = self.body(|body| {
            body.exposed_ports
                .get_or_insert_default()
                .push(port.clone())
        });
        spec.host(|host| {
            _ = host
                .port_bindings
                .get_or_insert_with(HashMap::new)
                .insert(port, Some(vec![binding]))
        })
    }

    pub fn restart(self, policy: RestartPolicyNameEnum) -> Self {
        self.host(|host| {
            host.restart_policy = Some(RestartPolicy {
                name: Some(policy),
                maximum_retry_count: None,
            })
        })
    }

    pub fn healthcheck(self, check: HealthConfig) -> Self {
        self.body(|body| body.healthcheck = Some(check))
    }

    /// Changes anything about how the container is isolated and attached to its host.
    pub fn host(self, change: impl FnOnce(&mut HostConfig)) -> Self {
        self.body(|body| change(body.host_config.get_or_insert_default()))
    }

    /// Changes anything else.
    pub fn body(mut self, change: impl FnOnce(&mut ContainerCreateBody)) -> Self {
        change(&mut self.body);
        self
    }

    /// `run` returns once it is started, without waiting until it listens: for programs that are not meant to.
    pub fn without_waiting(mut self) -> Self {
        self.waits = false;
        self
    }
}
