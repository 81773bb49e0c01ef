//! A candidate on trial beside the active policy, on the real program and engine; and two policies compared over snapshots, where
//! there is none.

use anyhow::Context;
use base64::Engine as _;
use refit::sandbox::DEFAULT_POLICY;
use refit_tests::refit::Daemon;
use refit_tests::registry::Registry;
use refit_tests::{Refit, World, registry, with_world};
use serde_json::{Value, json};

use crate::guests::traps_in_refresh;
use crate::snapshot::snapshot;
use crate::swap::in_use;
use crate::{behind, container, refit, replaced, until, without_engine};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const WASM: (&str, &str) = ("Content-Type", "application/wasm");

/// A daemon for a world, with generations of its own.
async fn serve(w: &World, registry: &Registry) -> anyhow::Result<(Refit, Daemon)> {
    let refit = refit(w, registry, &["hermes"])?.set("state_dir", "state");
    let daemon = refit.serve().await?;
    Ok((refit, daemon))
}

/// The configuration of the world's policy, with another strategy.
fn config(w: &World, registry: &Registry, strategy: &str) -> Value {
    json!({
        "images": w.template(registry),
        "runtimes": ["hermes"],
        "containers": format!("ws-{}-*", w.prefix()),
        "strategy": strategy,
    })
}

/// The default policy with this configuration, on trial.
async fn try_out(daemon: &Daemon, config: Value, after: u32) -> anyhow::Result<Value> {
    let component = base64::engine::general_purpose::STANDARD.encode(DEFAULT_POLICY);
    let body = json!({"component": component, "config": config}).to_string();
    let path = format!("/v1/policy?shadow={after}&by=me");
    let answer = daemon
        .send("PUT", &path, &[JSON], body.into_bytes())
        .await?;
    anyhow::ensure!(answer.status == 202, "{}", answer.text);
    answer.json()
}

async fn trial(daemon: &Daemon) -> anyhow::Result<Value> {
    let answer = daemon.request("GET", "/v1/policy/shadow").await?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text);
    answer.json()
}

async fn until_compared(daemon: &Daemon, times: u64) -> anyhow::Result<Value> {
    until("the candidate compared", || async {
        Ok(trial(daemon).await?["compared"] == times)
    })
    .await?;
    trial(daemon).await
}

