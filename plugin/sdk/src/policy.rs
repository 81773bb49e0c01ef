//! The trait that a policy implements, and its default rules.
//!
//! The trait has layers. Most policies name their targets and override [`matches`](Policy::matches); some add reasons in
//! [`decide`](Policy::decide); a few override [`refresh`](Policy::refresh) and build it from [`survey`](fn@crate::survey) and a
//! [`Rollout`](crate::Rollout). No layer sees the engine's API or a credential: the host keeps those.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::docker::{Context, PulledImage};
use crate::facts::{
    ConfigProblem, ContainerInfo, ContainerState, Description, Failure, Report, Request, Strategy,
    Target, Verdict,
};
use crate::reference::same_repository;
use crate::survey::survey;

/// The rules of the default decisions, as they appear in [`Decision::rule`](crate::Decision). The names are stable, because people
/// count and filter by them.
pub mod rule {
    /// The container runs another image than the one just pulled.
    pub const IMAGE_MOVED: &str = "image-moved";
    /// The container runs that image, but the request forces recreation.
    pub const FORCED: &str = "forced";
    /// The container runs that image.
    pub const UP_TO_DATE: &str = "up-to-date";
    /// The container is outdated and not running: somebody stopped it on purpose, or is working on it.
    pub const NOT_RUNNING: &str = "not-running";
    /// The container is outdated, but the request asked to change no container.
    pub const RECREATE_NOT_ASKED: &str = "recreate-not-asked";
    /// The image could not be pulled, so it is unknown whether the container is outdated.
    pub const PULL_FAILED: &str = "pull-failed";
    /// The container could not be inspected, so its image is unknown.
    pub const INSPECT_FAILED: &str = "inspect-failed";
    /// The container is outdated, but the refresh ended before its turn.
    pub const NOT_REACHED: &str = "not-reached";
    /// The container is outdated, but another one that got the same image earlier did not become healthy.
    pub const CANARY_FAILED: &str = "canary-failed";
    /// The container is outdated, but too many of the previous ones failed.
    pub const HALTED: &str = "halted";
}

/// Decides which containers are refreshed, whether, how, and in what order.
///
/// A policy has no instance: each call gets the configuration, and data for later refreshes goes into
/// [`Host::state_set`](crate::Host::state_set).
pub trait Policy: Sized {
    /// The settings of an operator. Give it `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error. Use [`NoConfig`]
    /// if there are no settings.
    type Config: DeserializeOwned;

    /// The name and version of this policy. It only computes, and must not call the host.
    fn describe() -> Description;

    /// All problems of a configuration with the right shape. It only computes.
    fn check(config: &Self::Config) -> Vec<ConfigProblem> {
        let _ = config;
        Vec::new()
    }

    /// The policy's own names, each with its image, in the order for a person to read.
    fn targets(config: &Self::Config) -> Vec<Target>;

    /// Whether a container of this name can match at all. `false` saves an inspection on the engine, and a failed inspection is
    /// reported only if this is `true`.
    fn considers(config: &Self::Config, name: &str) -> bool {
        let _ = (config, name);
        true
    }

    /// Whether this container follows this target. If several targets match, the first counts.
    fn matches(config: &Self::Config, container: &ContainerInfo, target: &Target) -> bool {
        let _ = config;
        same_repository(&container.image, &target.image)
    }

    /// The strategy of giving a container its new image.
    fn strategy(config: &Self::Config, container: &ContainerInfo) -> Strategy {
        let _ = (config, container);
        Strategy::Replace
    }

    /// Decide about a container that matches a target whose image is here. Start from [`Candidate::by_default`] and change what
    /// differs.
    fn decide(config: &Self::Config, candidate: &Candidate<'_>) -> Choice {
        candidate.by_default(Self::strategy(config, candidate.container))
    }

