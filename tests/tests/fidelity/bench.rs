//! What the tests work at: Refit's hands on the world's engine, in this process, with a proof that is short enough for tests.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bollard::query_parameters::InspectContainerOptions;
use refit::capabilities::dependency_cache::DependencyCache;
use refit::capabilities::live::{EngineContext, LiveCapabilities};
use refit::capabilities::operation_permissions::OperationPermissions;
use refit::capabilities::prefetch::DigestPrefetch;
use refit::capabilities::scope::Scope;
use refit::capabilities::{
    CallError, Capabilities as _, PulledImage, Recreated, Recreation, Transfer,
};
use refit::engine::address::{self, EngineEnvironment};
use refit::engine::docker::{CallLimits, DockerEngine};
use refit::engine::{CreateRequest, Engine, PullError};
use refit::model::container::{Container, ContainerId, ContainerName, ContainerSummary, Object};
use refit::model::event::{Event, Events, no_events};
use refit::model::grants::{GrantPatterns, Grants};
use refit::model::image::{ImageId, ImageRef, Platform};
use refit::model::recreation::Step;
use refit::model::recreation::Strategy;
use refit::recreate::RecreateError;
use refit::recreate::concurrency::ConcurrencyLimits;
use refit::recreate::health_gate::ReadinessCheck;
use refit::recreate::image_records::ImageRecords;
use refit::recreate::lease::Leases;
use refit::recreate::recover::{FirstSeen, RecoveryTimeouts};
use refit::recreate::self_protection::SelfProtection;
use refit::registry::budget::Rate;
use refit::registry::credentials::{Credentials, EnvironmentVariables};
use refit::registry::digests::Digests;
use refit_tests::World;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::engine_faults::Between;

/// Longer than any call here takes on a busy machine.
const CALL: Duration = Duration::from_secs(60);

/// Refit on a world's engine.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) engine: Arc<dyn Engine>,
    proof: ReadinessCheck,
    platform: Option<Platform>,
    leases: Leases,
    own_id: Option<String>,
    images: ImageRecords,
    registry_requests: u32,
    events: Events,
    force: bool,
}

impl Bench {
    /// No grace: a replacement must have started, and be healthy where it has a check.
    pub(crate) fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            engine: Arc::new(docker(world)),
            proof: ReadinessCheck {
                grace: Duration::ZERO,
                health: Duration::from_secs(30),
            },
            platform: None,
            leases: Leases::default(),
            own_id: None,
            images: ImageRecords::default(),
            // Nobody is asked: what replaces is on the engine.
            registry_requests: 0,
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

