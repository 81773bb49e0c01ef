//! The container engine as Refit uses it: a small set of operations, and their errors.
//!
//! Each operation does one thing and knows nothing of earlier ones; the order and the rollback are in `refit_recreate`.
//! [`docker`] is the only implementation that talks to an engine, and [`address`] finds it.

#![forbid(unsafe_code)]

pub mod address;
pub mod docker;
pub mod operations;
pub mod permissions;
pub mod probe;
mod refusal;
pub mod ssh;
pub mod tls;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use refit_model::container::{
    Container, ContainerId, ContainerName, ContainerSummary, Image, Network, Object,
    PlatformManifest,
};
use refit_model::diagnostic::Hints;
use refit_model::image::{ImageId, ImageRef, Platform};
use refit_model::pull::LayerProgress;
use refit_model::secret::Login;

use self::permissions::{RawAnswer, RawCall};
use self::ssh::SshError;
use self::tls::TlsError;

/// The request to create a container: its configuration, and the networks it is connected to.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateRequest {
    /// `Config` in the form of the engine's API, including `Image`.
    pub config: Object,
    pub host_config: Object,
    /// The endpoint that is created with the container. Engines before API 1.44 accept one; Refit connects the others
    /// afterwards, before the start, on every engine alike.
    pub endpoint: Option<(String, Object)>,
}

/// The facts that an engine reports about itself.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EngineVersion {
    /// `20.10.24`
    pub engine: String,
    /// The API version that Refit uses with it, `1.41`.
    pub api: String,
    /// `linux/amd64`
    pub platform: String,
    /// For example `Podman Engine`, if the engine reports it.
    pub product: Option<String>,
}

/// An image that no tag points to any more.
#[derive(Clone, Debug)]
pub struct UnnamedImage {
    pub id: ImageId,
    /// The creation time in seconds since the Unix epoch, as its builder set it.
    pub created: i64,
    /// `repository@sha256:…` that it was pulled from. Empty if it was built on this machine, and on Docker 28 with the
    /// containerd image store once the tag has moved.
    pub repo_digests: Vec<String>,
}

/// How the engine removes a container. It keeps anonymous volumes unless the variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The engine refuses the removal while the container runs.
    IfStopped,
    /// The engine kills the container first if it runs.
    Force,
    /// Like `Force`, and the engine also removes the anonymous volumes that were created for the container. For a discarded
    /// replacement; the volumes that it took over from the old container are mounted by name, and stay.
    Discard,
}

/// How the engine stops a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// With the container's own stop signal and stop timeout, after which the engine kills it. `limit` is how long that may
    /// take.
    Graceful { limit: Duration },
    /// Kills it at once. For a failed replacement, while nothing runs under the name.
    Immediate,
}

