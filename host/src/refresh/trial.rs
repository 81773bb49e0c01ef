//! A policy that is asked what it would do, on hands that do nothing: a candidate beside the active one, or two that are compared.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Bounds, Request};
use crate::capabilities::Capabilities;
use crate::capabilities::guard::Guard;
use crate::diagnostic::Diagnostic;
use crate::generation::shadow::{Sayings, Shadow, differences, sayings};
use crate::generation::{Content, Generations};
use crate::journal::{Journal, no_events};
use crate::policy::{Clock, ConfigProblem, Failure, PolicyState, Session};

/// What a policy is asked, and what it finds when it looks.
pub struct Question {
    pub request: Request,
    /// Which do nothing.
    pub hands: Arc<dyn Capabilities>,
    pub bounds: Bounds,
    pub clock: Clock,
}

/// What a policy would do. What it keeps is forgotten afterwards.
pub async fn ask(
    content: &Content,
    state: PolicyState,
    question: Question,
) -> Result<Sayings, Diagnostic> {
    let guard = Guard::new(
        question.hands,
        content.grants.clone(),
        question.bounds.counts,
        CancellationToken::new(),
    );
    let journal = Arc::new(Journal::new(Arc::new(guard), true, no_events()));
    let session = Session {
        capabilities: journal.clone(),
        grants: content.grants.clone(),
        concurrency: question.bounds.concurrency,
        state,
        clock: question.clock,
    };
    let answer = content
        .policy
        .refresh(
            &question.request,
            &content.config,
            session,
            question.bounds.whole,
        )
        .await;
    let record = journal.finish().await;
    match answer {
        Ok(Ok(decisions)) => Ok(sayings(&decisions, &record)),
        Ok(Err(failure)) => Err(Diagnostic::new(format!(
            "policy `{}` made no refresh of it",
            content.policy.title()
        ))
        .because(told(failure))),
        Err(error) => Err(Diagnostic::of(&error)),
    }
}

fn told(failure: Failure) -> String {
    match failure {
        Failure::UnknownTargets { asked, .. } => format!("unknown targets: {}", asked.join(", ")),
        Failure::InvalidConfig(problems) => {
            let problems: Vec<String> = problems.iter().map(ConfigProblem::to_string).collect();
            problems.join("; ")
        }
        Failure::Unlisted { cause, .. } => format!("the containers could not be listed: {cause}"),
        Failure::Other(message) => message,
    }
}

/// A candidate in one refresh of the generation that it stands beside.
pub(super) struct Trial {
    shadow: Arc<Shadow>,
    /// As it was before the active policy kept anything: they may be two versions of one policy.
    state: PolicyState,
}

impl Trial {
    pub(super) fn new(shadow: Arc<Shadow>) -> Self {
        let state = shadow.content().state.scratch();
        Self { shadow, state }
    }

    pub(super) async fn compare(
        self,
        generations: &Generations,
        question: Question,
        said: Sayings,
    ) {
        let Some(_deciding) = self.shadow.begin() else {
            return;
        };
        let answer = ask(self.shadow.content(), self.state, question).await;
        let takes_over = self
            .shadow
            .compared(answer.map(|new| differences(&said, &new)));
        if takes_over {
            generations.promote(&self.shadow).await;
        }
    }
}
