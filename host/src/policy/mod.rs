//! Policies: loading them, and calling them within their limits. The only place that names wasmtime.
//!
//! [`PolicyEngine::load`] takes bytes that nobody vouches for to a [`Policy`] that has been checked against the contract
//! ([`Examined`]), has compiled (`compile`, kept by `cache`), and has said who it is. A policy is called in a fresh store each
//! time (`instance`); what it may do is decided by the capabilities that it is handed, not here.

mod allocation;
mod bindings;
mod cache;
mod capabilities;
mod compile;
mod contract;
mod convert;
mod cost;
mod error;
mod examine;
mod instance;
pub mod limits;
mod log;
mod output;
mod state;
mod wasi;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use wasmtime::component::Component;
use wasmtime::{Config, Engine, Store};

use self::allocation::{Machine, Pool};
use self::bindings::exports::refit::policy::policy as wit;
use self::bindings::{RefreshPolicy, RefreshPolicyPre};
use self::cache::Cache;
use self::compile::Compiled;
use self::error::AtInstantiation;
use self::instance::{HostState, Nothing};
use self::limits::Times;
use crate::grants::{GrantPatterns, Grants};
use crate::refresh::Request;

pub use self::allocation::Allocation;
pub use self::compile::{
    CompileLimits, Compiler, SUBCOMMAND as COMPILE_SUBCOMMAND, compile_from_stdin,
};
pub use self::contract::{CONTRACT, CONTRACT_TEXT, CONTRACT_VERSION};
pub use self::cost::{Cost, Metering};
pub use self::error::{ConfigProblem, Place, PolicyError, PolicyErrorKind, Task};
pub use self::examine::{Examined, Imports, Tool};
pub use self::instance::{Clock, Concurrency, Session};
pub(crate) use self::log::printable;
pub use self::log::{LeftOut, LogLine};
pub use self::state::{PolicyState, PolicyStates, StateError};

/// The default policy, built from `plugin/workspace` along with this crate.
pub const DEFAULT_POLICY: &[u8] = include_bytes!(env!("DEFAULT_POLICY_WASM"));

/// Compiles and links. One per process: its clock is a thread.
pub struct PolicyEngine {
    machine: Machine,
    /// Tried first, where it was asked for and is to be had.
    pool: Option<Pool>,
    compiler: Compiler,
    cache: Option<Arc<Cache>>,
    times: Times,
    metering: Metering,
}

/// A component that was compiled, and is not linked yet.
pub struct CompiledPolicy {
    examined: Examined,
    component: Component,
}

/// A component that fits what this host offers, and has not been called yet.
pub struct LinkedPolicy(Policy);

/// A policy that was checked and may be called.
pub struct Policy {
    pub name: String,
    pub version: String,
    pub summary: String,
    /// JSON Schema of its configuration, as the policy gives it. May be empty.
    pub config_schema: String,
    /// `sha256:…` of the component's bytes.
    pub digest: String,
    /// What it can ask of the host at all.
    pub imports: Imports,
    engine: Engine,
    /// Of the pool that it lives in.
    turns: Option<Arc<Semaphore>>,
    times: Times,
    metering: Metering,
    pre: RefreshPolicyPre<HostState>,
}

/// What a policy decided, as far as it is admissible: bounded, printable, one decision a container.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// What the policy calls each image: `hermes` → `ghcr.io/…/workspace-template-hermes:latest`.
    pub targets: Vec<Target>,
    pub by_container: BTreeMap<String, Decision>,
    /// The containers that it gave to `recreate`, by name, a list for each call.
    pub waves: Vec<Vec<String>>,
    /// What it logged and printed, in order.
    pub log: Vec<LogLine>,
    /// Of its log.
    pub left_out: LeftOut,
    pub cost: Cost,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Target {
    pub name: String,
    pub image: String,
}

#[derive(Clone, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum Verdict {
    Recreate,
    Current,
    Stale,
    Unknown,
    Leave,
}

