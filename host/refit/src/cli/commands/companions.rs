//! Generates shell completions and manual pages for installations, from the types that parse the command line.

use std::path::Path;

use clap_complete::Shell;
use refit_model::diagnostic::Diagnostic;

use super::super::arguments::visible;
use super::super::{Status, print};

const NAME: &str = "refit";

pub(in super::super) fn completions(shell: Shell) -> Result<Status, Diagnostic> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), NAME, &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(Status::Done)
}

pub(in super::super) fn man(folder: Option<&Path>) -> Result<Status, Diagnostic> {
    let cannot = |error: std::io::Error| {
        Diagnostic::new("cannot write the manual").because(error.to_string())
    };
    match folder {
        Some(folder) => clap_mangen::generate_to(visible(), folder).map_err(|error| {
            let place = format!("the folder is `{}`", folder.display());
            cannot(error).hint(place)
        })?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(visible())
                .render(&mut page)
                .map_err(cannot)?;
            print(&String::from_utf8_lossy(&page));
        }
    }
    Ok(Status::Done)
}
