//! Classifies refusals by the words of engines and registries.
//!
//! A status is not enough: Docker 20.10 returns 500 for a refused login, and Podman returns 200 with an error inside the
//! stream, so the words decide. Each sentence in the tests comes from a real engine, or from the registry's source.

/// Why a registry or an engine did not serve an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unauthorized,
    NotFound,
    /// The image exists, but has no version for the requested platform.
    NoPlatform,
    RateLimited,
    NoSpace,
    Unavailable,
    /// A proxy before the engine responded, not an engine or a registry.
    Proxy,
    Other,
}

/// Words of each refusal, in order of precedence: an image without a platform is "not found", too; and "denied" next to "does
/// not exist" (Docker Hub says both about a private image) is about the login.
const WORDS: &[(Refusal, &[&str])] = &[
    (Refusal::NoPlatform, PLATFORM),
    (
        Refusal::RateLimited,
        &["toomanyrequests", "too many requests", "429 "],
    ),
    (
        Refusal::NoSpace,
        &["no space left on device", "disk quota exceeded"],
    ),
    (
        Refusal::Unauthorized,
        &[
            "unauthorized",
            "no basic auth credentials",
            "authorization failed",
            "insufficient_scope",
            "authentication required",
            "access denied",
            "denied:",
            "error parsing http 403",
            "403 forbidden",
            ": denied",
            "incorrect username or password",
            "invalid username/password",
        ],
    ),
    (
        Refusal::NotFound,
        &[
            "manifest unknown",
            "name unknown",
            "not found",
            "no such image",
            "404 ",
        ],
    ),
    (
        Refusal::Unavailable,
        &[
            "connection refused",
            "no such host",
            "i/o timeout",
            "tls handshake",
            "connection reset",
            "network is unreachable",
            "no route to host",
            "context deadline exceeded",
            "server misbehaving",
            "bad gateway",
            "service unavailable",
            "gateway timeout",
            ": eof",
            "x509:",
            "server gave http response to https client",
        ],
    ),
];

/// Words of Docker, of containerd below it, and of Podman.
const PLATFORM: &[&str] = &[
    "no matching manifest for",
    "no match for platform",
    "no match for current platform",
    "no child with platform",
    "no supported platform found",
    "no image found in manifest list",
    "no image found in image index",
    "match the specified platform",
    "provide the specified platform",
    "match the expected platform",
    "cannot be used on this platform",
];

/// Statuses with which proxies before an engine refuse. An engine returns each of them with JSON.
const PROXY_STATUSES: [u16; 9] = [400, 401, 403, 404, 405, 407, 502, 503, 504];

/// Reports whether a message is about a missing platform.
pub(crate) fn is_about_platform(message: &str) -> bool {
    let message = message.to_lowercase();
    PLATFORM.iter().any(|word| message.contains(word))
}

/// Returns the platform that a message names.
pub(crate) fn platform_in(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("no matching manifest for ")?;
    let named = rest.split([' ', ',', ':']).next()?;
    (named.contains('/') && named.len() <= 80).then_some(named)
}

/// Returns the message of a proxy before the engine as one line, if the response comes from one: a web page, nothing, or the
/// bare name of the status. `None` if the engine responded.
pub(crate) fn proxy_message(status: u16, message: &str) -> Option<String> {
    if !PROXY_STATUSES.contains(&status) {
        return None;
    }
    let name = http::StatusCode::from_u16(status).ok()?;
    let (message, name) = (message.trim(), name.canonical_reason().unwrap_or_default());
    let bare = [name.to_owned(), format!("{status} {name}")];
    let is_bare = message.is_empty() || bare.iter().any(|it| it.eq_ignore_ascii_case(message));
    // An engine without this call returns the same words.
    if status == 404 && is_bare {
        return None;
    }
    if is_bare {
        return Some(bare[1].clone());
    }
    message.starts_with('<').then(|| {
        let text = extract_text(message);
        match text.is_empty() {
            true => bare[1].clone(),
            false => text,
        }
    })
}

