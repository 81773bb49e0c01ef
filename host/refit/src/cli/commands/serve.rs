//! `refit serve`: run the daemon, and reload its policy on signals and file changes.

use std::sync::Arc;

use refit_model::diagnostic::Diagnostic;
use refit_revisions::start::Persistence;
use refit_revisions::swap::ConfiguredPolicy;
use refit_revisions::{Generations, watch};
use refit_server::{AdminToken, KnownHosts};

use super::super::Status;
use super::super::arguments::ServeArguments;
use super::super::supervisor::Supervisor;
use super::{Common, isolation, shutdown_signal};
use crate::config::{Config, Flags, PolicyFlags, ServeFlags};
use crate::daemon;
use crate::setup;

pub(in super::super) async fn serve(
    common: Common,
    arguments: ServeArguments,
) -> Result<Status, Diagnostic> {
    let flags = Flags {
        policy: arguments.policy.map(|component| PolicyFlags { component }),
        serve: arguments.listen.map(|listen| ServeFlags { listen }),
        ..Flags::default()
    };
    // Set up the handler before any long work: without it the signal ends the process.
    let reloads = reload_signals();
    let loaded = common.clone().load(flags.clone())?;
    let file = loaded
        .file
        .as_deref()
        .map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    let config = loaded.config;
    setup::check_state_folder(&config)?;
    let token = AdminToken::load(
        config.serve.token_file.as_deref(),
        &config.state_folder(),
        config.serve.allow_no_token,
    )?;
    let metrics_token = AdminToken::load_metrics_token(config.metrics.token_file.as_deref())?;
    daemon::may_listen(config.serve.listen, token.as_ref())?;
    let hooks = setup::hooks(&config)?;
    let notifier = setup::notifier(&config)?;
    let refresher = setup::refresher(&config, isolation(&config), Persistence::Generations).await?;
    let refresher = refresher.with_history(setup::history(&config, None));
    let watching = setup::watching(&config, refresher.engine_context(), !hooks.is_empty())?;
    refresher.generations().save().await;
    let cannot = |error: std::io::Error| {
        Diagnostic::new(format!("cannot listen on {}", config.serve.listen))
            .because(error.to_string())
    };
    let listener = refit_server::listen(config.serve.listen).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    // These end with the process: a swap is either recorded at that moment, or did not happen.
    let (followed, follow) = tokio::sync::watch::channel(followed_file(&config));
    let generations = refresher.generations();
    tokio::spawn(watch::follow(generations.clone(), follow));
    tokio::spawn(reload(
        reloads,
        generations.clone(),
        followed,
        common,
        flags,
    ));
    let supervisor = Supervisor::connect();
    let (signal, stopping) = (shutdown_signal(), supervisor.clone());
    let shutdown = async move {
        signal.await;
        stopping.report_stopping();
    };
    let active = refresher.active();
    tracing::info!(%address, config = file, generation = active.number, policy = active.policy().title(), digest = active.policy().digest, token = token.is_some(), "serving");
    drop(active);
    tokio::spawn(supervisor.clone().report_alive());
    // From here on the socket accepts connections.
    supervisor.report_ready();
    let parts = daemon::Parts {
        refresher,
        approval: setup::approval(&config),
        watching,
        hooks,
        notifier,
        hosts: KnownHosts::new(address, &config.serve.hosts),
        token,
        metrics_token,
    };
    daemon::run(parts, listener, shutdown)
        .await
        .map_err(|error| Diagnostic::new("cannot serve").because(error.to_string()))?;
    Ok(Status::Done)
}

/// The configured policy that the watcher follows now.
type Followed = tokio::sync::watch::Sender<Option<ConfiguredPolicy>>;

fn followed_file(config: &Config) -> Option<ConfiguredPolicy> {
    config
        .policy
        .watch
        .then(|| setup::configured_policy(config))
}

#[cfg(unix)]
type Reloads = Option<tokio::signal::unix::Signal>;

#[cfg(unix)]
fn reload_signals() -> Reloads {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::hangup())
        .inspect_err(|error| tracing::warn!("SIGHUP will end the daemon: {error}"))
        .ok()
}

/// At each SIGHUP, reload the configuration, and swap in its policy if it has changed. The rest of the configuration applies after
/// the next start.
#[cfg(unix)]
async fn reload(
    reloads: Reloads,
    generations: Arc<Generations>,
    followed: Followed,
    common: Common,
    flags: Flags,
) {
    let Some(mut reloads) = reloads else { return };
    while reloads.recv().await.is_some() {
        let config = match common.clone().load(flags.clone()) {
            Ok(loaded) => loaded.config,
            Err(error) => {
                tracing::error!(
                    hints = ?error.hints,
                    "{}; {} is still in use",
                    error.sentence(),
                    generations.active().title()
                );
                continue;
            }
        };
        followed.send_replace(followed_file(&config));
        // A failed reload has logged its error.
        if let Ok(None) = generations
            .reload(setup::configured_policy(&config), "SIGHUP")
            .await
        {
            tracing::info!(
                "the configuration was read again, and asks for the same policy as before; {} stays in use",
                generations.active().title()
            );
        }
    }
}

#[cfg(not(unix))]
type Reloads = ();

#[cfg(not(unix))]
fn reload_signals() -> Reloads {}

#[cfg(not(unix))]
async fn reload((): Reloads, _: Arc<Generations>, _: Followed, _: Common, _: Flags) {}
