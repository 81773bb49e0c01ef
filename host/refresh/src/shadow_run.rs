//! Dry runs: asks a policy what it would do, with capabilities that change nothing. Used for a candidate in a shadow run, and
//! to compare two policies.

use std::sync::Arc;

use refit_capabilities::Capabilities;
use refit_capabilities::guard::Guard;
use refit_capabilities::journal::{Journal, Record};
use refit_capabilities::scope::Scope;
use refit_model::diagnostic::Diagnostic;
use refit_model::event::no_events;
use refit_model::grants::Grants;
use refit_model::request::Request;
use refit_revisions::shadow::{DecisionSet, Recreation, Shadow, ShadowDecision, differences};
use refit_revisions::{Generations, PolicyRevision};
use refit_sandbox::{Clock, Decisions, Failure, Policy, PolicyError, PolicyState, Session};
use tokio_util::sync::CancellationToken;

use super::Bounds;

/// The request of a dry run, and the capabilities, which answer it.
pub struct DryRunInput {
    pub request: Request,
    /// Capabilities that change nothing.
    pub capabilities: Arc<dyn Capabilities>,
    pub bounds: Bounds,
    pub clock: Clock,
}

/// The policy of a dry run, and its parameters.
pub struct DryRunRequest<'a> {
    pub policy: &'a Policy,
    /// JSON.
    pub config: &'a str,
    pub grants: Arc<Grants>,
    pub state: PolicyState,
}

/// The result of a dry run: the policy's answer, and the actions that it requested.
pub struct DryRunResult {
    pub answer: Result<Result<Decisions, Failure>, PolicyError>,
    pub record: Record,
}

pub async fn dry_run(request: DryRunRequest<'_>, input: DryRunInput) -> DryRunResult {
    let guard = Guard::new(
        input.capabilities,
        Arc::new(Scope::new(
            request.grants.clone(),
            input.bounds.counts.recreates,
        )),
        input.bounds.counts,
        CancellationToken::new(),
    );
    let journal = Arc::new(Journal::new(Arc::new(guard), false, no_events()));
    let session = Session {
        capabilities: journal.clone(),
        grants: request.grants,
        concurrency: input.bounds.concurrency,
        state: request.state,
        clock: input.clock,
    };
    let whole = input.bounds.whole;
    let refresh = request
        .policy
        .refresh(&input.request, request.config, session, whole);
    DryRunResult {
        answer: refresh.await,
        record: journal.finish().await,
    }
}

/// Returns what this policy would do. Refit discards any state that it writes.
pub async fn dry_run_decisions(
    content: &PolicyRevision,
    state: PolicyState,
    input: DryRunInput,
) -> Result<DecisionSet, Diagnostic> {
    let request = DryRunRequest {
        policy: &content.policy,
        config: &content.config,
        grants: content.grants.clone(),
        state,
    };
    let DryRunResult { answer, record } = dry_run(request, input).await;
    match answer {
        Ok(Ok(decisions)) => Ok(decision_set(&decisions, &record)),
        Ok(Err(failure)) => Err(Diagnostic::new(format!(
            "policy `{}` made no refresh of it",
            content.policy.title()
        ))
        .because(failure.to_string())),
        Err(error) => Err(Diagnostic::of(&error)),
    }
}

/// Combines the policy's decisions with the actions that it requested.
pub(super) fn decision_set(decisions: &Decisions, record: &Record) -> DecisionSet {
    let mut shadow_decisions: DecisionSet = decisions
        .by_container
        .iter()
        .map(|(container, decision)| {
            let shadow_decision = ShadowDecision {
                verdict: Some(decision.verdict),
                rule: decision.rule.clone(),
                reason: decision.reason.clone(),
                recreation: None,
            };
            (container.clone(), shadow_decision)
        })
        .collect();
    for recreation in &record.recreations {
        let shadow_decision = shadow_decisions
            .entry(recreation.container.clone())
            .or_insert(ShadowDecision {
                verdict: None,
                rule: String::new(),
                reason: String::new(),
                recreation: None,
            });
        shadow_decision.recreation = Some(Recreation {
            strategy: recreation.strategy,
            to_image_id: recreation.to_image_id.clone(),
        });
    }
    shadow_decisions
}

/// A candidate in one refresh of the generation that it is compared with.
pub(super) struct ShadowRun {
    shadow: Arc<Shadow>,
    /// The state before the active policy wrote to it: both may be versions of one policy.
    state: PolicyState,
}

impl ShadowRun {
    pub(super) fn new(shadow: Arc<Shadow>) -> Self {
        let state = shadow.content().state.scratch();
        Self { shadow, state }
    }

    /// Returns the grants of the candidate.
    pub(super) fn grants(&self) -> &Arc<Grants> {
        &self.shadow.content().grants
    }

    pub(super) async fn compare(
        self,
        generations: &Generations,
        input: DryRunInput,
        active_decisions: DecisionSet,
    ) {
        let Some(_permit) = self.shadow.try_begin() else {
            return;
        };
        let answer = dry_run_decisions(self.shadow.content(), self.state, input).await;
        let is_promoted = self
            .shadow
            .record(answer.map(|new| differences(&active_decisions, &new)));
        if is_promoted {
            generations.promote(&self.shadow).await;
        }
    }
}
