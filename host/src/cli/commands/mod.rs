//! What each command does: configuration, one call of the library, an answer.

mod doctor;
mod selftest;

use std::path::PathBuf;

use indicatif::MultiProgress;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::arguments::{
    ConfigArguments, ConfigCommand, PlanArguments, RecoverArguments, RefreshArguments,
    SelectionArguments, ServeArguments,
};
use super::{Status, display, print, table};
use crate::config::{self, Flags, LimitsFlags, Loaded, PolicyFlags, ServeFlags};
use crate::daemon;
use crate::diagnostic::Diagnostic;
use crate::recreate::recover::Outcome;
use crate::refresh::{Mode, Report, Request, Trigger};
use crate::secret::SecretString;
use crate::server::AdminToken;
use crate::setup;

pub(super) use self::doctor::doctor;
pub(super) use self::selftest::selftest;

/// What every command takes.
pub(super) struct Common {
    pub(super) config: Option<PathBuf>,
    pub(super) engine: Option<String>,
}

impl Common {
    fn load(self, flags: Flags) -> Result<Loaded, Diagnostic> {
        let flags = Flags {
            engine: self.engine,
            ..flags
        };
        Ok(config::load(self.config.as_deref(), &flags)?)
    }
}

pub(super) async fn refresh(
    common: Common,
    arguments: RefreshArguments,
    bars: MultiProgress,
) -> Result<Status, Diagnostic> {
    let json = arguments.selection.json;
    let report = run(common, arguments.selection, Mode::Refresh, bars).await?;
    show(&report, json)?;
    Ok(if report.has_failures() {
        Status::SomeFailed
    } else {
        Status::Done
    })
}

pub(super) async fn plan(
    common: Common,
    arguments: PlanArguments,
    bars: MultiProgress,
) -> Result<Status, Diagnostic> {
    let json = arguments.selection.json;
    let report = run(common, arguments.selection, Mode::Plan, bars).await?;
    show(&report, json)?;
    Ok(match report {
        report if report.has_failures() => Status::SomeFailed,
        report if report.has_work() && arguments.detailed_exitcode => Status::SomethingToDo,
        _ => Status::Done,
    })
}

async fn run(
    common: Common,
    selection: SelectionArguments,
    mode: Mode,
    bars: MultiProgress,
) -> Result<Report, Diagnostic> {
    let flags = Flags {
        policy: selection.policy.map(|component| PolicyFlags { component }),
        limits: selection
            .concurrency
            .map(|recreate_concurrency| LimitsFlags {
                recreate_concurrency,
            }),
        ..Flags::default()
    };
    let loaded = common.load(flags)?;
    let refresher = setup::refresher(&loaded.config).await?;
    let request = Request {
        trigger: Trigger::Operator,
        targets: selection.runtimes,
        images: vec![],
        recreate: !selection.no_recreate,
        force: selection.force,
    };
    let cancel = CancellationToken::new();
    let told = cancel.clone();
    tokio::spawn(async move {
        shutdown_signal().await;
        tracing::warn!(
            "ending: what was begun is finished, nothing new is begun; a second signal ends at once"
        );
        told.cancel();
        shutdown_signal().await;
        std::process::exit(130);
    });
    Ok(refresher
        .run(&request, mode, display::events(bars), cancel)
        .await?)
}

fn show(report: &Report, json: bool) -> Result<(), Diagnostic> {
    if !json {
        print(&table::report(report));
        return Ok(());
    }
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Diagnostic::new("cannot write the report").because(error.to_string()))?;
    print(&(text + "\n"));
    Ok(())
}

pub(super) async fn serve(common: Common, arguments: ServeArguments) -> Result<Status, Diagnostic> {
    let flags = Flags {
        policy: arguments.policy.map(|component| PolicyFlags { component }),
        serve: arguments.listen.map(|listen| ServeFlags { listen }),
        ..Flags::default()
    };
    let config = common.load(flags)?.config;
    let variable = std::env::var("ADMIN_TOKEN").ok().map(SecretString::from);
    let token = AdminToken::find(variable, config.serve.token_file.as_deref())?;
    daemon::may_listen(config.serve.listen, token.as_ref())?;
    let refresher = setup::refresher(&config).await?;
    if let Err(error) = refresher.workshop().recover().await {
        // The engine may come later than we do; each refresh looks again.
        tracing::warn!(
            "cannot look for half-done replacements: {}",
            Diagnostic::of(&error).sentence()
        );
    }
    let cannot = |error: std::io::Error| {
        Diagnostic::new(format!("cannot listen on {}", config.serve.listen))
            .because(error.to_string())
    };
    let listener = TcpListener::bind(config.serve.listen)
        .await
        .map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    let active = refresher.active();
    tracing::info!(%address, policy = active.policy.title(), digest = active.policy.digest, token = token.is_some(), "serving");
    drop(active);
    daemon::run(refresher, token, listener, shutdown_signal())
        .await
        .map_err(|error| Diagnostic::new("cannot serve").because(error.to_string()))?;
    Ok(Status::Done)
}

pub(super) async fn recover(
    common: Common,
    arguments: RecoverArguments,
) -> Result<Status, Diagnostic> {
    let config = common.load(Flags::default())?.config;
    let recovered = setup::workshop(&config)?.recover().await?;
    if arguments.json {
        print(&(serde_json::to_string_pretty(&recovered).unwrap_or_default() + "\n"));
    } else if recovered.is_empty() {
        print("nothing to recover\n");
    } else {
        print(&table::recovered(&recovered));
    }
    let stranded = recovered.iter().any(|one| one.outcome == Outcome::Stranded);
    Ok(if stranded {
        Status::SomeFailed
    } else {
        Status::Done
    })
}

pub(super) fn config(common: Common, arguments: ConfigArguments) -> Result<Status, Diagnostic> {
    let ConfigCommand::Show { json } = arguments.command;
    let settings = common.load(Flags::default())?.settings()?;
    if json {
        let text = serde_json::to_string_pretty(&settings).unwrap_or_default();
        print(&(text + "\n"));
        return Ok(Status::Done);
    }
    let width = settings
        .iter()
        .map(|setting| setting.key.len())
        .max()
        .unwrap_or_default();
    for setting in settings {
        let value = if setting.value.is_null() {
            "(unset)".to_owned()
        } else {
            setting.value.to_string()
        };
        print(&format!(
            "{:<width$} = {value}  # {}\n",
            setting.key, setting.from
        ));
    }
    Ok(Status::Done)
}

/// Ctrl-C or SIGTERM.
async fn shutdown_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
