//! Policies as people ship them: a file, or an artifact in a registry, with the signature that belongs to it.
//!
//! Knows where bytes come from ([`file`], [`registry`]) and who vouches for them ([`signature`]), and nothing of what is in
//! them: whether they are a policy at all is found out in [`crate::policy`].

pub mod file;
pub mod registry;
pub mod signature;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use self::registry::ArtifactRef;

/// Begins a reference to an artifact in a registry.
const SCHEME: &str = "oci://";

/// Where a policy is.
#[derive(Clone, Debug, PartialEq)]
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

impl crate::diagnostic::Hints for ArtifactError {
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
