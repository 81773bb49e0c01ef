//! How a registry wants to be asked: what `WWW-Authenticate` says, made exact.
//!
//! A challenge is a stranger's word. The place that it sends logins to must be as well guarded as the registry itself.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use reqwest::Url;

/// The longest realm and service that are taken. Those seen have fifty characters.
const LENGTH_MAX: usize = 2048;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// The login with each request.
    Basic,
    /// A token with each request, to be had at a realm.
    Bearer(Realm),
}

/// Where tokens are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    pub url: Url,
    pub service: Option<String>,
}

/// A registry asks for something that it will not get.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    #[error("it asks for a way to log in that Refit does not know: {0}")]
    Unknown(String),
    #[error("it names no realm for tokens that is an address")]
    NoRealm,
    #[error("it names a realm for tokens without TLS, `{0}`, and is itself reached by TLS")]
    PlainRealm(String),
}

/// What a refusal asks for. `plain` is whether the registry itself is spoken to without TLS. Of several ways the one with tokens
/// is taken: the login goes to one place then, and seldom.
pub fn parse(headers: &HeaderMap, plain: bool) -> Result<Option<Challenge>, ChallengeError> {
    let (mut basic, mut others) = (false, Vec::new());
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let text = value.to_str().unwrap_or_default();
        // What follows an error in a header cannot be told apart; what came before it counts.
        for challenge in http_auth::ChallengeParser::new(text).map_while(Result::ok) {
            match challenge.scheme.to_ascii_lowercase().as_str() {
                "bearer" => return realm(&challenge, plain).map(|it| Some(Challenge::Bearer(it))),
                "basic" => basic = true,
                other => others.push(other.chars().take(40).collect::<String>()),
            }
        }
    }
    match (basic, others.is_empty()) {
        (true, _) => Ok(Some(Challenge::Basic)),
        (false, true) => Ok(None),
        (false, false) => Err(ChallengeError::Unknown(others.join(", "))),
    }
}

fn realm(challenge: &http_auth::ChallengeRef<'_>, plain: bool) -> Result<Realm, ChallengeError> {
    let text = |name: &str| {
        let mut found = challenge.params.iter();
        let (_, value) = found.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value.to_unescaped()).filter(|value| value.len() <= LENGTH_MAX)
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
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
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
        // As GHCR, Docker Hub, the reference registry with a password and Harbor send it.
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

    proptest::proptest! {
        #[test]
        fn no_header_is_too_strange(text in "[ -~]{0,200}", plain: bool) {
            let _ = parsed(&[text.trim()], plain);
        }
    }
}
