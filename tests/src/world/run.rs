//! Containers, networks and volumes of a world.

use std::time::Duration;

use anyhow::{Context, bail};
use bollard::models::{
    Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest, NetworkingConfig,
    VolumeCreateRequest,
};
use bollard::query_parameters::{CreateContainerOptionsBuilder, StopContainerOptions};

use super::World;
use crate::bounded::{CALL, within};
use crate::container::{ContainerSpec, Name};

/// Subnets are drawn at random, and other worlds draw too. 12,800 of them, so a few draws will do.
const SUBNETS_TO_TRY: usize = 10;
/// Without this an engine would wait for the container's own stop timeout, 10 s, and then for its loaded self.
const STOP: Duration = Duration::from_secs(40);

/// A container that was made just now.
#[derive(Debug, Clone)]
pub struct Running {
    pub id: String,
    pub name: String,
    /// The id (`sha256:…`) of its image.
    pub image_id: String,
}

/// A network with a subnet of its own, so that containers may ask for addresses.
#[derive(Debug, Clone)]
pub struct Subnet {
    pub network: String,
    /// The first three bytes: `10.213.7`.
    pub start: String,
}

impl World {
    /// Makes and starts a container, pulling its image if it is not there, and waits until its program listens.
    pub async fn run(&self, spec: ContainerSpec) -> anyhow::Result<Running> {
        let waits = spec.waits;
        let running = self.create(spec).await?;
        self.start(&running.name).await?;
        if waits {
            self.until_listening(&running.name).await?;
        }
        Ok(running)
    }

    /// Makes a container and leaves it at that.
    pub async fn create(&self, spec: ContainerSpec) -> anyhow::Result<Running> {
        let ContainerSpec {
            name,
            image,
            mut body,
            networks,
            ..
        } = spec;
        let name = match name {
            Name::Workspace(suffix) => self.name(&suffix),
            Name::Exact(name) => name,
        };
        if self.image_id(&image).await?.is_none() {
            self.pull(&image).await?;
        }
        body.image = Some(image);
        body.labels.get_or_insert_default().extend(self.labels());
        let mut networks = networks.into_iter();
        // API 1.41 takes one network at creation; the others are joined before the start.
        if let Some((network, settings)) = networks.next() {
            body.host_config.get_or_insert_default().network_mode = Some(network.clone());
            body.networking_config = Some(NetworkingConfig {
                endpoints_config: Some([(network, settings)].into()),
            });
        }
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let creation = self.docker().create_container(Some(options), body);
        let id = within(CALL, &format!("create container {name}"), creation)
            .await?
            .id;
        for (network, settings) in networks {
            let request = NetworkConnectRequest {
                container: id.clone(),
                endpoint_config: Some(settings),
            };
            let joining = self.docker().connect_network(&network, request);
            within(
                CALL,
                &format!("connect {name} to network {network}"),
                joining,
            )
            .await?;
        }
        let inspected = self.inspect(&id).await?;
        self.record_anonymous_volumes(
            inspected
                .mounts
                .into_iter()
                .flatten()
                .filter_map(|mount| mount.name),
        );
        let image_id = inspected
            .image
            .with_context(|| format!("cannot read the image id of container {name}"))?;
        Ok(Running { id, name, image_id })
    }

    pub async fn start(&self, container: &str) -> anyhow::Result<()> {
        within(
            CALL,
            &format!("start container {container}"),
            self.docker().start_container(container, None),
        )
        .await
    }

    /// Stops it as `docker stop` does: its own signal, its own timeout.
    pub async fn stop(&self, container: &str) -> anyhow::Result<()> {
        let stopping = self
            .docker()
            .stop_container(container, None::<StopContainerOptions>);
        within(STOP, &format!("stop container {container}"), stopping).await
    }

    /// Makes the network `<prefix>-<suffix>` and returns its name.
    pub async fn network(&self, suffix: &str) -> anyhow::Result<String> {
        let name = format!("{}-{suffix}", self.prefix());
        self.create_network(&name, None).await?;
        Ok(name)
    }

    /// Makes the network `<prefix>-<suffix>` with a subnet that nobody else has.
    pub async fn network_with_subnet(&self, suffix: &str) -> anyhow::Result<Subnet> {
        let name = format!("{}-{suffix}", self.prefix());
        let mut refusals = Vec::new();
        for _ in 0..SUBNETS_TO_TRY {
            // Above the ranges that clouds and VPNs like, and outside those Docker draws from.
            let start = format!("10.{}.{}", fastrand::u8(200..250), fastrand::u8(..));
            match self
                .create_network(&name, Some(format!("{start}.0/24")))
                .await
            {
                Ok(()) => {
                    return Ok(Subnet {
                        network: name,
                        start,
                    });
                }
                Err(error) => refusals.push(format!("{start}.0/24: {error:#}")),
            }
        }
        bail!(
            "cannot find a free subnet for network {name}:\n{}",
            refusals.join("\n")
        )
    }

    async fn create_network(&self, name: &str, subnet: Option<String>) -> anyhow::Result<()> {
        let ipam = subnet.map(|subnet| Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(subnet),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        });
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            labels: Some(self.labels()),
            ipam,
            ..NetworkCreateRequest::default()
        };
        within(
            CALL,
            &format!("create network {name}"),
            self.docker().create_network(request),
        )
        .await
        .map(|_| ())
    }

    /// Makes the volume `<prefix>-<suffix>` and returns its name.
    pub async fn volume(&self, suffix: &str) -> anyhow::Result<String> {
        let name = format!("{}-{suffix}", self.prefix());
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(self.labels()),
            ..VolumeCreateRequest::default()
        };
        within(
            CALL,
            &format!("create volume {name}"),
            self.docker().create_volume(request),
        )
        .await?;
        Ok(name)
    }

    pub(super) fn record_anonymous_volumes(&self, names: impl IntoIterator<Item = String>) {
        // The engine's own names: 64 hexadecimal digits. Named volumes are found by name or label.
        let anonymous =
            |name: &String| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.records()
            .anonymous_volumes
            .extend(names.into_iter().filter(anonymous));
    }
}
