//! `POST /v1/refreshes` starts a refresh and responds immediately; `DELETE /v1/refreshes/{id}` ends one early.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use refit_history::{Id, Outcome};
use refit_model::diagnostic::Diagnostic;
use refit_service::runs::idempotency::{IdempotencyKeys, Key, KeyError};
use serde::Serialize;

use super::history::{self, View};
use super::problem::{Document, Problem};
use super::refresh_body::{RefreshBody, RequestBody};
use super::requested_by::RequestedBy;
use super::{AppState, events};

/// The header of <https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>.
const KEY: &str = "idempotency-key";

/// A refresh that was begun.
#[derive(Serialize, utoipa::ToSchema)]
struct Accepted {
    /// Negative where it is not written down, and then known to this daemon alone.
    id: Id,
    /// Where it can be watched.
    events: String,
}

/// Begin a refresh
///
/// Answers at once; the refresh goes on by itself. `{}` is all that the policy knows; an unknown field is an error, an unknown target
/// makes a refresh that fails. Who sends an `Idempotency-Key`, and then the same request with the same key again because an answer was
/// lost, gets the refresh that was begun. The last 256 keys are known, until the daemon ends.
#[utoipa::path(
    post,
    path = "/v1/refreshes",
    operation_id = "begin_refresh",
    tag = "refreshes",
    request_body = RefreshBody,
    params(
        ("Idempotency-Key" = Option<String>, Header, pattern = r#"^"*[!#-~]([!-~]{0,126}[!#-~])?"*$"#, description = "1 to 128 visible ASCII characters, in quotes or not."),
        ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves."),
    ),
    responses(
        (status = 202, description = "It has begun.", body = Accepted, headers(("Location" = String, description = "`/v1/refreshes/{id}`"))),
        (status = 400, description = "`bad-key`, `bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 422, description = "`key-reused`, `bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`too-many-refreshes`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn begin(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    headers: HeaderMap,
    asked: RequestBody,
) -> Result<Response, Problem> {
    let key = key(&headers)?;
    let request = RefreshBody::request(asked)?;
    // The refresh runs in a separate task, and this handler does not wait for its end.
    let started = match key {
        None => state
            .runs
            .begin(request, by)
            .await
            .map(IdempotencyKeys::Begun),
        Some(key) => state.runs.begin_with_key(key, request, by).await,
    };
    let id = match started.map_err(|why| Problem::not_begun(&why))? {
        IdempotencyKeys::Begun(started) => started.run.id,
        IdempotencyKeys::Before(id) => id,
        IdempotencyKeys::Different => {
            let problem = Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "key-reused",
                "this `Idempotency-Key` was sent before, with another request",
            );
            return Err(problem.hint("make a new key for each refresh"));
        }
    };
    let accepted = Accepted {
        id,
        events: events::events_path(id),
    };
    let place = format!("/v1/refreshes/{id}");
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, place)],
        Json(accepted),
    )
        .into_response())
}

fn key(headers: &HeaderMap) -> Result<Option<Key>, Problem> {
    let Some(sent) = headers.get(KEY) else {
        return Ok(None);
    };
    // The draft defines the key as a quoted string, but few clients send quotes.
    let key = sent.to_str().map_err(|_| KeyError);
    let key = key.and_then(|key| key.trim_matches('"').parse());
    key.map(Some).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-key",
            "`Idempotency-Key` cannot be read",
        )
        .hint(error.to_string())
    })
}

/// End a refresh early
///
/// What was begun is finished, or put back; nothing new is begun. It ends as `cancelled`, unless all was done by then.
#[utoipa::path(
    delete,
    path = "/v1/refreshes/{id}",
    operation_id = "cancel_refresh",
    tag = "refreshes",
    params(("id" = i64, Path, description = "Its number."), ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves.")),
    responses(
        (status = 202, description = "It was told to; `ending` is `true`.", body = View),
        (status = 404, description = "`no-refresh`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`already-ended`, `not-ours`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`history-unavailable`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|_| history::none())?;
    let ended = || {
        Problem::new(
            StatusCode::CONFLICT,
            "already-ended",
            "the refresh has ended already",
        )
    };
    if let Some(run) = state.runs.find(id) {
        if !run.cancel() {
            return Err(ended());
        }
        tracing::info!(
            id,
            by,
            "a refresh is ended early: what was begun is finished, nothing new is begun"
        );
        return Ok((StatusCode::ACCEPTED, Json(View::from_run(&run))).into_response());
    }
    match history::entry(&state, id).await? {
        None => Err(history::none()),
        Some(entry) if entry.outcome == Outcome::Running => Err(Problem::from_diagnostic(
            StatusCode::CONFLICT,
            "not-ours",
            Diagnostic::new("another process makes this refresh")
                .hint("Ctrl-C ends a `refit refresh` early, or SIGTERM"),
        )),
        Some(_) => Err(ended()),
    }
}
