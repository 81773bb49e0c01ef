//! The connections of a small HTTP server of a test's, until the task that serves them is aborted. Knows nothing of what is answered.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::body::{Body, Incoming};
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// `accept` is a listener's `poll_accept`.
pub(crate) async fn serve<IO, A, S>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(IO, A)>>,
    service: S,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, Future: Send, Error: Into<Box<dyn Error + Send + Sync>>>
        + Clone
        + Send
        + 'static,
    S::ResBody: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    // Aborted with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = poll_fn(&mut accept).await {
        let service = service.clone();
        connections.spawn(async move {
            // A client that hangs up is no concern of ours.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Also where a test has panicked meanwhile.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