/// A policy could not make the refresh at all, and says why.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    UnknownTargets {
        asked: Vec<String>,
        known: Vec<String>,
    },
    InvalidConfig(Vec<ConfigProblem>),
    /// The containers could not be listed: why, as the policy was told, and what the images stand for that it had pulled.
    Unlisted {
        cause: String,
        targets: Vec<Target>,
    },
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownTargets { asked, .. } => {
                write!(f, "unknown targets: {}", asked.join(", "))
            }
            Self::InvalidConfig(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                write!(f, "its configuration: {}", problems.join("; "))
            }
            Self::Unlisted { cause, .. } => {
                write!(f, "the containers could not be listed: {cause}")
            }
            Self::Other(message) => f.write_str(message),
        }
    }
}

/// How policies are compiled and run. One function, because code that was compiled under other settings does not load.
fn configuration(metering: Metering) -> Config {
    let mut config = Config::new();
    metering.apply(&mut config);
    #[cfg(feature = "compiler")]
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    config
        .epoch_interruption(true)
        .max_wasm_stack(limits::STACK_BYTES_MAX)
        .async_stack_size(limits::STACK_BYTES)
        .wasm_backtrace_max_frames(NonZeroUsize::new(limits::BACKTRACE_FRAMES_MAX));
    // What a policy has no use for is surface that we need not defend. Threads, garbage collection, exceptions and async are not
    // even compiled in: see the features of wasmtime in Cargo.toml.
    config
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_stack_switching(false)
        // Components of several modules link through it.
        .wasm_multi_memory(true);
    config
}

impl PolicyEngine {
    /// Compiles in this process, where there is a compiler, and keeps nothing.
    pub fn new() -> Result<Self, PolicyError> {
        Self::with_times(Times::default())
    }

    /// The same with other times, for tests that cross them.
    pub fn with_times(times: Times) -> Result<Self, PolicyError> {
        Self::allocating(Allocation::default(), times)
    }

    pub fn allocating(allocation: Allocation, times: Times) -> Result<Self, PolicyError> {
        Self::make(allocation, times, Metering::Off)
    }

    /// One whose policies tell [`Cost::instructions`].
    pub fn metering() -> Result<Self, PolicyError> {
        Self::make(
            Allocation::default(),
            Times::default(),
            Metering::Instructions,
        )
    }

    fn make(allocation: Allocation, times: Times, metering: Metering) -> Result<Self, PolicyError> {
        let machine = Machine::new(&configuration(metering)).map_err(PolicyError::host)?;
        let pool = match allocation {
            Allocation::OnDemand => None,
            Allocation::Pooled => Pool::probe(),
        };
        Ok(Self {
            machine,
            pool,
            compiler: Compiler::default(),
            cache: None,
            times,
            metering,
        })
    }

    #[must_use]
    pub fn compiled_by(mut self, compiler: Compiler) -> Self {
        self.compiler = compiler;
        self
    }

    /// Keeps what it compiled in this folder, which should be nobody else's. See `cache`.
    #[must_use]
    pub fn cached_in(mut self, folder: PathBuf) -> Self {
        self.cache = Some(Arc::new(Cache::in_folder(folder)));
        self
    }

    /// All of the way, from bytes to a policy that can be called. `origin` says where they came from, for people.
    pub async fn load(&self, bytes: impl Into<Bytes>, origin: &str) -> Result<Policy, PolicyError> {
        let examined = self.examine(bytes.into(), origin).await?;
        self.check_contract(&examined)?;
        let compiled = self.compile(examined).await?;
        self.introduce(self.link(compiled)?).await
    }