/// The operations of a container engine. Callers name a container by its full id; the only lookup by name returns exactly that
/// name or nothing, because an engine that does not find a name falls back to ids that start with it.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Returns the engine's address, for messages.
    fn address(&self) -> &str;
    async fn version(&self) -> Result<EngineVersion, EngineError>;

    /// Lists all containers, in any state.
    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError>;
    /// Inspects a container. A response about another container is an error.
    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError>;
    /// Finds the container that has exactly this name, in any state.
    async fn find_by_name(
        &self,
        name: &ContainerName,
    ) -> Result<Option<ContainerSummary>, EngineError>;
    /// Checks whether the engine lists this container, in any state: a second opinion if [`Engine::inspect`] returned 404,
    /// which a proxy may return for any container.
    async fn is_listed(&self, container: &ContainerId) -> Result<bool, EngineError>;
    /// Returns the time by the engine's clock.
    async fn clock(&self) -> Result<jiff::Timestamp, EngineError>;
    /// Streams one item each time the container exits, is removed or changes its health, from `since` on by the engine's clock.
    /// The item does not say what happened: [`Engine::inspect`] does. The stream replaces polling: it has no time limit, may
    /// end at any time, and a busy engine may drop an event.
    fn events(
        &self,
        container: &ContainerId,
        since: jiff::Timestamp,
    ) -> BoxStream<'_, Result<(), EngineError>>;
    /// Streams the engine's events about itself, which are few: it ends when the engine goes away. It has no time limit.
    fn daemon_events(&self) -> BoxStream<'_, Result<(), EngineError>>;
    /// Returns the folder with the images, if the engine is on this machine and reports it.
    async fn image_folder(&self) -> Result<Option<PathBuf>, EngineError> {
        Ok(None)
    }
    /// Inspects an image by reference or id; only images on this machine.
    async fn image(&self, image: &str) -> Result<Image, EngineError>;
    /// Lists the manifests of an image that can run here, one for each platform. Empty if the engine keeps no manifests, or
    /// does not report them.
    async fn platform_manifests(
        &self,
        image: &ImageId,
    ) -> Result<Vec<PlatformManifest>, EngineError>;

    /// Pulls an image and reads the response to its end; an error inside the stream is an error. Returns the digest of the
    /// pulled image if the engine reports it: Docker does, Podman does not.
    async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        login: Option<&Login>,
        progress: &(dyn Fn(LayerProgress) + Send + Sync),
    ) -> Result<Option<String>, PullError>;
    /// Returns the digest that the registry serves under this reference now. The request goes through the engine, so its
    /// mirrors, proxies and insecure registries apply. Transfers no layer.
    async fn remote_digest(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
    ) -> Result<String, PullError>;

    /// Lists images that no tag points to any more.
    async fn unnamed_images(&self) -> Result<Vec<UnnamedImage>, EngineError>;
    /// Removes an image. The engine refuses that while any container uses it.
    async fn remove_image(&self, image: &ImageId) -> Result<(), EngineError>;

    async fn create(
        &self,
        name: &ContainerName,
        request: &CreateRequest,
        platform: Option<&Platform>,
    ) -> Result<ContainerId, EngineError>;
    async fn connect(
        &self,
        container: &ContainerId,
        network: &str,
        endpoint: &Object,
    ) -> Result<(), EngineError>;
    async fn disconnect(&self, container: &ContainerId, network: &str) -> Result<(), EngineError>;
    /// Lists all networks.
    async fn networks(&self) -> Result<Vec<Network>, EngineError>;
    async fn start(&self, container: &ContainerId) -> Result<(), EngineError>;
    /// Stops a container, and returns when it has exited. A container that does not run stays as it is.
    async fn stop(&self, container: &ContainerId, mode: StopMode) -> Result<(), EngineError>;
    async fn rename(
        &self,
        container: &ContainerId,
        name: &ContainerName,
    ) -> Result<(), EngineError>;
    async fn remove(&self, container: &ContainerId, removal: Removal) -> Result<(), EngineError>;
    /// Sends a call unchanged. A response of any status is `Ok`: [`permissions`] checks who responds, and with what.
    async fn send(&self, call: &RawCall) -> Result<RawAnswer, EngineError>;
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation failed. `action` completes "cannot …" and names the object.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot reach the container engine at `{address}`")]
    Unreachable { address: String, source: Cause },
    #[error(
        "the container engine at `{address}` is too old: it speaks API {version}, {minimum} is needed"
    )]
    TooOld {
        address: String,
        version: String,
        minimum: &'static str,
    },
    #[error("cannot {action}: the engine did not answer within {} s", .limit.as_secs())]
    TimedOut { action: String, limit: Duration },
    #[error("cannot {action}: there is no such thing on the engine")]
    NotFound { action: String, source: Cause },
    #[error("cannot {action}: something is in the way")]
    Conflict { action: String, source: Cause },
    #[error("cannot {action}")]
    Refused {
        action: String,
        status: u16,
        source: Cause,
    },
    #[error("cannot {action}: the connection to the engine broke")]
    Broken { action: String, source: Cause },
    #[error("cannot {action}: the engine's answer makes no sense")]
    Nonsense { action: String, source: Cause },
}

impl EngineError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Reports whether a later retry may help.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. }
        )
    }

    /// Reports whether nothing listens at the engine's address.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Broken { source, .. } => matches!(
                io_kind(source.as_ref()),
                Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
            ),
            Self::TooOld { .. }
            | Self::TimedOut { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::Refused { .. }
            | Self::Nonsense { .. } => false,
        }
    }
}

impl Hints for EngineError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreachable { source, .. } if as_ssh_error(source.as_ref()).is_some() => {
                as_ssh_error(source.as_ref()).map(SshError::hints).unwrap_or_default()
            }
            Self::Unreachable { source, .. } if source.is::<TlsError>() => {
                source.downcast_ref().map(TlsError::hints).unwrap_or_default()
            }
            Self::Unreachable { source, .. } => match io_kind(source.as_ref()) {
                Some(std::io::ErrorKind::NotFound) => vec![
                    "the socket does not exist: is the engine running on this machine?".into(),
                    "for a rootless or remote engine, set `--engine` or `DOCKER_HOST`".into(),
                ],
                Some(std::io::ErrorKind::PermissionDenied) => vec![
                    "the socket exists but this user may not open it: join the `docker` group, or run as a user who can".into(),
                ],
                Some(std::io::ErrorKind::ConnectionRefused) => {
                    vec!["nothing listens there: is the engine running, and is the port right?".into()]
                }
                _ => vec!["`refit doctor` shows which engine was chosen and why".into()],
            },
            Self::TooOld { .. } => vec!["Docker 20.10 and Podman 4 are the oldest engines that Refit works with".into()],
            Self::TimedOut { .. } => vec!["the limit is `[limits] engine_seconds`".into()],
            Self::Refused { status: 401 | 403 | 405 | 407, .. } => vec![
                "an engine lets whoever reaches its socket do everything: a socket proxy or an authorization plugin before it has refused this call, and has to let it through".into(),
            ],
            Self::NotFound { .. } | Self::Conflict { .. } | Self::Refused { .. } | Self::Broken { .. } | Self::Nonsense { .. } => {
                vec![]
            }
        }
    }
}

