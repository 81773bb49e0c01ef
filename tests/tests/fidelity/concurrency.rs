//! Two at once: in one process, in two that share a state folder, in two that share nothing but the engine. Never both on one
//! container.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use refit::capabilities::{Recreated, Recreation};
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit::recreate::lease::Leases;
use refit::recreate::recover::Outcome;
use refit_tests::{ContainerSpec, ImageSpec, World, registry, with_world};
use serde_json::Value;

use crate::bench::Bench;
use crate::engine_faults::Between;

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(w: &World, suffix: &str) -> Self {
        Self(std::env::temp_dir().join(format!("refit-{}-{suffix}", w.prefix())))
    }

    fn leases(&self) -> Leases {
        Leases::in_folder(self.0.clone())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Refit's word for "somebody else is at it, or was".
fn left_to_the_other(error: &RecreateError) -> bool {
    matches!(
        error,
        RecreateError::Busy { .. } | RecreateError::ReplacedByOther { current: true, .. }
    )
}

/// Both begin at once: one does it, the other says so, and one replacement was started.
async fn at_once(
    w: &World,
    one: &Bench,
    other: &Bench,
    calls: &Mutex<Vec<String>>,
) -> anyhow::Result<()> {
    let (old, new) = (
        w.load(ImageSpec::new("v1")).await?,
        w.load(ImageSpec::new("v2")).await?,
    );
    for round in 0..3 {
        let a = w
            .run(ContainerSpec::new(&format!("a{round}"), &old))
            .await?;
        let wanted = one.wanted(&a.name, &new).await?;
        calls.lock().unwrap().clear();
        let (first, second) =
            futures_util::join!(one.recreate(wanted.clone()), other.recreate(wanted));
        let outcomes = [&first, &second];
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            1,
            "{outcomes:?}"
        );
        let refused = outcomes
            .iter()
            .find_map(|outcome| outcome.as_ref().err())
            .unwrap();
        assert!(left_to_the_other(refused), "{refused:?}");
        let starts = calls
            .lock()
            .unwrap()
            .iter()
            .filter(|call| call.starts_with("start "))
            .count();
        assert_eq!(starts, 1, "{:?}", calls.lock().unwrap());
        assert_eq!(w.read_line(&a.name).await?, "v2");
        one.only(&[&a.name]).await?;
        w.remove_container(&a.name).await?;
    }
    Ok(())
}

/// Two benches that write into one list what they ask of the engine.
fn two(w: &World, leases: [Leases; 2]) -> ([Bench; 2], Arc<Mutex<Vec<String>>>) {
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let benches = leases.map(|leases| {
        let mut between = Between::new(w);
        between.calls = calls.clone();
        Bench::new(w).leases(leases).through(between)
    });
    (benches, calls)
}

/// 15
#[tokio::test]
async fn two_in_one_process() -> anyhow::Result<()> {
    with_world("two in one process", |w| async move {
        let leases = Leases::default();
        let ([one, other], calls) = two(&w, [leases.clone(), leases]);
        at_once(&w, &one, &other, &calls).await
    })
    .await
}

