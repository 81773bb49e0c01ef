//! Registry tokens: how Refit requests them, what they cover, and how long they are valid.
//!
//! One token may cover many repositories. This module knows no connections.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use refit_model::secret::{ExposeSecret as _, Login, SecretString};
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;

use super::challenge::Realm;

/// The lifetime if the response gives none, from the specification.
const LIFETIME: Duration = Duration::from_secs(60);
/// The longest lifetime that Refit uses, even if the server grants more: a user whose access was revoked must not keep it
/// forever.
const LIFETIME_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// How long before its end Refit renews a token, or a quarter of its life if that is less: the token must stay valid during its
/// requests.
const EARLY: Duration = Duration::from_secs(10);

/// The longest scopes of one request, in bytes. Servers accept request lines of 8 KiB, the usual limit of nginx; 100
/// repositories of 50 characters fit.
const SCOPES_BYTES_MAX: usize = 7_000;

/// The client id for an OAuth 2 server.
const CLIENT_ID: &str = "refit";

#[derive(Debug)]
pub(super) struct Token {
    /// Distinguishes the token from others, after a renewal.
    pub(super) number: u64,
    pub(super) value: SecretString,
    pub(super) repositories: BTreeSet<String>,
    /// The batch that requested it.
    pub(super) batch: u64,
    /// From this time on Refit requests another token.
    until: Instant,
}

impl Token {
    pub(super) fn new(
        number: u64,
        batch: u64,
        repositories: BTreeSet<String>,
        granted: Granted,
        asked: Instant,
    ) -> Self {
        let early = EARLY.min(granted.lifetime / 4);
        Self {
            number,
            value: granted.value,
            repositories,
            batch,
            until: asked + granted.lifetime - early,
        }
    }

    /// Reports whether the token is valid for a repository. A token from this batch is valid for all of the batch, however
    /// short its life.
    pub(super) fn is_good_for(&self, repository: &str, batch: u64, now: Instant) -> bool {
        (now < self.until || self.batch == batch) && self.repositories.contains(repository)
    }

    pub(super) fn is_over(&self, batch: u64, now: Instant) -> bool {
        now >= self.until && self.batch != batch
    }
}

/// The token that a server issued.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) value: SecretString,
    lifetime: Duration,
}

/// The raw response. Servers write different things where a number or a date is expected, and the token is still valid.
#[derive(Deserialize)]
struct Answer {
    token: Option<Value>,
    /// Its name in OAuth 2.
    access_token: Option<Value>,
    expires_in: Option<Value>,
    issued_at: Option<Value>,
}

/// Parses a response; `None` if it contains no token that can be sent.
pub(super) fn parse_token(body: &[u8], clock: jiff::Timestamp) -> Option<Granted> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let tokens = [&answer.token, &answer.access_token].into_iter().flatten();
    let mut tokens = tokens.filter_map(Value::as_str);
    let value = tokens.find(|token| !token.is_empty())?;
    let sendable = value.bytes().all(|byte| byte.is_ascii_graphic());
    let expires_in = answer.expires_in.and_then(|seconds| match seconds {
        Value::String(text) => text.trim().parse().ok(),
        number => number.as_f64(),
    });
    let issued = answer.issued_at.as_ref().and_then(Value::as_str);
    let issued = issued.and_then(|at| at.parse().ok());
    sendable.then(|| Granted {
        value: value.to_owned().into(),
        lifetime: lifetime(expires_in, issued, clock),
    })
}

/// Computes the lifetime. A token may come from the server's cache, and be old already. A token that seems to have expired on
/// arrival only shows that the two clocks differ.
fn lifetime(
    expires_in: Option<f64>,
    issued: Option<jiff::Timestamp>,
    clock: jiff::Timestamp,
) -> Duration {
    let whole = expires_in
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(LIFETIME)
        .min(LIFETIME_MAX);
    let age = issued.and_then(|issued| Duration::try_from(clock.duration_since(issued)).ok());
    match age {
        Some(age) if age < whole => whole - age,
        Some(_) | None => whole,
    }
}

/// Returns the repositories for one token request, including `must`.
pub(super) fn select_repositories(
    must: &str,
    others: impl IntoIterator<Item = String>,
) -> BTreeSet<String> {
    let bytes = |repository: &str| scope(repository, Actions::Pull).len() + "&scope=".len();
    let mut together = BTreeSet::from([must.to_owned()]);
    let mut used = bytes(must);
    for other in others {
        if together.contains(&other) {
            continue;
        }
        used += bytes(&other);
        if used > SCOPES_BYTES_MAX {
            break;
        }
        together.insert(other);
    }
    together
}

/// The actions that a token must allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Actions {
    Pull,
    PullAndPush,
}

fn scope(repository: &str, actions: Actions) -> String {
    let actions = match actions {
        Actions::Pull => "pull",
        Actions::PullAndPush => "pull,push",
    };
    format!("repository:{repository}:{actions}")
}

