//! The daemon: it serves until it has to stop, and then finishes its started work. The socket and the stop signal are arguments.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use refit_engine::probe::Probe;
use refit_model::diagnostic::Diagnostic;
use refit_model::unfinished::Unfinished;
use refit_refresh::Refresher;
use refit_server::{AdminToken, AppState, KnownHosts, serve};
use refit_service::approvals::{self, Approvals, Terms};
use refit_service::hooks::Hooks;
use refit_service::metrics::{ImageCounts, Metrics, Sources, Watched};
use refit_service::notify::Notifier;
use refit_service::notify::notification::{Notification, Outcome};
use refit_service::reconcile::Reconciler;
use refit_service::runs::{Observer, RefreshManager};
use refit_service::watch::Watcher;
use refit_service::watch::watcher::Watching;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a stopping daemon waits for started work. A replacement takes its stop timeout, its start and its health check; later
/// runs find an unfinished one by its labels.
const DRAIN: Duration = Duration::from_secs(5 * 60);

/// The additional time for records of that work: twice as long as SQLite waits for another process.
const WRITTEN: Duration = Duration::from_secs(5);

/// The additional time for notifications about it: one attempt.
const TOLD: Duration = Duration::from_secs(10);

/// Refuse to listen beyond loopback without a token.
pub fn may_listen(address: SocketAddr, token: Option<&AdminToken>) -> Result<(), Diagnostic> {
    if token.is_some() {
        return Ok(());
    }
    if address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "there is no admin token (`[serve] allow_no_token`): every user and program of this machine can recreate containers"
        );
        return Ok(());
    }
    let error = Diagnostic::new(format!(
        "will not listen on {address} without an admin token: anybody who reaches it could recreate containers"
    ));
    Err(error
        .hint("unset `[serve] allow_no_token`, and a token is made; or set `ADMIN_TOKEN`, or `[serve] token_file`")
        .hint("or listen on loopback: `--listen 127.0.0.1:8787`"))
}

/// The parts of a daemon.
pub struct Parts {
    pub refresher: Refresher,
    pub approval: Terms,
    pub watching: Option<Watching>,
    pub hooks: Hooks,
    pub notifier: Arc<Notifier>,
    /// The host names under which clients may call it.
    pub hosts: KnownHosts,
    pub token: Option<AdminToken>,
    /// A token for `/metrics` only.
    pub metrics_token: Option<AdminToken>,
}

