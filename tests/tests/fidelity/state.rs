//! What a container is doing, and whose it is, decides whether it is touched at all.

use std::time::Duration;

use anyhow::Context as _;
use bollard::models::RestartPolicyNameEnum;
use refit::model::container::State;
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};

use crate::bench::{Bench, told};
use crate::engine_faults::Between;

/// Refused with a sentence that says `because`, and nothing happened to it.
async fn refused(bench: &Bench, name: &str, image: &str, because: &str) -> anyhow::Result<()> {
    let w = &bench.world;
    let (id, started) = (w.inspect(name).await?.id, bench.started(name).await?);
    let error = bench.refused(name, image).await?;
    assert!(
        matches!(error, RecreateError::Unsupported { .. }),
        "{error:?}"
    );
    assert!(told(&error).contains(because), "{}", told(&error));
    assert_eq!(w.inspect(name).await?.id, id);
    if because != "it is restarting" {
        assert_eq!(
            bench.started(name).await?,
            started,
            "{name} was started again"
        );
    }
    bench.only(&[name]).await
}

async fn images(w: &World) -> anyhow::Result<(String, String)> {
    Ok((
        w.load(ImageSpec::new("v1")).await?,
        w.load(ImageSpec::new("v2")).await?,
    ))
}

/// 46
#[tokio::test]
async fn a_container_that_was_only_made_is_left_alone() -> anyhow::Result<()> {
    with_world("only made", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.create(ContainerSpec::new("a", &old)).await?;
        refused(&Bench::new(&w), &a.name, &new, "it is created").await
    })
    .await
}

/// 46
#[tokio::test]
async fn a_stopped_container_stays_stopped() -> anyhow::Result<()> {
    with_world("stopped", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        w.stop(&a.name).await?;
        let bench = Bench::new(&w);
        refused(&bench, &a.name, &new, "it is exited").await?;
        assert_eq!(bench.inspect(&a.name).await?.state, State::Exited);
        Ok(())
    })
    .await
}

/// 46
#[tokio::test]
async fn a_paused_container_stays_paused() -> anyhow::Result<()> {
    with_world("paused", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        w.docker().pause_container(&a.name).await?;
        let bench = Bench::new(&w);
        refused(&bench, &a.name, &new, "it is paused").await?;
        assert_eq!(bench.inspect(&a.name).await?.state, State::Paused);
        Ok(())
    })
    .await
}

/// 46
#[tokio::test]
async fn a_container_that_keeps_failing_is_left_alone() -> anyhow::Result<()> {
    with_world("restarting", |w| async move {
        let (old, new) = images(&w).await?;
        let spec = ContainerSpec::new("a", &old)
            .env("EXIT_AFTER_MS", "0")
            .restart(RestartPolicyNameEnum::ALWAYS)
            .without_waiting();
        let a = w.run(spec).await?;
        let bench = Bench::new(&w);
        // Each time it waits twice as long.
        let waiting = async {
            while bench.inspect(&a.name).await?.state != State::Restarting
                || restarts(&w, &a.name).await? < 4
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await??;
        refused(&bench, &a.name, &new, "it is restarting").await
    })
    .await
}

async fn restarts(w: &World, name: &str) -> anyhow::Result<i64> {
    Ok(w.inspect(name).await?.restart_count.unwrap_or_default())
}

/// 46: an engine shows these for a moment, or after a fault of the machine, so they are only shown here.
#[tokio::test]
async fn a_container_that_is_dead_or_being_removed_is_left_alone() -> anyhow::Result<()> {
    with_world("dead or being removed", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        for state in [State::Dead, State::Removing] {
            let between = Between::new(&w).shows(move |container| container.state = state);
            let bench = Bench::new(&w).through(between);
            refused(&bench, &a.name, &new, &format!("it is {state}")).await?;
        }
        Ok(())
    })
    .await
}

/// 41
#[tokio::test]
async fn a_container_that_removes_itself_is_left_alone() -> anyhow::Result<()> {
    with_world("removes itself", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w
            .run(ContainerSpec::new("a", &old).host(|host| host.auto_remove = Some(true)))
            .await?;
        refused(&Bench::new(&w), &a.name, &new, "`--rm`").await
    })
    .await
}

#[tokio::test]
async fn a_task_of_a_swarm_is_left_alone() -> anyhow::Result<()> {
    with_world("a task of a swarm", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w
            .run(ContainerSpec::new("a", &old).label("com.docker.swarm.task.id", "x1"))
            .await?;
        refused(&Bench::new(&w), &a.name, &new, "update the service instead").await
    })
    .await
}

/// Its unit deletes it when it stops.
#[tokio::test]
async fn container_of_a_systemd_unit_is_refused() -> anyhow::Result<()> {
    with_world("a container of a systemd unit", |w| async move {
        let (old, new) = images(&w).await?;
        let spec = ContainerSpec::new("a", &old).label("PODMAN_SYSTEMD_UNIT", "a.service");
        let a = w.run(spec).await?;
        let reason = "`systemctl restart a.service`";
        refused(&Bench::new(&w), &a.name, &new, reason).await
    })
    .await
}