/// The form of a token request.
pub(super) enum Ask {
    /// With the login as HTTP Basic, if there is one.
    Get(Url),
    /// With an identity token in the body. The body is secret.
    Post(Url, SecretString),
}

pub(super) fn ask(
    realm: &Realm,
    login: Option<&Login>,
    repositories: &BTreeSet<String>,
    actions: Actions,
) -> Ask {
    let mut url = realm.url.clone();
    match login {
        Some(Login::IdentityToken(identity)) => {
            let scopes: Vec<String> = repositories.iter().map(|it| scope(it, actions)).collect();
            let mut body = form_urlencoded::Serializer::new(String::new());
            body.append_pair("grant_type", "refresh_token")
                .append_pair("service", realm.service.as_deref().unwrap_or_default())
                .append_pair("client_id", CLIENT_ID)
                .append_pair("scope", &scopes.join(" "))
                .append_pair("refresh_token", identity.expose_secret());
            Ask::Post(url, body.finish().into())
        }
        Some(Login::Password { .. }) | None => {
            // A repository's characters need no escape in a query, and unescaped twice as many fit.
            let mut query: Vec<String> = url.query().map(str::to_owned).into_iter().collect();
            query.extend(realm.service.as_ref().map(|service| {
                let service: String = form_urlencoded::byte_serialize(service.as_bytes()).collect();
                format!("service={service}")
            }));
            query.extend(
                repositories
                    .iter()
                    .map(|it| format!("scope={}", scope(it, actions))),
            );
            url.set_query(Some(&query.join("&")));
            Ask::Get(url)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> jiff::Timestamp {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }

    #[track_caller]
    fn lives(answer: &str, seconds: u64) {
        let granted = parse_token(answer.as_bytes(), clock()).expect("there is a token in it");
        assert_eq!(granted.lifetime, Duration::from_secs(seconds), "{answer}");
    }

    #[test]
    fn a_token_lives_as_long_as_the_server_says() {
        lives(r#"{"token":"t"}"#, 60);
        lives(r#"{"token":"t","expires_in":300}"#, 300);
        lives(
            r#"{"access_token":"t","expires_in":300,"issued_at":"2026-11-25T11:58:00Z"}"#,
            180,
        );
        // The server's clock is behind, or ahead.
        lives(
            r#"{"token":"t","expires_in":300,"issued_at":"2026-11-25T11:00:00Z"}"#,
            300,
        );
        lives(
            r#"{"token":"t","expires_in":300,"issued_at":"2026-11-25T13:00:00Z"}"#,
            300,
        );
        lives(r#"{"token":"t","expires_in":1e30}"#, 60);
        lives(r#"{"token":"t","expires_in":999999999}"#, 12 * 60 * 60);
        lives(r#"{"token":"t","expires_in":-1}"#, 60);
        // Other servers write other values there.
        lives(r#"{"token":"t","expires_in":"300"}"#, 300);
        lives(r#"{"token":null,"access_token":"t","expires_in":null}"#, 60);
        lives(r#"{"token":"t","issued_at":1795608000}"#, 60);
    }

    #[test]
    fn what_could_not_be_sent_is_no_token() {
        for answer in [
            "",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":7}"#,
            r#"{"token":"a b"}"#,
            r#"{"token":"a\nb"}"#,
        ] {
            assert!(
                parse_token(answer.as_bytes(), clock()).is_none(),
                "{answer}"
            );
        }
    }

    #[test]
    fn it_is_renewed_before_its_end_and_good_for_the_batch_it_was_got_in() {
        let now = Instant::now();
        let granted = parse_token(br#"{"token":"t","expires_in":60}"#, clock()).unwrap();
        let token = Token::new(1, 7, BTreeSet::from(["a".to_owned()]), granted, now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(token.is_good_for("a", 8, after(49)));
        assert!(!token.is_good_for("b", 8, after(49)));
        assert!(!token.is_good_for("a", 8, after(50)));
        assert!(token.is_good_for("a", 7, after(50)));
    }

    #[test]
    fn a_hundred_repositories_are_one_request_and_a_thousand_are_not() {
        let names = |count| (0..count).map(|n| format!("acme/workspace-template-runtime-{n}"));
        assert_eq!(select_repositories("acme/first", names(99)).len(), 100);
        assert!(select_repositories("acme/first", names(1000)).len() < 200);
        let realm = Realm {
            url: "https://ghcr.io/token?x=1".parse().unwrap(),
            service: Some("a b".into()),
        };
        let Ask::Get(url) = ask(
            &realm,
            None,
            &select_repositories("acme/b", ["acme/a".to_owned()]),
            Actions::Pull,
        ) else {
            panic!("without an identity token it is a GET")
        };
        assert_eq!(
            url.as_str(),
            "https://ghcr.io/token?x=1&service=a+b&scope=repository:acme/a:pull&scope=repository:acme/b:pull"
        );
    }
}
