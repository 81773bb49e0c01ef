//! The host's side inside a component: it implements the traits of [`docker`](crate::docker) on the imports, and the exports on a
//! [`Policy`].
//!
//! Only this module calls imported functions. It is not compiled for other targets, which lack those functions.

use std::marker::PhantomData;

use crate::bindings::exports::refit::policy::policy::Guest;
use crate::bindings::refit::policy::{docker, host};
use crate::docker::{Container, Context, Docker, Host, PulledImage, Recreation};
use crate::entry;
use crate::facts::{
    ConfigProblem, ContainerInfo, Description, EngineError, Failure, Level, PullError,
    RecreateError, Recreated, Report, Request, StateError,
};
use crate::policy::Policy;

pub(crate) use docker::{Container as ContainerHandle, PulledImage as ImageHandle};

struct LentDocker;

impl Docker for LentDocker {
    fn containers(&mut self) -> Result<Vec<Container>, EngineError> {
        Ok(docker::containers()?
            .into_iter()
            .map(Container::new)
            .collect())
    }

    fn inspect(&mut self, containers: &[&Container]) -> Vec<Result<ContainerInfo, EngineError>> {
        let handles: Vec<_> = containers
            .iter()
            .map(|container| &container.handle)
            .collect();
        docker::inspect(&handles)
    }

    fn pull(&mut self, images: &[String]) -> Vec<Result<PulledImage, PullError>> {
        docker::pull(images)
            .into_iter()
            .map(|pulled| pulled.map(PulledImage::new))
            .collect()
    }

    fn recreate(&mut self, wave: &[Recreation<'_>]) -> Vec<Result<Recreated, RecreateError>> {
        let wave: Vec<_> = wave
            .iter()
            .map(|recreation| docker::Recreation {
                container: &recreation.container.handle,
                image: &recreation.image.handle,
                strategy: recreation.strategy,
            })
            .collect();
        docker::recreate(&wave)
    }
}

struct LentHost;

impl Host for LentHost {
    fn log(&mut self, level: Level, message: &str) {
        host::log(level, message);
    }

    fn now(&self) -> u64 {
        host::now()
    }

    fn state_get(&self, key: &str) -> Option<String> {
        host::state_get(key)
    }

    fn state_set(&mut self, key: &str, value: Option<&str>) -> Result<(), StateError> {
        host::state_set(key, value)
    }
}

/// A policy as the host sees it. Only [`export_policy!`](crate::export_policy) uses it.
pub struct Component<P>(PhantomData<P>);

impl<P: Policy> Guest for Component<P> {
    fn describe() -> Description {
        P::describe()
    }

    fn validate_config(config: String) -> Result<(), Vec<ConfigProblem>> {
        entry::configuration::<P>(&config).map(drop)
    }

    fn refresh(request: Request, config: String) -> Result<Report, Failure> {
        let mut context = Context {
            docker: &mut LentDocker,
            host: &mut LentHost,
        };
        entry::refresh::<P>(&config, &request, &mut context)
    }
}
