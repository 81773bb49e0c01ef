//! Write a Refit policy in Rust.
//!
//! Refit gives running containers a new image. A policy decides which containers, whether, how and in what order: a WebAssembly
//! component that gets access to an engine from the host. This crate builds one from a single trait. A custom matcher is a list of
//! targets and one function:
//!
//! ```
//! use refit_policy::{Candidate, Choice, ContainerInfo, Description, Policy, Strategy, Target};
//! use serde::Deserialize;
//!
//! struct IdleOnly;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     image: String,
//! }
//!
//! impl Policy for IdleOnly {
//!     type Config = Config;
//!
//!     fn describe() -> Description {
//!         Description {
//!             name: "idle-only".into(),
//!             version: "0.1.0".into(),
//!             summary: "containers follow one image, except while they are busy".into(),
//!             config_schema: r#"{"type": "object", "required": ["image"]}"#.into(),
//!         }
//!     }
//!
//!     fn targets(config: &Config) -> Vec<Target> {
//!         vec![Target::new("app", &config.image)]
//!     }
//!
//!     // The containers that follow a target. Without this: all with an image from the target's repository.
//!     fn matches(_: &Config, container: &ContainerInfo, target: &Target) -> bool {
//!         container.label("acme.follows") == Some(&target.name)
//!     }
//!
//!     // The decision about a matching container. Without this: recreate running, outdated containers.
//!     fn decide(_: &Config, candidate: &Candidate<'_>) -> Choice {
//!         match candidate.container.label("acme.busy") {
//!             Some("yes") if !candidate.is_current() => Choice::stale("busy", "somebody works in it"),
//!             _ => candidate.by_default(Strategy::Replace),
//!         }
//!     }
//! }
//!
//! refit_policy::export_policy!(IdleOnly);
//!
//! // In a test, with no engine and no WebAssembly:
//! use refit_policy::fake::{self, FakeDocker, FakeHost};
//! let follows = |info: &mut ContainerInfo| info.labels.push(("acme.follows".into(), "app".into()));
//! let mut docker = FakeDocker::new()
//!     .image("acme/app", "monday", "tuesday")
//!     .container_with("one", "acme/app", follows)
//!     .container("two", "acme/app");
//! let config = r#"{"image": "acme/app"}"#;
//! let report = fake::refresh::<IdleOnly>(&mut docker, &mut FakeHost::default(), config, &fake::request());
//! assert_eq!(report.unwrap().decisions[0].rule, "image-moved");
//! assert_eq!(docker.waves(), [["one"]]);
//! ```
//!
//! The layers of the trait, from the most used to the least: [`Policy::matches`], [`Policy::decide`], [`Policy::refresh`]. The last
//! is written with [`survey()`] and a [`Rollout`]: canaries first, then waves, until something fails. Containers get their image in
//! the order of [`Survey::due`], so a policy can sort that.
//!
//! A policy stores data across refreshes with [`Host::state_set`]. In this example the rest follows a day after its canary:
//!
//! ```
//! use refit_policy::fake::{self, FakeDocker, FakeHost};
//! use refit_policy::*;
//!
//! const DAY: u64 = 24 * 60 * 60;
//!
//! struct NextDay;
//!
//! impl Policy for NextDay {
//!     type Config = NoConfig;
//!
//!     fn describe() -> Description {
//!         Description {
//!             name: "next-day".into(),
//!             version: "0.1.0".into(),
//!             summary: "one container today, and the rest tomorrow".into(),
//!             config_schema: String::new(),
//!         }
//!     }
//!
//!     fn targets(_: &NoConfig) -> Vec<Target> {
//!         vec![Target::new("app", "acme/app")]
//!     }
//!
//!     fn refresh(config: &NoConfig, request: &Request, context: &mut Context<'_>) -> Result<Report, Failure> {
//!         let mut survey = survey::<Self>(config, request, context)?;
//!         let Some(first) = survey.due.first() else {
//!             return Ok(survey.into_report());
//!         };
//!         // The image is part of the key, so a newer image starts from the beginning.
//!         let image = first.image.id().to_owned();
//!         let begun = context.host.state_get(&image).and_then(|at| at.parse::<u64>().ok());
//!         match begun {
//!             Some(at) if context.host.now() >= at.saturating_add(DAY) => {
//!                 survey.roll_out(context.docker, &Rollout::at_once());
//!             }
//!             Some(_) => survey.hold_back("too-early", "the first one has it since less than a day"),
//!             None => {
//!                 let canary = survey.wave(context.docker, 1);
//!                 if canary.iter().all(|outcome| Evidence::of(outcome) == Evidence::Works) {
//!                     let now = context.host.now().to_string();
//!                     let _ = context.host.state_set(&image, Some(&now));
//!                 }
//!             }
//!         }
//!         Ok(survey.into_report())
//!     }
//! }
//!
//! refit_policy::export_policy!(NextDay);
//!
//! let mut docker = FakeDocker::new()
//!     .image("acme/app", "monday", "tuesday")
//!     .container("a", "acme/app")
//!     .container("b", "acme/app");
//! // The fakes keep the changes of a refresh for the next one.
//! let mut host = FakeHost::at(1_700_000_000);
//! let mut refresh = |host: &mut FakeHost| fake::refresh::<NextDay>(&mut docker, host, "{}", &fake::request()).unwrap();
//! refresh(&mut host);
//! let report = refresh(&mut host);
//! assert_eq!(report.decisions[1].rule, "too-early");
//! host.passes(DAY);
//! refresh(&mut host);
//! assert_eq!(docker.waves(), [["a"], ["b"]]);
//! ```
//!
//! The contract itself is `wit/policy.wit`; its comments explain every field and every error.

mod docker;
mod facts;
mod policy;
mod rollout;
mod survey;

pub mod glob;
pub mod reference;
pub mod words;

mod entry;
#[cfg(not(target_family = "wasm"))]
pub mod fake;
#[cfg(target_family = "wasm")]
mod lent;

// Only `export_policy!` names these modules.
#[doc(hidden)]
pub mod bindings;

pub use docker::{Container, Context, Docker, Host, PulledImage, Recreation};
pub use facts::{
    ConfigProblem, ContainerInfo, ContainerState, Decision, Description, EngineError, FailedStep,
    Failure, Health, Level, PublishedPort, PullError, RecreateError, Recreated, Refusal, Report,
    Request, RestartPolicy, StateError, Strategy, Successor, Target, Transport, Trigger,
    UnknownTargets, Unlisted, Verdict,
};
pub use policy::{Action, Candidate, Choice, NoConfig, Policy, rule};
pub use rollout::{Evidence, Outcome, Rollout};
pub use survey::{Due, Other, Survey, survey};

pub use entry::configuration;

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub use lent::Component;

/// Make this crate's library the component of a policy. Use it once in a crate, which must be a `cdylib`.
///
/// Natively it only checks that the type is a [`Policy`], because the exported functions of a component cannot be linked into a
/// test or a program.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::Component<$policy>;
    $crate::bindings::export_component!(Exported with_types_in $crate::bindings);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> $crate::Description = <$policy as $crate::Policy>::describe;
    };
}

/// The example of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
