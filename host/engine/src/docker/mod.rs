//! The engine's HTTP API through bollard: Docker from 20.10 on, and Podman's compatible service.
//!
//! Only this module uses bollard. It knows the request of each operation and the meaning of each refusal, but not the order of
//! operations or policies. Documents that must stay complete go through `raw`, and `convert` parses them.

mod connection;
mod convert;
mod failure;
mod login;
mod pull;
mod raw;
mod ssh;

pub use self::convert::container as parse_container;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptions, ListImagesOptions, RemoveContainerOptions, RemoveImageOptions,
    RenameContainerOptions, StartContainerOptions, StopContainerOptions,
};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use refit_model::container::{
    Container, ContainerId, ContainerName, ContainerSummary, Image, Network, Object,
    PlatformManifest, State,
};
use refit_model::image::{ImageId, ImageRef, Platform};
use refit_model::pull::LayerProgress;
use refit_model::secret::Login;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use self::connection::Client;
use self::failure::{engine_error, pull_error, refusal_error};
use self::login::registry_auth;
use super::address::{EngineAddress, Way};
use super::permissions::{RawAnswer, RawCall};
use super::{
    CreateRequest, Engine, EngineError, EngineVersion, PullError, Removal, StopMode, UnnamedImage,
};

/// Seen with Podman 4.3.
const NO_DISTRIBUTION: &str = "this engine, Podman, cannot ask a registry what is behind a tag without pulling it, so a plan cannot tell; a refresh pulls, and can";

/// How long the engine may take beyond a container's stop timeout to kill it and to respond.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// Time limits of calls.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// The limit of any call except a pull; a stop adds the container's own stop timeout.
    pub call: Duration,
    /// The limit of a pull, from the request to the last line of the response.
    pub pull: Duration,
}

