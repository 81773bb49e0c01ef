//! A refresh or a plan: calls the policy with capabilities on the engine (or on a simulation, for a plan), and builds the
//! report from its decisions and the recorded actions.
//!
//! A refresh uses the policy that was active when it started until its end. If that policy is replaced in the meantime, the
//! refresh continues with it.

#![forbid(unsafe_code)]

mod report;
mod shadow_run;

use std::sync::Arc;
use std::time::{Duration, Instant};

use refit_capabilities::Capabilities;
use refit_capabilities::approved_scope::{ApprovedScope, ScopedCapabilities};
use refit_capabilities::dry_run::{DryRunCapabilities, RemoteDigests};
use refit_capabilities::guard::{Counts, Guard};
use refit_capabilities::journal::{self, Journal, Record};
use refit_capabilities::live::{EngineContext, LiveCapabilities};
use refit_capabilities::prefetch::DigestPrefetch;
use refit_capabilities::scope::Scope;
use refit_capabilities::simulated::SimulatedCapabilities;
use refit_capabilities::snapshot::Snapshot;
use refit_capabilities::snapshot::record::Recorder;
use refit_capabilities::snapshot::replay::SnapshotCapabilities;
use refit_history::{History, OpenEntry, Outcome, RefreshEnd, RefreshStart};
use refit_model::diagnostic::{Cause, Diagnostic, Hints};
use refit_model::event::{Events, no_events};
use refit_model::grants::Grants;
use refit_model::pull::ImageOutcome;
use refit_model::report::{PolicyReport, Report};
use refit_model::request::{Mode, Request, Trigger};
use refit_recreate::retention;
use refit_revisions::shadow::DecisionSet;
use refit_revisions::{Generation, Generations};
use refit_sandbox::{Clock, Concurrency, ConfigProblem, Decisions, Failure, PolicyError, Session};
use tokio_util::sync::CancellationToken;

use self::shadow_run::{ShadowRun, decision_set};

pub use self::shadow_run::{DryRunInput, DryRunRequest, DryRunResult, dry_run, dry_run_decisions};

/// The limits of a refresh, whatever its policy.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub counts: Counts,
    pub concurrency: Concurrency,
    /// The time limit of the whole refresh.
    pub whole: Duration,
    /// How many previous images to keep of each pulled repository; `None` keeps all. See [`refit_recreate::retention`].
    pub keep_previous_images: Option<usize>,
}

/// Runs refreshes and plans. Many may run at once; two never work on one container.
pub struct Refresher {
    engine_context: Arc<EngineContext>,
    generations: Arc<Generations>,
    bounds: Bounds,
    /// If set, plans use it instead of the engine.
    snapshot: Option<Snapshot>,
    history: Option<Arc<History>>,
}

/// A refresh that the history shows as started, and that has done nothing yet.
#[must_use = "it is to be finished, or is written down as interrupted"]
pub struct Started {
    request: Request,
    active: Arc<Generation>,
    open_entry: Option<OpenEntry>,
    approved: Option<Arc<ApprovedScope>>,
}

impl Started {
    /// Limits the refresh to the approved scope.
    pub fn limited_to(self, approved: Option<Arc<ApprovedScope>>) -> Self {
        Self { approved, ..self }
    }

    /// Returns its number in the history, `None` if there is no history or the row could not be written.
    pub fn id(&self) -> Option<refit_history::Id> {
        self.open_entry.as_ref().and_then(OpenEntry::id)
    }

    /// Returns the policy that it uses until the end.
    pub fn policy(&self) -> PolicyReport {
        self.active.policy_report()
    }
}

/// The parameters of one call of a policy.
struct Pass {
    capabilities: Arc<dyn Capabilities>,
    scope: Arc<Scope>,
    mode: Mode,
    shadow_run: Option<ShadowRun>,
}

/// Why a refresh failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    #[error("unknown {}: {}", if .asked.len() == 1 { "target" } else { "targets" }, .asked.join(", "))]
    UnknownTargets {
        asked: Vec<String>,
        known: Vec<String>,
    },
    #[error("{}", .told.error)]
    Unlisted {
        told: Diagnostic,
        source: Option<Cause>,
        partial: Box<Report>,
    },
    #[error("the policy refused: {message}")]
    Refused {
        message: String,
        partial: Box<Report>,
    },
    #[error("the policy no longer accepts its configuration")]
    Config { problems: Vec<ConfigProblem> },
    #[error("{error}")]
    Policy {
        error: PolicyError,
        partial: Box<Report>,
    },
}

