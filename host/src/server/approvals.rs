//! `/v1/approvals`: refreshes that wait for a person, and what became of them.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Served;
use super::asked::Asked;
use super::by::By;
use super::plan;
use super::problem::Problem;
use crate::approvals::{self, ApprovalError, Entry, Held, Id, Requested};
use crate::diagnostic::Diagnostic;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    state: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    approvals: Vec<Entry>,
    /// Why not all are among them, or the last change could not be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Diagnostic>,
}

pub(super) async fn list(
    State(served): State<Served>,
    wanted: Result<Parameters<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let wrong = |what: String| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-query",
            "the query cannot be read",
        )
        .hint(what)
    };
    let Parameters(wanted) = wanted.map_err(|rejection| wrong(rejection.body_text()))?;
    let state = wanted.state.map(|state| state.parse()).transpose();
    let state = state.map_err(|error: approvals::StateError| wrong(error.to_string()))?;
    let held = served.approvals.list(state);
    let listed = Listed {
        approvals: held.iter().map(|held| Entry::of(held)).collect(),
        problem: served.approvals.problem(),
    };
    Ok(Json(listed).into_response())
}

pub(super) async fn show(
    State(served): State<Served>,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let held = served.approvals.get(numbered(id)?);
    let held = held.map_err(|error| refused(&error))?;
    Ok(Json(held.as_ref()).into_response())
}

/// The body is that of a plan.
pub(super) async fn request(
    State(served): State<Served>,
    By(by): By,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Result<Response, Problem> {
    let request = Asked::request(asked)?;
    let approvals = served.approvals.clone();
    let requested = spawned(&served, async move { approvals.request(request, by).await }).await?;
    Ok(match requested {
        Requested::Held(held) => placed(StatusCode::CREATED, &held),
        Requested::Same(held) => placed(StatusCode::OK, &held),
        Requested::NothingToDo(plan) => {
            Json(json!({ "state": "nothing-to-do", "plan": plan })).into_response()
        }
    })
}

/// Answers when the refresh has begun; what comes of it is in the history.
pub(super) async fn approve(
    State(served): State<Served>,
    By(by): By,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let id = numbered(id)?;
    let approvals = served.approvals.clone();
    let held = spawned(&served, async move { approvals.approve(id, by).await }).await?;
    Ok(placed(StatusCode::ACCEPTED, &held))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rejection {
    reason: Option<String>,
}

/// The body may be left out.
pub(super) async fn reject(
    State(served): State<Served>,
    By(by): By,
    id: Result<Path<Id>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = numbered(id)?;
    let bad = |status, hint: String| {
        Problem::new(status, "bad-body", "the request cannot be read").hint(hint)
    };
    let body = body.map_err(|rejection| bad(rejection.status(), rejection.body_text()))?;
    let Rejection { reason } = match body.is_empty() {
        true => Rejection::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| bad(StatusCode::BAD_REQUEST, error.to_string()))?,
    };
    let approvals = served.approvals.clone();
    let rejecting = async move { approvals.reject(id, by, reason).await };
    let held = spawned(&served, rejecting).await?;
    Ok(placed(StatusCode::OK, &held))
}

/// In a task of its own: a client that hangs up has asked all the same.
async fn spawned<T: Send + 'static>(
    served: &Served,
    work: impl Future<Output = Result<T, ApprovalError>> + Send + 'static,
) -> Result<T, Problem> {
    if served.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    match served.work.spawn(work).await {
        Ok(answer) => answer.map_err(|error| refused(&error)),
        Err(panicked) => {
            tracing::error!("an approval panicked, please report it: {panicked}");
            Err(Problem::internal())
        }
    }
}

fn placed(status: StatusCode, held: &Held) -> Response {
    let mut response = (status, Json(held)).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/approvals/{}", held.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// What is no number is no approval.
fn numbered(id: Result<Path<Id>, PathRejection>) -> Result<Id, Problem> {
    let none = |_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-approval",
            "there is no such approval",
        )
    };
    id.map(|Path(id)| id).map_err(none)
}

fn refused(error: &ApprovalError) -> Problem {
    let (status, code) = match error {
        ApprovalError::Unplanned { source } => return plan::refused(source),
        ApprovalError::Panicked => return Problem::internal(),
        ApprovalError::Stopping => return Problem::stopping(),
        ApprovalError::NoSuch(_) => (StatusCode::NOT_FOUND, "no-approval"),
        ApprovalError::Decided {
            state: approvals::State::Rejected,
            ..
        } => (StatusCode::CONFLICT, "already-rejected"),
        ApprovalError::Decided { .. } => (StatusCode::CONFLICT, "already-approved"),
        ApprovalError::Expired { .. } => (StatusCode::CONFLICT, "expired"),
        ApprovalError::Superseded { .. } => (StatusCode::CONFLICT, "superseded"),
        ApprovalError::BeingDecided(_) => (StatusCode::CONFLICT, "being-decided"),
        ApprovalError::Unseen { .. } => (StatusCode::BAD_GATEWAY, "not-verified"),
        ApprovalError::TooMany { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too-many-approvals"),
        ApprovalError::Store { .. } => (StatusCode::SERVICE_UNAVAILABLE, "approvals-unavailable"),
    };
    let superseded_by = match error {
        ApprovalError::Superseded { superseded_by, .. } => *superseded_by,
        _ => None,
    };
    Problem::of(status, code, error.told()).superseded_by(superseded_by)
}
