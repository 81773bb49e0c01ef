//! What is: containers as the engine sees them, and what their programs left behind.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bollard::models::{ContainerInspectResponse, HealthStatusEnum};
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, InspectContainerOptions, LogsOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::World;
use crate::bounded::{self, CALL, within};
use crate::container::ContainerSpec;
use crate::image::{ImageSpec, PORT};

/// From start to the `listen` stamp is milliseconds; tests of slow starters stay below this.
const STAMP: Duration = Duration::from_secs(30);
/// The program answers as soon as it is connected.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two attempts to reach a program that does not listen yet.
const LISTENS_SOON: Duration = Duration::from_millis(10);
/// The most a program may say in one answer: a version.
const ANSWER_BYTES: u64 = 1024;
/// Where a volume is mounted to be read.
const READING_PLACE: &str = "/refit-tests-volume";

/// A line that `stamp` wrote: `<event> <unix-ms> <version> [arguments]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// `start`, `listen`, `stop`, `exit` or `failed`.
    pub event: String,
    pub at_ms: u64,
    pub version: String,
    /// The program's arguments on `start`, a reason on `failed`.
    pub more: String,
}

impl World {
    /// By name or id.
    pub async fn inspect(&self, container: &str) -> anyhow::Result<ContainerInspectResponse> {
        let call = self
            .docker()
            .inspect_container(container, None::<InspectContainerOptions>);
        within(CALL, &format!("inspect container {container}"), call).await
    }

    pub async fn container_exists(&self, container: &str) -> anyhow::Result<bool> {
        let call = async {
            match self
                .docker()
                .inspect_container(container, None::<InspectContainerOptions>)
                .await
            {
                Err(error) if bounded::is_absent(&error) => Ok(false),
                other => other.map(|_| true),
            }
        };
        within(CALL, &format!("look for container {container}"), call).await
    }

    /// The names of all containers of this world, running or not, sorted: to see that nobody left another one.
    pub async fn containers(&self) -> anyhow::Result<Vec<String>> {
        let mut names: Vec<_> = self
            .own_containers()
            .await?
            .iter()
            .map(super::clean::name)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Awaits the program's `listen` stamp, or fails as soon as the container has ended without one.
    pub async fn until_listening(&self, container: &str) -> anyhow::Result<()> {
        self.until_stamped(container, "listen").await
    }

    /// Awaits that its health check has passed.
    pub async fn until_healthy(&self, container: &str) -> anyhow::Result<()> {
        let healthy = async {
            loop {
                let state = self.inspect(container).await?.state.unwrap_or_default();
                if state.health.and_then(|health| health.status) == Some(HealthStatusEnum::HEALTHY)
                {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LISTENS_SOON).await;
            }
        };
        within(STAMP, &format!("see {container} become healthy"), healthy).await
    }

    /// The same for any stamp.
    pub async fn until_stamped(&self, container: &str, event: &str) -> anyhow::Result<()> {
        let options = LogsOptionsBuilder::new().follow(true).stdout(true).build();
        let mut output = self.docker().logs(container, Some(options));
        let mut text = String::new();
        let stamped = async {
            // The log ends when the container does.
            while let Some(chunk) = output.next().await {
                text.push_str(&String::from_utf8_lossy(&chunk?.into_bytes()));
                if stamps(&text).iter().any(|stamp| stamp.event == event) {
                    return Ok(());
                }
            }
            Err(anyhow!(
                "it ended without the stamp `{event}`; its log is\n{text}"
            ))
        };
        let what = format!("see the stamp `{event}` of container {container}");
        within(STAMP, &what, stamped).await
    }

    /// All of a container's output.
    pub async fn logs(&self, container: &str) -> anyhow::Result<String> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let reading = self.docker().logs(container, Some(options)).try_fold(
            String::new(),
            |mut text, chunk| async move {
                text.push_str(&String::from_utf8_lossy(&chunk.into_bytes()));
                Ok(text)
            },
        );
        within(
            CALL,
            &format!("read the log of container {container}"),
            reading,
        )
        .await
    }

    /// The stamps in a container's log. A replaced container takes its own with it: then use a volume and `STAMP_FILE`.
    pub async fn stamps(&self, container: &str) -> anyhow::Result<Vec<Stamp>> {
        Ok(stamps(&self.logs(container).await?))
    }

