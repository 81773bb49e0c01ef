//! Connections: how many there may be, how long each may take to say what it wants, and how they end.
//!
//! axum's own loop has no bound on any of these, so this one takes its place. Knows nothing of what is asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::bounds;
use super::connection_table::{ConnectionTable, OpenEntry, SecretLocation};
use super::rate_limited_log::RateLimitedLog;
use super::write_timeout::WriteTimeoutStream;

/// Half of the files that a process may have open where nobody says otherwise; the rest is for the engine, the registries and
/// the history. Beyond it [`ConnectionTable`] says which one makes room.
const CONNECTIONS_MAX: usize = 512;

/// Connections more, on which health is answered while all others are busy with requests.
const RESERVE: usize = 32;
const RESERVE_HEAD_TIME: Duration = Duration::from_secs(2);

/// Connections that wait in the kernel's queue; it may allow fewer. Where this one is full, clients find out by silence.
const WAITING_MAX: u32 = 4096;

/// For the head of a request to come, from its first moment; also how long a connection may do nothing between two requests.
const HEAD_TIME: Duration = Duration::from_secs(20);

/// For a client that takes nothing of its answer. A stream of events says something more often than that.
const STALLED: Duration = Duration::from_secs(60);

/// What is read ahead of one connection. A request's head must fit: ours are some hundred bytes, those of browsers behind proxies
/// some KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// After an accept that failed: with no file left, the next one fails too.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// As `TcpListener::bind`, with a queue of a known length.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A daemon that starts again takes the port of the one before at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_MAX)
}

/// Takes connections until `until`, and then ends each when its last answer is out.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    until: impl Future<Output = ()> + Send + 'static,
) {
    let table = ConnectionTable::new(CONNECTIONS_MAX, RESERVE);
    let full = RateLimitedLog::new("all connections were taken", 1);
    let failed = RateLimitedLog::new("a connection could not be taken", 1);
    let connections = TaskTracker::new();
    let stopping = CancellationToken::new();
    let mut until = pin!(until);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut until => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if table.is_full() && full.happened() {
                    tracing::warn!(
                        "all {CONNECTIONS_MAX} connections are taken, and those without a request make room"
                    );
                }
                let place = tokio::select! {
                    place = table.place(peer.ip()) => place,
                    () = &mut until => break,
                };
                connections.spawn(converse(stream, router.clone(), stopping.clone(), place));
            }
            Err(error) => {
                if failed.happened() {
                    tracing::error!("cannot take a connection: {error}");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    // Who connects from now on is refused by the kernel, and need not wait.
    drop(listener);
    stopping.cancel();
    connections.close();
    connections.wait().await;
}

async fn converse(
    stream: TcpStream,
    router: Router,
    stopping: CancellationToken,
    place: SecretLocation,
) {
    // Events and short answers are not held back for more.
    let _ = stream.set_nodelay(true);
    let place = Arc::new(place);
    let evicted = place.evicted.clone();
    let is_reserve = place.is_reserve;
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, place) = (router.clone(), place.clone());
        async move {
            let under_way = place.begin_request();
            let mut answer = if place.is_reserve && !is_health(request.uri().path()) {
                bounds::busy().into_response()
            } else {
                router.oneshot(request).await?
            };
            // Others wait: whoever has been answered connects again.
            if place.is_reserve || place.is_full() {
                bounds::close(&mut answer);
            }
            let (head, body) = answer.into_parts();
            let body = Body::new(Tracked { body, under_way });
            Ok::<_, Infallible>(hyper::Response::from_parts(head, body))
        }
    });
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(match is_reserve {
            true => RESERVE_HEAD_TIME,
            false => HEAD_TIME,
        })
        .max_buf_size(BUFFER_BYTES);
    let stream = TokioIo::new(WriteTimeoutStream::new(stream, STALLED));
    let mut connection = pin!(protocol.serve_connection(stream, answer));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // Nothing of it is under way, so nothing is lost.
        () = evicted.cancelled() => {
            tracing::debug!("a connection without a request makes room for another");
            return;
        }
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Clients that hang up, dribble or speak something else. Nobody can do anything about one of them.
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

fn is_health(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

/// A body whose request is under way until it is out, or nobody wants it any more.
struct Tracked {
    body: Body,
    #[expect(dead_code, reason = "it ends when it is dropped")]
    under_way: OpenEntry,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