    /// Whether the bytes are a valid component, and what it wants. Nothing of it is compiled or runs.
    pub async fn examine(&self, bytes: Bytes, origin: &str) -> Result<Examined, PolicyError> {
        let owned = origin.to_owned();
        // Tens of milliseconds for the largest, and no thread of ours may wait for it.
        match tokio::task::spawn_blocking(move || Examined::read(bytes, &owned)).await {
            Ok(examined) => examined,
            Err(panicked) => Err(PolicyError::Invalid {
                origin: origin.to_owned(),
                cause: panicked.to_string(),
            }),
        }
    }

    /// Whether it speaks our contract, and imports nothing else.
    pub fn check_contract(&self, examined: &Examined) -> Result<(), PolicyError> {
        examined.check_contract()
    }

    /// From the cache, or by the compiler: from a tenth of a second (Rust) to many seconds (Python).
    pub async fn compile(&self, examined: Examined) -> Result<CompiledPolicy, PolicyError> {
        let component = match self.recall(&examined).await {
            Some(component) => component,
            None => {
                let code = self
                    .compiler
                    .compile(
                        &self.machine.engine,
                        self.metering,
                        &examined.bytes,
                        &examined.origin,
                    )
                    .await?;
                self.keep(&examined, &code).await;
                self.adopt(code).await?
            }
        };
        Ok(CompiledPolicy {
            examined,
            component,
        })
    }

    async fn adopt(&self, code: Compiled) -> Result<Component, PolicyError> {
        let engine = self.machine.engine.clone();
        let pooled = self.pool.as_ref().map(|pool| pool.machine.engine.clone());
        let adopting = move || match pooled.map(|engine| code.adopt(&engine)) {
            Some(Ok(component)) => Ok(component),
            // It asks for more than a place in the pool has. Whether it may, the limits say when it is called.
            Some(Err(_)) | None => code.adopt(&engine),
        };
        match tokio::task::spawn_blocking(adopting).await {
            Ok(component) => component.map_err(PolicyError::host),
            Err(panicked) => Err(PolicyError::Host(panicked.to_string())),
        }
    }

    /// Whether this host offers each function that it imports, with the types that it expects, and it exports what we call.
    pub fn link(&self, compiled: CompiledPolicy) -> Result<LinkedPolicy, PolicyError> {
        let CompiledPolicy {
            examined,
            component,
        } = compiled;
        let pool = self.pool.as_ref();
        let pool = pool.filter(|pool| Engine::same(component.engine(), &pool.machine.engine));
        let machine = pool.map_or(&self.machine, |pool| &pool.machine);
        let linked = machine
            .linker
            .instantiate_pre(&component)
            .and_then(RefreshPolicyPre::new);
        Ok(LinkedPolicy(Policy {
            name: examined.origin.clone(),
            version: String::new(),
            summary: String::new(),
            config_schema: String::new(),
            digest: examined.digest,
            imports: examined.imports,
            engine: machine.engine.clone(),
            turns: pool.map(|pool| pool.turns.clone()),
            times: self.times,
            metering: self.metering,
            pre: linked.map_err(|cause| PolicyError::misfit(&examined.origin, &cause))?,
        }))
    }

    /// The first call: it says who it is.
    pub async fn introduce(&self, linked: LinkedPolicy) -> Result<Policy, PolicyError> {
        let LinkedPolicy(mut policy) = linked;
        let described = policy
            .probe(Task::Describe, |guest, store| {
                Box::pin(guest.refit_policy_policy().call_describe(store))
            })
            .await?;
        policy.introduce(described)?;
        Ok(policy)
    }

    /// What was compiled before, if it is of use here.
    async fn recall(&self, examined: &Examined) -> Option<Component> {
        for name in self.cache_names(examined).await {
            let cache = self.cache.clone()?;
            let found = tokio::task::spawn_blocking(move || cache.get(&name)).await;
            let Some(code) = found.ok().flatten() else {
                continue;
            };
            if let Ok(component) = self.adopt(Compiled::unsealed(code)).await {
                return Some(component);
            }
        }
        None
    }

