//! The arguments of commands that compile or build policies, which need a compiler: those for policy authors, and the selftest.
//! Types only.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use refit_author::template;
use refit_revisions::artifact::Source;

use super::ServerArguments;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum AuthorCommand {
    /// Make a project to write a policy in: one that builds, is tested, and can be swapped in
    New(NewArguments),
    /// Build a project's component, with the tools that its policy.toml asks for
    Build(BuildArguments),
    /// Look at a component as a swap would, and say of each thing whether it passes; swaps nothing
    Check(CheckArguments),
    /// Run a policy over scenarios: an engine as it might be, and what is expected; needs no engine and no daemon
    Test(TestArguments),
    /// Count what a policy's decisions cost: instructions, memory, calls of the host, time; needs no engine and no daemon
    Bench(BenchArguments),
    /// Build, check, test and try out beside a daemon's policy, each time that a source of the project changes
    Dev(DevArguments),
    /// Compare what two policies decide over recorded snapshots; needs no engine and no daemon
    Diff(DiffArguments),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NewArguments {
    #[arg(long, value_name = "LANGUAGE")]
    pub(in crate::cli) lang: Language,
    /// What the policy is called: lower case letters, digits and hyphens
    #[arg(value_name = "NAME")]
    pub(in crate::cli) name: template::Name,
    /// The project's folder, empty or not there yet [default: NAME]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum Language {
    Rust,
    Python,
    #[value(name = "javascript")]
    JavaScript,
}

impl From<Language> for template::Language {
    fn from(language: Language) -> Self {
        match language {
            Language::Rust => Self::Rust,
            Language::Python => Self::Python,
            Language::JavaScript => Self::JavaScript,
        }
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BuildArguments {
    /// A folder of the project
    #[arg(value_name = "DIR", default_value = ".")]
    pub(in crate::cli) folder: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArguments {
    /// A component, or `built-in` [default: what the project builds]
    #[arg(value_name = "FILE|oci://…")]
    pub(in crate::cli) source: Option<Source>,
    /// The configuration that it is to accept: a JSON object, or a file that holds one [default: `[policy.config]`]
    #[arg(long, value_name = "JSON|FILE")]
    pub(in crate::cli) policy_config: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct TestArguments {
    /// Scenarios, or folders that hold some [default: the project's, as its policy.toml says]
    #[arg(value_name = "FILE|FOLDER")]
    pub(in crate::cli) paths: Vec<PathBuf>,
    /// A component, or `built-in` [default: what the project builds]
    #[arg(long, value_name = "FILE|oci://…")]
    pub(in crate::cli) policy: Option<Source>,
    /// Write a report for a CI that reads JUnit's XML
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) junit: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BenchArguments {
    /// Scenarios, folders that hold some, or snapshots (.json) [default: the project's scenarios]
    #[arg(value_name = "FILE|FOLDER")]
    pub(in crate::cli) paths: Vec<PathBuf>,
    /// A component, or `built-in` [default: what the project builds]
    #[arg(long, value_name = "FILE|oci://…")]
    pub(in crate::cli) policy: Option<Source>,
    /// Its configuration over a snapshot: a JSON object, or a file that holds one [default: `[policy.config]`]
    #[arg(long, value_name = "JSON|FILE")]
    pub(in crate::cli) policy_config: Option<String>,
    /// How often each is timed
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(in crate::cli) runs: u32,
    /// Compare with what was saved here, and end with 1 where something grew beyond the threshold
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) baseline: Option<PathBuf>,
    /// By how much instructions, memory and calls of the host may grow. Times are not compared: they are the machine's
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0)]
    pub(in crate::cli) threshold: f64,
    /// Write what was counted, as a baseline
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) save: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DevArguments {
    /// A folder of the project
    #[arg(value_name = "DIR", default_value = ".")]
    pub(in crate::cli) folder: PathBuf,
    /// The candidate's configuration: a JSON object, or a file that holds one [default: the one in force]
    #[arg(long, value_name = "JSON|FILE")]
    pub(in crate::cli) policy_config: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) server: ServerArguments,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DiffArguments {
    /// A component, or `built-in`
    #[arg(value_name = "OLD")]
    pub(in crate::cli) old: Source,
    /// A component, or `built-in`
    #[arg(value_name = "NEW")]
    pub(in crate::cli) new: Source,
    /// What `refit policy record` wrote; may be repeated
    #[arg(long = "snapshot", value_name = "FILE", required = true)]
    pub(in crate::cli) snapshots: Vec<PathBuf>,
    /// Another configuration for NEW: a JSON object, or a file that holds one [default: `[policy.config]`, for both]
    #[arg(long, value_name = "JSON|FILE")]
    pub(in crate::cli) policy_config: Option<String>,
    /// Ask for containers to be recreated that are up to date, too
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Exit with 3 if they differ
    #[arg(long)]
    pub(in crate::cli) detailed_exitcode: bool,
    /// As JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SelftestArguments {
    /// As JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}
