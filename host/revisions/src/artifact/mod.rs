//! Policies as files or as artifacts in a registry, with their signatures.
//!
//! [`mod@file`] and [`registry`] read the bytes, for a [`Carrier`]; [`signature`] verifies who signed them. The content is
//! opaque here: [`refit_sandbox`] finds out whether it is a policy.

pub mod file;
pub mod registry;
pub mod signature;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use self::registry::ArtifactRef;
use refit_model::secret::Login;
use refit_registry::credentials::{CredentialError, Credentials};

use self::registry::{Registries, Title};

/// The prefix of a reference to an artifact in a registry.
const SCHEME: &str = "oci://";

/// The location of a policy.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Source {
    File(PathBuf),
    Registry(ArtifactRef),
}

impl FromStr for Source {
    type Err = ArtifactError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(SCHEME) {
            Some(reference) => Ok(Self::Registry(reference.parse()?)),
            None => Ok(Self::File(text.into())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Registry(reference) => write!(f, "{SCHEME}{reference}"),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = ArtifactError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Parses a reference to a registry, `oci://…`.
pub fn parse_reference(text: &str) -> Result<ArtifactRef, ArtifactError> {
    match text.parse()? {
        Source::Registry(reference) => Ok(reference),
        Source::File(_) => Err(ArtifactError::Reference {
            text: text.to_owned(),
            problem: format!("it does not begin with `{SCHEME}`"),
        }),
    }
}

/// Fetches policies from files and registries, and pushes them to registries, with the same logins as images.
#[derive(Clone, Debug)]
pub struct Carrier {
    pub registries: Registries,
    pub credentials: Credentials,
}

impl Carrier {
    /// Fetches a policy of at most `bytes_max` bytes.
    pub async fn fetch(
        &self,
        source: &Source,
        bytes_max: usize,
    ) -> Result<Artifact, ArtifactError> {
        match source {
            Source::Registry(reference) => {
                let login = self.login(reference).await?;
                self.registries
                    .pull(reference, login.as_ref(), bytes_max)
                    .await
            }
            Source::File(path) => {
                let (path, origin) = (path.clone(), path.display().to_string());
                let read = tokio::task::spawn_blocking(move || file::read(&path, bytes_max));
                read.await.unwrap_or_else(|panicked| {
                    Err(ArtifactError::Unreadable {
                        origin,
                        source: std::io::Error::other(panicked),
                    })
                })
            }
        }
    }

    /// Pushes a policy, and returns the reference, pinned to its digest.
    pub async fn push(
        &self,
        reference: &ArtifactRef,
        artifact: &Artifact,
        title: &Title,
    ) -> Result<ArtifactRef, ArtifactError> {
        let login = self.login(reference).await?;
        self.registries
            .push(reference, login.as_ref(), artifact, title)
            .await
    }

    async fn login(&self, reference: &ArtifactRef) -> Result<Option<Login>, ArtifactError> {
        let registry = reference.registry();
        match self.credentials.login(registry).await {
            Ok(login) => Ok(login.map(|(login, _)| login)),
            Err(source) => Err(ArtifactError::Login {
                registry: registry.to_owned(),
                source,
            }),
        }
    }
}

/// The bytes of a policy, with its origin and signature.
#[derive(Clone, Debug)]
pub struct Artifact {
    pub bytes: Vec<u8>,
    /// The path, or the reference with its current digest, for people.
    pub origin: String,
    /// A detached minisign signature over the bytes, as text.
    pub signature: Option<String>,
}

/// Why a policy could not be fetched or pushed. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("cannot read the policy `{origin}`")]
    Unreadable {
        origin: String,
        source: std::io::Error,
    },
    #[error("`{origin}` has {}, and a policy may have {limit}", match .bytes { Some(bytes) => format!("{bytes} bytes"), None => format!("more than {limit} bytes") })]
    TooLarge {
        origin: String,
        /// `None` if its size is unknown.
        bytes: Option<u64>,
        limit: u64,
    },
    #[error("`{text}` is no reference to an artifact in a registry: {problem}")]
    Reference { text: String, problem: String },
    #[error("cannot look up the login for registry `{registry}`")]
    Login {
        registry: String,
        source: CredentialError,
    },
    #[error("cannot {action} `{reference}`")]
    Registry {
        action: &'static str,
        reference: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "cannot {action} `{reference}`: registry `{registry}` wants a login, or refused the one that it was given"
    )]
    Unauthorized {
        action: &'static str,
        reference: String,
        registry: String,
        credentials_sent: bool,
    },
    #[error("cannot {action} `{reference}`: no answer within {} s", .limit.as_secs())]
    TimedOut {
        action: &'static str,
        reference: String,
        limit: std::time::Duration,
    },
    #[error("registry `{registry}` has no `{reference}`")]
    NotFound { registry: String, reference: String },
    #[error("`{reference}` is no policy: {problem}")]
    NotAPolicy { reference: String, problem: String },
}

impl refit_model::diagnostic::Hints for ArtifactError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } => vec![
                "`--policy FILE` and `[policy] component` name it; without either, the built-in policy is used".into(),
            ],
            Self::Reference { .. } => {
                vec!["for example `oci://ghcr.io/acme/policies/canary:1.2.0`, with `@sha256:…` behind it to pin it".into()]
            }
            Self::Unauthorized { registry, credentials_sent: false, .. } => {
                vec![format!("no login for `{registry}` was found: run `docker login {registry}`")]
            }
            Self::Unauthorized { registry, credentials_sent: true, .. } => {
                vec![format!("the login for `{registry}` may have expired: `docker login {registry}` writes it anew")]
            }
            Self::NotAPolicy { .. } => {
                vec!["`refit policy push FILE oci://…` makes an artifact that Refit reads".into()]
            }
            Self::Registry { .. } => vec![
                "a registry without TLS must be listed in `[registries] plain_http`, unless it is on this machine".into(),
            ],
            Self::Login { source, .. } => source.hints(),
            Self::TooLarge { .. } | Self::TimedOut { .. } | Self::NotFound { .. } => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_parsed_by_scheme_and_round_trips() {
        for text in [
            "policy.wasm",
            "./oci/policy.wasm",
            "oci://ghcr.io/acme/canary:1.2.0",
            "oci://127.0.0.1:5055/acme/canary:1",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        let pinned = format!("oci://ghcr.io/acme/canary:1@sha256:{}", "a".repeat(64));
        assert_eq!(pinned.parse::<Source>().unwrap().to_string(), pinned);
    }

    #[test]
    fn reference_is_not_a_file() {
        assert!(parse_reference("oci://ghcr.io/acme/canary:1").is_ok());
        let error = parse_reference("ghcr.io/acme/canary:1")
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("it does not begin with `oci://`"),
            "{error}"
        );
    }

    #[test]
    fn reference_without_registry_or_version_is_refused() {
        for text in [
            "oci://",
            "oci://canary",
            "oci://ghcr.io/acme/canary",
            "oci://ghcr.io/Acme:1",
        ] {
            assert!(
                matches!(text.parse::<Source>(), Err(ArtifactError::Reference { .. })),
                "{text}"
            );
        }
    }
}