    #[cfg(feature = "compiler")]
    #[expect(clippy::unused_async, reason = "without a compiler it reads the disk")]
    async fn cache_names(&self, examined: &Examined) -> Vec<cache::Name> {
        vec![self.cache_name(examined)]
    }

    /// Only a compiler can say under which name its code would be, so all of them are tried: wasmtime refuses what it has no use for.
    #[cfg(not(feature = "compiler"))]
    async fn cache_names(&self, examined: &Examined) -> Vec<cache::Name> {
        let Some(cache) = self.cache.clone() else {
            return vec![];
        };
        let component = Sha256::digest(&examined.bytes).into();
        let names = tokio::task::spawn_blocking(move || cache.names_of(&component)).await;
        names.unwrap_or_default()
    }

    /// Without a compiler there is nothing new to keep.
    #[cfg(not(feature = "compiler"))]
    #[expect(clippy::unused_async, reason = "with a compiler it writes to the disk")]
    async fn keep(&self, _: &Examined, _: &Compiled) {}

    #[cfg(feature = "compiler")]
    async fn keep(&self, examined: &Examined, code: &Compiled) {
        let Some(cache) = self.cache.clone() else {
            return;
        };
        let (name, code) = (self.cache_name(examined), code.code().clone());
        // One that does not end well has told so itself.
        let _ = tokio::task::spawn_blocking(move || cache.put(&name, &code)).await;
    }

    #[cfg(feature = "compiler")]
    fn cache_name(&self, examined: &Examined) -> cache::Name {
        use std::hash::Hash as _;
        /// Takes in what is hashed, as `std` has no hash that is the same in the next process.
        struct Collected(Sha256);
        impl std::hash::Hasher for Collected {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        let mut compatibility = Collected(Sha256::new());
        self.machine
            .engine
            .precompile_compatibility_hash()
            .hash(&mut compatibility);
        cache::Name {
            component: Sha256::digest(&examined.bytes).into(),
            compatibility: compatibility.0.finalize().into(),
        }
    }
}

/// A thread that makes guests come to a check. It ends with the engine, which it does not keep alive.
fn tick(engine: &Engine) {
    let engine = engine.weak();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(limits::TICK);
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => break,
            }
        }
    });
}

/// What is left of a call's store.
struct Ended {
    lent: BTreeSet<String>,
    waves: Vec<Vec<String>>,
    log: Vec<LogLine>,
    left_out: LeftOut,
    cost: Cost,
}

type GuestCall<'a, T> = Pin<Box<dyn Future<Output = wasmtime::Result<T>> + Send + 'a>>;

impl Policy {
    /// What is wrong with a configuration; empty where nothing is.
    pub async fn validate_config(&self, config: &str) -> Result<Vec<ConfigProblem>, PolicyError> {
        let config = config.to_owned();
        let answer = self
            .probe(Task::CheckConfig, move |guest, store| {
                Box::pin(async move {
                    guest
                        .refit_policy_policy()
                        .call_validate_config(store, &config)
                        .await
                })
            })
            .await?;
        Ok(answer.err().map(problems).unwrap_or_default())
    }

    /// One refresh. `limit` is for the whole of it, waiting included; a recreation that was begun goes on without us.
    pub async fn refresh(
        &self,
        request: &Request,
        config: &str,
        session: Session,
        limit: Duration,
    ) -> Result<Result<Decisions, Failure>, PolicyError> {
        let (request, config) = (convert::request(request), config.to_owned());
        let (answer, ended) = self
            .call(Task::Refresh, session, limit, move |guest, store| {
                Box::pin(async move {
                    guest
                        .refit_policy_policy()
                        .call_refresh(store, &request, &config)
                        .await
                })
            })
            .await?;
        match answer {
            Ok(report) => self.admissible(report, ended).map(Ok),
            Err(failure) => Ok(Err(self.failure(failure))),
        }
    }

    /// A fresh store and an instance in it, without a call: what each call takes before anything of the guest's runs.
    pub async fn instantiate(&self) -> Result<(), PolicyError> {
        self.probe(Task::Describe, |_, _| Box::pin(async { Ok(()) }))
            .await
    }

