//! Tests of the reference grammar: tables, and two properties.

use super::*;
use proptest::prelude::*;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[track_caller]
fn check(text: &str, registry: &str, repository: &str, tag: Option<&str>, digest: Option<&str>) {
    let parsed: Reference = text.parse().unwrap();
    assert_eq!(
        (
            parsed.registry(),
            parsed.repository(),
            parsed.tag(),
            parsed.digest()
        ),
        (registry, repository, tag, digest),
        "`{text}`"
    );
}

#[test]
fn the_parts_are_found() {
    check("nginx", "docker.io", "library/nginx", None, None);
    check(
        "nginx:1.27",
        "docker.io",
        "library/nginx",
        Some("1.27"),
        None,
    );
    check("acme/app", "docker.io", "acme/app", None, None);
    check("docker.io/nginx", "docker.io", "library/nginx", None, None);
    check(
        "index.docker.io/acme/app",
        "docker.io",
        "acme/app",
        None,
        None,
    );
    check(
        "ghcr.io/acme/app:v1",
        "ghcr.io",
        "acme/app",
        Some("v1"),
        None,
    );
    check("ghcr.io/app", "ghcr.io", "app", None, None);
    check("localhost/web", "localhost", "web", None, None);
    check("localhost:5000/web", "localhost:5000", "web", None, None);
    check(
        "localhost:5000/a/b:c",
        "localhost:5000",
        "a/b",
        Some("c"),
        None,
    );
    check("web:5000", "docker.io", "library/web", Some("5000"), None);
    check("[::1]:5000/web", "[::1]:5000", "web", None, None);
    check("Registry/web", "Registry", "web", None, None);
    check("a__b/c---d", "docker.io", "a__b/c---d", None, None);
    check(
        &format!("ghcr.io/a/b@{DIGEST}"),
        "ghcr.io",
        "a/b",
        None,
        Some(DIGEST),
    );
    check(
        &format!("h:1/b:t@{DIGEST}"),
        "h:1",
        "b",
        Some("t"),
        Some(DIGEST),
    );
}

#[test]
fn what_is_no_reference_says_why() {
    let long = "a".repeat(256);
    for (text, error) in [
        ("", ReferenceError::Empty),
        (DIGEST, ReferenceError::Id(DIGEST.into())),
        (&DIGEST[7..], ReferenceError::Id(DIGEST[7..].into())),
        ("acme/App", ReferenceError::Component("App".into())),
        ("a//b", ReferenceError::Component("".into())),
        ("a/b/", ReferenceError::Component("".into())),
        ("a.-b", ReferenceError::Component("a.-b".into())),
        ("a___b", ReferenceError::Component("a___b".into())),
        (".a", ReferenceError::Component(".a".into())),
        (" a", ReferenceError::Component(" a".into())),
        (
            "ghcr.io/{runtime}",
            ReferenceError::Component("{runtime}".into()),
        ),
        ("a:", ReferenceError::Tag("".into())),
        ("a:.b", ReferenceError::Tag(".b".into())),
        ("a:ö", ReferenceError::Tag("ö".into())),
        ("a@sha256:12", ReferenceError::Digest("sha256:12".into())),
        ("a@", ReferenceError::Digest("".into())),
        (
            "https://ghcr.io/a",
            ReferenceError::Registry("https:".into()),
        ),
        ("-x.io/a", ReferenceError::Registry("-x.io".into())),
        ("x.io:/a", ReferenceError::Registry("x.io:".into())),
        (&long, ReferenceError::TooLong),
    ] {
        assert_eq!(text.parse::<Reference>(), Err(error), "`{text}`");
    }
}

#[test]
fn repositories_are_compared_whole() {
    for (a, b, same) in [
        ("nginx", "docker.io/library/nginx:1", true),
        (
            "ghcr.io/a/t-hermes:latest",
            &format!("ghcr.io/a/t-hermes@{DIGEST}"),
            true,
        ),
        ("ghcr.io/a/t-hermes", "ghcr.io/a/t-hermes-x", false),
        ("ghcr.io/a/b", "docker.io/a/b", false),
        ("localhost:5000/web", "localhost:5001/web", false),
        (DIGEST, DIGEST, false),
        ("", "", false),
    ] {
        assert_eq!(same_repository(a, b), same, "`{a}` and `{b}`");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,40}") {
        let _ = text.parse::<Reference>();
    }

    #[test]
    fn what_is_printed_parses_to_the_same(
        text in "((localhost|h\\.io)(:[0-9]{1,4})?/)?[a-z0-9]{1,5}(/[a-z]{1,3}(-|__)[0-9])?(:[a-z_][a-z.-]{0,5})?"
    ) {
        let parsed: Reference = text.parse().unwrap();
        prop_assert_eq!(parsed.to_string().parse::<Reference>(), Ok(parsed));
    }
}
