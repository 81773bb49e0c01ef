//! The engine over its HTTP interface, by bollard: Docker from 20.10 on, and Podman's compatible service.
//!
//! The only place that names bollard. It knows how each verb is said and what each refusal means, and nothing of order or
//! policy. What is carried whole goes through `raw`, and is read by `convert`.

mod convert;
mod pull;
mod raw;
mod ssh;

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptions, ListImagesOptions, RemoveContainerOptions, RemoveImageOptions,
    RenameContainerOptions, StartContainerOptions, StopContainerOptions,
};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::address::{EngineAddress, Way};
use super::tls::{self, TlsError};
use super::{
    CreateRequest, Engine, EngineError, EngineVersion, LayerProgress, PullError, Removal,
    UnnamedImage,
};
use crate::container::{Container, ContainerId, Image, Listed, Object, State};
use crate::image::{ImageId, ImageRef, Platform};
use crate::registry::refusal::{Refusal, classify};
use crate::secret::{ExposeSecret as _, Login};

/// What the system calls a file that is not there, on Unix and Windows alike.
const ENOENT: i32 = 2;

/// The oldest interface we speak: Docker 20.10, which Debian 12 ships.
const API_MINIMUM: &str = "1.41";

/// How long the engine may take to say who it is. A healthy one needs milliseconds; Podman was seen to need four seconds.
const CONNECT_SECONDS_MAX: u64 = 15;

/// Seen with Podman 4.3.
const NO_DISTRIBUTION: &str = "this engine, Podman, cannot ask a registry what is behind a tag without pulling it, so a plan cannot tell; a refresh pulls, and can";

/// What the engine may take beyond a container's own stop timeout to kill it and to tell us.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Any call but a pull; a stop has the container's own stop timeout on top.
    pub call: Duration,
    /// One pull, from the request to the last line of the answer.
    pub pull: Duration,
}

/// An engine that is connected to on first use, so that a daemon can start before its engine does.
pub struct DockerEngine {
    address: EngineAddress,
    limits: CallLimits,
    client: OnceCell<Client>,
}

#[derive(Clone)]
struct Client {
    docker: Docker,
    version: Arc<EngineVersion>,
}

impl Client {
    fn is_podman(&self) -> bool {
        let product = self.version.product.as_deref();
        product.is_some_and(|product| product.contains("Podman"))
    }
}

