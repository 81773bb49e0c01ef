//! `POST /v1/plan`: the refresh that would happen, with the reasons. It changes and pulls nothing.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use refit_model::diagnostic::Diagnostic;
use refit_model::event::no_events;
use refit_model::report::Report;
use refit_model::request::Mode;
use refit_refresh::RefreshError;

use super::AppState;
use super::problem::{Document, Problem};
use super::refresh_body::{RefreshBody, RequestBody};

/// What a refresh would do, and why
///
/// With the active policy. Pulls nothing, changes nothing, and ends when the client hangs up. `{}` is all that the policy knows; an
/// unknown field is an error.
#[utoipa::path(
    post,
    path = "/v1/plan",
    tag = "refreshes",
    request_body = RefreshBody,
    responses(
        (status = 200, description = "[The report](report.md); its `mode` is `plan`.", body = Report),
        (status = 400, description = "`unknown-targets`, `bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 422, description = "`policy-refused`, `bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 500, description = "`policy-failed`.", body = Document, content_type = "application/problem+json"),
        (status = 502, description = "`engine-unavailable`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn plan(
    State(state): State<AppState>,
    asked: RequestBody,
) -> Result<Response, Problem> {
    let request = RefreshBody::request(asked)?;
    if state.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    let stopping = state.stopping.clone();
    let plan = state
        .refresher
        .run(&request, Mode::Plan, no_events(), stopping);
    match plan.await {
        Ok(report) => Ok(Json(report).into_response()),
        Err(error) => Err(to_problem(&error)),
    }
}

pub(super) fn to_problem(error: &RefreshError) -> Problem {
    let (status, code) = match error {
        RefreshError::UnknownTargets { .. } => (StatusCode::BAD_REQUEST, "unknown-targets"),
        RefreshError::Unlisted { .. } => (StatusCode::BAD_GATEWAY, "engine-unavailable"),
        RefreshError::Refused { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "policy-refused"),
        RefreshError::Config { .. } | RefreshError::Policy { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "policy-failed")
        }
    };
    Problem::from_diagnostic(status, code, Diagnostic::of(error))
}
