//! Checks whether a registry's response is a manifest, and computes its digest.
//!
//! Status 200 does not make a response a manifest: login pages, captive portals and proxies return it too. Its type, its
//! encoding, its form and its digest have to agree. Pure: no connections.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use refit_model::image::{is_digest, sha256};
use serde_json::Value;
use sha2::{Digest as _, Sha512};

/// All kinds of manifests: the tag points to an object with one digest, and the engine records that digest.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Manifests of the first schema, which old registries have for old images. Their digest excludes the signatures.
const FIRST_SCHEMA: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// The type that storage behind a registry gives to any content. The content has to show that it is a manifest.
const GENERIC_TYPES: [&str; 5] = [
    "",
    "application/json",
    "application/octet-stream",
    "binary/octet-stream",
    "text/plain",
];

const DIGEST_HEADER: &str = "docker-content-digest";

/// The response is not a manifest. Completes "its answer is not a manifest: …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotAManifest(String);

/// Reads the digest from the response to a HEAD. `None`: the response is incomplete, and a GET is needed.
pub(super) fn digest_of_head(headers: &HeaderMap) -> Option<String> {
    let kind = media_type(headers);
    let is_manifest = MEDIA_TYPES.contains(&&*kind) || FIRST_SCHEMA.contains(&&*kind);
    let digest = digest_header(headers)?;
    (is_manifest && encoding(headers).is_none()).then_some(digest)
}

/// Computes the digest of the manifest in the response to a GET.
pub(super) fn digest_of_body(headers: &HeaderMap, body: &[u8]) -> Result<String, NotAManifest> {
    let not = |why: String| Err(NotAManifest(why));
    if let Some(encoding) = encoding(headers) {
        return not(format!(
            "it is encoded as `{encoding}`, which nobody asked for"
        ));
    }
    let kind = media_type(headers);
    let said = digest_header(headers);
    if FIRST_SCHEMA.contains(&&*kind) {
        let why = "it is of the first schema, and the registry does not say its digest";
        return said.ok_or_else(|| NotAManifest(why.into()));
    }
    if !MEDIA_TYPES.contains(&&*kind) && !GENERIC_TYPES.contains(&&*kind) {
        return not(match kind.as_str() {
            "text/html" | "application/xhtml+xml" => format!("it is a web page (`{kind}`)"),
            _ => format!("its type is `{kind}`"),
        });
    }
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        let start = body.trim_ascii_start();
        return not(match start.first() {
            Some(b'<') => "it is a web page".into(),
            Some(_) => "it is not JSON, or not all of it came".into(),
            None => "it is empty".into(),
        });
    };
    if let Err(why) = check_form(&document) {
        return not(why.into());
    }
    let digest = sha256(body);
    match said {
        None => Ok(digest),
        Some(said) if is_digest_of(&said, body) => Ok(said),
        Some(said) => not(format!(
            "its digest is `{digest}`, and the registry says `{said}`"
        )),
    }
}

/// Reports whether these bytes have this digest.
pub(super) fn is_digest_of(digest: &str, bytes: &[u8]) -> bool {
    digest == sha256(bytes) || digest == sha512(bytes)
}

/// Checks the form of an index of manifests, or of the manifest of one image.
fn check_form(document: &Value) -> Result<(), &'static str> {
    if document.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err("it has no `schemaVersion` of 2");
    }
    match document.get("mediaType") {
        None => {}
        Some(Value::String(kind)) if MEDIA_TYPES.contains(&kind.as_str()) => {}
        Some(_) => return Err("its `mediaType` is not that of a manifest"),
    }
    let has_digest = |descriptor: &Value| {
        let digest = descriptor.get("digest").and_then(Value::as_str);
        digest.is_some_and(is_digest)
    };
    let list = |name: &str| document.get(name).and_then(Value::as_array);
    let is_index = list("manifests").is_some_and(|all| all.iter().all(has_digest));
    let is_image = document.get("config").is_some_and(has_digest)
        && list("layers").is_some_and(|all| all.iter().all(has_digest));
    match is_index || is_image {
        true => Ok(()),
        false => Err("it names no manifests, and no configuration with layers"),
    }
}

/// Returns the media type without parameters, in lower case.
fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.chars()
        .take(100)
        .collect::<String>()
        .to_ascii_lowercase()
}

fn encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get(CONTENT_ENCODING)?;
    let encoding: String = String::from_utf8_lossy(encoding.as_bytes())
        .trim()
        .chars()
        .take(40)
        .collect();
    let is_none = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
    (!is_none).then_some(encoding)
}

/// Reads the registry's digest header, if it is valid.
fn digest_header(headers: &HeaderMap) -> Option<String> {
    let digest = headers.get(DIGEST_HEADER)?.to_str().ok()?.trim();
    is_digest(digest).then(|| digest.to_owned())
}

