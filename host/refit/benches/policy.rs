//! Measures the cost of a policy: a call, a decision about a thousand containers, its growth with their number, and a swap. `cargo
//! xtask bench` builds the guests and runs this.

mod guests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use criterion::{
    BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use refit::capabilities::Capabilities;
use refit::capabilities::snapshot::Snapshot;
use refit::capabilities::snapshot::replay::SnapshotCapabilities;
use refit::model::grants::Grants;
use refit::model::request::{Request, Trigger};
use refit::registry::credentials::Credentials;
use refit::revisions::Generations;
use refit::revisions::artifact::Carrier;
use refit::revisions::artifact::registry::Registries;
use refit::revisions::artifact::signature::Trust;
use refit::revisions::load::Source;
use refit::revisions::start::{Persistence, TrustConfig};
use refit::revisions::swap::{Candidate, ConfiguredPolicy};
use refit::sandbox::{
    Clock, Concurrency, DEFAULT_POLICY, Isolation, Policy, PolicyEngine, PolicyState, Session,
    WorkerLimits,
};
use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy_workspace::Workspace;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const CONTAINERS: usize = 1_000;
/// Numbers of containers, to see whether the time of a refresh grows linearly.
const SIZES: [usize; 4] = [100, 1_000, 2_500, 5_000];
const RUNTIMES: [&str; 4] = ["claude-code", "hermes", "crewai", "openclaw"];

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_secs(1));
    targets = instantiate, call, decide, scale, swap
}
criterion_main!(benches);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads are to be had")
}

/// Compiles each guest once for all benchmarks, because Python takes seconds.
fn load(runtime: &Runtime, name: &str, bytes: &Bytes) -> Policy {
    static CACHE: OnceLock<TempDir> = OnceLock::new();
    let cache = CACHE.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let engine = PolicyEngine::new().expect("an engine");
    let engine = engine.with_cache(cache.path().to_owned());
    let loaded = runtime.block_on(engine.load(bytes.clone(), name));
    loaded.expect("the guest loads")
}

/// Measure store and instance without a call: the work before any guest code runs.
fn instantiate(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("instantiate");
    for (language, bytes) in guests::all() {
        let policy = load(&runtime, language, &bytes);
        group.bench_function(language, |bencher| {
            bencher.iter(|| runtime.block_on(policy.instantiate()).unwrap());
        });
    }
}

/// Measure store, instance, and the shortest call: a check of an empty configuration.
fn call(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("call");
    for (language, bytes) in guests::all() {
        let policy = load(&runtime, language, &bytes);
        group.bench_function(language, |bencher| {
            bencher.iter(|| runtime.block_on(policy.validate_config("{}")).unwrap());
        });
    }
}

/// Measure a refresh that recreates nothing, so that each run finds the same state: all containers are outdated.
fn decide(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group(format!("decide-{CONTAINERS}"));
    let native = FakeDocker::new();
    let native = RUNTIMES.iter().fold(native, |docker, runtime| {
        docker.image(&image(runtime), "old", "new")
    });
    let native = (0..CONTAINERS).fold(native, |docker, n| {
        docker.container(&name(n), &image(RUNTIMES[n % RUNTIMES.len()]))
    });
    let asked = refit_policy::Request {
        recreate: false,
        ..fake::request()
    };
    group.bench_function("rust, natively", |bencher| {
        bencher.iter_batched_ref(
            || native.clone(),
            |docker| {
                let mut host = FakeHost::default();
                fake::refresh::<Workspace>(docker, &mut host, "{}", &asked).unwrap()
            },
            BatchSize::LargeInput,
        );
    });

    let replay = Arc::new(SnapshotCapabilities::new(snapshot(CONTAINERS), false));
    group.bench_function("the snapshot alone", |bencher| {
        bencher.iter(|| runtime.block_on(look(&replay)));
    });
    for (language, bytes) in guests::all() {
        let policy = load(&runtime, language, &bytes);
        let decided = runtime.block_on(refresh(&policy, &replay));
        assert_eq!(decided, CONTAINERS, "{language} decides about all of them");
        group.bench_function(language, |bencher| {
            bencher.iter(|| runtime.block_on(refresh(&policy, &replay)));
        });
    }
}

/// Measure a refresh with the default policy, for few containers and many.
fn scale(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("scale");
    let bytes = Bytes::from_static(DEFAULT_POLICY);
    let policy = load(&runtime, "rust", &bytes);
    for containers in SIZES {
        let replay = Arc::new(SnapshotCapabilities::new(snapshot(containers), false));
        let decided = runtime.block_on(refresh(&policy, &replay));
        assert_eq!(decided, containers, "it decides about all of them");
        group.throughput(Throughput::Elements(containers as u64));
        group.bench_function(
            BenchmarkId::new("the snapshot alone", containers),
            |bencher| {
                bencher.iter(|| runtime.block_on(look(&replay)));
            },
        );
        group.bench_function(BenchmarkId::new("with the policy", containers), |bencher| {
            bencher.iter(|| runtime.block_on(refresh(&policy, &replay)));
        });
    }
}