/// 15: locks on files hold between open files, so two of them in one process are as good as two processes.
#[tokio::test]
async fn two_with_one_state_folder() -> anyhow::Result<()> {
    with_world("two with one state folder", |w| async move {
        let folder = Folder::new(&w, "state");
        let ([one, other], calls) = two(&w, [folder.leases(), folder.leases()]);
        at_once(&w, &one, &other, &calls).await?;
        let left: Vec<_> = std::fs::read_dir(folder.0.join("replacing"))?.collect();
        assert!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

/// 15
#[tokio::test]
async fn two_that_share_nothing_but_the_engine() -> anyhow::Result<()> {
    with_world("two that share the engine", |w| async move {
        let (here, there) = (Folder::new(&w, "here"), Folder::new(&w, "there"));
        let ([one, other], calls) = two(&w, [here.leases(), there.leases()]);
        at_once(&w, &one, &other, &calls).await
    })
    .await
}

/// 15: the second comes while the first is anywhere in the middle, refreshes and recovers, and disturbs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_may_come_at_any_step() -> anyhow::Result<()> {
    with_world("a second one at any step", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        for step in [
            Step::Create,
            Step::Verify,
            Step::Stop,
            Step::Park,
            Step::Rename,
            Step::Start,
            Step::Prove,
            Step::Remove,
        ] {
            let a = w.run(ContainerSpec::new(&step.to_string(), &old)).await?;
            let (here, there) = (Folder::new(&w, "here"), Folder::new(&w, "there"));
            let first = Bench::new(&w).leases(here.leases());
            let wanted = first.wanted(&a.name, &new).await?;
            let second = Arc::new(Bench::new(&w).leases(there.leases()));
            let said: Arc<Mutex<Vec<String>>> = Arc::default();
            let first = {
                let (second, said, wanted) = (second.clone(), said.clone(), wanted.clone());
                first.before(step, move || {
                    let (second, said, wanted) = (second.clone(), said.clone(), wanted.clone());
                    async move {
                        let wrong = come(&second, wanted, step).await;
                        said.lock().unwrap().extend(wrong);
                    }
                })
            };
            let outcome = first.recreate(wanted).await;
            assert_eq!(*said.lock().unwrap(), Vec::<String>::new(), "{step}");
            if step == Step::Create {
                // There was nothing to see yet: the second did it all, and the first found it done.
                assert!(
                    matches!(&outcome, Err(error) if left_to_the_other(error)),
                    "{step}: {outcome:?}"
                );
            } else {
                assert!(outcome.is_ok(), "{step}: {outcome:?}");
            }
            assert_eq!(w.read_line(&a.name).await?, "v2", "{step}");
            second.only(&[&a.name]).await?;
            w.remove_container(&a.name).await?;
        }
        Ok(())
    })
    .await
}

/// What is wrong with what the second one finds.
async fn come(second: &Bench, wanted: Recreation, step: Step) -> Vec<String> {
    let mut wrong = Vec::new();
    let workshop = second.workshop();
    match workshop.recover().await {
        Ok(recovered) => {
            let ours = recovered.into_iter().filter(|one| {
                one.container == wanted.container.name
                    || one.container == wanted.container.id.short()
            });
            wrong.extend(
                ours.filter(|one| one.outcome != Outcome::InProgress)
                    .map(|one| format!("recovered: {one:?}")),
            );
        }
        Err(error) => wrong.push(error.to_string()),
    }
    let outcome: Result<Recreated, RecreateError> = second.recreate(wanted).await;
    match outcome {
        Ok(_) if step == Step::Create => {}
        Err(RecreateError::Busy { .. }) if step != Step::Create => {}
        other => wrong.push(format!("the second one's outcome: {other:?}")),
    }
    wrong
}

/// What a program is told, and where it keeps its state.
fn configured(
    w: &World,
    registry: &registry::Registry,
    state: &Folder,
    file: &Folder,
) -> anyhow::Result<PathBuf> {
    let (template, prefix) = (w.template(registry), w.prefix());
    std::fs::create_dir_all(&file.0)?;
    let path = file.0.join("refit.toml");
    let text = format!(
        "state_dir = {state:?}\n[policy.config]\nimages = {template:?}\nruntimes = [\"hermes\"]\ncontainers = \"ws-{prefix}-*\"\n\
         [grants]\nimages = [{grant:?}]\ncontainers = [\"ws-{prefix}-*\"]\n[proof]\ngrace_seconds = 0\n",
        state = state.0.display().to_string(),
        grant = template.replace("{runtime}:latest", "*"),
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Two programs refresh at once; each container is replaced by one of them.
async fn two_programs(one_state: bool) -> anyhow::Result<()> {
    with_world("two programs", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        for suffix in ["a", "b", "c"] {
            w.run(ContainerSpec::new(suffix, &v1.reference)).await?;
        }
        w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let (here, there, file, other_file) = (
            Folder::new(&w, "here"),
            Folder::new(&w, "there"),
            Folder::new(&w, "file"),
            Folder::new(&w, "other-file"),
        );
        let state = if one_state { &here } else { &there };
        let files = [
            configured(&w, registry, &here, &file)?,
            configured(&w, registry, state, &other_file)?,
        ];
        let programs = files.map(|file| {
            let mut program = Command::new(env!("CARGO_BIN_EXE_refit-under-test"));
            program
                .arg("--config")
                .arg(file)
                .args(["refresh", "--json"])
                .env("DOCKER_HOST", w.docker_host())
                .stdin(Stdio::null());
            tokio::task::spawn_blocking(move || program.output())
        });
        let mut outputs = Vec::new();
        for program in programs {
            outputs.push(program.await??);
        }
        let mut replaced = Vec::new();
        for output in &outputs {
            let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
                format!("no report: {}", String::from_utf8_lossy(&output.stderr))
            })?;
            for container in report["containers"].as_array().context("no containers")? {
                if container["recreation"]["outcome"] == "recreated" {
                    replaced.push(container["name"].as_str().unwrap_or_default().to_owned());
                }
            }
        }
        replaced.sort();
        let names = ["a", "b", "c"].map(|suffix| w.name(suffix));
        assert_eq!(replaced, names, "{outputs:?}");
        for name in &names {
            assert_eq!(w.read_line(name).await?, "v2");
        }
        assert_eq!(w.containers().await?, names);
        Ok(())
    })
    .await
}

/// 15
#[tokio::test]
async fn two_programs_with_one_state_folder() -> anyhow::Result<()> {
    two_programs(true).await
}

/// 15
#[tokio::test]
async fn two_programs_that_share_nothing_but_the_engine() -> anyhow::Result<()> {
    two_programs(false).await
}
