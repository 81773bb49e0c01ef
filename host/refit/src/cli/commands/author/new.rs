//! `refit policy new`: create a new project.

use std::path::Path;

use refit_author::template::{self, Language};
use refit_model::diagnostic::Diagnostic;

use super::super::super::{Status, print};
use crate::cli::arguments::author::NewArguments;

pub(in super::super) fn new(arguments: NewArguments) -> Result<Status, Diagnostic> {
    let NewArguments { lang, name, path } = arguments;
    let folder = path.unwrap_or_else(|| name.to_string().into());
    let language = Language::from(lang);
    template::make(language, &name, &folder)?;
    let is_here = folder == Path::new(".");
    let mut text =
        format!("{name}, a policy in {language}. It is built, tested and swapped in by\n\n");
    if !is_here {
        text += &format!("  cd {}\n", folder.display());
    }
    text += &format!(
        "  refit policy build\n  refit policy test\n  refit policy swap build/{name}.wasm\n\n{} says what to edit, and what comes next\n",
        folder.join("README.md").display()
    );
    print(&text);
    Ok(Status::Done)
}
