//! Loads policies and calls them within their limits. Only this crate uses wasmtime.
//!
//! [`PolicyEngine::load`] turns untrusted bytes into a [`Policy`]: it checks them against the contract ([`Examined`]), compiles
//! them (`compile`, stored by `cache`), and calls the policy for its name. A worker process examines and compiles (`isolation`).
//! Each call of a policy runs in a fresh store (`instance`); the capabilities that it receives decide what it may do, not this
//! crate.

// Allowed in one function, `compile::Compiled::adopt`, which says why; tests/tests/architecture.rs counts.
#![deny(unsafe_code)]

mod bindings;
mod cache;
mod capabilities;
mod captured_output;
mod compile;
mod contract;
mod convert;
mod cost;
mod engine;
mod error;
mod examine;
mod instance;
mod isolation;
pub mod limits;
mod log;
mod state;
mod wasi;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use refit_model::decision::{Decision, Target, Verdict};
use refit_model::grants::{GrantPatterns, Grants};
use refit_model::printable::printable;
use refit_model::request::Request;
use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine, Store};

use self::bindings::exports::refit::policy::policy as wit;
use self::bindings::{RefreshPolicy, RefreshPolicyPre};
use self::error::InstantiationError;
use self::instance::{HostState, NoCapabilities};
use self::limits::Times;

pub use self::contract::{CONTRACT, CONTRACT_TEXT, CONTRACT_VERSION};
pub use self::cost::{Cost, Metering};
pub use self::engine::{CompiledPolicy, LinkedPolicy, PolicyEngine};
pub use self::error::{ConfigProblem, Place, PolicyError, PolicyErrorKind, Task};
pub use self::examine::{Examined, Imports, Tool};
pub use self::instance::{Clock, Concurrency, Session};
pub use self::isolation::{Isolation, Job, WORKER_SUBCOMMAND, WorkerLimits, run_worker};
pub use self::log::{LeftOut, LogLine};
pub use self::state::{PolicyState, PolicyStates, StateError};

/// The default policy, which is built from `plugin/workspace` together with this crate.
pub const DEFAULT_POLICY: &[u8] = include_bytes!(env!("DEFAULT_POLICY_WASM"));

/// A checked policy that can be called.
pub struct Policy {
    pub name: String,
    pub version: String,
    pub summary: String,
    /// The JSON Schema of the configuration, from the policy. May be empty.
    pub config_schema: String,
    /// The digest of the component's bytes: `sha256:…`.
    pub digest: String,
    /// The host functions that the policy imports.
    pub imports: Imports,
    engine: Engine,
    times: Times,
    metering: Metering,
    pre: RefreshPolicyPre<HostState>,
}

/// The valid decisions of a policy: limited in size, printable, one for each container.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// The image that the policy gives each target: `hermes` → `ghcr.io/…/workspace-template-hermes:latest`.
    pub targets: Vec<Target>,
    pub by_container: BTreeMap<String, Decision>,
    /// The names of the containers in each call of `recreate`.
    pub waves: Vec<Vec<String>>,
    /// The lines that the policy logged and printed, in order.
    pub log: Vec<LogLine>,
    /// The part of the log that was dropped.
    pub left_out: LeftOut,
    pub cost: Cost,
}

/// The policy's report that it could not make the refresh.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    UnknownTargets {
        asked: Vec<String>,
        known: Vec<String>,
    },
    InvalidConfig(Vec<ConfigProblem>),
    /// The containers could not be listed: the reason as the policy saw it, and the images that it had pulled.
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

/// The wasmtime settings for compiling and running policies. There is one function for both, because code from other settings does
/// not load.
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
    // Features that policies do not need would be surface to defend. Threads, garbage collection, exceptions and async are not even
    // compiled in: see the features of wasmtime in Cargo.toml.
    config
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_stack_switching(false)
        // Components of several modules need this for linking.
        .wasm_multi_memory(true);
    config
}

/// Start a thread that makes guests reach their checks. It ends with the engine, which it does not keep alive.
fn tick(engine: &Engine) {
    let engine = engine.weak();
    std::thread::spawn(move || {
        loop {
            #[expect(clippy::disallowed_methods, reason = "a thread of its own")]
            std::thread::sleep(limits::TICK);
            match engine.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => break,
            }
        }
    });
}

/// The values that remain of a call's store.
struct Ended {
    lent: BTreeSet<String>,
    waves: Vec<Vec<String>>,
    log: Vec<LogLine>,
    left_out: LeftOut,
    cost: Cost,
}

type GuestCall<'a, T> = Pin<Box<dyn Future<Output = wasmtime::Result<T>> + Send + 'a>>;

impl Policy {
    /// The problems of a configuration, or an empty list.
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

    /// Run one refresh. `limit` applies to the whole call, waiting included; a started recreation continues without the call.
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
            Ok(report) => self.check_report(report, ended).map(Ok),
            Err(failure) => Ok(Err(self.failure(failure))),
        }
    }

    /// Create a store and an instance without a call: the work before any guest code runs.
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
            followers: false,
        };
        let session = Session {
            capabilities: Arc::new(NoCapabilities),
            grants: Arc::new(Grants::new(&nothing).expect("no patterns, none of them wrong")),
            concurrency: Concurrency {
                inspects: 1,
                pulls: 1,
                recreates: 1,
            },
            state: PolicyState::empty(),
            clock: Clock(jiff::Timestamp::now()),
        };
        let (answer, _) = self.call(doing, session, self.times.probe, call).await?;
        Ok(answer)
    }

    /// Make one call in a fresh store, and classify its error. All code that a guest can run (start functions, `realloc`,
    /// post-return functions, destructors) runs within the call, and so within its limits.
    async fn call<T: Send>(
        &self,
        doing: Task,
        session: Session,
        limit: Duration,
        call: impl for<'a> FnOnce(&'a RefreshPolicy, &'a mut Store<HostState>) -> GuestCall<'a, T>
        + Send,
    ) -> Result<(T, Ended), PolicyError> {
        let state = HostState::new(session, &self.name);
        let mut store = instance::store(&self.engine, state, self.times.compute);
        self.metering.fill(&mut store);
        let work = async {
            let guest = self.pre.instantiate_async(&mut store).await;
            let guest = guest.map_err(|error| error.context(InstantiationError))?;
            call(&guest, &mut store).await
        };
        let answer = tokio::time::timeout(limit, work).await;
        let instructions = self.metering.spent(&store);
        let mut state = store.into_data();
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
            Ok(Err(trap)) => Err(PolicyError::from_trap(
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

    /// The name and version for people: `workspace 0.1.0`.
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

    fn check_report(&self, report: wit::Report, ended: Ended) -> Result<Decisions, PolicyError> {
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

/// The digest of the bytes: `sha256:…`.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
