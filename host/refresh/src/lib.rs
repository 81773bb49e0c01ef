//! One refresh, start to end: call the policy with its hands on the engine (or tied, for a plan), then lay what it said beside
//! what was done.
//!
//! A refresh uses the policy that was active when it began, to its end; one that is swapped meanwhile starts nothing new here.

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

use self::shadow_run::{ShadowRun, sayings};

pub use self::shadow_run::{DryRunInput, DryRunRequest, DryRunResult, ask, sayings_of};

/// What bounds a refresh, whatever its policy.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub counts: Counts,
    pub concurrency: Concurrency,
    /// For the whole of it.
    pub whole: Duration,
    /// Of each repository that was pulled; `None` keeps all. See [`refit_recreate::retention`].
    pub keep_previous_images: Option<usize>,
}

/// Makes refreshes. Many may be under way at once; two never work on one container.
pub struct Refresher {
    workshop: Arc<EngineContext>,
    generations: Arc<Generations>,
    bounds: Bounds,
    /// What plans look at instead of the engine.
    snapshot: Option<Snapshot>,
    history: Option<Arc<History>>,
}

/// A refresh that is written down as begun, and has done nothing yet.
#[must_use = "it is to be finished, or is written down as interrupted"]
pub struct Started {
    request: Request,
    active: Arc<Generation>,
    under_way: Option<OpenEntry>,
    approved: Option<Arc<ApprovedScope>>,
}

impl Started {
    /// It does no more than this.
    pub fn within(self, approved: Option<Arc<ApprovedScope>>) -> Self {
        Self { approved, ..self }
    }

    /// Where it is in the history. `None` where none is kept, or it could not be written.
    pub fn id(&self) -> Option<refit_history::Id> {
        self.under_way.as_ref().and_then(OpenEntry::id)
    }

    /// The policy that it uses to its end.
    pub fn policy(&self) -> PolicyReport {
        self.active.policy_report()
    }
}

/// One call of a policy.
struct Pass {
    hands: Arc<dyn Capabilities>,
    scope: Arc<Scope>,
    mode: Mode,
    trial: Option<ShadowRun>,
}

