//! The container engine as we use it: a narrow set of dumb verbs, and the errors they end in.
//!
//! A verb does one thing and knows nothing of what came before it; order and undoing live in [`crate::recreate`]. Read
//! [`docker`] for the one implementation that talks to an engine, [`address`] for how it is found.

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

/// What is sent to the engine to make a container: its configuration, and the networks it is attached to.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateRequest {
    /// `Config` in the shape of the engine's interface, `Image` included.
    pub config: Object,
    pub host_config: Object,
    /// The endpoint that is made with the container. Engines before API 1.44 take one; the others are connected afterwards,
    /// before the start, on every engine alike.
    pub endpoint: Option<(String, Object)>,
}

/// What an engine said of itself.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EngineVersion {
    /// `20.10.24`
    pub engine: String,
    /// What we speak with it, `1.41`.
    pub api: String,
    /// `linux/amd64`
    pub platform: String,
    /// For example `Podman Engine`, where the engine says.
    pub product: Option<String>,
}

/// An image that no tag means any more.
#[derive(Clone, Debug)]
pub struct UnnamedImage {
    pub id: ImageId,
    /// Seconds since the Unix epoch, as its builder says.
    pub created: i64,
    /// `repository@sha256:…`, where it was pulled from. Empty where it was built here, and on Docker 28 with the containerd image
    /// store once the tag has moved.
    pub repo_digests: Vec<String>,
}

/// How a container is removed. Its anonymous volumes are kept unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Refused by the engine while it runs.
    IfStopped,
    /// Killed first, where it runs.
    Force,
    /// The same, and the anonymous volumes that were made for it go with it. For a replacement that is not to be; volumes that
    /// it took over from the old container are mounted by name, and stay.
    Discard,
}

/// How a container is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// By its own stop signal and its own stop timeout, after which the engine kills it. `limit` is how long that may take.
    Graceful { limit: Duration },
    /// Killed at once. For a replacement that failed, while nothing runs under the name.
    Immediate,
}

/// The verbs. A container is named by its whole id; the one lookup by name answers with exactly that name or with nothing, because
/// an engine that is asked for a name falls back to ids that begin with it.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Where it is, for people.
    fn address(&self) -> &str;
    async fn version(&self) -> Result<EngineVersion, EngineError>;

    /// All of them, in whatever state.
    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError>;
    /// An answer about another container is an error.
    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError>;
    /// The container that has exactly this name, in whatever state.
    async fn find_by_name(
        &self,
        name: &ContainerName,
    ) -> Result<Option<ContainerSummary>, EngineError>;
    /// Whether the engine lists this container, in whatever state: a second opinion where [`Engine::inspect`] was answered 404,
    /// which a proxy says of anything.
    async fn is_listed(&self, container: &ContainerId) -> Result<bool, EngineError>;
    /// What the engine's clock shows.
    async fn clock(&self) -> Result<jiff::Timestamp, EngineError>;
    /// A word each time that the container exits, is removed or changes its health, from `since` on by the engine's clock. What
    /// it was, [`Engine::inspect`] says. For who would have to look again and again: it has no time limit, may end at any time,
    /// and an engine that is busy may leave a word out.
    fn events(
        &self,
        container: &ContainerId,
        since: jiff::Timestamp,
    ) -> BoxStream<'_, Result<(), EngineError>>;
    /// What the engine tells of itself, which is little: for who wants to know when it goes away. The stream ends then. It has no
    /// time limit.
    fn daemon_events(&self) -> BoxStream<'_, Result<(), EngineError>>;
    /// The folder that has the images, where the engine is on this machine and says so.
    async fn image_folder(&self) -> Result<Option<PathBuf>, EngineError> {
        Ok(None)
    }
    /// By reference or id; only what is on this machine.
    async fn image(&self, image: &str) -> Result<Image, EngineError>;
    /// What of an image can run here, a manifest for each platform. Empty where the engine keeps no manifests, or does not say.
    async fn platform_manifests(
        &self,
        image: &ImageId,
    ) -> Result<Vec<PlatformManifest>, EngineError>;

    /// Drained to the end; an error inside the stream is an error. Returns the digest that this pull brought, where the engine
    /// says it: Docker does, Podman does not.
    async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        login: Option<&Login>,
        progress: &(dyn Fn(LayerProgress) + Send + Sync),
    ) -> Result<Option<String>, PullError>;
    /// The digest that the registry serves under this reference now, asked through the engine, so that its mirrors, proxies
    /// and insecure registries count. Transfers no layer.
    async fn remote_digest(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
    ) -> Result<String, PullError>;

    /// Images that no tag means any more.
    async fn unnamed_images(&self) -> Result<Vec<UnnamedImage>, EngineError>;
    /// Refused by the engine while any container refers to it.
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
    /// All of them.
    async fn networks(&self) -> Result<Vec<Network>, EngineError>;
    async fn start(&self, container: &ContainerId) -> Result<(), EngineError>;
    /// Returns when it has exited; a container that does not run is left as it is.
    async fn stop(&self, container: &ContainerId, mode: StopMode) -> Result<(), EngineError>;
    async fn rename(
        &self,
        container: &ContainerId,
        name: &ContainerName,
    ) -> Result<(), EngineError>;
    async fn remove(&self, container: &ContainerId, removal: Removal) -> Result<(), EngineError>;
    /// Sends a call as it is. An answer of any status is `Ok`: [`permissions`] asks who answers, and with what.
    async fn send(&self, call: &RawCall) -> Result<RawAnswer, EngineError>;
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What an engine did not do. `action` completes "cannot …" and names what it was to be done to.
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

    /// Whether asking again later may help.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. }
        )
    }

    /// Whether nobody listens where the engine should be.
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
            Self::Unreachable { source, .. } if over_ssh(source.as_ref()).is_some() => {
                over_ssh(source.as_ref()).map(SshError::hints).unwrap_or_default()
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

/// Why an image did not come, as far as it can be told from what engines and registries answer.
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
        /// Where it is known.
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

/// The kind of the first I/O error in a chain of causes.
fn over_ssh<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a SshError> {
    error
        .downcast_ref::<std::sync::Arc<SshError>>()
        .map(AsRef::as_ref)
}

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
