//! A proxy between a program and the engine's socket: it numbers the calls, keeps a log of them, and does one of them wrong.
//!
//! For a test that has one moment in mind, [`crate::proxy`] is the better tool; this one is for trying all of them.
//! It knows HTTP and the shapes of the engine's paths, and nothing of Refit. Requests are documents and are read whole; answers
//! are passed on as they come, so that a pull streams.
//!
//! **What a number means.** Calls are numbered from 1 in order of arrival. Who waits for something looks again and again, and
//! how often depends on the machine: of a run of equal `GET`s (same path, nothing else between them) the first two have
//! numbers, and the others are logged without one. A program that makes one call at a time has therefore the same numbers in
//! every run, up to the call that goes wrong.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::future::pending;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, TRANSFER_ENCODING,
};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use refit::engine::permissions::ABSENT_ID;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// What is done wrong with one call. To the program, some of them look alike; to the engine, half of them are calls like any
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Answered with 500 and a message. Does not reach the engine.
    Refuse500,
    /// The connection is closed. Does not reach the engine.
    CutBefore,
    /// The engine carries it out and answers; then the connection is closed without an answer.
    CutAfter,
    /// Never answered. Does not reach the engine.
    Hang,
    /// The engine carries it out and answers; the program never hears of it.
    HangAfter,
    /// The program is to be killed as the call arrives, see [`Proxy::until_kill_is_due`]. Does not reach the engine.
    KillBefore,
    /// The engine carries it out and answers; then the program is to be killed.
    KillAfter,
    /// The engine goes away as the call arrives: for one second nobody listens at its socket, and connections are closed. As a restart
    /// of the engine whose containers live on.
    Away1,
    /// The same for twenty seconds.
    Away20,
    /// The same for a minute, as an upgrade of the engine takes.
    Away60,
}

impl Fault {
    pub const ALL: [Self; 7] = [
        Self::Refuse500,
        Self::CutBefore,
        Self::CutAfter,
        Self::Hang,
        Self::HangAfter,
        Self::KillBefore,
        Self::KillAfter,
    ];

    /// Those that take long, and are tried beside the others.
    pub const AWAY: [Self; 3] = [Self::Away1, Self::Away20, Self::Away60];

    /// For how long nobody listens.
    fn away(self) -> Option<Duration> {
        let seconds = match self {
            Self::Away1 => 1,
            Self::Away20 => 20,
            Self::Away60 => 60,
            _ => return None,
        };
        Some(Duration::from_secs(seconds))
    }

    fn reaches_the_engine(self) -> bool {
        matches!(self, Self::CutAfter | Self::HangAfter | Self::KillAfter)
    }

    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Refuse500 => "refuse-500",
            Self::CutBefore => "cut-before",
            Self::CutAfter => "cut-after",
            Self::Hang => "hang",
            Self::HangAfter => "hang-after",
            Self::KillBefore => "kill-before",
            Self::KillAfter => "kill-after",
            Self::Away1 => "away-1",
            Self::Away20 => "away-20",
            Self::Away60 => "away-60",
        })
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL
            .into_iter()
            .chain(Self::AWAY)
            .find(|fault| fault.to_string() == text);
        found.with_context(|| {
            let names = Self::ALL.map(|fault| fault.to_string()).join(", ");
            format!("`{text}` is no fault; there are {names}")
        })
    }
}

/// A call that arrived.
#[derive(Clone, Debug)]
pub struct Call {
    /// `None` for a further look in a row of equal ones.
    pub number: Option<u32>,
    pub method: String,
    /// With `{id}` where a name stands: `/containers/{id}/stop`.
    pub template: String,
    /// As it was asked for, without the version: `/containers/4f5e…/stop?t=10`.
    pub target: String,
    /// What the engine answered, whether or not the program heard of it.
    pub status: Option<u16>,
    /// Whether it was passed on.
    pub reached: bool,
    pub fault: Option<Fault>,
    pub at_ms: u128,
}

impl Call {
    /// `POST /containers/{id}/stop`
    pub fn label(&self) -> String {
        format!("{} {}", self.method, self.template)
    }

