//! Every hostile policy, by the program's own `selftest`: the same table, the same words, and no engine.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use refit::author::selftest::{Outcome, Selftest};
use refit::sandbox::Allocation;
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
    let selftest = Arc::new(Selftest::with_allocation(Allocation::Pooled).await?);
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
    let config = serde_json::to_value(refit::config::Config::default())?;
    let table = refit::author::selftest::page(&config["limits"]);
    if std::env::var_os("REFIT_WRITE_DOCS").is_some() {
        fs::write(&path, &table)?;
    }
    let page = fs::read_to_string(&path).context("cannot read docs/hostile-guests.md")?;
    assert!(
        page == table,
        "docs/hostile-guests.md is not what the table says: REFIT_WRITE_DOCS=1 writes it"
    );
    Ok(())
}

/// The worker that examines and compiles a stranger's component, before the first byte of it has come.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn worker_restricts_itself_before_it_reads() -> anyhow::Result<()> {
    for job in ["examine", "compile"] {
        let mut worker = tokio::process::Command::new(PROGRAM)
            .args(["policy-worker", job, "--cpu-seconds", "7"])
            .args(["--memory-bytes", "1073741824"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let process = format!("/proc/{}", worker.id().context("it has ended")?);
        let restricted = async {
            while !fs::read_to_string(format!("{process}/status"))?.contains("Seccomp:\t2") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, restricted)
            .await
            .context(job)??;
        let status = fs::read_to_string(format!("{process}/status"))?;
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let limits = fs::read_to_string(format!("{process}/limits"))?;
        for (limit, value) in [
            ("Max cpu time", "7"),
            ("Max file size", "0"),
            ("Max core file size", "0"),
            ("Max address space", "1073741824"),
        ] {
            let line = limits.lines().find(|line| line.starts_with(limit));
            let soft = line.and_then(|line| line[limit.len()..].split_whitespace().next());
            assert_eq!(soft, Some(value), "{job}: {limit}");
        }
        let preferred = fs::read_to_string(format!("{process}/oom_score_adj"))?;
        assert_eq!(preferred.trim(), "1000", "the kernel ends it first");
        worker.kill().await?;
    }
    Ok(())
}