    pub(crate) fn asking_registries(mut self) -> Self {
        self.registry_requests = 100;
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

    pub(crate) fn workshop(&self) -> Arc<EngineContext> {
        let credentials = Credentials::new(&EnvironmentVariables::default(), "ghcr.io", &[], None)
            .expect("no variable is wrong where none is set");
        let rate = Rate {
            requests: self.registry_requests,
            window: Duration::from_secs(60),
        };
        Arc::new(EngineContext {
            engine: self.engine.clone(),
            digests: Arc::new(Digests::new(credentials.clone(), vec![], rate)),
            credentials,
            platform: self.platform.clone(),
            patience: RecoveryTimeouts {
                proof: self.proof,
                call: CALL,
            },
            leases: self.leases.clone(),
            lanes: ConcurrencyLimits::default(),
            first_seen: FirstSeen::default(),
            permitted: OperationPermissions::default(),
            ties: DependencyCache::default(),
            images: self.images.clone(),
            protection: self
                .own_id
                .as_deref()
                .map_or_else(SelfProtection::default, SelfProtection::in_container),
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

    /// What one refresh has.
    pub(crate) fn live(&self) -> LiveCapabilities {
        LiveCapabilities::new(
            self.workshop(),
            self.force,
            self.events.clone(),
            CancellationToken::new(),
            DigestPrefetch::default(),
            Arc::new(Scope::new(all_granted(), u32::MAX)),
        )
    }

    /// As a refresh pulls.
    pub(crate) async fn pulled(&self, image: &str) -> anyhow::Result<PulledImage> {
        let pulled = self.pull(image).await?;
        pulled.with_context(|| format!("`{image}` was not pulled"))
    }

    pub(crate) async fn pull(&self, image: &str) -> anyhow::Result<Result<PulledImage, PullError>> {
        let pulled = self.live().pull(&image.parse::<ImageRef>()?).await;
        Ok(pulled.map_err(|error| match error {
            CallError::Failed(error) => error,
            other => panic!("nobody stands between: {other:?}"),
        }))
    }

    /// As a policy gives a wave to the host: all at once.
    pub(crate) async fn recreate_wave(
        &self,
        wave: Vec<Recreation>,
    ) -> Vec<Result<Recreated, RecreateError>> {
        let live = self.live();
        live.expect_recreations(&wave).await;
        let answers = wave.into_iter().map(|wanted| live.recreate(wanted));
        let answers = futures_util::future::join_all(answers).await.into_iter();
        let failed = |error| match error {
            CallError::Failed(error) => error,
            other => panic!("nobody stands between: {other:?}"),
        };
        let mut told = Vec::new();
        for answer in answers {
            told.push(answer.map_err(failed));
        }
        told
    }

    pub(crate) async fn recreate(&self, wanted: Recreation) -> Result<Recreated, RecreateError> {
        let live = self.live();
        live.recreate(wanted).await.map_err(|error| match error {
            CallError::Failed(error) => error,
            other => panic!("nobody stands between: {other:?}"),
        })
    }

    /// Replace the container of this name by one from an image that was pulled.
    pub(crate) async fn refreshed_by(
        &self,
        name: &str,
        image: PulledImage,
    ) -> anyhow::Result<Recreated> {
        let wanted = self.wanted(name, &image.reference.to_string()).await?;
        let recreated = self.recreate(Recreation { image, ..wanted }).await;
        recreated.with_context(|| format!("`{name}` was not replaced"))
    }

    pub(crate) async fn wanted(&self, name: &str, image: &str) -> anyhow::Result<Recreation> {
        let container = self.inspect(name).await?;
        let id = self.world.image_id(image).await?;
        Ok(Recreation {
            container: ContainerSummary {
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
                local: None,
                replaced: None,
                transfer: Transfer::Pulled,
            },
            strategy: Strategy::Replace,
        })
    }

    pub(crate) async fn inspect(&self, container: &str) -> anyhow::Result<Container> {
        inspect(&docker(&self.world), container).await
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
        Ok(engine.inspect(&id).await?)
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
        let name = ContainerName::new(name);
        let id = engine.create(&name, &request, None).await;
        id.with_context(|| format!("`{name}` cannot be created"))
    }

    /// The newest version of its API that the engine speaks, major and minor.
    pub(crate) async fn api(&self) -> anyhow::Result<(u32, u32)> {
        let version = self.world.docker().version().await?.api_version;
        let version = version.context("the engine does not say its version")?;
        let parts = version.split_once('.');
        let parts =
            parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        parts.with_context(|| format!("which version of the API is `{version}`?"))
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

/// By name, or by whole id.
pub(crate) async fn inspect(engine: &dyn Engine, container: &str) -> anyhow::Result<Container> {
    let found = engine.find_by_name(&ContainerName::new(container)).await?;
    let id = found.map_or_else(|| ContainerId::new(container), |found| found.id);
    Ok(engine.inspect(&id).await?)
}

/// Refit's own engine, straight.
pub(crate) fn docker(world: &World) -> DockerEngine {
    docker_at(world.docker_host())
}

pub(crate) fn docker_at(docker_host: &str) -> DockerEngine {
    let address = address::choose(Some(docker_host), &EngineEnvironment::default());
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

/// The names of those that were replaced with it.
pub(crate) fn follower_names(recreated: &Recreated) -> Vec<&str> {
    let followers = recreated.followers.iter();
    followers.map(|it| it.name.as_str()).collect()
}

/// These tests are about what the engine does with containers, whoever may touch them.
fn all_granted() -> Arc<Grants> {
    let patterns = GrantPatterns {
        images: vec![],
        containers: vec!["*".into()],
        labels: BTreeMap::new(),
        environment: vec![],
        verbs: vec![],
        followers: false,
    };
    Arc::new(Grants::new(&patterns).expect("`*` is a pattern"))
}