    /// It only asks whether a call is let through, and changes nothing.
    pub fn is_probe(&self) -> bool {
        self.target.contains(ABSENT_ID) || self.target.to_lowercase().contains("refit-probe")
    }

    /// The program gave up waiting, although nothing was done wrong: the machine was too slow for its time limits.
    pub fn was_abandoned(&self) -> bool {
        self.fault.is_none() && self.status.is_none()
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self
            .number
            .map_or_else(|| "  ".to_owned(), |number| format!("{number:>2}"));
        let status = self
            .status
            .map_or_else(|| "---".to_owned(), |status| status.to_string());
        let reached = if self.reached { ' ' } else { '!' };
        write!(
            f,
            "{number} {:>6} ms {status}{reached} {} {}",
            self.at_ms, self.method, self.target
        )?;
        match self.fault {
            Some(fault) => write!(f, "  <== {fault}"),
            None => Ok(()),
        }
    }
}

/// The one call that goes wrong, and how.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub number: u32,
    pub fault: Fault,
}

/// A kind of call that is never let through, as a socket proxy refuses it: 403, and a page for people.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// `POST /containers/{id}/stop`
    pub label: &'static str,
    /// Calls about what does not exist are let through, so that nobody finds out beforehand.
    pub only_what_exists: bool,
}

/// What is asked of a proxy.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Without one everything is passed on.
    pub plan: Option<Plan>,
    /// Whatever else goes wrong.
    pub refused: Option<Refused>,
    /// The engine's clock is shown ahead by so much.
    pub clock_ahead: Duration,
    /// Lists of containers show only those with this label (`name=value`), so that a program that looks after the whole
    /// engine looks after one world of it, and others beside it do not change what it calls.
    pub only_label: Option<String>,
}

/// A socket that behaves like the engine's, but for one call.
pub struct Proxy {
    socket: PathBuf,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    engine: PathBuf,
    setting: Setting,
    began: Instant,
    record: Mutex<Record>,
    kill: Notify,
    faulted: Notify,
    away: Mutex<Option<Duration>>,
    leave: Notify,
}

#[derive(Default)]
struct Record {
    calls: Vec<Call>,
    numbered: u32,
    created: Vec<Created>,
}

/// A container that the program made.
#[derive(Clone, Debug)]
pub struct Created {
    pub id: String,
    pub volumes: Vec<String>,
}

type Body = BoxBody<Bytes, hyper::Error>;

/// Ends a connection without an answer.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this connection ends here")
    }
}

impl std::error::Error for Cut {}

impl Proxy {
    /// Listens at `socket` for calls to the engine at `docker_host`, which must be a Unix socket too.
    pub fn start(docker_host: &str, socket: &Path, setting: Setting) -> anyhow::Result<Self> {
        let Some(engine) = docker_host.strip_prefix("unix://") else {
            bail!("cannot put a proxy before {docker_host}: it needs an engine at a Unix socket");
        };
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        let shared = Arc::new(Shared {
            engine: engine.into(),
            setting,
            began: Instant::now(),
            record: Mutex::default(),
            kill: Notify::new(),
            faulted: Notify::new(),
            away: Mutex::default(),
            leave: Notify::new(),
        });
        let serving = tokio::spawn(serve(socket.to_owned(), listener, shared.clone()));
        Ok(Self {
            socket: socket.to_owned(),
            shared,
            serving,
        })
    }

