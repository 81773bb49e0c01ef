//! What the tests work at: Refit's hands on the world's engine, in this process, with a proof that is short enough for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use bollard::query_parameters::InspectContainerOptions;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use refit::capabilities::foreseen::Foreseen;
use refit::capabilities::live::{Live, Workshop};
use refit::capabilities::ties::KnownTies;
use refit::capabilities::{
    CallError, Capabilities as _, PulledImage, Recreated, Recreation, Strategy, Transfer,
};
use refit::container::{Container, ContainerId, Image, Listed, Object};
use refit::engine::address::{self, EngineEnvironment};
use refit::engine::docker::{CallLimits, DockerEngine};
use refit::engine::{
    CreateRequest, Engine, EngineError, EngineVersion, LayerProgress, PullError, Removal,
    UnnamedImage,
};
use refit::image::{ImageId, ImageRef, Platform};
use refit::journal::{Event, Events, no_events};
use refit::recreate::lanes::Lanes;
use refit::recreate::lease::Leases;
use refit::recreate::proof::Proof;
use refit::recreate::recover::Patience;
use refit::recreate::{RecreateError, Step};
use refit::registry::budget::Rate;
use refit::registry::credentials::{Credentials, EnvironmentVariables};
use refit::registry::digests::Digests;
use refit::secret::Login;
use refit_tests::World;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Longer than any call here takes on a busy machine.
const CALL: Duration = Duration::from_secs(60);

/// Refit on a world's engine.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) engine: Arc<dyn Engine>,
    proof: Proof,
    platform: Option<Platform>,
    leases: Leases,
    own_id: Option<String>,
    events: Events,
    force: bool,
}

