//! The HTTP interface. Handlers are: extract, call one function of the domain, answer. The only place that names axum.

#![forbid(unsafe_code)]

pub mod admin_token;
mod approvals;
mod auth;
mod bounds;
mod browsers;
mod connection_table;
mod connections;
mod events;
mod health;
mod history;
mod hooks;
mod metrics;
mod object;
mod openapi;
mod plan;
mod policy;
mod problem;
mod rate_limited_log;
mod refresh_body;
mod refreshes;
mod requested_by;
mod routes;
mod shadow;
mod watch;
mod workspace_images;
mod write_timeout;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::auth::AdminToken;
pub use self::browsers::KnownHosts;
pub use self::connections::listen;
pub use self::openapi::document;
use refit_engine::probe::Probe;
use refit_refresh::Refresher;
use refit_service::approvals::Approvals;
use refit_service::hooks::Hooks;
use refit_service::metrics::Metrics;
use refit_service::reconcile::Reconciler;
use refit_service::runs::RefreshManager;
use refit_service::watch::Watcher;
use refit_service::watch::check_queue::CheckQueue;

use self::problem::Problem;

/// What handlers share.
#[derive(Clone)]
pub struct AppState {
    pub refresher: Arc<Refresher>,
    /// The way to a refresh, and to those that are under way.
    pub runs: Arc<RefreshManager>,
    /// How webhooks say that something may have been published.
    pub bell: Arc<CheckQueue>,
    pub hooks: Arc<Hooks>,
    /// Refreshes that wait for a person.
    pub approvals: Arc<Approvals>,
    /// `None` where nothing is watched.
    pub watcher: Option<Arc<Watcher>>,
    /// Under which names the daemon may be asked.
    pub hosts: Arc<KnownHosts>,
    /// `None` only if the configuration allows it, and on loopback alone.
    pub token: Option<Arc<AdminToken>>,
    /// For `/metrics` alone, beside the other one.
    pub metrics_token: Option<Arc<AdminToken>>,
    pub metrics: Arc<Metrics>,
    /// Whether the engine answers.
    pub probe: Arc<Probe>,
    /// Other work that was asked for and goes on when its client has hung up.
    pub work: TaskTracker,
    /// Set when it was looked for what a killed Refit left half done, whatever came of that.
    pub recovered: CancellationToken,
    /// What is still half done.
    pub reconciler: Arc<Reconciler>,
    /// Set when the daemon is told to stop.
    pub stopping: CancellationToken,
}

/// No request of ours has a body to speak of, but one that brings a policy, which counts for itself.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Answers on `listener` until `until`, and then until the last answer is out.
pub async fn serve(
    listener: TcpListener,
    served: AppState,
    until: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    connections::serve(listener, router(served), until).await;
    Ok(())
}

/// Which routes there are, `routes` says.
pub fn router(served: AppState) -> Router {
    let guarded = routes::for_admin()
        .router
        .layer(from_fn(browsers::require_json))
        .layer(from_fn_with_state(served.clone(), auth::require_token))
        .layer(from_fn_with_state(
            served.clone(),
            browsers::require_known_host,
        ));
    let metrics = routes::for_metrics().router.layer(from_fn_with_state(
        served.clone(),
        auth::require_metrics_token,
    ));
    // A collector has a token; without any, pages of others could read them.
    let metrics = match served.token.is_some() || served.metrics_token.is_some() {
        true => metrics,
        false => metrics.layer(from_fn_with_state(
            served.clone(),
            browsers::require_known_host,
        )),
    };
    routes::open()
        .router
        .merge(metrics)
        .merge(routes::for_senders().router)
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
        .layer(from_fn(browsers::refuse_other_sites))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(served)
}