/// A refresh could not be made at all.
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
    /// What had been done by then, where anything was.
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
        workshop: Arc<EngineContext>,
        generations: Arc<Generations>,
        bounds: Bounds,
    ) -> Self {
        Self {
            workshop,
            generations,
            bounds,
            snapshot: None,
            history: None,
        }
    }

    /// What is refreshed is written down there. Plans are not.
    #[must_use]
    pub fn written_down_in(mut self, history: Option<Arc<History>>) -> Self {
        self.history = history;
        self
    }

    /// Plans are made over this snapshot, at its time, and no engine is asked.
    #[must_use]
    pub fn over(mut self, snapshot: Snapshot) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// The policies that it uses, one at a time; the way to swap them.
    pub fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    /// The generation that a refresh would begin with now.
    pub fn active(&self) -> Arc<Generation> {
        self.generations.active()
    }

    pub fn history(&self) -> Option<&Arc<History>> {
        self.history.as_ref()
    }

    pub fn workshop(&self) -> &Arc<EngineContext> {
        &self.workshop
    }

    /// `cancel` ends it early: what was begun is finished, nothing new is begun.
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
                let pass = self.begin_pass(&active, request, mode, None, (&events, &cancel));
                self.pass(active, request, pass, events, cancel).await
            }
            Mode::Refresh => {
                let started = self.start(request.clone(), None).await;
                self.finish(started, events, cancel).await
            }
        }
    }

    /// A plan of the active policy over what `digests` says of the registries. Nobody is told of it, and a candidate on trial is
    /// not asked: it may be a look at what is known already.
    pub async fn look(
        &self,
        request: &Request,
        digests: Arc<dyn RemoteDigests>,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        let active = self.active();
        let scope = self.scope(&active.content.grants, None);
        let plan =
            DryRunCapabilities::new(self.workshop.clone(), digests, scope.clone(), request.force);
        let pass = Pass {
            hands: Arc::new(SimulatedCapabilities::new(Arc::new(plan), request.force)),
            scope,
            mode: Mode::Plan,
            trial: None,
        };
        self.pass(active, request, pass, no_events(), cancel).await
    }

    /// Writes down that a refresh begins, on the policy that is active now. `by` is who asks, as they say of themselves.
    pub async fn start(&self, request: Request, by: Option<String>) -> Started {
        let active = self.active();
        let under_way = match &self.history {
            Some(history) => {
                let begun = RefreshStart {
                    request: request.clone(),
                    by,
                    policy: active.policy_report(),
                };
                Some(history.begin(begun).await)
            }
            None => None,
        };
        Started {
            request,
            active,
            under_way,
            approved: None,
        }
    }

    /// Does what was begun, and writes down what came of it.
    pub async fn finish(
        &self,
        started: Started,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        let Started {
            request,
            active,
            under_way,
            approved,
        } = started;
        let mode = Mode::Refresh;
        let pass = self.begin_pass(&active, &request, mode, approved, (&events, &cancel));
        let answer = self
            .pass(active, &request, pass, events, cancel.clone())
            .await;
        if let (Some(history), Some(under_way)) = (&self.history, under_way) {
            let ended = ended(&answer, cancel.is_cancelled());
            history.end(under_way, ended).await;
        }
        answer
    }

    async fn pass(
        &self,
        active: Arc<Generation>,
        request: &Request,
        pass: Pass,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Report, RefreshError> {
        let Pass {
            hands,
            scope,
            mode,
            trial,
        } = pass;
        let began = (jiff::Timestamp::now(), Instant::now());
        let grants = active.content.grants.clone();
        // The policy's hands: the journal around the guard around the work.
        let guard = Guard::new(hands, scope, self.bounds.counts, cancel);
        let journal = Arc::new(Journal::new(Arc::new(guard), mode == Mode::Plan, events));
        let recorder = trial
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
            // Its time does not pass: a policy that measured how long a recreation takes could tell a plan from a refresh.
            clock: Clock(match (&self.snapshot, mode) {
                (Some(snapshot), Mode::Plan) => snapshot.taken,
                (Some(_), Mode::Refresh) | (None, _) => began.0,
            }),
        };
        let answer = active
            .policy()
            .refresh(request, &active.content.config, session, self.bounds.whole)
            .await;
        // Also after a trap: what was begun ends first, and is in the report.
        let record = journal.finish().await;
        if mode == Mode::Refresh {
            self.sweep_images(&record).await;
        }
        if let (Some(trial), Some(recorder), Ok(Ok(decisions))) = (trial, &recorder, &answer) {
            self.try_beside(trial, request, recorder, sayings(decisions, &record));
        }
        let (decisions, failed) = match answer {
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
        let Some(failed) = failed else {
            return Ok(report);
        };
        let partial = Box::new(report);
        Err(match failed {
            Ok(Failure::UnknownTargets { asked, known }) => {
                RefreshError::UnknownTargets { asked, known }
            }
            Ok(Failure::InvalidConfig(problems)) => RefreshError::Config { problems },
            Ok(Failure::Unlisted { cause, .. }) => {
                // The journal's own words before the policy's, which may be anything.
                let told = unlisted.unwrap_or_else(|| {
                    Diagnostic::new("cannot list the containers").because(cause)
                });
                RefreshError::Unlisted {
                    source: told.cause(),
                    told,
                    partial,
                }
            }
            Ok(Failure::Other(message)) => RefreshError::Refused { message, partial },
            Err(error) => RefreshError::Policy { error, partial },
        })
    }

    /// What the active policy sees when it plans this, and all that it might see besides. Nothing is done.
    pub async fn record(&self, request: &Request) -> Result<Snapshot, Diagnostic> {
        let active = self.active();
        let grants = active.content.grants.clone();
        let scope = self.scope(&grants, None);
        let plan = DryRunCapabilities::with_engine_digests(
            self.workshop.clone(),
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
        let question = DryRunInput {
            request: request.clone(),
            hands: recorder.clone(),
            bounds: self.bounds,
            clock: Clock(jiff::Timestamp::now()),
        };
        sayings_of(&active.content, active.content.state.scratch(), question).await?;
        let cannot = "cannot look at every container";
        let looked = recorder.inspect_all().await;
        looked.map_err(|error| journal::diagnose(&error, cannot))?;
        Ok(recorder.snapshot())
    }

    /// The candidate's turn, in a task of its own: it must not keep those who asked.
    fn try_beside(
        &self,
        trial: ShadowRun,
        request: &Request,
        recorder: &Recorder,
        said: DecisionSet,
    ) {
        let scope = self.scope(trial.grants(), None);
        let plan =
            DryRunCapabilities::with_engine_digests(self.workshop.clone(), scope, request.force);
        let plan = Arc::new(plan);
        let replay = SnapshotCapabilities::with_plan(
            recorder.snapshot(),
            request.force,
            recorder.listed(),
            plan,
        );
        let question = DryRunInput {
            request: request.clone(),
            hands: Arc::new(SimulatedCapabilities::new(Arc::new(replay), request.force)),
            bounds: self.bounds,
            clock: Clock(recorder.snapshot().taken),
        };
        let generations = self.generations.clone();
        tokio::spawn(async move { trial.compare(&generations, question, said).await });
    }

    /// Tidying up never fails a refresh.
    async fn sweep_images(&self, record: &Record) {
        let Some(keep) = self.bounds.keep_previous_images else {
            return;
        };
        let pulled = record
            .images
            .iter()
            .filter(|record| record.outcome == ImageOutcome::Pulled);
        let repositories = pulled.map(|record| record.image.repository()).collect();
        let (engine, records) = (&self.workshop.engine, &self.workshop.images);
        match retention::sweep(engine.as_ref(), records, &repositories, keep).await {
            Ok(removed) => removed.iter().for_each(|image| {
                tracing::info!(
                    image = image.as_str(),
                    "removed an image that nothing refers to"
                )
            }),
            Err(error) => tracing::warn!(
                "cannot remove old images: {}",
                Diagnostic::of(&error).sentence()
            ),
        }
    }

    /// What a policy with these grants may touch in one refresh.
    fn scope(&self, grants: &Arc<Grants>, approved: Option<Arc<ApprovedScope>>) -> Arc<Scope> {
        let scope = Scope::new(grants.clone(), self.bounds.counts.recreates);
        Arc::new(scope.with_approval(approved))
    }

    /// The capabilities of one call of the policy, which journal and guard stand around, and the policy on trial beside it.
    fn begin_pass(
        &self,
        active: &Arc<Generation>,
        request: &Request,
        mode: Mode,
        approved: Option<Arc<ApprovedScope>>,
        (events, cancel): (&Events, &CancellationToken),
    ) -> Pass {
        let (workshop, force) = (self.workshop.clone(), request.force);
        let scope = self.scope(&active.content.grants, approved.clone());
        let hands: Arc<dyn Capabilities> = match (mode, &self.snapshot) {
            (Mode::Plan, Some(snapshot)) => {
                let replay = Arc::new(SnapshotCapabilities::new(snapshot.clone(), force));
                Arc::new(SimulatedCapabilities::new(replay, force))
            }
            (Mode::Plan, None) => {
                let plan = DryRunCapabilities::with_engine_digests(workshop, scope.clone(), force);
                Arc::new(SimulatedCapabilities::new(Arc::new(plan), force))
            }
            (Mode::Refresh, _) => {
                let prefetch = match request.trigger {
                    Trigger::Operator | Trigger::Api => {
                        DigestPrefetch::new(workshop.digests.clone())
                    }
                    // What the watcher has found is known to be behind, and has just been asked for.
                    Trigger::Schedule | Trigger::Webhook => DigestPrefetch::default(),
                };
                let plan =
                    DryRunCapabilities::with_engine_digests(workshop.clone(), scope.clone(), force);
                let (events, cancel) = (events.clone(), cancel.clone());
                let live =
                    LiveCapabilities::new(workshop, force, events, cancel, prefetch, scope.clone());
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
            hands,
            scope,
            mode,
            trial: self.generations.shadow_beside(active).map(ShadowRun::new),
        }
    }
}

/// What it came to. One that was told to end and had done all by then is done.
pub fn outcome(answer: &Result<Report, RefreshError>, cancelled: bool) -> Outcome {
    match answer {
        Ok(report) if !report.has_failures() => Outcome::Done,
        Ok(_) | Err(_) if cancelled => Outcome::Cancelled,
        Ok(_) => Outcome::SomeFailed,
        Err(_) => Outcome::Failed,
    }
}

/// What is written down of the end.
fn ended(answer: &Result<Report, RefreshError>, cancelled: bool) -> RefreshEnd {
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
