//! Limits on each kind of request: concurrency, response time, time for the body to arrive, and rate.
//!
//! A request above a limit gets an error response with the time of the next attempt. Each limit is a layer of some routes; `routes`
//! says which.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::rate_limited_log::RateLimitedLog;

/// Limits the concurrent handlers of one kind. A request that finds no free place waits a moment, and then gets an error. The
/// number of connections bounds the waiting requests, since each connection has one request at a time.
#[derive(Clone, Debug)]
pub(super) struct ConcurrencyLimit {
    places: Arc<Semaphore>,
    timeout: Duration,
    full: Arc<RateLimitedLog>,
}

impl ConcurrencyLimit {
    pub(super) fn new(places: usize, timeout: Duration, full: &'static str) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            timeout,
            full: RateLimitedLog::new(full, 1),
        }
    }
}

/// The response if all places are taken.
pub(super) fn busy_problem() -> Problem {
    let busy_problem = "too many requests are under way";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", busy_problem)
        .again_in(Duration::from_secs(1))
}

/// The middleware of a [`ConcurrencyLimit`].
pub(super) async fn limit_concurrency(
    State(limit): State<ConcurrencyLimit>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let place = tokio::time::timeout(limit.timeout, limit.places.acquire()).await;
    match place {
        Ok(Ok(_place)) => Ok(next.run(request).await),
        // The semaphore is never closed, so this is a timeout.
        Ok(Err(_)) | Err(_) => {
            if limit.full.count_occurrence() {
                tracing::warn!(
                    path = request.uri().path(),
                    "refusing requests: concurrency limit reached"
                );
            }
            Err(busy_problem())
        }
    }
}

/// Limits the concurrent reads of request bodies. If all places are taken, the oldest read is aborted: an honest body arrives
/// within milliseconds, and a trickling one must not block it.
#[derive(Clone, Debug)]
pub(super) struct Readers {
    places: Arc<Semaphore>,
    timeout: Duration,
    full: Arc<RateLimitedLog>,
    reading: Arc<Mutex<Reading>>,
}

#[derive(Debug, Default)]
struct Reading {
    next: u64,
    since: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// No read is aborted before this time, because a delivery over a slow line may need it.
const READ_AT_LEAST: Duration = Duration::from_millis(500);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

impl Readers {
    pub(super) fn new(places: usize, timeout: Duration, full: &'static str) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            timeout,
            full: RateLimitedLog::new(full, 1),
            reading: Arc::default(),
        }
    }

    /// Take a place, or return `None` after the timeout.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Ok(place) = self.places.try_acquire() {
                return Some(place);
            }
            if self.full.count_occurrence() {
                tracing::warn!("all places for deliveries are taken, aborting the slowest");
            }
            if let Some((since, evicted)) = self.lock().since.values().next()
                && since.elapsed() >= READ_AT_LEAST
            {
                evicted.cancel();
            }
            match tokio::time::timeout(RETRY_INTERVAL, self.places.acquire()).await {
                Ok(place) => return place.ok(),
                Err(_) if Instant::now() >= deadline => return None,
                Err(_) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One body that is being read, until this is dropped.
struct Reader<'a> {
    readers: &'a Readers,
    id: u64,
    evicted: CancellationToken,
}

impl<'a> Reader<'a> {
    fn new(readers: &'a Readers) -> Self {
        let evicted = CancellationToken::new();
        let mut reading = readers.lock();
        let id = reading.next;
        reading.next += 1;
        reading.since.insert(id, (Instant::now(), evicted.clone()));
        drop(reading);
        Self {
            readers,
            id,
            evicted,
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.readers.lock().since.remove(&self.id);
    }
}

/// The middleware of [`Readers`].
pub(super) async fn limit_reads(
    State(readers): State<Readers>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let _place = readers.place().await.ok_or_else(busy_problem)?;
    let reader = Reader::new(&readers);
    tokio::select! {
        answer = next.run(request) => Ok(answer),
        () = reader.evicted.cancelled() => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-too-slow",
            "the body came too slowly while others waited",
        )
        .closing()),
    }
}

