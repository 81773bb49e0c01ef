//! What a container is: the engine's own document of it, read once, with the facts that we reason about as types.
//!
//! `config`, `host_config` and the network endpoints stay documents (in the shape of the engine's HTTP interface), because a
//! replacement must carry every field of them, also those that nobody here has heard of. Pure: no engine, no I/O.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::image::{ImageId, ImageRef};

/// A JSON object of the engine's interface.
pub type Object = Map<String, Value>;

/// 64 hexadecimal digits. The one name of a container that never moves to another.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
#[derive(utoipa::ToSchema)]
pub struct ContainerId(String);

impl ContainerId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, which the engine also gives as the default hostname and as a network alias.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

/// A container's name, without the leading slash. A type of its own, so that no lookup takes a name for an id: an engine that is
/// asked for `/containers/cafe/json` answers with any container whose *id* begins with `cafe`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerName(String);

impl ContainerName {
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network, as the engine lists it. Several may have one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub id: String,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

impl State {
    /// The engine's word for it, in list and inspect alike.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "restarting" => Self::Restarting,
            "removing" => Self::Removing,
            "exited" => Self::Exited,
            "dead" => Self::Dead,
            _ => return None,
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No healthcheck, or one that was switched off.
    #[default]
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// One run of a container's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheckRun {
    /// By the engine's clock.
    pub started: jiff::Timestamp,
    pub exit_code: i64,
}

/// A container as the engine's list shows it. Its image is left out on purpose: the list names the tag until the tag moves,
/// and then an id (measured, research/engine-facts.md), so nothing may be decided by it.
#[derive(Clone, Debug)]
pub struct ContainerSummary {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub state: Option<State>,
    /// `HostConfig.NetworkMode`.
    pub network_mode: String,
}

/// Where a volume or a directory of the machine is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `volume`, `bind`, `tmpfs`, …
    pub kind: String,
    /// Of a volume.
    pub name: Option<String>,
    /// On the engine's machine.
    pub source: Option<String>,
    pub destination: String,
    pub read_write: bool,
}

