//! `POST /v1/plan`: what a refresh would do, and why. Changes nothing and pulls nothing.

use axum::Json;
use axum::extract::{State, rejection::JsonRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Served;
use super::asked::Asked;
use super::problem::Problem;
use crate::diagnostic::Diagnostic;
use crate::journal::no_events;
use crate::refresh::{Mode, RefreshError};

/// A plan has no effects, so it ends when its client hangs up.
pub(super) async fn plan(
    State(served): State<Served>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Result<Response, Problem> {
    let request = Asked::request(asked)?;
    if served.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    let stopping = served.stopping.clone();
    let plan = served
        .refresher
        .run(&request, Mode::Plan, no_events(), stopping);
    match plan.await {
        Ok(report) => Ok(Json(report).into_response()),
        Err(error) => Err(refused(&error)),
    }
}

pub(super) fn refused(error: &RefreshError) -> Problem {
    let (status, code) = match error {
        RefreshError::UnknownTargets { .. } => (StatusCode::BAD_REQUEST, "unknown-targets"),
        RefreshError::Unlisted { .. } => (StatusCode::BAD_GATEWAY, "engine-unavailable"),
        RefreshError::Refused { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "policy-refused"),
        RefreshError::Config { .. } | RefreshError::Policy { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "policy-failed")
        }
    };
    Problem::of(status, code, Diagnostic::of(error))
}
