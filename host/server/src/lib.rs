//! The HTTP interface. A handler extracts its input, calls one function of the domain, and responds. Only this crate uses axum.

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

/// The state that handlers share.
#[derive(Clone)]
pub struct AppState {
    pub refresher: Arc<Refresher>,
    /// Starts refreshes and tracks the running ones.
    pub runs: Arc<RefreshManager>,
    /// The queue through which webhooks request a check of the registry.
    pub bell: Arc<CheckQueue>,
    pub hooks: Arc<Hooks>,
    /// Refreshes that wait for approval.
    pub approvals: Arc<Approvals>,
    /// The watcher, or `None` if nothing is watched.
    pub watcher: Option<Arc<Watcher>>,
    /// The host names under which clients may call the daemon.
    pub hosts: Arc<KnownHosts>,
    /// The admin token. `None` only if the configuration allows it, and only on loopback.
    pub token: Option<Arc<AdminToken>>,
    /// An additional token for `/metrics` only.
    pub metrics_token: Option<Arc<AdminToken>>,
    pub metrics: Arc<Metrics>,
    /// Checks whether the engine responds.
    pub probe: Arc<Probe>,
    /// Other requested work that continues after its client disconnects.
    pub work: TaskTracker,
    /// Cancelled when the search for interrupted replacements at the start has ended, whatever its result.
    pub recovered: CancellationToken,
    /// The interrupted replacements that are still unfinished.
    pub reconciler: Arc<Reconciler>,
    /// Cancelled when the daemon has to stop.
    pub stopping: CancellationToken,
}

/// The largest request body, except for requests that bring a policy, which have a separate limit.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Serve requests on `listener` until `until` completes, and then until the last response is sent.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    until: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    connections::serve(listener, router(state), until).await;
    Ok(())
}

/// Build the router from the tables in `routes`.
pub fn router(state: AppState) -> Router {
    let guarded = routes::for_admin()
        .router
        .layer(from_fn(browsers::require_json))
        .layer(from_fn_with_state(state.clone(), auth::require_token))
        .layer(from_fn_with_state(
            state.clone(),
            browsers::require_known_host,
        ));
    let metrics = routes::for_metrics().router.layer(from_fn_with_state(
        state.clone(),
        auth::require_metrics_token,
    ));
    // A collector has a token; without any, pages of other sites could read the metrics.
    let metrics = match state.token.is_some() || state.metrics_token.is_some() {
        true => metrics,
        false => metrics.layer(from_fn_with_state(
            state.clone(),
            browsers::require_known_host,
        )),
    };
    routes::without_token()
        .router
        .merge(metrics)
        .merge(routes::for_webhooks().router)
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
        .with_state(state)
}
