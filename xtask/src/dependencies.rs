//! Checks the dependencies with cargo-deny. `deny.toml` has the rules.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::run::{Failed, say, step_within};
use crate::tools;

/// The time limit of a check. Cargo may have to download the crates of other platforms first, to read their licenses.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The time limit for downloading the database, which has some megabytes, so that a machine without network does not wait.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2 * 60);

/// Check licenses, bans and sources, and advisories if their database can be downloaded or is cached.
pub(crate) fn check() -> Result<(), Failed> {
    step_within(
        "checking licenses, bans and sources of the dependencies",
        tools::DENY
            .command()?
            .args(["--locked", "check", "licenses", "bans", "sources"]),
        CHECK_TIMEOUT,
    )
    .map_err(|failed| failed.hint("deny.toml has the rules, and a reason for each exception"))?;
    check_advisories()
}

fn check_advisories() -> Result<(), Failed> {
    let fetched = step_within(
        "fetching the database of advisories",
        tools::DENY
            .command()?
            .args(["fetch", "db"])
            .env("GIT_TERMINAL_PROMPT", "0"),
        FETCH_TIMEOUT,
    );
    let mut deny = tools::DENY.command()?;
    if let Err(failed) = fetched {
        say(&format!("xtask: {}", failed.error()));
        if !has_database() {
            say(
                "xtask: LEFT OUT: advisories: the RustSec database cannot be fetched from GitHub, and none is cached",
            );
            return Ok(());
        }
        say("xtask: using the cached database of advisories");
        deny.arg("--offline");
    }
    step_within(
        "checking the dependencies for advisories",
        deny.args(["--locked", "check", "advisories"]),
        CHECK_TIMEOUT,
    )
    .map_err(|failed| {
        failed.hint("update the crate (`cargo update -p CRATE`), or give the reason why it does not concern Refit in deny.toml")
    })
}

/// Whether cargo-deny has a database from an earlier run.
fn has_database() -> bool {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let databases = home.and_then(|home| fs::read_dir(home.join("advisory-dbs")).ok());
    databases
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().join(".git/HEAD").is_file())
}
