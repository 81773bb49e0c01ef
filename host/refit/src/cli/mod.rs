//! The command line: it parses the arguments, runs the command, and returns the exit status.
//!
//! stdout is for data, stderr for everything else. Only this module and its submodules use clap.

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

/// The exit status of `refit`, as README.md documents it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The command has succeeded, or there was nothing to do.
    Done,
    /// Some of the requested work failed. The report has the details.
    SomeFailed,
    /// The command could not run: wrong usage, wrong configuration, no engine, a policy that does not load.
    CouldNotRun,
    /// With `--detailed-exitcode` only: there is something to do.
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

/// Run the program. clap ends the process itself, with 2, if the command line is invalid.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // This comes before any thread exists, because the worker restricts itself first.
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
    // A hanging credential helper must not block the exit.
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
        // The guests' log and output are part of the test.
        #[cfg(feature = "compiler")]
        Command::Selftest(_) => "refit=error",
        // Every run logs which file was found.
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

/// Print data to stdout. A closed reader (`refit plan | head`) is no error.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
