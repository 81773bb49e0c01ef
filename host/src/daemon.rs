//! The daemon: serves until it is told to stop, then ends what was begun. The socket and the end are arguments.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::approvals::{Approvals, Terms};
use crate::diagnostic::Diagnostic;
use crate::hooks::Hooks;
use crate::refresh::Refresher;
use crate::runs::Runs;
use crate::server::{AdminToken, Served, serve};
use crate::watch::Watcher;
use crate::watch::bell::Bell;
use crate::watch::watcher::Watching;

/// How long a daemon that was told to stop waits for what was begun. A replacement takes its stop timeout, its start and its
/// proof; what is cut off after that is found by its labels later.
const DRAIN: Duration = Duration::from_secs(5 * 60);

/// And then for what is still to be written down of it: twice as long as SQLite waits for another process.
const WRITTEN: Duration = Duration::from_secs(5);

/// Pauses between looks for half-done replacements, where the engine does not answer. They double.
const RECOVER_FIRST: Duration = Duration::from_secs(2);
const RECOVER_MOST: Duration = Duration::from_secs(5 * 60);

/// Without a token nobody beyond this machine may ask.
pub fn may_listen(address: SocketAddr, token: Option<&AdminToken>) -> Result<(), Diagnostic> {
    if token.is_some() || address.ip().is_loopback() {
        return Ok(());
    }
    let error = Diagnostic::new(format!(
        "will not listen on {address} without an admin token: anybody who reaches it could recreate containers"
    ));
    Err(error
        .hint("set `ADMIN_TOKEN`, or `[serve] token_file`")
        .hint("or listen on loopback: `--listen 127.0.0.1:8787`"))
}

/// What a daemon is made of.
pub struct Parts {
    pub refresher: Refresher,
    pub approval: Terms,
    pub watching: Option<Watching>,
    pub hooks: Hooks,
    pub token: Option<AdminToken>,
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
        token,
    } = parts;
    let stopping = CancellationToken::new();
    let history = refresher.history().cloned();
    let work = TaskTracker::new();
    let refresher = Arc::new(refresher);
    let recovered = CancellationToken::new();
    work.spawn(recover(
        refresher.clone(),
        stopping.clone(),
        recovered.clone(),
    ));
    let runs = Runs::new(refresher.clone(), vec![], work.clone(), stopping.clone());
    let approvals = Approvals::open(approval, Arc::new(runs.clone()), None).await;
    work.spawn(begin_the_approved(
        approvals.clone(),
        recovered.clone(),
        stopping.clone(),
    ));
    let watcher = watching.map(|watching| {
        let (ready, stopping) = (recovered.clone(), stopping.clone());
        let adopt = Arc::new(approvals.gate(Arc::new(runs.clone())));
        let (watcher, watch) = Watcher::new(watching, refresher.clone(), adopt, ready, stopping);
        work.spawn(watch);
        watcher
    });
    // Nobody hears it where nothing is watched; then no webhook is taken either.
    let bell = watcher.as_ref().map(|watcher| watcher.bell().clone());
    let served = Served {
        refresher,
        runs,
        approvals,
        watcher,
        bell: bell.unwrap_or_default(),
        hooks: Arc::new(hooks),
        token: token.map(Arc::new),
        work: work.clone(),
        recovered,
        stopping: stopping.clone(),
    };
    let told = stopping.clone();
    let until = async move {
        shutdown.await;
        tracing::info!("stopping: nothing new is begun, what was begun is finished");
        told.cancel();
    };
    let serving = serve(listener, served, until);
    let drained = async {
        stopping.cancelled().await;
        work.close();
        tokio::time::sleep(DRAIN).await;
    };
    // The server ends when its last answer is out; a client that never reads its answer must not keep us for ever.
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
    Ok(())
}

/// What a daemon that died had approved and not begun, once it was looked for what it left half done.
async fn begin_the_approved(
    approvals: Arc<Approvals>,
    recovered: CancellationToken,
    stopping: CancellationToken,
) {
    tokio::select! {
        () = stopping.cancelled() => return,
        () = recovered.cancelled() => {}
    }
    approvals.begin_the_approved(stopping).await;
}

/// Ends what a Refit that was killed left half done. The engine may come later than we do, and each refresh looks again; but
/// nothing should stay half done until somebody asks for one.
async fn recover(
    refresher: Arc<Refresher>,
    stopping: CancellationToken,
    recovered: CancellationToken,
) {
    let mut pause = RECOVER_FIRST;
    loop {
        let looked = refresher.workshop().recover().await;
        recovered.cancel();
        let Err(error) = looked else { return };
        tracing::warn!(
            "cannot look for half-done replacements, and tries again in {} s: {}",
            pause.as_secs(),
            Diagnostic::of(&error).sentence()
        );
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RECOVER_MOST),
        }
    }
}
