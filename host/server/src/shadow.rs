//! `/v1/policy/shadow`: the shadow run of a candidate policy, its results so far, and its end. `PUT /v1/policy?shadow=N` starts it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use refit_revisions::shadow::{Shadow, Tally};
use serde::Serialize;

use super::AppState;
use super::problem::{Document, Problem};

/// What is said of a candidate on trial.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Shadow)]
pub(super) struct Told<'a> {
    name: &'a str,
    version: &'a str,
    digest: &'a str,
    origin: &'a str,
    began: jiff::Timestamp,
    by: &'a str,
    /// The generation that it is compared with.
    beside: u64,
    /// How often it must agree in a row to take over. Not there: never by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<u32>,
    #[serde(flatten)]
    tally: Tally,
}

/// The schema name in the API description.
pub(super) type View = Told<'static>;

pub(super) fn view(shadow: &Shadow, status: StatusCode) -> Response {
    let content = shadow.content();
    let view = Told {
        name: &content.policy.name,
        version: &content.policy.version,
        digest: &content.policy.digest,
        origin: &content.origin,
        began: shadow.began,
        by: &shadow.by,
        beside: shadow.beside,
        after: shadow.after,
        tally: shadow.tally(),
    };
    (status, Json(view)).into_response()
}

fn none() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-shadow",
        "no candidate is on trial",
    )
    .hint("`PUT /v1/policy?shadow=N` or `refit policy swap FILE --shadow N` begins a trial")
}

/// The candidate on trial
///
/// Which it is, and what came of its trial so far. [policies.md](policies.md#shadow-evaluation) says what a trial is.
#[utoipa::path(
    get,
    path = "/v1/policy/shadow",
    operation_id = "show_shadow",
    tag = "policy",
    responses(
        (status = 200, description = "So far.", body = View),
        (status = 404, description = "`no-shadow`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(State(state): State<AppState>) -> Result<Response, Problem> {
    let shadow = state.refresher.generations().shadow().ok_or_else(none)?;
    Ok(view(&shadow, StatusCode::OK))
}

/// End a trial
///
/// Answers with what came of it.
#[utoipa::path(
    delete,
    path = "/v1/policy/shadow",
    operation_id = "end_shadow",
    tag = "policy",
    responses(
        (status = 200, description = "What came of it.", body = View),
        (status = 404, description = "`no-shadow`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn end(State(state): State<AppState>) -> Result<Response, Problem> {
    let shadow = state.refresher.generations().end_shadow();
    let shadow = shadow.ok_or_else(none)?;
    tracing::info!(
        candidate = shadow.content().policy.title(),
        "ended the shadow run of a candidate"
    );
    Ok(view(&shadow, StatusCode::OK))
}
