//! Somebody else takes hold of the container while it is being replaced: at every step, in every way.
//!
//! They go by its name, as people and the platform's healers do, and hit whoever has it at that step. Afterwards the name has
//! at most one container, that one runs, nothing of ours is beside it, and the outcome says what became of it.

use std::sync::Arc;

use bollard::query_parameters::{RenameContainerOptions, RestartContainerOptions};
use futures_util::future::try_join_all;
use refit::capabilities::Recreated;
use refit::model::container::State;
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};

use crate::bench::Bench;

#[derive(Clone, Copy)]
enum Act {
    Remove,
    Restart,
    Rename,
    /// Removed, and a new one made under the name from the new image.
    Remake,
}

/// Who bears the name in the end, by the version that it runs.
const NOBODY: &str = "nobody";
const OLD: &str = "v1";
const NEW: &str = "v2";
const THEIRS: &str = "theirs";

/// A name that the container gets from somebody else.
fn elsewhere(name: &str) -> String {
    format!("{name}.renamed")
}

async fn act(w: &World, act: Act, name: &str, new: &str) -> anyhow::Result<()> {
    match act {
        Act::Remove => w.remove_container(name).await,
        Act::Restart => ignore_absent(
            w.docker()
                .restart_container(name, None::<RestartContainerOptions>)
                .await,
        ),
        Act::Rename => ignore_absent(
            w.docker()
                .rename_container(
                    name,
                    RenameContainerOptions {
                        name: elsewhere(name),
                    },
                )
                .await,
        ),
        Act::Remake => {
            w.remove_container(name).await?;
            let spec = ContainerSpec::named(name, new)
                .label("theirs", "yes")
                .host(|host| host.network_mode = Some("none".into()));
            w.run(spec).await.map(drop)
        }
    }
}

fn ignore_absent(answer: Result<(), bollard::errors::Error>) -> anyhow::Result<()> {
    match answer {
        Err(bollard::errors::Error::DockerResponseServerError {
            status_code: 404, ..
        }) => Ok(()),
        other => Ok(other?),
    }
}

fn word(outcome: &Result<Recreated, RecreateError>) -> &'static str {
    match outcome {
        Ok(_) => "replaced",
        Err(RecreateError::Gone { .. }) => "gone",
        Err(RecreateError::ReplacedByOther { current: true, .. }) => "by other, current",
        Err(RecreateError::ReplacedByOther { .. }) => "by other",
        Err(RecreateError::RolledBack { .. }) => "rolled back",
        Err(RecreateError::Aborted { .. }) => "aborted",
        Err(RecreateError::Stranded { .. }) => "stranded",
        Err(RecreateError::StillStopping { .. }) => "still stopping",
        Err(RecreateError::Busy { .. }) => "busy",
        Err(RecreateError::Current { .. }) => "current",
        Err(RecreateError::Withdrawn { .. }) => "withdrawn",
        Err(RecreateError::Unsupported { .. }) => "unsupported",
    }
}

/// For each step: what the outcome is and who bears the name in the end, where somebody acts before it.
async fn at_every_step(acting: Act, expected: &[(Step, &str, &str)]) -> anyhow::Result<()> {
    let expected = expected.to_vec();
    with_world("interference", |w| async move {
        let images = Arc::new((
            w.load(ImageSpec::new(OLD)).await?,
            w.load(ImageSpec::new(NEW)).await?,
        ));
        let runs = expected.iter().map(|(step, _, _)| {
            let (w, step, images) = (w.clone(), *step, images.clone());
            // In tasks of their own: whoever acts holds up the thread that its replacement runs on.
            let run =
                tokio::spawn(async move { run(&w, acting, step, &images.0, &images.1).await });
            async move { run.await? }
        });
        let found = try_join_all(runs).await?;
        let table = |rows: &[(Step, String)]| {
            rows.iter()
                .map(|(step, row)| format!("{step}: {row}"))
                .collect::<Vec<_>>()
        };
        let expected: Vec<_> = expected
            .iter()
            .map(|(step, outcome, bearer)| (*step, format!("{outcome}, {bearer}")))
            .collect();
        assert_eq!(table(&found), table(&expected));
        Ok(())
    })
    .await
}

