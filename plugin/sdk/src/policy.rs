//! The trait that a policy implements, and the rules that it inherits.
//!
//! The trait has layers. Most policies name their targets and override [`matches`](Policy::matches); some add reasons of their
//! own in [`decide`](Policy::decide); a few take [`refresh`](Policy::refresh) into their own hands and build it from
//! [`survey`](fn@crate::survey) and a [`Rollout`](crate::Rollout). No layer knows the engine's API or a credential: the host keeps those.

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

/// The rules that the defaults decide by, as they stand in [`Decision::rule`](crate::Decision). The names are stable: people
/// count and filter by them.
pub mod rule {
    /// The container runs another image than the one just pulled.
    pub const IMAGE_MOVED: &str = "image-moved";
    /// It runs that very image, and the request asked to recreate it all the same.
    pub const FORCED: &str = "forced";
    /// It runs that very image.
    pub const UP_TO_DATE: &str = "up-to-date";
    /// It is behind, and stands still: it was stopped on purpose, or somebody else is at work on it.
    pub const NOT_RUNNING: &str = "not-running";
    /// It is behind, and the request asked to change no container.
    pub const RECREATE_NOT_ASKED: &str = "recreate-not-asked";
    /// Its image could not be pulled, so nobody knows whether it is behind.
    pub const PULL_FAILED: &str = "pull-failed";
    /// It could not be inspected, so nobody knows what it runs.
    pub const INSPECT_FAILED: &str = "inspect-failed";
    /// It is behind, and the refresh ended before its turn came.
    pub const NOT_REACHED: &str = "not-reached";
    /// It is behind, and a container that got the same image before it did not come up.
    pub const CANARY_FAILED: &str = "canary-failed";
    /// It is behind, and too many of those that came before it failed.
    pub const HALTED: &str = "halted";
}

/// Which containers are refreshed, whether, how, and in what order.
///
/// A policy has no instance: each call comes with the configuration, and what must outlast a refresh goes into
/// [`Host::state_set`](crate::Host::state_set).
pub trait Policy: Sized {
    /// What an operator may set. Give it `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error and not a
    /// surprise; [`NoConfig`] where there is nothing to set.
    type Config: DeserializeOwned;

    /// Who this policy is. Computes only: nothing may be asked of the host.
    fn describe() -> Description;

    /// What is wrong with a configuration that has the right shape. All of it at once. Computes only.
    fn check(config: &Self::Config) -> Vec<ConfigProblem> {
        let _ = config;
        Vec::new()
    }

    /// The policy's own names, each with the image it stands for, in the order in which a person should read them.
    fn targets(config: &Self::Config) -> Vec<Target>;

    /// Whether a container of this name can match at all. It spares the engine an inspection, and a container that could not
    /// be inspected is reported only where this holds.
    fn considers(config: &Self::Config, name: &str) -> bool {
        let _ = (config, name);
        true
    }

    /// Whether this container follows this target. Where several targets match, the first counts.
    fn matches(config: &Self::Config, container: &ContainerInfo, target: &Target) -> bool {
        let _ = config;
        same_repository(&container.image, &target.image)
    }

    /// How a container gets its new image.
    fn strategy(config: &Self::Config, container: &ContainerInfo) -> Strategy {
        let _ = (config, container);
        Strategy::Replace
    }

    /// What becomes of one container that matches and whose image is here. Start from [`Candidate::by_default`] and change
    /// what is different.
    fn decide(config: &Self::Config, candidate: &Candidate<'_>) -> Choice {
        candidate.by_default(Self::strategy(config, candidate.container))
    }

    /// The whole refresh: look, pull, decide, and recreate what is due in one wave.
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

/// The configuration of a policy that takes none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// A container that matched a target, and what is known when it is decided about.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub container: &'a ContainerInfo,
    pub target: &'a Target,
    /// The target's image. Where a pull failed nothing can be decided, and `decide` is not asked.
    pub image: &'a PulledImage,
    pub request: &'a Request,
    /// Seconds since the Unix epoch, the same for all containers of a refresh.
    pub now: u64,
}

impl Candidate<'_> {
    /// Whether the container runs the very image that was pulled.
    pub fn is_current(&self) -> bool {
        self.container.image_id == self.image.id()
    }

    /// The rules without a policy's own: recreate what runs and is behind, or what runs and was asked for by force.
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

/// What shall become of a container, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub action: Action,
    /// A short stable name for the rule that decided.
    pub rule: Cow<'static, str>,
    /// A sentence fragment for a person: lower case, no full stop.
    pub reason: String,
}

/// What shall become of a container. The verdicts of the contract, with what a recreation needs to know.
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

    /// It gets the image now.
    pub fn recreate(
        strategy: Strategy,
        rule: impl Into<Cow<'static, str>>,
        reason: impl Into<String>,
    ) -> Self {
        Self::new(Action::Recreate(strategy), rule, reason)
    }

    /// It already runs the image it should.
    pub fn current(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Current, rule, reason)
    }

    /// It is behind and left as it is, on purpose.
    pub fn stale(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Stale, rule, reason)
    }

    /// It cannot be told whether it is behind.
    pub fn unknown(rule: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::new(Action::Unknown, rule, reason)
    }

    /// It is none of this policy's business.
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