impl Hints for RefreshError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::UnknownTargets { known, .. } => {
                vec![format!("the policy knows {}", known.join(", "))]
            }
            Self::Config { problems } => problems.iter().map(ToString::to_string).collect(),
            Self::Policy { error, .. } => error.hints(),
            Self::Unlisted { told, .. } => told.hints.clone(),
            Self::Refused { .. } => vec![],
        }
    }
}

impl RefreshError {
    /// Returns the report up to the failure, if there is one.
    pub fn partial(&self) -> Option<&Report> {
        match self {
            Self::Unlisted { partial, .. }
            | Self::Refused { partial, .. }
            | Self::Policy { partial, .. } => Some(partial),
            Self::UnknownTargets { .. } | Self::Config { .. } => None,
        }
    }
}

impl Refresher {
    pub fn new(
        engine_context: Arc<EngineContext>,
        generations: Arc<Generations>,
        bounds: Bounds,
    ) -> Self {
        Self {
            engine_context,
            generations,
            bounds,
            snapshot: None,
            history: None,
        }
    }

    /// Writes refreshes, but not plans, to this history.
    #[must_use]
    pub fn with_history(mut self, history: Option<Arc<History>>) -> Self {
        self.history = history;
        self
    }

    /// Makes plans over this snapshot, at its time, without an engine.
    #[must_use]
    pub fn with_snapshot(mut self, snapshot: Snapshot) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// Returns the generations of the policy, with which callers swap them.
    pub fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    /// Returns the active generation, which the next refresh uses.
    pub fn active(&self) -> Arc<Generation> {
        self.generations.active()
    }

    pub fn history(&self) -> Option<&Arc<History>> {
        self.history.as_ref()
    }

    pub fn engine_context(&self) -> &Arc<EngineContext> {
        &self.engine_context
    }

    /// Runs a refresh or a plan. `cancel` ends it early: it finishes what it has started, and starts nothing new.
    pub async fn run(
        &self,
        request: &Request,
        mode: Mode,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        match mode {
            Mode::Plan => {
                let active = self.active();
                let pass = self.new_pass(&active, request, mode, None, (&events, &cancel));
                self.run_pass(active, request, pass, events, cancel).await
            }
            Mode::Refresh => {
                let started = self.start(request.clone(), None).await;
                self.finish(started, events, cancel).await
            }
        }
    }

    /// Plans with the active policy and these digests of the registries. It reports no events, and starts no shadow run: the
    /// plan may use known digests only.
    pub async fn plan_with_digests(
        &self,
        request: &Request,
        digests: Arc<dyn RemoteDigests>,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        let active = self.active();
        let scope = self.scope(&active.content.grants, None);
        let plan = DryRunCapabilities::new(
            self.engine_context.clone(),
            digests,
            scope.clone(),
            request.force,
        );
        let pass = Pass {
            capabilities: Arc::new(SimulatedCapabilities::new(Arc::new(plan), request.force)),
            scope,
            mode: Mode::Plan,
            shadow_run: None,
        };
        self.run_pass(active, request, pass, no_events(), cancel)
            .await
    }

    /// Writes to the history that a refresh starts with the active policy. `by` is the client's name, as the client gives it.
    pub async fn start(&self, request: Request, by: Option<String>) -> Started {
        let active = self.active();
        let open_entry = match &self.history {
            Some(history) => {
                let refresh_start = RefreshStart {
                    request: request.clone(),
                    by,
                    policy: active.policy_report(),
                };
                Some(history.begin(refresh_start).await)
            }
            None => None,
        };
        Started {
            request,
            active,
            open_entry,
            approved: None,
        }
    }

    /// Runs a started refresh, and writes its result to the history.
    pub async fn finish(
        &self,
        started: Started,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        let Started {
            request,
            active,
            open_entry,
            approved,
        } = started;
        let mode = Mode::Refresh;
        let pass = self.new_pass(&active, &request, mode, approved, (&events, &cancel));
        let answer = self
            .run_pass(active, &request, pass, events, cancel.clone())
            .await;
        if let (Some(history), Some(open_entry)) = (&self.history, open_entry) {
            let refresh_end = refresh_end(&answer, cancel.is_cancelled());
            history.end(open_entry, refresh_end).await;
        }
        answer
    }

