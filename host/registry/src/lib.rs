//! What we know of registries: where they are, whose login is for which one, what their refusals mean, and which digest is
//! behind a tag.

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
