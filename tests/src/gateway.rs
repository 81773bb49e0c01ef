//! A proxy before a registry: it writes down every request, hands out tokens where a test wants that, and answers by itself for
//! as long as a test says.
//!
//! With tokens it is what cloud registries are: a realm that gives tokens for repositories, and a registry that wants them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::registry::{PASSWORD, Registry, USER};
use crate::serve::{lock, serve};

type Body = BoxBody<Bytes, hyper::Error>;

/// Who may pull through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// Anybody: it passes on what comes.
    None,
    /// Whoever has a token. The realm gives them to [`USER`] with [`PASSWORD`], for this many seconds.
    For(u64),
}

/// Ends, with all its connections, when it is dropped.
pub struct Gateway {
    host: String,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    registry: String,
    host: String,
    tokens: Tokens,
    asked: Mutex<Vec<Asked>>,
    answer: Mutex<Option<Rule>>,
    /// Those that are good, with the repositories that each is for.
    given: Mutex<Vec<(String, BTreeSet<String>)>>,
}

/// A request as it came, and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    /// Sent by Refit itself, and not by an engine.
    pub by_refit: bool,
    pub status: u16,
}

#[derive(Debug, Clone)]
struct Rule {
    method: String,
    status: u16,
    headers: Vec<(String, String)>,
}

impl Gateway {
    pub async fn before(registry: &Registry, tokens: Tokens) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot listen on 127.0.0.1")?;
        let host = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            registry: registry.host(),
            host: host.clone(),
            tokens,
            asked: Mutex::default(),
            answer: Mutex::default(),
            given: Mutex::default(),
        });
        let answering = shared.clone();
        let service = service_fn(move |request| pass(request, answering.clone()));
        let serving = serve(move |cx| listener.poll_accept(cx), service);
        let accepting = tokio::spawn(serving).abort_handle();
        Ok(Self {
            host,
            shared,
            accepting,
        })
    }

    /// `127.0.0.1:port`, the first part of its images' names.
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// Answers all requests of this method by itself from now on.
    pub fn answer(&self, method: &str, status: u16, headers: &[(&str, &str)]) {
        let headers = headers.iter();
        *lock(&self.shared.answer) = Some(Rule {
            method: method.to_owned(),
            status,
            headers: headers
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        });
    }

    /// Passes everything on again.
    pub fn pass(&self) {
        *lock(&self.shared.answer) = None;
    }

    /// No token that was given is good any more.
    pub fn withdraw(&self) {
        lock(&self.shared.given).clear();
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Those that Refit itself made: the engine pulls through here too.
    pub fn asked_by_refit(&self) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(|asked| asked.by_refit);
        asked
    }

    pub fn forget(&self) {
        lock(&self.shared.asked).clear();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    let agent = request.headers().get("user-agent");
    let mut asked = Asked {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        by_refit: agent.is_some_and(|agent| agent.as_bytes().starts_with(b"refit/")),
        status: 0,
    };
    let response = match respond(request, &asked, &shared).await {
        Ok(response) => response,
        Err(error) => plain(502, &[], &format!("{error:#}")),
    };
    asked.status = response.status().as_u16();
    lock(&shared.asked).push(asked);
    Ok(response)
}

async fn respond(
    request: Request<Incoming>,
    asked: &Asked,
    shared: &Shared,
) -> anyhow::Result<Response<Body>> {
    let rule = lock(&shared.answer).clone();
    if let Some(rule) = rule.filter(|rule| rule.method == asked.method) {
        let headers = rule.headers.iter();
        let headers: Vec<_> = headers
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        return Ok(plain(rule.status, &headers, ""));
    }
    let header = request.headers().get("authorization");
    let authorization = header
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    if let Tokens::For(seconds) = shared.tokens {
        if asked.path == "/token" {
            return Ok(token(shared, &asked.query, &authorization, seconds));
        }
        if !is_let_in(shared, &asked.path, &authorization) {
            let challenge = format!(
                r#"Bearer realm="http://{}/token",service="refit-tests""#,
                shared.host
            );
            return Ok(plain(401, &[("www-authenticate", &challenge)], ""));
        }
    }
    let stream = TcpStream::connect(&shared.registry).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's last byte, or with the client that no longer reads it.
    tokio::spawn(connection);
    let mut request = request;
    if shared.tokens != Tokens::None {
        request.headers_mut().remove("authorization");
    }
    let response = sender.send_request(request).await?;
    Ok(response.map(BodyExt::boxed))
}

fn token(shared: &Shared, query: &str, authorization: &str, seconds: u64) -> Response<Body> {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    if authorization != format!("Basic {login}") {
        return plain(401, &[], "");
    }
    let query = query.replace("%3A", ":").replace("%2F", "/");
    let scopes = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope=repository:"));
    let repositories = scopes
        .filter_map(|scope| Some(scope.split_once(':')?.0.to_owned()))
        .collect();
    let value = format!("token-not-to-be-seen-{:016x}", fastrand::u64(..));
    lock(&shared.given).push((value.clone(), repositories));
    plain(
        200,
        &[],
        &serde_json::json!({ "token": value, "expires_in": seconds }).to_string(),
    )
}

/// A token that covers the repository; the version check is anybody's who has one.
fn is_let_in(shared: &Shared, path: &str, authorization: &str) -> bool {
    let Some(token) = authorization.strip_prefix("Bearer ") else {
        return false;
    };
    let path = path.trim_start_matches("/v2/");
    let repository = ["/manifests/", "/blobs/", "/tags/"]
        .iter()
        .find_map(|part| Some(path.split_once(part)?.0));
    let given = lock(&shared.given);
    given.iter().any(|(value, repositories)| {
        value == token && repository.is_none_or(|repository| repositories.contains(repository))
    })
}

fn plain(status: u16, headers: &[(&str, &str)], body: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_owned())).map_err(|never| match never {});
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response
        .body(body.boxed())
        .expect("a test answers with a status and headers")
}
