//! Older versions of signed policies: refused, unless an operator says so, wherever they come from.

use refit_tests::http::Answer;
use refit_tests::refit::Daemon;
use serde_json::{Value, json};

use crate::guests::Guest;
use crate::swap::{active, alone, in_use};
use crate::trust::{Signatory, base64, ended, policy, refused, send, signatory, trusting};

fn version(version: &str) -> anyhow::Result<Vec<u8>> {
    Guest {
        name: "shop",
        version,
        ..Guest::default()
    }
    .component()
}

fn signed(by: &Signatory, bytes: &[u8]) -> anyhow::Result<Value> {
    Ok(json!({ "component": base64(bytes), "signature": by.sign(bytes)? }))
}

async fn taken(answer: Answer) -> anyhow::Result<Value> {
    anyhow::ensure!(answer.status == 200, "{}", answer.text);
    answer.json()
}

async fn now(daemon: &Daemon) -> anyhow::Result<Value> {
    Ok(active(daemon).await?["version"].clone())
}

#[tokio::test]
async fn older_signed_policy_is_refused_unless_an_operator_allows_it() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let (old, new) = (version("1.9.0")?, version("1.10.0")?);
    let refit = trusting(alone()?, &[release.key()]);
    let daemon = refit.serve().await?;
    for bytes in [&old, &new] {
        taken(send(&daemon, signed(&release, bytes)?).await?).await?;
    }

    let problem = refused(&daemon, signed(&release, &old)?, 422, "version").await?;
    assert_eq!(problem["code"], "policy-older");
    let text = problem.to_string();
    assert!(
        text.contains("`shop 1.9.0` is older than version 1.10.0, which was active before"),
        "{text}"
    );
    // Also on trial: it would become active without anybody asking again.
    let body = signed(&release, &old)?.to_string();
    let json_body = ("Content-Type", "application/json");
    let trial = "/v1/policy?shadow=3";
    let answer = daemon.send("PUT", trial, &[json_body], body).await?;
    assert_eq!(answer.status, 422, "{}", answer.text);

    // What an operator names exactly: the one before, and one by its digest.
    taken(daemon.request("POST", "/v1/policy/rollback").await?).await?;
    assert_eq!(now(&daemon).await?, "1.9.0");
    let history = daemon.request("GET", "/v1/policy/history").await?.json()?;
    assert_eq!(history["generations"][0]["older_than"], "1.10.0");
    taken(daemon.request("POST", "/v1/policy/rollback").await?).await?;
    let digest = refit::sandbox::digest(&old);
    taken(send(&daemon, json!({ "digest": digest })).await?).await?;
    assert_eq!(now(&daemon).await?, "1.9.0");
    taken(send(&daemon, signed(&release, &new)?).await?).await?;

    // The restart does not forget, and the flag allows it.
    ended(daemon).await?;
    let refit = refit
        .file("old.wasm", &old)?
        .file("old.wasm.minisig", release.sign(&old)?)?;
    let daemon = refit.serve().await?;
    let output = policy(&refit, &daemon, &["swap", "old.wasm"]).await?;
    let output = output.expect(1);
    output.says("`shop 1.9.0` is older than version 1.10.0");
    output.says("refit policy swap --allow-older");
    let allowed = ["swap", "old.wasm", "--allow-older"];
    policy(&refit, &daemon, &allowed).await?.expect(0);
    assert_eq!(now(&daemon).await?, "1.9.0");
    assert!(daemon.log().contains("taking an older version"));
    Ok(())
}

#[tokio::test]
async fn older_configured_policy_is_refused_at_a_start_and_at_a_reload() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let (old, new) = (version("1.9.0")?, version("1.10.0")?);
    let refit = trusting(alone()?, &[release.key()])
        .file("shop.wasm", &new)?
        .file("shop.wasm.minisig", release.sign(&new)?)?
        .set("policy.component", "shop.wasm");
    // Nothing was ever swapped, and all the same the version is remembered.
    ended(refit.serve().await?).await?;
    let refit = refit
        .file("shop.wasm", &old)?
        .file("shop.wasm.minisig", release.sign(&old)?)?;
    let daemon = refit.serve().await?;
    assert_eq!(now(&daemon).await?, "1.10.0");
    let problem = active(&daemon).await?["problem"].to_string();
    assert!(
        problem.contains("is older than version 1.10.0"),
        "{problem}"
    );
    ended(daemon).await?;

    let allowing = refit.set("policy.allow_older", true);
    let daemon = allowing.serve().await?;
    assert_eq!(now(&daemon).await?, "1.9.0");
    assert_eq!(active(&daemon).await?["problem"], Value::Null);
    ended(daemon).await?;

    let watching = allowing
        .set("policy.allow_older", false)
        .set("policy.watch", true);
    let oldest = version("1.8.0")?;
    let daemon = watching.serve().await?;
    assert_eq!(in_use(&daemon).await?.0, "shop");
    let _watching = watching
        .file("shop.wasm", &oldest)?
        .file("shop.wasm.minisig", release.sign(&oldest)?)?;
    daemon.until_logged("is older than version 1.10.0").await?;
    assert_eq!(now(&daemon).await?, "1.9.0");
    Ok(())
}

#[tokio::test]
async fn versions_of_unsigned_policies_are_free() -> anyhow::Result<()> {
    let refit = alone()?;
    let daemon = refit.serve().await?;
    for number in ["2.0.0", "1.0.0"] {
        let body = json!({ "component": base64(&version(number)?) });
        taken(send(&daemon, body).await?).await?;
        assert_eq!(now(&daemon).await?, number);
    }
    Ok(())
}