impl DockerEngine {
    pub fn new(address: EngineAddress, limits: CallLimits) -> Self {
        Self {
            address,
            limits,
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> Result<&Client, EngineError> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client, EngineError> {
        let unreachable = |source: Error| EngineError::Unreachable {
            address: self.address.url.clone(),
            source: self.in_the_way(source),
        };
        if let Way::Tls(files) = &self.address.way {
            files.check().map_err(|error| EngineError::Unreachable {
                address: self.address.url.clone(),
                source: Box::new(error),
            })?;
        }
        let docker = self.open().map_err(unreachable)?;
        let seconds = match &self.address.way {
            // A log-in comes before the engine's own time.
            Way::Ssh(_) => ssh::CONNECT_SECONDS_MAX + CONNECT_SECONDS_MAX,
            Way::Local | Way::Plain | Way::Tls(_) => CONNECT_SECONDS_MAX,
        };
        let answer = tokio::time::timeout(Duration::from_secs(seconds), docker.version()).await;
        let said = match answer {
            Ok(answer) => answer.map_err(unreachable)?,
            Err(_) => {
                let source = format!("no answer within {seconds} s").into();
                return Err(EngineError::Unreachable {
                    address: self.address.url.clone(),
                    source,
                });
            }
        };
        let newest = docker.client_version().to_string();
        let offered = said.api_version.unwrap_or_default();
        if api(&offered) < api(API_MINIMUM) {
            let (address, minimum) = (self.address.url.clone(), API_MINIMUM);
            return Err(EngineError::TooOld {
                address,
                version: offered,
                minimum,
            });
        }
        let version = if api(&offered) < api(&newest) {
            offered
        } else {
            newest
        };
        let component = said
            .components
            .as_ref()
            .and_then(|components| components.first())
            .map(|component| component.name.clone());
        let prefix = version.clone();
        Ok(Client {
            docker: docker.with_request_modifier(move |request| raw::versioned(request, &prefix)),
            version: Arc::new(EngineVersion {
                engine: said.version.unwrap_or_default(),
                api: version,
                platform: format!(
                    "{}/{}",
                    said.os.unwrap_or_default(),
                    said.arch.unwrap_or_default()
                ),
                product: component,
            }),
        })
    }

    fn open(&self) -> Result<Docker, Error> {
        let url = self.address.url.as_str();
        // bollard's own limit is for the first byte of an answer; ours are per call and tighter, so its must not fire first.
        let seconds =
            self.limits.pull.as_secs().max(self.limits.call.as_secs()) + STOP_MARGIN.as_secs();
        let version = bollard::API_DEFAULT_VERSION;
        match &self.address.way {
            Way::Local => Docker::connect_with_socket(url, seconds, version),
            Way::Plain => Docker::connect_with_http(url, seconds, version),
            Way::Tls(tls) => {
                // Where there is none it sends none.
                let none = Path::new("");
                let client = tls.client.as_ref();
                let (key, cert) =
                    client.map_or((none, none), |it| (it.key.as_path(), it.cert.as_path()));
                Docker::connect_with_ssl(url, key, cert, &tls.ca, seconds, version)
            }
            Way::Ssh(destination) => ssh::open(destination.clone(), seconds, version),
        }
    }

    /// Why the first call came to nothing.
    fn in_the_way(&self, error: Error) -> Box<dyn std::error::Error + Send + Sync> {
        match (&self.address.way, error) {
            (
                Way::Plain,
                Error::DockerResponseServerError {
                    status_code: 400,
                    message,
                },
            ) if tls::is_spoken_only(&message) => Box::new(TlsError::Only),
            (Way::Tls(files), error) => {
                let error = plain(error);
                match files.explain(error.as_ref(), &self.address.url) {
                    Some(explained) => Box::new(explained),
                    None => error,
                }
            }
            (_, error) => plain(error),
        }
    }

    /// One call: within its time, and with its errors in our words. `action` completes "cannot …".
    async fn call<T>(
        &self,
        limit: Duration,
        action: impl FnOnce() -> String,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(engine_error(action(), error)),
            Err(_) => Err(EngineError::TimedOut {
                action: action(),
                limit,
            }),
        }
    }

    async fn document(
        &self,
        action: impl FnOnce() -> String,
        request: raw::RawRequest,
    ) -> Result<bytes::Bytes, EngineError> {
        let client = self.client().await?;
        self.call(
            self.limits.call,
            action,
            raw::document(&client.docker, &client.version.api, request),
        )
        .await
    }
}

#[async_trait]
impl Engine for DockerEngine {
    fn address(&self) -> &str {
        &self.address.url
    }

    async fn version(&self) -> Result<EngineVersion, EngineError> {
        let client = self.client().await?;
        // The cached answer says who it is; a ping says whether it still is.
        self.call(
            self.limits.call,
            || "reach the engine".into(),
            client.docker.ping(),
        )
        .await?;
        Ok((*client.version).clone())
    }

    async fn containers(&self) -> Result<Vec<Listed>, EngineError> {
        let client = self.client().await?;
        let options = ListContainersOptions {
            all: true,
            ..ListContainersOptions::default()
        };
        let found = self
            .call(
                self.limits.call,
                || "list containers".into(),
                client.docker.list_containers(Some(options)),
            )
            .await?;
        let listed = found.into_iter().filter_map(|summary| {
            // A container that is being removed can be listed without a name.
            let name = summary
                .names?
                .into_iter()
                .find(|name| name.matches('/').count() == 1)?;
            let labels = summary.labels.unwrap_or_default().into_iter().collect();
            Some(Listed {
                id: ContainerId::new(summary.id?),
                name: name.trim_start_matches('/').to_owned(),
                labels,
                state: summary.state.and_then(|state| State::parse(state.as_ref())),
                network_mode: summary
                    .host_config
                    .and_then(|config| config.network_mode)
                    .unwrap_or_default(),
            })
        });
        Ok(listed.collect())
    }

    async fn inspect(&self, container: &str) -> Result<Container, EngineError> {
        let action = || format!("inspect container `{container}`");
        let document = self
            .document(
                action,
                raw::RawRequest::get(format!("/containers/{container}/json")),
            )
            .await?;
        convert::container(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })
    }