fn sha512(bytes: &[u8]) -> String {
    let hex = Sha512::digest(bytes);
    let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INDEX: &str = MEDIA_TYPES[0];
    const SOME: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    fn index() -> String {
        let manifest = json!({ "mediaType": MEDIA_TYPES[2], "digest": SOME, "size": 7 });
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] }).to_string()
    }

    fn image() -> String {
        let blob = json!({ "mediaType": "application/x", "digest": SOME, "size": 7 });
        json!({ "schemaVersion": 2, "config": blob, "layers": [blob, blob] }).to_string()
    }

    #[track_caller]
    fn is_manifest(kind: &str, body: &str) {
        let read = digest_of_body(&headers(&[("content-type", kind)]), body.as_bytes());
        assert_eq!(read, Ok(sha256(body.as_bytes())), "{kind} {body}");
    }

    #[track_caller]
    fn is_none(pairs: &[(&'static str, &str)], body: &str, why: &str) {
        let read = digest_of_body(&headers(pairs), body.as_bytes());
        let error = read.expect_err(body).to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn manifests_have_the_digest_of_their_bytes_whatever_storage_calls_them() {
        for kind in MEDIA_TYPES.into_iter().chain(GENERIC_TYPES) {
            is_manifest(kind, &index());
            is_manifest(kind, &image());
        }
        is_manifest("application/JSON; charset=utf-8", &index());
    }

    #[test]
    fn pages_and_other_documents_are_no_manifests() {
        let page = "<!doctype html><form action=/login>";
        let html = [("content-type", "text/html; charset=utf-8")];
        is_none(&html, page, "web page (`text/html`)");
        // A header from a proxy does not make it a manifest.
        let with_digest = [html[0], ("docker-content-digest", SOME)];
        is_none(&with_digest, page, "web page");
        is_none(&html, &index(), "web page");
        for kind in [INDEX, "application/json", "text/plain", ""] {
            let kind = [("content-type", kind)];
            is_none(&kind, page, "web page");
            is_none(&kind, "", "empty");
            is_none(&kind, &index()[..90], "not all of it came");
            is_none(
                &kind,
                r#"{"errors":[{"code":"DENIED"}]}"#,
                "`schemaVersion`",
            );
            is_none(
                &kind,
                r#"{"schemaVersion":1,"fsLayers":[]}"#,
                "`schemaVersion`",
            );
            is_none(&kind, r#"{"schemaVersion":2}"#, "no manifests");
            is_none(
                &kind,
                r#"{"schemaVersion":2,"manifests":[{"digest":"x"}]}"#,
                "no manifests",
            );
            let other = index().replace(INDEX, "application/vnd.oci.image.config.v1+json");
            is_none(&kind, &other, "`mediaType`");
        }
        let config = [("content-type", "application/vnd.oci.image.config.v1+json")];
        is_none(&config, &index(), "its type is");
    }

    #[test]
    fn encoded_answer_is_no_manifest() {
        for encoding in ["gzip", "br", "zstd, gzip"] {
            let pairs = [("content-type", INDEX), ("content-encoding", encoding)];
            is_none(&pairs, &index(), "nobody asked for");
            let with_digest = [pairs[0], pairs[1], ("docker-content-digest", SOME)];
            assert_eq!(digest_of_head(&headers(&with_digest)), None);
        }
        let identity = [("content-type", INDEX), ("content-encoding", "identity")];
        assert!(digest_of_body(&headers(&identity), index().as_bytes()).is_ok());
    }

    #[test]
    fn registry_that_says_another_digest_than_it_sends_is_not_believed() {
        let said = |digest: &str| {
            let pairs = [("content-type", INDEX), ("docker-content-digest", digest)];
            digest_of_body(&headers(&pairs), index().as_bytes())
        };
        let long = sha512(index().as_bytes());
        assert_eq!(said(&long), Ok(long.clone()));
        // An invalid digest counts as absent.
        assert_eq!(said("md5:1"), Ok(sha256(index().as_bytes())));
        assert!(said(SOME).unwrap_err().to_string().contains(SOME));
    }

    #[test]
    fn head_needs_a_type_and_a_digest() {
        let head = |pairs: &[(&'static str, &str)]| digest_of_head(&headers(pairs));
        let digest = ("docker-content-digest", SOME);
        for kind in MEDIA_TYPES.into_iter().chain(FIRST_SCHEMA) {
            assert_eq!(
                head(&[("content-type", kind), digest]).as_deref(),
                Some(SOME)
            );
            assert_eq!(head(&[("content-type", kind)]), None);
        }
        for kind in ["text/html", "application/json", ""] {
            assert_eq!(head(&[("content-type", kind), digest]), None, "{kind}");
        }
        assert_eq!(head(&[digest]), None);
    }

    #[test]
    fn first_schema_has_the_digest_that_the_registry_says() {
        let kind = ("content-type", FIRST_SCHEMA[1]);
        let body = br#"{"schemaVersion":1,"signatures":[]}"#;
        let said = digest_of_body(&headers(&[kind, ("docker-content-digest", SOME)]), body);
        assert_eq!(said.as_deref(), Ok(SOME));
        assert!(digest_of_body(&headers(&[kind]), body).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_answer_is_too_strange(kind in "[ -~]{0,60}", body: Vec<u8>) {
            let _ = digest_of_body(&headers(&[("content-type", kind.trim())]), &body);
        }
    }
}
