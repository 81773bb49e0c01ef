//! Holds a private engine until stdin ends: prints its `DOCKER_HOST`, then its directory.
//!
//! For the supervisor's own test, which kills it, and for a person who wants several test runs to share an engine.
//! `private-engine isolated` starts one that does not touch the machine's network.

use std::io::{Write, stdin, stdout};

use anyhow::Context;
use refit_tests::engine::{Engine, Networks};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let networks = match std::env::args().nth(1).as_deref() {
        Some("isolated") => Networks::Isolated,
        Some(other) => {
            anyhow::bail!("cannot understand `{other}`: the only argument is `isolated`")
        }
        None => Networks::Machine,
    };
    let engine = Engine::start(networks).await?;
    let directory = engine
        .private_directory()
        .context("cannot find the directory of an engine that was started just now")?;
    writeln!(
        stdout(),
        "{}\n{}",
        engine.docker_host(),
        directory.display()
    )?;
    stdout().flush()?;
    // Nobody else is waiting on this thread, so it may block.
    std::io::copy(&mut stdin(), &mut std::io::sink())?;
    engine.stop().await
}
