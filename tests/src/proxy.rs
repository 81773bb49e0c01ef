//! An engine that does as the world's does, until a test says otherwise: a proxy before its socket.
//!
//! It writes down every request, so that a test can see what was asked of an engine and in which order; it answers chosen ones
//! by itself; and it holds chosen ones until the test lets them go, which makes a moment last as long as a test needs it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use refit::engine::permissions::ABSENT_ID;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::bounded::within;
use crate::serve::{lock, serve};
use crate::world::World;

/// How long a test waits for a request that it holds. Refit starts in milliseconds, compiles its policy in a second, and a
/// loaded machine takes several times that.
const ASKED: Duration = Duration::from_secs(60);

type Body = BoxBody<Bytes, hyper::Error>;

/// Ends, with all its connections, when it is dropped: as an engine that dies.
pub struct Proxy {
    folder: TempDir,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct Shared {
    engine: PathBuf,
    asked: Mutex<Vec<Asked>>,
    rules: Mutex<Vec<Rule>>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// Without the version and the query: `/containers/create`.
    pub path: String,
    pub query: String,
    /// `X-Registry-Auth`, where it was sent.
    pub registry_auth: Option<String>,
}

struct Rule {
    method: String,
    path: String,
    act: Act,
}

#[derive(Clone)]
enum Act {
    Answer(u16, Value),
    Hold(watch::Sender<Held>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    waiting: usize,
    released: bool,
}

/// Requests that wait. Dropping it lets them go.
pub struct Hold {
    held: watch::Sender<Held>,
}

impl Proxy {
    /// Before the engine of `world`.
    pub async fn before(world: &World) -> anyhow::Result<Self> {
        let engine = world.docker_host().strip_prefix("unix://");
        let engine = engine.with_context(|| {
            format!(
                "cannot stand before the engine at {}: it has no socket on this machine",
                world.docker_host()
            )
        })?;
        let folder = tempfile::Builder::new()
            .prefix("refit-proxy-")
            .tempdir_in("/tmp")
            .context("cannot create a folder for a socket in /tmp")?;
        let listener = UnixListener::bind(folder.path().join("s"))
            .context("cannot listen at a socket in /tmp")?;
        let shared = Arc::new(Shared {
            engine: engine.into(),
            ..Shared::default()
        });
        let answering = shared.clone();
        let service = service_fn(move |request| pass(request, answering.clone()));
        let serving = serve(move |cx| listener.poll_accept(cx), service);
        let accepting = tokio::spawn(serving).abort_handle();
        Ok(Self {
            folder,
            shared,
            accepting,
        })
    }

    /// What `DOCKER_HOST` must be for a program to go through here.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.folder.path().join("s").display())
    }

    /// Answers requests by itself from now on: those of this method whose path ends in `path`.
    pub fn answer(&self, method: &str, path: &str, status: u16, body: Value) {
        self.rule(method, path, Act::Answer(status, body));
    }

    /// Refuses them, as the engine would: with a message.
    pub fn refuse(&self, method: &str, path: &str, status: u16, message: &str) {
        self.answer(
            method,
            path,
            status,
            serde_json::json!({ "message": message }),
        );
    }

    /// Lets through again what was answered, refused or held.
    pub fn pass(&self, method: &str, path: &str) {
        lock(&self.shared.rules).retain(|rule| rule.method != method || rule.path != path);
    }

    /// Makes them wait, each before the engine sees it.
    pub fn hold(&self, method: &str, path: &str) -> Hold {
        let (held, _) = watch::channel(Held {
            waiting: 0,
            released: false,
        });
        self.rule(method, path, Act::Hold(held.clone()));
        Hold { held }
    }

    fn rule(&self, method: &str, path: &str, act: Act) {
        lock(&self.shared.rules).push(Rule {
            method: method.to_owned(),
            path: path.to_owned(),
            act,
        });
    }

    /// Every request so far, in the order in which they came.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Those that may change something.
    pub fn changes(&self) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(|asked| !matches!(asked.method.as_str(), "GET" | "HEAD"));
        asked
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Hold {
    /// Until so many requests wait.
    pub async fn until_waiting(&self, number: usize) -> anyhow::Result<()> {
        let mut held = self.held.subscribe();
        let waiting = held.wait_for(|held| held.waiting >= number);
        within(
            ASKED,
            &format!("see {number} request(s) wait at the proxy"),
            waiting,
        )
        .await
        .map(drop)
    }

    /// Lets them go, and all that come after.
    pub fn release(&self) {
        self.held.send_modify(|held| held.released = true);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

async fn pass(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    let asked = asked(&request);
    let act = lock(&shared.rules)
        .iter()
        .find(|rule| rule.method == asked.method && asked.path.ends_with(&rule.path))
        .map(|rule| rule.act.clone());
    // Refit asks beforehand what is let through, about what does not exist: that changes nothing and is nobody's step.
    let is_probe = asked.path.contains(ABSENT_ID) || asked.query.contains("refit-probe");
    if !is_probe {
        lock(&shared.asked).push(asked);
    }
    match act {
        Some(Act::Hold(_)) if is_probe => {}
        Some(Act::Answer(status, body)) => return Ok(answer(status, &body)),
        Some(Act::Hold(held)) => {
            held.send_modify(|held| held.waiting += 1);
            // Its other end is held by the rule, so this ends with the release.
            let _ = held.subscribe().wait_for(|held| held.released).await;
        }
        None => {}
    }
    Ok(match forward(request, &shared).await {
        Ok(response) => response,
        Err(error) => answer(502, &serde_json::json!({ "message": format!("{error:#}") })),
    })
}

async fn forward(request: Request<Incoming>, shared: &Shared) -> anyhow::Result<Response<Body>> {
    let stream = UnixStream::connect(&shared.engine).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's last byte, or with the client that no longer reads it.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    Ok(response.map(BodyExt::boxed))
}

fn asked(request: &Request<Incoming>) -> Asked {
    let path = request.uri().path();
    let unversioned = path
        .strip_prefix("/v1.")
        .and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    let header = request.headers().get("X-Registry-Auth");
    Asked {
        method: request.method().to_string(),
        path: unversioned.unwrap_or(path).to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        registry_auth: header
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned),
    }
}

fn answer(status: u16, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() =
        http::StatusCode::from_u16(status).expect("a test answers with an HTTP status");
    response.headers_mut().insert(
        "Content-Type",
        http::HeaderValue::from_static("application/json"),
    );
    response
}