/// Extracts the visible text of a web page, shortened.
fn extract_text(page: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    let mut text = String::new();
    // The text between a `<` and a `>` is markup.
    for part in page.split('<') {
        let part = part.split_once('>').map_or(part, |(_, text)| text);
        text.push(' ');
        text.push_str(part);
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(CHARACTERS_MAX).collect()
}

pub(crate) fn classify(status: Option<u16>, message: &str) -> Refusal {
    if status.is_some_and(|status| proxy_message(status, message).is_some()) {
        return Refusal::Proxy;
    }
    let message = message.to_lowercase();
    let by_words = WORDS
        .iter()
        .find(|(_, words)| words.iter().any(|word| message.contains(word)));
    match (by_words, status) {
        (Some((refusal, _)), _) => *refusal,
        (None, Some(401 | 403)) => Refusal::Unauthorized,
        (None, Some(404)) => Refusal::NotFound,
        (None, Some(429)) => Refusal::RateLimited,
        (None, Some(502..=504)) => Refusal::Unavailable,
        (None, _) => Refusal::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_distinguished() {
        #[rustfmt::skip]
        let seen = [
            (500, r#"Head "http://127.0.0.1:5100/v2/a/b/manifests/latest": no basic auth credentials"#, Refusal::Unauthorized),
            (500, "unauthorized: authentication required", Refusal::Unauthorized),
            (500, r#"Head "https://ghcr.io/v2/acme/app/manifests/latest": unauthorized"#, Refusal::Unauthorized),
            (500, r#"Head "https://ghcr.io/v2/acme/app/manifests/latest": denied"#, Refusal::Unauthorized),
            (500, r#"Get "https://ghcr.io/v2/acme/app/manifests/latest": denied: denied"#, Refusal::Unauthorized),
            (404, "pull access denied for acme/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", Refusal::Unauthorized),
            (404, "manifest for 127.0.0.1:5000/a/b:nope not found: manifest unknown: manifest unknown", Refusal::NotFound),
            (500, "toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating", Refusal::RateLimited),
            (500, "write /var/lib/docker/tmp/GetImageBlob1: no space left on device", Refusal::NoSpace),
            (500, r#"Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused"#, Refusal::Unavailable),
            (500, r#"Get "https://registry.invalid/v2/": dial tcp: lookup registry.invalid: no such host"#, Refusal::Unavailable),
            (200, "initializing source docker://127.0.0.1:5100/a/b:latest: reading manifest latest in 127.0.0.1:5100/a/b: unauthorized: authentication required", Refusal::Unauthorized),
            (200, "initializing source docker://127.0.0.1:5000/a/b:nope: reading manifest nope in 127.0.0.1:5000/a/b: manifest unknown", Refusal::NotFound),
            (500, "something else", Refusal::Other),
            (500, r#"failed to resolve reference "127.0.0.1:5301/app:latest": pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials"#, Refusal::Unauthorized),
            (500, r#"failed to resolve reference "127.0.0.1:5301/app:latest": unexpected status from HEAD request to http://127.0.0.1:5301/v2/app/manifests/latest: 401 Unauthorized"#, Refusal::Unauthorized),
            (401, "unauthorized: authentication required", Refusal::Unauthorized),
            (403, "denied: requested access to the resource is denied", Refusal::Unauthorized),
            (500, r#"error parsing HTTP 403 response body: invalid character '<' looking for beginning of value: "<html>""#, Refusal::Unauthorized),
            (404, r#"failed to resolve reference "127.0.0.1:5300/app:nope": 127.0.0.1:5300/app:nope: not found"#, Refusal::NotFound),
            // Docker 20.10, 26.1 and 28.5, an image for another platform.
            (200, "no matching manifest for linux/arm64/v8 in the manifest list entries", Refusal::NoPlatform),
            (404, "no match for platform in manifest: not found", Refusal::NoPlatform),
            (404, "no matching manifest for linux/arm64/v8 in the manifest list entries: no match for platform in manifest: not found", Refusal::NoPlatform),
            (404, "image with reference app was found but does not match the specified platform: wanted linux/arm64, actual: linux/amd64", Refusal::NoPlatform),
            (404, "image with reference app was found but does not provide the specified platform (linux/arm64)", Refusal::NoPlatform),
            (500, r#"image operating system "windows" cannot be used on this platform"#, Refusal::NoPlatform),
            (500, r#"choosing an image from manifest list docker://127.0.0.1:5300/app:latest: no image found in manifest list for architecture arm64, variant "v8", OS linux"#, Refusal::NoPlatform),
            (500, r#"copying system image from manifest list: choosing image instance: no image found in image index for architecture "arm64", variant "v8", OS "linux""#, Refusal::NoPlatform),
            // HAProxy in the usual socket proxy, others that respond in plain text, and a proxy whose engine is down.
            (403, "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n", Refusal::Proxy),
            (403, "Forbidden\n", Refusal::Proxy),
            (403, "", Refusal::Proxy),
            (405, "Method Not Allowed", Refusal::Proxy),
            (401, "<html><head><title>401 Authorization Required</title></head></html>", Refusal::Proxy),
            (503, "<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>", Refusal::Proxy),
            (502, "502 Bad Gateway", Refusal::Proxy),
            (404, "page not found", Refusal::NotFound),
        ];
        for (status, message, refusal) in seen {
            assert_eq!(
                classify(Some(status), message),
                refusal,
                "{status} {message}"
            );
        }
    }

    #[test]
    fn proxy_page_becomes_one_line() {
        let page = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n";
        let said = "403 Forbidden Request forbidden by administrative rules.";
        assert_eq!(proxy_message(403, page).as_deref(), Some(said));
        assert_eq!(
            proxy_message(403, "forbidden").as_deref(),
            Some("403 Forbidden")
        );
        assert_eq!(
            proxy_message(403, "<html>").as_deref(),
            Some("403 Forbidden")
        );
        assert_eq!(proxy_message(403, "denied: no"), None);
        assert_eq!(proxy_message(500, "<html>"), None);
    }

    #[test]
    fn platform_is_parsed_from_message() {
        let words = "no matching manifest for linux/arm64/v8 in the manifest list entries";
        assert_eq!(platform_in(words), Some("linux/arm64/v8"));
        assert_eq!(platform_in("no matching manifest for this"), None);
        assert_eq!(
            platform_in("no match for platform in manifest: not found"),
            None
        );
    }
}
