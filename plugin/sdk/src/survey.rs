//! The first half of every refresh: select, pull, list, inspect, match, decide. It also has the single waves of the second half.
//!
//! A policy with more than one wave uses a [`Survey`]: with a [`Rollout`](crate::Rollout), or wave by wave. Nothing here changes a
//! container before [`Survey::wave`].

use std::rc::Rc;

use crate::docker::{Container, Context, Docker, PulledImage, Recreation};
use crate::facts::{
    ContainerInfo, Decision, EngineError, Failure, Level, PullError, RecreateError, Recreated,
    Report, Request, Strategy, Target, UnknownTargets, Unlisted,
};
use crate::policy::{Action, Candidate, Choice, Policy, rule};
use crate::reference::same_repository;
use crate::rollout::Outcome;
use crate::words;

/// The findings of a refresh: the due containers, and the decisions about all others.
#[derive(Debug, Default)]
pub struct Survey {
    /// The targets that the request selected, in the policy's order.
    pub targets: Vec<Target>,
    /// Containers to recreate, in the order in which [`Survey::wave`] takes them: by name, unless the policy sorts them.
    pub due: Vec<Due>,
    /// The decisions that need no more work.
    pub settled: Vec<Decision>,
    /// Containers that follow a target and were settled immediately, for example because they are up to date.
    pub others: Vec<Other>,
}

/// A container that follows a target and is not to be recreated.
#[derive(Debug)]
pub struct Other {
    pub info: ContainerInfo,
    /// The name of the container's target.
    pub target: String,
    pub image: Rc<PulledImage>,
}

/// A container to recreate, with the data for that.
#[derive(Debug)]
pub struct Due {
    pub container: Container,
    pub info: ContainerInfo,
    /// The name of the container's target.
    pub target: String,
    /// The image, which all containers of the target share.
    pub image: Rc<PulledImage>,
    pub strategy: Strategy,
    pub rule: String,
    pub reason: String,
}

/// Check everything that the request selects, and decide about each container.
///
/// Fails if the request names an unknown target, or if containers are to be recreated and cannot be listed. Every other error
/// becomes a decision.
pub fn survey<P: Policy>(
    config: &P::Config,
    request: &Request,
    context: &mut Context<'_>,
) -> Result<Survey, Failure> {
    let targets = select(P::targets(config), request)?;
    if targets.is_empty() {
        return Ok(Survey::default());
    }
    let images = pull(&targets, context.docker);
    let containers = match list::<P>(config, request, context) {
        Ok(containers) => containers,
        Err(error) => return Err(Failure::Unlisted(Unlisted { error, targets })),
    };
    let infos = match containers.is_empty() {
        true => Vec::new(),
        false => context
            .docker
            .inspect(&containers.iter().collect::<Vec<_>>()),
    };
    let now = context.host.now();
    let mut survey = Survey {
        targets,
        ..Survey::default()
    };
    for (container, info) in containers.into_iter().zip(infos) {
        let info = match info {
            Ok(info) => info,
            Err(EngineError::NotFound) => continue,
            Err(error) => {
                let reason = format!("it could not be inspected: {}", words::engine_error(&error));
                survey.settle(
                    container.name(),
                    Choice::unknown(rule::INSPECT_FAILED, reason),
                );
                continue;
            }
        };
        let follows = |target: &Target| P::matches(config, &info, target);
        let Some(at) = survey.targets.iter().position(follows) else {
            continue;
        };
        let image = match &images[at] {
            Ok(image) => image,
            Err(error) => {
                let reason = words::pull_error(&survey.targets[at].image, error);
                survey.settle(container.name(), Choice::unknown(rule::PULL_FAILED, reason));
                continue;
            }
        };
        let target = &survey.targets[at];
        let candidate = Candidate {
            container: &info,
            target,
            image,
            request,
            now,
        };
        let choice = match P::decide(config, &candidate) {
            // The request overrides the policy: it asked for images only.
            Choice {
                action: Action::Recreate(strategy),
                ..
            } if !request.recreate => candidate.by_default(strategy),
            choice => choice,
        };
        match choice.action {
            Action::Recreate(strategy) => survey.due.push(Due {
                container,
                info,
                target: target.name.clone(),
                image: Rc::clone(image),
                strategy,
                rule: choice.rule.into_owned(),
                reason: choice.reason,
            }),
            Action::Current | Action::Stale | Action::Unknown | Action::Leave => {
                let other = Other {
                    target: target.name.clone(),
                    info,
                    image: Rc::clone(image),
                };
                survey.settle(container.name(), choice);
                survey.others.push(other);
            }
        }
    }
    Ok(survey)
}

impl Survey {
    /// Recreate the next due containers, at most `most`, and return their results. An empty answer means that nothing is due any
    /// more.
    pub fn wave(
        &mut self,
        docker: &mut dyn Docker,
        most: usize,
    ) -> Vec<Result<Recreated, RecreateError>> {
        let wave: Vec<Due> = self.due.drain(..most.min(self.due.len())).collect();
        let outcomes = self.recreate(docker, wave);
        outcomes.into_iter().map(|outcome| outcome.result).collect()
    }