/// The middleware for requests that need an answer soon. Their work has separate limits, and this one is above them.
pub(super) async fn request_timeout(
    State(limit): State<Duration>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(answer) => Ok(answer),
        Err(_) => {
            let slow = format!("there was no answer within {} s", limit.as_secs());
            Err(
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-slow", slow)
                    .again_in(Duration::from_secs(5)),
            )
        }
    }
}

/// The middleware that limits the time for a request's body. It also stops a client that sends a byte now and then.
pub(super) async fn body_timeout(
    State(limit): State<Duration>,
    request: Request,
    next: Next,
) -> Response {
    let late = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| {
        Body::new(BodyTimeout {
            body,
            limit,
            deadline: None,
            late: late.clone(),
        })
    });
    let answer = next.run(request).await;
    if !late.load(Ordering::Relaxed) {
        return answer;
    }
    slow_body_problem(limit).into_response()
}

fn slow_body_problem(limit: Duration) -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "body-too-slow",
        format!("the body did not arrive within {} s", limit.as_secs()),
    )
    .closing()
}

/// A body that must arrive completely before a deadline, which starts at the first read.
struct BodyTimeout {
    body: Body,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    late: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive in time")]
struct Late;

impl HttpBody for BodyTimeout {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = this.limit;
        let deadline = this
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => {
                this.late.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(Late.into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// Read a whole body without parsing it, for handlers that must not parse it yet.
pub(super) async fn read_body(
    body: Body,
    bytes_max: usize,
    limit: Duration,
) -> Result<Bytes, Problem> {
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            format!("the body is larger than {bytes_max} bytes"),
        )
        .closing()
    };
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(limit, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_error(&error) => Err(too_large()),
        Ok(Err(_)) => {
            let broken = "the body did not arrive whole";
            Err(Problem::new(StatusCode::BAD_REQUEST, "body-broken", broken).closing())
        }
        Err(_) => Err(slow_body_problem(limit)),
    }
}

fn is_length_error(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A token bucket: a burst, and a number per second.
#[derive(Debug)]
pub(super) struct Rate {
    burst: f64,
    per_second: f64,
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        let burst = f64::from(burst);
        Self {
            burst,
            per_second: f64::from(per_second),
            left: Mutex::new((burst, Instant::now())),
        }
    }

    /// Take a token, or return the time until there is one.
    pub(super) fn take(&self) -> Result<(), Duration> {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> Result<(), Duration> {
        let mut guard = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *guard;
        let grown = now.saturating_duration_since(since).as_secs_f64() * self.per_second;
        let left = (left + grown).min(self.burst);
        let taken = if left < 1.0 { left } else { left - 1.0 };
        *guard = (taken, now.max(since));
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / self.per_second));
        }
        Ok(())
    }
}

/// The value of `Retry-After`, which counts whole seconds.
pub(super) fn retry_after(after: Duration) -> HeaderValue {
    HeaderValue::from(after.as_secs() + u64::from(after.subsec_nanos() > 0))
}

/// Close the connection after this response, because the rest of an unread body would arrive on it.
pub(super) fn close_connection(response: &mut Response) {
    let close_connection = HeaderValue::from_static("close");
    response
        .headers_mut()
        .insert(header::CONNECTION, close_connection);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_passes_and_then_the_rate_applies() {
        let rate = Rate::new(3, 2);
        let began = Instant::now();
        let at = |milliseconds| began + Duration::from_millis(milliseconds);
        let let_through = (0..10).filter(|_| rate.take_at(at(1)).is_ok()).count();
        assert_eq!(let_through, 3);
        let wait = rate.take_at(at(1)).unwrap_err();
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        assert!(rate.take_at(at(502)).is_ok());
        assert!(rate.take_at(at(502)).is_err());
        let later = (0..10)
            .filter(|_| rate.take_at(at(3_600_000)).is_ok())
            .count();
        assert_eq!(later, 3, "an hour of rest is one burst");
        assert!(
            rate.take_at(at(0)).is_err(),
            "a clock that went back gives nothing"
        );
    }

    #[test]
    fn wait_is_rounded_up_to_seconds() {
        for (wait, header) in [(1, "1"), (1000, "1"), (1001, "2")] {
            assert_eq!(retry_after(Duration::from_millis(wait)), header);
        }
    }
}