impl Mount {
    /// Volumes that nobody named get 64 hexadecimal digits for a name.
    pub fn is_anonymous_volume(&self) -> bool {
        self.kind == "volume"
            && self
                .name
                .as_ref()
                .is_some_and(|name| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PublishedPort {
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub host_address: String,
    pub host_port: u16,
}

/// A container as inspection shows it.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    /// The image that it runs.
    pub image_id: ImageId,
    /// The digest of the manifest that it runs, of all that are in the index of its image. Only Docker 28 and later say it, with
    /// the containerd image store.
    pub manifest_digest: Option<String>,
    pub platform: Option<String>,
    pub state: State,
    pub health: Health,
    /// The newest run of its health check that the engine remembers.
    pub last_health_check: Option<HealthCheckRun>,
    pub exit_code: Option<i64>,
    /// What the engine says of the last failed start. Empty strings become `None`.
    pub error: Option<String>,
    /// By the engine's clock; the Unix epoch where the engine does not say.
    pub created: jiff::Timestamp,
    /// `None` where it was never started. To the nanosecond: a program that fails at once is restarted within the second.
    pub started: Option<jiff::Timestamp>,
    /// When it last exited, by the engine's clock; `None` where it never did.
    pub finished: Option<jiff::Timestamp>,
    /// `Config` of the inspection.
    pub config: Object,
    /// `HostConfig` of the inspection.
    pub host_config: Object,
    /// `NetworkSettings.Networks` of the inspection, by network name.
    pub endpoints: BTreeMap<String, Object>,
    pub published_ports: Vec<PublishedPort>,
    pub mounts: Vec<Mount>,
    /// The writable layer of its file system on the engine's machine, if the engine says where that is.
    pub upper_dir: Option<String>,
}

impl Container {
    /// `Config.Image`: what was asked for when it was created. The tag may have moved since.
    pub fn image(&self) -> &str {
        self.config
            .get("Image")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.config.get("Labels")?.get(key)?.as_str()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        text_map(self.config.get("Labels"))
    }

    /// `KEY=value`, as the engine has it.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.config
            .get("Env")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
    }

    /// `HostConfig.NetworkMode`: `bridge`, `host`, `none`, `container:<id>` or a network's name or id. `default` is `bridge`.
    pub fn network_mode(&self) -> &str {
        match self.host_config.get("NetworkMode").and_then(Value::as_str) {
            None | Some("" | "default") => "bridge",
            Some(mode) => mode,
        }
    }

    pub fn restart_policy(&self) -> &str {
        self.host_config
            .get("RestartPolicy")
            .and_then(|policy| policy.get("Name"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Whether the engine removes it by itself when it exits (`docker run --rm`).
    pub fn removes_itself(&self) -> bool {
        self.host_config
            .get("AutoRemove")
            .and_then(Value::as_bool)
            .unwrap_or_default()
    }

    /// Whether it has a healthcheck that was not switched off.
    pub fn has_healthcheck(&self) -> bool {
        let test = self
            .config
            .get("Healthcheck")
            .and_then(|check| check.get("Test"))
            .and_then(Value::as_array);
        test.is_some_and(|test| !test.is_empty() && test[0].as_str() != Some("NONE"))
    }
}

/// A manifest of an image that is on this machine: what runs on one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformManifest {
    pub digest: String,
    /// What it runs on, `linux` and `amd64`.
    pub os: String,
    pub architecture: String,
}

/// An image as inspection shows it.
#[derive(Clone, Debug)]
pub struct Image {
    /// On most engines the digest of its configuration; with Docker's containerd image store that of its manifest or index.
    pub id: ImageId,
    /// `repository@sha256:…`, as the registries that it was pulled from serve it. One repository may serve the same image under
    /// several digests: a push that changes only an attestation, or another platform, changes the index alone.
    pub repo_digests: Vec<String>,
    /// What it runs on, `linux` and `amd64`.
    pub os: String,
    pub architecture: String,
    /// What it gives to every container made from it: `Env`, `Cmd`, `Labels`, `Healthcheck`, …
    pub config: Object,
    /// One digest of all that a container made from it would run: platform, configuration, layers and date. Equal for two images
    /// that differ in their index alone. `None` where the engine does not show the layers.
    pub content: Option<String>,
}

impl Image {
    /// The digests under which the repository of this reference serves it. The engine sorts them by their digits, so none of them
    /// is the newest.
    pub fn digests_in<'a>(
        &'a self,
        reference: &'a ImageRef,
    ) -> impl Iterator<Item = &'a str> + use<'a> {
        self.repo_digests.iter().filter_map(|entry| {
            let (repository, digest) = entry.split_once('@')?;
            // The engine writes Docker Hub's short names here.
            let same = repository
                .parse::<ImageRef>()
                .is_ok_and(|it| it.repository() == reference.repository());
            same.then_some(digest)
        })
    }

    /// Whether its id is the digest of its manifest or index, so that a push which changes neither configuration nor layers changes
    /// the id all the same.
    pub fn is_named_by_manifest(&self) -> bool {
        let id = self.id.as_str();
        let mut digests = self.repo_digests.iter();
        digests.any(|entry| {
            entry
                .split_once('@')
                .is_some_and(|(_, digest)| digest == id)
        })
    }

    /// Whether a container would run the same, whichever of the two it was made from.
    pub fn has_content_of(&self, other: &Self) -> bool {
        self.content.is_some() && self.content == other.content
    }

    /// Whether the repository of this reference serves it under this digest.
    pub fn has_digest(&self, reference: &ImageRef, digest: &str) -> bool {
        self.digests_in(reference).any(|it| it == digest)
    }

    /// The digest to name it by: the expected one where the image has it, or its only one. `None` where nobody can tell which.
    pub fn digest_in(&self, reference: &ImageRef, expected: Option<&str>) -> Option<String> {
        let expected = expected.filter(|digest| self.has_digest(reference, digest));
        let mut digests = self.digests_in(reference);
        let only = digests.next().filter(|_| digests.next().is_none());
        expected.or(only).map(str::to_owned)
    }
}

fn text_map(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(repo_digests: &[&str]) -> Image {
        Image {
            id: ImageId::new("sha256:c"),
            repo_digests: repo_digests.iter().map(|it| (*it).to_owned()).collect(),
            os: "linux".into(),
            architecture: "amd64".into(),
            config: Object::new(),
            content: None,
        }
    }

    #[test]
    fn digests_of_other_repositories_are_left_out() {
        let image = image(&["ghcr.io/other/app@sha256:a", "nginx@sha256:b"]);
        let digests = |reference: &str| -> Vec<String> {
            let reference = reference.parse().unwrap();
            image.digests_in(&reference).map(str::to_owned).collect()
        };
        assert_eq!(digests("nginx:1"), ["sha256:b"]);
        assert_eq!(digests("ghcr.io/acme/app"), [""; 0]);
    }

    #[test]
    fn image_with_two_digests_has_each_of_them() {
        let image = image(&["ghcr.io/acme/app@sha256:a", "ghcr.io/acme/app@sha256:f"]);
        let reference: ImageRef = "ghcr.io/acme/app:1".parse().unwrap();
        for digest in ["sha256:a", "sha256:f"] {
            assert!(image.has_digest(&reference, digest), "{digest}");
            let named = image.digest_in(&reference, Some(digest));
            assert_eq!(named.as_deref(), Some(digest));
        }
        assert!(!image.has_digest(&reference, "sha256:b"));
        assert_eq!(image.digest_in(&reference, Some("sha256:b")), None);
        assert_eq!(image.digest_in(&reference, None), None);
    }
}
