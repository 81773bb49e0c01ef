//! Containers that live on another one: they follow it when it is replaced, and it is put back for them when that fails.

use std::time::Duration;

use refit::container::State;
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};

use crate::bench::{Bench, told};

/// One that lives in the network of another, and answers at a port of its own there.
async fn follower(
    w: &World,
    provider: &str,
    image: &str,
) -> anyhow::Result<refit_tests::world::Running> {
    let id = w.inspect(provider).await?.id.unwrap_or_default();
    let spec = ContainerSpec::new("follower", image)
        .env("PORT", "8001")
        .host(|host| host.network_mode = Some(format!("container:{id}")));
    w.run(spec).await
}

/// What both answer at the provider's address.
async fn answers(w: &World, provider: &str) -> anyhow::Result<[String; 2]> {
    w.until_listening(provider).await?;
    w.until_listening(&w.name("follower")).await?;
    let address = w.address(provider).await?;
    Ok([
        w.read_line_at((address, 8000).into()).await?,
        w.read_line_at((address, 8001).into()).await?,
    ])
}

/// 36
#[tokio::test]
async fn who_lives_in_its_network_follows() -> anyhow::Result<()> {
    with_world("who lives in its network follows", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let network = w.network("net").await?;
        let provider = w
            .run(ContainerSpec::new("provider", &old).network(&network, &["web"]))
            .await?;
        let follower = follower(&w, &provider.name, &old).await?;
        assert_eq!(answers(&w, &provider.name).await?, ["v1", "v1"]);

        bench.refreshed(&provider.name, &new).await?;
        let after = bench.inspect(&follower.name).await?;
        assert_ne!(after.id.as_str(), follower.id);
        assert_eq!(
            after.network_mode(),
            format!("container:{}", bench.inspect(&provider.name).await?.id)
        );
        assert_eq!(
            after.image_id.as_str(),
            follower.image_id,
            "it keeps its own image"
        );
        assert_eq!(answers(&w, &provider.name).await?, ["v2", "v1"]);
        bench.only(&[&provider.name, &follower.name]).await
    })
    .await
}

/// 36: and the follower alone.
#[tokio::test]
async fn a_follower_that_is_replaced_stays_where_it_is() -> anyhow::Result<()> {
    with_world("a follower that is replaced", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w.run(ContainerSpec::new("provider", &old)).await?;
        let follower = follower(&w, &provider.name, &old).await?;
        bench.refreshed(&follower.name, &new).await?;
        assert_eq!(answers(&w, &provider.name).await?, ["v1", "v2"]);
        assert_eq!(
            bench.inspect(&provider.name).await?.id.as_str(),
            provider.id
        );
        bench.only(&[&provider.name, &follower.name]).await
    })
    .await
}

/// 36
#[tokio::test]
async fn a_provider_that_fails_comes_back_with_its_followers() -> anyhow::Result<()> {
    with_world("a provider that fails", |w| async move {
        let bench = Bench::new(&w).grace(Duration::from_secs(2));
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2").env("EXIT_AFTER_MS", "300"))
                .await?,
        );
        let provider = w.run(ContainerSpec::new("provider", &old)).await?;
        let follower = follower(&w, &provider.name, &old).await?;
        let error = bench.refused(&provider.name, &new).await?;
        assert!(
            matches!(error, RecreateError::RolledBack { .. }),
            "{error:?}"
        );
        for was in [&provider, &follower] {
            let now = bench.inspect(&was.name).await?;
            assert_eq!(
                (now.id.as_str(), now.state),
                (was.id.as_str(), State::Running)
            );
        }
        assert_eq!(answers(&w, &provider.name).await?, ["v1", "v1"]);
        bench.only(&[&provider.name, &follower.name]).await
    })
    .await
}

/// 36, 41
#[tokio::test]
async fn a_follower_that_would_vanish_keeps_its_provider() -> anyhow::Result<()> {
    with_world("a follower that would vanish", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w.run(ContainerSpec::new("provider", &old)).await?;
        let started = bench.started(&provider.id).await?;
        let spec = ContainerSpec::new("follower", &old)
            .env("PORT", "8001")
            .host(|host| {
                host.network_mode = Some(format!("container:{}", provider.id));
                host.auto_remove = Some(true);
            });
        let follower = w.run(spec).await?;
        let error = bench.refused(&provider.name, &new).await?;
        assert!(
            matches!(error, RecreateError::Unsupported { .. }),
            "{error:?}"
        );
        assert!(
            told(&error).contains("shares its network") && told(&error).contains("`--rm`"),
            "{}",
            told(&error)
        );
        assert_eq!(bench.started(&provider.id).await?, started);
        bench.only(&[&provider.name, &follower.name]).await
    })
    .await
}

/// 37: on a network of one's own a link goes by name, and finds whoever has it now.
#[tokio::test]
async fn links_by_name_stay_when_either_is_replaced() -> anyhow::Result<()> {
    with_world("links by name", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let network = w.network("net").await?;
        let provider = w
            .run(ContainerSpec::new("db", &old).network(&network, &["db"]))
            .await?;
        let user = w.create(ContainerSpec::new("user", &old)).await?;
        let links = serde_json::json!({"Links": [format!("{}:database", provider.name)]});
        refit::engine::Engine::connect(
            bench.engine.as_ref(),
            &refit::container::ContainerId::new(user.id),
            &network,
            &crate::bench::object(links),
        )
        .await?;
        w.start(&user.name).await?;
        w.until_listening(&user.name).await?;
        let before = bench.inspect(&user.name).await?;
        bench.refreshed(&provider.name, &new).await?;
        bench.refreshed(&user.name, &new).await?;
        assert_eq!(
            crate::bench::changes(&before, &bench.inspect(&user.name).await?),
            Vec::<String>::new()
        );
        Ok(())
    })
    .await
}

/// 37: on the default network a link goes with the container that has it.
#[tokio::test]
async fn a_link_on_the_default_network_comes_back() -> anyhow::Result<()> {
    with_world("a link on the default network", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w.run(ContainerSpec::new("db", &old)).await?;
        let user = w
            .run(
                ContainerSpec::new("user", &old)
                    .host(|host| host.links = Some(vec![format!("{}:database", provider.name)])),
            )
            .await?;
        bench.refreshed(&user.name, &new).await?;
        let after = bench.inspect(&user.name).await?;
        assert_eq!(
            after.host_config["Links"],
            serde_json::json!([format!("/{}:/{}/database", provider.name, user.name)])
        );
        Ok(())
    })
    .await
}

/// 50
#[tokio::test]
async fn what_compose_wrote_on_a_container_stays() -> anyhow::Result<()> {
    with_world("what compose wrote", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let labels = [
            ("com.docker.compose.project", "shop"),
            ("com.docker.compose.service", "web"),
            ("com.docker.compose.container-number", "1"),
            ("com.docker.compose.oneoff", "False"),
            ("com.docker.compose.config-hash", "c0ffee"),
        ];
        let spec = labels
            .iter()
            .fold(ContainerSpec::new("web", &old), |spec, (key, value)| {
                spec.label(key, value)
            });
        let a = w.run(spec).await?;
        bench.refreshed(&a.name, &new).await?;
        let after = bench.inspect(&a.name).await?;
        for (key, value) in labels {
            assert_eq!(after.label(key), Some(value));
        }
        Ok(())
    })
    .await
}
