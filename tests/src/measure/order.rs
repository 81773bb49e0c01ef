//! Ways of bringing a fleet up to date, each as the order of the calls that it makes of an engine.
//!
//! The originals are not run: what is compared is the order, over the same client and the same proxy. Watchtower's is that of
//! containrrr/watchtower 1.7 (`internal/actions/update.go`, `pkg/container/client.go`), but for its own questions to the registry,
//! which are left out in its favour.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, NetworkConnectRequest, NetworkDisconnectRequest,
    NetworkingConfig,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptions, RemoveContainerOptionsBuilder,
    StopContainerOptions,
};
use futures_util::TryStreamExt as _;

use super::fleet::{Fleet, Images, Shape};
use crate::Proxy;
use crate::world::World;

/// A hundred containers took a minute and a half in the slowest order.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Between two looks of Watchtower at a container that it stops.
const WATCHTOWER_POLL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Stop and start of the same containers, one at a time: nobody can be down for less.
    Floor,
    /// The platform's original endpoint: pulls one after the other, a look at each container, removal by force. Nothing takes a
    /// container's place.
    Original,
    /// Watchtower as it comes: all are stopped and removed, then all are made and started.
    Watchtower,
    /// Watchtower with `--rolling-restart`: one container after the other.
    WatchtowerRolling,
    /// `refit refresh`, with `--concurrency` where a number is given.
    Replace(Option<u8>),
    /// `refit refresh` with the strategy `overlap`, and without published ports.
    Overlap,
}

impl Order {
    pub const ALL: [Self; 7] = [
        Self::Floor,
        Self::Original,
        Self::Watchtower,
        Self::WatchtowerRolling,
        Self::Replace(Some(1)),
        Self::Replace(None),
        Self::Overlap,
    ];

    pub fn name(self) -> String {
        let name = match self {
            Self::Floor => "floor",
            Self::Original => "original",
            Self::Watchtower => "watchtower",
            Self::WatchtowerRolling => "watchtower-rolling",
            Self::Replace(None) => "replace",
            Self::Replace(Some(at_once)) => return format!("replace-{at_once}"),
            Self::Overlap => "overlap",
        };
        name.to_owned()
    }

    /// The order of that name.
    pub fn named(name: &str) -> Option<Self> {
        if let Some(at_once) = name.strip_prefix("replace-") {
            return Some(Self::Replace(Some(at_once.parse().ok()?)));
        }
        Self::ALL.into_iter().find(|order| order.name() == name)
    }

    pub fn shape(self, containers: usize) -> Shape {
        Shape {
            containers,
            ports: self != Self::Overlap,
        }
    }

    /// Whether the containers run the new version afterwards.
    pub fn renews(self) -> bool {
        !matches!(self, Self::Floor | Self::Original)
    }

    pub async fn run(self, given: &Given<'_>, fleet: &Fleet) -> anyhow::Result<()> {
        let run = async {
            match self {
                Self::Floor => floor(given, fleet).await,
                Self::Original => original(given).await,
                Self::Watchtower => watchtower(given).await,
                Self::WatchtowerRolling => watchtower_rolling(given).await,
                Self::Replace(at_once) => refit(given, "replace", at_once).await,
                Self::Overlap => refit(given, "overlap", None).await,
            }
        };
        match tokio::time::timeout(LONGEST, run).await {
            Ok(done) => done,
            Err(_) => anyhow::bail!("`{}` did not end within {LONGEST:?}", self.name()),
        }
    }
}

/// What an order works with.
pub struct Given<'a> {
    pub world: &'a World,
    pub images: &'a Images<'a>,
    pub proxy: &'a Proxy,
    /// Through the proxy.
    pub docker: &'a Docker,
    /// The program to measure.
    pub refit: &'a Path,
}

async fn floor(given: &Given<'_>, fleet: &Fleet) -> anyhow::Result<()> {
    for container in &fleet.containers {
        given
            .docker
            .stop_container(&container.id, None::<StopContainerOptions>)
            .await?;
        given.docker.start_container(&container.id, None).await?;
    }
    Ok(())
}

async fn original(given: &Given<'_>) -> anyhow::Result<()> {
    for reference in given.images.references() {
        pull(given, reference).await?;
    }
    for container in running(given).await? {
        if is_behind(given, &container).await? {
            remove(given, &id(&container)?).await?;
        }
    }
    Ok(())
}

async fn watchtower(given: &Given<'_>) -> anyhow::Result<()> {
    let stale = watchtower_looks(given).await?;
    for container in stale.iter().rev() {
        watchtower_stops(given, container).await?;
    }
    for container in stale {
        watchtower_starts(given, container).await?;
    }
    Ok(())
}

async fn watchtower_rolling(given: &Given<'_>) -> anyhow::Result<()> {
    for container in watchtower_looks(given).await?.into_iter().rev() {
        watchtower_stops(given, &container).await?;
        watchtower_starts(given, container).await?;
    }
    Ok(())
}

/// It pulls for each container, since what it compares with the registry is the image that the container has.
async fn watchtower_looks(given: &Given<'_>) -> anyhow::Result<Vec<ContainerInspectResponse>> {
    let mut stale = Vec::new();
    let containers = running(given).await?;
    for container in &containers {
        let image = container.image.as_deref().context("no image")?;
        given.docker.inspect_image(image).await?;
    }
    for container in containers {
        pull(given, &reference(&container)?).await?;
        if is_behind(given, &container).await? {
            stale.push(container);
        }
    }
    Ok(stale)
}

