//! `/v1/watch`: the state of the watcher, and the operations pause, resume and check now.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use refit_model::diagnostic::Diagnostic;
use refit_model::image::ImageRef;
use refit_model::request::Trigger;
use refit_service::watch::Watcher;
use refit_service::watch::status::Snapshot;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::object::parse_optional;
use super::problem::{Document, Problem};
use super::requested_by::RequestedBy;

/// More images than a platform has. An empty list checks all.
const IMAGES_MAX: usize = 256;

/// Of which images; none means all.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = WatchCheck)]
pub(super) struct Check {
    images: Vec<ImageRef>,
}

/// Who asks, as they say of themselves.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = WatchWho)]
pub(super) struct Who {
    by: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = WatchAsked)]
pub(super) struct CheckBody {
    /// A look that started later than this has seen it.
    asked: jiff::Timestamp,
}

/// What the watcher knows
///
/// Of each image: whether it is behind, since when, and what keeps it from being adopted. [watching.md](watching.md) says what is looked
/// at, and when.
#[utoipa::path(
    get,
    path = "/v1/watch",
    operation_id = "show_watch",
    tag = "watch",
    responses((status = 200, description = "As of its last look.", body = Snapshot)),
)]
pub(super) async fn show(State(state): State<AppState>) -> Json<Snapshot> {
    let snapshot = match &state.watcher {
        Some(watcher) => Snapshot::clone(&watcher.snapshot()),
        None => Snapshot::disabled(),
    };
    Json(snapshot)
}

/// Pause
///
/// It goes on looking, and adopts nothing until it is resumed, restarts included. The body may be left out.
#[utoipa::path(
    post,
    path = "/v1/watch/pause",
    operation_id = "pause_watch",
    tag = "watch",
    request_body = Option<Who>,
    params(("X-Refit-By" = Option<String>, Header, description = "Who asks, where the body does not say.")),
    responses(
        (status = 200, description = "It is paused.", body = Snapshot),
        (status = 400, description = "`bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`watch-off`.", body = Document, content_type = "application/problem+json"),
        (status = 500, description = "`watch-not-kept`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn pause(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    who: Bytes,
) -> Result<Json<Snapshot>, Problem> {
    let who: Who = body(&who)?;
    let watcher = watcher(&state)?;
    check_stored(watcher.pause(who.by.or(by)).await)?;
    Ok(Json(Snapshot::clone(&watcher.snapshot())))
}

/// Resume
#[utoipa::path(
    post,
    path = "/v1/watch/resume",
    operation_id = "resume_watch",
    tag = "watch",
    responses(
        (status = 200, description = "It is not paused any more.", body = Snapshot),
        (status = 409, description = "`watch-off`.", body = Document, content_type = "application/problem+json"),
        (status = 500, description = "`watch-not-kept`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn resume(State(state): State<AppState>) -> Result<Json<Snapshot>, Problem> {
    let watcher = watcher(&state)?;
    check_stored(watcher.resume().await)?;
    Ok(Json(Snapshot::clone(&watcher.snapshot())))
}

/// Look now
///
/// Answered at once; the look comes within seconds. The body may be left out.
#[utoipa::path(
    post,
    path = "/v1/watch/check",
    operation_id = "check_watch",
    tag = "watch",
    request_body = Option<Check>,
    responses(
        (status = 202, description = "It will look.", body = CheckBody),
        (status = 400, description = "`bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`watch-off`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn check(
    State(state): State<AppState>,
    check: Bytes,
) -> Result<Response, Problem> {
    let check: Check = body(&check)?;
    let watcher = watcher(&state)?;
    if check.images.len() > IMAGES_MAX {
        let problem =
            format!("`images` may have {IMAGES_MAX} entries; with none, all are looked at");
        return Err(bad_body(problem));
    }
    let asked = CheckBody {
        asked: jiff::Timestamp::now(),
    };
    let repositories = check.images.iter().map(ImageRef::repository);
    watcher
        .check_queue()
        .enqueue(Trigger::Operator, repositories);
    Ok((StatusCode::ACCEPTED, Json(asked)).into_response())
}

fn watcher(state: &AppState) -> Result<Arc<Watcher>, Problem> {
    let watch_off = || {
        Problem::new(StatusCode::CONFLICT, "watch-off", "nothing is watched")
            .hint("`[watch] enabled` is false, or `IMAGE_AUTO_REFRESH` is not `true`")
    };
    state.watcher.clone().ok_or_else(watch_off)
}

/// Report that a change could not be stored. It still applies until the daemon ends.
fn check_stored(written: Result<(), Diagnostic>) -> Result<(), Problem> {
    written.map_err(|diagnostic| {
        let problem = Problem::from_diagnostic(
            StatusCode::INTERNAL_SERVER_ERROR,
            "watch-not-kept",
            diagnostic,
        );
        problem.hint("it holds now, and not after a restart")
    })
}

/// Parse a body. An empty body counts as `{}`, whatever its content type.
fn body<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    parse_optional(body).map_err(|error| bad_body(error.to_string()))
}

fn bad_body(problem: String) -> Problem {
    let cannot = "the request cannot be read";
    Problem::new(StatusCode::BAD_REQUEST, "bad-body", cannot).hint(problem)
}
