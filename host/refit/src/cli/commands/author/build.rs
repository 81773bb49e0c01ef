//! `refit policy build`: build the component of a project.

use refit_author::project::Project;
use refit_model::diagnostic::Diagnostic;
use refit_revisions::artifact::file;
use refit_sandbox::{digest, limits};

use super::note;
use crate::cli::arguments::author::BuildArguments;
use crate::cli::{Status, print};

pub(in super::super) async fn build(arguments: BuildArguments) -> Result<Status, Diagnostic> {
    let project = Project::find(&arguments.folder)?;
    let tell = |command: &str| note(&format!("running     {command}\n"));
    project.tools(&tell).await?;
    project.build(&tell).await?;
    let artifact = file::read(&project.component_path(), limits::COMPONENT_BYTES_MAX)?;
    print(&format!(
        "component   {}\nsize        {} bytes\ndigest      {}\n",
        project.component_name().display(),
        artifact.bytes.len(),
        digest(&artifact.bytes)
    ));
    Ok(Status::Done)
}
