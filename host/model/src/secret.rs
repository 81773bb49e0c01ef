//! A text that cannot be printed by accident: its `Debug` hides it, it has no `Display`, and it is wiped when dropped.

pub use secrecy::{ExposeSecret, SecretString};

/// A registry login.
#[derive(Clone, Debug)]
pub enum Login {
    Password {
        username: String,
        password: SecretString,
    },
    /// The token that `docker login` stores for registries that issue refresh tokens.
    IdentityToken(SecretString),
}
