//! What stands between Refit and the engine, in this process: it writes down what is asked, and does what this machine's engine does
//! not do by itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use refit::engine::docker::DockerEngine;
use refit::engine::permissions::{RawAnswer, RawCall};
use refit::engine::{
    CreateRequest, Engine, EngineError, EngineVersion, PullError, Removal, StopMode, UnnamedImage,
};
use refit::model::container::{
    Container, ContainerId, ContainerName, ContainerSummary, Image, Network, Object,
    PlatformManifest,
};
use refit::model::image::{ImageId, ImageRef, Platform};
use refit::model::pull::LayerProgress;
use refit::model::secret::Login;
use refit_tests::World;

use crate::bench::docker;

type Rewrite<T> = Box<dyn Fn(&mut T) + Send + Sync>;
type Refusal = Box<dyn Fn(&str) -> Option<EngineError> + Send + Sync>;

/// Stands between Refit and an engine: writes down what is asked, and may change or refuse it. For what this machine's engine
/// does not do by itself.
pub(crate) struct Between {
    engine: DockerEngine,
    /// Verb and object, as they are called; and `told` with a container, where the engine had an event of it.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    created: Rewrite<CreateRequest>,
    inspected: Rewrite<Container>,
    refuses: Refusal,
    loses_stops: bool,
    tells_nothing: bool,
    image_ids: Option<fn(&str) -> String>,
    image_folder: Option<PathBuf>,
}

impl Between {
    pub(crate) fn new(world: &World) -> Self {
        Self {
            engine: docker(world),
            calls: Arc::default(),
            created: Box::new(|_| {}),
            inspected: Box::new(|_| {}),
            refuses: Box::new(|_| None),
            loses_stops: false,
            tells_nothing: false,
            image_ids: None,
            image_folder: None,
        }
    }

    /// The engine makes something else than it was asked for.
    pub(crate) fn makes(
        mut self,
        change: impl Fn(&mut CreateRequest) + Send + Sync + 'static,
    ) -> Self {
        self.created = Box::new(change);
        self
    }

    /// The engine shows something else than there is.
    pub(crate) fn shows(mut self, change: impl Fn(&mut Container) + Send + Sync + 'static) -> Self {
        self.inspected = Box::new(change);
        self
    }

    /// The engine refuses calls, told as `verb object`.
    pub(crate) fn refuses(
        mut self,
        refusal: impl Fn(&str) -> Option<EngineError> + Send + Sync + 'static,
    ) -> Self {
        self.refuses = Box::new(refusal);
        self
    }

    /// The engine stops what it is asked to, and never says so.
    pub(crate) fn loses_stops(mut self) -> Self {
        self.loses_stops = true;
        self
    }

    /// The engine is asked for events, and has none.
    pub(crate) fn tells_nothing(mut self) -> Self {
        self.tells_nothing = true;
        self
    }

    /// The engine knows images by other ids than this one does: `other` is its own inverse.
    pub(crate) fn knows_images_by(mut self, other: fn(&str) -> String) -> Self {
        self.image_ids = Some(other);
        self
    }

    /// The engine says that it keeps its images there.
    pub(crate) fn keeps_images_in(mut self, folder: &Path) -> Self {
        self.image_folder = Some(folder.to_owned());
        self
    }

    fn image_id(&self, id: &ImageId) -> ImageId {
        match self.image_ids {
            Some(other) => ImageId::new(other(id.as_str())),
            None => id.clone(),
        }
    }