    /// Recreate these containers in one wave.
    pub(crate) fn recreate(&mut self, docker: &mut dyn Docker, wave: Vec<Due>) -> Vec<Outcome> {
        if wave.is_empty() {
            return Vec::new();
        }
        let recreations: Vec<Recreation<'_>> = wave
            .iter()
            .map(|due| Recreation {
                container: &due.container,
                image: &due.image,
                strategy: due.strategy,
            })
            .collect();
        // Each container was given to the host, so it gets a result, even if a host returned fewer answers.
        let no_answer = || Err(RecreateError::Other("the host gave no answer".to_owned()));
        let results = docker.recreate(&recreations).into_iter();
        let results = results.chain(std::iter::repeat_with(no_answer));
        let mut outcomes = Vec::new();
        for (due, result) in wave.into_iter().zip(results) {
            let container = due.container.name().to_owned();
            let choice = Choice::recreate(due.strategy, due.rule, due.reason);
            self.settle(&container, choice);
            outcomes.push(Outcome {
                container,
                target: due.target,
                image: due.image,
                result,
            });
        }
        outcomes
    }

    /// Leave all due containers as they are, for this reason: the end of a refresh with a failed canary. They are settled as
    /// `stale`, or as `current` if only force made them due, so the reason should not say which.
    pub fn hold_back(&mut self, rule: &str, reason: &str) {
        for due in std::mem::take(&mut self.due) {
            self.settle_stale(due, rule, reason);
        }
    }

    /// Leave the due containers as they are for which `is_held` is true; the others stay due.
    pub fn hold_back_if(&mut self, rule: &str, reason: &str, is_held: impl Fn(&Due) -> bool) {
        let held: Vec<Due> = self.due.extract_if(.., |due| is_held(due)).collect();
        for due in held {
            self.settle_stale(due, rule, reason);
        }
    }

    pub(crate) fn settle_stale(&mut self, due: Due, rule: &str, reason: &str) {
        // In a forced refresh, containers that are up to date are also due.
        let choice = match due.info.image_id == due.image.id() {
            true => Choice::current(rule.to_owned(), reason),
            false => Choice::stale(rule.to_owned(), reason),
        };
        self.settle(due.container.name(), choice);
    }

    /// The report for the host. Containers that are still due are reported as stale.
    pub fn into_report(mut self) -> Report {
        self.hold_back(rule::NOT_REACHED, "the refresh ended before its turn");
        self.settled
            .sort_unstable_by(|a, b| a.container.cmp(&b.container));
        Report {
            targets: self.targets,
            decisions: self.settled,
        }
    }

    /// Add a decision about a container, for policies that fill a survey themselves.
    pub fn settle(&mut self, container: &str, choice: Choice) {
        self.settled.push(Decision {
            container: container.to_owned(),
            verdict: choice.action.verdict(),
            rule: choice.rule.into_owned(),
            reason: choice.reason,
        });
    }
}

/// The targets that the request selects, in the policy's order.
fn select(all: Vec<Target>, request: &Request) -> Result<Vec<Target>, Failure> {
    let is_known = |name: &String| all.iter().any(|target| target.name == *name);
    let unknown: Vec<String> = request
        .targets
        .iter()
        .filter(|name| !is_known(name))
        .cloned()
        .collect();
    if !unknown.is_empty() {
        let known = all.into_iter().map(|target| target.name).collect();
        return Err(Failure::UnknownTargets(UnknownTargets {
            asked: unknown,
            known,
        }));
    }
    let is_named =
        |target: &Target| request.targets.is_empty() || request.targets.contains(&target.name);
    let is_of_image = |target: &Target| {
        request.images.is_empty()
            || request
                .images
                .iter()
                .any(|image| same_repository(image, &target.image))
    };
    Ok(all
        .into_iter()
        .filter(|target| is_named(target) && is_of_image(target))
        .collect())
}

/// List every container that the policy considers.
fn list<P: Policy>(
    config: &P::Config,
    request: &Request,
    context: &mut Context<'_>,
) -> Result<Vec<Container>, EngineError> {
    let mut containers = match context.docker.containers() {
        Ok(containers) => containers,
        Err(error) if request.recreate => return Err(error),
        Err(error) => {
            // Only images were requested, and those are here.
            let cause = words::engine_error(&error);
            context.host.log(
                Level::Warn,
                &format!("containers could not be listed: {cause}"),
            );
            Vec::new()
        }
    };
    containers.retain(|container| P::considers(config, container.name()));
    Ok(containers)
}

/// Pull in one batch; the answer has one entry for each target. Targets with the same image share its pull.
fn pull(targets: &[Target], docker: &mut dyn Docker) -> Vec<Result<Rc<PulledImage>, PullError>> {
    let mut images: Vec<String> = Vec::new();
    for target in targets {
        if !images.contains(&target.image) {
            images.push(target.image.clone());
        }
    }
    let pulled: Vec<_> = docker
        .pull(&images)
        .into_iter()
        .map(|result| result.map(Rc::new))
        .collect();
    let answer = |target: &Target| {
        let at = images.iter().position(|image| *image == target.image);
        at.and_then(|at| pulled.get(at).cloned())
            .unwrap_or_else(|| Err(PullError::Other("the host gave no answer".to_owned())))
    };
    targets.iter().map(answer).collect()
}
