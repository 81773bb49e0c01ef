//! `POST /admin/workspace-images/refresh`: the platform's original endpoint, key for key.
//!
//! Its vocabulary is runtimes and container names; ours is targets, images and a report, which is added under keys of its own.

use axum::Json;
use axum::extract::{Query, State, rejection::QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Served;
use super::by::By;
use super::problem::Problem;
use crate::diagnostic::{Diagnostic, Hints as _};
use crate::journal::{ImageOutcome, RecreationOutcome};
use crate::refresh::{RefreshError, Report, Request, Trigger};
use crate::runs::Panicked;

#[derive(Debug, Deserialize)]
pub(super) struct Parameters {
    /// One runtime; all of them without it.
    runtime: Option<String>,
    /// Anything but `true` means no, as in the original.
    recreate: Option<String>,
}

/// The original's answer. Runtimes, runtimes, container names.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Outcome {
    pulled: Vec<String>,
    failed: Vec<String>,
    recreated: Vec<String>,
}

impl Outcome {
    fn of(report: &Report) -> Self {
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

pub(super) async fn refresh(
    State(served): State<Served>,
    By(by): By,
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
    // It runs in a task of its own: a client that hangs up has asked all the same.
    let begun = match served.runs.begin(request, by).await {
        Ok(begun) => begun,
        Err(not_begun) => return Err(Problem::not_begun(&not_begun).into_response()),
    };
    match begun.ended().await {
        Ok(Ok(report)) => Ok(answer(&report)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(Panicked) => Err(Problem::internal().into_response()),
    }
}

fn answer(report: &Report) -> Response {
    let Outcome {
        pulled,
        failed,
        recreated,
    } = Outcome::of(report);
    Json(json!({ "pulled": pulled, "failed": failed, "recreated": recreated, "report": report }))
        .into_response()
}

fn refused(error: &RefreshError) -> Response {
    if let RefreshError::UnknownTargets { asked, known } = error {
        let body = json!({ "error": format!("unknown runtime: {}", asked.join(", ")), "known_runtimes": known });
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    let told = Diagnostic::of(error);
    let partial = error.partial().map(Outcome::of).unwrap_or_default();
    let body =
        json!({ "error": told.sentence(), "partial_result": partial, "hints": error.hints() });
    (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
}
