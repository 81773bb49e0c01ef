//! Image references, ids and platforms, parsed from user input.
//!
//! All other code uses these types, never a string, so the rules about the default registry, `library/` and `latest` are only
//! here. This module knows no engine and no registry.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::{ParseError, Reference};

use crate::printable::printable;

/// The longest quote of an invalid reference in an error.
const SHOWN_BYTES_MAX: usize = 80;

/// A checked, normalised image reference: `nginx` and `docker.io/library/nginx:latest` are equal.
#[derive(Clone, PartialEq, Eq, Hash, utoipa::ToSchema)]
#[schema(value_type = String)]
pub struct ImageRef(Reference);

#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not an image reference")]
pub struct ImageRefError {
    text: String,
    source: ParseError,
}

impl ImageRef {
    /// The longest accepted reference: a registry name, a repository of 255 characters, a tag of 128 and a digest.
    pub const LENGTH_MAX: usize = 1024;

    /// Returns the host and, if given, the port: `ghcr.io`, `127.0.0.1:5000`, `docker.io`.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Returns registry and repository without tag or digest: `ghcr.io/acme/app`. All versions of one image share it.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.0.registry(), self.0.repository())
    }

    /// Returns the repository as its registry knows it: `acme/app`.
    pub fn path(&self) -> &str {
        self.0.repository()
    }

    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |source| ImageRefError {
            text: printable(text, SHOWN_BYTES_MAX),
            source,
        };
        if text.len() > Self::LENGTH_MAX {
            return Err(wrong(ParseError::NameTooLong));
        }
        parse_reference(text).map(Self).map_err(wrong)
    }
}

/// Parses a reference with the same result as [`Reference`]'s own parser (a test compares the two). That parser's regular
/// expression takes a tenth of a second and eight megabytes to compile, which is most of a start and of a daemon's memory.
fn parse_reference(text: &str) -> Result<Reference, ParseError> {
    if text.is_empty() {
        return Err(ParseError::NameEmpty);
    }
    // The engine treats these as image ids, and no repository may have such a name.
    if is_image_id(text) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    let (tagged, digest) = match text.split_once('@') {
        Some((tagged, digest)) => (tagged, Some(checked_digest(digest)?)),
        None => (text, None),
    };
    // A colon before the last slash belongs to a port.
    let last = tagged.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match tagged[last..].split_once(':') {
        Some((name, tag)) if is_tag(tag) => (&tagged[..last + name.len()], Some(tag)),
        Some(_) => return Err(ParseError::ReferenceInvalidFormat),
        None => (tagged, None),
    };
    let (registry, repository) = split_name(name)?;
    Ok(match (tag.map(str::to_owned), digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest)
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => {
            let tag = tag.unwrap_or_else(|| "latest".into());
            Reference::with_tag(registry, repository, tag)
        }
    })
}

/// Splits a name into registry and repository, and adds the parts that a short name leaves out.
fn split_name(name: &str) -> Result<(String, String), ParseError> {
    const REPOSITORY_MAX: usize = 255;
    let named = name
        .split_once('/')
        .filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost");
    let (registry, path) = match named {
        Some((host, _)) if !is_host(host) => return Err(ParseError::ReferenceInvalidFormat),
        Some(("index.docker.io", path)) => ("docker.io", path),
        Some((host, path)) => (host, path),
        None => ("docker.io", name),
    };
    if !path.split('/').all(is_path_component) {
        // A user who writes `Acme/app` gets a specific error.
        let lower = path.to_ascii_lowercase();
        return Err(match lower.split('/').all(is_path_component) {
            true => ParseError::NameContainsUppercase,
            false => ParseError::ReferenceInvalidFormat,
        });
    }
    let repository = match path.contains('/') || registry != "docker.io" {
        true => path.to_owned(),
        false => format!("library/{path}"),
    };
    if repository.len() > REPOSITORY_MAX {
        return Err(ParseError::NameTooLong);
    }
    Ok((registry.to_owned(), repository))
}