    async fn probe<T: Send>(
        &self,
        doing: Task,
        call: impl for<'a> FnOnce(&'a RefreshPolicy, &'a mut Store<HostState>) -> GuestCall<'a, T>
        + Send,
    ) -> Result<T, PolicyError> {
        let nothing = GrantPatterns {
            images: vec![],
            containers: vec![],
            labels: BTreeMap::new(),
            environment: vec![],
            verbs: vec![],
        };
        let session = Session {
            capabilities: Arc::new(Nothing),
            grants: Arc::new(Grants::new(&nothing).expect("no patterns, none of them wrong")),
            concurrency: Concurrency {
                inspects: 1,
                pulls: 1,
                recreates: 1,
            },
            state: PolicyState::empty(),
            clock: Clock::Wall,
        };
        let (answer, _) = self.call(doing, session, self.times.probe, call).await?;
        Ok(answer)
    }

    /// A fresh store, one call, and whatever became of it told by its kind. Whatever a guest can run code in (start functions,
    /// `realloc`, what runs after a return, destructors) is within the call, and so within its limits.
    async fn call<T: Send>(
        &self,
        doing: Task,
        session: Session,
        limit: Duration,
        call: impl for<'a> FnOnce(&'a RefreshPolicy, &'a mut Store<HostState>) -> GuestCall<'a, T>
        + Send,
    ) -> Result<(T, Ended), PolicyError> {
        let state = HostState::new(session, &self.name);
        // Before the store, so that it ends after it: what a store holds goes back to the pool only then.
        let mut turn = None;
        let mut store = instance::store(&self.engine, state, self.times.compute);
        self.metering.fill(&mut store);
        let work = async {
            if let Some(turns) = &self.turns {
                turn = turns.acquire().await.ok();
            }
            let guest = self.pre.instantiate_async(&mut store).await;
            let guest = guest.map_err(|error| error.context(AtInstantiation))?;
            call(&guest, &mut store).await
        };
        let answer = tokio::time::timeout(limit, work).await;
        let instructions = self.metering.spent(&store);
        let mut state = store.into_data();
        drop(turn);
        state.take_output();
        match answer {
            Ok(Ok(answer)) => Ok((
                answer,
                Ended {
                    cost: state.cost(instructions),
                    left_out: state.log.left_out(),
                    log: state.log.take_lines(),
                    lent: state.lent,
                    waves: state.waves,
                },
            )),
            Ok(Err(trap)) => Err(PolicyError::of_trap(
                self.title(),
                doing,
                self.times.compute,
                &trap,
            )),
            Err(_) => Err(PolicyError::TimedOut {
                policy: self.title(),
                doing,
                limit,
            }),
        }
    }

    /// `workspace 0.1.0`, for people.
    pub fn title(&self) -> String {
        if self.version.is_empty() {
            self.name.clone()
        } else {
            format!("{} {}", self.name, self.version)
        }
    }

