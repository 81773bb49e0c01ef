//! Refit's default policy: running workspaces follow the template image of their runtime.
//!
//! A platform runs each workspace in a container `ws-…`, made from one template image a runtime. A container belongs to a
//! runtime if its name fits and it was made from exactly that runtime's repository, under any tag or digest. Names, images and
//! strategy come from the configuration (`config`); what happens to a container that is behind is the SDK's default. This crate
//! is only the choice of containers.

mod config;

use refit_policy::reference::same_repository;
use refit_policy::{
    ConfigProblem, ContainerInfo, Description, Policy, Strategy, Target, export_policy, glob,
};

pub use config::{Config, SCHEMA};

/// The policy. It has no instance: see [`Policy`].
pub struct Workspace;

export_policy!(Workspace);

impl Policy for Workspace {
    type Config = Config;

    fn describe() -> Description {
        Description {
            name: "workspace".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "running workspaces follow the template image of their runtime".to_owned(),
            config_schema: SCHEMA.to_owned(),
        }
    }

    fn check(config: &Config) -> Vec<ConfigProblem> {
        config.problems()
    }

    fn targets(config: &Config) -> Vec<Target> {
        config
            .runtimes
            .iter()
            .map(|runtime| Target::new(runtime, config.image(runtime)))
            .collect()
    }

    fn considers(config: &Config, name: &str) -> bool {
        glob::matches(&config.containers, name)
    }

    fn matches(config: &Config, container: &ContainerInfo, target: &Target) -> bool {
        Self::considers(config, &container.name) && same_repository(&container.image, &target.image)
    }

    fn strategy(config: &Config, _: &ContainerInfo) -> Strategy {
        config.strategy
    }
}
