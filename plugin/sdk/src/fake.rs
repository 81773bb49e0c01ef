//! An engine in memory, for testing a policy with `cargo test` alone.
//!
//! It keeps containers and a registry, answers according to the contract, fails where a test says so, and records every call. It
//! does not imitate the host's limits and grants, nor the steps of a replacement. It is not compiled into components.
//!
//! ```
//! # use refit_policy::{*, fake::{self, FakeDocker, FakeHost}};
//! # struct Follow;
//! # impl Policy for Follow {
//! #     type Config = NoConfig;
//! #     fn describe() -> Description { unreachable!() }
//! #     fn targets(_: &NoConfig) -> Vec<Target> { vec![Target::new("app", "acme/app")] }
//! # }
//! let mut docker = FakeDocker::new()
//!     .image("acme/app", "monday", "tuesday") // what is here, and what the registry has by now
//!     .container("app-1", "acme/app");
//! let report = fake::refresh::<Follow>(&mut docker, &mut FakeHost::default(), "{}", &fake::request());
//! assert_eq!(report.unwrap().decisions[0].rule, "image-moved");
//! assert_eq!(docker.container_named("app-1").unwrap().image_id, fake::image_id("tuesday"));
//! ```

mod host;
mod samples;

use std::collections::{BTreeMap, HashMap};

use crate::docker::{Container, Context, Docker, PulledImage, Recreation};
use crate::entry;
use crate::facts::{
    ContainerInfo, EngineError, Failure, PullError, RecreateError, Recreated, Report, Request,
    Strategy,
};
use crate::policy::Policy;
use crate::reference::Reference;

pub use host::FakeHost;
use samples::hex;
pub use samples::{container_info, image_id, request, rolled_back};

/// A call of the policy to the engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Containers,
    /// The names, in the order of the call.
    Inspect(Vec<String>),
    Pull(Vec<String>),
    /// The name, image and strategy of each container in the wave.
    Recreate(Vec<(String, String, Strategy)>),
}

/// Containers, images and faults. The methods that take `self` add to it.
#[derive(Debug, Clone, Default)]
pub struct FakeDocker {
    containers: BTreeMap<String, ContainerInfo>,
    images: Vec<Image>,
    listing_error: Option<EngineError>,
    inspect_errors: HashMap<String, EngineError>,
    pull_errors: HashMap<String, PullError>,
    recreate_errors: HashMap<String, RecreateError>,
    calls: Vec<Call>,
    recreated: usize,
    is_forced: bool,
}

#[derive(Debug, Clone)]
struct Image {
    reference: String,
    local_id: String,
    remote_id: String,
}

impl FakeDocker {
    pub fn new() -> Self {
        Self::default()
    }

    /// Add an image whose local copy may be older than the registry's: two words, which [`image_id`] converts to ids.
    pub fn image(mut self, reference: &str, local: &str, remote: &str) -> Self {
        self.images.push(Image {
            reference: reference.to_owned(),
            local_id: image_id(local),
            remote_id: image_id(remote),
        });
        self
    }

    /// Add a running container with the local copy of the image, or with an unknown image if there is none.
    pub fn container(self, name: &str, image: &str) -> Self {
        self.container_with(name, image, |_| {})
    }

    /// Add a container like [`container`](Self::container), and then change it.
    pub fn container_with(
        mut self,
        name: &str,
        image: &str,
        change: impl FnOnce(&mut ContainerInfo),
    ) -> Self {
        let mut info = container_info(name, image);
        if let Some(known) = self.find(image) {
            info.image_id = known.local_id.clone();
        }
        change(&mut info);
        self.containers.insert(name.to_owned(), info);
        self
    }

    pub fn listing_fails(mut self, error: EngineError) -> Self {
        self.listing_error = Some(error);
        self
    }

    pub fn inspect_fails(mut self, name: &str, error: EngineError) -> Self {
        self.inspect_errors.insert(name.to_owned(), error);
        self
    }

    /// Make pulls of this image fail until [`heal`](Self::heal). An image that was never added with [`image`](Self::image) fails
    /// with `not-found` anyway.
    pub fn pull_fails(mut self, reference: &str, error: PullError) -> Self {
        self.pull_errors.insert(reference.to_owned(), error);
        self
    }

    pub fn recreate_fails(mut self, name: &str, error: RecreateError) -> Self {
        self.recreate_errors.insert(name.to_owned(), error);
        self
    }

    /// Between two refreshes: publish another image under this reference in the registry.
    pub fn publish(&mut self, reference: &str, remote: &str) {
        let at = self
            .images
            .iter()
            .position(|image| is_same_image(&image.reference, reference));
        match at {
            Some(at) => self.images[at].remote_id = image_id(remote),
            None => self.images.push(Image {
                reference: reference.to_owned(),
                local_id: image_id("unknown"),
                remote_id: image_id(remote),
            }),
        }
    }

