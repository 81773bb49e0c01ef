//! Ways of bringing a fleet up to date, each as the order of the calls that it makes of an engine.
//!
//! The originals are not run: what is compared is the order, over the same client and the same proxy. They carry a container's
//! configuration over as it is, without asking what came from its image, which makes them faster than they should be.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, NetworkingConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    ListContainersOptions, RemoveContainerOptionsBuilder, StopContainerOptions,
};
use futures_util::TryStreamExt as _;

use super::fleet::{Fleet, Images, Shape};
use crate::Proxy;
use crate::world::World;

/// A hundred containers took a minute and a half in the slowest order.
const LONGEST: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Stop and start of the same containers, one at a time: nobody can be down for less.
    Floor,
    /// The platform's original endpoint: pulls one after the other, a look at each container, removal by force. Nothing takes a
    /// container's place.
    Original,
    /// Watchtower, one container at a time: pull, stop, remove, create, connect, start.
    Watchtower,
    /// `refit refresh --concurrency 1`.
    ReplaceOne,
    /// `refit refresh`.
    Replace,
    /// `refit refresh` with the strategy `overlap`, and without published ports.
    Overlap,
}

impl Order {
    pub const ALL: [Self; 6] = [
        Self::Floor,
        Self::Original,
        Self::Watchtower,
        Self::ReplaceOne,
        Self::Replace,
        Self::Overlap,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Original => "original",
            Self::Watchtower => "watchtower",
            Self::ReplaceOne => "replace-1",
            Self::Replace => "replace",
            Self::Overlap => "overlap",
        }
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
                Self::ReplaceOne => refit(given, "replace", &["--concurrency", "1"]).await,
                Self::Replace => refit(given, "replace", &[]).await,
                Self::Overlap => refit(given, "overlap", &[]).await,
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
    for container in behind(given).await? {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        let id = container.id.context("the engine gave no id")?;
        given.docker.remove_container(&id, Some(options)).await?;
    }
    Ok(())
}

async fn watchtower(given: &Given<'_>) -> anyhow::Result<()> {
    for reference in given.images.references() {
        pull(given, reference).await?;
    }
    for container in behind(given).await? {
        let id = container.id.context("the engine gave no id")?;
        let name = container.name.context("the engine gave no name")?;
        given
            .docker
            .stop_container(&id, None::<StopContainerOptions>)
            .await?;
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        given.docker.remove_container(&id, Some(options)).await?;
        let config = container
            .config
            .context("the engine gave no configuration")?;
        let networks = container
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        let mut body: ContainerCreateBody = serde_json::from_value(serde_json::to_value(config)?)?;
        body.host_config = container.host_config;
        body.networking_config = Some(NetworkingConfig {
            endpoints_config: Some(networks.into_iter().collect()),
        });
        let options = CreateContainerOptionsBuilder::new()
            .name(name.trim_start_matches('/'))
            .build();
        let made = given.docker.create_container(Some(options), body).await?;
        given.docker.start_container(&made.id, None).await?;
    }
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

/// The world's containers whose image is not what its reference means now.
async fn behind(given: &Given<'_>) -> anyhow::Result<Vec<ContainerInspectResponse>> {
    let listed = given
        .docker
        .list_containers(None::<ListContainersOptions>)
        .await?;
    let start = format!("/ws-{}-", given.world.prefix());
    let mut behind = Vec::new();
    for listed in listed {
        let named = listed
            .names
            .into_iter()
            .flatten()
            .next()
            .unwrap_or_default();
        if !named.starts_with(&start) {
            continue;
        }
        let id = listed.id.context("the engine gave no id")?;
        let container = given
            .docker
            .inspect_container(&id, None::<InspectContainerOptions>)
            .await?;
        let reference = container
            .config
            .as_ref()
            .and_then(|config| config.image.clone())
            .context("the engine gave no image")?;
        let image = given.docker.inspect_image(&reference).await?;
        if image.id != container.image {
            behind.push(container);
        }
    }
    Ok(behind)
}

/// The program, as a person would run it.
async fn refit(given: &Given<'_>, strategy: &str, arguments: &[&str]) -> anyhow::Result<()> {
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
        .run_within(LONGEST, &[&["refresh", "--json"], arguments].concat())
        .await?;
    ensure!(output.status == 0, "`refit refresh` failed:\n{output}");
    Ok(())
}