async fn run(
    w: &World,
    acting: Act,
    step: Step,
    old: &str,
    new: &str,
) -> anyhow::Result<(Step, String)> {
    let name = w.name(&step.to_string());
    w.run(ContainerSpec::named(&name, old).host(|host| host.network_mode = Some("none".into())))
        .await?;
    let bench = {
        let (w, name, new) = (w.clone(), name.clone(), new.to_owned());
        Bench::new(&w.clone()).before(step, move || {
            let (w, name, new) = (w.clone(), name.clone(), new.clone());
            async move { act(&w, acting, &name, &new).await.unwrap() }
        })
    };
    let old_id = bench.inspect(&name).await?.id;
    let outcome = bench.refresh(&name, new).await?;

    let mut row = format!("{}, {}", word(&outcome), bearer(&bench, &name).await?);
    // Under our own names there is nothing, and nothing runs that is not the bearer of the name.
    for listed in bench.engine.containers().await? {
        if listed.name.contains(old_id.short()) {
            row.push_str(&format!(
                "; left over: {} ({:?})",
                listed.name, listed.state
            ));
        }
    }
    if matches!(acting, Act::Rename) && w.container_exists(&elsewhere(&name)).await? {
        row.push_str(&format!(
            "; elsewhere {}",
            bearer(&bench, &elsewhere(&name)).await?
        ));
    }
    Ok((step, row))
}

async fn bearer(bench: &Bench, name: &str) -> anyhow::Result<String> {
    if !bench.world.container_exists(name).await? {
        return Ok(NOBODY.into());
    }
    let container = bench.inspect(name).await?;
    let version = if container.label("theirs").is_some() {
        THEIRS
    } else {
        container
            .label("org.opencontainers.image.version")
            .unwrap_or_default()
    };
    Ok(if container.state == State::Running {
        version.to_owned()
    } else {
        format!("{version}, which is {}", container.state)
    })
}

/// 16, 51
#[tokio::test(flavor = "multi_thread")]
async fn somebody_removes_it() -> anyhow::Result<()> {
    at_every_step(
        Act::Remove,
        &[
            (Step::Inspect, "gone", NOBODY),
            (Step::Create, "gone", NOBODY),
            (Step::Verify, "gone", NOBODY),
            (Step::Stop, "gone", NOBODY),
            // It has stopped for its replacement, which takes its place whoever tidies up what has stopped.
            (Step::Park, "replaced", NEW),
            // Nobody has the name just then.
            (Step::Rename, "replaced", NEW),
            // They removed the replacement before it ran, as a prune does: it is made again.
            (Step::Start, "replaced", NEW),
            (Step::Prove, "rolled back", OLD),
            // It had proven itself: whoever removes it then removes a container like any other.
            (Step::Remove, "replaced", NOBODY),
        ],
    )
    .await
}

/// 16, 51
#[tokio::test(flavor = "multi_thread")]
async fn somebody_restarts_it() -> anyhow::Result<()> {
    at_every_step(
        Act::Restart,
        &[
            (Step::Inspect, "replaced", NEW),
            (Step::Create, "replaced", NEW),
            (Step::Verify, "replaced", NEW),
            (Step::Stop, "replaced", NEW),
            (Step::Rename, "replaced", NEW),
            (Step::Start, "replaced", NEW),
            (Step::Prove, "replaced", NEW),
            (Step::Remove, "replaced", NEW),
        ],
    )
    .await
}

/// 16, 51
#[tokio::test(flavor = "multi_thread")]
async fn somebody_renames_it() -> anyhow::Result<()> {
    at_every_step(
        Act::Rename,
        &[
            // By then it has stopped for its replacement, which takes the name that it had.
            (Step::Park, "replaced", NEW),
            (Step::Rename, "replaced", NEW),
            // They renamed the replacement.
            (Step::Start, "replaced", "nobody; elsewhere v2"),
            (Step::Prove, "replaced", "nobody; elsewhere v2"),
            (Step::Remove, "replaced", "nobody; elsewhere v2"),
        ],
    )
    .await
}

/// 16, 51
#[tokio::test(flavor = "multi_thread")]
async fn somebody_makes_it_anew() -> anyhow::Result<()> {
    at_every_step(
        Act::Remake,
        &[
            (Step::Inspect, "by other, current", THEIRS),
            (Step::Create, "by other, current", THEIRS),
            (Step::Verify, "by other, current", THEIRS),
            (Step::Stop, "by other, current", THEIRS),
            (Step::Park, "by other, current", THEIRS),
            (Step::Rename, "by other, current", THEIRS),
            (Step::Start, "by other, current", THEIRS),
            (Step::Prove, "by other, current", THEIRS),
            (Step::Remove, "replaced", THEIRS),
        ],
    )
    .await
}
