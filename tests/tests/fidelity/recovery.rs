//! What a Refit leaves that dies, put there by hand, and what recovery makes of it.

use std::time::Duration;

use refit::engine::{CreateRequest, Engine as _, StopMode};
use refit::model::container::{ContainerId, State};
use refit::recreate::health_gate::ReadinessCheck;
use refit::recreate::lease::Leases;
use refit::recreate::names;
use refit::recreate::recover::{FirstSeen, Outcome, RecoveryTimeouts, recover, survey};
use refit_tests::{ContainerSpec, ImageSpec, with_world};
use serde_json::json;

use crate::bench::{Bench, docker, object};

const PATIENCE: RecoveryTimeouts = RecoveryTimeouts {
    proof: ReadinessCheck {
        grace: Duration::ZERO,
        health: Duration::ZERO,
    },
    call: Duration::from_secs(20),
};

/// It was killed while it waited for the container to stop. The engine goes on with the stop, so a container that runs now may
/// not run in a moment.
#[tokio::test]
async fn a_stop_that_is_still_under_way_is_waited_out() -> anyhow::Result<()> {
    with_world("a stop under way", |w| async move {
        let image = w.load(ImageSpec::new("v1").env("IGNORE_TERM", "1")).await?;
        let seconds = 3;
        let a = w
            .run(ContainerSpec::new("a", &image).body(|body| body.stop_timeout = Some(seconds)))
            .await?;
        let bench = Bench::new(&w);
        let before = bench.inspect(&a.name).await?;
        let engine = docker(&w);
        let mut labels = serde_json::Map::new();
        for (key, value) in w.labels() {
            labels.insert(key.to_owned(), json!(value));
        }
        let request = CreateRequest {
            config: object(json!({"Image": image, "Labels": labels})),
            host_config: object(json!({})),
            endpoint: None,
        };
        engine
            .create(&names::temporary_name(&before.id), &request, None)
            .await?;
        let state = std::env::temp_dir().join(format!("refit-{}-recovering", w.prefix()));
        let leases = Leases::in_folder(state.clone());
        drop(leases.take(&before.id));

        let mode = StopMode::Graceful {
            limit: Duration::from_secs(3),
        };
        let (id, stopper) = (before.id.clone(), docker(&w));
        let stopping = tokio::spawn(async move { stopper.stop(&id, mode).await });
        let recovered = recover(&engine, &leases, &FirstSeen::default(), PATIENCE).await?;
        let ours: Vec<_> = recovered
            .iter()
            .filter(|one| one.container == a.name)
            .collect();
        assert_eq!(ours.len(), 1, "{recovered:?}");
        assert_eq!(ours[0].outcome, Outcome::Undone);
        stopping.await??;
        let now = bench.inspect(&a.name).await?;
        assert_eq!((now.id, now.state), (before.id, State::Running));
        std::fs::remove_dir_all(state)?;
        bench.only(&[&a.name]).await
    })
    .await
}

/// Anybody can give a container the name of a replacement. If nothing else shows that Refit made it, it is not removed.
#[tokio::test]
async fn container_with_a_name_like_ours_alone_is_left_alone() -> anyhow::Result<()> {
    with_world("a name alone", |w| async move {
        let image = w.load(ImageSpec::new("v1")).await?;
        let a = w.run(ContainerSpec::new("a", &image)).await?;
        let bench = Bench::new(&w);
        let engine = docker(&w);
        // Of no container: the digits of its own id, the other way round.
        let nobody: String = a.id[..12].chars().rev().collect();
        let nobody = ContainerId::new(nobody.repeat(5));
        let name = names::temporary_name(&nobody);
        engine
            .rename(&ContainerId::new(a.id.clone()), &name)
            .await?;
        let state = std::env::temp_dir().join(format!("refit-{}-name-only", w.prefix()));
        let leases = Leases::in_folder(state.clone());
        let about_it = async || {
            let recovered = recover(&engine, &leases, &FirstSeen::default(), PATIENCE).await?;
            let ours = recovered
                .into_iter()
                .find(|it| it.container.contains(nobody.short()));
            anyhow::Ok(ours.map(|it| it.outcome))
        };
        assert_eq!(about_it().await?, None);
        let listed = engine.containers().await?;
        let found = survey(&listed, &leases);
        assert!(
            found.iter().all(|it| !it.detail.contains(name.as_str())),
            "{found:?}"
        );
        assert_eq!(bench.inspect(name.as_str()).await?.state, State::Running);

        // A Refit on this machine died at it, and the container that it was for is gone.
        drop(leases.take(&nobody));
        assert_eq!(about_it().await?, Some(Outcome::Superseded));
        std::fs::remove_dir_all(state)?;
        bench.only(&[]).await
    })
    .await
}