pub async fn run(
    parts: Parts,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let Parts {
        refresher,
        approval,
        watching,
        hooks,
        notifier,
        hosts,
        token,
        metrics_token,
    } = parts;
    let stopping = CancellationToken::new();
    let history = refresher.history().cloned();
    let work = TaskTracker::new();
    let refresher = Arc::new(refresher);
    let recovered = CancellationToken::new();
    let task_notifier = notifier.clone();
    let on_change = Arc::new(move |now: &[Unfinished], before: &[Unfinished]| {
        task_notifier.notify_all(Outcome::from_unfinished(now, before));
    });
    let reconciler = Arc::new(Reconciler::new(
        refresher.engine_context().clone(),
        on_change,
    ));
    work.spawn(reconciler.clone().run(stopping.clone(), recovered.clone()));
    let metrics = Arc::new(Metrics::default());
    let observers: Vec<Arc<dyn Observer>> =
        vec![metrics.clone(), notifier.clone(), reconciler.clone()];
    let runs = RefreshManager::new(refresher.clone(), observers, work.clone(), stopping.clone());
    let probe = Arc::new(Probe::new(refresher.engine_context().engine.clone()));
    metrics.set_sources(metrics_sources(&runs, &probe, &reconciler));
    let task_notifier = notifier.clone();
    let held: approvals::Observer =
        Arc::new(move |held| task_notifier.notify(Notification::approval_needed(held)));
    let approvals = Approvals::open(approval, Arc::new(runs.clone()), Some(held)).await;
    work.spawn(start_approved_refreshes(
        approvals.clone(),
        recovered.clone(),
        stopping.clone(),
    ));
    let watcher = watching.map(|watching| {
        let (ready, stopping) = (recovered.clone(), stopping.clone());
        let adopt = Arc::new(approvals.dispatcher(Arc::new(runs.clone())));
        let (watcher, watch) = Watcher::new(watching, refresher.clone(), adopt, ready, stopping);
        if !notifier.is_silent() {
            let task_notifier = notifier.clone();
            watcher.set_teller(Arc::new(move |seen| {
                task_notifier.notify_all(Outcome::from_check(seen))
            }));
        }
        work.spawn(watch);
        watcher
    });
    if let Some(watcher) = &watcher {
        metrics.set_watched(watcher_metrics(watcher));
    }
    // If nothing is watched, the queue has no consumer, and the daemon accepts no webhooks.
    let bell = watcher
        .as_ref()
        .map(|watcher| watcher.check_queue().clone());
    let state = AppState {
        refresher,
        runs,
        approvals,
        watcher,
        bell: bell.unwrap_or_default(),
        hooks: Arc::new(hooks),
        hosts: Arc::new(hosts),
        token: token.map(Arc::new),
        metrics_token: metrics_token.map(Arc::new),
        metrics,
        probe,
        work: work.clone(),
        recovered,
        reconciler,
        stopping: stopping.clone(),
    };
    let stop_token = stopping.clone();
    let until = async move {
        shutdown.await;
        tracing::info!("stopping: nothing new is begun, what was begun is finished");
        stop_token.cancel();
    };
    let serving = serve(listener, state, until);
    let drained = async {
        stopping.cancelled().await;
        work.close();
        tokio::time::sleep(DRAIN).await;
    };
    // The server ends after its last response, but a client that never reads its response must not delay that forever.
    tokio::select! {
        ended = serving => ended?,
        () = drained => tracing::warn!("gave up waiting for requests under way"),
    }
    work.close();
    if tokio::time::timeout(DRAIN, work.wait()).await.is_err() {
        tracing::warn!("gave up waiting for refreshes under way");
    }
    if let Some(history) = history {
        history.close(WRITTEN).await;
    }
    notifier.close(TOLD).await;
    Ok(())
}

/// The sources of the metrics, which read them at each scrape.
fn metrics_sources(
    runs: &Arc<RefreshManager>,
    probe: &Arc<Probe>,
    reconciler: &Arc<Reconciler>,
) -> Sources {
    let refresher = runs.refresher();
    let (generations, history) = (
        refresher.generations().clone(),
        refresher.history().cloned(),
    );
    let (runs, probe, reconciler) = (runs.clone(), probe.clone(), reconciler.clone());
    Sources {
        unfinished: Box::new(move || reconciler.abandoned_count()),
        under_way: Box::new(move || runs.under_way().len()),
        policy: Box::new(move || generations.active().policy_report()),
        history_writable: Box::new(move || {
            let history = history.as_ref();
            history.map(|history| history.last_error().is_none())
        }),
        engine_up: Box::new(move || probe.last_known()),
    }
}

/// The metrics of the watcher.
fn watcher_metrics(watcher: &Arc<Watcher>) -> Watched {
    let (images, requests) = (watcher.clone(), watcher.clone());
    Watched {
        images: Box::new(move || {
            let snapshot = images.snapshot();
            let counted = snapshot.last_look.as_ref().map(|_| snapshot.summary);
            counted.map(|it| ImageCounts {
                behind: it.behind,
                current: it.current,
                unknown: it.unknown,
            })
        }),
        registry_requests: Box::new(move || requests.request_counts()),
    }
}

/// Start the approved refreshes that a previous daemon did not start before it died. The recovery runs first.
async fn start_approved_refreshes(
    approvals: Arc<Approvals>,
    recovered: CancellationToken,
    stopping: CancellationToken,
) {
    tokio::select! {
        () = stopping.cancelled() => return,
        () = recovered.cancelled() => {}
    }
    approvals.start_approved(stopping).await;
}