/// An engine client that connects on first use, so that a daemon can start before its engine.
pub struct DockerEngine {
    address: EngineAddress,
    limits: CallLimits,
    client: OnceCell<Client>,
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
        let connect = || connection::connect(&self.address, self.limits);
        self.client.get_or_try_init(connect).await
    }

    /// Runs one call within its time limit, and converts its errors. `action` completes "cannot …".
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

    /// Lists containers in any state that pass the engine's filters.
    async fn list(
        &self,
        action: impl FnOnce() -> String,
        filters: Option<HashMap<String, Vec<String>>>,
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let client = self.client().await?;
        let options = ListContainersOptions {
            all: true,
            filters,
            ..ListContainersOptions::default()
        };
        let answer = client.docker.list_containers(Some(options));
        let results = self.call(self.limits.call, action, answer).await?;
        Ok(results.into_iter().filter_map(convert_summary).collect())
    }

    /// Streams one item for each event that passes the query.
    fn stream_events(
        &self,
        action: String,
        query: Vec<(&'static str, String)>,
    ) -> BoxStream<'_, Result<(), EngineError>> {
        let request = raw::RawRequest {
            query,
            ..raw::RawRequest::get("/events")
        };
        let opened = async move {
            let client = self.client().await?;
            let events = raw::stream(&client.docker, &client.version.api, request);
            Ok(events.map(move |part| match part {
                Ok(_) => Ok(()),
                Err(error) => Err(engine_error(action.clone(), error)),
            }))
        };
        stream::once(opened).try_flatten().boxed()
    }

    async fn fetch_document(
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
        // The cached version identifies the engine; a ping shows whether it still responds.
        self.call(
            self.limits.call,
            || "reach the engine".into(),
            client.docker.ping(),
        )
        .await?;
        Ok(client.version.clone())
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        self.list(|| "list containers".into(), None).await
    }

    async fn find_by_name(
        &self,
        name: &ContainerName,
    ) -> Result<Option<ContainerSummary>, EngineError> {
        // The engine accepts a regular expression here, and matches it with and without the slash before the name. The
        // comparison below decides.
        let pattern = format!("^/?{}$", name.as_str().replace('.', "\\."));
        let filters = HashMap::from([("name".to_owned(), vec![pattern])]);
        let results = self
            .list(|| format!("look for container `{name}`"), Some(filters))
            .await?;
        Ok(results.into_iter().find(|it| it.name == name.as_str()))
    }

    async fn is_listed(&self, container: &ContainerId) -> Result<bool, EngineError> {
        let filters = HashMap::from([("id".to_owned(), vec![container.as_str().to_owned()])]);
        let action = || format!("look for container `{}`", container.short());
        let results = self.list(action, Some(filters)).await?;
        Ok(results.iter().any(|it| it.id == *container))
    }

    async fn clock(&self) -> Result<jiff::Timestamp, EngineError> {
        let action = || "ask the engine for its time".to_owned();
        let request = raw::RawRequest::get("/info");
        let document = self.fetch_document(action, request).await?;
        convert::system_time(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError> {
        let action = || format!("inspect container `{}`", container.short());
        let document = self
            .fetch_document(
                action,
                raw::RawRequest::get(format!("/containers/{container}/json")),
            )
            .await?;
        let inspected = convert::container(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })?;
        if inspected.id != *container {
            return Err(EngineError::Nonsense {
                action: action(),
                source: format!("the answer is about container `{}`", inspected.id.short()).into(),
            });
        }
        Ok(inspected)
    }

    fn events(
        &self,
        container: &ContainerId,
        since: jiff::Timestamp,
    ) -> BoxStream<'_, Result<(), EngineError>> {
        let action = format!("follow container `{}`", container.short());
        self.stream_events(action, events_query(container, since))
    }

    fn daemon_events(&self) -> BoxStream<'_, Result<(), EngineError>> {
        let filters = json!({ "type": ["daemon"] }).to_string();
        self.stream_events("follow the engine".into(), vec![("filters", filters)])
    }

    async fn image_folder(&self) -> Result<Option<PathBuf>, EngineError> {
        if self.address.way != Way::Local {
            return Ok(None);
        }
        let action = || "ask the engine where it keeps its images".to_owned();
        let document = self
            .fetch_document(action, raw::RawRequest::get("/info"))
            .await?;
        convert::image_folder(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })
    }

    async fn image(&self, image: &str) -> Result<Image, EngineError> {
        let action = || format!("inspect image `{image}`");
        let document = self
            .fetch_document(
                action,
                raw::RawRequest::get(format!("/images/{image}/json")),
            )
            .await?;
        convert::image(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })
    }

    async fn platform_manifests(
        &self,
        image: &ImageId,
    ) -> Result<Vec<PlatformManifest>, EngineError> {
        let action = || format!("inspect the manifests of image `{}`", image.short());
        // Engines that do not know this parameter ignore it.
        let request = raw::RawRequest {
            query: vec![("manifests", "true".to_owned())],
            ..raw::RawRequest::get(format!("/images/{image}/json"))
        };
        let document = self.fetch_document(action, request).await?;
        convert::platform_manifests(&document).map_err(|source| EngineError::Nonsense {
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
    ) -> Result<Option<String>, PullError> {
        let client = self.client().await.map_err(|source| PullError::Engine {
            image: image.clone(),
            source,
        })?;
        let request = raw::RawRequest {
            query: pull::build_query(image, platform),
            registry_auth: login.map(registry_auth),
            ..raw::RawRequest::post("/images/create")
        };
        let lines = raw::stream(&client.docker, &client.version.api, request);
        match tokio::time::timeout(self.limits.pull, pull::read_response(lines, progress)).await {
            Ok(Ok(digest)) => Ok(digest),
            Ok(Err(pull::Failure::Incomplete)) => Err(PullError::Incomplete {
                image: image.clone(),
            }),
            Ok(Err(pull::Failure::Refused(message))) => {
                Err(refusal_error(image, platform, login, 200, message))
            }
            Ok(Err(pull::Failure::Call(error))) => Err(pull_error(image, platform, login, error)),
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
            // A registry without such an image returns a longer message.
            Ok(Err(Error::DockerResponseServerError {
                status_code: 404,
                message,
            })) if client.is_podman() && message.trim() == "Not Found" => {
                return Err(PullError::Other {
                    image: image.clone(),
                    source: NO_DISTRIBUTION.into(),
                });
            }
            Ok(Err(error)) => return Err(pull_error(image, None, login, error)),
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
        // Do not filter by `dangling`: in the containerd image store, an image that has a name by digest does not count as
        // dangling.
        let options = ListImagesOptions {
            digests: true,
            ..ListImagesOptions::default()
        };
        let answer = client.docker.list_images(Some(options));
        let images = self
            .call(self.limits.call, || "list images".into(), answer)
            .await?;
        // An engine writes `<none>:<none>` for no tag. With the containerd image store it lists names by digest as tags.
        let is_tag = |tag: &String| !tag.starts_with('<') && !tag.contains('@');
        let images = images.into_iter();
        let unnamed = images.filter(|image| !image.repo_tags.iter().any(is_tag));
        let unnamed = unnamed.map(|image| UnnamedImage {
            id: ImageId::new(image.id),
            created: image.created,
            // The engine writes `<none>@<none>` for no digest.
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
        name: &ContainerName,
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
        let mut query = vec![("name", name.as_str().to_owned())];
        query.extend(platform.map(|platform| ("platform", platform.to_string())));
        let request = raw::RawRequest {
            query,
            body: Some(Value::Object(body)),
            ..raw::RawRequest::post("/containers/create")
        };
        let answer = self.fetch_document(action, request).await?;

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
            tracing::warn!(container = name.as_str(), "the engine warns: {warning}");
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
        self.fetch_document(action, request).await.map(drop)
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
        self.fetch_document(action, request).await.map(drop)
    }

    async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        let action = || "list networks".to_owned();
        let document = self
            .fetch_document(action, raw::RawRequest::get("/networks"))
            .await?;
        convert::networks(&document).map_err(|source| EngineError::Nonsense {
            action: action(),
            source: source.into(),
        })
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

    async fn stop(&self, container: &ContainerId, mode: StopMode) -> Result<(), EngineError> {
        let client = self.client().await?;
        let (options, limit) = match mode {
            // Without signal and time, the container's own values apply.
            StopMode::Graceful { limit } => (None, limit),
            StopMode::Immediate => {
                let immediate = StopContainerOptions {
                    t: Some(0),
                    ..StopContainerOptions::default()
                };
                (Some(immediate), Duration::ZERO)
            }
        };
        let answer = client.docker.stop_container(container.as_str(), options);
        let limit = self.limits.call.max(STOP_MARGIN) + limit;
        self.call(
            limit,
            || format!("stop container `{}`", container.short()),
            answer,
        )
        .await
    }

    async fn rename(
        &self,
        container: &ContainerId,
        name: &ContainerName,
    ) -> Result<(), EngineError> {
        let client = self.client().await?;
        let answer = client.docker.rename_container(
            container.as_str(),
            RenameContainerOptions {
                name: name.as_str().to_owned(),
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

    async fn send(&self, call: &RawCall) -> Result<RawAnswer, EngineError> {
        let client = self.client().await?;
        let request = raw::RawRequest {
            method: call.method.clone(),
            query: call.query.clone(),
            body: call.body.clone(),
            ..raw::RawRequest::get(call.path.clone())
        };
        let answered = async {
            match raw::document(&client.docker, &client.version.api, request).await {
                Ok(_) => Ok(RawAnswer {
                    status: 200,
                    message: String::new(),
                }),
                Err(Error::DockerResponseServerError {
                    status_code,
                    message,
                }) => Ok(RawAnswer {
                    status: status_code,
                    message,
                }),
                Err(error) => Err(error),
            }
        };
        let action = || format!("call `{} {}`", call.method, call.path);
        self.call(self.limits.call, action, answered).await
    }
}

fn convert_summary(summary: bollard::models::ContainerSummary) -> Option<ContainerSummary> {
    // The engine may list a container that it is removing without a name. A link from another container has two slashes.
    let name = summary
        .names?
        .into_iter()
        .find(|name| name.matches('/').count() == 1)?;
    Some(ContainerSummary {
        id: ContainerId::new(summary.id?),
        name: name.trim_start_matches('/').to_owned(),
        labels: summary.labels.unwrap_or_default().into_iter().collect(),
        state: summary.state.and_then(|state| State::parse(state.as_ref())),
        network_mode: summary
            .host_config
            .and_then(|config| config.network_mode)
            .unwrap_or_default(),
    })
}

/// Builds the query for events of a container. `health_status` matches all events that start with it, as `health_status:
/// healthy`. Podman sends Docker's names, but accepts only its own in a query: `died`, `remove`.
fn events_query(container: &ContainerId, since: jiff::Timestamp) -> Vec<(&'static str, String)> {
    let filters = json!({
        "type": ["container"],
        "container": [container.as_str()],
        "event": ["die", "died", "destroy", "remove", "health_status"],
    });
    let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
    vec![("since", since), ("filters", filters.to_string())]
}
