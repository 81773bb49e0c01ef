//! Registries: their addresses, their logins, the meaning of their refusals, and the digest that a tag points to.

#![forbid(unsafe_code)]

pub mod address;
pub mod budget;
pub mod challenge;
pub mod counts;
pub mod credentials;
pub mod digests;
mod docker_config;
mod manifest;
mod token;