    async fn run_pass(
        &self,
        active: Arc<Generation>,
        request: &Request,
        pass: Pass,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        let Pass {
            capabilities,
            scope,
            mode,
            shadow_run,
        } = pass;
        let began = (jiff::Timestamp::now(), Instant::now());
        let grants = active.content.grants.clone();
        // The journal wraps the guard, which wraps the capabilities.
        let guard = Guard::new(capabilities, scope, self.bounds.counts, cancel);
        let journal = Arc::new(Journal::new(Arc::new(guard), mode == Mode::Plan, events));
        let recorder = shadow_run
            .is_some()
            .then(|| Arc::new(Recorder::new(journal.clone(), grants.clone())));
        let session = Session {
            capabilities: match &recorder {
                Some(recorder) => recorder.clone(),
                None => journal.clone(),
            },
            grants,
            concurrency: self.bounds.concurrency,
            state: if mode == Mode::Plan {
                active.content.state.scratch()
            } else {
                active.content.state.clone()
            },
            // The clock stands still: a policy that measured how long a recreation takes could distinguish a plan from a
            // refresh.
            clock: Clock(match (&self.snapshot, mode) {
                (Some(snapshot), Mode::Plan) => snapshot.taken,
                (Some(_), Mode::Refresh) | (None, _) => began.0,
            }),
        };
        let answer = active
            .policy()
            .refresh(request, &active.content.config, session, self.bounds.whole)
            .await;
        // Even after a trap: running actions end first, and are in the report.
        let record = journal.finish().await;
        if mode == Mode::Refresh {
            self.sweep_images(&record).await;
        }
        if let (Some(shadow_run), Some(recorder), Ok(Ok(decisions))) =
            (shadow_run, &recorder, &answer)
        {
            self.start_shadow_run(
                shadow_run,
                request,
                recorder,
                decision_set(decisions, &record),
            );
        }
        let (decisions, failure) = match answer {
            Ok(Ok(decisions)) => (decisions, None),
            Ok(Err(mut failure)) => {
                let mut decisions = Decisions::default();
                if let Failure::Unlisted { targets, .. } = &mut failure {
                    decisions.targets = std::mem::take(targets);
                }
                (decisions, Some(Ok(failure)))
            }
            Err(error) => (Decisions::default(), Some(Err(error))),
        };
        let unlisted = record.unlisted.clone();
        let report = report::build(&active, request, mode, began, decisions, record);
        let Some(failure) = failure else {
            return Ok(report);
        };
        let partial = Box::new(report);
        Err(match failure {
            Ok(Failure::UnknownTargets { asked, known }) => {
                RefreshError::UnknownTargets { asked, known }
            }
            Ok(Failure::InvalidConfig(problems)) => RefreshError::Config { problems },
            Ok(Failure::Unlisted { cause, .. }) => {
                // Prefer the journal's text to the policy's, which may contain anything.
                let diagnostic = unlisted.unwrap_or_else(|| {
                    Diagnostic::new("cannot list the containers").because(cause)
                });
                RefreshError::Unlisted {
                    source: diagnostic.cause(),
                    told: diagnostic,
                    partial,
                }
            }
            Ok(Failure::Other(message)) => RefreshError::Refused { message, partial },
            Err(error) => RefreshError::Policy { error, partial },
        })
    }

    /// Records a snapshot of everything that the active policy sees during this plan, and of everything else that it might see.
    /// It changes nothing.
    pub async fn record_snapshot(&self, request: &Request) -> Result<Snapshot, Diagnostic> {
        let active = self.active();
        let grants = active.content.grants.clone();
        let scope = self.scope(&grants, None);
        let plan = DryRunCapabilities::with_engine_digests(
            self.engine_context.clone(),
            scope.clone(),
            request.force,
        )
        .with_digests_as_ids();
        let guard = Guard::new(
            Arc::new(plan),
            scope,
            self.bounds.counts,
            CancellationToken::new(),
        );
        let recorder = Arc::new(Recorder::new(Arc::new(guard), grants));
        let input = DryRunInput {
            request: request.clone(),
            capabilities: recorder.clone(),
            bounds: self.bounds,
            clock: Clock(jiff::Timestamp::now()),
        };
        dry_run_decisions(&active.content, active.content.state.scratch(), input).await?;
        let message = "cannot look at every container";
        let inspected = recorder.inspect_all().await;
        inspected.map_err(|error| journal::diagnose(&error, message))?;
        Ok(recorder.snapshot())
    }

    /// Runs the candidate in its own task, so that it does not delay the client.
    fn start_shadow_run(
        &self,
        shadow_run: ShadowRun,
        request: &Request,
        recorder: &Recorder,
        decisions: DecisionSet,
    ) {
        let scope = self.scope(shadow_run.grants(), None);
        let plan = DryRunCapabilities::with_engine_digests(
            self.engine_context.clone(),
            scope,
            request.force,
        );
        let plan = Arc::new(plan);
        let replay = SnapshotCapabilities::with_plan(
            recorder.snapshot(),
            request.force,
            recorder.listed(),
            plan,
        );
        let input = DryRunInput {
            request: request.clone(),
            capabilities: Arc::new(SimulatedCapabilities::new(Arc::new(replay), request.force)),
            bounds: self.bounds,
            clock: Clock(recorder.snapshot().taken),
        };
        let generations = self.generations.clone();
        tokio::spawn(async move { shadow_run.compare(&generations, input, decisions).await });
    }