    fn introduce(&mut self, described: wit::Description) -> Result<(), PolicyError> {
        let bad = |problem: &str| PolicyError::BadAnswer {
            policy: self.name.clone(),
            problem: problem.to_owned(),
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if described.name.is_empty()
            || described.name.len() > limits::NAME_BYTES_MAX
            || !described.name.chars().all(plain)
        {
            return Err(bad(
                "its name is not 1 to 64 lower case letters, digits and hyphens",
            ));
        }
        if described.version.is_empty()
            || described.version.len() > limits::NAME_BYTES_MAX
            || !described.version.chars().all(|c| c.is_ascii_graphic())
        {
            return Err(bad("its version is not 1 to 64 visible characters"));
        }
        if described.config_schema.len() > limits::SCHEMA_BYTES_MAX {
            return Err(bad("the schema of its configuration is too large"));
        }
        self.name = described.name;
        self.version = described.version;
        self.summary = printable(&described.summary, limits::TEXT_BYTES_MAX);
        self.config_schema = described.config_schema;
        Ok(())
    }

    fn admissible(&self, report: wit::Report, ended: Ended) -> Result<Decisions, PolicyError> {
        let bad = |problem: String| PolicyError::BadAnswer {
            policy: self.title(),
            problem,
        };
        if report.targets.len().max(report.decisions.len()) > limits::REPORT_ENTRIES_MAX {
            return Err(bad(format!(
                "its report has more than {} entries",
                limits::REPORT_ENTRIES_MAX
            )));
        }
        let text = |text: String| printable(&text, limits::TEXT_BYTES_MAX);
        let targets = report.targets.into_iter().map(target).collect();
        let mut by_container = BTreeMap::new();
        for decision in report.decisions {
            let verdict = match decision.verdict {
                wit::Verdict::Recreate => Verdict::Recreate,
                wit::Verdict::Current => Verdict::Current,
                wit::Verdict::Stale => Verdict::Stale,
                wit::Verdict::Unknown => Verdict::Unknown,
                wit::Verdict::Leave => Verdict::Leave,
            };
            let container = text(decision.container);
            if !ended.lent.contains(&container) {
                return Err(bad(format!(
                    "it decided about `{container}`, a container that it was not lent"
                )));
            }
            let decided = Decision {
                verdict,
                rule: text(decision.rule),
                reason: text(decision.reason),
            };
            if by_container.insert(container.clone(), decided).is_some() {
                return Err(bad(format!("it decided twice about `{container}`")));
            }
        }
        Ok(Decisions {
            targets,
            by_container,
            waves: ended.waves,
            log: ended.log,
            left_out: ended.left_out,
            cost: ended.cost,
        })
    }

    fn failure(&self, failure: wit::Failure) -> Failure {
        let texts = |texts: Vec<String>| -> Vec<String> {
            texts
                .into_iter()
                .take(limits::PROBLEMS_MAX)
                .map(|text| printable(&text, limits::TEXT_BYTES_MAX))
                .collect()
        };
        match failure {
            wit::Failure::UnknownTargets(unknown) => Failure::UnknownTargets {
                asked: texts(unknown.asked),
                known: texts(unknown.known),
            },
            wit::Failure::InvalidConfig(found) => Failure::InvalidConfig(problems(found)),
            wit::Failure::Unlisted(unlisted) => Failure::Unlisted {
                cause: printable(&error_text(unlisted.error), limits::TEXT_BYTES_MAX),
                targets: unlisted
                    .targets
                    .into_iter()
                    .take(limits::REPORT_ENTRIES_MAX)
                    .map(target)
                    .collect(),
            },
            wit::Failure::Other(message) => {
                Failure::Other(printable(&message, limits::TEXT_BYTES_MAX))
            }
        }
    }
}

fn target(it: wit::Target) -> Target {
    Target {
        name: printable(&it.name, limits::TEXT_BYTES_MAX),
        image: printable(&it.image, limits::TEXT_BYTES_MAX),
    }
}

fn problems(found: Vec<wit::ConfigProblem>) -> Vec<ConfigProblem> {
    let text = |text: String| printable(&text, limits::TEXT_BYTES_MAX);
    let problem = |it: wit::ConfigProblem| ConfigProblem {
        path: text(it.path),
        problem: text(it.problem),
    };
    found
        .into_iter()
        .take(limits::PROBLEMS_MAX)
        .map(problem)
        .collect()
}

fn error_text(error: bindings::refit::policy::types::EngineError) -> String {
    use bindings::refit::policy::types::EngineError as E;
    match error {
        E::Denied(text) | E::Unavailable(text) | E::QuotaExceeded(text) | E::Other(text) => text,
        E::NotFound => "not found".into(),
        E::Cancelled => "the refresh was being ended".into(),
    }
}

/// `sha256:…`
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
