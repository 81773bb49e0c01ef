//! The worlds: each has one container that is behind, with something that is easily lost.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use bollard::models::HealthConfig;
use bollard::query_parameters::UploadToContainerOptionsBuilder;

use super::bench::{Bench, Slot};
use super::invariants::{End, Facts, facts};
use crate::container::ContainerSpec;
use crate::image::PROGRAM;
use crate::world::World;

/// What kind of container is refreshed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// A named and an anonymous volume, environment and labels of its own.
    Replace,
    /// The same by the strategy `remove`.
    Remove,
    /// Two networks, each with aliases, by the strategy `overlap`.
    Overlap,
    /// Two networks, each with aliases, and a static address in the second.
    TwoNetworks,
    /// A health check of its own.
    Healthcheck,
    /// A port on a fixed port of the host.
    PublishedPort,
    /// The new image declares a volume that the old one did not have.
    NewVolume,
    /// Another container lives in its network (`network_mode: container:…`).
    Dependents,
    /// Another container links to it on the default network, and lives in its name space of processes.
    Linked,
    /// Started with `--rm`: stopping it would delete it.
    Rm,
    /// Its name is hexadecimal, and the id of a stranger that runs begins with it. An engine that is asked for the name while nobody
    /// has it answers with the stranger.
    HexName,
}

impl Scenario {
    pub const ALL: [Self; 11] = [
        Self::Replace,
        Self::Remove,
        Self::Overlap,
        Self::TwoNetworks,
        Self::Healthcheck,
        Self::PublishedPort,
        Self::NewVolume,
        Self::Dependents,
        Self::Linked,
        Self::Rm,
        Self::HexName,
    ];

    /// What a refresh without a fault comes to.
    pub fn wanted(self) -> End {
        match self {
            Self::Remove => End::Gone,
            Self::Rm => End::Old,
            Self::Replace
            | Self::Overlap
            | Self::TwoNetworks
            | Self::Healthcheck
            | Self::PublishedPort
            | Self::NewVolume
            | Self::Dependents
            | Self::Linked
            | Self::HexName => End::New,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Replace => "replace",
            Self::Remove => "remove",
            Self::Overlap => "overlap",
            Self::TwoNetworks => "two-networks",
            Self::Healthcheck => "healthcheck",
            Self::PublishedPort => "published-port",
            Self::NewVolume => "new-volume",
            Self::Dependents => "dependents",
            Self::Linked => "linked",
            Self::Rm => "rm",
            Self::HexName => "hex-name",
        })
    }
}

impl FromStr for Scenario {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL
            .into_iter()
            .find(|scenario| scenario.to_string() == text);
        found.with_context(|| {
            let names = Self::ALL.map(|scenario| scenario.to_string()).join(", ");
            format!("`{text}` is no scenario; there are {names}")
        })
    }
}

/// Written into each volume, where it must be found again.
pub(super) const MARKER: &str = "marker";
pub(super) const STAMPS: &str = "/data/stamps";
/// Where volumes are mounted: the named one and the anonymous one.
pub(super) const VOLUMES: [&str; 2] = ["/data", "/cache"];

/// How things were.
pub(super) struct Before {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) facts: Facts,
    pub(super) volumes: Vec<String>,
    pub(super) networks: Vec<String>,
    /// What is in the markers: this world's prefix.
    pub(super) marker: String,
    pub(super) stamps: String,
    pub(super) host_port: Option<u16>,
    pub(super) follower: Option<Follower>,
}

impl Before {
    /// Those that were there, and must be in the end; sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let follower = self.follower.iter().map(|follower| follower.name.clone());
        std::iter::once(self.name.clone()).chain(follower).collect()
    }
}

/// A container that depends on the one that is refreshed.
pub(super) struct Follower {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) facts: Facts,
}

/// What a follower calls the container that it links to.
pub(super) const LINK: &str = "database";
/// Where a follower listens: the port next to its provider's.
pub(super) const FOLLOWER_PORT: u16 = crate::image::PORT + 1;

