//! The functions that a policy can call: the container engine, as far as the host grants it, and the host's own small services.
//!
//! Policies are written against the two traits, so the same code runs in a component (`lent`) and in a unit test
//! ([`fake`](crate::fake)). The handles are opaque, like the handles in the contract: no policy can make one from a name.

use std::cell::OnceCell;

use crate::facts::{
    ContainerInfo, EngineError, Level, PullError, RecreateError, Recreated, StateError, Strategy,
};

#[cfg(not(target_family = "wasm"))]
use crate::fake as source;
#[cfg(target_family = "wasm")]
use crate::lent as source;

/// A handle of a container in this refresh. It always refers to the listed container, never to another one that took its name.
#[derive(Debug)]
pub struct Container {
    pub(crate) handle: source::ContainerHandle,
    // Each query of a handle is a call into the host, and its answer never changes.
    name: OnceCell<String>,
}

impl Container {
    pub(crate) fn new(handle: source::ContainerHandle) -> Self {
        Self {
            handle,
            name: OnceCell::new(),
        }
    }

    /// The container's name at the time of the list, without the leading slash.
    pub fn name(&self) -> &str {
        self.name.get_or_init(|| self.handle.name())
    }
}

/// An image that is on this machine now. Only [`Docker::pull`] creates one.
#[derive(Debug)]
pub struct PulledImage {
    pub(crate) handle: source::ImageHandle,
    reference: OnceCell<String>,
    id: OnceCell<String>,
    digest: OnceCell<Option<String>>,
}

impl PulledImage {
    pub(crate) fn new(handle: source::ImageHandle) -> Self {
        Self {
            handle,
            reference: OnceCell::new(),
            id: OnceCell::new(),
            digest: OnceCell::new(),
        }
    }

    /// The image reference in the request.
    pub fn reference(&self) -> &str {
        self.reference.get_or_init(|| self.handle.reference())
    }

    /// The image's id on this engine, comparable with [`ContainerInfo::image_id`]. In a plan it may be a placeholder that equals no
    /// container's image id.
    pub fn id(&self) -> &str {
        self.id.get_or_init(|| self.handle.id())
    }

    /// The digest under which the registry serves the image, if it is known.
    pub fn digest(&self) -> Option<&str> {
        self.digest.get_or_init(|| self.handle.digest()).as_deref()
    }
}

/// A container, its new image, and the strategy of the replacement.
#[derive(Debug, Clone, Copy)]
pub struct Recreation<'a> {
    pub container: &'a Container,
    pub image: &'a PulledImage,
    pub strategy: Strategy,
}

/// The container engine. The calls of a batch run concurrently, and the answers have the order of the calls; a failure does not
/// affect the other calls.
pub trait Docker {
    /// List all containers that this policy's grant covers, in any state, sorted by name.
    fn containers(&mut self) -> Result<Vec<Container>, EngineError>;

    fn inspect(&mut self, containers: &[&Container]) -> Vec<Result<ContainerInfo, EngineError>>;

    /// Pull each image to this machine.
    fn pull(&mut self, images: &[String]) -> Vec<Result<PulledImage, PullError>>;

    /// Recreate one wave. This returns when every recreation in it is healthy, refused or rolled back.
    fn recreate(&mut self, wave: &[Recreation<'_>]) -> Vec<Result<Recreated, RecreateError>>;
}

/// The other services of the host.
pub trait Host {
    /// Write a line to the host's log, under the policy's name.
    fn log(&mut self, level: Level, message: &str);

    /// The time of this refresh, in seconds since the Unix epoch.
    fn now(&self) -> u64;

    /// The value that this policy stored under this key, in this refresh or an earlier one.
    fn state_get(&self, key: &str) -> Option<String>;

    /// Store a value, or remove it with `None`.
    fn state_set(&mut self, key: &str, value: Option<&str>) -> Result<(), StateError>;
}

/// The traits that a refresh may use.
pub struct Context<'a> {
    pub docker: &'a mut dyn Docker,
    pub host: &'a mut dyn Host,
}
