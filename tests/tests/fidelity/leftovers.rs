//! Nothing is left over: no name, no alias, no container, whichever way it ended.

use std::time::Duration;

use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit::recreate::names::ParsedName;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};

use crate::bench::Bench;

/// Who is present in a network, by id.
async fn present(w: &World, network: &str) -> anyhow::Result<Vec<String>> {
    let network = w.docker().inspect_network(network, None).await?;
    Ok(network.containers.unwrap_or_default().into_keys().collect())
}

/// Nothing of ours is on the engine that has to do with this container.
async fn nothing_of(bench: &Bench, id: &str) -> anyhow::Result<()> {
    let listed = bench.engine.containers().await?;
    let ours: Vec<_> = listed
        .iter()
        .filter(|listed| {
            ParsedName::parse(&listed.name).is_some() && listed.name.contains(&id[..12])
        })
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_success_and_while_it_proves_itself_the_new_one_alone_is_reachable()
-> anyhow::Result<()> {
    with_world("the new one alone is reachable", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let network = w.network("net").await?;
        let before = w
            .run(ContainerSpec::new("a", &old).network(&network, &["web"]))
            .await?;
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let (world, noted, net) = (w.clone(), seen.clone(), network.clone());
        let bench = Bench::new(&w).before(Step::Remove, move || {
            let (world, noted, net) = (world.clone(), noted.clone(), net.clone());
            async move { *noted.lock().unwrap() = present(&world, &net).await.unwrap() }
        });
        let recreated = bench.refreshed(&before.name, &new).await?;
        let id = recreated.id.unwrap();
        assert_eq!(recreated.left_over, None);
        assert_eq!(
            *seen.lock().unwrap(),
            [id.as_str()],
            "an old container that has stopped is in no network"
        );
        assert_eq!(present(&w, &network).await?, [id.as_str()]);
        nothing_of(&bench, &before.id).await?;
        bench.only(&[&before.name]).await
    })
    .await
}

#[tokio::test]
async fn after_a_way_back_the_old_one_alone_is_reachable() -> anyhow::Result<()> {
    with_world("the old one alone is reachable", |w| async move {
        let bench = Bench::new(&w).grace(Duration::from_secs(2));
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2").env("EXIT_AFTER_MS", "300"))
                .await?,
        );
        let network = w.network("net").await?;
        let before = w
            .run(ContainerSpec::new("a", &old).network(&network, &["web"]))
            .await?;
        let error = bench.refused(&before.name, &new).await?;
        assert!(
            matches!(error, RecreateError::RolledBack { .. }),
            "{error:?}"
        );
        assert_eq!(present(&w, &network).await?, [before.id.as_str()]);
        nothing_of(&bench, &before.id).await?;
        bench.only(&[&before.name]).await
    })
    .await
}

/// Again and again, to and fro: nothing grows.
#[tokio::test]
async fn a_container_does_not_grow_with_each_refresh() -> anyhow::Result<()> {
    with_world("does not grow", |w| async move {
        let bench = Bench::new(&w);
        let image = |version: &str| {
            ImageSpec::new(version)
                .volume("/data")
                .healthcheck(Duration::from_millis(100), 3)
        };
        let images = [w.load(image("v1")).await?, w.load(image("v2")).await?];
        let network = w.network("net").await?;
        let spec = ContainerSpec::new("a", &images[0])
            .network(&network, &["web"])
            .anonymous_volume("/mine")
            .publish_at(8000, crate::ports::free_port()?)
            .env("KEY", "mine");
        w.run(spec).await?;
        bench.refreshed(&w.name("a"), &images[1]).await?;
        let first = bench.inspect(&w.name("a")).await?;
        for turn in 0..4 {
            bench.refreshed(&w.name("a"), &images[turn % 2]).await?;
        }
        let last = bench.inspect(&w.name("a")).await?;
        assert_eq!(crate::changes::changes(&first, &last), Vec::<String>::new());
        bench.only(&[&w.name("a")]).await
    })
    .await
}