pub(super) async fn set_up(
    w: &World,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
) -> anyhow::Result<Before> {
    let image = slot.image_for(scenario);
    let volume = w.volume("data").await?;
    let mut spec = match scenario {
        Scenario::HexName => ContainerSpec::named(&slot.hex_name, &image.reference),
        _ => ContainerSpec::new("a", &image.reference),
    };
    spec = spec
        .volume(&volume, VOLUMES[0])
        .anonymous_volume(VOLUMES[1])
        .env("STAMP_FILE", STAMPS)
        .env("MODEL", "of the user")
        .label("com.example.owner", "somebody")
        // A hang of the stop call is waited for as long as the container may take, and then some.
        .body(|body| body.stop_timeout = Some(1));
    let mut networks = Vec::new();
    let mut host_port = None;
    match scenario {
        Scenario::Replace
        | Scenario::Remove
        | Scenario::NewVolume
        | Scenario::Dependents
        | Scenario::Linked
        | Scenario::HexName => {}
        Scenario::Rm => spec = spec.host(|host| host.auto_remove = Some(true)),
        Scenario::Overlap => {
            networks = vec![w.network("first").await?, w.network("second").await?];
            spec = spec
                .network(&networks[0], &["hermes", "messenger"])
                .network(&networks[1], &["hermes"]);
        }
        Scenario::TwoNetworks => {
            let first = w.network("first").await?;
            let second = w.network_with_subnet("second").await?;
            spec = spec.network(&first, &["hermes", "messenger"]).network_at(
                &second.network,
                &["hermes"],
                &format!("{}.17", second.start),
            );
            networks = vec![first, second.network];
        }
        Scenario::Healthcheck => {
            let check = HealthConfig {
                test: Some(vec![
                    "CMD".to_owned(),
                    PROGRAM.to_owned(),
                    "health".to_owned(),
                ]),
                interval: Some(nanoseconds(HEALTH_INTERVAL)),
                timeout: Some(nanoseconds(Duration::from_secs(5))),
                retries: Some(5),
                ..HealthConfig::default()
            };
            spec = spec.healthcheck(check);
        }
        Scenario::PublishedPort => {
            // Below the ports that systems give away, so that nobody takes it between two owners.
            let port = fastrand::u16(20_000..30_000);
            spec = spec.publish_at(crate::image::PORT, port);
            host_port = Some(port);
        }
    }
    let running = w.run(spec).await?;
    anyhow::ensure!(
        running.image_id == bench.old.id,
        "the container was made from another image than the old version"
    );
    for path in VOLUMES {
        let archive = crate::image::layer(&[(MARKER, 0o644, w.prefix().as_bytes())], &[])?;
        let options = UploadToContainerOptionsBuilder::new().path(path).build();
        let upload = w.docker().upload_to_container(
            &running.id,
            Some(options),
            bollard::body_full(archive.into()),
        );
        upload
            .await
            .with_context(|| format!("cannot write into {path} of {}", running.name))?;
    }
    let follower = match scenario {
        Scenario::Dependents => {
            let network = format!("container:{}", running.id);
            let spec = follower(bench).host(|host| host.network_mode = Some(network));
            Some(follow(w, spec).await?)
        }
        Scenario::Linked => {
            let link = format!("{}:{LINK}", running.name);
            let processes = format!("container:{}", running.id);
            let spec = follower(bench).host(|host| {
                host.links = Some(vec![link]);
                host.pid_mode = Some(processes);
            });
            Some(follow(w, spec).await?)
        }
        _ => None,
    };
    let inspected = serde_json::to_value(w.inspect(&running.id).await?)?;
    let mounts = inspected["Mounts"].as_array().into_iter().flatten();
    Ok(Before {
        volumes: mounts
            .filter_map(|mount| mount["Name"].as_str().map(str::to_owned))
            .collect(),
        facts: facts(&inspected),
        stamps: w.read_container_file(&running.id, STAMPS).await?,
        marker: w.prefix().to_owned(),
        name: running.name,
        id: running.id,
        networks,
        host_port,
        follower,
    })
}

fn follower(bench: &Bench) -> ContainerSpec {
    ContainerSpec::new("b", &bench.old_tag)
        .env("PORT", &FOLLOWER_PORT.to_string())
        .body(|body| body.stop_timeout = Some(1))
}

async fn follow(w: &World, spec: ContainerSpec) -> anyhow::Result<Follower> {
    let running = w.run(spec).await?;
    let inspected = serde_json::to_value(w.inspect(&running.id).await?)?;
    Ok(Follower {
        facts: facts(&inspected),
        name: running.name,
        id: running.id,
    })
}

/// Longer than two looks of whoever waits for the verdict, so that the number of numbered looks does not depend on luck.
const HEALTH_INTERVAL: Duration = Duration::from_millis(700);

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).expect("an interval in a test is shorter than 292 years")
}