/// Reports whether a text is an image id: 64 hexadecimal digits, with or without `sha256:`.
pub fn is_image_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    hex.len() == 64
        && hex
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Reports whether a text is a host: letters, digits and hyphens between dots, or an IPv6 address in brackets, with an optional
/// port.
fn is_host(host: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
    if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, port)) = bracketed.split_once(']') else {
            return false;
        };
        let is_address = address.parse::<core::net::Ipv6Addr>().is_ok();
        return is_address && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (labels, port) = match host.split_once(':') {
        Some((labels, port)) => (labels, Some(port)),
        None => (host, None),
    };
    let is_label = |label: &str| {
        let plain = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    labels.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Reports whether a text is a path component: words of lower-case letters and digits, separated by a dot, one or two
/// underscores, or hyphens.
fn is_path_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_in_words = component.starts_with(is_word) && component.ends_with(is_word);
    let mut separators = component.split(is_word).filter(|it| !it.is_empty());
    ends_in_words
        && separators.all(|it| matches!(it, "." | "_" | "__") || it.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    const LENGTH_MAX: usize = 128;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= LENGTH_MAX
        && tag.starts_with(is_word)
        && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

/// Reports whether a text is a digest as registries write it: `sha256:` and 64 lower-case hexadecimal digits, or `sha512:` and
/// 128.
pub fn is_digest(text: &str) -> bool {
    let is_small = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let length = match text.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha512", _)) => 128,
        _ => return false,
    };
    let (_, hex) = text.split_at("sha256:".len());
    hex.len() == length && hex.bytes().all(is_small)
}

/// Computes the digest of some bytes, as registries write it.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    let hex = Sha256::digest(bytes);
    let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn checked_digest(digest: &str) -> Result<String, ParseError> {
    let (algorithm, hex) = digest
        .split_once(':')
        .ok_or(ParseError::ReferenceInvalidFormat)?;
    if !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(ParseError::ReferenceInvalidFormat);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ParseError::DigestUnsupported),
    };
    match hex.len() == length {
        true => Ok(digest.to_owned()),
        false => Err(ParseError::DigestInvalidLength),
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageRef({})", self.0)
    }
}

impl serde::Serialize for ImageRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ImageRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The engine's own name for an image, `sha256:` and 64 hexadecimal digits. Not a registry's digest.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
#[derive(utoipa::ToSchema)]
pub struct ImageId(String);