/// It would have to be recreated with its provider.
#[tokio::test]
async fn provider_of_a_systemd_unit_is_refused() -> anyhow::Result<()> {
    with_world("a provider of a systemd unit", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let mode = format!("container:{}", a.id);
        let spec = ContainerSpec::new("b", &old)
            .label("PODMAN_SYSTEMD_UNIT", "b.service")
            .env("PORT", "8001")
            .without_waiting()
            .host(|host| host.network_mode = Some(mode));
        let b = w.run(spec).await?;
        w.until_stamped(&b.id, "listen").await?;
        let bench = Bench::new(&w);
        let error = bench.refused(&a.name, &new).await?;
        let reason = "`systemctl restart b.service`";
        assert!(told(&error).contains(reason), "{}", told(&error));
        bench.only(&[a.name.as_str(), b.name.as_str()]).await
    })
    .await
}

#[tokio::test]
async fn refits_own_container_is_left_alone() -> anyhow::Result<()> {
    with_world("Refit's own container", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        refused(
            &Bench::new(&w).own_id(&a.id),
            &a.name,
            &new,
            "Refit's own container",
        )
        .await
    })
    .await
}

/// 16: renamed since it was listed.
#[tokio::test]
async fn a_container_that_was_renamed_since_it_was_listed_is_left_alone() -> anyhow::Result<()> {
    with_world("renamed since", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = Bench::new(&w);
        let wanted = bench.wanted(&a.name, &new).await?;
        let options = bollard::query_parameters::RenameContainerOptions { name: w.name("b") };
        w.docker().rename_container(&a.name, options).await?;
        let error = bench.recreate(wanted).await.unwrap_err();
        assert!(
            matches!(error, RecreateError::Unsupported { .. }),
            "{error:?}"
        );
        assert_eq!(w.read_line(&w.name("b")).await?, "v1");
        bench.only(&[&w.name("b")]).await
    })
    .await
}

/// 16: gone, or somebody else's by now.
#[tokio::test]
async fn a_container_that_went_since_it_was_listed_is_reported() -> anyhow::Result<()> {
    with_world("gone since", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = Bench::new(&w);
        let wanted = bench.wanted(&a.name, &new).await?;
        w.remove_container(&a.id).await?;
        let error = bench.recreate(wanted.clone()).await.unwrap_err();
        assert!(matches!(error, RecreateError::Gone { .. }), "{error:?}");
        for (image, up_to_date) in [(&old, false), (&new, true)] {
            let other = w.run(ContainerSpec::new("a", image)).await?;
            let error = bench.recreate(wanted.clone()).await.unwrap_err();
            assert!(
                matches!(&error, RecreateError::ReplacedByOther { id, current, .. } if id.as_str() == other.id && *current == up_to_date),
                "{error:?}"
            );
            bench.only(&[&a.name]).await?;
            w.remove_container(&other.id).await?;
        }
        Ok(())
    })
    .await
}

/// 47: its own signal and its own time, which may be none.
#[tokio::test]
async fn a_container_is_stopped_in_its_own_way() -> anyhow::Result<()> {
    with_world("stopped in its own way", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2").env("IGNORE_TERM", "0")).await?,
        );
        let stubborn = |suffix: &str| ContainerSpec::new(suffix, &old).env("IGNORE_TERM", "1");
        // None of these may take the ten seconds that an engine waits by itself.
        let specs = [
            stubborn("time").body(|body| body.stop_timeout = Some(1)),
            stubborn("no-time").body(|body| body.stop_timeout = Some(0)),
            stubborn("signal").body(|body| body.stop_signal = Some("SIGKILL".into())),
        ];
        for spec in specs {
            let a = w.run(spec).await?;
            let recreated = bench.refreshed(&a.name, &new).await?;
            let gap = recreated.gap.unwrap();
            assert!(gap < Duration::from_secs(9), "{}: {gap:?}", a.name);
        }
        Ok(())
    })
    .await
}

/// 47: `always` does not bring the old one back while its replacement proves itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_policy_does_not_bring_the_old_one_back() -> anyhow::Result<()> {
    with_world("restart policy", |w| async move {
        let (old, new) = images(&w).await?;
        let a = w
            .run(ContainerSpec::new("a", &old).restart(RestartPolicyNameEnum::ALWAYS))
            .await?;
        let seen = std::sync::Arc::new(std::sync::Mutex::new(None));
        let (world, noted, id) = (w.clone(), seen.clone(), a.id.clone());
        let bench = Bench::new(&w).before(Step::Remove, move || {
            let (world, noted, id) = (world.clone(), noted.clone(), id.clone());
            async move {
                let state = world.inspect(&id).await.unwrap().state.unwrap();
                *noted.lock().unwrap() = state.running;
            }
        });
        bench
            .grace(Duration::from_secs(1))
            .refreshed(&a.name, &new)
            .await?;
        assert_eq!(*seen.lock().unwrap(), Some(false));
        let after = w
            .inspect(&a.name)
            .await?
            .host_config
            .and_then(|host| host.restart_policy);
        assert_eq!(
            after.and_then(|policy| policy.name),
            Some(RestartPolicyNameEnum::ALWAYS)
        );
        Ok(())
    })
    .await
}

/// A stop whose answer got lost would cost its whole time limit, while nothing runs: the container itself says that it stopped.
#[tokio::test]
async fn a_stop_that_nobody_hears_of_is_seen() -> anyhow::Result<()> {
    with_world("a stop that nobody hears of", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = Bench::new(&w).through(Between::new(&w).loses_stops());
        let refreshing =
            tokio::time::timeout(Duration::from_secs(30), bench.refreshed(&a.name, &new));
        refreshing.await.context("it waited for the answer")??;
        bench.only(&[&a.name]).await
    })
    .await
}
