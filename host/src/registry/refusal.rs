//! What a refusal means, from the words that engines pass on.
//!
//! Statuses do not tell: Docker 20.10 answers 500 for a refused login and Podman 200 with an error inside the stream, so the
//! words decide. Each sentence in the tests was seen on a real engine, or is quoted from the registry's own source.

/// Why a registry or an engine did not hand out an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Unauthorized,
    NotFound,
    RateLimited,
    NoSpace,
    Unavailable,
    Other,
}

/// In this order: "denied" beside "does not exist" (Docker Hub says both of a private image) is about the login.
const WORDS: &[(Refusal, &[&str])] = &[
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
            "no matching manifest",
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

pub fn classify(status: Option<u16>, message: &str) -> Refusal {
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
    fn each_refusal_seen_is_told_apart() {
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
            (403, "", Refusal::Unauthorized),
        ];
        for (status, message, refusal) in seen {
            assert_eq!(
                classify(Some(status), message),
                refusal,
                "{status} {message}"
            );
        }
    }
}
