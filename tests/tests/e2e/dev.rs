//! `refit policy dev`: build, check, test, and stand beside the policy of a real daemon on a real engine; and the plan over HTTP
//! that makes the two differ when nobody asks for a refresh.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use refit::sandbox::DEFAULT_POLICY;
use refit_tests::{registry, with_world};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Child;

use crate::{behind, container, refit, until, untouched, without_engine};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Building is a copy, and a debug build compiles a policy in seconds.
const TOLD: Duration = Duration::from_secs(60);

/// A policy that others have built: `build` only copies it.
const PROJECT: &str = r#"
component = "build/it.wasm"
sources = ["source.wasm"]
[build]
run = [["mkdir", "-p", "build"], ["cp", "source.wasm", "build/it.wasm"]]
"#;

const SCENARIO: &str = r#"
config = { runtimes = ["hermes"] }
images = { "ghcr.io/molecule-ai/workspace-template-hermes:latest" = "new" }
containers = { ws-a = { image = "ghcr.io/molecule-ai/workspace-template-hermes:latest" } }
[expect]
waves = [["ws-a"]]
"#;

/// Reads on until a line has these words.
async fn until_told<R: AsyncRead + Unpin>(
    lines: &mut tokio::io::Lines<BufReader<R>>,
    words: &str,
) -> anyhow::Result<()> {
    let mut seen = String::new();
    let reading = async {
        while let Some(line) = lines.next_line().await? {
            seen += &line;
            seen.push('\n');
            if line.contains(words) {
                return Ok(());
            }
        }
        anyhow::bail!("it ended")
    };
    let told = tokio::time::timeout(TOLD, reading).await;
    told.map_err(anyhow::Error::from)
        .and_then(|told| told)
        .with_context(|| format!("it never said `{words}`; it said\n{seen}"))
}

fn interrupt(child: &Child) -> anyhow::Result<()> {
    let pid = i32::try_from(child.id().context("it has ended")?)?;
    let pid = rustix::process::Pid::from_raw(pid).context("no such process")?;
    Ok(rustix::process::kill_process(
        pid,
        rustix::process::Signal::INT,
    )?)
}

#[tokio::test]
async fn a_policy_in_work_stands_beside_the_active_one_and_goes_when_its_author_does()
-> anyhow::Result<()> {
    with_world("a policy in work", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .file("project/policy.toml", PROJECT)?
            .file("project/source.wasm", DEFAULT_POLICY)?
            .file("project/scenarios/one.toml", SCENARIO)?;
        let daemon = refit.serve().await?;
        let config = json!({
            "images": w.template(registry),
            "runtimes": ["hermes"],
            "containers": format!("ws-{}-*", w.prefix()),
            "strategy": "remove",
        });
        let server = format!("http://{}", daemon.address);
        let config = config.to_string();
        let arguments = [
            "policy",
            "dev",
            "project",
            "--server",
            &server,
            "--policy-config",
            &config,
        ];
        let mut child = refit.spawn(&arguments)?;
        let mut out = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let mut err = BufReader::new(child.stderr.take().context("stderr")?).lines();
        until_told(&mut out, "check       workspace 0.1.0 passes").await?;
        until_told(&mut out, "test        1 passed, 0 failed").await?;
        until_told(&mut err, "beside      generation 1, on trial").await?;
        // Nobody asked for a refresh: its own plan made the two differ.
        until_told(&mut out, "; replace to sha256:").await?;
        until_told(&mut out, "; remove to sha256:").await?;
        until_told(&mut err, "compared    1, agreed 0").await?;

        // A source that changes is built and checked again; what is no policy never gets beside one.
        fs::write(refit.home().join("project/source.wasm"), b"nonsense")?;
        until_told(&mut out, "FAIL  parse").await?;

        interrupt(&child)?;
        until_told(&mut err, "beside      the trial is ended").await?;
        let status = tokio::time::timeout(TOLD, child.wait()).await??;
        assert_eq!(status.code(), Some(0));
        let trial = daemon.request("GET", "/v1/policy/shadow").await?;
        assert_eq!(trial.status, 404);
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn without_a_daemon_a_policy_is_built_checked_and_tested_all_the_same() -> anyhow::Result<()>
{
    let refit = without_engine()?
        .file("project/policy.toml", PROJECT)?
        .file("project/source.wasm", DEFAULT_POLICY)?
        .file(
            "project/scenarios/one.toml",
            SCENARIO.replace("[[\"ws-a\"]]", "[]"),
        )?;
    // A port that nobody listens on: it was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let server = format!("http://127.0.0.1:{port}");
    let mut child = refit.spawn(&["policy", "dev", "project", "--server", &server])?;
    let mut out = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let mut err = BufReader::new(child.stderr.take().context("stderr")?).lines();
    until_told(&mut out, "FAIL  one").await?;
    until_told(&mut out, "test        0 passed, 1 failed").await?;
    until_told(&mut err, "beside      no daemon: cannot ask the daemon at").await?;
    until_told(&mut err, "watching").await?;
    interrupt(&child)?;
    let status = tokio::time::timeout(TOLD, child.wait()).await??;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_plan_over_http_says_what_a_refresh_would_do_and_does_nothing() -> anyhow::Result<()> {
    with_world("a plan over HTTP", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let daemon = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .serve()
            .await?;
        let plan = async |body: &str| {
            daemon
                .send("POST", "/v1/plan", &[JSON], body.to_owned())
                .await
        };
        let report = plan("{}").await?;
        assert_eq!(report.status, 200, "{}", report.text);
        let report = report.json()?;
        assert_eq!(report["mode"], "plan");
        assert_eq!(report["request"]["trigger"], "api");
        let decided = container(&report, &hermes.name);
        assert_eq!(decided["recreation"]["outcome"], "would-recreate");
        let only_images = plan(r#"{"recreate": false}"#).await?.json()?;
        assert_eq!(
            container(&only_images, &hermes.name)["rule"],
            "recreate-not-asked"
        );

        let unknown = plan(r#"{"targets": ["hermez"]}"#).await?;
        assert_eq!(
            (unknown.status, unknown.json()?["code"].as_str()),
            (400, Some("unknown-targets"))
        );
        let misspelt = plan(r#"{"target": []}"#).await?;
        assert_eq!(
            (misspelt.status, misspelt.json()?["code"].as_str()),
            (422, Some("bad-body"))
        );
        let junk = plan("{").await?;
        assert_eq!(
            (junk.status, junk.json()?["code"].as_str()),
            (400, Some("bad-body"))
        );
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_plan_without_an_engine_is_refused_in_words() -> anyhow::Result<()> {
    let daemon = without_engine()?.set("state_dir", "state").serve().await?;
    let answer = daemon.send("POST", "/v1/plan", &[JSON], "{}").await?;
    assert_eq!(answer.status, 502, "{}", answer.text);
    let problem = answer.json()?;
    assert_eq!(problem["code"], "engine-unavailable");
    assert!(
        problem["title"].to_string().contains("docker.sock"),
        "{problem}"
    );
    // It goes on.
    until("the daemon answer", || async {
        Ok(daemon.request("GET", "/healthz").await?.status == 200)
    })
    .await
}
