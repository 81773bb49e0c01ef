//! Refit's access to the disk: private files that are written atomically; files that hold a secret; and the environment of
//! child processes.

#![forbid(unsafe_code)]

pub mod atomic_file;
pub mod child_environment;
pub mod secret_file;
