//! What we know of registries: whose login is for which one, and what their refusals mean.

pub mod credentials;
pub mod refusal;