/// Why a pull failed, as far as the responses of engines and registries show it.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("registry `{registry}` has no image `{image}`")]
    NotFound {
        registry: String,
        image: ImageRef,
        source: Cause,
    },
    #[error("image `{image}` has no version for {}", match .platform { Some(platform) => format!("platform `{platform}`"), None => "the engine's platform".to_owned() })]
    NoPlatform {
        image: ImageRef,
        /// If it is known.
        platform: Option<String>,
        source: Cause,
    },
    #[error("registry `{registry}` refused `{image}`")]
    Unauthorized {
        registry: String,
        image: ImageRef,
        credentials_sent: bool,
        source: Cause,
    },
    #[error("registry `{registry}` limits the rate: `{image}` was not pulled")]
    RateLimited {
        registry: String,
        image: ImageRef,
        retry_after: Option<Duration>,
        source: Cause,
    },
    #[error("no space left on the engine's machine for `{image}`")]
    NoSpace { image: ImageRef, source: Cause },
    #[error("cannot reach registry `{registry}` for `{image}`")]
    RegistryUnavailable {
        registry: String,
        image: ImageRef,
        source: Cause,
    },
    #[error("pulling `{image}` took longer than {} s and was given up", .limit.as_secs())]
    TimedOut { image: ImageRef, limit: Duration },
    #[error("pulling `{image}` ended before the engine said that it was complete")]
    Incomplete { image: ImageRef },
    #[error("cannot pull `{image}`")]
    Other { image: ImageRef, source: Cause },
    #[error("cannot pull `{image}`")]
    Engine {
        image: ImageRef,
        source: EngineError,
    },
    #[error("cannot read the login for registry `{registry}`, so `{image}` was not pulled")]
    Credentials {
        registry: String,
        image: ImageRef,
        source: Cause,
    },
}

impl Hints for PullError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NotFound { .. } => vec![
                "check the name and the tag: is the image published yet?".into(),
                "a private image and a missing one can look alike from outside".into(),
            ],
            Self::NoPlatform { .. } => vec![
                "`docker manifest inspect IMAGE` lists its platforms; `[images] platform` asks for another one".into(),
            ],
            Self::Unauthorized { registry, credentials_sent: false, .. } => vec![
                format!("no credentials for `{registry}` were found: run `docker login {registry}`, or set `GHCR_USER` and `GHCR_TOKEN` for GHCR"),
                "a private image and a missing one look alike from outside: check the name".into(),
            ],
            Self::Unauthorized { registry, credentials_sent: true, .. } => vec![
                format!("the login for `{registry}` was sent and refused: it may have expired, or lack `read:packages`"),
                format!("if the image is public, `docker logout {registry}` lets it be pulled without a login"),
            ],
            Self::RateLimited { retry_after: Some(after), .. } => vec![format!("try again in {} s", after.as_secs())],
            Self::RateLimited { retry_after: None, .. } => vec!["try again later; a login usually raises the limit".into()],
            Self::NoSpace { .. } => vec![
                "`docker system df` shows what takes the room".into(),
                "`[images] keep_previous` says how many old images Refit leaves".into(),
            ],
            Self::RegistryUnavailable { .. } => vec!["the engine asks the registry, from its own machine: check that it can".into()],
            Self::TimedOut { .. } => vec!["the limit is `[limits] pull_seconds`, for each image".into()],
            Self::Credentials { .. } => vec![
                "the login comes from the Docker CLI's `config.json`: `docker login` writes it anew".into(),
                "`refit doctor` shows where each login is taken from".into(),
            ],
            Self::Engine { source, .. } => source.hints(),
            Self::Incomplete { .. } | Self::Other { .. } => vec![],
        }
    }
}

/// Returns the SSH error in a cause, if it is one.
fn as_ssh_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a SshError> {
    error
        .downcast_ref::<std::sync::Arc<SshError>>()
        .map(AsRef::as_ref)
}

/// Returns the kind of the first I/O error in a chain of causes.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}
