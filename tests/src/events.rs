//! A reader of Server-Sent Events. Dropped, it hangs up, as a client does that was killed or lost its network.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::bounded::within;

/// Between two events of a refresh of a few containers, on a loaded machine.
const NEXT: Duration = Duration::from_secs(60);

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub id: String,
    pub name: String,
    pub data: Value,
}

/// See the module.
pub struct Events {
    pub status: u16,
    pub content_type: String,
    body: Incoming,
    text: String,
    connection: JoinHandle<()>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Events {
    pub async fn open(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut request = http::Request::builder()
            .uri(path)
            .header("Host", address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let opening = async {
            let stream = TcpStream::connect(address).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(async move {
                // How it ends, the body says.
                let _ = connection.await;
            });
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let content_type = parts.headers.get("content-type");
            let content_type = content_type.and_then(|value| value.to_str().ok());
            anyhow::Ok(Self {
                status: parts.status.as_u16(),
                content_type: content_type.unwrap_or_default().to_owned(),
                body,
                text: String::new(),
                connection,
            })
        };
        within(NEXT, &format!("open {path}"), opening).await
    }

    /// `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<Told>> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let told = parse(block)?;
                self.text = rest.to_owned();
                if told.is_some() {
                    return Ok(told);
                }
            }
            let frame = async { self.body.frame().await.transpose() };
            match within(NEXT, "see another event", frame).await? {
                Some(frame) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.text.push_str(&String::from_utf8_lossy(&data));
                }
                None => return Ok(None),
            }
        }
    }

    /// The rest, to the end.
    pub async fn rest(mut self) -> anyhow::Result<Vec<Told>> {
        let mut all = Vec::new();
        while let Some(told) = self.next().await? {
            all.push(told);
        }
        Ok(all)
    }
}

/// `None` of a comment, or of what is for the reader itself.
fn parse(block: &str) -> anyhow::Result<Option<Told>> {
    let (mut id, mut name, mut data) = (None, None, None);
    for line in block.lines() {
        match line.split_once(':') {
            Some(("id", value)) => id = Some(value.trim().to_owned()),
            Some(("event", value)) => name = Some(value.trim().to_owned()),
            Some(("data", value)) => {
                data = Some(serde_json::from_str(value).context("the data is no JSON")?)
            }
            Some(("", _) | ("retry", _)) => {}
            _ => bail!("a line of an event cannot be read: {line}"),
        }
    }
    Ok(match (id, name, data) {
        (Some(id), Some(name), Some(data)) => Some(Told { id, name, data }),
        (None, None, None) => None,
        _ => bail!("an event is not whole: {block}"),
    })
}
