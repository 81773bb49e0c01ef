//! Policies swapped under load: every refresh and plan is made by exactly one generation, none is refused or lost because of a
//! swap, and memory stays flat. In this process, with an engine that has nothing and takes its time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use refit::capabilities::dependency_cache::DependencyCache;
use refit::capabilities::guard::Counts;
use refit::capabilities::live::EngineContext;
use refit::capabilities::operation_permissions::OperationPermissions;
use refit::engine::permissions::{RawAnswer, RawCall};
use refit::engine::{
    CreateRequest, Engine, EngineError, EngineVersion, PullError, Removal, StopMode, UnnamedImage,
};
use refit::model::container::{
    Container, ContainerId, ContainerName, ContainerSummary, Image, Network, Object,
    PlatformManifest,
};
use refit::model::event::no_events;
use refit::model::grants::{GrantPatterns, Grants, Verb};
use refit::model::image::{ImageId, ImageRef, Platform};
use refit::model::pull::LayerProgress;
use refit::model::report::Report;
use refit::model::request::{Mode, Request, Trigger};
use refit::model::secret::Login;
use refit::recreate::concurrency::ConcurrencyLimits;
use refit::recreate::health_gate::ReadinessCheck;
use refit::recreate::image_records::ImageRecords;
use refit::recreate::lease::Leases;
use refit::recreate::recover::{FirstSeen, RecoveryTimeouts};
use refit::recreate::self_protection::SelfProtection;
use refit::refresh::{Bounds, Refresher};
use refit::registry::budget::Rate;
use refit::registry::credentials::{Credentials, EnvironmentVariables};
use refit::registry::digests::Digests;
use refit::revisions::Generations;
use refit::revisions::artifact::Carrier;
use refit::revisions::artifact::registry::Registries;
use refit::revisions::artifact::signature::Trust;
use refit::revisions::load::Source;
use refit::revisions::start::{Persistence, TrustConfig};
use refit::revisions::swap::{Candidate, ConfiguredPolicy};
use refit::sandbox::{Concurrency, DEFAULT_POLICY, PolicyEngine};
use serde_json::json;

const CALLS: usize = 3_000;
const SWAPS: usize = 300;
/// Calls under way at once.
const WORKERS: usize = 12;
/// Beyond what the process had after a third of the swaps. An engine that is not let go of would take some MiB a swap.
const GROWTH_BYTES_MAX: usize = 48 << 20;
/// For all of it, on a loaded machine.
const WHOLE: Duration = Duration::from_secs(10 * 60);

/// Neither containers nor images, and a wait at each question, so that swaps fall into the middle of calls.
struct Nothing;

impl Nothing {
    async fn not_found<T>(action: &str) -> Result<T, EngineError> {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2_000))).await;
        Err(EngineError::NotFound {
            action: action.to_owned(),
            source: "there is nothing".into(),
        })
    }

    async fn unpublished<T>(image: &ImageRef) -> Result<T, PullError> {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2_000))).await;
        Err(PullError::NotFound {
            registry: image.registry().to_owned(),
            image: image.clone(),
            source: "there is nothing".into(),
        })
    }
}

#[async_trait]
impl Engine for Nothing {
    fn address(&self) -> &str {
        "nowhere"
    }

