//! What Refit keeps on disk: files that only their owner reads, written whole or not at all; files that hold a secret; and the
//! environment of the programs that Refit runs.

#![forbid(unsafe_code)]

pub mod atomic_file;
pub mod child_environment;
pub mod secret_file;
