//! Connections: how many there may be, how long each may take to say what it wants, and how they end.
//!
//! axum's own loop has no bound on any of these, so this one takes its place. Knows nothing of what is asked.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::repeated::Repeated;
use super::stalling::Stalling;

/// Half of the files that a process may have open where nobody says otherwise; the rest is for the engine, the registries and
/// the history. Those beyond it wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 512;

/// For the head of a request to come, from its first moment; also how long a connection may do nothing between two requests.
const HEAD_TIME: Duration = Duration::from_secs(20);

/// For a client that takes nothing of its answer. A stream of events says something more often than that.
const STALLED: Duration = Duration::from_secs(60);

/// What is read ahead of one connection. A request's head must fit: ours are some hundred bytes, those of browsers behind proxies
/// some KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// After an accept that failed: with no file left, the next one fails too.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Takes connections until `until`, and then ends each when its last answer is out.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    until: impl Future<Output = ()> + Send + 'static,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let full = Repeated::new("all connections were taken", 1);
    let failed = Repeated::new("a connection could not be taken", 1);
    let connections = TaskTracker::new();
    let stopping = CancellationToken::new();
    let mut until = pin!(until);
    loop {
        if places.available_permits() == 0 && full.happened() {
            tracing::warn!("all {CONNECTIONS_MAX} connections are taken, and others wait");
        }
        let accepting = async {
            // It is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepting => accepted,
            () = &mut until => break,
        };
        match accepted {
            Ok((stream, _)) => {
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
    _place: Option<OwnedSemaphorePermit>,
) {
    // Events and short answers are not held back for more.
    let _ = stream.set_nodelay(true);
    let answer =
        service_fn(move |request: hyper::Request<Incoming>| router.clone().oneshot(request));
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER_BYTES);
    let stream = TokioIo::new(Stalling::new(stream, STALLED));
    let mut connection = pin!(protocol.serve_connection(stream, answer));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
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
