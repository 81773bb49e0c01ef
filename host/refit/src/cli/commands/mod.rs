//! The commands. Each loads the configuration, calls the library once, and prints the answer.

mod approvals;
#[cfg(feature = "compiler")]
mod author;
mod companions;
mod compare;
mod doctor;
mod healthcheck;
mod history;
mod notify;
mod policy;
#[cfg(feature = "compiler")]
mod selftest;
mod serve;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use indicatif::MultiProgress;
use refit_capabilities::snapshot::Snapshot;
use refit_model::diagnostic::Diagnostic;
use refit_model::report::Report;
use refit_model::request::{Mode, Request, Trigger};
use refit_recreate::recover::Recovered;
use refit_revisions::start::Persistence;
use refit_sandbox::{Isolation, Job, Metering, WorkerLimits};
use tokio_util::sync::CancellationToken;

use super::arguments::{
    ConfigArguments, ConfigCommand, PlanArguments, RecoverArguments, RefreshArguments,
    SelectionArguments, WorkerArguments, WorkerJob,
};
use super::{Status, display, print, table};
use crate::config::{self, Config, Flags, LimitsFlags, Loaded, PolicyFlags};
use crate::setup;

pub(super) use self::approvals::approvals;
pub(super) use self::companions::{completions, man};
pub(super) use self::doctor::doctor;
pub(super) use self::healthcheck::healthcheck;
pub(super) use self::history::history;
pub(super) use self::notify::notify;
pub(super) use self::policy::policy;
#[cfg(feature = "compiler")]
pub(super) use self::selftest::selftest;
pub(super) use self::serve::serve;
pub(super) use self::watch::watch;

/// How long a finished refresh waits for its history entry if the disk hangs.
const WRITTEN: Duration = Duration::from_secs(5);

/// The input of every command.
#[derive(Clone)]
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
    let report = run(common, arguments.selection, Mode::Refresh, None, bars).await?;
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
    let snapshot = arguments.snapshot.as_deref().map(Snapshot::load);
    let snapshot = snapshot.transpose()?;
    let report = run(common, arguments.selection, Mode::Plan, snapshot, bars).await?;
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
    snapshot: Option<Snapshot>,
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
    let mut refresher = setup::refresher(
        &loaded.config,
        isolation(&loaded.config),
        Persistence::Nothing,
    )
    .await?;
    if let Some(snapshot) = snapshot {
        refresher = refresher.with_snapshot(snapshot);
    }
    let history = match mode {
        Mode::Refresh => setup::history(&loaded.config, Some(policy::caller())),
        Mode::Plan => None,
    };
    refresher = refresher.with_history(history.clone());
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
        #[expect(clippy::disallowed_methods, reason = "the user does not want to wait")]
        std::process::exit(130);
    });
    let answer = refresher
        .run(&request, mode, display::events(bars), cancel)
        .await;
    if let Some(history) = history {
        history.close(WRITTEN).await;
    }
    Ok(answer?)
}

fn show(report: &Report, json: bool) -> Result<(), Diagnostic> {
    if !json {
        print(&table::format_report(report));
        return Ok(());
    }
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Diagnostic::new("cannot write the report").because(error.to_string()))?;
    print(&(text + "\n"));
    Ok(())
}

pub(super) async fn recover(
    common: Common,
    arguments: RecoverArguments,
) -> Result<Status, Diagnostic> {
    let config = common.load(Flags::default())?.config;
    let recovered = setup::engine_context(&config)?.recover().await?;
    if arguments.json {
        print(&(serde_json::to_string_pretty(&recovered).unwrap_or_default() + "\n"));
    } else if recovered.is_empty() {
        print("nothing to recover\n");
    } else {
        print(&table::recovered_lines(&recovered));
    }
    Ok(if recovered.iter().any(Recovered::is_abandoned) {
        Status::SomeFailed
    } else {
        Status::Done
    })
}

pub(super) fn config(common: Common, arguments: ConfigArguments) -> Result<Status, Diagnostic> {
    let json = match arguments.command {
        ConfigCommand::Show { json } => json,
        ConfigCommand::Schema => {
            print(&config::schema::text());
            return Ok(Status::Done);
        }
    };
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

pub(super) fn openapi() -> Result<Status, Diagnostic> {
    let text = serde_json::to_string_pretty(&refit_server::document())
        .map_err(|error| Diagnostic::new("cannot write the document").because(error.to_string()))?;
    print(&(text + "\n"));
    Ok(Status::Done)
}

/// Examine and compile untrusted components in a separate process of this program.
fn isolation(config: &Config) -> Isolation {
    Isolation::this_program(config.worker_limits())
}

/// Run the task of that process.
pub(super) fn run_worker(arguments: &WorkerArguments) -> Result<Status, Diagnostic> {
    let limits = WorkerLimits {
        computing: Duration::from_secs(arguments.cpu_seconds),
        memory_bytes: arguments.memory_bytes,
    };
    let job = match arguments.job {
        WorkerJob::Examine => Job::Examine,
        WorkerJob::Compile if arguments.metering => Job::Compile(Metering::Instructions),
        WorkerJob::Compile => Job::Compile(Metering::Off),
    };
    match refit_sandbox::run_worker(job, limits) {
        Ok(()) => Ok(Status::Done),
        Err(error) => Err(Diagnostic::new("the worker failed").because(error.to_string())),
    }
}

/// A future that completes at Ctrl-C or SIGTERM. It listens from this call on, not from the first poll, so that a daemon can be
/// stopped as soon as it has reported that it serves.
fn shutdown_signal() -> impl Future<Output = ()> + Send + 'static {
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).ok()
    };
    async move {
        #[cfg(unix)]
        if let Some(terminate) = &mut terminate {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}
