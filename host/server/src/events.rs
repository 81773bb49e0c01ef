//! `GET /v1/refreshes/{id}/events`: the events of a refresh as they happen, as Server-Sent Events.
//!
//! Each watcher reads from the event log of the refresh at its own speed: a slow watcher misses progress events, and one that never
//! reads only blocks its socket. Neither delays the refresh.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use refit_history::Id;
use refit_service::runs::RefreshHandle;
use refit_service::runs::event_log::{Position, RefreshEvent};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::AppState;
use super::history;
use super::problem::{Document, Problem};

/// The concurrent watchers. Each takes a connection and a few events; a platform has a dashboard or two, and an operator.
const STREAMS_MAX: usize = 64;
static STREAMS: Semaphore = Semaphore::const_new(STREAMS_MAX);

/// The buffered events of a watcher.
const HELD: usize = 32;

/// Shorter than the idle timeout of proxies. It also bounds the time in which a closed connection is detected.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How soon a disconnected browser reconnects.
const RETRY: Duration = Duration::from_secs(1);

/// The path of a refresh's events.
pub(super) fn events_path(id: Id) -> String {
    format!("/v1/refreshes/{id}/events")
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// As `Last-Event-ID`, for clients that cannot set headers.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807_u64)]
    after: Option<Position>,
}

/// Watch a refresh
///
/// Server-Sent Events: all that it has told so far, then what it tells as it happens, to its end. `id` is the place of an event, `event`
/// its name, `data` the JSON below. Who lost the connection sends the last `id` as `Last-Event-ID`, as a browser's `EventSource` does,
/// and goes on there. A comment comes every 15 s where nothing else does. Of a layer that is being pulled only the latest word is kept,
/// so who reads slowly misses progress and nothing else; of a refresh of hundreds of containers the last 4096 events are kept. The last 32
/// refreshes of the daemon can be watched from their beginning.
#[utoipa::path(
    get,
    path = "/v1/refreshes/{id}/events",
    operation_id = "watch_refresh",
    tag = "refreshes",
    params(
        ("id" = i64, Path, description = "Its number."),
        Parameters,
        ("Last-Event-ID" = Option<u64>, Header, description = "Only what came after this event. Goes before `after`."),
    ),
    responses(
        (status = 200, description = "One message for each event. Ends after `ended`.", body = EventMessage, content_type = "text/event-stream"),
        (status = 204, description = "Nothing comes any more: it has ended, and all was told."),
        (status = 400, description = "`bad-query`.", body = Document, content_type = "application/problem+json"),
        (status = 404, description = "`no-refresh`, `no-events`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`too-many-watchers`, `history-unavailable`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn watch(
    State(state): State<AppState>,
    id: Result<Path<Id>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|_| history::none())?;
    let position = position(parameters, &headers)?;
    let Some(run) = state.runs.find(id) else {
        return Err(match history::entry(&state, id).await? {
            None => history::none(),
            Some(_) => Problem::new(
                StatusCode::NOT_FOUND,
                "no-events",
                "this refresh is no longer told of, or is another process's",
            )
            .hint(format!("`GET /v1/refreshes/{id}` says what became of it")),
        });
    };
    let since = run.event_log.events_since(position, 1);
    if since.ended && since.events.is_empty() {
        // This status makes a browser's `EventSource` stop reconnecting.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let Ok(place) = STREAMS.try_acquire() else {
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-watchers",
            format!("{STREAMS_MAX} streams of events are being read"),
        );
        return Err(problem.hint("ask again when somebody has left"));
    };
    let mut answer = Sse::new(events(run, position, place))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    // Otherwise nginx would buffer events until its buffer is full.
    answer.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(answer)
}

/// The position from the header, otherwise from the query: a browser that reconnects sends the newer one in the header.
fn position(
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Position, Problem> {
    let wrong = |hint: String| {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-query",
            "the place to begin at cannot be read",
        );
        problem.hint(hint)
    };
    let Query(parameters) = parameters.map_err(|rejection| wrong(rejection.body_text()))?;
    let after = parameters.after.unwrap_or_default();
    if !is_position(after) {
        return Err(wrong(
            "`after` is the `id` of an event that was told".into(),
        ));
    }
    let Some(last) = headers.get("last-event-id") else {
        return Ok(after);
    };
    let last = last.to_str().ok().and_then(|last| last.trim().parse().ok());
    last.filter(|last| is_position(*last))
        .ok_or_else(|| wrong("`Last-Event-ID` is the `id` of an event that was told".into()))
}

/// Positions must be safe integers in other languages, as the API description says.
fn is_position(position: Position) -> bool {
    position <= i64::MAX.unsigned_abs()
}

/// The schema of an event: a message of Server-Sent Events.
pub(super) enum EventMessage {}

impl PartialSchema for EventMessage {
    fn schema() -> RefOr<Schema> {
        let text = |about: &str| {
            let text = ObjectBuilder::new().schema_type(Type::String);
            text.description(Some(about.to_owned()))
        };
        let data = text("The event.")
            .content_media_type("application/json")
            .content_schema(Some(Ref::from_schema_name(
                <RefreshEvent as ToSchema>::name(),
            )));
        ObjectBuilder::new()
            .description(Some("A message of `text/event-stream`."))
            .property("id", text("Its place, for `Last-Event-ID`."))
            .property("event", text("Its name, which `data` has too."))
            .property("data", data)
            .required("id")
            .required("event")
            .required("data")
            .into()
    }
}

impl ToSchema for EventMessage {
    fn name() -> Cow<'static, str> {
        "RefreshEventMessage".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((
            <RefreshEvent as ToSchema>::name().into_owned(),
            RefreshEvent::schema(),
        ));
        RefreshEvent::schemas(schemas);
    }
}

struct Watcher {
    run: Arc<RefreshHandle>,
    position: Position,
    changes: watch::Receiver<Position>,
    held: VecDeque<(Position, RefreshEvent)>,
    ended: bool,
    greeted: bool,
    _place: SemaphorePermit<'static>,
}

fn events(
    run: Arc<RefreshHandle>,
    position: Position,
    place: SemaphorePermit<'static>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let watcher = Watcher {
        changes: run.event_log.subscribe(),
        run,
        position,
        held: VecDeque::new(),
        ended: false,
        greeted: false,
        _place: place,
    };
    stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    })
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        if !self.greeted {
            self.greeted = true;
            return Some(Event::default().retry(RETRY));
        }
        loop {
            if let Some((position, event_value)) = self.held.pop_front() {
                self.position = position;
                let event = Event::default()
                    .id(position.to_string())
                    .event(event_value.name());
                return event.json_data(&event_value).ok();
            }
            if self.ended {
                return None;
            }
            self.changes.mark_unchanged();
            let since = self.run.event_log.events_since(self.position, HELD);
            self.ended = since.ended;
            self.held = since.events.into();
            if self.held.is_empty() && !self.ended {
                // The event log exists as long as this run.
                self.changes.changed().await.ok()?;
            }
        }
    }
}
