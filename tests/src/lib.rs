//! The test kit: a real engine, real registries, and images made from scratch around one tiny program.
//!
//! Read in this order: [`world`] is what a test talks to; [`image`] and [`container`] say what it may ask for; [`engine`] and
//! [`registry`] are shared by all tests of a process; `supervisor` sees to it that nothing outlives the process.
//! The kit knows Docker's API, and of Refit only how the program is run ([`refit`]): what it did is for the suites in
//! `tests/tests` to judge. [`proxy`] stands between the two where an engine has to misbehave; [`fault_proxy`] makes one numbered call
//! go wrong, and [`scenario`] says what Refit promises then. [`measure`] says what it costs. [`gateway`] stands before a registry in
//! the same way, and hands out tokens as those of clouds do.
//!
//! Linux only in part: with `DOCKER_HOST` set the private engine is not needed, but `docker-registry` and a route to the
//! containers' bridge are.

pub mod certificates;
pub mod container;
pub mod disk;
pub mod engine;
pub mod events;
pub mod fault_proxy;
pub mod gateway;
pub mod http;
pub mod image;
pub mod install;
pub mod measure;
pub mod proxy;
pub mod python;
pub mod references;
pub mod refit;
pub mod registry;
pub mod scenario;
pub mod sshd;
pub mod tokens;
pub mod world;

mod bounded;
mod report;
mod serve;
mod supervisor;

pub use container::ContainerSpec;
pub use image::ImageSpec;
pub use proxy::Proxy;
pub use refit::Refit;
pub use report::progress;
/// Makes sure that systemd's tools are there, which need no systemd that runs.
pub fn install_systemd() -> anyhow::Result<()> {
    install::ensure(&[("systemd-analyze", "systemd")])
}

pub use world::{World, with_world, with_world_for};
