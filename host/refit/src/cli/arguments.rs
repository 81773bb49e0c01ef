//! The command-line arguments, types only.

#[cfg(feature = "compiler")]
pub(super) mod author;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use refit_model::image::ImageRef;
use refit_revisions::artifact::{ArtifactRef, Source, parse_reference};
use refit_sandbox::WORKER_SUBCOMMAND;
use refit_service::approvals;

/// Gives running containers a new image under a policy
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 done, 1 some of it failed, 2 could not run, 3 (with --detailed-exitcode) there is something to do."
)]
pub(super) struct Arguments {
    /// Configuration file [default: refit/refit.toml in $XDG_CONFIG_HOME or ~/.config, then /etc/refit/refit.toml]
    // An empty variable counts as unset, which clap's own parser for paths refuses.
    #[arg(long, global = true, value_name = "FILE", env = "REFIT_CONFIG", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub(super) config: Option<PathBuf>,
    /// Address of the container engine, over DOCKER_HOST and the Docker CLI's context
    #[arg(long, global = true, value_name = "URL")]
    pub(super) engine: Option<String>,
    /// What to log on stderr: error, warn, info, debug, or a filter such as refit=debug
    #[arg(long, global = true, value_name = "LEVEL", env = "REFIT_LOG")]
    pub(super) log: Option<String>,
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(super) log_format: LogFormat,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The commands for users. clap's generators would show hidden commands as well.
pub(super) fn visible() -> clap::Command {
    use clap::CommandFactory as _;
    let whole = Arguments::command();
    let commands = whole.get_subcommands().filter(|it| !it.is_hide_set());
    clap::Command::new("refit")
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_help(whole.get_after_help().cloned().unwrap_or_default())
        .subcommand_required(true)
        .max_term_width(100)
        .args(whole.get_arguments())
        .subcommands(commands.cloned())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Pull the images and recreate the containers that are behind, now; needs no daemon
    Refresh(RefreshArguments),
    /// Say what a refresh would do, and why; changes nothing and pulls nothing
    Plan(PlanArguments),
    /// Serve the HTTP interface until told to stop
    Serve(ServeArguments),
    /// Write policies, look at them, swap the one that a daemon uses, go back to the one before
    Policy(PolicyArguments),
    /// What became of the refreshes on this machine, the newest first; needs no daemon
    History(HistoryArguments),
    /// Those who are told what came of refreshes
    Notify(NotifyArguments),
    /// Refreshes that a daemon holds until somebody approves them
    Approvals(ApprovalsArguments),
    /// What a daemon's watcher knows of new images; pause it, resume it, have it look now
    Watch(WatchArguments),
    /// Finish or undo replacements that a Refit which was killed left half done
    Recover(RecoverArguments),
    /// Show the configuration
    Config(ConfigArguments),
    /// Print the description of the HTTP interface (OpenAPI 3.1, JSON); needs no daemon
    Openapi,
    /// Check the engine, the logins, the policy and its grants
    Doctor(DoctorArguments),
    /// Ask a daemon whether it is alive, with status 0 where it is: for a container's health check
    Healthcheck(HealthcheckArguments),
    /// Run hostile policies, and see that each is held to its limits; needs no engine and changes nothing
    #[cfg(feature = "compiler")]
    Selftest(author::SelftestArguments),
    /// Print what makes a shell complete the commands and flags of this program
    Completions { shell: Shell },
    /// Print the manual page of this program, or write those of all commands to a folder
    Man {
        /// A folder that is there
        #[arg(value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
    /// Examine or compile a component from stdin, for the process that started this one
    #[command(name = WORKER_SUBCOMMAND, hide = true)]
    PolicyWorker(WorkerArguments),
}

#[derive(Debug, Args)]
pub(super) struct WorkerArguments {
    pub(super) job: WorkerJob,
    #[arg(long)]
    pub(super) cpu_seconds: u64,
    #[arg(long)]
    pub(super) memory_bytes: u64,
    /// Compile for an engine that counts instructions
    #[arg(long)]
    pub(super) metering: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum WorkerJob {
    Examine,
    Compile,
}

#[derive(Debug, Args)]
pub(super) struct SelectionArguments {
    /// Only this runtime (or whatever the policy calls its targets); may be repeated
    #[arg(long = "runtime", alias = "target", value_name = "RUNTIME")]
    pub(super) runtimes: Vec<String>,
    /// Only pull; recreate no container
    #[arg(long)]
    pub(super) no_recreate: bool,
    /// Recreate also what is up to date
    #[arg(long, conflicts_with = "no_recreate")]
    pub(super) force: bool,
    /// A policy component, over the configured one
    #[arg(long, value_name = "FILE|oci://…")]
    pub(super) policy: Option<Source>,
    /// How many containers are recreated at once
    #[arg(long, value_name = "N")]
    pub(super) concurrency: Option<usize>,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RefreshArguments {
    #[command(flatten)]
    pub(super) selection: SelectionArguments,
}

#[derive(Debug, Args)]
pub(super) struct PlanArguments {
    #[command(flatten)]
    pub(super) selection: SelectionArguments,
    /// Exit with 3 if there is something to do
    #[arg(long)]
    pub(super) detailed_exitcode: bool,
    /// Plan over what `refit policy record` wrote, without an engine
    #[arg(long, value_name = "FILE")]
    pub(super) snapshot: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    /// Address to listen on [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
    /// A policy component, over the configured one
    #[arg(long, value_name = "FILE|oci://…")]
    pub(super) policy: Option<Source>,
}

#[derive(Debug, Args)]
#[cfg_attr(
    not(feature = "compiler"),
    command(
        after_help = "This build has no compiler. What is for those who write policies (new, build, check, test, bench, dev, diff) is in the program `refit`."
    )
)]
pub(super) struct PolicyArguments {
    #[command(subcommand)]
    pub(super) command: PolicyCommand,
}

#[derive(Debug, Args)]
pub(super) struct ServerArguments {
    /// Address of the daemon [default: `[serve] listen`]; the token is taken from ADMIN_TOKEN or `[serve] token_file`
    #[arg(long, value_name = "URL")]
    pub(super) server: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    #[cfg(feature = "compiler")]
    #[command(flatten)]
    Author(author::AuthorCommand),
    /// Put this component in the place of the policy that a running daemon uses
    Swap {
        /// A file, sent with the `.minisig` beside it; or what the daemon is to fetch, with its own logins
        #[arg(value_name = "FILE|oci://…")]
        source: Source,
        /// Its configuration: a JSON object, or a file that holds one [default: the one in force]
        #[arg(long, value_name = "JSON|FILE")]
        policy_config: Option<String>,
        /// Only if this generation is active
        #[arg(long, value_name = "N")]
        expect: Option<u64>,
        /// Try it out beside the active policy, and swap it in when it has agreed this often in a row; 0: only try it out
        #[arg(long, value_name = "N")]
        shadow: Option<u32>,
        /// Also a signed policy of which a newer version was active before
        #[arg(long)]
        allow_older: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// What came of the candidate that a daemon tries out
    Shadow {
        /// End the trial
        #[arg(long)]
        end: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Print the contract between this host and its policies: `policy.wit`
    Wit,
    /// Write down what the policy can see on the engine now, for `diff` and `refit plan --snapshot`
    Record(RecordArguments),
    /// Put the policy that was active before back in its place, with its configuration
    Rollback {
        /// Only if this generation is active
        #[arg(long, value_name = "N")]
        expect: Option<u64>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// The policies that a daemon used, the newest first
    History {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Load a component as a swap would, and put it into a registry, with the `.minisig` beside it
    Push {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[arg(value_name = "oci://…", value_parser = parse_reference)]
        reference: ArtifactRef,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Get a component and its signature from a registry
    Pull {
        #[arg(value_name = "oci://…", value_parser = parse_reference)]
        reference: ArtifactRef,
        /// Where to [default: the last part of its repository, with `.wasm`]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Write over what is there
        #[arg(long)]
        force: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// What a component is, who signed it and what it may ask for; without one, the one that a daemon uses
    Inspect {
        #[arg(value_name = "FILE|oci://…")]
        source: Option<Source>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
}

#[derive(Debug, Args)]
pub(super) struct RecordArguments {
    /// Where to write it [default: stdout]
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// A policy component, over the configured one
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<Source>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct HistoryArguments {
    #[command(subcommand)]
    pub(super) command: Option<HistoryCommand>,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(refit_history::LIMIT_MAX)))]
    pub(super) limit: u32,
    /// Only older ones than this
    #[arg(long, value_name = "ID")]
    pub(super) before: Option<refit_history::Id>,
    /// Only those that decided about this container, and what became of it
    #[arg(long, value_name = "NAME")]
    pub(super) container: Option<String>,
    /// Only those that pulled this image, or tried to
    #[arg(long, value_name = "REF")]
    pub(super) image: Option<ImageRef>,
    /// Only those with this outcome: running, done, some-failed, cancelled, failed or interrupted
    #[arg(long, value_name = "OUTCOME")]
    pub(super) outcome: Option<refit_history::Outcome>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum HistoryCommand {
    /// One refresh: who asked, under which policy, what was decided and done, and why
    Show {
        id: refit_history::Id,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct NotifyArguments {
    #[command(subcommand)]
    pub(super) command: NotifyCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum NotifyCommand {
    /// Send a test message to each sink of the configuration, and say what it answered
    Test {
        /// Only to this one
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct ApprovalsArguments {
    #[command(subcommand)]
    pub(super) command: ApprovalsCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ApprovalsCommand {
    /// Those that there are, the newest first
    List {
        /// Only those that are waiting, approved, rejected, expired or superseded
        #[arg(long, value_name = "STATE")]
        state: Option<approvals::State>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// One of them: who asked for what, and what it would do
    Show {
        id: approvals::Id,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Ask for a refresh that somebody else approves: the daemon plans it, and holds it where there is something to do
    Request {
        /// Only this runtime (or whatever the policy calls its targets); may be repeated
        #[arg(long = "runtime", alias = "target", value_name = "RUNTIME")]
        runtimes: Vec<String>,
        /// Only pull; recreate no container
        #[arg(long)]
        no_recreate: bool,
        /// Recreate also what is up to date
        #[arg(long, conflicts_with = "no_recreate")]
        force: bool,
        #[command(flatten)]
        by: ByArguments,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Let it begin: what it would do, and no more
    Approve {
        id: approvals::Id,
        #[command(flatten)]
        by: ByArguments,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Never let it begin; the same images are not proposed again
    Reject {
        id: approvals::Id,
        /// Why, for those who look back
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        by: ByArguments,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
}

#[derive(Debug, Args)]
pub(super) struct ByArguments {
    /// Who asks, for those who look back [default: the user's name]
    #[arg(long, value_name = "NAME")]
    pub(super) by: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RecoverArguments {
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ConfigArguments {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every value that is in force, and where it came from
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of `refit.toml`, for editors; reads no configuration
    Schema,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// A policy component, over the configured one
    #[arg(long, value_name = "FILE|oci://…")]
    pub(super) policy: Option<Source>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct HealthcheckArguments {
    /// Whether a refresh would find what it needs, too: an engine that answers, and nothing half done from before
    #[arg(long)]
    pub(super) ready: bool,
    /// Address of the daemon [default: `[serve] listen`]
    #[arg(long, value_name = "URL")]
    pub(super) server: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct WatchArguments {
    #[command(subcommand)]
    pub(super) command: WatchCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum WatchCommand {
    /// Each image that is watched: current, behind or unknown, and what it waits for
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Adopt nothing until it is resumed, over restarts too; looks go on
    Pause {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Adopt what is found again
    Resume {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Look now, also at what failed a moment ago, and say what was found
    Check {
        /// Only these images, by registry and repository [default: all]
        #[arg(value_name = "REF")]
        images: Vec<ImageRef>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArguments,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
