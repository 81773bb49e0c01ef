//! `refit policy build`: a project's component.

use refit_model::diagnostic::Diagnostic;

use super::note;
use crate::artifact::file;
use crate::author::project::Project;
use crate::cli::arguments::author::BuildArguments;
use crate::cli::{Status, print};
use crate::policy::{digest, limits};

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
