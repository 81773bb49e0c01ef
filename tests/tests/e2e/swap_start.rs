//! What a daemon finds when it starts again: the policy that was swapped in, a damaged one, a changed configuration, code that
//! somebody has tampered with. None of it needs an engine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use refit_tests::Refit;
use refit_tests::refit::Daemon;
use serde_json::json;

use crate::swap::{active, alone, guest, in_use, put};

async fn ended(daemon: Daemon) -> anyhow::Result<()> {
    daemon.terminate()?;
    daemon.ended().await?.expect(0);
    Ok(())
}

/// Generation 2 is `one`, generation 3 is `two`; the configuration says `workspace`. The daemon has ended.
async fn swapped_twice() -> anyhow::Result<Refit> {
    let refit = alone()?;
    let daemon = refit.serve().await?;
    put(&daemon, guest("one")?).await?;
    put(&daemon, guest("two")?).await?;
    ended(daemon).await?;
    Ok(refit)
}

fn kept(refit: &Refit, name: &str) -> anyhow::Result<PathBuf> {
    let file = refit::sandbox::digest(&guest(name)?).replace(':', "-");
    Ok(refit.home().join("state/policies").join(file + ".wasm"))
}

#[tokio::test]
async fn what_was_swapped_in_outlives_a_restart_and_can_be_rolled_back_after_it()
-> anyhow::Result<()> {
    let refit = swapped_twice().await?;
    let daemon = refit.serve().await?;
    assert_eq!(
        in_use(&daemon).await?,
        ("two".into(), 3),
        "as it was, under its number"
    );
    assert_eq!(
        daemon.request("POST", "/v1/policy/rollback").await?.status,
        200
    );
    assert_eq!(in_use(&daemon).await?, ("one".into(), 4));
    // A refresh from the command line uses what is configured, and the doctor tells both.
    let output = refit.run(&["doctor"]).await?;
    assert!(output.stdout.contains("workspace 0.1.0"), "{output}");
    assert!(
        output
            .stdout
            .contains("`refit serve` uses generation 4 (one 0.1.0) from new.wasm"),
        "{output}"
    );
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_was_changed_since_wins() -> anyhow::Result<()> {
    let refit = swapped_twice()
        .await?
        .set("policy.config.runtimes", json!(["hermes"]));
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("workspace".into(), 4));
    assert_eq!(active(&daemon).await?["how"], "configured");
    assert_eq!(
        daemon.request("POST", "/v1/policy/rollback").await?.status,
        200
    );
    assert_eq!(
        in_use(&daemon).await?,
        ("two".into(), 5),
        "what it displaced"
    );
    ended(daemon).await?;
    let daemon = refit.serve().await?;
    assert_eq!(
        in_use(&daemon).await?,
        ("two".into(), 5),
        "nothing was changed after that"
    );
    Ok(())
}

#[tokio::test]
async fn a_component_that_was_damaged_gives_way_to_the_one_before_it_aloud() -> anyhow::Result<()> {
    let refit = swapped_twice().await?;
    fs::write(kept(&refit, "two")?, guest("three")?)?;
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("one".into(), 4));
    let now = active(&daemon).await?;
    assert_eq!(now["how"], "fell-back");
    assert!(
        now["problem"]["error"]
            .to_string()
            .contains("cannot be used"),
        "{now}"
    );
    assert!(
        now["problem"]["causes"]
            .to_string()
            .contains("is not what its name says"),
        "{now}"
    );
    assert!(daemon.log().contains("\"ERROR\""), "{}", daemon.log());
    let output = refit.run(&["doctor"]).await?.expect(1);
    assert!(output.stdout.contains("cannot be used"), "{output}");
    ended(daemon).await?;
    // Neither of them: what is configured.
    fs::remove_file(kept(&refit, "one")?)?;
    let daemon = refit.serve().await?;
    assert_eq!(
        in_use(&daemon).await?,
        ("workspace".into(), 5),
        "4 was given away"
    );
    // A swap mends it.
    put(&daemon, guest("two")?).await?;
    ended(daemon).await?;
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?.0, "two");
    assert_eq!(active(&daemon).await?["problem"], serde_json::Value::Null);
    Ok(())
}

