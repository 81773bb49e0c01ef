//! The engine dies midway, and comes back: after a power cut, or under a Refit that lives on. Each on an engine of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bollard::query_parameters::ImportImageOptions;
use futures_util::TryStreamExt;
use refit::engine::address::{EngineAddress, Way};
use refit::engine::docker::{CallLimits, DockerEngine};
use refit::engine::{CreateRequest, Engine as _};
use refit::model::container::{Container, ContainerName, State};
use refit::model::image::ImageId;
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit::recreate::concurrency::ConcurrencyLimits;
use refit::recreate::health_gate::ReadinessCheck;
use refit::recreate::image_records::ImageRecords;
use refit::recreate::lease::Leases;
use refit::recreate::recover::{FirstSeen, Outcome, RecoveryTimeouts, recover};
use refit::recreate::replace::{NewImage, ReplaceOptions, Target, replace};
use refit_tests::ImageSpec;
use refit_tests::engine::Engine;
use serde_json::json;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::bench::{inspect, object};

const NAME: &str = "ws-a";
const PATIENCE: RecoveryTimeouts = RecoveryTimeouts {
    proof: ReadinessCheck {
        grace: Duration::from_millis(500),
        health: Duration::from_secs(10),
    },
    call: Duration::from_secs(20),
};

fn target(container: &Container, image: &NewImage) -> Target {
    Target {
        container: container.clone(),
        image: Some(image.clone()),
    }
}

/// A machine whose power can be cut.
struct Machine {
    place: tempfile::TempDir,
    engine: Mutex<Option<Engine>>,
}

impl Machine {
    async fn boot() -> anyhow::Result<Arc<Self>> {
        let place = tempfile::Builder::new()
            .prefix("refit-machine-")
            .tempdir_in("/tmp")?;
        let engine = Engine::start_again_in(place.path()).await?;
        Ok(Arc::new(Self {
            place,
            engine: Mutex::new(Some(engine)),
        }))
    }

    async fn crash(&self) -> anyhow::Result<()> {
        let engine = self.engine.lock().await.take();
        engine.context("it runs")?.crash().await
    }

    async fn boot_again(&self) -> anyhow::Result<()> {
        let engine = Engine::start_again_in(self.place.path()).await?;
        *self.engine.lock().await = Some(engine);
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("docker.sock")
    }

    fn refit(&self) -> DockerEngine {
        let address = EngineAddress {
            url: format!("unix://{}", self.socket().display()),
            way: Way::Local,
            chosen_by: "the test".into(),
        };
        let (call, pull) = (PATIENCE.call, PATIENCE.call);
        DockerEngine::new(address, CallLimits { call, pull })
    }

    fn leases(&self) -> Leases {
        Leases::in_folder(self.place.path().join("state"))
    }

    async fn load(&self, version: &str) -> anyhow::Result<NewImage> {
        let reference = format!("refit-tests/machine:{version}");
        let archive = ImageSpec::new(version).archive(&reference, version)?;
        let socket = self.socket().display().to_string();
        let docker = bollard::Docker::connect_with_unix(&socket, 60, bollard::API_DEFAULT_VERSION)?
            .negotiate_version()
            .await?;
        docker
            .import_image(
                ImportImageOptions::default(),
                bollard::body_full(archive.into()),
                None,
            )
            .try_collect::<Vec<_>>()
            .await?;
        let id: ImageId = self.refit().image(&reference).await?.id;
        Ok(NewImage { reference, id })
    }

    /// A container with a volume that nobody named, which runs.
    async fn run(&self, image: &NewImage) -> anyhow::Result<Container> {
        let request = CreateRequest {
            config: object(json!({"Image": image.reference, "Volumes": {"/data": {}}})),
            host_config: object(json!({})),
            endpoint: None,
        };
        let engine = self.refit();
        let id = engine
            .create(&ContainerName::new(NAME), &request, None)
            .await?;
        engine.start(&id).await?;
        Ok(engine.inspect(&id).await?)
    }

    /// One container, under its name, running, with its volume; on the old image or the new one.
    async fn is_whole(&self, before: &Container, new: &NewImage) -> anyhow::Result<Container> {
        let engine = self.refit();
        let names: Vec<String> = engine
            .containers()
            .await?
            .into_iter()
            .map(|it| it.name)
            .collect();
        anyhow::ensure!(names == [NAME], "{names:?}");
        let now = inspect(&engine, NAME).await?;
        anyhow::ensure!(now.state == State::Running, "it is {}", now.state);
        anyhow::ensure!(
            now.mounts[0].name == before.mounts[0].name,
            "{:?}",
            now.mounts
        );
        let expected = if now.id == before.id {
            &before.image_id
        } else {
            &new.id
        };
        anyhow::ensure!(now.image_id == *expected, "{} on {}", now.id, now.image_id);
        Ok(now)
    }
}

