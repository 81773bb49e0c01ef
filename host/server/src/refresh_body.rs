//! The request body of a plan or a refresh.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use refit_model::request::{Request, Trigger};
use serde::Deserialize;

use super::object::JsonObject;
use super::problem::Problem;

/// What is asked for; `{}` is everything that the policy knows.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RefreshBody {
    /// In the policy's vocabulary; the default policy's are runtimes. Empty means all.
    targets: Vec<String>,
    /// By registry and repository. Empty means all.
    images: Vec<String>,
    /// Whether containers may be recreated.
    recreate: bool,
    /// Recreate also what is up to date.
    force: bool,
}

impl Default for RefreshBody {
    fn default() -> Self {
        Self {
            targets: vec![],
            images: vec![],
            recreate: true,
            force: false,
        }
    }
}

/// The body as axum extracts it.
pub(super) type RequestBody = Result<Json<JsonObject<RefreshBody>>, JsonRejection>;

impl RefreshBody {
    pub(super) fn request(body: RequestBody) -> Result<Request, Problem> {
        let Json(JsonObject(asked)) = body.map_err(|rejection| {
            let problem =
                Problem::new(rejection.status(), "bad-body", "the request cannot be read");
            problem.hint(rejection.body_text())
        })?;
        Ok(Request {
            trigger: Trigger::Api,
            targets: asked.targets,
            images: asked.images,
            recreate: asked.recreate,
            force: asked.force,
        })
    }
}