/// Measure a swap from the bytes to the active generation, including its record on the disk.
fn swap(criterion: &mut Criterion) {
    let runtime = runtime();
    let state = tempfile::tempdir().expect("a folder");
    let limits = WorkerLimits {
        computing: Duration::from_secs(60),
        memory_bytes: 4 << 30,
    };
    let isolation = Isolation::Process {
        program: env!("CARGO_BIN_EXE_refit").into(),
        limits,
    };
    let engine = PolicyEngine::new()
        .expect("an engine")
        .with_isolation(isolation)
        .with_cache(state.path().join("compiled"));
    let asked = ConfiguredPolicy {
        source: Source::BuiltIn,
        config: "{}".into(),
        allow_older: false,
    };
    let grants = Arc::new(Grants::new(&guests::everything()).expect("grants"));
    let terms = TrustConfig {
        grants,
        trust: Trust::default(),
        carrier: Carrier {
            registries: Registries::default(),
            credentials: Credentials::default(),
        },
    };
    let started = Generations::start(engine, terms, state.path(), Persistence::Generations, asked);
    let generations = runtime.block_on(started).expect("it starts");
    let swap_in = |bytes: Bytes| {
        let candidate = Candidate {
            source: Source::Bytes {
                bytes,
                origin: "a variant".into(),
                signature: None,
            },
            config: None,
            allow_older: false,
            expected: None,
            by: "the bench".into(),
        };
        let swapped = runtime.block_on(generations.swap(candidate));
        assert!(swapped.expect("it is swapped in").changed);
    };
    let mut group = criterion.benchmark_group("swap");
    // Ten samples of the slowest take minutes.
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for (language, bytes) in guests::all() {
        let mut number = 2;
        group.bench_function(format!("{language}/cold"), |bencher| {
            bencher.iter(|| {
                number += 1;
                swap_in(variant(&bytes, number));
            });
        });
        swap_in(variant(&bytes, 0));
        swap_in(variant(&bytes, 1));
        // Start with the variant: a policy that is active already is not swapped in.
        let mut number = 1;
        group.bench_function(format!("{language}/cached"), |bencher| {
            bencher.iter(|| {
                number += 1;
                swap_in(variant(&bytes, number % 2));
            });
        });
    }
}

/// The same policy as another component: an unused section gives it another digest.
fn variant(component: &Bytes, number: u32) -> Bytes {
    let mut bytes = component.to_vec();
    // A custom section of seven bytes: a name of two, and the number.
    bytes.extend([0, 7, 2, b'n', b'o']);
    bytes.extend(number.to_le_bytes());
    bytes.into()
}

fn name(n: usize) -> String {
    format!("ws-{n:04}")
}

fn image(runtime: &str) -> String {
    format!("ghcr.io/molecule-ai/workspace-template-{runtime}:latest")
}

fn snapshot(containers: usize) -> Snapshot {
    let id = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let container = |n: usize| {
        let image = image(RUNTIMES[n % RUNTIMES.len()]);
        json!({
            "name": name(n), "id": format!("{n:064x}").chars().rev().collect::<String>(), "image": image,
            "image_id": id("1"), "state": "running", "created": 0, "networks": ["platform"],
            "labels": {"org.opencontainers.image.version": "1.2.3", "platform.workspace": n.to_string()},
        })
    };
    let document = json!({
        "snapshot": 1,
        "taken": "2026-11-23T00:00:00Z",
        "containers": (0..containers).map(container).collect::<Vec<_>>(),
        "images": RUNTIMES.map(|runtime| (image(runtime), json!({"id": id("2")})))
            .into_iter().collect::<serde_json::Map<_, _>>(),
    });
    Snapshot::parse(document.to_string().as_bytes(), "the bench").expect("a snapshot")
}

/// The engine calls of each refresh below, without a policy.
async fn look(replay: &SnapshotCapabilities) -> usize {
    let listed = replay.containers().await.expect("they are listed");
    let mut seen = 0;
    for container in &listed {
        seen += usize::from(replay.inspect(container).await.is_ok());
    }
    seen
}

async fn refresh(policy: &Policy, replay: &Arc<SnapshotCapabilities>) -> usize {
    let request = Request {
        trigger: Trigger::Operator,
        targets: vec![],
        images: vec![],
        recreate: false,
        force: false,
    };
    let session = Session {
        capabilities: replay.clone(),
        grants: Arc::new(Grants::new(&guests::everything()).expect("grants")),
        concurrency: Concurrency {
            inspects: 8,
            pulls: 4,
            recreates: 4,
        },
        state: PolicyState::empty(),
        clock: Clock(jiff::Timestamp::now()),
    };
    let limit = Duration::from_secs(60);
    let decided = policy.refresh(&request, "{}", session, limit).await;
    decided
        .expect("no trap")
        .expect("no failure")
        .by_container
        .len()
}
