//! One HTTP request to a server of this machine. A request whose future is dropped hangs up, as a client does that was killed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::bounded::within;

/// A refresh of some containers with a second of proof each, on a loaded machine.
const ANSWER: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.text)
            .with_context(|| format!("the answer is no JSON: {}", self.text))
    }
}

/// Sends a request without a body and awaits the whole answer.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
) -> anyhow::Result<Answer> {
    send(address, method, path, token, &[], Bytes::new()).await
}

/// The same with headers and a body.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<Answer> {
    let mut request = http::Request::builder().method(method).uri(path);
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        request = request.header("Host", address.to_string());
    }
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::new(body))
        .context("cannot write the request")?;
    let asking = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            let (parts, body) = answer.into_parts();
            let text = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
            let content_type = parts
                .headers
                .get("content-type")
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            Ok(Answer {
                status: parts.status.as_u16(),
                content_type: content_type.to_owned(),
                headers: parts.headers,
                text,
            })
        };
        // The connection is driven here and not by a task of its own, so that both end with this future.
        tokio::pin!(answer, connection);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => match ended {
                // What was received before the end may not have been read yet.
                Ok(()) => answer.await,
                Err(error) => Err(anyhow!(error)),
            },
        }
    };
    within(ANSWER, &format!("{method} http://{address}{path}"), asking).await
}
