//! Leaves nothing of a world on the engine.
//!
//! What belongs to a world is found by label and by prefix, and by what hangs together: Refit keeps labels and names, but a
//! test is there to find out that it does not, so a container also belongs if its image, a volume or a network of it does.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::bail;
use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListNetworksOptions,
    ListVolumesOptions, RemoveContainerOptionsBuilder, RemoveVolumeOptionsBuilder,
};
use futures_util::future::join_all;

use super::{LABEL, LABEL_IMAGE, World};
use crate::bounded::{self, CALL, within};

/// A container that somebody else is just removing, or has just made, takes another look. Each look is a full removal.
const ATTEMPTS: usize = 5;
/// Between two looks: what is under way on the engine ends in tenths of a second and cannot be awaited from outside.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(200);
/// Forty containers at a quarter of a second each on a loaded engine, twice over.
const CLEANING: Duration = Duration::from_secs(120);

/// Other tests remove images meanwhile.
const LIST_AGAIN_MAX: usize = 20;

impl World {
    pub(super) async fn clean(&self) -> anyhow::Result<()> {
        within(
            CLEANING,
            &format!("clean up world {}", self.prefix()),
            self.clean_until_empty(),
        )
        .await
    }

    async fn clean_until_empty(&self) -> anyhow::Result<()> {
        let mut trouble = Vec::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(BETWEEN_ATTEMPTS).await;
            }
            trouble = self.remove_everything().await?;
            if self.remains().await?.is_empty() {
                return Ok(());
            }
        }
        let remains = self.remains().await?;
        bail!(
            "these remain: {}; remove them by hand\n{}",
            remains.join(", "),
            trouble.join("\n")
        )
    }

    /// One attempt. In this order: containers hold networks, volumes and images.
    async fn remove_everything(&self) -> anyhow::Result<Vec<String>> {
        let containers = self.own_containers().await?;
        for container in &containers {
            let mounts = container.mounts.iter().flatten();
            self.record_anonymous_volumes(mounts.filter_map(|mount| mount.name.clone()));
        }
        let mut results = join_all(
            containers
                .iter()
                .filter_map(|container| container.id.as_deref())
                .map(|id| self.remove_container(id)),
        )
        .await;
        results.extend(self.try_remove_networks_and_volumes().await?);
        for image in self.own_images().await? {
            results.push(self.remove_image(&image, true).await);
        }
        Ok(results
            .into_iter()
            .filter_map(Result::err)
            .map(|error| format!("{error:#}"))
            .collect())
    }

    /// Those that the world has made; no container may use them any more.
    pub async fn remove_networks_and_volumes(&self) -> anyhow::Result<()> {
        let results = self.try_remove_networks_and_volumes().await?;
        results.into_iter().collect()
    }

    async fn try_remove_networks_and_volumes(&self) -> anyhow::Result<Vec<anyhow::Result<()>>> {
        let mut results = Vec::new();
        for network in self.own_networks().await? {
            let removal = self.absent_is_fine(self.docker().remove_network(&network));
            results.push(within(CALL, &format!("remove network {network}"), removal).await);
        }
        for volume in self.own_volumes().await? {
            let options = RemoveVolumeOptionsBuilder::new().force(true).build();
            let removal = self.absent_is_fine(self.docker().remove_volume(&volume, Some(options)));
            results.push(within(CALL, &format!("remove volume {volume}"), removal).await);
        }
        Ok(results)
    }

    /// Removes an image with all its names, so that the next pull brings it again.
    pub async fn forget_image(&self, id: &str) -> anyhow::Result<()> {
        self.remove_image(id, true).await
    }

    /// Removes a container, running or not, with its anonymous volumes.
    pub async fn remove_container(&self, container: &str) -> anyhow::Result<()> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let removal = self.absent_is_fine(self.docker().remove_container(container, Some(options)));
        within(CALL, &format!("remove container {container}"), removal).await
    }

    /// What is still on the engine of this world, each with its kind.
    pub async fn remains(&self) -> anyhow::Result<Vec<String>> {
        let containers = self.own_containers().await?;
        let containers = containers
            .iter()
            .map(|container| format!("container {}", name(container)));
        let networks = self
            .own_networks()
            .await?
            .into_iter()
            .map(|name| format!("network {name}"));
        let volumes = self
            .own_volumes()
            .await?
            .into_iter()
            .map(|name| format!("volume {name}"));
        let images = self
            .own_images()
            .await?
            .into_iter()
            .map(|id| format!("image {id}"));
        Ok(containers
            .chain(networks)
            .chain(volumes)
            .chain(images)
            .collect())
    }

    pub(super) async fn own_containers(&self) -> anyhow::Result<Vec<ContainerSummary>> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let mut containers = within(
            CALL,
            "list containers",
            self.docker().list_containers(Some(options)),
        )
        .await?;
        containers.retain(|container| self.owns(container));
        Ok(containers)
    }

    fn owns(&self, container: &ContainerSummary) -> bool {
        let networks = container
            .network_settings
            .iter()
            .filter_map(|settings| settings.networks.as_ref());
        let mut networks = networks.flat_map(HashMap::keys);
        let mut volumes = container
            .mounts
            .iter()
            .flatten()
            .filter_map(|mount| mount.name.as_ref());
        let anonymous = &self.records().anonymous_volumes;
        container
            .names
            .iter()
            .flatten()
            .any(|name| self.names(name))
            || container
                .image
                .as_ref()
                .is_some_and(|image| self.names(image))
            || container
                .labels
                .as_ref()
                .is_some_and(|labels| self.labelled(labels))
            || networks.any(|network| self.names(network))
            || volumes.any(|volume| self.names(volume) || anonymous.contains(volume))
    }

    async fn own_networks(&self) -> anyhow::Result<Vec<String>> {
        let networks = within(
            CALL,
            "list networks",
            self.docker().list_networks(None::<ListNetworksOptions>),
        )
        .await?;
        let networks = networks.into_iter().filter(|network| {
            network.name.as_ref().is_some_and(|name| self.names(name))
                || network
                    .labels
                    .as_ref()
                    .is_some_and(|labels| self.labelled(labels))
        });
        // By id: two networks may have one name.
        Ok(networks.filter_map(|network| network.id).collect())
    }

    async fn own_volumes(&self) -> anyhow::Result<Vec<String>> {
        let volumes = within(
            CALL,
            "list volumes",
            self.docker().list_volumes(None::<ListVolumesOptions>),
        )
        .await?;
        let anonymous = self.records().anonymous_volumes.clone();
        let volumes = volumes
            .volumes
            .unwrap_or_default()
            .into_iter()
            .filter(|volume| {
                self.names(&volume.name)
                    || self.labelled(&volume.labels)
                    || anonymous.contains(&volume.name)
            });
        Ok(volumes.map(|volume| volume.name).collect())
    }

    /// Images by id: one may have several names, or have lost them all.
    async fn own_images(&self) -> anyhow::Result<Vec<String>> {
        let options = ListImagesOptionsBuilder::new().all(true).build();
        let list = || {
            let listed = self.docker().list_images(Some(options.clone()));
            within(CALL, "list images", listed)
        };
        let mut images = list().await;
        for _ in 0..LIST_AGAIN_MAX {
            // Docker 26 with the containerd store does not find an image that is removed while it lists it.
            match &images {
                Err(error) if format!("{error:#}").contains("not found") => images = list().await,
                Ok(_) | Err(_) => break,
            }
        }
        let images = images?;
        let images = images.into_iter().filter(|image| {
            image
                .repo_tags
                .iter()
                .chain(&image.repo_digests)
                .any(|name| self.names(name))
                || self.labelled(&image.labels)
        });
        Ok(images.map(|image| image.id).collect())
    }

    fn names(&self, name: &str) -> bool {
        name.contains(self.prefix())
    }

    fn labelled(&self, labels: &HashMap<String, String>) -> bool {
        [LABEL, LABEL_IMAGE].iter().any(|label| {
            labels
                .get(*label)
                .is_some_and(|value| value == self.prefix())
        })
    }

    /// Gone is what we wanted; a removal under way (409) will be seen again at the next look.
    async fn absent_is_fine(
        &self,
        removal: impl Future<Output = Result<(), bollard::errors::Error>>,
    ) -> Result<(), bollard::errors::Error> {
        match removal.await {
            Err(error) if bounded::is_absent(&error) => Ok(()),
            other => other,
        }
    }
}

/// The name a person would use.
pub(super) fn name(container: &ContainerSummary) -> String {
    let first = container
        .names
        .iter()
        .flatten()
        .next()
        .or(container.id.as_ref());
    first
        .map(|name| name.trim_start_matches('/').to_owned())
        .unwrap_or_default()
}
