//! A registry that answers as a test says, and what is asked of it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use refit_storage::secret_file::SecretLocation;
use tokio::net::TcpListener;

use super::*;
use crate::credentials::EnvironmentVariables;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// The headers of a manifest with that digest.
const MANIFEST: [(&str, &str); 2] = [
    ("docker-content-digest", DIGEST),
    ("content-type", "application/vnd.oci.image.index.v1+json"),
];
const JSON: (&str, &str) = ("content-type", "application/json");

/// A manifest, and its digest.
fn index() -> (String, String) {
    let manifest = serde_json::json!({ "digest": DIGEST, "size": 7 });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    let digest = refit_model::image::sha256(index.as_bytes());
    (index, digest)
}

/// `METHOD /path?query`, `Authorization` and the body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    what: String,
    authorization: Option<String>,
    body: String,
}

type Answer = Response<Full<Bytes>>;

struct Fake {
    host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    answer.body(Full::new(body.to_owned().into())).unwrap()
}

impl Fake {
    /// `script` is told its own address, too.
    async fn start(script: impl Fn(&Asked, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (script, all, own) = (Arc::new(script), asked.clone(), host.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, all, own) = (script.clone(), all.clone(), own.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (script, all, own) = (script.clone(), all.clone(), own.clone());
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let header = head.headers.get("authorization");
                            let asked = Asked {
                                what: format!("{} {}", head.method, head.uri),
                                authorization: header
                                    .map(|value| value.to_str().unwrap().to_owned()),
                                body: String::from_utf8_lossy(&body).into_owned(),
                            };
                            all.lock().unwrap().push(asked.clone());
                            Ok::<_, Infallible>(script(&asked, &own))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { host, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn number(&self, start: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|it| it.what.starts_with(start)).count()
    }

    fn images(&self, names: &[&str]) -> Vec<ImageRef> {
        let image = |name: &&str| format!("{}/{name}", self.host).parse().unwrap();
        names.iter().map(image).collect()
    }

    fn digests(&self, requests: u32) -> Digests {
        let variables = EnvironmentVariables {
            user: Some("me".into()),
            token: Some(SecretLocation::Variable("word".into())),
        };
        let credentials = Credentials::new(&variables, &self.host, &[], None).unwrap();
        digests(credentials, requests)
    }
}

fn digests(credentials: Credentials, requests: u32) -> Digests {
    let rate = Rate {
        requests,
        window: Duration::from_secs(3600),
    };
    Digests::new(credentials, vec![], rate)
}

fn reasons(found: &Found) -> Vec<Reason> {
    let errors = found.values().filter_map(|it| it.as_ref().err());
    errors.map(|error| error.reason.clone()).collect()
}

/// A registry whose tokens are `token-<scopes>`, and cover what `covers` says of a repository and the scopes asked for.
async fn with_tokens(
    expires_in: u64,
    covers: impl Fn(&str, usize) -> bool + Send + Sync + 'static,
) -> Fake {
    Fake::start(move |asked, own| {
        let (_, path) = asked.what.split_once(' ').unwrap();
        if path.starts_with("/token") {
            let source = if asked.body.is_empty() {
                path
            } else {
                asked.body.as_str()
            };
            let scopes: Vec<_> = source.matches("repository").collect();
            let token = format!(
                r#"{{"token":"token-{}","expires_in":{expires_in}}}"#,
                scopes.len()
            );
            return answer(200, &[], &token);
        }
        let bearer = asked
            .authorization
            .as_deref()
            .and_then(|it| it.strip_prefix("Bearer token-"));
        let scopes: Option<usize> = bearer.and_then(|it| it.parse().ok());
        let repository = path
            .trim_start_matches("/v2/")
            .split("/manifests")
            .next()
            .unwrap();
        match scopes {
            Some(scopes) if covers(repository, scopes) => answer(200, &MANIFEST, ""),
            _ => {
                let challenge = format!(r#"Bearer realm="http://{own}/token",service="fake""#);
                answer(401, &[("www-authenticate", &challenge)], "")
            }
        }
    })
    .await
}

#[tokio::test]
async fn eight_images_are_ten_requests_and_the_next_time_eight() {
    let fake = with_tokens(300, |_, _| true).await;
    let digests = fake.digests(1000);
    let images = fake.images(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    for expected in [10, 18] {
        let found = digests.of(images.clone()).await;
        assert!(
            found.values().all(|it| it.as_deref() == Ok(DIGEST)),
            "{found:?}"
        );
        assert_eq!(fake.asked().len(), expected);
    }
    // `me:word`, at the server of tokens and nowhere else.
    let basic = Some("Basic bWU6d29yZA==".to_owned());
    for asked in fake.asked() {
        let at_tokens = asked.what.starts_with("GET /token");
        assert_eq!(asked.authorization == basic, at_tokens, "{asked:?}");
    }
    let counts = digests.counts();
    assert_eq!(
        counts,
        [(fake.host.clone(), 200, 17), (fake.host.clone(), 401, 1)]
    );
}

#[tokio::test]
async fn many_batches_at_once_share_one_token() {
    let fake = with_tokens(300, |_, _| true).await;
    let digests = fake.digests(1000);
    let images = fake.images(&["a", "b"]);
    let batches = (0..5).map(|_| digests.of(images.clone()));
    futures_util::future::join_all(batches).await;
    assert_eq!(fake.number("GET /token"), 1);
    assert_eq!(fake.number("GET /v2/"), 1);
}

#[tokio::test]
async fn a_token_that_is_over_is_renewed_and_good_for_its_batch() {
    let fake = with_tokens(0, |_, _| true).await;
    let digests = fake.digests(1000);
    for _ in 0..2 {
        let found = digests.of(fake.images(&["a", "b", "c"])).await;
        assert!(found.values().all(Result::is_ok), "{found:?}");
    }
    assert_eq!(fake.number("GET /token"), 2);
}

#[tokio::test]
async fn one_that_a_token_of_many_does_not_cover_gets_its_own_and_keeps_to_it() {
    let fake = with_tokens(300, |repository, scopes| repository != "b" || scopes == 1).await;
    let digests = fake.digests(1000);
    for expected in [2, 2] {
        let found = digests.of(fake.images(&["a", "b", "c"])).await;
        assert!(found.values().all(Result::is_ok), "{found:?}");
        assert_eq!(fake.number("GET /token"), expected);
    }
}

#[tokio::test]
async fn one_that_is_refused_whatever_is_sent_does_not_keep_the_others() {
    let fake = with_tokens(300, |repository, _| repository != "b").await;
    let digests = fake.digests(1000);
    let found = digests.of(fake.images(&["a", "b", "c"])).await;
    assert_eq!(
        reasons(&found),
        [Reason::Unauthorized {
            credentials_sent: true
        }]
    );
    let before = fake.asked().len();
    let found = digests.of(fake.images(&["a", "b", "c"])).await;
    assert_eq!(found.values().filter(|it| it.is_ok()).count(), 2);
    // Three, and for the refused one another token of its own and the same once more.
    assert_eq!(fake.asked().len() - before, 5);
}

#[tokio::test]
async fn a_server_that_refuses_tokens_of_many_is_asked_for_each() {
    let fake = Fake::start(|asked, own| match &asked.what {
        what if what.starts_with("GET /token") => match what.matches("scope=").count() {
            1 if !what.contains("secret") => answer(200, &[], r#"{"access_token":"t"}"#),
            _ => answer(403, &[], ""),
        },
        _ if asked.authorization.as_deref() == Some("Bearer t") => answer(200, &MANIFEST, ""),
        _ => answer(
            401,
            &[(
                "www-authenticate",
                &format!(r#"Bearer realm="http://{own}/token""#),
            )],
            "",
        ),
    })
    .await;
    let digests = fake.digests(1000);
    let found = digests.of(fake.images(&["a", "b", "secret"])).await;
    assert_eq!(found.values().filter(|it| it.is_ok()).count(), 2);
    assert_eq!(
        reasons(&found),
        [Reason::Unauthorized {
            credentials_sent: true
        }]
    );
    assert_eq!(fake.number("GET /token"), 4);
}

#[tokio::test]
async fn a_login_that_is_refused_is_not_tried_for_each() {
    let fake = Fake::start(|_, own| {
        answer(
            401,
            &[(
                "www-authenticate",
                &format!(r#"Bearer realm="http://{own}/token""#),
            )],
            "",
        )
    })
    .await;
    let digests = fake.digests(1000);
    let found = digests.of(fake.images(&["a", "b", "c", "d"])).await;
    let refused = Reason::Unauthorized {
        credentials_sent: true,
    };
    assert_eq!(reasons(&found), vec![refused; 4]);
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test]
async fn a_token_that_was_withdrawn_is_fetched_anew() {
    let withdrawn = Arc::new(Mutex::new(String::new()));
    let inside = withdrawn.clone();
    let fake = Fake::start(move |asked, own| {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if asked.what.starts_with("GET /token") {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            return answer(
                200,
                &[],
                &format!(r#"{{"token":"t{number}","expires_in":300}}"#),
            );
        }
        let sent = asked.authorization.clone().unwrap_or_default();
        if sent.starts_with("Bearer t") && sent != *inside.lock().unwrap() {
            return answer(200, &MANIFEST, "");
        }
        answer(
            401,
            &[(
                "www-authenticate",
                &format!(r#"Bearer realm="http://{own}/token""#),
            )],
            "",
        )
    })
    .await;
    let digests = fake.digests(1000);
    digests.of(fake.images(&["a", "b"])).await;
    *withdrawn.lock().unwrap() = "Bearer t0".to_owned();
    let found = digests.of(fake.images(&["a", "b"])).await;
    assert!(found.values().all(Result::is_ok), "{found:?}");
    assert_eq!(fake.number("GET /token"), 2);
}

#[tokio::test]
async fn an_identity_token_is_sent_in_a_body_and_never_to_the_registry() {
    let fake = with_tokens(300, |_, _| true).await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"bWU6","identitytoken":"refresh me"}}}}}}"#,
        fake.host
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let credentials = Credentials::new(
        &EnvironmentVariables::default(),
        "ghcr.io",
        &[],
        Some(folder.path()),
    )
    .unwrap();
    let found = digests(credentials, 1000)
        .of(fake.images(&["a", "b"]))
        .await;
    assert!(found.values().all(Result::is_ok), "{found:?}");
    let asked = fake.asked();
    let token = asked
        .iter()
        .find(|it| it.what == "POST /token")
        .expect("a token");
    assert_eq!(
        token.body,
        "grant_type=refresh_token&service=fake&client_id=refit&scope=repository%3Aa%3Apull+repository%3Ab%3Apull&refresh_token=refresh+me"
    );
    assert!(
        asked
            .iter()
            .all(|it| it.what == "POST /token" || !format!("{it:?}").contains("refresh"))
    );
}

#[tokio::test]
async fn a_password_goes_with_each_request_where_the_registry_wants_that() {
    let fake = Fake::start(|asked, _| match asked.authorization.as_deref() {
        Some("Basic bWU6d29yZA==") => answer(200, &MANIFEST, ""),
        _ => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    let found = fake.digests(1000).of(fake.images(&["a", "b"])).await;
    assert!(found.values().all(Result::is_ok), "{found:?}");
    assert_eq!(fake.asked().len(), 3);
    let found = digests(Credentials::default(), 9)
        .of(fake.images(&["a"]))
        .await;
    assert_eq!(
        reasons(&found),
        [Reason::Unauthorized {
            credentials_sent: false
        }]
    );
}

#[tokio::test]
async fn no_login_follows_a_redirect_to_another_server() {
    let other = Fake::start(|_, _| answer(200, &MANIFEST, "")).await;
    let elsewhere = other.host.clone();
    let fake = Fake::start(
        move |asked, own| match (asked.what.as_str(), &asked.authorization) {
            ("GET /v2/", _) | (_, None) => {
                answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "")
            }
            ("HEAD /v2/a/manifests/latest", _) => answer(
                307,
                &[("location", &format!("http://{elsewhere}/there"))],
                "",
            ),
            ("HEAD /v2/b/manifests/latest", _) => {
                answer(307, &[("location", &format!("http://{own}/here"))], "")
            }
            ("HEAD /here", Some(_)) => answer(200, &MANIFEST, ""),
            _ => answer(307, &[("location", "/v2/c/manifests/latest")], ""),
        },
    )
    .await;
    let found = fake.digests(1000).of(fake.images(&["a", "b"])).await;
    assert!(found.values().all(Result::is_ok), "{found:?}");
    let [there] = &other.asked()[..] else {
        panic!("one request: {:?}", other.asked())
    };
    assert_eq!(
        (there.what.as_str(), &there.authorization),
        ("HEAD /there", &None)
    );
    let found = fake.digests(1000).of(fake.images(&["c"])).await;
    assert!(
        matches!(reasons(&found)[..], [Reason::Nonsense { .. }]),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_registry_that_says_no_digest_is_asked_for_the_manifest() {
    let fake = Fake::start(|asked, _| match asked.what.as_str() {
        "GET /v2/huge/manifests/latest" => answer(200, &[JSON], &"x".repeat(5 << 20)),
        what if what.starts_with("HEAD") => answer(200, &[("docker-content-digest", "md5:1")], ""),
        _ => answer(200, &[JSON], &index().0),
    })
    .await;
    let digests = fake.digests(1000);
    let found = digests.of(fake.images(&["a", "b"])).await;
    let expected = index().1;
    assert!(
        found.values().all(|it| it.as_ref() == Ok(&expected)),
        "{found:?}"
    );
    let found = digests.of(fake.images(&["huge"])).await;
    assert!(
        matches!(reasons(&found)[..], [Reason::Nonsense { .. }]),
        "{found:?}"
    );
}

#[tokio::test]
async fn registry_that_refuses_head_is_asked_by_get_and_remembered() {
    for status in [400, 404, 405, 406, 500, 501] {
        let fake = Fake::start(move |asked, _| match asked.what.split_once(' ') {
            Some(("HEAD", _)) => answer(status, &[("content-type", "text/html")], ""),
            Some(("GET", "/v2/")) => answer(200, &[], ""),
            Some(("GET", "/v2/gone/manifests/latest")) => answer(404, &[], ""),
            _ => answer(200, &[JSON], &index().0),
        })
        .await;
        let digests = fake.digests(1000);
        for _ in 0..3 {
            let found = digests.of(fake.images(&["a"])).await;
            let digests: Vec<_> = found.into_values().collect();
            assert_eq!(digests, [Ok(index().1)], "{status}");
        }
        let found = digests.of(fake.images(&["gone"])).await;
        assert_eq!(reasons(&found), [Reason::NotFound], "{status}");
        assert_eq!(fake.number("HEAD"), 1, "{status}");
        assert_eq!(fake.number("GET /v2/a/"), 3, "{status}");
    }
}

/// A GET of Docker Hub's counts as a pull: an image that was published in between is no reason to go on with GETs.
#[tokio::test]
async fn registry_that_answers_head_goes_on_being_asked_by_head() {
    let fake = Fake::start(|asked, _| match asked.what.as_str() {
        "HEAD /v2/new/manifests/latest" => answer(404, &[], ""),
        what if what.starts_with("HEAD") => answer(200, &MANIFEST, ""),
        _ => answer(200, &[JSON], &index().0),
    })
    .await;
    let digests = fake.digests(1000);
    for name in ["a", "new", "a"] {
        let found = digests.of(fake.images(&[name])).await;
        assert!(found.values().all(Result::is_ok), "{found:?}");
    }
    assert_eq!(fake.number("HEAD /v2/a/"), 2);
    assert_eq!(fake.number("GET /v2/a/"), 0);
}

#[tokio::test]
async fn what_is_no_manifest_is_unknown() {
    let page = "<!doctype html><form action=/login>";
    let html = ("content-type", "text/html; charset=utf-8");
    let oci = MANIFEST[1];
    let said = ("docker-content-digest", DIGEST);
    let cut = index().0[..60].to_owned();
    let cases: Vec<(Vec<(&'static str, &'static str)>, String)> = vec![
        (vec![html], page.into()),
        (vec![html, said], page.into()),
        (
            vec![oci, said, ("content-encoding", "gzip")],
            "\u{1f}\u{8b}".into(),
        ),
        (vec![oci, said], index().0),
        (vec![oci], cut),
        (vec![], page.into()),
        (vec![JSON], r#"{"message":"log in"}"#.into()),
    ];
    for (headers, body) in cases {
        let (sent, told) = (headers.clone(), body.clone());
        let fake = Fake::start(move |asked, _| match asked.what.starts_with("HEAD") {
            true => answer(200, &[html, said], ""),
            false => answer(200, &sent, &told),
        })
        .await;
        let found = fake.digests(1000).of(fake.images(&["a"])).await;
        let reasons = reasons(&found);
        assert!(
            matches!(reasons[..], [Reason::NotAManifest { .. }]),
            "{headers:?} {body}: {found:?}"
        );
    }
}

#[tokio::test]
async fn login_page_behind_a_redirect_is_unknown_and_says_where() {
    let elsewhere =
        Fake::start(|_, _| answer(200, &[("content-type", "text/html")], "<html>log in</html>"))
            .await;
    let host = elsewhere.host.clone();
    let fake = Fake::start(move |_, _| {
        let login = format!("http://{host}/login?rd=/v2/");
        answer(302, &[("location", &login)], "")
    })
    .await;
    let found = fake.digests(1000).of(fake.images(&["a"])).await;
    let [Reason::NotAManifest { problem }] = &reasons(&found)[..] else {
        panic!("{found:?}")
    };
    assert!(problem.contains("web page"), "{problem}");
    assert!(problem.contains("to which it redirects"), "{problem}");
    // No login goes there.
    assert!(
        elsewhere
            .asked()
            .iter()
            .all(|it| it.authorization.is_none())
    );
}

/// What a server says to which a registry redirects is not the registry's word: not of a login, and not of how to log in.
#[tokio::test]
async fn refusal_of_another_server_teaches_nothing_about_the_registry() {
    let other = Fake::start(|_, own| {
        let realm = format!(r#"Bearer realm="http://{own}/steal",service="x""#);
        answer(401, &[("www-authenticate", &realm)], "")
    })
    .await;
    let host = other.host.clone();
    let fake = Fake::start(move |asked, _| match asked.what.as_str() {
        "GET /v2/" => answer(200, &[], ""),
        what => {
            let path = what.split_once(' ').unwrap().1;
            answer(307, &[("location", &format!("http://{host}{path}"))], "")
        }
    })
    .await;
    let found = fake.digests(1000).of(fake.images(&["a"])).await;
    assert!(
        matches!(reasons(&found)[..], [Reason::Unavailable { .. }]),
        "{found:?}"
    );
    // It may be asked for a token for anybody. It gets no login, and is believed nothing about one.
    assert!(other.asked().iter().all(|it| it.authorization.is_none()));
    assert!(other.asked().iter().all(|it| it.body.is_empty()));
}

/// A registry that is a name in front of another one, which lets anybody in who asks for a token.
#[tokio::test]
async fn registry_that_only_redirects_is_asked_with_a_token_for_anybody() {
    let other = Fake::start(
        |asked, own| match (asked.what.as_str(), &asked.authorization) {
            ("GET /token?service=b&scope=repository:real/a:pull", None) => {
                answer(200, &[JSON], r#"{"token":"anybody"}"#)
            }
            ("HEAD /v2/real/a/manifests/latest", Some(token)) if token == "Bearer anybody" => {
                answer(200, &MANIFEST, "")
            }
            _ => {
                let realm = format!(r#"Bearer realm="http://{own}/token",service="b""#);
                answer(401, &[("www-authenticate", &realm)], "")
            }
        },
    )
    .await;
    let host = other.host.clone();
    let fake = Fake::start(move |asked, _| {
        let path = asked.what.split_once("/v2/").unwrap().1;
        let location = format!("http://{host}/v2/real/{path}");
        answer(307, &[("location", &location)], "")
    })
    .await;
    let found = fake.digests(1000).of(fake.images(&["a"])).await;
    let digests: Vec<_> = found.into_values().collect();
    assert_eq!(digests, [Ok(DIGEST.to_owned())]);
    // The login is the registry's, and its alone.
    assert!(other.asked().iter().all(|it| it.body.is_empty()));
    let sent = other.asked();
    let sent = sent.iter().filter_map(|it| it.authorization.as_deref());
    assert_eq!(sent.collect::<Vec<_>>(), ["Bearer anybody"]);
    assert!(fake.asked().iter().all(|it| it.authorization.is_none()));
}

/// Storage may have been told by the address that it is sent to to let in a GET, and refuses a HEAD.
#[tokio::test]
async fn manifest_in_storage_is_got_without_a_login() {
    let storage = Fake::start(
        |asked, _| match asked.what.starts_with("GET /blob?signed=1") {
            true => answer(200, &[("content-type", "binary/octet-stream")], &index().0),
            false => answer(403, &[("content-type", "application/xml")], "<Error/>"),
        },
    )
    .await;
    let host = storage.host.clone();
    let fake = Fake::start(move |asked, _| match asked.authorization {
        Some(_) => {
            let place = format!("http://{host}/blob?signed=1");
            answer(307, &[("location", &place)], "")
        }
        None => answer(401, &[("www-authenticate", "Basic realm=x")], ""),
    })
    .await;
    let found = fake.digests(1000).of(fake.images(&["a"])).await;
    let digests: Vec<_> = found.into_values().collect();
    assert_eq!(digests, [Ok(index().1)]);
    assert!(storage.asked().iter().all(|it| it.authorization.is_none()));
}

#[tokio::test]
async fn page_instead_of_a_token_is_no_token() {
    let fake = Fake::start(|asked, own| match asked.what.starts_with("GET /token") {
        true => answer(200, &[("content-type", "text/html")], "<html>log in</html>"),
        false => {
            let realm = format!(r#"Bearer realm="http://{own}/token""#);
            answer(401, &[("www-authenticate", &realm)], "")
        }
    })
    .await;
    let found = fake.digests(1000).of(fake.images(&["a", "b"])).await;
    assert!(
        reasons(&found)
            .iter()
            .all(|it| matches!(it, Reason::Nonsense { .. })),
        "{found:?}"
    );
    assert_eq!(fake.number("GET /token"), 1);
}

#[tokio::test]
async fn words_of_a_refusal_count_where_its_status_is_wrong() {
    let fake = Fake::start(|asked, _| {
        let says = |code: &str, message: &str| {
            let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
            answer(400, &[JSON], &body.to_string())
        };
        match asked.what.split('/').nth(2).unwrap_or_default() {
            "gone" => says("MANIFEST_UNKNOWN", "manifest unknown"),
            "denied" => says("DENIED", "requested access is denied"),
            "odd" => says("UNSUPPORTED", "the operation is\nunsupported"),
            _ => answer(200, &[], ""),
        }
    })
    .await;
    let digests = fake.digests(1000);
    let reason = async |name: &str| {
        let found = digests.of(fake.images(&[name])).await;
        reasons(&found).pop().expect("it fails")
    };
    assert_eq!(reason("gone").await, Reason::NotFound);
    let credentials_sent = true;
    assert_eq!(
        reason("denied").await,
        Reason::Unauthorized { credentials_sent }
    );
    let Reason::Nonsense { problem } = reason("odd").await else {
        panic!("it is neither")
    };
    assert!(
        problem.ends_with(": the operation isunsupported"),
        "{problem}"
    );
}

#[tokio::test]
async fn one_that_limits_the_rate_is_left_alone() {
    let fake = Fake::start(|asked, _| match asked.what.as_str() {
        "GET /v2/" => answer(200, &[], ""),
        _ => answer(429, &[("retry-after", "600")], ""),
    })
    .await;
    let digests = fake.digests(1000);
    let many: Vec<String> = (0..50).map(|n| format!("r{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let found = digests.of(fake.images(&many)).await;
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(590);
    let is_limited =
        |reason: &Reason| matches!(reason, Reason::RateLimited { until: it } if *it > until);
    assert!(reasons(&found).iter().all(is_limited), "{found:?}");
    assert_eq!(found.len(), 50);
    // Those under way when the first answer came, and none after.
    let asked = fake.asked().len();
    assert!(asked <= 1 + AT_ONCE, "{asked}");
    digests.reconsider(None);
    digests.of(fake.images(&["a"])).await;
    assert_eq!(fake.asked().len(), asked);
}

#[tokio::test]
async fn it_is_asked_as_often_as_the_budget_lets() {
    let fake = Fake::start(|_, _| answer(200, &MANIFEST, "")).await;
    let digests = fake.digests(4);
    let found = digests.of(fake.images(&["a", "b", "c", "d", "e"])).await;
    assert_eq!(found.values().filter(|it| it.is_ok()).count(), 3);
    assert!(
        reasons(&found)
            .iter()
            .all(|it| matches!(it, Reason::Budget { .. })),
        "{found:?}"
    );
    assert_eq!(fake.asked().len(), 4);
}

#[tokio::test]
async fn each_answer_has_its_reason() {
    let fake = Fake::start(|asked, _| {
        let status = match asked.what.split('/').nth(2).unwrap_or_default() {
            "gone" => 404,
            "broken" => 500,
            "behind" => 502,
            "strange" => 418,
            _ => 200,
        };
        answer(status, &[], "")
    })
    .await;
    let digests = fake.digests(1000);
    let reason = async |name: &str| {
        let found = digests.of(fake.images(&[name])).await;
        reasons(&found).pop().expect("it fails")
    };
    assert_eq!(reason("gone").await, Reason::NotFound);
    assert!(matches!(reason("broken").await, Reason::Unavailable { .. }));
    assert!(matches!(reason("behind").await, Reason::Unavailable { .. }));
    assert!(matches!(reason("strange").await, Reason::Nonsense { .. }));
}

#[tokio::test]
async fn one_that_does_not_answer_is_not_asked_for_each() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = closed.local_addr().unwrap().to_string();
    drop(closed);
    let digests = digests(Credentials::default(), 1000);
    let images = || (0..30).map(|n| format!("{host}/r{n}").parse::<ImageRef>().unwrap());
    let found = digests.of(images()).await;
    assert!(
        reasons(&found)
            .iter()
            .all(|it| matches!(it, Reason::Unavailable { .. })),
        "{found:?}"
    );
    assert_eq!(digests.counts(), [(host.clone(), 0, 1)]);
    digests.reconsider(Some(&host));
    digests.of(images()).await;
    assert_eq!(digests.counts(), [(host.clone(), 0, 2)]);
}

#[tokio::test]
async fn a_digest_needs_no_request() {
    let digests = digests(Credentials::default(), 0);
    let image: ImageRef = format!("ghcr.io/acme/app@{DIGEST}").parse().unwrap();
    let found = digests.of([image.clone()]).await;
    assert_eq!(found[&image].as_deref(), Ok(DIGEST));
}

/// A registry may have blobs sent to storage of its own. The login is not for that.
#[tokio::test]
async fn upload_elsewhere_carries_no_login() {
    let storage = Fake::start(|_, _| answer(201, &[], "")).await;
    let host = storage.host.clone();
    let fake = Fake::start(move |asked, _| {
        let (method, path) = asked.what.split_once(' ').unwrap();
        match (method, path, &asked.authorization) {
            (_, _, None) => answer(401, &[("www-authenticate", "Basic realm=x")], ""),
            ("HEAD", ..) => answer(404, &[], ""),
            ("POST", "/v2/a/blobs/uploads/", _) => {
                let place = format!("http://{host}/place?state=1");
                answer(202, &[("location", &place)], "")
            }
            ("PUT", "/v2/a/manifests/latest", _) => answer(201, &[], ""),
            _ => answer(500, &[], ""),
        }
    })
    .await;
    let images = fake.images(&["a"]);
    let login = Login::Password {
        username: "me".into(),
        password: "word".to_owned().into(),
    };
    let digest = refit_model::image::sha256(b"component");
    let digests = fake.digests(1000);
    let pushed = digests.push(
        &images[0],
        Some(&login),
        vec![(digest.clone(), Bytes::from_static(b"component"))],
        ("application/json", Bytes::from_static(b"{}")),
        Duration::from_secs(5),
    );
    pushed.await.unwrap();
    let [sent] = &storage.asked()[..] else {
        panic!("one upload: {:?}", storage.asked())
    };
    let query: String = form_urlencoded::byte_serialize(digest.as_bytes()).collect();
    assert_eq!(sent.what, format!("PUT /place?state=1&digest={query}"));
    assert_eq!((&sent.authorization, &*sent.body), (&None, "component"));
}

#[tokio::test]
async fn registry_that_redirects_what_is_written_is_refused() {
    let fake = Fake::start(|asked, own| match asked.what.starts_with("PUT") {
        true => answer(307, &[("location", &format!("http://{own}/there"))], ""),
        false => answer(200, &[], ""),
    })
    .await;
    let images = fake.images(&["a"]);
    let digests = fake.digests(1000);
    let pushed = digests.push(
        &images[0],
        None,
        vec![],
        ("application/json", Bytes::from_static(b"{}")),
        Duration::from_secs(5),
    );
    let error = pushed.await.unwrap_err();
    assert!(matches!(error.reason, Reason::Nonsense { .. }), "{error:?}");
    assert_eq!(fake.number("PUT /there"), 0);
}
