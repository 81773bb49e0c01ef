//! `/healthz` and `/readyz`, for process supervisors. They require no token, so they reveal little.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::AppState;
use super::problem::{Document, Problem};

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = HealthStatus)]
pub(super) struct Status {
    status: &'static str,
}

/// Whether the process answers
///
/// Nothing else is asked: a daemon is not to be restarted because its engine is.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "observing",
    responses((status = 200, description = "It does.", body = Status)),
)]
pub(super) async fn alive() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Whether a refresh would find what it needs
///
/// An engine that answers, no container that lacks because a replacement was left half done, and time to end. The engine is asked once a second at most, and waited for
/// two seconds at most, however many probes come.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "observing",
    responses(
        (status = 200, description = "It would.", body = Status),
        (status = 503, description = "`engine-unavailable`, `recovering`, `unfinished-replacements` or `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<Status>, Problem> {
    if state.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    let not = |code, why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, why);
    // Only the log has details such as the address of the engine.
    if !state.probe.is_up().await {
        return Err(not(
            "engine-unavailable",
            "the container engine does not answer",
        ));
    }
    if !state.recovered.is_cancelled() {
        return Err(not(
            "recovering",
            "half-done replacements are being looked for",
        ));
    }
    if state.reconciler.is_service_affected() {
        return Err(not(
            "unfinished-replacements",
            "a replacement was left half done and could not be ended yet: `refit recover` says which",
        ));
    }
    Ok(Json(Status { status: "ready" }))
}