/// Another policy than the one that was swapped in must not decide because a file cannot be read.
#[tokio::test]
async fn ledger_that_cannot_be_read_keeps_the_daemon_from_acting() -> anyhow::Result<()> {
    let refit = swapped_twice().await?;
    let ledger = refit.home().join("state/policies/generations.json");
    let text = fs::read(&ledger)?;
    let torn = text[..text.len() / 2].to_vec();
    let mut newer: serde_json::Value = serde_json::from_slice(&text)?;
    newer["format"] = 99.into();
    for unreadable in [torn, newer.to_string().into_bytes()] {
        fs::write(&ledger, &unreadable)?;
        let output = refit.run(&["serve", "--listen", "127.0.0.1:0"]).await?;
        assert_ne!(output.status, 0, "{output}");
        output
            .says("generations.json")
            .says("cannot be read")
            .says("hint: to begin again");
        assert_eq!(fs::read(&ledger)?, unreadable, "it is left as it is");
    }
    // As it was.
    fs::write(&ledger, &text)?;
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?.0, "two");
    ended(daemon).await?;
    // As the hint says.
    fs::write(&ledger, "{")?;
    fs::rename(&ledger, ledger.with_extension("json.damaged"))?;
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("workspace".into(), 1));
    Ok(())
}

#[tokio::test]
async fn a_configured_policy_that_is_broken_gives_way_only_to_one_that_was_good()
-> anyhow::Result<()> {
    let refit = swapped_twice()
        .await?
        .file("bad.wasm", "no component")?
        .set("policy.component", "bad.wasm");
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("two".into(), 3));
    let problem = active(&daemon).await?["problem"].to_string();
    assert!(problem.contains("bad.wasm"), "{problem}");
    // To ask for the one that stands in is to make it the right one.
    let change = put(&daemon, guest("two")?).await?;
    assert_eq!(change["changed"], true, "{change}");
    assert_eq!(active(&daemon).await?["problem"], serde_json::Value::Null);
    // Where nothing ever was, nothing takes its place.
    let output = alone()?
        .file("bad.wasm", "no component")?
        .set("policy.component", "bad.wasm")
        .run(&["serve"])
        .await?
        .expect(2);
    output.says("`bad.wasm` is no WebAssembly component");
    Ok(())
}

#[tokio::test]
async fn a_swap_that_cannot_be_written_down_is_refused() -> anyhow::Result<()> {
    let refit = alone()?
        // Without it, the daemon could not make a token.
        .env("ADMIN_TOKEN", "t0ken")
        .file("state", "a file where a folder should be")?;
    let daemon = refit.serve().await?;
    let answer = daemon
        .send(
            "PUT",
            "/v1/policy",
            &[("Content-Type", "application/wasm")],
            guest("one")?,
        )
        .await?;
    assert_eq!(answer.status, 500, "{}", answer.text);
    let problem = answer.json()?;
    assert_eq!(
        (&problem["code"], &problem["stage"]),
        (&json!("not-durable"), &json!("durable"))
    );
    assert_eq!(in_use(&daemon).await?, ("workspace".into(), 1));
    assert!(
        daemon.log().contains("compiled policies cannot be kept"),
        "{}",
        daemon.log()
    );
    Ok(())
}

fn compiled(refit: &Refit) -> anyhow::Result<PathBuf> {
    let folder = refit.home().join("state/compiled");
    let entries = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    let is_code = |path: &PathBuf| path.extension().is_some_and(|it| it == "cwasm");
    let found: Vec<PathBuf> = entries.filter(is_code).collect();
    anyhow::ensure!(found.len() == 1, "{found:?}");
    Ok(found[0].clone())
}

fn mode(path: &Path) -> anyhow::Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

#[tokio::test]
async fn code_that_somebody_has_tampered_with_is_compiled_anew() -> anyhow::Result<()> {
    let refit = alone()?;
    let start = async || {
        let daemon = refit.serve().await?;
        let log = daemon.log();
        ended(daemon).await?;
        anyhow::Ok(log)
    };
    start().await?;
    let entry = compiled(&refit)?;
    let key = refit.home().join("state/compiled/key");
    assert_eq!((mode(&entry)?, mode(&key)?), (0o600, 0o600));
    let good = fs::read(&entry)?;
    let log = start().await?;
    assert!(!log.contains("does not hold"), "{log}");

    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    fs::write(&entry, &changed)?;
    let log = start().await?;
    assert!(log.contains("does not hold"), "{log}");
    let log = start().await?;
    assert!(!log.contains("does not hold"), "it was written over: {log}");

    // The same code, under the seal of another installation.
    let other = alone()?;
    ended(other.serve().await?).await?;
    fs::copy(compiled(&other)?, &entry)?;
    let log = start().await?;
    assert!(log.contains("does not hold"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_compiler_that_needs_too_much_memory_is_told_of() -> anyhow::Result<()> {
    let output = alone()?
        .set("limits.compile_megabytes", 64)
        .run(&["plan"])
        .await?
        .expect(2);
    output.says("cannot compile the policy `the built-in policy`");
    output.says("`[limits] compile_seconds` and `compile_megabytes` limit what examining and compiling a policy may take");
    Ok(())
}