    fn events(
        &self,
        container: &ContainerId,
        since: jiff::Timestamp,
    ) -> BoxStream<'_, Result<(), EngineError>> {
        let action = format!("follow container `{}`", container.short());
        let request = raw::RawRequest {
            query: events_query(container, since),
            ..raw::RawRequest::get("/events")
        };
        let opened = async move {
            let client = self.client().await?;
            let told = raw::stream(&client.docker, &client.version.api, request);
            Ok(told.map(move |part| match part {
                Ok(_) => Ok(()),
                Err(error) => Err(engine_error(action.clone(), error)),
            }))
        };
        stream::once(opened).try_flatten().boxed()
    }

    async fn image(&self, image: &str) -> Result<Image, EngineError> {
        let action = || format!("inspect image `{image}`");
        let document = self
            .document(
                action,
                raw::RawRequest::get(format!("/images/{image}/json")),
            )
            .await?;
        convert::image(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })
    }

    async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        login: Option<&Login>,
        progress: &(dyn Fn(LayerProgress) + Send + Sync),
    ) -> Result<(), PullError> {
        let client = self.client().await.map_err(|source| PullError::Engine {
            image: image.clone(),
            source,
        })?;
        let request = raw::RawRequest {
            query: pull::query(image, platform),
            registry_auth: login.map(registry_auth),
            ..raw::RawRequest::post("/images/create")
        };
        let lines = raw::stream(&client.docker, &client.version.api, request);
        match tokio::time::timeout(self.limits.pull, pull::drain(lines, progress)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(pull::Failure::Incomplete)) => Err(PullError::Incomplete {
                image: image.clone(),
            }),
            Ok(Err(pull::Failure::Refused(message))) => {
                Err(refused(image, login, Some(200), message))
            }
            Ok(Err(pull::Failure::Call(error))) => Err(self.pull_error(image, login, error)),
            Err(_) => Err(PullError::TimedOut {
                image: image.clone(),
                limit: self.limits.pull,
            }),
        }
    }

    async fn remote_digest(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
    ) -> Result<String, PullError> {
        let client = self.client().await.map_err(|source| PullError::Engine {
            image: image.clone(),
            source,
        })?;
        let request = raw::RawRequest {
            registry_auth: login.map(registry_auth),
            ..raw::RawRequest::get(format!("/distribution/{image}/json"))
        };
        let answer = tokio::time::timeout(
            self.limits.call,
            raw::document(&client.docker, &client.version.api, request),
        )
        .await;
        let document = match answer {
            Ok(Ok(document)) => document,
            // A registry that has no such image says more than that.
            Ok(Err(Error::DockerResponseServerError {
                status_code: 404,
                message,
            })) if client.is_podman() && message.trim() == "Not Found" => {
                return Err(PullError::Other {
                    image: image.clone(),
                    source: NO_DISTRIBUTION.into(),
                });
            }
            Ok(Err(error)) => return Err(self.pull_error(image, login, error)),
            Err(_) => {
                return Err(PullError::TimedOut {
                    image: image.clone(),
                    limit: self.limits.call,
                });
            }
        };
        convert::distribution_digest(&document).map_err(|source| PullError::Other {
            image: image.clone(),
            source: source.into(),
        })
    }

    async fn unnamed_images(&self) -> Result<Vec<UnnamedImage>, EngineError> {
        let client = self.client().await?;
        let filters = HashMap::from([("dangling".to_owned(), vec!["true".to_owned()])]);
        let options = ListImagesOptions {
            digests: true,
            filters: Some(filters),
            ..ListImagesOptions::default()
        };
        let answer = client.docker.list_images(Some(options));
        let found = self
            .call(self.limits.call, || "list images".into(), answer)
            .await?;
        let unnamed = found.into_iter().map(|image| UnnamedImage {
            id: ImageId::new(image.id),
            created: image.created,
            // The engine writes `<none>@<none>` for none.
            repo_digests: image
                .repo_digests
                .into_iter()
                .filter(|digest| !digest.starts_with('<'))
                .collect(),
        });
        Ok(unnamed.collect())
    }

    async fn remove_image(&self, image: &ImageId) -> Result<(), EngineError> {
        let client = self.client().await?;
        let answer = client
            .docker
            .remove_image(image.as_str(), None::<RemoveImageOptions>, None);
        self.call(
            self.limits.call,
            || format!("remove image `{}`", image.short()),
            answer,
        )
        .await
        .map(drop)
    }

    async fn create(
        &self,
        name: &str,
        request: &CreateRequest,
        platform: Option<&Platform>,
    ) -> Result<ContainerId, EngineError> {
        let action = || format!("create container `{name}`");
        let mut body = request.config.clone();
        body.insert(
            "HostConfig".into(),
            Value::Object(request.host_config.clone()),
        );
        if let Some((network, endpoint)) = &request.endpoint {
            body.insert(
                "NetworkingConfig".into(),
                json!({ "EndpointsConfig": { network: endpoint } }),
            );
        }
        let mut query = vec![("name", name.to_owned())];
        query.extend(platform.map(|platform| ("platform", platform.to_string())));
        let request = raw::RawRequest {
            query,
            body: Some(Value::Object(body)),
            ..raw::RawRequest::post("/containers/create")
        };
        let answer = self.document(action, request).await?;

        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
            warnings: Option<Vec<String>>,
        }
        let created: Created =
            serde_json::from_slice(&answer).map_err(|source| EngineError::Nonsense {
                action: action(),
                source: source.into(),
            })?;
        for warning in created.warnings.unwrap_or_default() {
            tracing::warn!(container = name, "the engine warns: {warning}");
        }
        Ok(ContainerId::new(created.id))
    }

    async fn connect(
        &self,
        container: &ContainerId,
        network: &str,
        endpoint: &Object,
    ) -> Result<(), EngineError> {
        let body = json!({ "Container": container.as_str(), "EndpointConfig": endpoint });
        let request = raw::RawRequest {
            body: Some(body),
            ..raw::RawRequest::post(format!("/networks/{network}/connect"))
        };
        let action = || {
            format!(
                "connect container `{}` to network `{network}`",
                container.short()
            )
        };
        self.document(action, request).await.map(drop)
    }

    async fn disconnect(&self, container: &ContainerId, network: &str) -> Result<(), EngineError> {
        let body = json!({ "Container": container.as_str() });
        let request = raw::RawRequest {
            body: Some(body),
            ..raw::RawRequest::post(format!("/networks/{network}/disconnect"))
        };
        let action = || {
            format!(
                "disconnect container `{}` from network `{network}`",
                container.short()
            )
        };
        self.document(action, request).await.map(drop)
    }

    async fn start(&self, container: &ContainerId) -> Result<(), EngineError> {
        let client = self.client().await?;
        let answer = client
            .docker
            .start_container(container.as_str(), None::<StartContainerOptions>);
        self.call(
            self.limits.call,
            || format!("start container `{}`", container.short()),
            answer,
        )
        .await
    }

    async fn stop(
        &self,
        container: &ContainerId,
        its_timeout: Duration,
    ) -> Result<(), EngineError> {
        let client = self.client().await?;
        // Neither signal nor time is given: the container's own hold.
        let answer = client
            .docker
            .stop_container(container.as_str(), None::<StopContainerOptions>);
        let limit = self.limits.call.max(STOP_MARGIN) + its_timeout;
        self.call(
            limit,
            || format!("stop container `{}`", container.short()),
            answer,
        )
        .await
    }

    async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let answer = client.docker.rename_container(
            container.as_str(),
            RenameContainerOptions {
                name: name.to_owned(),
            },
        );
        self.call(
            self.limits.call,
            || format!("rename container `{}` to `{name}`", container.short()),
            answer,
        )
        .await
    }

    async fn remove(&self, container: &ContainerId, removal: Removal) -> Result<(), EngineError> {
        let client = self.client().await?;
        let options = RemoveContainerOptions {
            v: removal == Removal::Discard,
            force: removal != Removal::IfStopped,
            link: false,
        };
        let answer = client
            .docker
            .remove_container(container.as_str(), Some(options));
        self.call(
            self.limits.call,
            || format!("remove container `{}`", container.short()),
            answer,
        )
        .await
    }
}

