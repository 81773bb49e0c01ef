//! The command line: what was typed, which command it means, and the status it ends with.
//!
//! stdout is data, stderr is everything else. The only place that names clap.

mod arguments;
mod commands;
mod display;
mod logging;
pub mod reference;
mod remote;
mod supervisor;
mod table;

use std::process::ExitCode;

use clap::Parser as _;
use refit_model::diagnostic::Diagnostic;

use self::arguments::{Arguments, Command};

/// How `refit` ends. Documented in README.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Done; or nothing was to be done.
    Done,
    /// Some of what was asked for did not come about. The report says what.
    SomeFailed,
    /// It could not run: wrong usage, wrong configuration, no engine, a policy that does not load.
    CouldNotRun,
    /// Only with `--detailed-exitcode`: there is something to do.
    SomethingToDo,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(match status {
            Status::Done => 0,
            Status::SomeFailed => 1,
            Status::CouldNotRun => 2,
            Status::SomethingToDo => 3,
        })
    }
}

/// The program. clap ends it itself, with 2, for a command line that it does not understand.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before there is a thread: it limits itself first of all.
    if let Command::PolicyWorker(arguments) = &arguments.command {
        return run_worker(arguments);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Diagnostic::new("cannot start").because(error.to_string())),
    };
    let outcome = runtime.block_on(run(arguments));
    // A credential helper that hangs must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(status) => status.into(),
        Err(error) => failed(&error),
    }
}

async fn run(arguments: Arguments) -> Result<Status, Diagnostic> {
    let Arguments {
        config,
        engine,
        log,
        log_format,
        command,
    } = arguments;
    let common = commands::Common { config, engine };
    let usual = match command {
        Command::Serve(_) => "refit=info",
        // What the guests of a selftest log and print is part of what they try.
        #[cfg(feature = "compiler")]
        Command::Selftest(_) => "refit=error",
        // Which file was found is said in every run.
        _ => "refit=warn,refit::config::places=info",
    };
    let bars = logging::start(log.as_deref().unwrap_or(usual), log_format)?;
    match command {
        Command::Refresh(arguments) => commands::refresh(common, arguments, bars).await,
        Command::Plan(arguments) => commands::plan(common, arguments, bars).await,
        Command::Serve(arguments) => commands::serve(common, arguments).await,
        Command::Policy(arguments) => commands::policy(common, arguments).await,
        Command::History(arguments) => commands::history(common, arguments),
        Command::Notify(arguments) => commands::notify(common, arguments).await,
        Command::Approvals(arguments) => commands::approvals(common, arguments).await,
        Command::Watch(arguments) => commands::watch(common, arguments).await,
        Command::Recover(arguments) => commands::recover(common, arguments).await,
        Command::Config(arguments) => commands::config(common, arguments),
        Command::Openapi => commands::openapi(),
        Command::Healthcheck(arguments) => commands::healthcheck(common, arguments).await,
        Command::Completions { shell } => commands::completions(shell),
        Command::Man { folder } => commands::man(folder.as_deref()),
        Command::Doctor(arguments) => commands::doctor(common, arguments).await,
        Command::PolicyWorker(arguments) => commands::run_worker(&arguments),
        #[cfg(feature = "compiler")]
        Command::Selftest(arguments) => commands::selftest(arguments).await,
    }
}

fn run_worker(arguments: &arguments::WorkerArguments) -> ExitCode {
    match commands::run_worker(arguments) {
        Ok(status) => status.into(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &Diagnostic) -> ExitCode {
    tell(error);
    Status::CouldNotRun.into()
}

#[expect(
    clippy::print_stderr,
    reason = "the one place that tells a person of a failure"
)]
fn tell(error: &Diagnostic) {
    eprint!("{error}");
}

/// Data for stdout. A reader that went away (`refit plan | head`) is no failure of ours.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