    async fn version(&self) -> Result<EngineVersion, EngineError> {
        Self::not_found("ask for the version").await
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2_000))).await;
        Ok(Vec::new())
    }

    async fn inspect(&self, _: &ContainerId) -> Result<Container, EngineError> {
        Self::not_found("inspect").await
    }

    async fn find_by_name(
        &self,
        _: &ContainerName,
    ) -> Result<Option<ContainerSummary>, EngineError> {
        Ok(None)
    }

    async fn is_listed(&self, _: &ContainerId) -> Result<bool, EngineError> {
        Ok(false)
    }

    async fn clock(&self) -> Result<jiff::Timestamp, EngineError> {
        Ok(jiff::Timestamp::now())
    }

    fn daemon_events(&self) -> BoxStream<'_, Result<(), EngineError>> {
        futures_util::stream::empty().boxed()
    }

    fn events(
        &self,
        _: &ContainerId,
        _: jiff::Timestamp,
    ) -> BoxStream<'_, Result<(), EngineError>> {
        futures_util::stream::empty().boxed()
    }

    async fn image(&self, _: &str) -> Result<Image, EngineError> {
        Self::not_found("look at an image").await
    }

    async fn platform_manifests(&self, _: &ImageId) -> Result<Vec<PlatformManifest>, EngineError> {
        Ok(Vec::new())
    }

    async fn pull(
        &self,
        image: &ImageRef,
        _: Option<&Platform>,
        _: Option<&Login>,
        _: &(dyn Fn(LayerProgress) + Send + Sync),
    ) -> Result<Option<String>, PullError> {
        Self::unpublished(image).await
    }

    async fn remote_digest(
        &self,
        image: &ImageRef,
        _: Option<&Login>,
    ) -> Result<String, PullError> {
        Self::unpublished(image).await
    }

    async fn unnamed_images(&self) -> Result<Vec<UnnamedImage>, EngineError> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _: &ImageId) -> Result<(), EngineError> {
        Self::not_found("remove an image").await
    }

    async fn create(
        &self,
        _: &ContainerName,
        _: &CreateRequest,
        _: Option<&Platform>,
    ) -> Result<ContainerId, EngineError> {
        Self::not_found("create").await
    }

    async fn connect(&self, _: &ContainerId, _: &str, _: &Object) -> Result<(), EngineError> {
        Self::not_found("connect").await
    }

    async fn disconnect(&self, _: &ContainerId, _: &str) -> Result<(), EngineError> {
        Self::not_found("disconnect").await
    }

    async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        Ok(Vec::new())
    }

    async fn start(&self, _: &ContainerId) -> Result<(), EngineError> {
        Self::not_found("start").await
    }

    async fn stop(&self, _: &ContainerId, _: StopMode) -> Result<(), EngineError> {
        Self::not_found("stop").await
    }

    async fn rename(&self, _: &ContainerId, _: &ContainerName) -> Result<(), EngineError> {
        Self::not_found("rename").await
    }

    async fn remove(&self, _: &ContainerId, _: Removal) -> Result<(), EngineError> {
        Self::not_found("remove").await
    }

    async fn send(&self, _: &RawCall) -> Result<RawAnswer, EngineError> {
        Self::not_found("send").await
    }
}

/// The default policy as another component: a section that nobody reads, and another digest.
fn variant(number: u8) -> Bytes {
    let mut bytes = DEFAULT_POLICY.to_vec();
    // Custom section, four bytes: a name of two, and the number.
    bytes.extend([0, 4, 2, b'n', b'o', number]);
    bytes.into()
}

/// The configuration of each generation names a runtime that no other one does, so a report shows which one it was made with.
fn config(mark: usize) -> String {
    json!({ "runtimes": [format!("r{mark}")] }).to_string()
}

async fn refresher(state: &std::path::Path) -> anyhow::Result<Refresher> {
    let patterns = GrantPatterns {
        images: vec!["ghcr.io/molecule-ai/*".into()],
        containers: vec!["ws-*".into()],
        labels: BTreeMap::new(),
        environment: vec![],
        verbs: vec![Verb::Inspect, Verb::Pull, Verb::Replace],
        followers: false,
    };
    let credentials = Credentials::new(&EnvironmentVariables::default(), "ghcr.io", &[], None)?;
    let terms = TrustConfig {
        grants: Arc::new(Grants::new(&patterns)?),
        trust: Trust::default(),
        carrier: Carrier {
            registries: Registries::default(),
            credentials: credentials.clone(),
        },
    };
    let asked = ConfiguredPolicy {
        source: Source::BuiltIn,
        config: config(0),
        allow_older: false,
    };
    let engine = PolicyEngine::new()?.with_cache(state.join("compiled"));
    let started = Generations::start(engine, terms, state, Persistence::Generations, asked);
    let generations = started
        .await
        .map_err(|error| anyhow::anyhow!(error.sentence()))?;
    let call = Duration::from_secs(60);
    // Nobody is asked for a digest.
    let rate = Rate {
        requests: 0,
        window: Duration::from_secs(60),
    };
    let workshop = EngineContext {
        engine: Arc::new(Nothing),
        digests: Arc::new(Digests::new(credentials.clone(), vec![], rate)),
        credentials,
        platform: None,
        patience: RecoveryTimeouts {
            proof: ReadinessCheck {
                grace: call,
                health: call,
            },
            call,
        },
        leases: Leases::in_folder(state.to_owned()),
        lanes: ConcurrencyLimits::default(),
        first_seen: FirstSeen::default(),
        permitted: OperationPermissions::default(),
        ties: DependencyCache::default(),
        protection: SelfProtection::default(),
        images: ImageRecords::default(),
    };
    let bounds = Bounds {
        counts: Counts {
            inspects: 10,
            pulls: 10,
            recreates: 10,
        },
        concurrency: Concurrency {
            inspects: 2,
            pulls: 2,
            recreates: 2,
        },
        whole: WHOLE,
        keep_previous_images: None,
    };
    let generations = Arc::new(generations);
    Ok(Refresher::new(Arc::new(workshop), generations, bounds))
}

/// What became active under which number: its digest, and its configuration.
type Swapped = Arc<Mutex<BTreeMap<u64, (String, String)>>>;

fn resident_bytes() -> anyhow::Result<usize> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes: usize = kilobytes.context("no resident size")?.trim().parse()?;
    Ok(kilobytes << 10)
}

