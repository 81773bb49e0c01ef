//! `/v1/approvals`: refreshes that wait for a person's approval, and their results.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use refit_model::diagnostic::Diagnostic;
use refit_service::approvals::plan::Plan;
use refit_service::approvals::{self, ApprovalError, Entry, Id, PendingApproval, Requested};
use serde::{Deserialize, Serialize};

use super::AppState;
use super::object::parse_optional;
use super::plan;
use super::problem::{Document, Problem};
use super::refresh_body::{RefreshBody, RequestBody};
use super::requested_by::RequestedBy;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only those in this state.
    #[param(value_type = Option<approvals::State>, inline)]
    state: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Approvals)]
pub(super) struct Listed {
    /// The newest first.
    approvals: Vec<Entry>,
    /// Why not all are among them, or the last change could not be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Diagnostic>,
}

/// Refreshes that wait for a person
///
/// And those that have waited, without their plans.
#[utoipa::path(
    get,
    path = "/v1/approvals",
    operation_id = "list_approvals",
    tag = "approvals",
    params(Wanted),
    responses(
        (status = 200, description = "All that are kept.", body = Listed),
        (status = 400, description = "`bad-query`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(state): State<AppState>,
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
    let wanted_state = wanted.state.map(|state| state.parse()).transpose();
    let wanted_state =
        wanted_state.map_err(|error: approvals::StateError| wrong(error.to_string()))?;
    let approvals = state.approvals.list(wanted_state);
    let listed = Listed {
        approvals: approvals
            .iter()
            .map(|approval| Entry::from_approval(approval))
            .collect(),
        problem: state.approvals.last_error(),
    };
    Ok(Json(listed).into_response())
}

/// One that waits, or has waited
///
/// With what it would do.
#[utoipa::path(
    get,
    path = "/v1/approvals/{id}",
    operation_id = "show_approval",
    tag = "approvals",
    params(("id" = u64, Path, description = "Its number.")),
    responses(
        (status = 200, description = "It.", body = PendingApproval),
        (status = 404, description = "`no-approval`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(state): State<AppState>,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let approval = state.approvals.get(parse_id(id)?);
    let approval = approval.map_err(|error| to_problem(&error))?;
    Ok(Json(approval.as_ref()).into_response())
}

/// Hold a refresh for approval
///
/// The body is that of a plan, which is made at once.
#[utoipa::path(
    post,
    path = "/v1/approvals",
    operation_id = "request_approval",
    tag = "approvals",
    request_body = RefreshBody,
    params(("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves.")),
    responses(
        (status = 200, description = "The same is held already; or there is nothing to do, and nothing is held.", body = Answer),
        (status = 201, description = "It is held.", body = PendingApproval, headers(("Location" = String, description = "`/v1/approvals/{id}`"))),
        (status = 400, description = "`unknown-targets`, `bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 422, description = "`policy-refused`, `bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 500, description = "`policy-failed`, `internal`.", body = Document, content_type = "application/problem+json"),
        (status = 502, description = "`engine-unavailable`, `not-verified`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`too-many-approvals`, `approvals-unavailable`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn request(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    asked: RequestBody,
) -> Result<Response, Problem> {
    let request = RefreshBody::request(asked)?;
    let approvals = state.approvals.clone();
    let requested =
        spawn_detached(&state, async move { approvals.request(request, by).await }).await?;
    Ok(match requested {
        Requested::Held(approval) => with_location(StatusCode::CREATED, &approval),
        Requested::Same(approval) => with_location(StatusCode::OK, &approval),
        Requested::NothingToDo(plan) => {
            let state = NothingState::NothingToDo;
            Json(NothingToDo { state, plan: &plan }).into_response()
        }
    })
}

/// Approve
///
/// Answers when the refresh has begun; what comes of it is in the history. What has moved since it was held is not approved: something
/// else is held in its place.
#[utoipa::path(
    post,
    path = "/v1/approvals/{id}/approve",
    operation_id = "approve",
    tag = "approvals",
    params(("id" = u64, Path, description = "Its number."), ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves.")),
    responses(
        (status = 202, description = "Its refresh has begun: `refresh` is the number.", body = PendingApproval),
        (status = 404, description = "`no-approval`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`already-approved`, `already-rejected`, `expired`, `superseded`, `being-decided`.", body = Document, content_type = "application/problem+json"),
        (status = 502, description = "`not-verified`, `engine-unavailable`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`approvals-unavailable`, `too-many-refreshes`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn approve(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let id = parse_id(id)?;
    let approvals = state.approvals.clone();
    let approval = spawn_detached(&state, async move { approvals.approve(id, by).await }).await?;
    Ok(with_location(StatusCode::ACCEPTED, &approval))
}

/// What goes with a rejection.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rejection {
    /// Why, for people.
    reason: Option<String>,
}

/// Reject
///
/// The same is not proposed again until one of its images moves. The body may be left out.
#[utoipa::path(
    post,
    path = "/v1/approvals/{id}/reject",
    operation_id = "reject",
    tag = "approvals",
    request_body = Option<Rejection>,
    params(("id" = u64, Path, description = "Its number."), ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves.")),
    responses(
        (status = 200, description = "It is rejected.", body = PendingApproval),
        (status = 400, description = "`bad-body`.", body = Document, content_type = "application/problem+json"),
        (status = 404, description = "`no-approval`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`already-approved`, `already-rejected`, `expired`, `superseded`, `being-decided`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`approvals-unavailable`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn reject(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    id: Result<Path<Id>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let id = parse_id(id)?;
    let bad = |status, hint: String| {
        Problem::new(status, "bad-body", "the request cannot be read").hint(hint)
    };
    let body = body.map_err(|rejection| bad(rejection.status(), rejection.body_text()))?;
    let Rejection { reason } =
        parse_optional(&body).map_err(|error| bad(StatusCode::BAD_REQUEST, error.to_string()))?;
    let approvals = state.approvals.clone();
    let rejecting = async move { approvals.reject(id, by, reason).await };
    let approval = spawn_detached(&state, rejecting).await?;
    Ok(with_location(StatusCode::OK, &approval))
}

/// Nothing is held.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct NothingToDo<'a> {
    state: NothingState,
    plan: &'a Plan,
}

#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum NothingState {
    NothingToDo,
}

/// As the description of the interface has it: one or the other, told apart by `state`.
#[derive(utoipa::ToSchema)]
#[schema(as = ApprovalAnswer)]
#[expect(dead_code, reason = "only described, never made")]
#[serde(untagged)]
pub(super) enum Answer {
    Same(Box<PendingApproval>),
    Nothing(NothingToDo<'static>),
}

/// Run the work in a separate task, so that it continues if the client disconnects.
async fn spawn_detached<T: Send + 'static>(
    state: &AppState,
    work: impl Future<Output = Result<T, ApprovalError>> + Send + 'static,
) -> Result<T, Problem> {
    if state.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    match state.work.spawn(work).await {
        Ok(answer) => answer.map_err(|error| to_problem(&error)),
        Err(panicked) => {
            tracing::error!("an approval panicked, please report it: {panicked}");
            Err(Problem::internal())
        }
    }
}

fn with_location(status: StatusCode, approval: &PendingApproval) -> Response {
    let mut response = (status, Json(approval)).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/approvals/{}", approval.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// An id that is not a number gets the answer for an unknown approval.
fn parse_id(id: Result<Path<Id>, PathRejection>) -> Result<Id, Problem> {
    let none = |_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-approval",
            "there is no such approval",
        )
    };
    id.map(|Path(id)| id).map_err(none)
}

fn to_problem(error: &ApprovalError) -> Problem {
    let (status, code) = match error {
        ApprovalError::Unplanned { source } => return plan::to_problem(source),
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
    Problem::from_diagnostic(status, code, error.diagnostic()).superseded_by(superseded_by)
}
