//! A policy must not be able to tell a plan from a refresh: one that could would have one thing approved and do another.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use refit_tests::{ContainerSpec, ImageSpec, Refit, registry, with_world};
use serde_json::{Value, json};

use crate::PROGRAM;

/// `tests/policies/plan-detector` as a component.
fn component() -> anyhow::Result<Vec<u8>> {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--lib", "--profile", "policy"])
        .args(["--target", "wasm32-wasip2"])
        .args(["--package", "refit-policy-plan-detector"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .context("cannot run cargo")?;
    ensure!(
        built.status.success(),
        "the plan detector does not build:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .context("cargo's folder for tests is in its target folder")?;
    let path = target.join("wasm32-wasip2/policy/refit_policy_plan_detector.wasm");
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// What it saw of each container, by name.
fn facts(report: &Value) -> Vec<(String, Vec<String>)> {
    let containers = report["containers"].as_array().into_iter().flatten();
    let facts = containers.map(|it| {
        let reason = it["reason"].as_str().unwrap_or_default();
        let facts = reason.split("; ").map(str::to_owned).collect();
        (it["name"].as_str().unwrap_or_default().to_owned(), facts)
    });
    facts.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_sees_the_same_of_a_plan_and_of_its_refresh() -> anyhow::Result<()> {
    with_world("a plan detector", |w| async move {
        let component = tokio::task::spawn_blocking(component).await??;
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        w.pull(&v1.reference).await?;
        let alone = w.run(ContainerSpec::new("alone", &v1.reference)).await?;
        let provider = w.run(ContainerSpec::new("provider", &v1.reference)).await?;
        let mode = format!("container:{}", provider.id);
        // The provider listens at the port already.
        let follower = |suffix| {
            let spec = ContainerSpec::new(suffix, &v1.reference).env("PORT", "8001");
            spec.host(|host| host.network_mode = Some(mode.clone()))
        };
        let sidecar = w.run(follower("sidecar")).await?;
        let stopped = w.run(follower("stopped").env("PORT", "8002")).await?;
        w.stop(&stopped.id).await?;
        w.publish(registry, "hermes", ImageSpec::new("v2")).await?;

        let images = format!("{}/{}/*", registry.host(), w.prefix());
        let refit = Refit::new(PROGRAM, w.docker_host())?
            .file("policy.wasm", component)?
            .set("policy.component", "policy.wasm")
            .set("policy.config.image", v1.reference.as_str())
            .set("grants.images", json!([images]))
            .set("grants.containers", json!([w.name("*")]))
            .set("proof.grace_seconds", 1);
        let plan = refit.run(&["plan", "--json"]).await?.json();
        let again = refit.run(&["plan", "--json"]).await?.json();
        let refresh = refit.run(&["refresh", "--json"]).await?.json();
        let (planned, seen) = (facts(&plan), facts(&refresh));
        assert_eq!(planned.len(), 4, "{plan:#}");
        assert!(planned[0].1.len() > 20, "{planned:#?}");
        assert_eq!(planned, seen);
        assert_eq!(planned, facts(&again));
        for old in [alone, provider, sidecar, stopped] {
            assert!(!w.container_exists(&old.id).await?, "{refresh:#}");
        }
        // Reports do not have the ids that stand for what is not there.
        let digest = &plan["images"][0]["digest"];
        assert_eq!(plan["containers"][0]["recreation"]["to_image_id"], *digest);
        assert_eq!(plan["containers"][0]["recreation"]["new_id"], Value::Null);
        Ok(())
    })
    .await
}
