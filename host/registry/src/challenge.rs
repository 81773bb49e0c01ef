//! Parses `WWW-Authenticate`: how a registry wants requests to be authenticated.
//!
//! A challenge is untrusted input. The place that it sends logins to must be as well protected as the registry itself.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use refit_model::printable::printable;
use reqwest::Url;

/// The longest header, realm and service that Refit reads. Typical ones have fifty characters.
pub const LENGTH_MAX: usize = 4096;

/// The number of schemes that an error names, and the longest name in it.
const SCHEMES_SHOWN_MAX: usize = 8;
const SCHEME_BYTES_MAX: usize = 40;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// The registry expects the login with each request.
    Basic,
    /// The registry expects a token with each request, which a realm issues.
    Bearer(Realm),
}

/// The server that issues tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    pub url: Url,
    pub service: Option<String>,
}

/// The registry requests an authentication that Refit refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    #[error("it asks for a way to log in that Refit does not know: {0}")]
    Unknown(String),
    #[error("it names no realm for tokens that is an address")]
    NoRealm,
    #[error("it names a realm for tokens without TLS, `{0}`, and is itself reached by TLS")]
    PlainRealm(String),
}

/// A challenge with its parameters.
struct Offered {
    scheme: String,
    parameters: Vec<(String, String)>,
}

/// Parses the challenge of a refusal. `plain` is whether Refit contacts the registry itself without TLS. Among several schemes
/// Refit prefers tokens: then the login goes to one server only, and rarely.
pub fn parse(headers: &HeaderMap, plain: bool) -> Result<Option<Challenge>, ChallengeError> {
    let (mut basic, mut unusable, mut others) = (false, None, Vec::new());
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let text = String::from_utf8_lossy(value.as_bytes());
        if text.len() > LENGTH_MAX {
            continue;
        }
        for offered in parse_schemes(&text) {
            match offered.scheme.to_ascii_lowercase().as_str() {
                "bearer" => match parse_realm(&offered, plain) {
                    Ok(realm) => return Ok(Some(Challenge::Bearer(realm))),
                    Err(error) => unusable = Some(error),
                },
                "basic" => basic = true,
                other if others.len() < SCHEMES_SHOWN_MAX => {
                    others.push(printable(other, SCHEME_BYTES_MAX));
                }
                _ => {}
            }
        }
    }
    match (basic, unusable) {
        (true, _) => Ok(Some(Challenge::Basic)),
        (false, Some(error)) => Err(error),
        (false, None) if others.is_empty() => Ok(None),
        (false, None) => Err(ChallengeError::Unknown(others.join(", "))),
    }
}

/// Parses the offered schemes by the standard, or leniently if a header violates it: registries send realms without quotes that
/// contain spaces, slashes and letters of any alphabet.
fn parse_schemes(text: &str) -> Vec<Offered> {
    let strict: Result<Vec<Offered>, _> = http_auth::ChallengeParser::new(text)
        .map(|challenge| {
            challenge.map(|challenge| {
                let parameters = challenge.params.iter();
                Offered {
                    scheme: challenge.scheme.to_owned(),
                    parameters: parameters
                        .map(|(name, value)| ((*name).to_owned(), value.to_unescaped()))
                        .collect(),
                }
            })
        })
        .collect();
    strict.unwrap_or_else(|_| parse_schemes_leniently(text))
}

/// Parses leniently: commas outside of quotes separate parameters, or schemes with their first parameter.
fn parse_schemes_leniently(text: &str) -> Vec<Offered> {
    let mut quoted = false;
    let parts = text.split(|character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    });
    let mut all: Vec<Offered> = Vec::new();
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        // A space before the first `=`, or no `=` at all: a scheme.
        let name_ends = part.find('=').unwrap_or(part.len());
        let parameter = match part[..name_ends].trim_end().split_once(' ') {
            Some((scheme, _)) => {
                let parameters = vec![];
                all.push(Offered {
                    scheme: scheme.to_owned(),
                    parameters,
                });
                &part[scheme.len()..]
            }
            None if name_ends == part.len() => {
                all.push(Offered {
                    scheme: part.to_owned(),
                    parameters: vec![],
                });
                continue;
            }
            None => part,
        };
        if let Some((name, value)) = parameter.split_once('=')
            && let Some(last) = all.last_mut()
        {
            let value = value.trim().trim_matches('"');
            last.parameters
                .push((name.trim().to_owned(), value.to_owned()));
        }
    }
    all
}

