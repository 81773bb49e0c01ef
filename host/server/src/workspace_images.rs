//! `POST /admin/workspace-images/refresh`: the platform's original endpoint, with the same keys.
//!
//! Its words are runtimes and container names; ours are targets, images and a report, which the response has under additional keys.

use axum::Json;
use axum::extract::{Query, State, rejection::QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use refit_model::diagnostic::{Diagnostic, Hints as _};
use refit_model::pull::ImageOutcome;
use refit_model::recreation::RecreationOutcome;
use refit_model::report::Report;
use refit_model::request::{Request, Trigger};
use refit_refresh::RefreshError;
use refit_service::runs::Panicked;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::problem::{Document, Problem};
use super::requested_by::RequestedBy;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// Only this runtime. Left out or empty: all of them.
    runtime: Option<String>,
    /// Whether containers may be recreated. Left out or `true`: yes. Anything else: no.
    recreate: Option<String>,
}

/// The original's answer. Runtimes, runtimes, container names.
#[derive(Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = WorkspaceImages)]
pub(super) struct Outcome {
    /// Runtimes whose image is there now, those that were up to date included.
    pulled: Vec<String>,
    /// Runtimes whose image could not be pulled.
    failed: Vec<String>,
    /// Names of the containers that were recreated or removed.
    recreated: Vec<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = WorkspaceImagesRefreshed)]
pub(super) struct Answer<'a> {
    #[serde(flatten)]
    outcome: Outcome,
    report: &'a Report,
}

/// The schema name in the API description.
type Refreshed = Answer<'static>;

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = WorkspaceImagesUnknown)]
pub(super) struct UnknownRuntime {
    /// `unknown runtime: nope`
    error: String,
    known_runtimes: Vec<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = WorkspaceImagesFailed)]
pub(super) struct Failed {
    error: String,
    /// What was done before it failed.
    partial_result: Outcome,
    hints: Vec<String>,
}

impl Outcome {
    fn from_report(report: &Report) -> Self {
        let mut outcome = Self::default();
        for target in &report.targets {
            match report.image(&target.image).map(|image| image.outcome) {
                Some(ImageOutcome::Pulled | ImageOutcome::UpToDate) => {
                    outcome.pulled.push(target.name.clone())
                }
                Some(ImageOutcome::Failed) => outcome.failed.push(target.name.clone()),
                Some(ImageOutcome::WouldPull) | None => {}
            }
        }
        for container in &report.containers {
            let outcome_of = container
                .recreation
                .as_ref()
                .map(|recreation| recreation.outcome);
            if matches!(
                outcome_of,
                Some(RecreationOutcome::Recreated | RecreationOutcome::Removed)
            ) {
                outcome.recreated.push(container.name.clone());
            }
        }
        outcome
    }
}

/// The platform's original endpoint
///
/// A refresh, answered when all is done, which may take as long as the pulls and the proofs of the replacements do. It is finished, or
/// put back, also when the client hangs up. 200 says that the refresh was made, and not that nothing failed: an image that was not
/// pulled is in `failed`, and a container that was not recreated is in `report.containers`.
#[utoipa::path(
    post,
    path = "/admin/workspace-images/refresh",
    operation_id = "refresh_workspace_images",
    tag = "platform",
    params(Parameters, ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves.")),
    responses(
        (status = 200, description = "It was made.", body = Refreshed),
        (status = 400, description = "The runtime is unknown; or `bad-query`.", content(
            (UnknownRuntime = "application/json"),
            (Document = "application/problem+json"),
        )),
        (status = 500, description = "The containers could not be listed, or the policy failed; or `internal`.", content(
            (Failed = "application/json"),
            (Document = "application/problem+json"),
        )),
        (status = 503, description = "`too-many-refreshes`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn refresh(
    State(state): State<AppState>,
    RequestedBy(by): RequestedBy,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(parameters) = parameters.map_err(|rejection| {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-query",
            "the query cannot be read",
        );
        problem.hint(rejection.body_text()).into_response()
    })?;
    let request = Request {
        trigger: Trigger::Api,
        targets: parameters
            .runtime
            .filter(|runtime| !runtime.is_empty())
            .into_iter()
            .collect(),
        images: vec![],
        recreate: parameters
            .recreate
            .is_none_or(|recreate| recreate == "true"),
        force: false,
    };
    // The refresh runs in a separate task, so it continues if the client disconnects.
    let started = match state.runs.begin(request, by).await {
        Ok(started) => started,
        Err(not_begun) => return Err(Problem::not_begun(&not_begun).into_response()),
    };
    match started.wait().await {
        Ok(Ok(report)) => Ok(answer(&report)),
        Ok(Err(error)) => Err(to_problem(&error)),
        Err(Panicked) => Err(Problem::internal().into_response()),
    }
}

fn answer(report: &Report) -> Response {
    let outcome = Outcome::from_report(report);
    Json(Answer { outcome, report }).into_response()
}

fn to_problem(error: &RefreshError) -> Response {
    if let RefreshError::UnknownTargets { asked, known } = error {
        let body = UnknownRuntime {
            error: format!("unknown runtime: {}", asked.join(", ")),
            known_runtimes: known.clone(),
        };
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    let diagnostic = Diagnostic::of(error);
    let body = Failed {
        error: diagnostic.sentence(),
        partial_result: error
            .partial()
            .map(Outcome::from_report)
            .unwrap_or_default(),
        hints: error.hints(),
    };
    (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
}