/// At `step` the power goes; what was running stops, Refit too. Afterwards only the engine knows anything.
async fn power_cut_at(step: Step) -> anyhow::Result<Vec<Outcome>> {
    let machine = Machine::boot().await?;
    let (old, new) = (machine.load("v1").await?, machine.load("v2").await?);
    let before = machine.run(&old).await?;
    let gone = Arc::new(Notify::new());
    let cut = {
        let (machine, gone) = (machine.clone(), gone.clone());
        move |at: Step| {
            if at == step {
                let crash = machine.crash();
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(crash))
                    .expect("the engine can be killed");
                gone.notify_one();
            }
        }
    };
    let manner = ReplaceOptions {
        platform: None,
        lanes: &ConcurrencyLimits::default(),
        images: &ImageRecords::default(),
        ending: &CancellationToken::new(),
        proof: PATIENCE.proof,
        step: &cut,
    };
    let engine = machine.refit();
    let lease = machine.leases().take(&before.id);
    tokio::select! {
        biased;
        () = gone.notified() => {}
        (outcome, _) = replace(&engine, vec![target(&before, &new)], &manner) => {
            anyhow::bail!("it ended before the power was gone: {outcome:?}")
        }
    }
    // As the system lets go of the files of a process that dies.
    drop(lease);
    machine.boot_again().await?;
    let recovered = recover(
        &machine.refit(),
        &machine.leases(),
        &FirstSeen::default(),
        PATIENCE,
    )
    .await?;
    machine.is_whole(&before, &new).await?;
    let again = recover(
        &machine.refit(),
        &machine.leases(),
        &FirstSeen::default(),
        PATIENCE,
    )
    .await?;
    anyhow::ensure!(again.is_empty(), "{again:?}");
    Ok(recovered.into_iter().map(|one| one.outcome).collect())
}

/// A machine that comes back has started nothing: whatever was half done is undone, and the old container runs again.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_before_the_replacement_starts_is_undone() -> anyhow::Result<()> {
    let (park, start) = tokio::try_join!(power_cut_at(Step::Park), power_cut_at(Step::Start))?;
    assert_eq!(
        (park, start),
        (vec![Outcome::Undone], vec![Outcome::Undone])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_after_the_replacement_started_is_undone() -> anyhow::Result<()> {
    assert_eq!(power_cut_at(Step::Prove).await?, [Outcome::Undone]);
    Ok(())
}

/// It proved itself before the power went: only the old container is left to be removed, but nothing runs any more, and what
/// does not run cannot prove itself again. The old one is as good.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_before_the_old_one_is_removed_is_undone() -> anyhow::Result<()> {
    assert_eq!(power_cut_at(Step::Remove).await?, [Outcome::Undone]);
    Ok(())
}

/// The engine alone dies and is back soon. Refit does what it can, and recovery the rest.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_restarted_under_a_living_refit_loses_nothing() -> anyhow::Result<()> {
    let machine = Machine::boot().await?;
    let (old, new) = (machine.load("v1").await?, machine.load("v2").await?);
    let before = machine.run(&old).await?;
    let restart = {
        let machine = machine.clone();
        move |at: Step| {
            if at == Step::Rename {
                let runtime = tokio::runtime::Handle::current();
                tokio::task::block_in_place(|| runtime.block_on(machine.crash()))
                    .expect("the engine can be killed");
                let machine = machine.clone();
                runtime
                    .spawn(async move { machine.boot_again().await.expect("it can be started") });
            }
        }
    };
    let manner = ReplaceOptions {
        platform: None,
        lanes: &ConcurrencyLimits::default(),
        images: &ImageRecords::default(),
        ending: &CancellationToken::new(),
        proof: PATIENCE.proof,
        step: &restart,
    };
    let engine = machine.refit();
    let lease = machine.leases().take(&before.id);
    let (outcome, settled) = replace(&engine, vec![target(&before, &new)], &manner).await;
    let error = outcome.expect_err("the engine went away");
    assert!(
        matches!(
            error,
            RecreateError::RolledBack { .. } | RecreateError::Stranded { .. }
        ),
        "{error:?}"
    );
    match lease {
        Some(lease) if settled => lease.settle(),
        lease => drop(lease),
    }
    recover(
        &machine.refit(),
        &machine.leases(),
        &FirstSeen::default(),
        PATIENCE,
    )
    .await?;
    assert_eq!(machine.is_whole(&before, &new).await?.id, before.id);
    Ok(())
}
