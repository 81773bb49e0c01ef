//! Containers: the engine's document, parsed once, with the facts that Refit decides by as types.
//!
//! `config`, `host_config` and the network endpoints stay documents (in the form of the engine's API), because a replacement
//! must carry every field of them, including unknown ones. Pure: no engine, no I/O.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::image::{ImageId, ImageRef};

/// A JSON object of the engine's API.
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

    /// Returns the first twelve digits, which the engine also uses as the default hostname and as a network alias.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

/// A container's name, without the leading slash. It is a separate type, so that no lookup confuses a name with an id: for
/// `/containers/cafe/json` an engine may return any container whose *id* starts with `cafe`.
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

/// A network, as the engine lists it. Several may have the same name.
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
    /// Parses the engine's word for a state, from a list or an inspection.
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
    /// No health check, or a disabled one.
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

/// A container as the engine's list shows it. The image is left out on purpose: the list names the tag until the tag moves, and
/// then an id (measured, research/engine-facts.md), so no decision may depend on it.
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

/// The mount of a volume or of a directory of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `volume`, `bind`, `tmpfs`, …
    pub kind: String,
    /// The name of a volume.
    pub name: Option<String>,
    /// The path on the engine's machine.
    pub source: Option<String>,
    pub destination: String,
    pub read_write: bool,
}

impl Mount {
    /// Reports whether the engine generated the volume's name, which then has 64 hexadecimal digits.
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

/// A container as an inspection shows it.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    /// The image that it runs.
    pub image_id: ImageId,
    /// The digest of the manifest that it runs, among those in the index of its image. Only Docker 28 and later report it, with
    /// the containerd image store.
    pub manifest_digest: Option<String>,
    pub platform: Option<String>,
    pub state: State,
    pub health: Health,
    /// The newest run of its health check that the engine remembers.
    pub last_health_check: Option<HealthCheckRun>,
    pub exit_code: Option<i64>,
    /// The engine's error of the last failed start. Empty strings become `None`.
    pub error: Option<String>,
    /// By the engine's clock; the Unix epoch if the engine does not report it.
    pub created: jiff::Timestamp,
    /// `None` if it was never started. To the nanosecond: a program that fails at once is restarted within the second.
    pub started: Option<jiff::Timestamp>,
    /// When it last exited, by the engine's clock; `None` if it never did.
    pub finished: Option<jiff::Timestamp>,
    /// `Config` of the inspection.
    pub config: Object,
    /// `HostConfig` of the inspection.
    pub host_config: Object,
    /// `NetworkSettings.Networks` of the inspection, by network name.
    pub endpoints: BTreeMap<String, Object>,
    pub published_ports: Vec<PublishedPort>,
    pub mounts: Vec<Mount>,
    /// The writable layer of its file system on the engine's machine, if the engine reports it.
    pub upper_dir: Option<String>,
}

impl Container {
    /// Returns `Config.Image`: the reference that was requested when it was created. The tag may have moved since.
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

    /// Returns the variables, which the engine stores as `KEY=value`.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.config
            .get("Env")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
    }

    /// Returns `HostConfig.NetworkMode`: `bridge`, `host`, `none`, `container:<id>` or a network's name or id. `default`
    /// becomes `bridge`.
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

    /// Reports whether the engine removes it when it exits (`docker run --rm`).
    pub fn removes_itself(&self) -> bool {
        self.host_config
            .get("AutoRemove")
            .and_then(Value::as_bool)
            .unwrap_or_default()
    }

    /// Reports whether it has a health check that is not disabled.
    pub fn has_healthcheck(&self) -> bool {
        let test = self
            .config
            .get("Healthcheck")
            .and_then(|check| check.get("Test"))
            .and_then(Value::as_array);
        test.is_some_and(|test| !test.is_empty() && test[0].as_str() != Some("NONE"))
    }
}

/// A manifest of an image on this machine, for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformManifest {
    pub digest: String,
    /// The platform, for example `linux` and `amd64`.
    pub os: String,
    pub architecture: String,
}

/// An image as an inspection shows it.
#[derive(Clone, Debug)]
pub struct Image {
    /// On most engines the digest of its configuration; with Docker's containerd image store the digest of its manifest or
    /// index.
    pub id: ImageId,
    /// `repository@sha256:…`, as its registries serve it. One repository may serve the same image under several digests: a push
    /// that changes only an attestation, or another platform, changes only the index.
    pub repo_digests: Vec<String>,
    /// The platform, for example `linux` and `amd64`.
    pub os: String,
    pub architecture: String,
    /// The configuration that it gives to every container created from it: `Env`, `Cmd`, `Labels`, `Healthcheck`, …
    pub config: Object,
    /// A digest of everything that a container created from it would run: platform, configuration, layers and date. Two images
    /// whose only difference is their index have the same digest. `None` if the engine does not show the layers.
    pub content: Option<String>,
}

impl Image {
    /// Returns the digests under which the repository of this reference serves the image. The engine sorts them by their
    /// digits, so their order says nothing about their age.
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

    /// Reports whether its id is the digest of its manifest or index, so that a push changes the id even if it changes neither
    /// configuration nor layers.
    pub fn is_named_by_manifest(&self) -> bool {
        let id = self.id.as_str();
        let mut digests = self.repo_digests.iter();
        digests.any(|entry| {
            entry
                .split_once('@')
                .is_some_and(|(_, digest)| digest == id)
        })
    }

    /// Reports whether containers created from either image would run the same.
    pub fn has_content_of(&self, other: &Self) -> bool {
        self.content.is_some() && self.content == other.content
    }

    /// Reports whether the repository of this reference serves it under this digest.
    pub fn has_digest(&self, reference: &ImageRef, digest: &str) -> bool {
        self.digests_in(reference).any(|it| it == digest)
    }

    /// Returns the digest to name it by: the expected one if the image has it, or its only one. `None` if that is ambiguous.
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
