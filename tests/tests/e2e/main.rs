//! Refit end to end: the real program, a real engine, real registries. One binary, so that a private engine starts once.
//!
//! Each module is a subject. What all of them need is here: a `refit.toml` for a world, a workspace that is behind, and the
//! places of a report that tests look at.

mod approvals;
mod artifact;
mod browsers;
mod canaries;
mod cli_assets;
mod command_line;
mod credentials;
mod dev;
mod disk;
mod endpoint;
mod engine;
mod flood;
mod guests;
mod history;
mod hooks;
mod inside;
mod isolation;
mod logins;
mod matching;
mod notify;
mod observability;
mod openapi;
mod plan;
mod plan_detector;
mod policy;
mod refresh;
mod replay;
mod rollback;
mod script;
mod shadow;
mod snapshot;
mod ssh;
mod swap;
mod swap_start;
mod tls;
mod trust;
mod unfinished;
mod watch;
mod workflow;

use std::time::Duration;

use anyhow::{Context, bail};
use refit_tests::registry::Registry;
use refit_tests::world::{Published, Running};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_refit-under-test");

/// A replacement on a loaded machine, with its second of proof.
const SETTLED: Duration = Duration::from_secs(60);
/// Between two looks at something that nobody tells us of.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The program for a world: these runtimes at this registry, and no container but the world's.
fn refit(w: &World, registry: &Registry, runtimes: &[&str]) -> anyhow::Result<Refit> {
    let containers = format!("ws-{}-*", w.prefix());
    let images = format!("{}/{}/workspace-template-*", registry.host(), w.prefix());
    Ok(Refit::new(PROGRAM, w.docker_host())?
        .set("policy.config.images", w.template(registry))
        .set("policy.config.runtimes", json!(runtimes))
        .set("policy.config.containers", containers.as_str())
        .set("grants.images", json!([images]))
        .set("grants.containers", json!([containers]))
        // A program of the tests that is to end does so within milliseconds.
        .set("proof.grace_seconds", 1))
}

/// A program that needs no engine, because it must end before it would look for one.
fn without_engine() -> anyhow::Result<Refit> {
    Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")
}

/// The workspace `ws-<prefix>-<runtime>` on v1 of its runtime, and v2 in the registry.
async fn behind(
    w: &World,
    registry: &Registry,
    runtime: &str,
) -> anyhow::Result<(Running, Published)> {
    let v1 = w.publish(registry, runtime, ImageSpec::new("v1")).await?;
    let container = w.run(ContainerSpec::new(runtime, &v1.reference)).await?;
    let v2 = w.publish(registry, runtime, ImageSpec::new("v2")).await?;
    Ok((container, v2))
}

/// What a report says of a container.
#[track_caller]
fn container<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["containers"]
        .as_array()
        .and_then(|containers| containers.iter().find(|it| it["name"] == name))
        .unwrap_or_else(|| panic!("the report does not mention `{name}`: {report:#}"))
}

/// What a report says of a runtime's image.
#[track_caller]
fn image<'a>(report: &'a Value, runtime: &str) -> &'a Value {
    let repository = format!("/workspace-template-{runtime}:");
    let of_runtime = |it: &&Value| {
        it["image"]
            .as_str()
            .is_some_and(|image| image.contains(&repository))
    };
    report["images"]
        .as_array()
        .and_then(|images| images.iter().find(of_runtime))
        .unwrap_or_else(|| panic!("the report does not mention `{runtime}`: {report:#}"))
}

/// The container is the very one that it was, and was never interrupted.
async fn untouched(w: &World, container: &Running) -> anyhow::Result<()> {
    let now = w.inspect(&container.name).await?;
    assert_eq!(now.id.as_deref(), Some(container.id.as_str()));
    let stamps = w.stamps(&container.id).await?;
    let events: Vec<_> = stamps.iter().map(|stamp| stamp.event.as_str()).collect();
    assert_eq!(
        events,
        ["start", "listen"],
        "it was started once and never stopped"
    );
    let running = now.state.and_then(|state| state.running);
    assert_eq!(running, Some(true));
    Ok(())
}

/// The container's place was taken by another one that runs this image, and nothing is left of the replacement.
async fn replaced(w: &World, old: &Running, new: &Published) -> anyhow::Result<()> {
    let now = w.inspect(&old.name).await?;
    assert_ne!(now.id.as_deref(), Some(old.id.as_str()));
    assert_eq!(now.image.as_deref(), Some(new.id.as_str()));
    assert!(
        !w.container_exists(&old.id).await?,
        "the old one is still there"
    );
    w.until_listening(&old.name).await?;
    Ok(())
}

/// Awaits what can only be looked for.
async fn until<F>(what: &str, mut holds: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let looking = async {
        while !holds().await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(SETTLED, looking).await {
        Ok(held) => held.with_context(|| format!("cannot see {what}")),
        Err(_) => bail!("cannot see {what} within {SETTLED:?}"),
    }
}