    fn ask(&self, call: String) -> Result<(), EngineError> {
        let refusal = (self.refuses)(&call);
        self.calls.lock().unwrap().push(call);
        refusal.map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Engine for Between {
    fn address(&self) -> &str {
        self.engine.address()
    }

    async fn version(&self) -> Result<EngineVersion, EngineError> {
        self.engine.version().await
    }

    async fn image_folder(&self) -> Result<Option<PathBuf>, EngineError> {
        match &self.image_folder {
            Some(folder) => Ok(Some(folder.clone())),
            None => self.engine.image_folder().await,
        }
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        self.ask("list".into())?;
        self.engine.containers().await
    }

    async fn find_by_name(
        &self,
        name: &ContainerName,
    ) -> Result<Option<ContainerSummary>, EngineError> {
        self.ask(format!("find {name}"))?;
        self.engine.find_by_name(name).await
    }

    async fn is_listed(&self, container: &ContainerId) -> Result<bool, EngineError> {
        self.ask(format!("is-listed {container}"))?;
        self.engine.is_listed(container).await
    }

    async fn clock(&self) -> Result<jiff::Timestamp, EngineError> {
        self.ask("clock".into())?;
        self.engine.clock().await
    }

    fn daemon_events(&self) -> BoxStream<'_, Result<(), EngineError>> {
        self.engine.daemon_events()
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError> {
        self.ask(format!("inspect {container}"))?;
        let mut container = self.engine.inspect(container).await?;
        container.image_id = self.image_id(&container.image_id);
        (self.inspected)(&mut container);
        Ok(container)
    }

    fn events(
        &self,
        container: &ContainerId,
        since: jiff::Timestamp,
    ) -> BoxStream<'_, Result<(), EngineError>> {
        if let Err(refusal) = self.ask(format!("events {container}")) {
            return stream::iter([Err(refusal)]).boxed();
        }
        if self.tells_nothing {
            return stream::pending().boxed();
        }
        let told = format!("told {container}");
        let told = move |_: &Result<(), EngineError>| self.calls.lock().unwrap().push(told.clone());
        self.engine.events(container, since).inspect(told).boxed()
    }

    async fn image(&self, image: &str) -> Result<Image, EngineError> {
        self.ask(format!("image {image}"))?;
        let asked = self.image_id(&ImageId::new(image));
        let image = if image.starts_with("sha256:") {
            asked.as_str()
        } else {
            image
        };
        let mut found = self.engine.image(image).await?;
        found.id = self.image_id(&found.id);
        Ok(found)
    }

    async fn platform_manifests(
        &self,
        image: &ImageId,
    ) -> Result<Vec<PlatformManifest>, EngineError> {
        self.engine.platform_manifests(image).await
    }

    async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        login: Option<&Login>,
        progress: &(dyn Fn(LayerProgress) + Send + Sync),
    ) -> Result<Option<String>, PullError> {
        self.engine.pull(image, platform, login, progress).await
    }

    async fn remote_digest(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
    ) -> Result<String, PullError> {
        self.engine.remote_digest(image, login).await
    }

    async fn create(
        &self,
        name: &ContainerName,
        request: &CreateRequest,
        platform: Option<&Platform>,
    ) -> Result<ContainerId, EngineError> {
        let platform_asked =
            platform.map_or_else(String::new, |platform| format!(" for {platform}"));
        self.ask(format!("create {name}{platform_asked}"))?;
        let mut request = request.clone();
        (self.created)(&mut request);
        self.engine.create(name, &request, platform).await
    }

    async fn connect(
        &self,
        container: &ContainerId,
        network: &str,
        endpoint: &Object,
    ) -> Result<(), EngineError> {
        self.ask(format!("connect {container} {network}"))?;
        self.engine.connect(container, network, endpoint).await
    }

    async fn disconnect(&self, container: &ContainerId, network: &str) -> Result<(), EngineError> {
        self.ask(format!("disconnect {container} {network}"))?;
        self.engine.disconnect(container, network).await
    }

    async fn unnamed_images(&self) -> Result<Vec<UnnamedImage>, EngineError> {
        self.engine.unnamed_images().await
    }

    async fn remove_image(&self, image: &ImageId) -> Result<(), EngineError> {
        self.engine.remove_image(image).await
    }

    async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        self.ask("networks".into())?;
        self.engine.networks().await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.ask(format!("start {container}"))?;
        self.engine.start(container).await
    }

    async fn stop(&self, container: &ContainerId, mode: StopMode) -> Result<(), EngineError> {
        let verb = match mode {
            StopMode::Graceful { .. } => "stop",
            StopMode::Immediate => "kill",
        };
        self.ask(format!("{verb} {container}"))?;
        let answer = self.engine.stop(container, mode).await;
        if self.loses_stops {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn rename(
        &self,
        container: &ContainerId,
        name: &ContainerName,
    ) -> Result<(), EngineError> {
        self.ask(format!("rename {container} {name}"))?;
        self.engine.rename(container, name).await
    }

    async fn remove(&self, container: &ContainerId, removal: Removal) -> Result<(), EngineError> {
        self.ask(format!("remove {container}"))?;
        self.engine.remove(container, removal).await
    }

    async fn send(&self, call: &RawCall) -> Result<RawAnswer, EngineError> {
        self.engine.send(call).await
    }
}

/// A refusal with a status, as a socket proxy gives it.
pub(crate) fn status(status: u16) -> EngineError {
    EngineError::Refused {
        action: "do that".into(),
        status,
        source: "not here".into(),
    }
}
