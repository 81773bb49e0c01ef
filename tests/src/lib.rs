//! The test kit: a real engine, real registries, and images made from scratch around one tiny program.
//!
//! Read in this order: [`world`] is what a test talks to; [`image`] and [`container`] say what it may ask for; [`engine`] and
//! [`registry`] are shared by all tests of a process; `keeper` sees to it that nothing outlives the process.
//! [`proxy`] makes single calls to the engine go wrong, and [`scenario`] checks what Refit promises then.
//! All but [`scenario`] know Docker's API and nothing of Refit: what Refit did is for the suites in `tests/tests` to judge.
//!
//! Linux only in part: with `DOCKER_HOST` set the private engine is not needed, but `docker-registry` and a route to the
//! containers' bridge are.

pub mod container;
pub mod engine;
pub mod image;
pub mod proxy;
pub mod registry;
pub mod scenario;
pub mod world;

mod bounded;
mod install;
mod keeper;
mod report;

pub use container::ContainerSpec;
pub use image::ImageSpec;
pub use report::progress;
pub use world::{World, with_world, with_world_for};
