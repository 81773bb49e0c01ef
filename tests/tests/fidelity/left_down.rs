//! What left containers down in public bug reports of updaters, and a report that said that all was well.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bollard::query_parameters::PruneContainersOptions;
use refit::capabilities::Capabilities as _;
use refit::engine::Engine as _;
use refit::model::container::{ContainerName, State};
use refit::model::image::{ImageId, ImageRef};
use refit::model::recreation::Step;
use refit::recreate::concurrency::ConcurrencyLimits;
use refit::recreate::health_gate::ReadinessCheck;
use refit::recreate::image_records::ImageRecords;
use refit::recreate::lease::Leases;
use refit::recreate::recover::{FirstSeen, Outcome, RecoveryTimeouts, recover};
use refit::recreate::replace::{NewImage, ReplaceOptions, Target, replace};
use refit::recreate::{RecreateError, names};
use refit_tests::world::{LABEL, Running};
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, docker};

const PROOF: ReadinessCheck = ReadinessCheck {
    grace: Duration::ZERO,
    health: Duration::from_secs(10),
};

async fn images(w: &World) -> anyhow::Result<(String, NewImage)> {
    let (old, new) = (
        w.load(ImageSpec::new("v1")).await?,
        w.load(ImageSpec::new("v2")).await?,
    );
    let id = w.image_id(&new).await?.context("it was loaded just now")?;
    let image = NewImage::pulled(&new.parse::<ImageRef>()?, ImageId::new(id));
    Ok((old, image))
}

/// What a cron job does: everything that does not run goes. Of this world alone.
async fn prune(w: &World) -> anyhow::Result<()> {
    let label = format!("{LABEL}={}", w.prefix());
    let filters = [("label".to_owned(), vec![label])].into();
    let options = PruneContainersOptions {
        filters: Some(filters),
    };
    w.docker().prune_containers(Some(options)).await?;
    Ok(())
}

/// a: an engine that is asked for a name answers with whatever id begins so.
#[tokio::test]
async fn name_that_begins_another_containers_id_finds_nothing() -> anyhow::Result<()> {
    with_world("a name that begins an id", |w| async move {
        let image = w.load(ImageSpec::new("v1")).await?;
        let stranger = w.run(ContainerSpec::new("a", &image)).await?;
        let engine = docker(&w);
        for digits in [2, 4, 12, 63, 64] {
            let name = ContainerName::new(&stranger.id[..digits]);
            let found = engine.find_by_name(&name).await?;
            assert!(found.is_none(), "`{name}` is nobody's name: {found:?}");
        }
        let found = engine
            .find_by_name(&ContainerName::new(&*stranger.name))
            .await?;
        assert_eq!(
            found.context("it has its own name")?.id.as_str(),
            stranger.id
        );
        // A dot is no wildcard, and a name is not a part of one.
        for name in [
            stranger.name.replace('-', "."),
            stranger.name[1..].to_owned(),
        ] {
            assert!(
                engine
                    .find_by_name(&ContainerName::new(name))
                    .await?
                    .is_none()
            );
        }
        Ok(())
    })
    .await
}

