//! `/v1/watch`: what the watcher knows, and the ways to pause it, resume it, and have it look now.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Served;
use super::problem::Problem;
use crate::diagnostic::Diagnostic;
use crate::image::ImageRef;
use crate::refresh::Trigger;
use crate::watch::Watcher;
use crate::watch::status::Snapshot;

/// More than a platform has; with none, all are looked at.
const IMAGES_MAX: usize = 256;

/// Of which images; none means all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Check {
    images: Vec<ImageRef>,
}

/// Who asks, as they say of themselves.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Who {
    by: Option<String>,
}

#[derive(Serialize)]
struct Asked {
    /// A look that started later than this has seen it.
    asked: jiff::Timestamp,
}

pub(super) async fn show(State(served): State<Served>) -> Json<Snapshot> {
    let snapshot = match &served.watcher {
        Some(watcher) => Snapshot::clone(&watcher.snapshot()),
        None => Snapshot::off(),
    };
    Json(snapshot)
}

pub(super) async fn pause(
    State(served): State<Served>,
    who: Bytes,
) -> Result<Json<Snapshot>, Problem> {
    let who: Who = body(&who)?;
    let watcher = watcher(&served)?;
    lasting(watcher.pause(who.by).await)?;
    Ok(Json(Snapshot::clone(&watcher.snapshot())))
}

pub(super) async fn resume(State(served): State<Served>) -> Result<Json<Snapshot>, Problem> {
    let watcher = watcher(&served)?;
    lasting(watcher.resume().await)?;
    Ok(Json(Snapshot::clone(&watcher.snapshot())))
}

/// Answered at once; the look comes within seconds.
pub(super) async fn check(State(served): State<Served>, check: Bytes) -> Result<Response, Problem> {
    let check: Check = body(&check)?;
    let watcher = watcher(&served)?;
    if check.images.len() > IMAGES_MAX {
        let problem =
            format!("`images` may have {IMAGES_MAX} entries; with none, all are looked at");
        return Err(bad_body(problem));
    }
    let asked = Asked {
        asked: jiff::Timestamp::now(),
    };
    let repositories = check.images.iter().map(ImageRef::repository);
    watcher.bell().ring(Trigger::Operator, repositories);
    Ok((StatusCode::ACCEPTED, Json(asked)).into_response())
}

fn watcher(served: &Served) -> Result<Arc<Watcher>, Problem> {
    let off = || {
        Problem::new(StatusCode::CONFLICT, "watch-off", "nothing is watched")
            .hint("`[watch] enabled` is false, or `IMAGE_AUTO_REFRESH` is not `true`")
    };
    served.watcher.clone().ok_or_else(off)
}

/// It holds all the same, until the daemon ends.
fn lasting(written: Result<(), Diagnostic>) -> Result<(), Problem> {
    written.map_err(|told| {
        let problem = Problem::of(StatusCode::INTERNAL_SERVER_ERROR, "watch-not-kept", told);
        problem.hint("it holds now, and not after a restart")
    })
}

/// None is as good as `{}`, whatever type it is said to have.
fn body<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    match body.is_empty() {
        true => Ok(T::default()),
        false => serde_json::from_slice(body).map_err(|error| bad_body(error.to_string())),
    }
}

fn bad_body(problem: String) -> Problem {
    let cannot = "the request cannot be read";
    Problem::new(StatusCode::BAD_REQUEST, "bad-body", cannot).hint(problem)
}
