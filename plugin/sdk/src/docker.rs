//! What a policy may do: the engine as far as the host lends it, and the host's own small services.
//!
//! Policies are written against the two traits, so the same code runs in a component (`lent`) and in a unit test
//! ([`fake`](crate::fake)). The handles are opaque for the same reason that they are handles in the contract: nobody can make
//! one out of a name.

use std::cell::OnceCell;

use crate::facts::{
    ContainerInfo, EngineError, Level, PullError, RecreateError, Recreated, StateError, Strategy,
};

#[cfg(not(target_family = "wasm"))]
use crate::fake as source;
#[cfg(target_family = "wasm")]
use crate::lent as source;

/// A container lent to this refresh: the one that was there when it was listed, never another that took its name.
#[derive(Debug)]
pub struct Container {
    pub(crate) handle: source::ContainerHandle,
    // Each question to a handle is a call into the host, and its answer never changes.
    name: OnceCell<String>,
}

impl Container {
    pub(crate) fn new(handle: source::ContainerHandle) -> Self {
        Self {
            handle,
            name: OnceCell::new(),
        }
    }

    /// Its name when it was listed, without the leading slash.
    pub fn name(&self) -> &str {
        self.name.get_or_init(|| self.handle.name())
    }
}

/// An image that is on this machine now. Only [`Docker::pull`] makes one.
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

    /// As it was asked for.
    pub fn reference(&self) -> &str {
        self.reference.get_or_init(|| self.handle.reference())
    }

    /// The image's id on this engine, comparable with [`ContainerInfo::image_id`]. In a plan it may be a stand-in that equals
    /// no container's.
    pub fn id(&self) -> &str {
        self.id.get_or_init(|| self.handle.id())
    }

    /// The digest under which the registry serves it, where it is known.
    pub fn digest(&self) -> Option<&str> {
        self.digest.get_or_init(|| self.handle.digest()).as_deref()
    }
}

/// One container, the image it shall run, and how it gets there.
#[derive(Debug, Clone, Copy)]
pub struct Recreation<'a> {
    pub container: &'a Container,
    pub image: &'a PulledImage,
    pub strategy: Strategy,
}

/// The container engine. Each batch runs concurrently and is answered in the order asked; one failure leaves the others alone.
pub trait Docker {
    /// All containers that this policy's grant covers, in whatever state, sorted by name.
    fn containers(&mut self) -> Result<Vec<Container>, EngineError>;

    fn inspect(&mut self, containers: &[&Container]) -> Vec<Result<ContainerInfo, EngineError>>;

    /// Bring each image to this machine.
    fn pull(&mut self, images: &[String]) -> Vec<Result<PulledImage, PullError>>;

    /// One wave. It returns when every recreation in it is proven, refused or put back.
    fn recreate(&mut self, wave: &[Recreation<'_>]) -> Vec<Result<Recreated, RecreateError>>;
}

/// What else a policy may ask of its host.
pub trait Host {
    /// A line in the host's log, under the policy's name.
    fn log(&mut self, level: Level, message: &str);

    /// Seconds since the Unix epoch, as this refresh is to see it.
    fn now(&self) -> u64;

    /// What this policy stored under this key, in this refresh or an earlier one.
    fn state_get(&self, key: &str) -> Option<String>;

    /// Store a value, or remove it with `None`.
    fn state_set(&mut self, key: &str, value: Option<&str>) -> Result<(), StateError>;
}

/// All that a refresh may use.
pub struct Context<'a> {
    pub docker: &'a mut dyn Docker,
    pub host: &'a mut dyn Host,
}