    /// What `DOCKER_HOST` must be for a program to go through this proxy.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.record().calls.clone()
    }

    /// How many of them have numbers.
    pub fn numbered(&self) -> u32 {
        self.shared.record().numbered
    }

    /// The containers that were made through this proxy, and the volumes that they were made with.
    pub fn created(&self) -> Vec<Created> {
        self.shared.record().created.clone()
    }

    /// Returns when the call that goes wrong has arrived.
    pub async fn until_fault(&self) {
        while self
            .shared
            .record()
            .calls
            .iter()
            .all(|call| call.fault.is_none())
        {
            self.shared.faulted.notified().await;
        }
    }

    /// Returns when a call has arrived at which the program is to be killed. That call stays unanswered until then.
    pub async fn until_kill_is_due(&self) {
        self.shared.kill.notified().await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its connections are tasks of this one, and end with it.
        self.serving.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a call down. Returns its place in the log, and what is to be done wrong with it.
    fn arrived(&self, method: &Method, target: &str) -> (usize, Option<Fault>) {
        let at_ms = self.began.elapsed().as_millis();
        let mut record = self.record();
        let looks_again = *method == Method::GET
            && match record.calls.as_slice() {
                [.., one, two] => [one, two]
                    .iter()
                    .all(|call| call.method == "GET" && call.target == target),
                _ => false,
            };
        let number = (!looks_again).then(|| {
            record.numbered += 1;
            record.numbered
        });
        let planned = self.setting.plan.filter(|plan| Some(plan.number) == number);
        let fault = planned.map(|plan| plan.fault);
        record.calls.push(Call {
            number,
            method: method.to_string(),
            template: template(target),
            target: target.to_owned(),
            status: None,
            reached: fault.is_none_or(Fault::reaches_the_engine),
            fault,
            at_ms,
        });
        if fault.is_some() {
            // Kept for one who asks later.
            self.faulted.notify_one();
        }
        (record.calls.len() - 1, fault)
    }

    fn answered(&self, call: usize, status: StatusCode) {
        self.record().calls[call].status = Some(status.as_u16());
    }

    /// The whole answer of a call that is carried out whoever waits for it.
    async fn carry_out(
        self: Arc<Self>,
        call: usize,
        request: Request<Full<Bytes>>,
    ) -> Result<(), Cut> {
        let creates = is_creation(&request);
        let endless = unversioned(request.uri().path()) == "/events";
        // A task of its own: the program may give up, and the engine would take that for a wish to stop.
        let carrying = tokio::spawn(async move {
            let response = self.forward(request).await?;
            let status = response.status();
            // Events come for as long as somebody listens: it is carried out once they may.
            if endless {
                self.answered(call, status);
                return Ok(());
            }
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(|_| Cut)?
                .to_bytes();
            if creates {
                self.note_creation(&body).await;
            }
            self.answered(call, status);
            Ok(())
        });
        carrying.await.map_err(|_| Cut)?
    }

    /// One connection for each call: nothing is left of one call when the next one begins.
    async fn forward(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Cut> {
        let stream = UnixStream::connect(&self.engine).await.map_err(|_| Cut)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|_| Cut)?;
        tokio::spawn(async move {
            // How it ended is known from the answer.
            let _ = connection.await;
        });
        sender.send_request(request).await.map_err(|_| Cut)
    }

    /// Whether this is a call that is never let through.
    async fn refuses(&self, request: &Request<Full<Bytes>>) -> bool {
        let Some(refused) = &self.setting.refused else {
            return false;
        };
        let path = unversioned(request.uri().path());
        if format!("{} {}", request.method(), template(path)) != refused.label {
            return false;
        }
        if !refused.only_what_exists {
            return true;
        }
        let mut segments = path.trim_start_matches('/').split('/');
        let (Some("containers"), Some(id)) = (segments.next(), segments.next()) else {
            return true;
        };
        if is_collective(id) {
            return true;
        }
        let look = Request::get(format!("/containers/{id}/json"))
            .header(HOST, "engine")
            .body(Full::default())
            .expect("an id is part of a URI");
        let answer = self.forward(look).await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Looks at a container that was made just now, so that its anonymous volumes are known: the engine does not say later
    /// whose they were.
    async fn note_creation(&self, answer: &[u8]) {
        let document: Value = serde_json::from_slice(answer).unwrap_or_default();
        let Some(id) = document["Id"].as_str() else {
            return;
        };
        let mut volumes = Vec::new();
        let look = Request::get(format!("/containers/{id}/json"))
            .header(HOST, "engine")
            .body(Full::default())
            .expect("an id is part of a URI");
        if let Ok(response) = self.forward(look).await
            && let Ok(body) = response.into_body().collect().await
        {
            let made: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
            let mounts = made["Mounts"].as_array().into_iter().flatten();
            volumes.extend(mounts.filter_map(|mount| mount["Name"].as_str().map(str::to_owned)));
        }
        self.record().created.push(Created {
            id: id.to_owned(),
            volumes,
        });
    }
}

async fn serve(socket: PathBuf, mut listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => return,
            },
            () = shared.leave.notified() => {
                let away = shared.away.lock().unwrap_or_else(PoisonError::into_inner).take();
                connections.abort_all();
                let _ = std::fs::remove_file(&socket);
                drop(listener);
                tokio::time::sleep(away.unwrap_or_default()).await;
                let Ok(again) = UnixListener::bind(&socket) else {
                    return;
                };
                listener = again;
                continue;
            }
        };
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(shared.clone(), request));
            // An error is a client that went away, or a cut that was asked for.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let (call, fault) = shared.arrived(&parts.method, unversioned(target));
    if let Some(label) = &shared.setting.only_label
        && let Some(narrowed) = narrowed(&parts.uri, label)
    {
        parts.uri = narrowed;
    }
    remove_hop_headers(&mut parts.headers);
    let request = Request::from_parts(parts, Full::new(body));
    if shared.refuses(&request).await {
        shared.answered(call, StatusCode::FORBIDDEN);
        return Ok(forbidden());
    }
    match fault {
        None if is_creation(&request) => {
            let response = shared.forward(request).await?;
            let (mut parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
            shared.note_creation(&body).await;
            shared.answered(call, parts.status);
            remove_hop_headers(&mut parts.headers);
            Ok(Response::from_parts(parts, whole(body)))
        }
        None if !shared.setting.clock_ahead.is_zero()
            && unversioned(request.uri().path()) == "/info" =>
        {
            let response = shared.forward(request).await?;
            let (mut parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
            shared.answered(call, parts.status);
            remove_hop_headers(&mut parts.headers);
            let body = ahead(&body, shared.setting.clock_ahead);
            Ok(Response::from_parts(parts, whole(body)))
        }
        None => {
            let mut response = shared.forward(request).await?;
            shared.answered(call, response.status());
            response.headers_mut().remove(CONNECTION);
            response.headers_mut().remove(TRANSFER_ENCODING);
            Ok(response.map(|body| body.boxed()))
        }
        Some(Fault::Refuse500) => Ok(refusal()),
        Some(Fault::CutBefore) => Err(Cut),
        Some(Fault::Hang) => pending().await,
        Some(Fault::KillBefore) => {
            shared.kill.notify_one();
            pending().await
        }
        Some(fault @ (Fault::Away1 | Fault::Away20 | Fault::Away60)) => {
            *shared.away.lock().unwrap_or_else(PoisonError::into_inner) = fault.away();
            shared.leave.notify_one();
            pending().await
        }
        Some(Fault::CutAfter) => {
            shared.carry_out(call, request).await?;
            Err(Cut)
        }
        Some(Fault::HangAfter) => {
            shared.carry_out(call, request).await?;
            pending().await
        }
        Some(Fault::KillAfter) => {
            shared.clone().carry_out(call, request).await?;
            shared.kill.notify_one();
            pending().await
        }
    }
}

fn refusal() -> Response<Body> {
    let text = json!({ "message": "this call was chosen to fail" }).to_string();
    let mut response = Response::new(whole(text.into()));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// What the engine says of itself, with a clock that is ahead.
fn ahead(info: &[u8], by: Duration) -> Bytes {
    let mut document: Value = serde_json::from_slice(info).unwrap_or_default();
    let time = document["SystemTime"].as_str();
    let time = time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    if let Some(shown) = time.and_then(|time| time.checked_add(by).ok()) {
        document["SystemTime"] = json!(shown.to_string());
    }
    document.to_string().into()
}

/// As the usual socket proxies answer, which are configured HTTP proxies.
fn forbidden() -> Response<Body> {
    let page = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n";
    let mut response = Response::new(whole(Bytes::from_static(page.as_bytes())));
    *response.status_mut() = StatusCode::FORBIDDEN;
    let html = hyper::header::HeaderValue::from_static("text/html");
    response.headers_mut().insert(CONTENT_TYPE, html);
    response
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed()
}

/// They are about one connection; the body's length is said anew.
fn remove_hop_headers(headers: &mut HeaderMap) {
    let hop: [HeaderName; 3] = [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH];
    for name in hop {
        headers.remove(name);
    }
}

fn is_creation(request: &Request<Full<Bytes>>) -> bool {
    request.method() == Method::POST && unversioned(request.uri().path()) == "/containers/create"
}

/// The same question for containers with a label only; `None` for any other question.
fn narrowed(uri: &Uri, label: &str) -> Option<Uri> {
    if unversioned(uri.path()) != "/containers/json" {
        return None;
    }
    let query = uri.query().unwrap_or_default();
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let asked = pairs.iter().find(|(key, _)| key == "filters");
    let mut filters: Value = asked
        .and_then(|(_, value)| serde_json::from_str(value).ok())
        .unwrap_or_else(|| json!({}));
    filters["label"] = json!([label]);
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs.iter().filter(|(key, _)| key != "filters"))
        .append_pair("filters", &filters.to_string())
        .finish();
    format!("{}?{query}", uri.path()).parse().ok()
}

/// Without `/v1.41`.
fn unversioned(target: &str) -> &str {
    let rest = target
        .strip_prefix("/v")
        .and_then(|rest| rest.split_once('/'));
    match rest {
        Some((version, _)) if version.starts_with(|c: char| c.is_ascii_digit()) => {
            &target["/v".len() + version.len()..]
        }
        _ => target,
    }
}

/// `/containers/4f5e…/stop?t=10` as `/containers/{id}/stop`. Images have slashes in their names.
fn template(target: &str) -> String {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match segments.as_slice() {
        [
            "images" | "distribution",
            ..,
            verb @ ("json" | "history" | "push" | "tag" | "get"),
        ] if segments.len() > 2 => {
            format!("/{}/{{id}}/{verb}", segments[0])
        }
        ["images" | "distribution", first, rest @ ..]
            if !rest.is_empty() || !is_collective(first) =>
        {
            format!("/{}/{{id}}", segments[0])
        }
        [
            "containers" | "networks" | "volumes" | "exec",
            first,
            rest @ ..,
        ] if !is_collective(first) => {
            let mut text = format!("/{}/{{id}}", segments[0]);
            for segment in rest {
                text.push('/');
                text.push_str(segment);
            }
            text
        }
        _ => path.to_owned(),
    }
}

/// Whether it is a verb on all things of a kind, where a thing's name could stand.
fn is_collective(segment: &str) -> bool {
    matches!(
        segment,
        "create" | "json" | "prune" | "search" | "load" | "get"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: &str, expected: &str) {
        assert_eq!(template(unversioned(target)), expected);
    }

    #[test]
    fn a_path_is_known_by_its_shape() {
        check("/version", "/version");
        check("/v1.41/_ping", "/_ping");
        check("/v1.41/containers/json?all=true", "/containers/json");
        check("/v1.41/containers/create?name=x", "/containers/create");
        check("/v1.41/containers/4f5e/stop?t=10", "/containers/{id}/stop");
        check("/v1.41/containers/4f5e?force=true", "/containers/{id}");
        check(
            "/v1.41/images/127.0.0.1:5000/a/b:latest/json",
            "/images/{id}/json",
        );
        check("/v1.41/images/create?fromImage=a", "/images/create");
        check("/v1.41/images/sha256:0123", "/images/{id}");
        check("/v1.41/networks/a-net/connect", "/networks/{id}/connect");
        check("/v1.41/distribution/a/b:c/json", "/distribution/{id}/json");
        check("/volumes", "/volumes");
    }

    #[test]
    fn a_question_for_all_containers_is_narrowed() {
        let narrow = |uri: &str| narrowed(&uri.parse().unwrap(), "a=b").map(|uri| uri.to_string());
        let filter = "filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%7D";
        assert_eq!(
            narrow("/v1.41/containers/json?all=true"),
            Some(format!("/v1.41/containers/json?all=true&{filter}"))
        );
        assert_eq!(
            narrow("/containers/json"),
            Some(format!("/containers/json?{filter}"))
        );
        assert_eq!(
            narrow("/containers/json?filters=%7B%22name%22%3A%5B%22x%22%5D%7D"),
            Some("/containers/json?filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%2C%22name%22%3A%5B%22x%22%5D%7D".into())
        );
        assert_eq!(narrow("/containers/a/json"), None);
    }
}
