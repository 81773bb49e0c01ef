//! Containers as a platform has them, all behind: eight images, a network with an alias for each, volumes, a published port, a
//! health check. Made anew for each measurement, and read when it is over.

use std::time::Duration;

use anyhow::ensure;
use bollard::models::RestartPolicyNameEnum;
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::bounded::{CALL, within};
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
/// How often the stamps of a program that has just been started are looked at.
const LISTENS_SOON: Duration = Duration::from_millis(50);
/// Each look is an `exec`, a tenth of what a start costs the engine: at one a second forty containers left it time for little else.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);

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

/// For how long a container was down.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// Milliseconds from the `stop` of the last program but one to the `listen` of the last; none where the two overlapped.
    pub ms: u64,
    /// When that listened, in milliseconds of Unix time.
    pub ended_ms: u64,
}

/// What one measurement does to the fleet's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub containers: usize,
    /// Two containers cannot publish one port, so `overlap` is measured without.
    pub ports: bool,
    /// They run the new versions, and there is nothing to do.
    pub current: bool,
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

    /// The engine has the new versions.
    pub async fn learn(&self) -> anyhow::Result<()> {
        for reference in self.references() {
            self.world.pull(reference).await?;
        }
        Ok(())
    }

    pub async fn start(&self, shape: Shape) -> anyhow::Result<Fleet> {
        if shape.current {
            self.learn().await?;
        } else {
            self.forget().await?;
        }
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

    /// Containers that were made and never started, from any version.
    pub async fn create(&self, containers: std::ops::Range<usize>) -> anyhow::Result<()> {
        let creating = containers.map(|number| {
            let image = &self.images[number % IMAGES];
            let spec = ContainerSpec::new(&format!("{number:04}"), &image.reference);
            async move { self.world.create(spec).await.map(|_| ()) }
        });
        futures_util::stream::iter(creating)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// What each container's own program saw. Fails where one does not run the version that it should.
    pub async fn gaps(&self, fleet: &Fleet, renewed: bool) -> anyhow::Result<Vec<Gap>> {
        let reading = fleet
            .containers
            .iter()
            .enumerate()
            .map(|(number, container)| {
                let image = &self.images[number % IMAGES];
                let image = if renewed { &image.new.id } else { &image.old };
                self.gap(&container.name, image)
            });
        futures_util::stream::iter(reading)
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn gap(&self, container: &str, image: &str) -> anyhow::Result<Gap> {
        // By its image: an order that carries over what came from the old one has the new program say that it is the old.
        let runs = self.world.inspect(container).await?.image;
        ensure!(
            runs.as_deref() == Some(image),
            "container {container} runs {runs:?}, not {image}"
        );
        // Whoever started it did not wait until it listened.
        let listening = async {
            loop {
                let text = self.world.read_container_file(container, STAMPS).await?;
                match Gap::in_stamps(&stamps(&text)) {
                    Some(gap) => return anyhow::Ok(gap),
                    None => tokio::time::sleep(LISTENS_SOON).await,
                }
            }
        };
        within(
            CALL,
            &format!("see container {container} listen"),
            listening,
        )
        .await
    }

    /// All containers of the world.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let containers = self.world.containers().await?;
        let removing = containers.iter().map(|it| self.world.remove_container(it));
        futures_util::stream::iter(removing)
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        self.world.remove_networks_and_volumes().await
    }
}

impl Gap {
    /// `None` as long as the program that was started last does not listen.
    fn in_stamps(stamps: &[Stamp]) -> Option<Self> {
        let last = |event: &str| stamps.iter().rposition(|stamp| stamp.event == event);
        let listen = stamps[last("start")?..]
            .iter()
            .find(|stamp| stamp.event == "listen")?;
        let stop = &stamps[last("stop")?];
        Some(Self {
            ms: listen.at_ms.saturating_sub(stop.at_ms),
            ended_ms: listen.at_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(u64, u64)>) {
        let gap = Gap::in_stamps(&stamps(text)).map(|gap| (gap.ms, gap.ended_ms));
        assert_eq!(gap, expected, "{text}");
    }

    #[test]
    fn a_gap_is_from_the_last_stop_to_the_next_listen() {
        let first = "start 10 v1\nlisten 20 v1\n";
        check(first, None);
        check(&format!("{first}stop 100 v1\nstart 150 v1\n"), None);
        let moved = "stop 100 v1\nstart 150 v2\nlisten 170 v2\n";
        check(&format!("{first}{moved}"), Some((70, 170)));
        // Both ran at once.
        let overlapped = "start 50 v2\nlisten 60 v2\nstop 100 v1\n";
        check(&format!("{first}{overlapped}"), Some((0, 60)));
    }
}
