//! The connections of the daemon: their number, the time in which each must send its request, and their end.
//!
//! axum's own loop has no limits on these, so this one replaces it. It does not depend on the requests.

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
use super::connection_table::{ActiveRequest, ConnectionSlot, ConnectionTable};
use super::rate_limited_log::RateLimitedLog;
use super::write_timeout::WriteTimeoutStream;

/// Half of the default limit on open files; the engine, the registries and the history need the rest. Beyond it [`ConnectionTable`]
/// evicts connections.
const CONNECTIONS_MAX: usize = 512;

/// Additional connections for health checks while all others are busy with requests.
const RESERVE: usize = 32;
const RESERVE_HEAD_TIME: Duration = Duration::from_secs(2);

/// The kernel's queue of new connections, which it may shorten. If the queue is full, clients get no answer at all.
const WAITING_MAX: u32 = 4096;

/// The time for the head of a request to arrive, from its first byte, and the idle time of a connection between two requests.
const HEAD_TIME: Duration = Duration::from_secs(20);

/// The time after which a client that reads nothing of its response is disconnected. A stream of events sends more often.
const STALLED: Duration = Duration::from_secs(60);

/// The read buffer of a connection. A request's head must fit: ours have some hundred bytes, those of browsers behind proxies some
/// KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// The pause after a failed accept: if no file descriptor is left, the next one fails too.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Bind like `TcpListener::bind`, with a known queue length.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted daemon can reuse the port immediately.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_MAX)
}

/// Serve connections until `until` completes, and then end each after its last response.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    until: impl Future<Output = ()> + Send + 'static,
) {
    let table = ConnectionTable::new(CONNECTIONS_MAX, RESERVE);
    let full_log = RateLimitedLog::new("all connections taken", 1);
    let failed_log = RateLimitedLog::new("cannot accept a connection", 1);
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
                if table.is_full() && full_log.count_occurrence() {
                    tracing::warn!(
                        "all {CONNECTIONS_MAX} connections are taken, evicting those without a request"
                    );
                }
                let slot = tokio::select! {
                    slot = table.acquire_slot(peer.ip()) => slot,
                    () = &mut until => break,
                };
                connections.spawn(serve_connection(
                    stream,
                    router.clone(),
                    stopping.clone(),
                    slot,
                ));
            }
            Err(error) => {
                if failed_log.count_occurrence() {
                    tracing::error!("cannot accept a connection: {error}");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    // From now on the kernel refuses new connections, so clients do not wait.
    drop(listener);
    stopping.cancel();
    connections.close();
    connections.wait().await;
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    stopping: CancellationToken,
    slot: ConnectionSlot,
) {
    // Do not delay events and short responses.
    let _ = stream.set_nodelay(true);
    let slot = Arc::new(slot);
    let evicted = slot.evicted.clone();
    let is_reserve = slot.is_reserve;
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, slot) = (router.clone(), slot.clone());
        async move {
            let active_request = slot.begin_request();
            let mut answer = if slot.is_reserve && !is_health(request.uri().path()) {
                bounds::busy_problem().into_response()
            } else {
                router.oneshot(request).await?
            };
            // Others are waiting, and a client with a response can connect again.
            if slot.is_reserve || slot.is_full() {
                bounds::close_connection(&mut answer);
            }
            let (head, body) = answer.into_parts();
            let body = Body::new(TrackedBody {
                body,
                active_request,
            });
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
        // The connection has no active request, so nothing is lost.
        () = evicted.cancelled() => {
            tracing::debug!("evicted a connection without a request");
            return;
        }
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // The client has hung up, trickled, or used another protocol. Refit cannot fix that.
    if let Err(error) = ended {
        tracing::debug!("connection failed: {error}");
    }
}

fn is_health(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

/// A response body that keeps its request active until it is sent or dropped.
struct TrackedBody {
    body: Body,
    #[expect(dead_code, reason = "it ends when it is dropped")]
    active_request: ActiveRequest,
}

impl HttpBody for TrackedBody {
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
