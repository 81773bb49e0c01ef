//! What all cases share: two versions of an image, published once, so that a case need not publish its own.
//!
//! A slot is for one case at a time. It has references of its own, on which the registry serves the new version; before each
//! case the engine's tag is put back to the old one. Both versions stay on the engine, so a pull moves a tag and no layers.

use std::collections::BTreeMap;

use anyhow::Context;

use super::Scenario;
use crate::container::ContainerSpec;
use crate::image::ImageSpec;
use crate::registry::{self, Registry};
use crate::world::World;

/// An image on the engine, with the defaults that a container takes from it.
#[derive(Clone, Debug)]
pub struct Version {
    pub id: String,
    pub env: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// A reference whose newest image is not the one that the engine knows by it.
#[derive(Clone, Debug)]
pub struct Behind {
    runtime: String,
    pub reference: String,
    pub new: Version,
}

pub struct Bench {
    world: World,
    registry: &'static Registry,
    pub old: Version,
    /// A name of the old version that never means another one.
    pub old_tag: String,
    /// The id of a container that runs and that nobody works on.
    stranger: String,
}

pub struct Slot {
    plain: Behind,
    /// A name that the stranger's id begins with, and that no other slot has.
    pub(super) hex_name: String,
    /// The new version declares a volume that the old one did not have.
    with_volume: Behind,
}

impl Slot {
    pub fn image_for(&self, scenario: Scenario) -> &Behind {
        match scenario {
            Scenario::NewVolume => &self.with_volume,
            Scenario::Replace
            | Scenario::Remove
            | Scenario::Overlap
            | Scenario::TwoNetworks
            | Scenario::Healthcheck
            | Scenario::PublishedPort
            | Scenario::Dependents
            | Scenario::Linked
            | Scenario::Rm
            | Scenario::HexName => &self.plain,
        }
    }
}

impl Bench {
    /// `world` is where the images live; it must outlast all cases.
    pub async fn new(world: &World) -> anyhow::Result<Self> {
        let old_tag = world.load(ImageSpec::new("v1")).await?;
        let id = world
            .image_id(&old_tag)
            .await?
            .context("the old version was loaded just now")?;
        let stranger = world.run(ContainerSpec::new("stranger", &old_tag)).await?;
        Ok(Self {
            world: world.clone(),
            stranger: stranger.id,
            registry: registry::open().await?,
            old: version(world, id).await?,
            old_tag,
        })
    }

    pub async fn slot(&self, number: usize) -> anyhow::Result<Slot> {
        let plain = self
            .publish(&format!("slot{number}"), ImageSpec::new("v2"))
            .await?;
        let with_volume = ImageSpec::new("v2").volume("/fresh");
        let with_volume = self
            .publish(&format!("slot{number}-volume"), with_volume)
            .await?;
        // Two digits and more: the shorter it is, the more strangers' ids begin with it.
        let hex_name = self.stranger.get(..2 + number);
        Ok(Slot {
            plain,
            hex_name: hex_name.context("too many slots")?.to_owned(),
            with_volume,
        })
    }

    async fn publish(&self, runtime: &str, spec: ImageSpec) -> anyhow::Result<Behind> {
        let published = self.world.publish(self.registry, runtime, spec).await?;
        self.world.pull(&published.reference).await?;
        let kept = format!("refit-tests/{}:{runtime}-new", self.world.prefix());
        self.world.tag(&published.id, &kept).await?;
        let new = version(&self.world, published.id).await?;
        Ok(Behind {
            runtime: runtime.to_owned(),
            reference: published.reference,
            new,
        })
    }

    /// The engine knows the old version by the reference again.
    pub async fn put_back(&self, image: &Behind) -> anyhow::Result<()> {
        self.world.tag(&self.old.id, &image.reference).await
    }

    /// `refit.toml` for the containers of `w`, without an engine. One call at a time, so that their order is the same in every
    /// run, and time limits that let a hang end soon.
    pub(super) fn config(
        &self,
        w: &World,
        image: &Behind,
        scenario: Scenario,
        name: &str,
    ) -> String {
        let containers = match scenario {
            Scenario::HexName => name.to_owned(),
            _ => format!("ws-{}-*", w.prefix()),
        };
        let strategy = match scenario {
            Scenario::Remove => "remove",
            Scenario::Overlap => "overlap",
            Scenario::Replace
            | Scenario::TwoNetworks
            | Scenario::Healthcheck
            | Scenario::PublishedPort
            | Scenario::NewVolume
            | Scenario::Dependents
            | Scenario::Linked
            | Scenario::Rm
            | Scenario::HexName => "replace",
        };
        format!(
            "[policy.config]\n\
             images = \"{template}\"\nruntimes = [\"{runtime}\"]\ncontainers = \"{containers}\"\nstrategy = \"{strategy}\"\n\
             [grants]\nimages = [\"{host}/{prefix}/*\"]\ncontainers = [\"{containers}\"]\n\
             [limits]\nengine_seconds = 3\npull_seconds = 5\npull_concurrency = 1\ninspect_concurrency = 1\nrecreate_concurrency = 1\nrecreate_pipeline = 1\n\
             [proof]\ngrace_seconds = 0\nhealth_seconds = 10\n",
            template = self.world.template(self.registry),
            runtime = image.runtime,
            host = self.registry.host(),
            prefix = self.world.prefix(),
        )
    }
}

async fn version(world: &World, id: String) -> anyhow::Result<Version> {
    let image = world
        .docker()
        .inspect_image(&id)
        .await
        .with_context(|| format!("cannot inspect image {id}"))?;
    let config = image.config.unwrap_or_default();
    Ok(Version {
        id,
        env: config.env.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
    })
}