    /// Removes old images. A failure does not fail the refresh.
    async fn sweep_images(&self, record: &Record) {
        let Some(keep) = self.bounds.keep_previous_images else {
            return;
        };
        let pulled = record
            .images
            .iter()
            .filter(|record| record.outcome == ImageOutcome::Pulled);
        let repositories = pulled.map(|record| record.image.repository()).collect();
        let (engine, records) = (&self.engine_context.engine, &self.engine_context.images);
        match retention::sweep(engine.as_ref(), records, &repositories, keep).await {
            Ok(removed) => removed
                .iter()
                .for_each(|image| tracing::info!(image = image.as_str(), "removed unused image")),
            Err(error) => tracing::warn!(
                "cannot remove old images: {}",
                Diagnostic::of(&error).sentence()
            ),
        }
    }

    /// Returns what a policy with these grants may touch in one refresh.
    fn scope(&self, grants: &Arc<Grants>, approved: Option<Arc<ApprovedScope>>) -> Arc<Scope> {
        let scope = Scope::new(grants.clone(), self.bounds.counts.recreates);
        Arc::new(scope.with_approval(approved))
    }

    /// Creates the parameters of one call of the policy: the capabilities, which the journal and the guard will wrap, and the
    /// shadow run.
    fn new_pass(
        &self,
        active: &Arc<Generation>,
        request: &Request,
        mode: Mode,
        approved: Option<Arc<ApprovedScope>>,
        (events, cancel): (&Events, &CancellationToken),
    ) -> Pass {
        let (engine_context, force) = (self.engine_context.clone(), request.force);
        let scope = self.scope(&active.content.grants, approved.clone());
        let capabilities: Arc<dyn Capabilities> = match (mode, &self.snapshot) {
            (Mode::Plan, Some(snapshot)) => {
                let replay = Arc::new(SnapshotCapabilities::new(snapshot.clone(), force));
                Arc::new(SimulatedCapabilities::new(replay, force))
            }
            (Mode::Plan, None) => {
                let plan =
                    DryRunCapabilities::with_engine_digests(engine_context, scope.clone(), force);
                Arc::new(SimulatedCapabilities::new(Arc::new(plan), force))
            }
            (Mode::Refresh, _) => {
                let prefetch = match request.trigger {
                    Trigger::Operator | Trigger::Api => {
                        DigestPrefetch::new(engine_context.digests.clone())
                    }
                    // The watcher has just fetched these digests, and knows that the images are outdated.
                    Trigger::Schedule | Trigger::Webhook => DigestPrefetch::default(),
                };
                let plan = DryRunCapabilities::with_engine_digests(
                    engine_context.clone(),
                    scope.clone(),
                    force,
                );
                let (events, cancel) = (events.clone(), cancel.clone());
                let live = LiveCapabilities::new(
                    engine_context,
                    force,
                    events,
                    cancel,
                    prefetch,
                    scope.clone(),
                );
                let live = Arc::new(live);
                match approved {
                    Some(approved) => {
                        Arc::new(ScopedCapabilities::new(live, Arc::new(plan), approved))
                    }
                    None => live,
                }
            }
        };
        Pass {
            capabilities,
            scope,
            mode,
            shadow_run: self.generations.shadow_for(active).map(ShadowRun::new),
        }
    }
}

/// Returns the outcome of a refresh. A cancelled refresh that had already done everything is done.
pub fn outcome(answer: &Result<Report, RefreshError>, cancelled: bool) -> Outcome {
    match answer {
        Ok(report) if !report.has_failures() => Outcome::Done,
        Ok(_) | Err(_) if cancelled => Outcome::Cancelled,
        Ok(_) => Outcome::SomeFailed,
        Err(_) => Outcome::Failed,
    }
}

/// Returns the data for the history.
fn refresh_end(answer: &Result<Report, RefreshError>, cancelled: bool) -> RefreshEnd {
    let (failure, report) = match answer {
        Ok(report) => (None, Some(report)),
        Err(error) => (Some(Diagnostic::of(error)), error.partial()),
    };
    RefreshEnd {
        outcome: outcome(answer, cancelled),
        failure,
        report: report.cloned(),
    }
}
