//! Parses image references like an engine.
//!
//! Policies compare repositories, and comparing strings gives wrong results: `localhost:5000/web` has a port and no tag, and
//! `nginx` is `docker.io/library/nginx`. This module knows the grammar and the defaults of Docker Hub. It does not contact
//! registries or check that an image exists.

use std::fmt;
use std::str::FromStr;

const DEFAULT_REGISTRY: &str = "docker.io";
/// The namespace of one-word images on Docker Hub.
const DEFAULT_NAMESPACE: &str = "library";
/// The engine's own limit for registry and repository together.
const NAME_CHARS_MAX: usize = 255;
const TAG_CHARS_MAX: usize = 128;
/// A shorter digest could match by chance.
const DIGEST_HEX_CHARS_MIN: usize = 32;

/// A checked image reference. `nginx` and `docker.io/library/nginx` parse to equal values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("an image reference must not be empty")]
    Empty,
    #[error("`{0}` is the id of an image, not a reference")]
    Id(String),
    #[error("`{0}` is no registry: a host name with an optional port is expected")]
    Registry(String),
    #[error(
        "`{0}` cannot be part of a repository: lower case letters and digits, separated by `.`, `_`, `__` or hyphens, are expected"
    )]
    Component(String),
    #[error("registry and repository together are longer than {NAME_CHARS_MAX} characters")]
    TooLong,
    #[error(
        "`{0}` is no tag: up to {TAG_CHARS_MAX} letters, digits, `_`, `.` and `-` are expected, the first no `.` or `-`"
    )]
    Tag(String),
    #[error("`{0}` is no digest: `sha256:` and 64 hexadecimal digits are expected")]
    Digest(String),
}

/// Whether two references have the same repository in the same registry, whatever their tags and digests. A text that is not a
/// reference, such as an image id, equals nothing.
///
/// ```
/// use refit_policy::reference::same_repository;
/// assert!(same_repository("nginx", "docker.io/library/nginx:1.27"));
/// assert!(!same_repository("localhost:5000/web", "localhost:5001/web"));
/// ```
pub fn same_repository(a: &str, b: &str) -> bool {
    match (a.parse::<Reference>(), b.parse::<Reference>()) {
        (Ok(a), Ok(b)) => a.is_same_repository(&b),
        _ => false,
    }
}

/// The reason why a text is not an image reference, for its author.
pub fn problem(text: &str) -> Option<String> {
    text.parse::<Reference>()
        .err()
        .map(|error| error.to_string())
}

impl Reference {
    /// The registry, for example `ghcr.io` or `localhost:5000`. `docker.io` if the reference names none.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, for example `acme/app`, or `library/nginx` for `nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the reference has one: without a tag and a digest an engine uses `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, for example `sha256:…`. If there is one, an engine ignores the tag.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    pub fn is_same_repository(&self, other: &Self) -> bool {
        self.registry == other.registry && self.repository == other.repository
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_sha256(text.strip_prefix("sha256:").unwrap_or(text)) {
            return Err(ReferenceError::Id(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(checked_tag(tag)?)),
            _ => (rest, None),
        };
        let (registry, path) = split_registry(name)?;
        for component in path.split('/') {
            check_component(component)?;
        }
        let repository = match path.contains('/') || registry != DEFAULT_REGISTRY {
            true => path.to_owned(),
            false => format!("{DEFAULT_NAMESPACE}/{path}"),
        };
        if registry.len() + 1 + repository.len() > NAME_CHARS_MAX {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// Writes the defaults out, except for the tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Split off the registry. The first component names a registry only if it cannot be a namespace of Docker Hub: with a dot, a port
/// or capital letters, or as `localhost`.
fn split_registry(name: &str) -> Result<(&str, &str), ReferenceError> {
    match name.split_once('/') {
        Some((first, path))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            check_registry(first)?;
            // The old name of Docker Hub is still in use.
            Ok((
                if first == "index.docker.io" {
                    DEFAULT_REGISTRY
                } else {
                    first
                },
                path,
            ))
        }
        _ => Ok((DEFAULT_REGISTRY, name)),
    }
}

fn check_registry(text: &str) -> Result<(), ReferenceError> {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let is_name = |host: &str| {
        host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    };
    let is_registry = if let Some((address, port)) =
        text.strip_prefix('[').and_then(|rest| rest.split_once(']'))
    {
        !address.is_empty()
            && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
    } else {
        match text.split_once(':') {
            Some((host, port)) => is_name(host) && is_port(port),
            None => is_name(text),
        }
    };
    is_registry
        .then_some(())
        .ok_or_else(|| ReferenceError::Registry(text.to_owned()))
}

fn check_component(text: &str) -> Result<(), ReferenceError> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    // Between two words there is exactly one separator; the empty pieces are those between neighboring letters.
    let fits = text.starts_with(is_word)
        && text.ends_with(is_word)
        && text
            .split(is_word)
            .filter(|run| !run.is_empty())
            .all(is_separator);
    fits.then_some(())
        .ok_or_else(|| ReferenceError::Component(text.to_owned()))
}

fn checked_tag(text: &str) -> Result<String, ReferenceError> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let fits = text.len() <= TAG_CHARS_MAX
        && text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || c == '.' || c == '-');
    fits.then(|| text.to_owned())
        .ok_or_else(|| ReferenceError::Tag(text.to_owned()))
}

fn checked_digest(text: &str) -> Result<String, ReferenceError> {
    let fits = text
        .split_once(':')
        .is_some_and(|(algorithm, hex)| match algorithm {
            "sha256" => is_sha256(hex),
            // Other algorithms are rare, so the registry checks their lengths.
            _ => {
                algorithm.starts_with(|c: char| c.is_ascii_alphabetic())
                    && algorithm
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
                    && hex.len() >= DIGEST_HEX_CHARS_MIN
                    && hex.bytes().all(|b| b.is_ascii_hexdigit())
            }
        });
    fits.then(|| text.to_owned())
        .ok_or_else(|| ReferenceError::Digest(text.to_owned()))
}

fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
