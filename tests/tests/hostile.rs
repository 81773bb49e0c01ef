//! Every hostile policy, by the program's own `selftest`: the same table, the same words, and no engine.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use refit::policy::Allocation;
use refit::selftest::{Outcome, Selftest};
use refit_tests::Refit;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_refit-under-test");

/// What the page promises, and what was asked for.
const GUESTS_MIN: usize = 40;

#[tokio::test]
async fn every_hostile_policy_is_held_and_the_next_refresh_is_made() -> anyhow::Result<()> {
    let refit = Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")?;
    let output = refit.run(&["selftest", "--json"]).await?;
    let outcomes: Vec<Value> = serde_json::from_str(&output.stdout)
        .with_context(|| format!("no JSON came out:\n{}", output.stderr))?;
    let failed: Vec<&Value> = outcomes
        .iter()
        .filter(|outcome| outcome["passed"] != true)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(outcomes.len() >= GUESTS_MIN, "only {} ran", outcomes.len());
    assert_eq!(output.status, 0);
    assert_eq!(output.stderr, "", "what guests say is no error of ours");
    Ok(())
}

/// What holds them must not depend on where their memory comes from.
#[tokio::test]
async fn a_pool_holds_them_as_well() -> anyhow::Result<()> {
    let selftest = Arc::new(Selftest::allocating(Allocation::Pooled).await?);
    let outcomes = selftest.run_all(|_| ()).await;
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(
        failed.is_empty(),
        "{}",
        serde_json::to_string_pretty(&failed)?
    );
    assert!(outcomes.len() >= GUESTS_MIN, "only {} ran", outcomes.len());
    Ok(())
}

/// `REFIT_WRITE_DOCS=1` writes it.
#[test]
fn the_page_of_hostile_guests_is_the_table() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hostile-guests.md");
    if std::env::var_os("REFIT_WRITE_DOCS").is_some() {
        fs::write(&path, refit::selftest::page())?;
    }
    let page = fs::read_to_string(&path).context("cannot read docs/hostile-guests.md")?;
    assert!(
        page == refit::selftest::page(),
        "docs/hostile-guests.md is not what the table says: REFIT_WRITE_DOCS=1 writes it"
    );
    Ok(())
}
