//! Policies as people ship them: a file, or an artifact in a registry, with the signature that belongs to it.
//!
//! Knows where bytes come from ([`mod@file`], [`registry`], either by a [`Carrier`]) and who vouches for them ([`signature`]), and
//! nothing of what is in them: whether they are a policy at all is found out in [`refit_sandbox`].

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

/// Begins a reference to an artifact in a registry.
const SCHEME: &str = "oci://";

/// Where a policy is.
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

/// `oci://…`, and nothing else.
pub fn reference(text: &str) -> Result<ArtifactRef, ArtifactError> {
    match text.parse()? {
        Source::Registry(reference) => Ok(reference),
        Source::File(_) => Err(ArtifactError::Reference {
            text: text.to_owned(),
            problem: format!("it does not begin with `{SCHEME}`"),
        }),
    }
}

/// Gets policies from wherever they are, and puts them into registries, with the logins that images are pulled with.
#[derive(Clone, Debug)]
pub struct Carrier {
    pub registries: Registries,
    pub credentials: Credentials,
}

impl Carrier {
    /// At most `bytes_max` of it.
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

    /// Returns the reference, pinned to what was put there.
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
            Ok(found) => Ok(found.map(|(login, _)| login)),
            Err(source) => Err(ArtifactError::Login {
                registry: registry.to_owned(),
                source,
            }),
        }
    }
}

/// The bytes of a policy, and what came with them.
#[derive(Clone, Debug)]
pub struct Artifact {
    pub bytes: Vec<u8>,
    /// For people: the path, or the reference with the digest that it stood for.
    pub origin: String,
    /// A detached minisign signature over the bytes, as text.
    pub signature: Option<String>,
}

/// Why there are no bytes, or none that could be put anywhere. Nothing was changed.
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
        /// `None` where it has no end that is known.
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
    fn a_source_is_told_by_its_scheme_and_written_as_it_was_read() {
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
    fn a_reference_is_no_file() {
        assert!(reference("oci://ghcr.io/acme/canary:1").is_ok());
        let error = reference("ghcr.io/acme/canary:1").unwrap_err().to_string();
        assert!(
            error.ends_with("it does not begin with `oci://`"),
            "{error}"
        );
    }

    #[test]
    fn what_names_no_registry_or_no_version_is_refused() {
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