    /// The stamps in a file of a volume, over all containers that wrote there.
    pub async fn volume_stamps(&self, volume: &str, path: &str) -> anyhow::Result<Vec<Stamp>> {
        Ok(stamps(&self.read_volume_file(volume, path).await?))
    }

    /// A file of a volume, `path` counting from the volume's top. Works whether or not anybody has it mounted.
    pub async fn read_volume_file(&self, volume: &str, path: &str) -> anyhow::Result<String> {
        // Through a container that is never started: an engine in its own mount namespace shows us nothing else.
        let image = self.load(ImageSpec::new("reader")).await?;
        let name = format!("{}-reader-{}", self.prefix(), self.next_build());
        let reader = self
            .create(ContainerSpec::named(&name, &image).volume(volume, READING_PLACE))
            .await?;
        let text = self
            .read_container_file(
                &reader.id,
                &format!("{READING_PLACE}/{}", path.trim_start_matches('/')),
            )
            .await;
        self.remove_container(&reader.id).await?;
        self.untag(&image).await?;
        text.with_context(|| format!("cannot read {path} in volume {volume}"))
    }

    /// A file of a container, running or not.
    pub async fn read_container_file(&self, container: &str, path: &str) -> anyhow::Result<String> {
        let options = DownloadFromContainerOptionsBuilder::new()
            .path(path)
            .build();
        let chunks = self
            .docker()
            .download_from_container(container, Some(options));
        let bytes = chunks.try_fold(Vec::new(), |mut bytes, chunk| async move {
            bytes.extend_from_slice(&chunk);
            Ok(bytes)
        });
        let bytes = within(
            CALL,
            &format!("read {path} of container {container}"),
            bytes,
        )
        .await?;
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut file = archive
            .entries()?
            .next()
            .with_context(|| format!("cannot read {path}: the engine sent an empty archive"))??;
        let mut text = String::new();
        file.read_to_string(&mut text)
            .with_context(|| format!("cannot read {path} of container {container} as text"))?;
        Ok(text)
    }

    /// A running container's address in its first network that gave it one; this machine reaches it through the bridge.
    pub async fn address(&self, container: &str) -> anyhow::Result<IpAddr> {
        let networks = self
            .inspect(container)
            .await?
            .network_settings
            .and_then(|settings| settings.networks);
        let addresses = networks
            .unwrap_or_default()
            .into_values()
            .filter_map(|endpoint| endpoint.ip_address);
        let address = addresses.filter(|address| !address.is_empty()).min();
        let address = address.with_context(|| {
            format!(
                "cannot find an address of container {container}: is it running, and in a network?"
            )
        })?;
        address
            .parse()
            .with_context(|| format!("cannot read the address {address} of container {container}"))
    }

    /// What the program says to whoever connects: its version. Read a whole line, because an engine's proxy accepts
    /// connections before the program does.
    pub async fn read_line(&self, container: &str) -> anyhow::Result<String> {
        self.read_line_at(SocketAddr::new(self.address(container).await?, PORT))
            .await
    }

    /// The same at any address, for instance a published port.
    pub async fn read_line_at(&self, address: SocketAddr) -> anyhow::Result<String> {
        let asking = async {
            // An engine has started a program some milliseconds before it listens.
            let stream = loop {
                match TcpStream::connect(address).await {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                        tokio::time::sleep(LISTENS_SOON).await;
                    }
                    connected => break connected?,
                }
            };
            let mut line = String::new();
            stream.take(ANSWER_BYTES).read_to_string(&mut line).await?;
            match line.strip_suffix('\n') {
                Some(line) => Ok(line.to_owned()),
                None => bail!("it hung up after {line:?}"),
            }
        };
        within(ANSWER, &format!("read a line from {address}"), asking).await
    }
}

/// Reads stamps, and steps over lines that are something else.
pub fn stamps(text: &str) -> Vec<Stamp> {
    let stamp = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let (event, at, version) = (words.next()?, words.next()?, words.next()?);
        let more = words.next().unwrap_or_default();
        Some(Stamp {
            event: event.to_owned(),
            at_ms: at.parse().ok()?,
            version: version.to_owned(),
            more: more.to_owned(),
        })
    };
    text.lines().filter_map(stamp).collect()
}