impl ImageId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns twelve digits, as the Docker CLI shows them.
    pub fn short(&self) -> &str {
        let hex = self.0.strip_prefix("sha256:").unwrap_or(&self.0);
        hex.get(..12).unwrap_or(hex)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Operating system, architecture and variant, as in `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a platform: write it as `os/architecture` or `os/architecture/variant`, for example `linux/amd64`"
)]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || PlatformError(text.chars().take(80).collect());
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(plain) {
            return Err(wrong());
        }
        Ok(Self {
            os: parts[0].to_owned(),
            architecture: parts[1].to_owned(),
            variant: parts.get(2).map(|variant| (*variant).to_owned()),
        })
    }
}

impl Platform {
    /// Reports whether an engine of this platform runs such an image. Without a requested variant, any variant matches.
    pub fn takes(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let same = self.os == os && self.architecture == architecture;
        same && (self.variant.is_none() || self.variant.as_deref() == variant)
    }

    /// Reports whether an image with an unknown variant matches. If a variant is requested, it does not: that variant is not
    /// known to be here.
    pub fn is(&self, os: &str, architecture: &str) -> bool {
        self.os == os && self.architecture == architecture && self.variant.is_none()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Returns the platform to request for a pull and for the creation of a container. Only this function decides it.
///
/// `configured` is `MOLECULE_IMAGE_PLATFORM` or `[images] platform`: a platform to request, or, if it is set but empty, the
/// instruction to request none and use the engine's choice. If nothing is configured, only Apple Silicon needs one: the
/// templates are published for `linux/amd64` alone, which an engine there runs by emulation but would not choose by itself.
pub fn image_platform(configured: Option<&str>) -> Result<Option<Platform>, PlatformError> {
    platform_on(std::env::consts::OS, std::env::consts::ARCH, configured)
}

fn platform_on(
    os: &str,
    architecture: &str,
    configured: Option<&str>,
) -> Result<Option<Platform>, PlatformError> {
    match configured.map(str::trim) {
        Some("") => Ok(None),
        Some(platform) => platform.parse().map(Some),
        None if os == "macos" && architecture == "aarch64" => "linux/amd64".parse().map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(typed: &str, normal: &str) {
        assert_eq!(typed.parse::<ImageRef>().unwrap().to_string(), normal);
    }

    #[test]
    fn short_name_means_docker_hub_and_latest() {
        check("nginx", "docker.io/library/nginx:latest");
        check("acme/app:1", "docker.io/acme/app:1");
    }

    #[test]
    fn port_is_not_a_tag() {
        check("localhost:5000/web", "localhost:5000/web:latest");
    }

    #[test]
    fn digest_needs_no_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        check(
            &format!("ghcr.io/acme/app@{digest}"),
            &format!("ghcr.io/acme/app@{digest}"),
        );
    }

    #[test]
    fn versions_share_the_repository() {
        let image: ImageRef = "127.0.0.1:5000/acme/app:v2".parse().unwrap();
        assert_eq!(image.repository(), "127.0.0.1:5000/acme/app");
        assert_eq!(image.registry(), "127.0.0.1:5000");
    }

    #[test]
    fn invalid_reference_is_refused() {
        for text in [
            "",
            "Acme/app",
            "ghcr.io/acme/app:",
            "ghcr.io/acme/app:a b",
            "ghcr.io/{runtime}",
            "a\n",
            &"a".repeat(5000),
        ] {
            assert!(
                text.parse::<ImageRef>().is_err(),
                "{text:?} must be refused"
            );
        }
    }

    /// Parses with the library. It accepts `Acme/app`, words of any script for a tag, image ids as names, and registries with
    /// underscores; engines do not.
    fn by_the_library(text: &str) -> Option<Reference> {
        let reference = Reference::try_from(text).ok()?;
        let upper = reference.repository().chars().any(char::is_uppercase);
        let underscore = reference.registry().contains('_');
        let taken = text.is_ascii() && !upper && !underscore && !is_image_id(text);
        taken.then_some(reference)
    }

    #[test]
    fn engine_spellings_are_parsed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (typed, normal) in [
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("library/nginx", "docker.io/library/nginx:latest"),
            ("GHCR.io/acme/app", "GHCR.io/acme/app:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/acme/app:2", "[2001:db8::1]/acme/app:2"),
        ] {
            check(typed, normal);
        }
        check(
            &format!("ghcr.io/acme/app:2@{digest}"),
            &format!("ghcr.io/acme/app:2@{digest}"),
        );
    }

    /// Found by fuzzing: as a whole it is a path, and then its first part has a dot.
    #[test]
    fn registry_with_an_underscore_is_no_host() {
        let text = "a.b__d---e.f/g_h:v1.2-x";
        assert!(text.parse::<ImageRef>().is_err());
        assert_eq!(parse_reference(text).ok(), by_the_library(text));
    }

    #[test]
    fn image_id_is_no_reference() {
        for id in ["b".repeat(64), format!("sha256:{}", "b".repeat(64))] {
            assert!(id.parse::<ImageRef>().is_err(), "{id}");
        }
        for host in ["[::1/app", "[::g]:5000/app", "[::1]:/app", "[]/app"] {
            assert!(host.parse::<ImageRef>().is_err(), "{host}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parser_agrees_with_library(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "a", "B", "0", ".", "_", "__", "-", "--", "/", ":", "@", "localhost", "docker.io", "index.docker.io", "ghcr.io/",
                    "acme/app", ":5000/", ":v1.2-x", "@sha256:", "sha512:", "md5:", "é", " ", "library/",
                    "0123456789abcdefABCDEF0123456789",
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                ]),
                0..9,
            ),
        ) {
            let text = pieces.concat();
            proptest::prop_assert_eq!(parse_reference(&text).ok(), by_the_library(&text), "{}", text);
        }
    }

    #[test]
    fn length_limits_agree_with_library() {
        for length in [127, 128, 129, 246, 247, 248, 255, 256] {
            for text in [
                "a".repeat(length),
                format!("a.io/{}", "a".repeat(length)),
                format!("a:{}", "v".repeat(length)),
            ] {
                assert_eq!(parse_reference(&text).ok(), by_the_library(&text), "{text}");
            }
        }
    }

    #[test]
    fn set_but_empty_means_no_override() {
        assert_eq!(platform_on("macos", "aarch64", Some("")).unwrap(), None);
        assert_eq!(platform_on("macos", "aarch64", Some(" \n")).unwrap(), None);
    }

    #[test]
    fn only_apple_silicon_has_a_default() {
        assert_eq!(
            platform_on("macos", "aarch64", None)
                .unwrap()
                .unwrap()
                .to_string(),
            "linux/amd64"
        );
        assert_eq!(platform_on("linux", "aarch64", None).unwrap(), None);
        assert_eq!(platform_on("linux", "x86_64", None).unwrap(), None);
    }

    #[test]
    fn configured_platform_is_used_unchanged() {
        assert_eq!(
            platform_on("linux", "x86_64", Some("linux/arm64/v8"))
                .unwrap()
                .unwrap()
                .to_string(),
            "linux/arm64/v8"
        );
        assert!(platform_on("linux", "x86_64", Some("amd64")).is_err());
        assert!(platform_on("linux", "x86_64", Some("linux/amd64/v2/x")).is_err());
    }
}