impl DockerEngine {
    fn pull_error(&self, image: &ImageRef, login: Option<&Login>, error: Error) -> PullError {
        match error {
            Error::DockerResponseServerError {
                status_code,
                message,
            } => refused(image, login, Some(status_code), message),
            other => {
                let source = engine_error(format!("ask the engine for `{image}`"), other);
                PullError::Engine {
                    image: image.clone(),
                    source,
                }
            }
        }
    }
}

/// `health_status` stands for all that begin so: `health_status: healthy`.
fn events_query(container: &ContainerId, since: jiff::Timestamp) -> Vec<(&'static str, String)> {
    let filters = json!({
        "type": ["container"],
        "container": [container.as_str()],
        "event": ["die", "destroy", "health_status"],
    });
    let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
    vec![("since", since), ("filters", filters.to_string())]
}

fn refused(
    image: &ImageRef,
    login: Option<&Login>,
    status: Option<u16>,
    message: String,
) -> PullError {
    let (image, registry) = (image.clone(), image.registry().to_owned());
    let refusal = classify(status, &message);
    let source = message.into();
    match refusal {
        Refusal::Unauthorized => PullError::Unauthorized {
            registry,
            image,
            credentials_sent: login.is_some(),
            source,
        },
        Refusal::NotFound => PullError::NotFound {
            registry,
            image,
            source,
        },
        Refusal::RateLimited => PullError::RateLimited {
            registry,
            image,
            retry_after: None,
            source,
        },
        Refusal::NoSpace => PullError::NoSpace { image, source },
        Refusal::Unavailable => PullError::RegistryUnavailable {
            registry,
            image,
            source,
        },
        Refusal::Other => PullError::Other { image, source },
    }
}

