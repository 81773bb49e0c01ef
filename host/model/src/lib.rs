//! The types that all of Refit shares: containers, images, grants, requests, decisions, reports, events, and errors for users.

#![forbid(unsafe_code)]

pub mod container;
pub mod decision;
pub mod diagnostic;
pub mod event;
pub mod grants;
pub mod image;
mod milliseconds;
pub mod printable;
pub mod pull;
pub mod recreation;
pub mod report;
pub mod request;
pub mod secret;
pub mod unfinished;
