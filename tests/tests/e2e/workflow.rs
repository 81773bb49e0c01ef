//! The example of a workflow that asks for a refresh after images were published: its script, taken out of
//! `packaging/github-workflow.yaml` and run by `sh` as it stands, against a real daemon.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::Context as _;
use refit_tests::{ImageSpec, Proxy, registry, with_world};
use tokio::process::Command;

use crate::{behind, refit, replaced};

const TOKEN: &str = "the-token-of-the-workflow";
/// A refresh of some containers, or some tries that wait for seconds each.
const RUN: Duration = Duration::from_secs(120);

/// The block below `run: |`, without its indentation.
fn script() -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/github-workflow.yaml");
    let text = fs::read_to_string(path)?;
    let mut lines = text
        .lines()
        .skip_while(|line| line.trim() != "run: |")
        .skip(1)
        .peekable();
    let first = lines.peek().context("there is no `run: |`")?;
    let indent = first.len() - first.trim_start().len();
    let block =
        lines.take_while(|line| line.trim().is_empty() || line.starts_with(&" ".repeat(indent)));
    let block = block.map(|line| line.get(indent..).unwrap_or_default());
    Ok(block.collect::<Vec<_>>().join("\n"))
}

/// Runs it as a runner does: the script in a file, the rest in the environment.
async fn run(url: &str, token: &str, runtimes: &str) -> anyhow::Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("step.sh");
    fs::write(&file, script()?)?;
    let step = Command::new("sh")
        .arg("-e")
        .arg(&file)
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default())
        .env("REFIT_URL", url)
        .env("REFIT_ADMIN_TOKEN", token)
        .env("RUNTIMES", runtimes)
        .env("RETRIES", "1")
        .env("TMPDIR", folder.path())
        .kill_on_drop(true)
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::time::timeout(RUN, step).await??;
    let told = String::from_utf8([stdout, stderr].concat())?;
    assert!(!told.contains(TOKEN), "the token was printed:\n{told}");
    let left: Vec<_> = fs::read_dir(folder.path())?.collect::<Result<_, _>>()?;
    assert_eq!(left.len(), 1, "it leaves files: {left:?}");
    Ok((status.code(), told))
}

#[tokio::test]
async fn the_workflow_has_the_platform_take_what_was_published() -> anyhow::Result<()> {
    with_world("workflow", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let (crewai, of_crewai) = behind(&w, registry, "crewai").await?;
        let daemon = refit(&w, registry, &["hermes", "crewai", "langgraph"])?
            .env("ADMIN_TOKEN", TOKEN)
            .serve()
            .await?;
        let url = format!("http://{}/", daemon.address);

        let (status, told) = run(&url, TOKEN, "hermes langgraph").await?;
        assert_eq!(status, Some(0), "{told}");
        let done = "hermes: 1 pulled, 1 containers recreated, 0 failed";
        assert!(told.contains(done), "{told}");
        // Never published: its failure is told, and stops nothing.
        assert!(
            told.contains("::warning title=Not pulled::langgraph"),
            "{told}"
        );
        replaced(&w, &hermes, &v2).await?;

        // Without a name: all of them.
        let (status, told) = run(&url, TOKEN, "").await?;
        assert_eq!(status, Some(0), "{told}");
        let done = "all runtimes: 2 pulled, 1 containers recreated, 1 failed";
        assert!(told.contains(done), "{told}");
        replaced(&w, &crewai, &of_crewai).await?;

        let (status, told) = run(&url, TOKEN, "hermez").await?;
        assert_eq!(status, Some(1), "{told}");
        assert!(
            told.contains("::error title=Refresh of hermez::the daemon answered 400"),
            "{told}"
        );
        assert!(told.contains("known_runtimes"), "{told}");

        let (status, told) = run(&url, "not-the-token", "hermes").await?;
        assert_eq!(status, Some(1), "{told}");
        assert!(told.contains("the daemon answered 401"), "{told}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_workflow_fails_where_the_platform_does() -> anyhow::Result<()> {
    with_world("workflow-500", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        proxy.refuse("GET", "/containers/json", 500, "the list is lost");
        let daemon = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .env("ADMIN_TOKEN", TOKEN)
            .serve()
            .await?;
        let address = daemon.address;
        let (status, told) = run(&format!("http://{address}"), TOKEN, "hermes").await?;
        assert_eq!(status, Some(1), "{told}");
        assert!(told.contains("the daemon answered 500"), "{told}");
        assert!(told.contains("partial_result"), "{told}");
        crate::untouched(&w, &hermes).await?;

        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let (status, told) = run(&format!("http://{address}"), TOKEN, "hermes").await?;
        assert_eq!(status, Some(1), "{told}");
        assert!(
            told.contains("the daemon answered none: curl ended with"),
            "{told}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_workflow_tells_of_a_container_that_was_put_back() -> anyhow::Result<()> {
    with_world("workflow-back", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        // Its program ends at once: it cannot prove itself.
        w.publish(registry, "hermes", ImageSpec::new("v3").cmd(&["health"]))
            .await?;
        let daemon = refit(&w, registry, &["hermes"])?
            .env("ADMIN_TOKEN", TOKEN)
            .serve()
            .await?;
        let url = format!("http://{}", daemon.address);
        let (status, told) = run(&url, TOKEN, "hermes").await?;
        assert_eq!(status, Some(0), "{told}");
        let back = format!(
            "::warning title=Not recreated::{}: rolled-back",
            hermes.name
        );
        assert!(told.contains(&back), "{told}");
        Ok(())
    })
    .await
}
