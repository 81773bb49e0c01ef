//! A policy that is asked what it would do, on hands that do nothing: a candidate beside the active one, or two that are compared.

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

/// What a policy is asked, and what it finds when it looks.
pub struct DryRunInput {
    pub request: Request,
    /// Which do nothing.
    pub hands: Arc<dyn Capabilities>,
    pub bounds: Bounds,
    pub clock: Clock,
}

/// Who is asked, and what it is given besides.
pub struct DryRunRequest<'a> {
    pub policy: &'a Policy,
    /// JSON.
    pub config: &'a str,
    pub grants: Arc<Grants>,
    pub state: PolicyState,
}

/// All that came of a question: what the policy said, and what it had its hands do.
pub struct DryRunResult {
    pub said: Result<Result<Decisions, Failure>, PolicyError>,
    pub record: Record,
}

pub async fn ask(asked: DryRunRequest<'_>, question: DryRunInput) -> DryRunResult {
    let guard = Guard::new(
        question.hands,
        Arc::new(Scope::new(
            asked.grants.clone(),
            question.bounds.counts.recreates,
        )),
        question.bounds.counts,
        CancellationToken::new(),
    );
    let journal = Arc::new(Journal::new(Arc::new(guard), false, no_events()));
    let session = Session {
        capabilities: journal.clone(),
        grants: asked.grants,
        concurrency: question.bounds.concurrency,
        state: asked.state,
        clock: question.clock,
    };
    let whole = question.bounds.whole;
    let said = asked
        .policy
        .refresh(&question.request, asked.config, session, whole);
    DryRunResult {
        said: said.await,
        record: journal.finish().await,
    }
}

/// What this content would do. What it keeps is forgotten afterwards.
pub async fn sayings_of(
    content: &PolicyRevision,
    state: PolicyState,
    question: DryRunInput,
) -> Result<DecisionSet, Diagnostic> {
    let asked = DryRunRequest {
        policy: &content.policy,
        config: &content.config,
        grants: content.grants.clone(),
        state,
    };
    let DryRunResult { said, record } = ask(asked, question).await;
    match said {
        Ok(Ok(decisions)) => Ok(sayings(&decisions, &record)),
        Ok(Err(failure)) => Err(Diagnostic::new(format!(
            "policy `{}` made no refresh of it",
            content.policy.title()
        ))
        .because(failure.to_string())),
        Err(error) => Err(Diagnostic::of(&error)),
    }
}

/// What a policy said laid beside what it had done.
pub(super) fn sayings(decisions: &Decisions, record: &Record) -> DecisionSet {
    let mut sayings: DecisionSet = decisions
        .by_container
        .iter()
        .map(|(container, decision)| {
            let said = ShadowDecision {
                verdict: Some(decision.verdict),
                rule: decision.rule.clone(),
                reason: decision.reason.clone(),
                recreation: None,
            };
            (container.clone(), said)
        })
        .collect();
    for recreation in &record.recreations {
        let said = sayings
            .entry(recreation.container.clone())
            .or_insert(ShadowDecision {
                verdict: None,
                rule: String::new(),
                reason: String::new(),
                recreation: None,
            });
        said.recreation = Some(Recreation {
            strategy: recreation.strategy,
            to_image_id: recreation.to_image_id.clone(),
        });
    }
    sayings
}

/// A candidate in one refresh of the generation that it stands beside.
pub(super) struct ShadowRun {
    shadow: Arc<Shadow>,
    /// As it was before the active policy kept anything: they may be two versions of one policy.
    state: PolicyState,
}

impl ShadowRun {
    pub(super) fn new(shadow: Arc<Shadow>) -> Self {
        let state = shadow.content().state.scratch();
        Self { shadow, state }
    }

    /// Of the candidate.
    pub(super) fn grants(&self) -> &Arc<Grants> {
        &self.shadow.content().grants
    }

    pub(super) async fn compare(
        self,
        generations: &Generations,
        question: DryRunInput,
        said: DecisionSet,
    ) {
        let Some(_deciding) = self.shadow.begin() else {
            return;
        };
        let answer = sayings_of(self.shadow.content(), self.state, question).await;
        let takes_over = self
            .shadow
            .compared(answer.map(|new| differences(&said, &new)));
        if takes_over {
            generations.promote(&self.shadow).await;
        }
    }
}
