//! Containers as a platform has them, all behind: eight images, a network with an alias for each, volumes, a published port, a
//! health check. Made anew for each measurement, and read when it is over.

use std::time::Duration;

use anyhow::{Context, ensure};
use bollard::models::RestartPolicyNameEnum;
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::registry::Registry;
use crate::world::{Published, Running, Stamp, World, stamps};
use crate::{ContainerSpec, ImageSpec};

pub const IMAGES: usize = 8;
/// Where each program writes down when it listened and stopped, in its named volume.
const STAMPS: &str = "/data/stamps";
/// Containers that are made at once before a measurement, and read after it.
const AT_ONCE: usize = 4;
/// Bytes of each image that do not compress, so that a pull transfers something.
const FILLING: usize = 900_000;
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// The images of a world: the registry has the new version of each, the engine the old one.
pub struct Images<'a> {
    world: &'a World,
    pub registry: &'a Registry,
    images: Vec<Image>,
}

struct Image {
    runtime: String,
    reference: String,
    old: String,
    new: Published,
}

/// Containers from the old versions, running.
pub struct Fleet {
    pub containers: Vec<Running>,
}

/// What one measurement does to the fleet's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub containers: usize,
    /// Two containers cannot publish one port, so `overlap` is measured without.
    pub ports: bool,
}

impl<'a> Images<'a> {
    pub async fn publish(world: &'a World, registry: &'a Registry) -> anyhow::Result<Self> {
        let mut images = Vec::new();
        for number in 0..IMAGES {
            let runtime = format!("runtime-{number}");
            let spec = |version| {
                ImageSpec::new(version)
                    .filling(FILLING)
                    .volume("/cache")
                    .healthcheck(HEALTH_INTERVAL, 3)
            };
            let old = world.publish(registry, &runtime, spec("v1")).await?;
            world.pull(&old.reference).await?;
            let new = world.publish(registry, &runtime, spec("v2")).await?;
            images.push(Image {
                runtime,
                reference: old.reference,
                old: old.id,
                new,
            });
        }
        Ok(Self {
            world,
            registry,
            images,
        })
    }

    pub fn references(&self) -> impl Iterator<Item = &str> {
        self.images.iter().map(|image| image.reference.as_str())
    }

    pub fn runtimes(&self) -> Vec<&str> {
        self.images
            .iter()
            .map(|image| image.runtime.as_str())
            .collect()
    }

    /// The engine has forgotten the new versions: the next pull transfers them.
    async fn forget(&self) -> anyhow::Result<()> {
        for image in &self.images {
            self.world.tag(&image.old, &image.reference).await?;
            self.world.forget_image(&image.new.id).await?;
        }
        Ok(())
    }

    pub async fn start(&self, shape: Shape) -> anyhow::Result<Fleet> {
        self.forget().await?;
        let world = self.world;
        let network = world.network("fleet").await?;
        let making = (0..shape.containers).map(|number| {
            let image = &self.images[number % IMAGES];
            let network = network.clone();
            async move {
                let suffix = format!("{number:04}");
                let volume = world.volume(&format!("data-{suffix}")).await?;
                let mut spec = ContainerSpec::new(&suffix, &image.reference)
                    .network(&network, &[&format!("alias-{suffix}")])
                    .volume(&volume, "/data")
                    .env("STAMP_FILE", STAMPS)
                    .env("OPERATOR", "ana")
                    .restart(RestartPolicyNameEnum::UNLESS_STOPPED);
                if shape.ports {
                    spec = spec.publish(crate::image::PORT);
                }
                world.run(spec).await
            }
        });
        let containers: Vec<Running> = futures_util::stream::iter(making)
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        // Health checks that begin later would run beside the measurement of some, and not of others.
        for container in &containers {
            world.until_healthy(&container.name).await?;
        }
        Ok(Fleet { containers })
    }

    /// Milliseconds for which each container was down, as its own program saw it. `None` where nothing took its place.
    pub async fn gaps(&self, fleet: &Fleet, renewed: bool) -> anyhow::Result<Vec<Option<u64>>> {
        let reading = fleet.containers.iter().map(|container| async move {
            if !self.world.container_exists(&container.name).await? {
                return Ok(None);
            }
            let text = self
                .world
                .read_container_file(&container.name, STAMPS)
                .await?;
            gap(&stamps(&text), renewed)
                .with_context(|| format!("container {} stamped\n{text}", container.name))
                .map(Some)
        });
        futures_util::stream::iter(reading)
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    pub async fn clear(&self, fleet: Fleet) -> anyhow::Result<()> {
        let world = self.world;
        let removing = fleet.containers.iter().map(|container| async move {
            if world.container_exists(&container.name).await? {
                world.remove_container(&container.name).await?;
            }
            anyhow::Ok(())
        });
        futures_util::stream::iter(removing)
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        world.remove_networks_and_volumes().await
    }
}

/// From the last `stop` to the `listen` behind it; where the two overlapped, none.
fn gap(stamps: &[Stamp], renewed: bool) -> anyhow::Result<u64> {
    let last = |event: &str| stamps.iter().rev().find(|stamp| stamp.event == event);
    let stop = last("stop").context("it was never stopped")?;
    let listen = last("listen").context("it never listened")?;
    let version = if renewed { "v2" } else { "v1" };
    ensure!(
        listen.version == version,
        "it runs {}, not {version}",
        listen.version
    );
    Ok(listen.at_ms.saturating_sub(stop.at_ms))
}
