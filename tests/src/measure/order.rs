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
    KillContainerOptionsBuilder, ListContainersOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptions,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::fleet::{Fleet, Images, Shape};
use crate::world::World;
use crate::{Proxy, Refit};

/// A hundred containers took a minute and a half in the slowest order.
pub(super) const LONGEST: Duration = Duration::from_secs(15 * 60);
/// Between two looks of Watchtower at a container that it stops.
const WATCHTOWER_POLL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Stop and start of the same containers, one at a time: nobody can be down for less.
    Floor,
    /// What has to be asked of the engine to know that there is nothing to do, asked at once: a list, each container, each image.
    Ask,
    /// `refit refresh`, where there is nothing to do.
    Nothing,
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
    pub const ALL: [Self; 9] = [
        Self::Floor,
        Self::Ask,
        Self::Nothing,
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
            Self::Ask => "ask",
            Self::Nothing => "nothing",
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
            current: matches!(self, Self::Ask | Self::Nothing),
        }
    }

    /// What the containers were doing meanwhile.
    pub fn leaves(self) -> Left {
        match self {
            Self::Floor => Left::Restarted,
            Self::Ask | Self::Nothing => Left::Running,
            Self::Original => Left::Gone,
            Self::Watchtower | Self::WatchtowerRolling | Self::Replace(_) | Self::Overlap => {
                Left::Renewed
            }
        }
    }

    pub async fn run(self, given: &Given<'_>, fleet: &Fleet) -> anyhow::Result<()> {
        let run = async {
            match self {
                Self::Floor => floor(given, fleet).await,
                Self::Ask => ask(given).await,
                Self::Nothing => refresh(given, "replace", None).await,
                Self::Original => original(given).await,
                Self::Watchtower => watchtower(given).await,
                Self::WatchtowerRolling => watchtower_rolling(given).await,
                Self::Replace(at_once) => refresh(given, "replace", at_once).await,
                Self::Overlap => refresh(given, "overlap", None).await,
            }
        };
        match tokio::time::timeout(LONGEST, run).await {
            Ok(done) => done,
            Err(_) => anyhow::bail!("`{}` did not end within {LONGEST:?}", self.name()),
        }
    }
}

/// How an order leaves the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// With the old version.
    Restarted,
    /// With the new version.
    Renewed,
    /// As they were.
    Running,
    Gone,
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
    /// Where it keeps its state, so that it compiles its policy once for all orders.
    pub state: &'a Path,
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

pub(super) async fn ask(given: &Given<'_>) -> anyhow::Result<()> {
    /// As many as Refit asks at once.
    const AT_ONCE: usize = 32;
    let options = ListContainersOptionsBuilder::new().all(true).build();
    let listed = given.docker.list_containers(Some(options)).await?;
    let inspecting = listed.iter().map(|listed| async {
        let id = listed.id.as_deref().context("the engine gave no id")?;
        let options = None::<InspectContainerOptions>;
        given.docker.inspect_container(id, options).await?;
        anyhow::Ok(())
    });
    let looking = given.images.references().map(|image| async {
        given.docker.inspect_image(image).await?;
        anyhow::Ok(())
    });
    let (containers, images) = (
        futures_util::stream::iter(inspecting).buffer_unordered(AT_ONCE),
        futures_util::stream::iter(looking).buffer_unordered(AT_ONCE),
    );
    tokio::try_join!(containers.try_collect::<()>(), images.try_collect::<()>())?;
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

async fn refresh(given: &Given<'_>, strategy: &str, at_once: Option<u8>) -> anyhow::Result<()> {
    let at_once = at_once.map(|at_once| at_once.to_string());
    let mut arguments = vec!["refresh", "--json"];
    arguments.extend(at_once.iter().flat_map(|it| ["--concurrency", it.as_str()]));
    let program = refit(given, given.refit, strategy)?;
    let output = program.run_within(LONGEST, &arguments).await?;
    ensure!(output.status == 0, "`refit refresh` failed:\n{output}");
    Ok(())
}

/// As a person would run it. `program` is Refit, or what runs it.
pub(super) fn refit(given: &Given<'_>, program: &Path, strategy: &str) -> anyhow::Result<Refit> {
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let program = text(program).context("the program's path is not UTF-8")?;
    let state = text(given.state).context("the folder's path is not UTF-8")?;
    let world = given.world;
    let containers = format!("ws-{}-*", world.prefix());
    let registry = given.images.registry;
    let images = format!("{}/{}/*", registry.host(), world.prefix());
    Ok(Refit::new(&program, &given.proxy.docker_host())?
        .env("XDG_STATE_HOME", &state)
        .set("policy.config.images", world.template(registry))
        .set("policy.config.runtimes", given.images.runtimes())
        .set("policy.config.containers", containers.as_str())
        .set("policy.config.strategy", strategy)
        .set("grants.images", vec![images])
        .set("grants.containers", vec![containers]))
}

/// Has it compile its policy, which it does once on a machine.
pub async fn warm_up(given: &Given<'_>) -> anyhow::Result<()> {
    let program = refit(given, given.refit, "replace")?;
    let output = program.run_within(LONGEST, &["plan"]).await?;
    ensure!(output.status == 0, "`refit plan` failed:\n{output}");
    Ok(())
}
