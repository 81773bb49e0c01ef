//! Parses the engine's documents into Refit's types. This module knows the form of inspections, but not how they arrive.

use std::collections::BTreeMap;
use std::path::PathBuf;

use refit_model::container::{
    Container, ContainerId, Health, HealthCheckRun, Image, Mount, Network, Object,
    PlatformManifest, PublishedPort, State,
};
use refit_model::image::{ImageId, is_digest, sha256};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspection {
    id: String,
    name: String,
    image: String,
    created: Option<String>,
    state: StateDocument,
    config: Object,
    host_config: Object,
    network_settings: Option<NetworkSettings>,
    mounts: Option<Vec<MountDocument>>,
    image_manifest_descriptor: Option<Descriptor>,
    graph_driver: Option<GraphDriver>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GraphDriver {
    /// Its content depends on the driver.
    data: Option<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StateDocument {
    status: String,
    exit_code: Option<i64>,
    error: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    health: Option<HealthDocument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthDocument {
    status: Option<String>,
    log: Option<Vec<HealthCheckDocument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthCheckDocument {
    start: Option<String>,
    exit_code: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Object>>,
    ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    host_ip: Option<String>,
    host_port: Option<String>,
}

#[derive(Deserialize)]
struct MountDocument {
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Source")]
    source: Option<String>,
    #[serde(rename = "Destination")]
    destination: Option<String>,
    #[serde(rename = "RW")]
    read_write: Option<bool>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Option<String>,
    platform: Option<PlatformDocument>,
}

#[derive(Deserialize)]
struct PlatformDocument {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

/// Parses a container from the engine's inspection document.
pub fn container(document: &[u8]) -> Result<Container, serde_json::Error> {
    let parsed: Inspection = serde_json::from_slice(document)?;
    let unknown = |what: String| <serde_json::Error as serde::de::Error>::custom(what);
    let state = State::parse(&parsed.state.status)
        .ok_or_else(|| unknown(format!("unknown container state `{}`", parsed.state.status)))?;
    let (networks, ports) = parsed
        .network_settings
        .map(|it| (it.networks, it.ports))
        .unwrap_or_default();
    Ok(Container {
        id: ContainerId::new(parsed.id),
        name: parsed.name.trim_start_matches('/').to_owned(),
        image_id: ImageId::new(parsed.image),
        manifest_digest: parsed
            .image_manifest_descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.digest.clone()),
        platform: parsed
            .image_manifest_descriptor
            .and_then(|descriptor| format_platform(descriptor.platform?)),
        state,
        last_health_check: parsed.state.health.as_ref().and_then(last_health_check),
        health: parse_health(parsed.state.health),
        exit_code: parsed.state.exit_code,
        error: parsed.state.error.filter(|text| !text.is_empty()),
        created: parsed
            .created
            .as_deref()
            .and_then(parse_time)
            .unwrap_or_default(),
        started: parsed.state.started_at.as_deref().and_then(parse_time),
        finished: parsed.state.finished_at.as_deref().and_then(parse_time),
        config: parsed.config,
        host_config: parsed.host_config,
        endpoints: networks.unwrap_or_default(),
        published_ports: parse_published_ports(ports.unwrap_or_default()),
        mounts: parsed
            .mounts
            .unwrap_or_default()
            .into_iter()
            .map(convert_mount)
            .collect(),
        upper_dir: parsed
            .graph_driver
            .and_then(|driver| Some(driver.data?.get("UpperDir")?.as_str()?.to_owned())),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageDocument {
    id: String,
    repo_digests: Option<Vec<String>>,
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<Object>,
    #[serde(rename = "RootFS")]
    root_fs: Option<RootFs>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    layers: Option<Vec<String>>,
}

pub(super) fn image(document: &[u8]) -> Result<Image, serde_json::Error> {
    let parsed: ImageDocument = serde_json::from_slice(document)?;
    let content = content_digest(&parsed);
    Ok(Image {
        id: ImageId::new(parsed.id),
        repo_digests: parsed.repo_digests.unwrap_or_default(),
        os: parsed.os.unwrap_or_default(),
        architecture: parsed.architecture.unwrap_or_default(),
        config: parsed.config.unwrap_or_default(),
        content,
    })
}

/// Parses `SystemTime` of `GET /info`.
pub(super) fn system_time(document: &[u8]) -> Result<jiff::Timestamp, serde_json::Error> {
    let parsed: Value = serde_json::from_slice(document)?;
    let time = parsed.get("SystemTime").and_then(Value::as_str);
    time.and_then(parse_time)
        .ok_or_else(|| serde::de::Error::custom("no `SystemTime`"))
}

/// Parses the response to `GET /networks`.
pub(super) fn networks(document: &[u8]) -> Result<Vec<Network>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct NetworkDocument {
        id: String,
        name: String,
    }
    let parsed: Vec<NetworkDocument> = serde_json::from_slice(document)?;
    let networks = parsed.into_iter();
    Ok(networks
        .map(|NetworkDocument { id, name }| Network { id, name })
        .collect())
}

/// Computes a digest of the image's content. `None` without layers, since there is nothing to compare.
fn content_digest(document: &ImageDocument) -> Option<String> {
    let layers = document.root_fs.as_ref()?.layers.as_ref()?;
    if layers.is_empty() {
        return None;
    }
    let all = serde_json::json!([
        document.os,
        document.architecture,
        document.variant,
        document.created,
        document.config,
        layers
    ]);
    Some(sha256(all.to_string().as_bytes()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestsDocument {
    manifests: Option<Vec<ManifestDocument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestDocument {
    descriptor: Descriptor,
    #[serde(default)]
    available: bool,
    /// `image`, `attestation` or `unknown`.
    #[serde(default)]
    kind: String,
}

/// Parses the manifests that a container can run.
pub(super) fn platform_manifests(
    document: &[u8],
) -> Result<Vec<PlatformManifest>, serde_json::Error> {
    let parsed: ManifestsDocument = serde_json::from_slice(document)?;
    let all = parsed.manifests.unwrap_or_default().into_iter();
    let images = all.filter(|manifest| manifest.available && manifest.kind == "image");
    let manifests = images.filter_map(|manifest| {
        let platform = manifest.descriptor.platform?;
        Some(PlatformManifest {
            digest: manifest.descriptor.digest?,
            os: platform.os?,
            architecture: platform.architecture?,
        })
    });
    Ok(manifests.collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InfoDocument {
    docker_root_dir: Option<PathBuf>,
    containerd: Option<ContainerdDocument>,
    driver_status: Option<Vec<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerdDocument {
    address: Option<String>,
}

/// Parses the folder of pulled images from `GET /info`. With the containerd image store that is the folder of the machine's own
/// containerd, unless the engine has started a separate one.
pub(super) fn image_folder(document: &[u8]) -> Result<Option<PathBuf>, serde_json::Error> {
    const CONTAINERD_STORE: &str = "io.containerd.snapshotter.v1";
    const MACHINES_SOCKET: &str = "/run/containerd/containerd.sock";
    const MACHINES_FOLDER: &str = "/var/lib/containerd";
    let parsed: InfoDocument = serde_json::from_slice(document)?;
    let status = parsed.driver_status.unwrap_or_default();
    let is_containerd = status.iter().flatten().any(|it| it == CONTAINERD_STORE);
    let address = parsed.containerd.and_then(|it| it.address);
    if is_containerd && address.as_deref() == Some(MACHINES_SOCKET) {
        return Ok(Some(PathBuf::from(MACHINES_FOLDER)));
    }
    Ok(parsed.docker_root_dir.filter(|folder| folder.is_absolute()))
}

/// Parses `Descriptor.digest` of `GET /distribution/…/json`.
pub(super) fn distribution_digest(document: &[u8]) -> Result<String, serde_json::Error> {
    let parsed: Value = serde_json::from_slice(document)?;
    let digest = parsed.pointer("/Descriptor/digest").and_then(Value::as_str);
    digest
        .filter(|digest| is_digest(digest))
        .map(str::to_owned)
        .ok_or_else(|| serde::de::Error::custom("no `Descriptor.digest`"))
}

fn format_platform(document: PlatformDocument) -> Option<String> {
    let base = format!("{}/{}", document.os?, document.architecture?);
    Some(match document.variant {
        Some(variant) if !variant.is_empty() => format!("{base}/{variant}"),
        _ => base,
    })
}

fn parse_health(document: Option<HealthDocument>) -> Health {
    match document.and_then(|health| health.status).as_deref() {
        Some("starting") => Health::Starting,
        Some("healthy") => Health::Healthy,
        Some("unhealthy") => Health::Unhealthy,
        _ => Health::None,
    }
}

/// Returns the newest run. The engine keeps the last five, the newest at the end.
fn last_health_check(health: &HealthDocument) -> Option<HealthCheckRun> {
    let newest = health.log.as_ref()?.last()?;
    Some(HealthCheckRun {
        started: parse_time(newest.start.as_deref()?)?,
        exit_code: newest.exit_code?,
    })
}

/// Parses a time. Engines write year 1 for "never".
fn parse_time(timestamp: &str) -> Option<jiff::Timestamp> {
    let moment = timestamp.parse::<jiff::Timestamp>().ok()?;
    (moment > jiff::Timestamp::UNIX_EPOCH).then_some(moment)
}

fn convert_mount(document: MountDocument) -> Mount {
    Mount {
        kind: document.kind.unwrap_or_default(),
        name: document.name,
        source: document.source.filter(|source| !source.is_empty()),
        destination: document.destination.unwrap_or_default(),
        read_write: document.read_write.unwrap_or(true),
    }
}

/// Parses published ports: `8000/tcp` and its addresses on the machine. Ports that are only exposed have no binding and are
/// left out.
fn parse_published_ports(ports: BTreeMap<String, Option<Vec<Binding>>>) -> Vec<PublishedPort> {
    let mut published = Vec::new();
    for (port, bindings) in ports {
        let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
        let Ok(container_port) = number.parse() else {
            continue;
        };
        for binding in bindings.unwrap_or_default() {
            let Some(Ok(host_port)) = binding.host_port.map(|port| port.parse()) else {
                continue;
            };
            published.push(PublishedPort {
                container_port,
                protocol: protocol.to_owned(),
                host_address: binding.host_ip.unwrap_or_default(),
                host_port,
            });
        }
    }
    published
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_folder_follows_image_store() {
        let folder = |document: serde_json::Value| {
            let folder = image_folder(document.to_string().as_bytes()).unwrap();
            folder.map(|folder| folder.display().to_string())
        };
        let store = serde_json::json!([["driver-type", "io.containerd.snapshotter.v1"]]);
        let root = "/var/lib/docker";
        let classic = serde_json::json!({
            "DockerRootDir": root, "DriverStatus": [["Backing Filesystem", "extfs"]],
            "Containerd": {"Address": "/run/containerd/containerd.sock"},
        });
        assert_eq!(folder(classic).as_deref(), Some(root));
        let own = serde_json::json!({
            "DockerRootDir": root, "DriverStatus": store, "Containerd": {"Address": "/var/run/docker/containerd/containerd.sock"},
        });
        assert_eq!(folder(own).as_deref(), Some(root));
        let machines = serde_json::json!({
            "DockerRootDir": root, "DriverStatus": store, "Containerd": {"Address": "/run/containerd/containerd.sock"},
        });
        assert_eq!(folder(machines).as_deref(), Some("/var/lib/containerd"));
        assert_eq!(folder(serde_json::json!({"DockerRootDir": ""})), None);
        assert_eq!(folder(serde_json::json!({"DriverStatus": null})), None);
    }

    #[test]
    fn unknown_fields_are_kept() {
        let document = serde_json::json!({
            "Id": "ab", "Name": "/ws-a", "Image": "sha256:cd", "Created": "2026-11-23T10:00:00.123456789Z",
            "State": {"Status": "running", "ExitCode": 0, "Error": "", "StartedAt": "2026-11-23T10:00:01Z"},
            "Config": {"Image": "x:latest", "MacAddress": "02:42:ac:11:00:09", "FromTheFuture": {"a": 1}},
            "HostConfig": {"NewKnob": [1]},
            "NetworkSettings": {"Ports": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "49153"}], "9/udp": null}, "Networks": {}},
        });
        let container = container(document.to_string().as_bytes()).unwrap();
        assert_eq!(container.name, "ws-a");
        assert_eq!(container.created.as_second(), 1_795_428_000);
        assert_eq!(container.config["FromTheFuture"]["a"], 1);
        assert_eq!(container.config["MacAddress"], "02:42:ac:11:00:09");
        assert_eq!(container.host_config["NewKnob"][0], 1);
        assert_eq!(container.error, None);
        assert_eq!(container.published_ports.len(), 1);
        assert_eq!(container.published_ports[0].host_port, 49153);
    }

    /// As Docker 28.5 responds with the containerd image store, without fields that Refit does not read.
    #[test]
    fn attestations_are_no_platform_manifests() {
        let (amd, arm) = ("sha256:a", "sha256:b");
        let manifest = |digest: &str, architecture: &str, kind: &str, available: bool| {
            serde_json::json!({
                "ID": digest, "Available": available, "Kind": kind,
                "Descriptor": {"digest": digest, "size": 421, "platform": {"os": "linux", "architecture": architecture}},
            })
        };
        let document = serde_json::json!({ "Id": "sha256:c", "Manifests": [
            manifest(amd, "amd64", "image", true),
            manifest(arm, "arm64", "image", false),
            manifest("sha256:d", "unknown", "attestation", true),
        ]});
        let parsed = platform_manifests(document.to_string().as_bytes()).unwrap();
        let expected = PlatformManifest {
            digest: amd.into(),
            os: "linux".into(),
            architecture: "amd64".into(),
        };
        assert_eq!(parsed, [expected]);
        // Older engines, and other stores, leave it out.
        assert_eq!(platform_manifests(b"{}").unwrap(), []);
    }

    #[test]
    fn images_with_other_index_have_same_content() {
        let read = |id: &str, command: &str, layers: serde_json::Value| {
            let document = serde_json::json!({
                "Id": id, "Os": "linux", "Architecture": "amd64", "Created": "2026-01-01T00:00:00Z",
                "RepoDigests": [format!("ghcr.io/acme/app@{id}")],
                "Config": {"Cmd": [command]}, "RootFS": {"Type": "layers", "Layers": layers},
            });
            image(document.to_string().as_bytes()).unwrap()
        };
        let layers = || serde_json::json!(["sha256:1", "sha256:2"]);
        let old = read("sha256:a", "run", layers());
        assert!(old.is_named_by_manifest());
        assert!(old.has_content_of(&read("sha256:b", "run", layers())));
        assert!(!old.has_content_of(&read("sha256:b", "serve", layers())));
        let other = serde_json::json!(["sha256:1", "sha256:3"]);
        assert!(!old.has_content_of(&read("sha256:b", "run", other)));
        // Nothing is known about either.
        let bare = |id| read(id, "run", serde_json::Value::Null);
        assert!(!bare("sha256:a").has_content_of(&bare("sha256:b")));
    }

    #[test]
    fn year_one_is_no_start_time() {
        assert_eq!(parse_time("0001-01-01T00:00:00Z"), None);
    }
}