impl Bench {
    /// No grace: a replacement must have started, and be healthy where it has a check.
    pub(crate) fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            engine: Arc::new(docker(world)),
            proof: Proof {
                grace: Duration::ZERO,
                health: Duration::from_secs(30),
            },
            platform: None,
            leases: Leases::default(),
            own_id: None,
            events: no_events(),
            force: false,
        }
    }

    pub(crate) fn grace(mut self, grace: Duration) -> Self {
        self.proof.grace = grace;
        self
    }

    pub(crate) fn health(mut self, health: Duration) -> Self {
        self.proof.health = health;
        self
    }

    pub(crate) fn platform(mut self, platform: &str) -> Self {
        self.platform = Some(platform.parse().unwrap());
        self
    }

    pub(crate) fn leases(mut self, leases: Leases) -> Self {
        self.leases = leases;
        self
    }

    pub(crate) fn own_id(mut self, id: &str) -> Self {
        self.own_id = Some(id.to_owned());
        self
    }

    pub(crate) fn forced(mut self) -> Self {
        self.force = true;
        self
    }

    /// Talk to the engine through something that stands in between.
    pub(crate) fn through(mut self, engine: Between) -> Self {
        self.engine = Arc::new(engine);
        self
    }

    /// Call `act` before the first step of the kind is taken; the replacement waits for it to end.
    pub(crate) fn before<F>(
        mut self,
        step: Step,
        act: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let done = AtomicBool::new(false);
        self.events = Arc::new(move |event| {
            if matches!(event, Event::Step { step: at, .. } if at == step)
                && !done.swap(true, Ordering::SeqCst)
            {
                let acting = act();
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(acting));
            }
        });
        self
    }

    pub(crate) fn workshop(&self) -> Arc<Workshop> {
        let credentials = Credentials::new(&EnvironmentVariables::default(), "ghcr.io", &[], None)
            .expect("no variable is wrong where none is set");
        // Nobody is asked here: what replaces is on the engine.
        let rate = Rate {
            requests: 0,
            window: Duration::from_secs(60),
        };
        Arc::new(Workshop {
            engine: self.engine.clone(),
            digests: Arc::new(Digests::new(credentials.clone(), vec![], rate)),
            credentials,
            platform: self.platform.clone(),
            patience: Patience {
                proof: self.proof,
                call: CALL,
            },
            leases: self.leases.clone(),
            lanes: Lanes::default(),
            ties: KnownTies::default(),
            own_id: self.own_id.clone(),
        })
    }

    /// Replace the container of this name, as it is now, by one from an image that the engine has.
    pub(crate) async fn refresh(
        &self,
        name: &str,
        image: &str,
    ) -> anyhow::Result<Result<Recreated, RecreateError>> {
        let wanted = self.wanted(name, image).await?;
        Ok(self.recreate(wanted).await)
    }

    /// The same, where only success will do.
    pub(crate) async fn refreshed(&self, name: &str, image: &str) -> anyhow::Result<Recreated> {
        let recreated = self.refresh(name, image).await?;
        recreated.with_context(|| format!("`{name}` was not replaced"))
    }

    /// The same, where only failure will do.
    pub(crate) async fn refused(&self, name: &str, image: &str) -> anyhow::Result<RecreateError> {
        match self.refresh(name, image).await? {
            Err(error) => Ok(error),
            Ok(recreated) => anyhow::bail!("`{name}` was replaced: {recreated:?}"),
        }
    }

    pub(crate) async fn recreate(&self, wanted: Recreation) -> Result<Recreated, RecreateError> {
        let live = Live {
            workshop: self.workshop(),
            force: self.force,
            events: self.events.clone(),
            ending: CancellationToken::new(),
            foreseen: Foreseen::default(),
        };
        live.recreate(wanted).await.map_err(|error| match error {
            CallError::Failed(error) => error,
            other => panic!("nobody stands between: {other:?}"),
        })
    }

    pub(crate) async fn wanted(&self, name: &str, image: &str) -> anyhow::Result<Recreation> {
        let container = docker(&self.world).inspect(name).await?;
        let id = self.world.image_id(image).await?;
        Ok(Recreation {
            container: Listed {
                id: container.id.clone(),
                name: container.name.clone(),
                labels: container.labels(),
                state: Some(container.state),
                network_mode: container.network_mode().to_owned(),
            },
            image: PulledImage {
                reference: image.parse::<ImageRef>()?,
                id: ImageId::new(id.with_context(|| format!("`{image}` is not on the engine"))?),
                digest: None,
                transfer: Transfer::Pulled,
            },
            strategy: Strategy::Replace,
        })
    }

    pub(crate) async fn inspect(&self, container: &str) -> anyhow::Result<Container> {
        Ok(docker(&self.world).inspect(container).await?)
    }

    /// Make and start a container from documents in the engine's own words.
    pub(crate) async fn run(
        &self,
        name: &str,
        image: &str,
        config: Value,
        host_config: Value,
    ) -> anyhow::Result<Container> {
        let id = self.create(name, image, config, host_config).await?;
        let engine = docker(&self.world);
        engine
            .start(&id)
            .await
            .with_context(|| format!("`{name}` cannot be started"))?;
        Ok(engine.inspect(id.as_str()).await?)
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        image: &str,
        config: Value,
        host_config: Value,
    ) -> anyhow::Result<ContainerId> {
        let mut config = object(config);
        config.insert("Image".into(), json!(image));
        let labels = config.entry("Labels").or_insert_with(|| json!({}));
        for (key, value) in self.world.labels() {
            labels[key] = json!(value);
        }
        let request = CreateRequest {
            config,
            host_config: object(host_config),
            endpoint: None,
        };
        let engine = docker(&self.world);
        let id = engine.create(name, &request, None).await;
        id.with_context(|| format!("`{name}` cannot be created"))
    }

    /// When the container was last started, to the nanosecond: whether it was ever stopped shows here.
    pub(crate) async fn started(&self, container: &str) -> anyhow::Result<String> {
        let inspected = self
            .world
            .docker()
            .inspect_container(container, None::<InspectContainerOptions>)
            .await?;
        let state = inspected.state.context("no state")?;
        state.started_at.context("never started")
    }

    /// The one container under this name runs, and nothing of ours is left beside those named. Its id.
    pub(crate) async fn only(&self, names: &[&str]) -> anyhow::Result<()> {
        let mut expected: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        expected.sort();
        let found = self.world.containers().await?;
        anyhow::ensure!(found == expected, "expected {expected:?}, found {found:?}");
        Ok(())
    }
}

/// Refit's own engine, straight.
pub(crate) fn docker(world: &World) -> DockerEngine {
    let address = address::choose(Some(world.docker_host()), &EngineEnvironment::default());
    let address = address.expect("the kit's engine has an address");
    let limits = CallLimits {
        call: CALL,
        pull: CALL,
    };
    DockerEngine::new(address, limits)
}

pub(crate) fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("`{other}` is no object"),
    }
}

/// The chain of causes in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

type Rewrite<T> = Box<dyn Fn(&mut T) + Send + Sync>;
type Refusal = Box<dyn Fn(&str) -> Option<EngineError> + Send + Sync>;

/// Stands between Refit and an engine: writes down what is asked, and may change or refuse it. For what this machine's engine
/// does not do by itself.
pub(crate) struct Between {
    engine: DockerEngine,
    /// Verb and object, as they are called.
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    created: Rewrite<CreateRequest>,
    inspected: Rewrite<Container>,
    refuses: Refusal,
    loses_stops: bool,
    tells_nothing: bool,
    image_ids: Option<fn(&str) -> String>,
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

    async fn containers(&self) -> Result<Vec<Listed>, EngineError> {
        self.ask("list".into())?;
        self.engine.containers().await
    }

