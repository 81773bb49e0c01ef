//! Connections: how many there may be, how long each may take to say what it wants, and how they end.
//!
//! axum's own loop has no bound on any of these, so this one takes its place. Knows nothing of what is asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::bounds;
use super::repeated::Repeated;
use super::stalling::Stalling;

/// Half of the files that a process may have open where nobody says otherwise; the rest is for the engine, the registries and
/// the history. Those beyond it wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 512;

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
                let talk = converse(stream, router.clone(), stopping.clone(), places.clone());
                connections.spawn(async move {
                    talk.await;
                    drop(place);
                });
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
    places: Arc<Semaphore>,
) {
    // Events and short answers are not held back for more.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, places) = (router.clone(), places.clone());
        async move {
            let mut answer = router.oneshot(request).await?;
            // Others wait: whoever has been answered queues up again.
            if places.available_permits() == 0 {
                bounds::close(&mut answer);
            }
            Ok::<_, Infallible>(answer)
        }
    });
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