async fn watchtower_stops(
    given: &Given<'_>,
    container: &ContainerInspectResponse,
) -> anyhow::Result<()> {
    let id = id(container)?;
    let options = KillContainerOptionsBuilder::new().signal("SIGTERM").build();
    given.docker.kill_container(&id, Some(options)).await?;
    while watchtower_sees_running(given, &id).await {
        tokio::time::sleep(WATCHTOWER_POLL).await;
    }
    remove(given, &id).await?;
    while watchtower_sees_running(given, &id).await {
        tokio::time::sleep(WATCHTOWER_POLL).await;
    }
    Ok(())
}

async fn watchtower_sees_running(given: &Given<'_>, id: &str) -> bool {
    let now = given
        .docker
        .inspect_container(id, None::<InspectContainerOptions>)
        .await;
    let state = now.ok().and_then(|now| now.state);
    state.and_then(|state| state.running).unwrap_or(false)
}

async fn watchtower_starts(
    given: &Given<'_>,
    container: ContainerInspectResponse,
) -> anyhow::Result<()> {
    let name = container.name.context("the engine gave no name")?;
    let networks = container
        .network_settings
        .and_then(|settings| settings.networks)
        .unwrap_or_default();
    let config = serde_json::to_value(container.config.context("the engine gave no config")?)?;
    let mut body: ContainerCreateBody = serde_json::from_value(config)?;
    body.host_config = container.host_config;
    body.networking_config = Some(NetworkingConfig {
        endpoints_config: Some(networks.clone().into_iter().take(1).collect()),
    });
    let options = CreateContainerOptionsBuilder::new()
        .name(name.trim_start_matches('/'))
        .build();
    let docker = given.docker;
    let id = docker.create_container(Some(options), body).await?.id;
    for network in networks.keys().take(1) {
        let request = NetworkDisconnectRequest {
            container: id.clone(),
            force: Some(true),
        };
        docker.disconnect_network(network, request).await?;
    }
    for (network, endpoint) in networks {
        let request = NetworkConnectRequest {
            container: id.clone(),
            endpoint_config: Some(endpoint),
        };
        docker.connect_network(&network, request).await?;
    }
    docker.start_container(&id, None).await?;
    Ok(())
}

async fn remove(given: &Given<'_>, id: &str) -> anyhow::Result<()> {
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    given.docker.remove_container(id, Some(options)).await?;
    Ok(())
}

async fn pull(given: &Given<'_>, reference: &str) -> anyhow::Result<()> {
    let options = CreateImageOptionsBuilder::new()
        .from_image(reference)
        .build();
    given
        .docker
        .create_image(Some(options), None, None)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(())
}

/// The world's containers.
async fn running(given: &Given<'_>) -> anyhow::Result<Vec<ContainerInspectResponse>> {
    let listed = given
        .docker
        .list_containers(None::<ListContainersOptions>)
        .await?;
    let start = format!("/ws-{}-", given.world.prefix());
    let mut running = Vec::new();
    for listed in listed {
        let names = listed.names.unwrap_or_default();
        if !names.iter().any(|name| name.starts_with(&start)) {
            continue;
        }
        let id = listed.id.context("the engine gave no id")?;
        let container = given
            .docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await?;
        running.push(container);
    }
    Ok(running)
}

/// Whether its image is not what its reference means now.
async fn is_behind(
    given: &Given<'_>,
    container: &ContainerInspectResponse,
) -> anyhow::Result<bool> {
    let image = given.docker.inspect_image(&reference(container)?).await?;
    Ok(image.id != container.image)
}

fn reference(container: &ContainerInspectResponse) -> anyhow::Result<String> {
    let config = container.config.as_ref();
    config
        .and_then(|config| config.image.clone())
        .context("the engine gave no reference")
}

fn id(container: &ContainerInspectResponse) -> anyhow::Result<String> {
    container.id.clone().context("the engine gave no id")
}

/// The program, as a person would run it.
async fn refit(given: &Given<'_>, strategy: &str, at_once: Option<u8>) -> anyhow::Result<()> {
    let at_once = at_once.map(|at_once| at_once.to_string());
    let mut arguments = vec!["refresh", "--json"];
    arguments.extend(at_once.iter().flat_map(|it| ["--concurrency", it.as_str()]));
    let containers = format!("ws-{}-*", given.world.prefix());
    let program = given
        .refit
        .to_str()
        .context("the program's path is not UTF-8")?;
    let output = crate::Refit::new(program, &given.proxy.docker_host())?
        .set(
            "policy.config.images",
            given.world.template(given.images.registry),
        )
        .set("policy.config.runtimes", given.images.runtimes())
        .set("policy.config.containers", containers.as_str())
        .set("policy.config.strategy", strategy)
        .set(
            "grants.images",
            vec![format!(
                "{}/{}/*",
                given.images.registry.host(),
                given.world.prefix()
            )],
        )
        .set("grants.containers", vec![containers.clone()])
        .run_within(LONGEST, &arguments)
        .await?;
    ensure!(output.status == 0, "`refit refresh` failed:\n{output}");
    Ok(())
}
