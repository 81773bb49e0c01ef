//! Policies from files, good and bad, and the grants that hold whatever a policy asks.

use anyhow::Context;
use refit_tests::{Proxy, registry, with_world};
use serde_json::json;

use crate::snapshot::snapshot;
use crate::{behind, container, image, refit, replaced, untouched, without_engine};

/// The file is refused before any engine would be looked for. What is said of it.
async fn is_refused(component: impl AsRef<[u8]>) -> anyhow::Result<String> {
    let output = without_engine()?
        .file("policy.wasm", component)?
        .run(&["refresh", "--policy", "policy.wasm"])
        .await?
        .expect(2);
    assert_eq!(output.stdout, "");
    Ok(output.stderr)
}

#[tokio::test]
async fn a_policy_that_is_not_there() -> anyhow::Result<()> {
    let output = without_engine()?
        .run(&["refresh", "--policy", "absent.wasm"])
        .await?
        .expect(2);
    snapshot!(output.stderr, @r#"
    error: cannot read the policy `absent.wasm`
      caused by: No such file or directory (os error 2)

    hint: `--policy FILE` and `[policy] component` name it; without either, the built-in policy is used
    "#);
    Ok(())
}

#[tokio::test]
async fn a_policy_that_is_some_other_file() -> anyhow::Result<()> {
    snapshot!(is_refused("images = \"ghcr.io\"\n").await?, @r#"
    error: `policy.wasm` is no WebAssembly component: it is something else

    hint: build it for `wasm32-wasip2`, which makes components: `cargo build --target wasm32-wasip2 --release`
    "#);
    snapshot!(is_refused("").await?, @r#"
    error: `policy.wasm` is no WebAssembly component: it is empty

    hint: build it for `wasm32-wasip2`, which makes components: `cargo build --target wasm32-wasip2 --release`
    "#);
    snapshot!(is_refused(wat::parse_str("(module)")?).await?, @r#"
    error: `policy.wasm` is no WebAssembly component: it is a core module

    hint: build it for `wasm32-wasip2`, which makes components: `cargo build --target wasm32-wasip2 --release`
    "#);
    let output = without_engine()?
        .run(&["refresh", "--policy", "."])
        .await?
        .expect(2);
    output.says("cannot read the policy `.`");
    Ok(())
}

#[tokio::test]
async fn a_component_that_is_no_policy() -> anyhow::Result<()> {
    snapshot!(is_refused(wat::parse_str("(component)")?).await?, @r#"
    error: `policy.wasm` is a component but no policy: it does not export `refit:policy/policy`

    hint: see `wit/policy.wit` for what a policy exports
    "#);
    Ok(())
}

#[tokio::test]
async fn a_policy_of_another_version_of_the_contract() -> anyhow::Result<()> {
    let component = r#"(component (import "refit:policy/docker@0.2.0" (instance)))"#;
    snapshot!(is_refused(wat::parse_str(component)?).await?, @r#"
    error: `policy.wasm` speaks `refit:policy/docker@0.2.0`, this host speaks `refit:policy@0.1.0`

    hint: rebuild it against `refit:policy@0.1.0` (in Rust: with `refit-policy` 0.1.0), or run a host that speaks its version
    hint: `refit policy wit` prints the contract of this host
    "#);
    Ok(())
}

#[tokio::test]
async fn a_policy_that_wants_what_no_host_offers() -> anyhow::Result<()> {
    let component = r#"(component (import "acme:secrets/vault@1.0.0" (instance)))"#;
    snapshot!(is_refused(wat::parse_str(component)?).await?, @r#"
    error: `policy.wasm` wants `acme:secrets/vault@1.0.0`, which this host does not offer

    hint: a policy may import `refit:policy` and what the standard library takes from WASI 0.2, nothing else
    "#);
    // Within the contract, but nothing that it has.
    let component =
        r#"(component (import "refit:policy/vault@0.1.0" (instance (export "open" (func)))))"#;
    let told = is_refused(wat::parse_str(component)?).await?;
    assert!(told.contains("policy.wasm"), "{told}");
    Ok(())
}

#[tokio::test]
async fn a_policy_that_traps_changes_nothing() -> anyhow::Result<()> {
    with_world("a trap", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let refit = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .file("policy.wasm", refit::author::selftest::component("panics").context("a guest panics")?)?;
        let output = refit
            .run(&["refresh", "--policy", "policy.wasm"])
            .await?
            .expect(2);
        snapshot!(&w, output.stderr, @r#"
        error: policy `hostile 0.1.0` panicked while it was to make a refresh: wasm trap: wasm `unreachable` instruction executed, in `decide-nothing`

        hint: what it had begun was finished or put back; nothing else was changed
        hint: what it printed is in the log; `--log debug` adds the whole backtrace
        "#);
        assert_eq!(proxy.changes(), []);

        // A daemon outlives it.
        let daemon = refit.set("policy.component", "policy.wasm").serve().await?;
        for _ in 0..2 {
            let answer = daemon.refresh("").await?;
            assert_eq!(answer.status, 500);
            let error = answer.json()?["error"].to_string();
            assert!(error.contains("panicked"), "{error}");
        }
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_policy_from_a_file_takes_the_built_in_ones_place() -> anyhow::Result<()> {
    with_world("a policy from a file", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?
            .file("mine.wasm", refit::sandbox::DEFAULT_POLICY)?
            .set("policy.component", "nonexistent.wasm");
        let output = refit.run(&["refresh"]).await?.expect(2);
        output.says("cannot read the policy `nonexistent.wasm`");
        // The flag goes over the file.
        refit
            .run(&["refresh", "--policy", "mine.wasm"])
            .await?
            .expect(0);
        replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn an_image_that_no_grant_covers_is_not_pulled() -> anyhow::Result<()> {
    with_world("no grant for the image", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let output = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .set("grants.images", json!(["ghcr.io/molecule-ai/*"]))
            .run(&["refresh", "--json"])
            .await?
            .expect(1);
        let report = output.json();
        let record = image(&report, "hermes");
        assert_eq!(record["outcome"], "failed");
        assert!(
            record
                .to_string()
                .contains("no pattern of `[grants] images` covers"),
            "{output}"
        );
        assert_eq!(container(&report, &hermes.name)["verdict"], "unknown");
        assert_eq!(proxy.changes(), []);
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_container_that_no_grant_covers_is_not_seen() -> anyhow::Result<()> {
    with_world("no grant for the container", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?;
        let by_name = refit.set("grants.containers", json!(["another-*"]));
        let output = by_name.run(&["refresh", "--json"]).await?.expect(0);
        assert_eq!(output.json()["containers"], json!([]));
        let by_label = by_name
            .set("grants.containers", json!(["ws-*"]))
            .set("grants.labels.platform", "another");
        let output = by_label.run(&["refresh", "--json"]).await?.expect(0);
        assert_eq!(output.json()["containers"], json!([]));
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_strategy_that_no_grant_covers_is_refused() -> anyhow::Result<()> {
    with_world("no grant for the verb", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?
            .set("grants.verbs", json!(["inspect", "pull", "replace"]))
            .set("policy.config.strategy", "remove");
        for command in ["plan", "refresh"] {
            let output = refit.run(&[command, "--json"]).await?.expect(1);
            let report = output.json();
            let recreation = &container(&report, &hermes.name)["recreation"];
            assert_eq!(recreation["outcome"], "refused");
            let told = recreation.to_string();
            assert!(
                told.contains("`[grants] verbs` does not list `remove`"),
                "{output}"
            );
        }
        untouched(&w, &hermes).await?;
        // Without a grant to pull there is nothing to compare with.
        let refit = refit
            .set("grants.verbs", json!(["inspect", "replace"]))
            .set("policy.config.strategy", "replace");
        let output = refit.run(&["refresh", "--json"]).await?.expect(1);
        let told = output.json()["images"].to_string();
        assert!(
            told.contains("`[grants] verbs` does not list `pull`"),
            "{output}"
        );
        untouched(&w, &hermes).await?;
        assert_eq!(
            w.image_id(&v2.reference).await?,
            Some(v2.id),
            "pulled by the first refresh"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_configuration_that_the_policy_does_not_accept() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("policy.config.runtimes", json!([]))
        .set(
            "policy.config.images",
            "ghcr.io/molecule-ai/workspace-template:latest",
        )
        .set("policy.config.containers", "");
    for command in ["refresh", "plan", "serve"] {
        let output = refit.run(&[command]).await?.expect(2);
        assert_eq!(output.stdout, "");
        output.says("does not accept its configuration");
    }
    let output = refit.run(&["refresh"]).await?;
    snapshot!(output.stderr, @r#"
    error: policy `workspace 0.1.0` does not accept its configuration

    hint: `images`: `ghcr.io/molecule-ai/workspace-template:latest` must hold `{runtime}` where the name of a runtime goes
    hint: `runtimes`: must name at least one runtime
    hint: `containers`: must not be empty: `*` stands for all names
    "#);

    let output = without_engine()?
        .set("policy.config.runtime", json!(["hermes"]))
        .run(&["refresh"])
        .await?
        .expect(2);
    snapshot!(output.stderr, @r#"
    error: policy `workspace 0.1.0` does not accept its configuration

    hint: `runtime`: unknown field `runtime`, expected one of `images`, `runtimes`, `containers`, `strategy`
    "#);
    Ok(())
}
