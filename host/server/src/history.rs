//! `GET /v1/refreshes`: the refreshes on this machine, by the daemon and by the command line, running ones included.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use refit_history::{
    Archive, Entry, History, HistoryError, Id, LIMIT_MAX, Outcome, Page, Query, Shown,
};
use refit_model::diagnostic::Diagnostic;
use refit_service::runs::RefreshHandle;
use serde::{Deserialize, Serialize};

use super::problem::{Document, Problem};
use super::{AppState, events};

/// The default number of entries in a response.
const LIMIT: u32 = 50;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// How many at most, 1 to 500. Default: 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Only those with a smaller number.
    before: Option<Id>,
    /// Only those whose report mentions this container.
    container: Option<String>,
    /// Only those that pulled this image, or tried to.
    image: Option<String>,
    /// Only those with this outcome.
    #[param(value_type = Option<Outcome>)]
    outcome: Option<String>,
}

/// Refreshes, the newest first.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Refreshes)]
pub(super) struct Listed {
    #[serde(flatten)]
    page: Page,
    /// Those of this daemon that are not written down, the newest first. It alone knows them, until it ends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Option<Vec<Entry>>)]
    unwritten: Vec<Entry>,
    /// Why the last refresh is not in the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Diagnostic>,
}

/// A refresh, and what can be done about it where it is this daemon's and under way.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Refresh)]
pub(super) struct View {
    #[serde(flatten)]
    shown: Shown,
    /// Where it can be watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<String>,
    /// It was told to end early.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(value_type = Option<bool>)]
    ending: bool,
}

impl View {
    pub(super) fn from_run(run: &RefreshHandle) -> Self {
        Self::with(run.to_shown(), Some(run))
    }

    fn with(shown: Shown, run: Option<&RefreshHandle>) -> Self {
        let under_way = run.filter(|_| shown.entry.outcome == Outcome::Running);
        Self {
            events: under_way.map(|run| events::events_path(run.id)),
            ending: under_way.is_some_and(RefreshHandle::is_cancelling),
            shown,
        }
    }
}

/// Refreshes of this machine
///
/// What became of them, the newest first, those under way included; of the daemon and of the command line. [history.md](history.md) says
/// what is kept, and for how long.
#[utoipa::path(
    get,
    path = "/v1/refreshes",
    operation_id = "list_refreshes",
    tag = "refreshes",
    params(ListQuery),
    responses(
        (status = 200, description = "A page of them.", body = Listed),
        (status = 400, description = "`bad-query`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`history-unavailable`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(state): State<AppState>,
    asked: Result<Parameters<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Parameters(asked) = asked.map_err(|rejection| wrong(rejection.body_text()))?;
    let query = query(asked)?;
    let unwritten = unwritten(&state, &query);
    let listed = match state.refresher.history().cloned() {
        None => Listed {
            page: Page::default(),
            unwritten,
            problem: Some(Diagnostic::new("no history is kept").hint("`[history] keep` is 0")),
        },
        Some(history) => {
            let problem = history.last_error();
            match query_archive(&history, move |archive| archive.list(&query)).await {
                Ok(page) => Listed {
                    page,
                    unwritten,
                    problem,
                },
                // The daemon still lists its own entries, and reports why the rest is missing.
                Err(Unseen::Told(diagnostic)) if !unwritten.is_empty() => Listed {
                    page: Page::default(),
                    unwritten,
                    problem: Some(diagnostic),
                },
                Err(unseen) => return Err(unseen.into()),
            }
        }
    };
    Ok(Json(listed).into_response())
}

/// The newest entries, which are not in the history yet. They belong to the first page; filters on the report's content do not
/// apply.
fn unwritten(state: &AppState, query: &Query) -> Vec<Entry> {
    if query.before.is_some() || query.container.is_some() || query.image.is_some() {
        return vec![];
    }
    let runs = state.runs.unsaved();
    let entries = runs.iter().map(|run| run.to_shown().entry);
    entries
        .filter(|entry| query.outcome.is_none_or(|wanted| wanted == entry.outcome))
        .collect()
}

/// One refresh
///
/// With its report where there is one: not of one that runs, was interrupted, or failed before there was anything to tell, and not of one
/// that was longer than 16 MiB.
#[utoipa::path(
    get,
    path = "/v1/refreshes/{id}",
    operation_id = "show_refresh",
    tag = "refreshes",
    params(("id" = i64, Path, description = "Its number.")),
    responses(
        (status = 200, description = "What became of it.", body = View),
        (status = 404, description = "`no-refresh`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`history-unavailable`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(state): State<AppState>,
    id: Result<Path<Id>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = id.map_err(|_| none())?;
    let run = state.runs.find(id);
    let history = state.refresher.history().filter(|_| id > 0).cloned();
    let written = match &history {
        Some(history) => query_archive(history, move |archive| archive.show(id)).await,
        None => Ok(None),
    };
    let view = match (written, &run) {
        (Ok(Some(shown)), run) => View::with(shown, run.as_deref()),
        (_, Some(run)) => View::from_run(run),
        (Ok(None), None) => return Err(none()),
        (Err(unseen), None) => return Err(unseen.into()),
    };
    Ok(Json(view).into_response())
}

pub(super) fn none() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-refresh",
        "there is no such refresh",
    )
}

/// The entry of the history with this id, if there is one.
pub(super) async fn entry(state: &AppState, id: Id) -> Result<Option<Entry>, Problem> {
    let Some(history) = state.refresher.history().filter(|_| id > 0).cloned() else {
        return Ok(None);
    };
    let shown = query_archive(&history, move |archive| archive.show(id)).await?;
    Ok(shown.map(|shown| shown.entry))
}

fn query(asked: ListQuery) -> Result<Query, Problem> {
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
        image: image
            .map_err(|error: refit_model::image::ImageRefError| wrong(error.to_string()))?,
        outcome: outcome.map_err(|error: refit_history::OutcomeError| wrong(error.to_string()))?,
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

/// Why the history could not be read.
enum Unseen {
    Told(Diagnostic),
    Panicked,
}

impl From<Unseen> for Problem {
    fn from(unseen: Unseen) -> Self {
        match unseen {
            Unseen::Told(diagnostic) => Self::from_diagnostic(
                StatusCode::SERVICE_UNAVAILABLE,
                "history-unavailable",
                diagnostic,
            ),
            Unseen::Panicked => Self::internal(),
        }
    }
}

/// Query the history on a blocking thread, because SQLite blocks.
async fn query_archive<T: Send + 'static>(
    history: &History,
    query: impl FnOnce(&Archive) -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, Unseen> {
    let archive = history.archive().clone();
    match tokio::task::spawn_blocking(move || query(&archive)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => {
            let diagnostic = Diagnostic::of(&error);
            tracing::error!("{}", diagnostic.sentence());
            Err(Unseen::Told(diagnostic))
        }
        Err(panicked) => {
            tracing::error!("query of the history panicked, please report it: {panicked}");
            Err(Unseen::Panicked)
        }
    }
}
