//! Every hostile policy, by the program's own `selftest`: the same table, the same words, and no engine.

use std::fs;
use std::path::Path;

use anyhow::Context;
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
