//! Sends requests to a daemon over HTTP without TLS: the daemon listens on loopback, or behind a proxy that terminates TLS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use refit_model::diagnostic::Diagnostic;
use refit_model::secret::{ExposeSecret as _, SecretString};
use serde_json::Value;
use tokio::net::TcpStream;

/// The longest time of a response: compiling the largest policy after another one.
const ANSWER: Duration = Duration::from_secs(15 * 60);
const CONNECT: Duration = Duration::from_secs(10);
/// The largest response: a history with the largest configurations.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The header with the requester's name.
const BY: &str = "x-refit-by";

/// A daemon's address and token.
pub(super) struct Daemon {
    authority: String,
    token: Option<SecretString>,
}

/// A request. The body comes with its content type.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) expected: Option<u64>,
    pub(super) body: Option<(&'a str, Bytes)>,
}

/// A response of the daemon: success or refusal.
pub(super) enum Answer {
    Done(Value),
    Refused(Diagnostic),
}

impl Daemon {
    pub(super) fn at(url: &str, token: Option<SecretString>) -> Result<Self, Diagnostic> {
        let wrong = |problem: &str| {
            Diagnostic::new(format!("`{url}` is not the address of a daemon: {problem}"))
                .hint("it looks like `http://127.0.0.1:8787`")
        };
        let uri: Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only `http://` is spoken"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
            token,
        })
    }

    /// The daemon of this machine, on whatever address it listens.
    pub(super) fn listening_on(mut address: SocketAddr, token: Option<SecretString>) -> Self {
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Self {
            authority: address.to_string(),
            token,
        }
    }

    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Diagnostic> {
        self.ask_as(None, ask).await
    }

    /// Send a request with the requester's name.
    pub(super) async fn ask_as(
        &self,
        by: Option<&str>,
        ask: Ask<'_>,
    ) -> Result<Answer, Diagnostic> {
        let cannot = |cause: String| {
            Diagnostic::new(format!(
                "cannot ask the daemon at `http://{}`",
                self.authority
            ))
            .because(cause)
            .hint("is `refit serve` running? `--server URL` names another address")
        };
        let request = self
            .request(by, ask)
            .map_err(|error| cannot(error.to_string()))?;
        let asking = async {
            let stream =
                match tokio::time::timeout(CONNECT, TcpStream::connect(&self.authority)).await {
                    Ok(stream) => stream.map_err(|error| error.to_string())?,
                    Err(_) => return Err(format!("no answer within {} s", CONNECT.as_secs())),
                };
            exchange(stream, request).await
        };
        let (status, body) = match tokio::time::timeout(ANSWER, asking).await {
            Ok(answer) => answer.map_err(cannot)?,
            Err(_) => {
                let waited = format!("no answer within {} s", ANSWER.as_secs());
                return Err(cannot(waited));
            }
        };
        let body: Value = serde_json::from_slice(&body)
            .map_err(|error| cannot(format!("it answered {status}, and no JSON: {error}")))?;
        if status.is_success() {
            return Ok(Answer::Done(body));
        }
        Ok(Answer::Refused(problem(status, &body)))
    }

    /// Check that a path without a token responds with 200 before `limit` has passed.
    pub(super) async fn is_well(&self, path: &str, limit: Duration) -> Result<(), Diagnostic> {
        let not = |cause: String| {
            Diagnostic::new(format!(
                "the daemon at `http://{}` is not well",
                self.authority
            ))
            .because(cause)
        };
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, &self.authority)
            .body(Full::new(Bytes::new()))
            .map_err(|error| not(error.to_string()))?;
        let asking = async {
            let stream = TcpStream::connect(&self.authority).await;
            exchange(stream.map_err(|error| error.to_string())?, request).await
        };
        let (status, body) = match tokio::time::timeout(limit, asking).await {
            Ok(answer) => answer.map_err(not)?,
            Err(_) => return Err(not(format!("no answer within {} s", limit.as_secs()))),
        };
        if status == StatusCode::OK {
            return Ok(());
        }
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Err(not(problem(status, &body).error))
    }

    fn request(&self, by: Option<&str>, ask: Ask<'_>) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.path)
            .header(header::HOST, &self.authority);
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token.expose_secret().trim());
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(expected) = ask.expected {
            request = request.header(header::IF_MATCH, format!("\"{expected}\""));
        }
        if let Some(by) = by {
            // The name may contain any character; characters that are invalid in a header are dropped.
            let by: String = by.chars().filter(|c| !c.is_control()).collect();
            request = request.header(BY, HeaderValue::from_bytes(by.as_bytes())?);
        }
        let (kind, body) = ask.body.unwrap_or_default();
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        request.body(Full::new(body))
    }
}

async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // The task ends when the sender is dropped, or when the daemon closes the connection.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

/// The problem in the daemon's words.
fn problem(status: StatusCode, body: &Value) -> Diagnostic {
    let text = |key: &str| body[key].as_str().map(str::to_owned);
    let texts = |key: &str| -> Vec<String> {
        let list = body[key].as_array().into_iter().flatten();
        list.filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    Diagnostic {
        error: text("title").unwrap_or_else(|| format!("the daemon answered {status}")),
        causes: texts("causes"),
        hints: texts("hints"),
    }
}
