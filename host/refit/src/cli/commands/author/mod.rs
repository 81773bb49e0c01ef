//! `refit policy new | build | check | test | bench | dev | diff`: the commands of a policy author. All of them compile or build
//! policies, so a program without a compiler lacks them.

mod bench;
mod build;
mod check;
mod dev;
mod diff;
mod junit;
mod new;
mod test;

use std::path::{Path, PathBuf};

use refit_author::project::Project;
use refit_model::diagnostic::Diagnostic;
use refit_revisions::artifact::Source;
use refit_sandbox::{DEFAULT_POLICY, Metering, Policy, limits};

use crate::cli::Status;
use crate::cli::arguments::author::AuthorCommand;
use crate::cli::commands::isolation;
use crate::config::Config;
use crate::setup;

pub(super) async fn author(config: &Config, command: AuthorCommand) -> Result<Status, Diagnostic> {
    match command {
        AuthorCommand::New(arguments) => new::new(arguments),
        AuthorCommand::Build(arguments) => build::build(arguments).await,
        AuthorCommand::Check(arguments) => check::check(config, arguments).await,
        AuthorCommand::Test(arguments) => test::test(config, arguments).await,
        AuthorCommand::Bench(arguments) => bench::bench(config, arguments).await,
        AuthorCommand::Dev(arguments) => dev::dev(config, arguments).await,
        AuthorCommand::Diff(arguments) => diff::diff(config, arguments).await,
    }
}

/// The argument in place of a component's file.
const BUILT_IN: &str = "built-in";

fn is_built_in(source: &Source) -> bool {
    matches!(source, Source::File(path) if path.as_os_str() == BUILT_IN)
}

/// The component and the scenarios: from the arguments, or from the project in this folder.
fn chosen(
    policy: Option<Source>,
    paths: Vec<PathBuf>,
) -> Result<(Source, Vec<PathBuf>), Diagnostic> {
    let paths = match paths.is_empty() {
        true => vec![Project::find(Path::new("."))?.scenarios()],
        false => paths,
    };
    Ok((component_of(policy)?, paths))
}

fn component_of(source: Option<Source>) -> Result<Source, Diagnostic> {
    match source {
        Some(source) => Ok(source),
        None => built(&Project::find(Path::new("."))?),
    }
}

fn built(project: &Project) -> Result<Source, Diagnostic> {
    let component = project.component_path();
    if component.is_file() {
        // The shortest path from here.
        let here = std::env::current_dir().unwrap_or_default();
        let short = component.strip_prefix(here).unwrap_or(&component);
        return Ok(Source::File(short.to_owned()));
    }
    let error = format!("`{}` is not there", component.display());
    Err(Diagnostic::new(error).hint("`refit policy build` makes it"))
}

#[expect(
    clippy::print_stderr,
    reason = "the one place that tells a person what is under way"
)]
fn note(text: &str) {
    eprint!("{text}");
}

/// Read a component without checking its signature: trying out a policy requires no trust.
async fn component(config: &Config, source: &Source) -> Result<(Vec<u8>, String), Diagnostic> {
    if is_built_in(source) {
        return Ok((DEFAULT_POLICY.to_vec(), "the built-in policy".to_owned()));
    }
    let carrier = setup::carrier(config, setup::credentials(config)?);
    let artifact = carrier.fetch(source, limits::COMPONENT_BYTES_MAX).await?;
    Ok((artifact.bytes, artifact.origin))
}

async fn load(
    config: &Config,
    component: &(Vec<u8>, String),
    metering: Metering,
) -> Result<Policy, Diagnostic> {
    let engine = match metering {
        Metering::Off => setup::policy_engine(config, isolation(config))?,
        Metering::Instructions => setup::metering_engine(config, isolation(config))?,
    };
    let (bytes, origin) = component.clone();
    Ok(engine.load(bytes, &origin).await?)
}
