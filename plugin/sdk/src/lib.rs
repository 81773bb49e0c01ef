//! Write a Refit policy in Rust.
//!
//! Refit gives running containers a new image. Which containers, whether, how and in what order is decided by a policy: a
//! WebAssembly component that the host lends an engine to. This crate makes one out of a single trait. A custom matcher is a
//! list of targets and one function:
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
//!     // Which containers follow a target. Without this: all whose image is of the target's repository.
//!     fn matches(_: &Config, container: &ContainerInfo, target: &Target) -> bool {
//!         container.label("acme.follows") == Some(&target.name)
//!     }
//!
//!     // What becomes of one that matches. Without this: recreate what runs and is behind.
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
//! The layers of the trait, from the one most policies need to the one that few do: [`Policy::matches`], [`Policy::decide`],
//! [`Policy::refresh`]. The last is written with [`survey()`], whose waves make a canary a few lines of ordinary code.
//!
//! The contract itself is `wit/policy.wit`; its comments say what every field and every error means.

mod docker;
mod facts;
mod policy;
mod survey;

pub mod glob;
pub mod reference;
pub mod words;

mod entry;
#[cfg(not(target_family = "wasm"))]
pub mod fake;
#[cfg(target_family = "wasm")]
mod lent;

// Its modules are named by `export_policy!`, and by nobody else.
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
pub use survey::{Due, Survey, survey};

pub use entry::configuration;

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub use lent::Component;

/// Make this crate's library the component of a policy. Once per crate, which must be a `cdylib`.
///
/// Natively it only checks that the type is a [`Policy`], because the functions that a component exports cannot be linked into
/// a test or a program.
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