    async fn inspect(&self, container: &str) -> Result<Container, EngineError> {
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
        self.engine.events(container, since)
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

    async fn pull(
        &self,
        image: &ImageRef,
        platform: Option<&Platform>,
        login: Option<&Login>,
        progress: &(dyn Fn(LayerProgress) + Send + Sync),
    ) -> Result<(), PullError> {
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
        name: &str,
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

    async fn start(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.ask(format!("start {container}"))?;
        self.engine.start(container).await
    }

    async fn stop(
        &self,
        container: &ContainerId,
        its_timeout: Duration,
    ) -> Result<(), EngineError> {
        self.ask(format!("stop {container}"))?;
        let answer = self.engine.stop(container, its_timeout).await;
        if self.loses_stops {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), EngineError> {
        self.ask(format!("rename {container} {name}"))?;
        self.engine.rename(container, name).await
    }

    async fn remove(&self, container: &ContainerId, removal: Removal) -> Result<(), EngineError> {
        self.ask(format!("remove {container}"))?;
        self.engine.remove(container, removal).await
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

/// What differs between two inspections of what should be the same container, field by field. What every container has of its
/// own (its id as a hostname and alias, a dynamic address) is no difference, and neither is what two versions of [`ImageSpec`]
/// differ in. A volume and a port that the engine chose are asked for by name afterwards: they are compared by what came of it.
///
/// [`ImageSpec`]: refit_tests::ImageSpec
pub(crate) fn changes(before: &Container, after: &Container) -> Vec<String> {
    let mut changes = Vec::new();
    compare("Config", &config(before), &config(after), &mut changes);
    compare(
        "HostConfig",
        &host_config(before),
        &host_config(after),
        &mut changes,
    );
    let names = |container: &Container| container.endpoints.keys().cloned().collect::<Vec<_>>();
    if names(before) != names(after) {
        changes.push(format!(
            "networks: {:?} became {:?}",
            names(before),
            names(after)
        ));
    }
    for (network, endpoint) in &after.endpoints {
        if let Some(was) = before.endpoints.get(network) {
            compare(
                network,
                &wishes(before, was),
                &wishes(after, endpoint),
                &mut changes,
            );
        }
    }
    let mounts = |container: &Container| {
        let mounts = container.mounts.iter();
        mounts
            .map(|mount| (mount.destination.clone(), format!("{mount:?}")))
            .collect::<BTreeMap<_, _>>()
    };
    if mounts(before) != mounts(after) {
        changes.push(format!(
            "mounts: {:#?} became {:#?}",
            mounts(before),
            mounts(after)
        ));
    }
    if published(before) != published(after) {
        changes.push(format!(
            "ports: {:?} became {:?}",
            published(before),
            published(after)
        ));
    }
    changes
}

/// The ports that are bound on the machine.
pub(crate) fn published(container: &Container) -> BTreeSet<String> {
    let ports = container.published_ports.iter();
    ports
        .map(|port| {
            format!(
                "{}:{}->{}/{}",
                port.host_address, port.host_port, port.container_port, port.protocol
            )
        })
        .collect()
}

fn compare(part: &str, before: &Object, after: &Object, changes: &mut Vec<String>) {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let of = |object: &Object| object.get(key).cloned().unwrap_or_default();
        if of(before) != of(after) {
            changes.push(format!("{part}.{key}: {} became {}", of(before), of(after)));
        }
    }
}

fn config(container: &Container) -> Object {
    let mut config = container.config.clone();
    config.remove("Image");
    if let Some(variables) = config.get_mut("Env").and_then(Value::as_array_mut) {
        let of_version =
            |text: &str| text.starts_with("WS_VERSION=") || text.starts_with("MODEL_DEFAULT=");
        variables.retain(|variable| !variable.as_str().is_some_and(of_version));
    }
    if let Some(labels) = config.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.remove("org.opencontainers.image.version");
    }
    if config.get("Hostname").and_then(Value::as_str) == Some(container.id.short()) {
        config.remove("Hostname");
    }
    config
}

fn host_config(container: &Container) -> Object {
    let mut host_config = container.host_config.clone();
    host_config.remove("PortBindings");
    if let Some(binds) = host_config.get_mut("Binds").and_then(Value::as_array_mut) {
        let chosen = |source: &str| {
            source.len() == 64 && source.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        binds.retain(|bind| {
            !bind
                .as_str()
                .and_then(|bind| bind.split(':').next())
                .is_some_and(chosen)
        });
        if binds.is_empty() {
            host_config.remove("Binds");
        }
    }
    // The engine keeps links without an order.
    if let Some(links) = host_config.get_mut("Links").and_then(Value::as_array_mut) {
        links.sort_by_key(Value::to_string);
    }
    host_config.retain(|_, value| !value.is_null());
    host_config
}

fn wishes(container: &Container, endpoint: &Object) -> Object {
    let mut wishes = endpoint.clone();
    for own in ["EndpointID", "IPAddress", "MacAddress", "GlobalIPv6Address"] {
        wishes.remove(own);
    }
    if let Some(aliases) = wishes.get_mut("Aliases").and_then(Value::as_array_mut) {
        aliases.retain(|alias| alias.as_str() != Some(container.id.short()));
    }
    wishes.retain(|_, value| !matches!(value, Value::Array(items) if items.is_empty()));
    wishes
}
