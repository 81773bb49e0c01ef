//! The HTTP interface. Handlers are: extract, call one function of the domain, answer. The only place that names axum.

mod approvals;
mod asked;
mod auth;
mod bounds;
mod by;
mod events;
mod history;
mod hooks;
mod plan;
mod policy;
mod problem;
mod refreshes;
mod repeated;
mod shadow;
mod watch;
mod workspace_images;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::auth::AdminToken;
use self::problem::Problem;
use crate::approvals::Approvals;
use crate::hooks::Hooks;
use crate::refresh::Refresher;
use crate::runs::Runs;
use crate::watch::Watcher;
use crate::watch::bell::Bell;

/// What handlers share.
#[derive(Clone)]
pub struct Served {
    pub refresher: Arc<Refresher>,
    /// The way to a refresh, and to those that are under way.
    pub runs: Arc<Runs>,
    /// How webhooks say that something may have been published.
    pub bell: Arc<Bell>,
    pub hooks: Arc<Hooks>,
    /// Refreshes that wait for a person.
    pub approvals: Arc<Approvals>,
    /// `None` where nothing is watched.
    pub watcher: Option<Arc<Watcher>>,
    /// `None` only where the daemon listens on loopback alone.
    pub token: Option<Arc<AdminToken>>,
    /// Other work that was asked for and goes on when its client has hung up.
    pub work: TaskTracker,
    /// Set when it was looked for what a killed Refit left half done, whatever came of that.
    pub recovered: CancellationToken,
    /// Set when the daemon is told to stop.
    pub stopping: CancellationToken,
}

/// No request of ours has a body to speak of, but one that brings a policy, which counts for itself.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Answers on `listener` until `until`, and then until the last answer is out.
pub async fn serve(
    listener: TcpListener,
    served: Served,
    until: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(served))
        .with_graceful_shutdown(until)
        .await
}

pub fn router(served: Served) -> Router {
    let guarded = Router::new()
        .route(
            "/admin/workspace-images/refresh",
            post(workspace_images::refresh),
        )
        .route("/v1/plan", post(plan::plan))
        .route(
            "/v1/approvals",
            get(approvals::list).post(approvals::request),
        )
        .route("/v1/approvals/{id}", get(approvals::show))
        .route("/v1/approvals/{id}/approve", post(approvals::approve))
        .route("/v1/approvals/{id}/reject", post(approvals::reject))
        .route("/v1/refreshes", get(history::list).post(refreshes::begin))
        .route(
            "/v1/refreshes/{id}",
            get(history::show).delete(refreshes::cancel),
        )
        .route("/v1/refreshes/{id}/events", get(events::watch))
        .route("/v1/policy", get(policy::show).put(policy::swap))
        .route("/v1/policy/history", get(policy::history))
        .route("/v1/policy/shadow", get(shadow::show).delete(shadow::end))
        .route("/v1/policy/rollback", post(policy::roll_back))
        .route("/v1/watch", get(watch::show))
        .route("/v1/watch/pause", post(watch::pause))
        .route("/v1/watch/resume", post(watch::resume))
        .route("/v1/watch/check", post(watch::check))
        .layer(from_fn_with_state(served.clone(), auth::require_token));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(hooks::routes())
        .merge(guarded)
        .fallback(async || {
            Problem::new(StatusCode::NOT_FOUND, "not-found", "there is nothing here")
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "this method does nothing here",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(served)
}

/// Whether a refresh would find what it needs: an engine that answers, nothing half done from before, and time to end.
async fn ready(State(served): State<Served>) -> Result<&'static str, Problem> {
    if served.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    match served.refresher.workshop().engine.version().await {
        Ok(_) if !served.recovered.is_cancelled() => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "recovering",
            "half-done replacements are being looked for",
        )),
        Ok(_) => Ok("ready\n"),
        Err(error) => {
            // The address of the engine and the like are for the log; whoever may ask without a token is told that much.
            tracing::warn!(
                "not ready: {}",
                crate::diagnostic::Diagnostic::of(&error).sentence()
            );
            Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "engine-unavailable",
                "the container engine does not answer",
            ))
        }
    }
}