#[tokio::test]
async fn a_candidate_that_agrees_often_enough_takes_over() -> anyhow::Result<()> {
    with_world("a candidate that agrees", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let (_refit, daemon) = serve(&w, registry).await?;
        // Another configuration, by which it comes to the same.
        let mut config = config(&w, registry, "replace");
        config["containers"] = json!(format!("ws-{}-?*", w.prefix()));
        let begun = try_out(&daemon, config.clone(), 2).await?;
        assert_eq!(
            (&begun["compared"], &begun["beside"]),
            (&json!(0), &json!(1))
        );

        // One in which there is something to do, and one in which there is not.
        daemon.refresh("").await?;
        let told = until_compared(&daemon, 1).await?;
        assert_eq!(told["agreed"], 1, "{told:#}");
        assert_eq!(in_use(&daemon).await?.1, 1);
        replaced(&w, &hermes, &v2).await?;
        let id = w.inspect(&hermes.name).await?.id;
        daemon.refresh("").await?;
        until("the candidate take over", || async {
            Ok(in_use(&daemon).await?.1 == 2)
        })
        .await?;

        let active = daemon.request("GET", "/v1/policy").await?.json()?;
        assert_eq!(
            (&active["how"], &active["by"]),
            (&json!("promoted"), &json!("me"))
        );
        assert_eq!(active["config"], config);
        assert_eq!(
            w.inspect(&hermes.name).await?.id,
            id,
            "the candidate touched it"
        );
        let ended = daemon.request("GET", "/v1/policy/shadow").await?;
        assert_eq!(ended.status, 404);
        let answer = daemon.refresh("").await?.json()?;
        assert_eq!(answer["report"]["policy"]["generation"], 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_candidate_that_decides_otherwise_is_told_of_and_does_nothing() -> anyhow::Result<()> {
    with_world("a candidate that decides otherwise", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let (_refit, daemon) = serve(&w, registry).await?;
        try_out(&daemon, config(&w, registry, "remove"), 1).await?;
        daemon.refresh("").await?;
        let told = until_compared(&daemon, 1).await?;
        assert_eq!(
            (&told["agreed"], &told["agreed_in_a_row"]),
            (&json!(0), &json!(0))
        );
        let difference = &told["differing"][0]["differences"][0];
        assert_eq!(difference["container"], hermes.name.as_str());
        let strategy = |side: &str| difference[side]["recreation"]["strategy"].clone();
        assert_eq!(
            (strategy("old"), strategy("new")),
            (json!("replace"), json!("remove"))
        );
        assert!(difference["new"]["reason"].is_string(), "{difference}");
        replaced(&w, &hermes, &v2).await?;

        // Nothing is to be done now, so both come to the same: but one that never takes over by itself does not.
        try_out(&daemon, config(&w, registry, "remove"), 0).await?;
        daemon.refresh("").await?;
        let told = until_compared(&daemon, 1).await?;
        assert_eq!(told["agreed"], 1);
        assert_eq!(in_use(&daemon).await?.1, 1);
        let ended = daemon.request("DELETE", "/v1/policy/shadow").await?;
        assert_eq!((ended.status, &ended.json()?["compared"]), (200, &json!(1)));
        let gone = daemon.request("DELETE", "/v1/policy/shadow").await?;
        assert_eq!(gone.status, 404);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_candidate_that_traps_costs_nobody_anything() -> anyhow::Result<()> {
    with_world("a candidate that traps", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let (_refit, daemon) = serve(&w, registry).await?;
        let answer = daemon
            .send("PUT", "/v1/policy?shadow=1", &[WASM], traps_in_refresh()?)
            .await?;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let report = daemon.refresh("").await?;
        assert_eq!(report.status, 200);
        replaced(&w, &hermes, &v2).await?;
        let told = until_compared(&daemon, 1).await?;
        let error = told["differing"][0]["error"].as_str().context("no error")?;
        assert!(error.contains("panicked"), "{error}");
        assert_eq!(in_use(&daemon).await?.1, 1);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_bad_candidate_is_refused_like_a_bad_newcomer() -> anyhow::Result<()> {
    let daemon = without_engine()?.set("state_dir", "state").serve().await?;
    let answer = daemon
        .send("PUT", "/v1/policy?shadow=3", &[WASM], b"nonsense".to_vec())
        .await?;
    assert_eq!(answer.status, 422, "{}", answer.text);
    assert_eq!(answer.json()?["stage"], "parse");
    assert_eq!(
        daemon.request("GET", "/v1/policy/shadow").await?.status,
        404
    );
    Ok(())
}

/// Two workspaces, of which one is behind, and an image that the registry does not have.
fn engine_of_paper() -> String {
    let container = |name: &str, digit: char, image: &str| {
        json!({
            "name": name, "id": digit.to_string().repeat(64), "state": "running", "created": 1_795_428_000,
            "image": "ghcr.io/molecule-ai/workspace-template-hermes:latest", "image_id": image,
        })
    };
    let snapshot = json!({
        "snapshot": 1,
        "taken": "2026-11-23T10:00:00Z",
        "containers": [container("ws-a", 'a', "sha256:old"), container("ws-b", 'b', "sha256:new")],
        "images": {
            "ghcr.io/molecule-ai/workspace-template-hermes:latest": {"id": "sha256:new", "digest": null},
            "ghcr.io/molecule-ai/workspace-template-crewai:latest": {"failed": "rate-limited", "message": "slowly"},
        },
    });
    snapshot.to_string()
}

#[tokio::test]
async fn two_policies_are_compared_over_a_snapshot_without_an_engine() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("policy.config.runtimes", json!(["hermes", "crewai"]))
        .file("engine.json", engine_of_paper())?;
    let diff = [
        "policy",
        "diff",
        "built-in",
        "built-in",
        "--snapshot",
        "engine.json",
    ];
    let same = refit.run(&diff).await?.expect(0);
    assert_eq!(
        same.stdout,
        "the same           engine.json (2 containers)\n"
    );

    let other = r#"{"runtimes": ["hermes", "crewai"], "strategy": "remove"}"#;
    let more = ["--policy-config", other, "--detailed-exitcode"];
    let output = refit.run(&[&diff[..], &more[..]].concat()).await?.expect(3);
    snapshot!(output.stdout, @r"
    1 of 2 differ  engine.json
      ws-a
        old  recreate  image-moved: `ghcr.io/molecule-ai/workspace-template-hermes:latest` stands for another image now; replace to sha256:new
        new  recreate  image-moved: `ghcr.io/molecule-ai/workspace-template-hermes:latest` stands for another image now; remove to sha256:new
    ");
    let json = [&diff[..], &more[..], &["--json"]].concat();
    let found = refit.run(&json).await?.expect(3).json();
    assert_eq!(found["snapshots"][0]["differences"][0]["container"], "ws-a");

    let wrong = refit.file("wrong.json", "{}")?;
    let output = wrong
        .run(&[
            "policy",
            "diff",
            "built-in",
            "built-in",
            "--snapshot",
            "wrong.json",
        ])
        .await?
        .expect(2);
    output.says("`wrong.json` is no snapshot");
    Ok(())
}

#[tokio::test]
async fn a_plan_over_a_snapshot_needs_no_engine_and_is_the_same_each_time() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("policy.config.runtimes", json!(["hermes", "crewai"]))
        .file("engine.json", engine_of_paper())?;
    let plan = ["plan", "--snapshot", "engine.json", "--json"];
    let mut report = refit.run(&plan).await?.expect(1).json();
    let recreation = &container(&report, "ws-a")["recreation"];
    assert_eq!(recreation["outcome"], "would-recreate");
    assert_eq!(container(&report, "ws-b")["verdict"], "current");
    let mut again = refit.run(&plan).await?.expect(1).json();
    for report in [&mut report, &mut again] {
        // When it was made, and how long that took.
        forget(report, &["started", "duration_ms"]);
    }
    assert_eq!(report, again);
    Ok(())
}

fn forget(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !keys.contains(&key.as_str()));
            object.values_mut().for_each(|value| forget(value, keys));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| forget(value, keys)),
        _ => {}
    }
}

#[tokio::test]
async fn what_was_recorded_is_planned_as_on_the_engine_and_has_no_secrets() -> anyhow::Result<()> {
    with_world("record", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?
            .set("grants.environment", json!(["WS_VERSION", "MY_TOKEN"]));
        let written = refit
            .run(&["policy", "record", "--output", "engine.json"])
            .await?
            .expect(0);
        assert_eq!(written.stdout, "");
        let plan = refit.run(&["plan", "--json"]).await?.expect(0).json();
        let elsewhere = refit.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        let over = elsewhere
            .run(&["plan", "--snapshot", "engine.json", "--json"])
            .await?
            .expect(0)
            .json();
        let told = |report: &Value| {
            let container = container(report, &hermes.name);
            (
                container["verdict"].clone(),
                container["recreation"]["outcome"].clone(),
                container["recreation"]["to_image_id"].clone(),
            )
        };
        assert_eq!(told(&over), told(&plan));
        assert_eq!(told(&over).1, "would-recreate");
        Ok(())
    })
    .await
}