/// A1: the start is answered 404, which is about the network and not about the container.
#[tokio::test(flavor = "multi_thread")]
async fn network_removed_in_the_gap_strands_and_is_said() -> anyhow::Result<()> {
    with_world("a network removed in the gap", |w| async move {
        let (old, new) = images(&w).await?;
        let network = w.network("net").await?;
        let a = w
            .run(ContainerSpec::new("a", &old).network(&network, &["web"]))
            .await?;
        let state = tempfile::tempdir()?;
        let bench = {
            let (world, network) = (w.clone(), network.clone());
            Bench::new(&w)
                .leases(Leases::in_folder(state.path().to_owned()))
                .before(Step::Rename, move || {
                    let (world, network) = (world.clone(), network.clone());
                    async move { world.docker().remove_network(&network).await.unwrap() }
                })
        };
        let error = bench.refused(&a.name, &new.reference).await?;
        let RecreateError::Stranded { old, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(old.as_str(), a.id);
        // It is half done for everybody who looks, until it is mended.
        let workshop = bench.workshop();
        let unfinished = workshop.unfinished().await?;
        assert!(
            unfinished.iter().any(|it| it.container == a.name),
            "{unfinished:?}"
        );
        let live = bench.live();
        live.containers()
            .await
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let unfinished = live.unfinished().await;
        assert!(
            unfinished.iter().any(|it| it.container == a.name),
            "{unfinished:?}"
        );

        // Recovery cannot start it either, deletes nothing and says so.
        let recovered = workshop.recover().await?;
        let ours: Vec<_> = recovered
            .iter()
            .filter(|it| it.container == a.name)
            .collect();
        assert_eq!(ours[0].outcome, Outcome::Stranded, "{recovered:?}");
        assert!(ours[0].detail.contains(&network), "{recovered:?}");
        assert!(w.container_exists(&a.id).await?);

        // Once there is a network of that name again the container is started in it, with all that it had in the old one.
        w.network("net").await?;
        let recovered = workshop.recover().await?;
        let ours = recovered.iter().find(|it| it.container == a.name);
        assert_eq!(
            ours.map(|it| it.outcome),
            Some(Outcome::Undone),
            "{recovered:?}"
        );
        let now = bench.inspect(&a.name).await?;
        assert_eq!((now.id.as_str(), now.state), (&*a.id, State::Running));
        let inspected = w.docker().inspect_network(&network, None).await?;
        let endpoint = now.endpoints.get(&network).context("its endpoint")?;
        assert_eq!(endpoint["NetworkID"], json!(inspected.id), "{endpoint:?}");
        assert_ne!(endpoint["IPAddress"], "", "{endpoint:?}");
        let aliases = endpoint["Aliases"].as_array().context("aliases")?;
        assert!(aliases.contains(&json!("web")), "{endpoint:?}");
        assert_eq!(now.endpoints.len(), 1, "{:?}", now.endpoints);
        Ok(())
    })
    .await
}

/// A5: the replacement is there and verified, and gone when its turn comes.
#[tokio::test(flavor = "multi_thread")]
async fn pruned_replacement_is_made_again_before_the_stop() -> anyhow::Result<()> {
    with_world("a pruned replacement", |w| async move {
        let (old, image) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = Bench::new(&w);
        let container = bench.inspect(&a.name).await?;
        let temporary = names::temporary_name(&container.id);
        // Two containers may be down at once, and both places are taken: the replacement waits for its turn.
        let lanes = Arc::new(ConcurrencyLimits::new(2));
        let (first, second) = (lanes.downtime().await, lanes.downtime().await);
        let replacing = {
            let (w, lanes) = (w.clone(), lanes.clone());
            tokio::spawn(async move {
                let engine = docker(&w);
                let manner = ReplaceOptions {
                    platform: None,
                    lanes: &lanes,
                    images: &ImageRecords::default(),
                    ending: &CancellationToken::new(),
                    proof: PROOF,
                    step: &|_| {},
                };
                let target = Target {
                    container,
                    image: Some(image),
                };
                replace(&engine, vec![target], &manner).await.0
            })
        };
        let engine = docker(&w);
        let made = loop {
            match engine.find_by_name(&temporary).await? {
                // It is verified by an inspection, after which nothing is asked before its turn comes.
                Some(found) if lanes_are_quiet(&lanes).await => break found,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        prune(&w).await?;
        assert!(!engine.is_listed(&made.id).await?, "it was pruned");
        drop((first, second));
        let replaced = replacing.await??;
        assert_ne!(replaced.members[0].id, made.id, "it was made again");
        let now = bench.inspect(&a.name).await?;
        assert_eq!(
            (now.id, now.state),
            (replaced.members[0].id.clone(), State::Running)
        );
        bench.only(&[&a.name]).await
    })
    .await
}

/// Whether what is made ready has been made ready: it holds the other lane meanwhile.
async fn lanes_are_quiet(lanes: &ConcurrencyLimits) -> bool {
    lanes.background().await.is_some()
}

/// A5: a prune in the gap takes the old container, which has exited, and the replacement, which has not been started.
#[tokio::test(flavor = "multi_thread")]
async fn pruned_containers_in_the_gap_are_made_again() -> anyhow::Result<()> {
    with_world("a prune in the gap", |w| async move {
        let (old, new) = images(&w).await?;
        for step in [Step::Park, Step::Rename, Step::Start] {
            let a = w
                .run(
                    ContainerSpec::new(&step.to_string(), &old)
                        .volume(&w.volume("data").await?, "/data"),
                )
                .await?;
            let bench = {
                let world = w.clone();
                Bench::new(&w).before(step, move || {
                    let world = world.clone();
                    async move { prune(&world).await.unwrap() }
                })
            };
            bench.refreshed(&a.name, &new.reference).await?;
            let now = bench.inspect(&a.name).await?;
            assert_eq!(
                (&now.image_id, now.state),
                (&new.id, State::Running),
                "{step}"
            );
            assert!(now.mounts.iter().any(|mount| mount.destination == "/data"));
            bench.only(&[&a.name]).await?;
            w.remove_container(&a.name).await?;
        }
        Ok(())
    })
    .await
}

/// A program that takes longer to end than the engine would wait by default, and has no stop timeout.
async fn slow_to_stop(w: &World, image: &str) -> anyhow::Result<Running> {
    let spec = ContainerSpec::new("a", image)
        .env("STOP_AFTER_MS", "12000")
        .body(|body| body.stop_timeout = Some(-1));
    w.run(spec).await
}

/// A6
#[tokio::test(flavor = "multi_thread")]
async fn container_without_a_stop_timeout_is_waited_for() -> anyhow::Result<()> {
    with_world("no stop timeout", |w| async move {
        let (old, new) = images(&w).await?;
        let a = slow_to_stop(&w, &old).await?;
        let bench = Bench::new(&w);
        let recreated = bench.refreshed(&a.name, &new.reference).await?;
        let gap = recreated.gap.context("it was stopped")?;
        assert!(
            gap >= Duration::from_secs(12),
            "it ended by itself: {gap:?}"
        );
        bench.only(&[&a.name]).await
    })
    .await
}

/// A6: the Refit that asked it to stop dies before it has ended.
#[tokio::test(flavor = "multi_thread")]
async fn container_that_is_still_stopping_is_started_when_it_has_ended() -> anyhow::Result<()> {
    with_world("still stopping", |w| async move {
        let (old, image) = images(&w).await?;
        let a = slow_to_stop(&w, &old).await?;
        let bench = Bench::new(&w);
        let container = bench.inspect(&a.name).await?;
        let state = tempfile::tempdir()?;
        let leases = Leases::in_folder(state.path().to_owned());
        let lease = leases.take(&container.id);
        let engine = docker(&w);
        let manner = ReplaceOptions {
            platform: None,
            lanes: &ConcurrencyLimits::default(),
            images: &ImageRecords::default(),
            ending: &CancellationToken::new(),
            proof: PROOF,
            step: &|_| {},
        };
        let target = Target {
            container: container.clone(),
            image: Some(image),
        };
        tokio::select! {
            (outcome, _) = replace(&engine, vec![target], &manner) => anyhow::bail!("it ended: {outcome:?}"),
            stamped = w.until_stamped(&a.id, "stop") => stamped?,
        }
        drop(lease);
        let patience = RecoveryTimeouts {
            proof: PROOF,
            call: Duration::from_secs(20),
        };
        let first_seen = FirstSeen::default();
        let recovered = recover(&engine, &leases, &first_seen, patience).await?;
        let ours = recovered.iter().find(|it| it.container == a.name);
        let ours = ours.context("it is half done")?;
        assert_eq!(ours.outcome, Outcome::Stranded, "{ours:?}");
        assert!(ours.is_abandoned() && ours.detail.contains("no stop timeout"), "{ours:?}");
        // Nothing has touched it meanwhile: it ends in its own time, and is started then.
        while bench.inspect(&a.name).await?.state == State::Running {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let recovered = recover(&engine, &leases, &first_seen, patience).await?;
        let ours = recovered.iter().find(|it| it.container == a.name);
        assert_eq!(ours.map(|it| it.outcome), Some(Outcome::Undone), "{recovered:?}");
        let now = bench.inspect(&a.name).await?;
        assert_eq!((now.id, now.state), (container.id, State::Running));
        bench.only(&[&a.name]).await
    })
    .await
}