#[expect(
    clippy::print_stdout,
    reason = "the seed repeats a run that failed, and the counts say what a run was worth"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_call_is_made_by_one_generation_while_policies_are_swapped() -> anyhow::Result<()> {
    let seed = match std::env::var("REFIT_LOAD_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => fastrand::u64(..),
    };
    println!("REFIT_LOAD_SEED={seed}");
    let began = Instant::now();
    let state = tempfile::tempdir()?;
    let refresher = Arc::new(refresher(state.path()).await?);
    let swapped = Swapped::default();
    remember(&refresher, &swapped);
    let done = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));

    let workers = (0..WORKERS).map(|worker| {
        let (refresher, done, calls) = (refresher.clone(), done.clone(), calls.clone());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_add(worker as u64));
            let mut reports = Vec::new();
            // At least so many, and for as long as there are swaps.
            while calls.fetch_add(1, Ordering::Relaxed) < CALLS || !done.load(Ordering::Relaxed) {
                let mode = if random.bool() {
                    Mode::Plan
                } else {
                    Mode::Refresh
                };
                let before = refresher.active().number;
                let report = refresher
                    .run(&request(), mode, no_events(), Default::default())
                    .await?;
                ensure!(
                    report.policy.generation >= before,
                    "it was made by one that had been replaced"
                );
                reports.push(seen(&report)?);
            }
            Ok(reports)
        })
    });
    let workers: Vec<_> = workers.collect();
    let settled = swap_again_and_again(&refresher, &swapped, seed).await?;
    done.store(true, Ordering::Relaxed);
    let mut reports = Vec::new();
    for worker in workers {
        reports.extend(tokio::time::timeout(WHOLE, worker).await???);
    }

    let swapped = swapped.lock().unwrap();
    let mut generations_seen = std::collections::BTreeSet::new();
    for (generation, digest, runtime) in &reports {
        let (was, config) = swapped.get(generation).context("no such generation")?;
        let wanted = format!("{{\"runtimes\":[\"{runtime}\"]}}");
        ensure!(
            (was, config) == (digest, &wanted),
            "generation {generation} is {was} {config}, the report says {digest} {wanted}"
        );
        generations_seen.insert(*generation);
    }
    ensure!(reports.len() >= CALLS, "{} calls", reports.len());
    let grown = resident_bytes()?.saturating_sub(settled);
    println!(
        "{} calls, {} swaps, {} generations seen, {} MiB grown, {:.1} s",
        reports.len(),
        swapped.len() - 1,
        generations_seen.len(),
        grown >> 20,
        began.elapsed().as_secs_f64()
    );
    ensure!(
        generations_seen.len() > SWAPS / 4,
        "calls and swaps did not meet: {} seen",
        generations_seen.len()
    );
    ensure!(grown <= GROWTH_BYTES_MAX, "{} MiB grown", grown >> 20);
    Ok(())
}

/// Components, configurations and ways back, as the seed says. The memory after a third of it.
async fn swap_again_and_again(
    refresher: &Refresher,
    swapped: &Swapped,
    seed: u64,
) -> anyhow::Result<usize> {
    let mut random = fastrand::Rng::with_seed(seed);
    let generations = refresher.generations();
    let mut settled = 0;
    for number in 1..=SWAPS {
        let active = generations.active();
        let outcome = if number > 1 && random.u8(..10) == 0 {
            generations.roll_back(Some(active.number), "the test").await
        } else {
            let source = match random.u8(..3) {
                0 => Source::Active,
                n => Source::Bytes {
                    bytes: variant(n),
                    origin: format!("variant {n}"),
                    signature: None,
                },
            };
            let candidate = Candidate {
                allow_older: false,
                source,
                config: Some(config(number)),
                expected: Some(active.number),
                by: "the test".into(),
            };
            generations.swap(candidate).await
        };
        drop(active);
        let outcome = outcome.map_err(|error| anyhow::anyhow!("{error}: {}", error.source))?;
        ensure!(outcome.changed, "swap {number} changed nothing");
        remember(refresher, swapped);
        if number == SWAPS / 3 {
            settled = resident_bytes()?;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..20))).await;
    }
    Ok(settled)
}

fn remember(refresher: &Refresher, swapped: &Swapped) {
    let active = refresher.active();
    let what = (
        active.policy().digest.clone(),
        active.content.config.clone(),
    );
    swapped.lock().unwrap().insert(active.number, what);
}

fn request() -> Request {
    Request {
        trigger: Trigger::Api,
        targets: vec![],
        images: vec![],
        recreate: true,
        force: false,
    }
}

fn seen(report: &Report) -> anyhow::Result<(u64, String, String)> {
    ensure!(report.targets.len() == 1, "{:?}", report.targets);
    let runtime = report.targets[0].name.clone();
    Ok((
        report.policy.generation,
        report.policy.digest.clone(),
        runtime,
    ))
}
