//! `/healthz` and `/readyz`, for whoever looks after processes. They take no token, so they say little.

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
pub(super) async fn ready(State(served): State<AppState>) -> Result<Json<Status>, Problem> {
    if served.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    let not = |code, why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, why);
    // The address of the engine and the like are in the log alone.
    if !served.probe.is_up().await {
        return Err(not(
            "engine-unavailable",
            "the container engine does not answer",
        ));
    }
    if !served.recovered.is_cancelled() {
        return Err(not(
            "recovering",
            "half-done replacements are being looked for",
        ));
    }
    if served.reconciler.is_service_affected() {
        return Err(not(
            "unfinished-replacements",
            "a replacement was left half done and could not be ended yet: `refit recover` says which",
        ));
    }
    Ok(Json(Status { status: "ready" }))
}
