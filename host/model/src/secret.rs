//! A text that cannot be printed by accident: its `Debug` hides it, it has no `Display`, and it is wiped when dropped.

pub use secrecy::{ExposeSecret, SecretString};

/// Who logs in, and with what.
#[derive(Clone, Debug)]
pub enum Login {
    Password {
        username: String,
        password: SecretString,
    },
    /// What `docker login` keeps for registries that hand out refresh tokens.
    IdentityToken(SecretString),
}