    /// Run the whole refresh: check, pull, decide, and recreate the due containers in one wave.
    fn refresh(
        config: &Self::Config,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Report, Failure> {
        let mut survey = survey::<Self>(config, request, context)?;
        survey.wave(context.docker, usize::MAX);
        Ok(survey.into_report())
    }
}

/// The configuration of a policy without settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// A container that matched a target, with the facts for the decision.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub container: &'a ContainerInfo,
    pub target: &'a Target,
    /// The target's image. If its pull failed, there is nothing to decide, and `decide` is not called.
    pub image: &'a PulledImage,
    pub request: &'a Request,
    /// Seconds since the Unix epoch, the same for all containers of a refresh.
    pub now: u64,
}

impl Candidate<'_> {
    /// Whether the container runs the pulled image.
    pub fn is_current(&self) -> bool {
        self.container.image_id == self.image.id()
    }

    /// The default decision: recreate a running container if it is outdated or the request forces it.
    pub fn by_default(&self, strategy: Strategy) -> Choice {
        let (container, image) = (self.container, self.image.reference());
        let is_asked = self.request.recreate;
        if self.is_current() {
            return if self.request.force && is_asked && container.is_running() {
                Choice::recreate(
                    strategy,
                    rule::FORCED,
                    format!(
                        "it already runs `{image}`, and the request asked to recreate it anyway"
                    ),
                )
            } else if !container.is_running() {
                let state = state_in_words(container.state);
                Choice::leave(
                    rule::NOT_RUNNING,
                    format!("it has what `{image}` stands for now, but {state}"),
                )
            } else {
                Choice::current(
                    rule::UP_TO_DATE,
                    format!("it runs what `{image}` stands for now"),
                )
            };
        }
        if !container.is_running() {
            let state = state_in_words(container.state);
            return Choice::stale(
                rule::NOT_RUNNING,
                format!("it is behind `{image}`, but {state}"),
            );
        }
        if !is_asked {
            return Choice::not_asked(image);
        }
        Choice::recreate(
            strategy,
            rule::IMAGE_MOVED,
            format!("`{image}` stands for another image now"),
        )
    }
}

/// The decision about a container, with its reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub action: Action,
    /// A short stable name of the deciding rule.
    pub rule: Cow<'static, str>,
    /// A sentence fragment for a person: lower case, no full stop.
    pub reason: String,
}

/// The action on a container: the verdicts of the contract, with the data for a recreation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    Recreate(Strategy),
    Current,
    Stale,
    Unknown,
    Leave,
}

impl Action {
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Recreate(_) => Verdict::Recreate,
            Self::Current => Verdict::Current,
            Self::Stale => Verdict::Stale,
            Self::Unknown => Verdict::Unknown,
            Self::Leave => Verdict::Leave,
        }
    }
}

impl Choice {
    pub fn new(
        action: Action,
        rule: impl Into<Cow<'static, str>>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            action,
            rule: rule.into(),
            reason: reason.into(),
        }
    }

    /// The container gets the image now.
    pub fn recreate(
        strategy: Strategy,
        rule: impl Into<Cow<'static, str>>,
        reason: impl Into<String>,
    ) -> Self {
        Self::new(Action::Recreate(strategy), rule, reason)
    }

    /// The container runs the right image already.
    pub fn current(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Current, rule, reason)
    }

    /// The container is outdated and stays as it is, on purpose.
    pub fn stale(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Stale, rule, reason)
    }

    /// It is unknown whether the container is outdated.
    pub fn unknown(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Unknown, rule, reason)
    }

    /// The container does not concern this policy.
    pub fn leave(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Leave, rule, reason)
    }

    pub(crate) fn not_asked(image: &str) -> Self {
        Self::stale(
            rule::RECREATE_NOT_ASKED,
            format!("it is behind `{image}`, and the request asked to recreate nothing"),
        )
    }
}

fn state_in_words(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "was never started",
        ContainerState::Running => "is running",
        ContainerState::Paused => "is paused",
        ContainerState::Restarting => "is between two starts",
        ContainerState::Removing => "is being removed",
        ContainerState::Exited => "has exited",
        ContainerState::Dead => "is dead",
    }
}
