//! Builds the site of docs/ like CI: from the lock file, with dead links and outdated pages as errors. Of VitePress, this module
//! only knows the scripts in docs/package.json.

use std::io::stderr;
use std::process::Command;

use crate::guests::wanted;
use crate::run::{Failed, cache_directory, say, step};
use crate::setup::root;

pub(crate) fn build() -> Result<(), Failed> {
    wanted("npm", "Node.js 20 or newer, with npm")?;
    step(
        "getting VitePress (100 MB on the disk)",
        &mut npm(&["ci", "--prefer-offline", "--loglevel", "error"]),
    )
    .map_err(|failed| failed.hint("npm fetches it from the network: can this machine reach it?"))?;
    step(
        "holding the policy reference against wit/policy.wit",
        &mut npm(&["run", "--silent", "check"]),
    )?;
    step(
        "building the site (half a minute)",
        &mut npm(&["run", "--silent", "build"]),
    )
    .map_err(|failed| failed.hint("a page that is linked and not there is named above"))?;
    let site = root().join("docs/.vitepress/dist");
    say(&format!("xtask: the site is in {}", site.display()));
    Ok(())
}

/// Run npm in docs/, with its downloads in our cache.
fn npm(arguments: &[&str]) -> Command {
    let mut npm = Command::new("npm");
    npm.args(arguments)
        .arg("--cache")
        .arg(cache_directory().join("npm"))
        .current_dir(root().join("docs"))
        .stdout(stderr());
    npm
}
