//! `/v1/refreshes`: what became of the refreshes on this machine, the daemon's and those of the command line.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Served;
use super::problem::Problem;
use crate::diagnostic::Diagnostic;
use crate::history::{self, Archive, History, HistoryError, Id, LIMIT_MAX, Page, Query};

/// Entries of an answer, where nobody says.
const LIMIT: u32 = 50;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    limit: Option<u32>,
    before: Option<Id>,
    container: Option<String>,
    image: Option<String>,
    outcome: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    page: Page,
    /// Why the last refresh is not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Diagnostic>,
}

pub(super) async fn list(
    State(served): State<Served>,
    asked: Result<Parameters<Asked>, QueryRejection>,
) -> Result<Response, Problem> {
    let Parameters(asked) = asked.map_err(|rejection| wrong(rejection.body_text()))?;
    let query = query(asked)?;
    let history = kept(&served)?;
    let page = look(&history, move |archive| archive.list(&query)).await?;
    let listed = Listed {
        page,
        problem: history.trouble(),
    };
    Ok(Json(listed).into_response())
}

pub(super) async fn show(
    State(served): State<Served>,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let none = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-refresh",
            "there is no such refresh",
        )
    };
    let Path(id) = id.map_err(|_| none())?;
    let history = kept(&served)?;
    let shown = look(&history, move |archive| archive.show(id)).await?;
    Ok(Json(shown.ok_or_else(none)?).into_response())
}

fn query(asked: Asked) -> Result<Query, Problem> {
    let limit = asked.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(wrong(format!("`limit` may be 1 to {LIMIT_MAX}")));
    }
    let image = asked.image.map(|image| image.parse()).transpose();
    let outcome = asked.outcome.map(|outcome| outcome.parse()).transpose();
    Ok(Query {
        limit,
        before: asked.before,
        container: asked.container,
        image: image.map_err(|error: crate::image::ImageRefError| wrong(error.to_string()))?,
        outcome: outcome.map_err(|error: history::OutcomeError| wrong(error.to_string()))?,
    })
}

fn wrong(what: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "bad-query",
        "the query cannot be read",
    )
    .hint(what)
}

fn kept(served: &Served) -> Result<Arc<History>, Problem> {
    let none = || {
        let problem = Problem::new(StatusCode::NOT_FOUND, "no-history", "no history is kept");
        problem.hint("`[history] keep` is 0")
    };
    served.refresher.history().cloned().ok_or_else(none)
}

/// SQLite blocks.
async fn look<T: Send + 'static>(
    history: &History,
    look: impl FnOnce(&Archive) -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, Problem> {
    let archive = history.archive().clone();
    match tokio::task::spawn_blocking(move || look(&archive)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => {
            let told = Diagnostic::of(&error);
            tracing::error!("{}", told.sentence());
            Err(Problem::of(
                StatusCode::SERVICE_UNAVAILABLE,
                "history-unavailable",
                told,
            ))
        }
        Err(panicked) => {
            tracing::error!("looking at the history panicked, please report it: {panicked}");
            Err(Problem::internal())
        }
    }
}