/// `X-Registry-Auth`: JSON in the URL-safe alphabet, padded. bollard 0.21 takes the standard alphabet, whose `+` and `/` the
/// engine cannot read: it then pulls anonymously and says that the image is missing.
fn registry_auth(login: &Login) -> HeaderValue {
    let payload = match login {
        Login::Password { username, password } => {
            json!({ "username": username, "password": password.expose_secret() })
        }
        Login::IdentityToken(token) => json!({ "identitytoken": token.expose_secret() }),
    };
    let encoded = base64::engine::general_purpose::URL_SAFE.encode(payload.to_string());
    let mut value = HeaderValue::try_from(encoded).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    value
}

fn engine_error(action: String, error: Error) -> EngineError {
    match error {
        Error::DockerResponseServerError {
            status_code: 404,
            message,
        } => EngineError::NotFound {
            action,
            source: message.into(),
        },
        Error::DockerResponseServerError {
            status_code: 409,
            message,
        } => EngineError::Conflict {
            action,
            source: message.into(),
        },
        Error::DockerResponseServerError {
            status_code,
            message,
        } => EngineError::Refused {
            action,
            status: status_code,
            source: message.into(),
        },
        error @ (Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. }
        | Error::StrParseError { .. }) => EngineError::Nonsense {
            action,
            source: plain(error),
        },
        other => EngineError::Broken {
            action,
            source: plain(other),
        },
    }
}

/// bollard hands I/O errors through "transparently", which hides them from whoever walks the chain of causes.
fn plain(error: Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        Error::IOError { err } => ssh::unwrap(err),
        Error::HyperLegacyError { err } => Box::new(err),
        Error::HyperResponseError { err } => Box::new(err),
        // bollard looks for itself. Said as the system would: "No such file or directory".
        Error::SocketNotFoundError(_) => Box::new(std::io::Error::from_raw_os_error(ENOENT)),
        other => Box::new(other),
    }
}

/// `1.41` as a pair of numbers, so that 1.9 is older than 1.41.
fn api(version: &str) -> (u32, u32) {
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    (
        major.parse().unwrap_or_default(),
        minor.parse().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_url_safe_base64() {
        let login = Login::Password {
            username: "me".into(),
            password: "ÿÿ>>??~~".to_owned().into(),
        };
        let header = registry_auth(&login);
        let text = header.to_str().unwrap();
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)),
            "{text}"
        );
        assert!(
            !format!("{header:?}").contains(text),
            "a login must not be printed"
        );
        let decoded = base64::engine::general_purpose::URL_SAFE
            .decode(text)
            .unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&decoded).unwrap(),
            json!({"username": "me", "password": "ÿÿ>>??~~"})
        );
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(api("1.9") < api("1.41"));
        assert!(api("1.53") > api("1.41"));
        assert!(api("nonsense") < api("1.41"));
    }
}