fn parse_realm(challenge: &Offered, plain: bool) -> Result<Realm, ChallengeError> {
    let text = |name: &str| {
        let mut found = challenge.parameters.iter();
        let (_, value) = found.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value.clone()).filter(|value| value.len() <= LENGTH_MAX)
    };
    let url: Url = text("realm")
        .and_then(|realm| realm.parse().ok())
        .ok_or(ChallengeError::NoRealm)?;
    let named = url.host_str().is_some_and(|host| !host.is_empty())
        && url.username().is_empty()
        && url.password().is_none();
    match url.scheme() {
        "https" if named => {}
        "http" if named && plain => {}
        "http" if named => {
            let server = format!("http://{}", url.host_str().unwrap_or_default());
            return Err(ChallengeError::PlainRealm(server));
        }
        _ => return Err(ChallengeError::NoRealm),
    }
    Ok(Realm {
        url,
        service: text("service").filter(|service| !service.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&str], plain: bool) -> Result<Option<Challenge>, ChallengeError> {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(WWW_AUTHENTICATE, value);
        }
        parse(&headers, plain)
    }

    fn bearer(url: &str, service: Option<&str>) -> Result<Option<Challenge>, ChallengeError> {
        Ok(Some(Challenge::Bearer(Realm {
            url: url.parse().unwrap(),
            service: service.map(str::to_owned),
        })))
    }

    #[test]
    fn what_registries_send_is_understood() {
        // As GHCR, Docker Hub, the reference registry with a password, and Harbor send it.
        let ghcr = r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull""#;
        assert_eq!(
            parsed(&[ghcr], false),
            bearer("https://ghcr.io/token", Some("ghcr.io"))
        );
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#;
        assert_eq!(
            parsed(&[hub], false),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"))
        );
        assert_eq!(
            parsed(&[r#"Basic realm="refit-tests""#], true),
            Ok(Some(Challenge::Basic))
        );
        let lower = r#"bearer realm="https://core.example/service/token""#;
        assert_eq!(
            parsed(&[lower], false),
            bearer("https://core.example/service/token", None)
        );
        assert_eq!(parsed(&[], false), Ok(None));
    }

    #[test]
    fn tokens_go_before_passwords_in_one_header_or_two() {
        let token = r#"Bearer realm="https://a.example/t""#;
        let expected = bearer("https://a.example/t", None);
        assert_eq!(parsed(&["Basic realm=x", token], false), expected);
        assert_eq!(
            parsed(&[&format!("Basic realm=x, {token}")], false),
            expected
        );
    }

    #[test]
    fn a_login_is_not_sent_in_the_clear_because_a_registry_says_so() {
        let plain = r#"Bearer realm="http://auth.example/token""#;
        assert_eq!(
            parsed(&[plain], false),
            Err(ChallengeError::PlainRealm("http://auth.example".into()))
        );
        assert_eq!(
            parsed(&[plain], true),
            bearer("http://auth.example/token", None)
        );
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        for realm in ["", "/token", "ftp://a.example/", "https://me:x@a.example/"] {
            let header = format!(r#"Bearer realm="{realm}""#);
            assert_eq!(
                parsed(&[&header], true),
                Err(ChallengeError::NoRealm),
                "{realm}"
            );
        }
        assert_eq!(
            parsed(&["Digest realm=x, nonce=y"], false),
            Err(ChallengeError::Unknown("digest".into()))
        );
    }

    #[test]
    fn headers_that_break_the_standard_are_understood_as_they_are_meant() {
        for basic in [
            "Basic realm=Registry Realm",
            "Basic realm=/",
            "BASIC realm=Sonatype Nexus Repository Manager",
            "Basic",
            "Basic realm=\"open",
            "Basic realm=https://123.dkr.ecr.us-east-1.amazonaws.com/,service=ecr.amazonaws.com",
            "Basic realm=\"R\u{e9}gistre\", charset=\"UTF-8\"",
        ] {
            assert_eq!(
                parsed(&[basic], false),
                Ok(Some(Challenge::Basic)),
                "{basic}"
            );
        }
        let expected = bearer("https://auth.example/token?a=1", Some("registry.example"));
        for token in [
            "Bearer realm=https://auth.example/token?a=1,service=registry.example",
            "bearer realm=https://auth.example/token?a=1 , service=\"registry.example\",scope=\"repository:a/b:pull,push\"",
            "Basic realm=Registry Realm, Bearer realm=\"https://auth.example/token?a=1\",service=registry.example",
        ] {
            assert_eq!(parsed(&[token], false), expected, "{token}");
        }
    }

    /// The login then goes to the registry itself, and to no other server.
    #[test]
    fn realm_that_cannot_be_used_leaves_the_password() {
        for token in ["Bearer", "Bearer realm=\"http://auth.example/token\""] {
            assert_eq!(
                parsed(&[token, "Basic realm=x"], false),
                Ok(Some(Challenge::Basic))
            );
        }
        assert_eq!(parsed(&["Bearer"], false), Err(ChallengeError::NoRealm));
    }

    proptest::proptest! {
        #[test]
        fn no_header_is_too_strange(text in "[ -~]{0,200}", plain: bool) {
            let _ = parsed(&[text.trim()], plain);
        }
    }
}