    /// Between two refreshes: change a container. Does nothing if there is none with this name.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut ContainerInfo)) {
        if let Some(info) = self.containers.get_mut(name) {
            change(info);
        }
    }

    /// Between two refreshes: remove a container.
    pub fn remove(&mut self, name: &str) {
        self.containers.remove(name);
    }

    /// Between two refreshes: remove all faults of listings, inspections, pulls and recreations, and forget the calls so far.
    pub fn heal(&mut self) {
        self.listing_error = None;
        self.inspect_errors.clear();
        self.pull_errors.clear();
        self.recreate_errors.clear();
        self.calls.clear();
    }

    /// All calls, in order.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The container names in each wave, in order.
    pub fn waves<'a>(&'a self) -> Vec<Vec<&'a str>> {
        let wave = |call: &'a Call| match call {
            Call::Recreate(wave) => Some(wave.iter().map(|(name, ..)| name.as_str()).collect()),
            Call::Containers | Call::Inspect(_) | Call::Pull(_) => None,
        };
        self.calls.iter().filter_map(wave).collect()
    }

    /// The container that has this name now.
    pub fn container_named(&self, name: &str) -> Option<&ContainerInfo> {
        self.containers.get(name)
    }

    fn find(&self, reference: &str) -> Option<&Image> {
        self.images
            .iter()
            .find(|image| is_same_image(&image.reference, reference))
    }

    fn recreate_one(&mut self, recreation: &Recreation<'_>) -> Result<Recreated, RecreateError> {
        let ContainerHandle { name, id } = &recreation.container.handle;
        if let Some(error) = self.recreate_errors.get(name) {
            return Err(error.clone());
        }
        let info = self.containers.get_mut(name).filter(|info| info.id == *id);
        let info = info.ok_or(RecreateError::Gone)?;
        let image_id = recreation.image.id().to_owned();
        if info.image_id == image_id && !self.is_forced {
            return Err(RecreateError::Current);
        }
        if recreation.strategy == Strategy::Remove {
            self.containers.remove(name);
            return Ok(Recreated {
                id: None,
                image_id,
                gap_ms: None,
            });
        }
        self.recreated += 1;
        info.id = hex(&format!("{name} {}", self.recreated));
        info.image_id.clone_from(&image_id);
        Ok(Recreated {
            id: Some(info.id.clone()),
            image_id,
            gap_ms: Some(0),
        })
    }
}

impl Docker for FakeDocker {
    fn containers(&mut self) -> Result<Vec<Container>, EngineError> {
        self.calls.push(Call::Containers);
        if let Some(error) = &self.listing_error {
            return Err(error.clone());
        }
        let handle = |info: &ContainerInfo| ContainerHandle {
            name: info.name.clone(),
            id: info.id.clone(),
        };
        Ok(self
            .containers
            .values()
            .map(|info| Container::new(handle(info)))
            .collect())
    }

    fn inspect(&mut self, containers: &[&Container]) -> Vec<Result<ContainerInfo, EngineError>> {
        self.calls.push(Call::Inspect(
            containers.iter().map(|c| c.name().to_owned()).collect(),
        ));
        let inspect = |ContainerHandle { name, id }: &ContainerHandle| {
            if let Some(error) = self.inspect_errors.get(name) {
                return Err(error.clone());
            }
            let info = self.containers.get(name).filter(|info| info.id == *id);
            info.cloned().ok_or(EngineError::NotFound)
        };
        containers
            .iter()
            .map(|container| inspect(&container.handle))
            .collect()
    }

    fn pull(&mut self, images: &[String]) -> Vec<Result<PulledImage, PullError>> {
        self.calls.push(Call::Pull(images.to_vec()));
        let pull = |asked: &String| {
            if let Some((_, error)) = self
                .pull_errors
                .iter()
                .find(|(r, _)| is_same_image(r, asked))
            {
                return Err(error.clone());
            }
            let image = self.find(asked).ok_or(PullError::NotFound)?;
            Ok(PulledImage::new(ImageHandle {
                reference: asked.clone(),
                id: image.remote_id.clone(),
            }))
        };
        images.iter().map(pull).collect()
    }

    fn recreate(&mut self, wave: &[Recreation<'_>]) -> Vec<Result<Recreated, RecreateError>> {
        let described = wave.iter().map(|r| {
            (
                r.container.name().to_owned(),
                r.image.reference().to_owned(),
                r.strategy,
            )
        });
        self.calls.push(Call::Recreate(described.collect()));
        wave.iter()
            .map(|recreation| self.recreate_one(recreation))
            .collect()
    }
}

/// Run one refresh like the host, with the configuration as JSON.
pub fn refresh<P: Policy>(
    docker: &mut FakeDocker,
    host: &mut FakeHost,
    config: &str,
    request: &Request,
) -> Result<Report, Failure> {
    docker.is_forced = request.force;
    entry::refresh::<P>(config, request, &mut Context { docker, host })
}

fn is_same_image(a: &str, b: &str) -> bool {
    match (a.parse::<Reference>(), b.parse::<Reference>()) {
        (Ok(a), Ok(b)) => {
            let tag = |r: &Reference| r.digest().or(r.tag()).unwrap_or("latest").to_owned();
            a.is_same_repository(&b) && tag(&a) == tag(&b)
        }
        _ => false,
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ContainerHandle {
    name: String,
    id: String,
}

impl ContainerHandle {
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ImageHandle {
    reference: String,
    id: String,
}

impl ImageHandle {
    pub(crate) fn reference(&self) -> String {
        self.reference.clone()
    }

    pub(crate) fn id(&self) -> String {
        self.id.clone()
    }

    pub(crate) fn digest(&self) -> Option<String> {
        None
    }
}
