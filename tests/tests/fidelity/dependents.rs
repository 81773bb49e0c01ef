//! Containers that live on another one: they follow it when it is replaced, and it is put back for them when that fails.

use std::time::Duration;

use anyhow::Context;
use refit::capabilities::Capabilities as _;
use refit::model::container::State;
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};
use serde_json::json;

use crate::bench::{Bench, follower_names, told};

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
            &refit::model::container::ContainerId::new(user.id),
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
            crate::changes::changes(&before, &bench.inspect(&user.name).await?),
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

/// 37: and one that links to a container which is replaced follows, or its link would be forgotten with the old container.
#[tokio::test]
async fn who_links_to_it_on_the_default_network_follows() -> anyhow::Result<()> {
    with_world("who links to it", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w.run(ContainerSpec::new("db", &old)).await?;
        let links = vec![format!("{}:database", provider.name)];
        let user = w
            .run(ContainerSpec::new("user", &old).host(|host| host.links = Some(links)))
            .await?;
        let before = bench.inspect(&user.name).await?;
        let recreated = bench.refreshed(&provider.name, &new).await?;
        assert_eq!(follower_names(&recreated), [user.name.as_str()]);

        let after = bench.inspect(&user.name).await?;
        assert_eq!(
            crate::changes::changes(&before, &after),
            Vec::<String>::new()
        );
        assert_eq!(
            after.host_config["Links"],
            json!([format!("/{}:/{}/database", provider.name, user.name)])
        );
        // The engine gives a linking container the other's address in its hosts file.
        let hosts = w
            .read_container_file(after.id.as_str(), "/etc/hosts")
            .await?;
        let address = w.address(&provider.name).await?.to_string();
        assert!(
            hosts
                .lines()
                .any(|line| line.starts_with(&address) && line.contains("database")),
            "{address} is not `database` in {hosts:?}"
        );
        bench.only(&[&provider.name, &user.name]).await
    })
    .await
}

/// 36: name spaces of processes and of memory end with the container that they are of, like that of a network.
#[tokio::test]
async fn who_lives_among_its_processes_or_in_its_memory_follows() -> anyhow::Result<()> {
    with_world("processes and memory", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w
            .run(
                ContainerSpec::new("provider", &old)
                    .host(|host| host.ipc_mode = Some("shareable".into())),
            )
            .await?;
        let mode = format!("container:{}", provider.id);
        let (of_processes, of_memory) = (mode.clone(), mode);
        let processes =
            ContainerSpec::new("processes", &old).host(|host| host.pid_mode = Some(of_processes));
        let memory =
            ContainerSpec::new("memory", &old).host(|host| host.ipc_mode = Some(of_memory));
        let (processes, memory) = (w.run(processes).await?, w.run(memory).await?);

        let recreated = bench.refreshed(&provider.name, &new).await?;
        let mut followed = follower_names(&recreated);
        followed.sort();
        assert_eq!(followed, [memory.name.as_str(), processes.name.as_str()]);
        let expected = format!("container:{}", bench.inspect(&provider.name).await?.id);
        for (name, key) in [(&processes.name, "PidMode"), (&memory.name, "IpcMode")] {
            let after = bench.inspect(name).await?;
            assert_eq!(after.host_config[key], json!(expected));
            assert_eq!(after.state, State::Running);
        }
        bench
            .only(&[&provider.name, &processes.name, &memory.name])
            .await
    })
    .await
}

/// 36, 37: a chain, in which each has something of the one before it, moves as a whole and comes back as a whole.
#[tokio::test]
async fn who_depends_on_one_that_follows_follows_too() -> anyhow::Result<()> {
    with_world("a chain of dependents", |w| async move {
        let (old, new, broken) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
            w.load(ImageSpec::new("v3").env("EXIT_AFTER_MS", "300"))
                .await?,
        );
        let first = w.run(ContainerSpec::new("first", &old)).await?;
        let mode = format!("container:{}", first.id);
        let second = w
            .run(ContainerSpec::new("second", &old).host(|host| host.pid_mode = Some(mode)))
            .await?;
        let links = vec![
            format!("{}:two", second.name),
            format!("{}:one", first.name),
        ];
        let third = w
            .run(ContainerSpec::new("third", &old).host(|host| host.links = Some(links)))
            .await?;
        let names = [&first.name, &second.name, &third.name];
        let bench = Bench::new(&w);
        let before = bench.inspect(&third.name).await?;
        let recreated = bench.refreshed(&first.name, &new).await?;
        assert_eq!(
            follower_names(&recreated),
            [second.name.as_str(), third.name.as_str()]
        );
        let mut running = Vec::new();
        for name in names {
            running.push(bench.inspect(name).await?);
        }
        assert_eq!(
            running[1].host_config["PidMode"],
            json!(format!("container:{}", running[0].id))
        );
        assert_eq!(
            crate::changes::changes(&before, &running[2]),
            Vec::<String>::new()
        );

        let error = Bench::new(&w)
            .grace(Duration::from_secs(2))
            .refused(&first.name, &broken)
            .await?;
        assert!(
            matches!(error, RecreateError::RolledBack { .. }),
            "{error:?}"
        );
        for was in &running {
            let now = bench.inspect(&was.name).await?;
            assert_eq!((&now.id, now.state), (&was.id, State::Running));
            assert_eq!(crate::changes::changes(was, &now), Vec::<String>::new());
        }
        bench.only(&names.map(String::as_str)).await
    })
    .await
}

/// 40: volumes outlive the container that they came from, so one that cannot follow is no reason to leave its provider alone.
#[tokio::test]
async fn who_has_its_volumes_follows_where_it_can() -> anyhow::Result<()> {
    with_world("who has its volumes", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w
            .run(ContainerSpec::new("provider", &old).anonymous_volume("/data"))
            .await?;
        let from = |volumes: &str| {
            let volumes = vec![volumes.to_owned()];
            move |host: &mut bollard::models::HostConfig| host.volumes_from = Some(volumes)
        };
        let by_name = ContainerSpec::new("name", &old).host(from(&provider.name));
        let by_id = ContainerSpec::new("id", &old).host(from(&format!("{}:ro", provider.id)));
        let stopped = ContainerSpec::new("stopped", &old).host(from(&provider.name));
        let (by_name, by_id, stopped) = (
            w.run(by_name).await?,
            w.run(by_id).await?,
            w.create(stopped).await?,
        );
        let volume = bench.inspect(&provider.name).await?.mounts[0].name.clone();

        let recreated = bench.refreshed(&provider.name, &new).await?;
        let mut followed = follower_names(&recreated);
        followed.sort();
        assert_eq!(followed, [by_id.name.clone(), by_name.name.clone()]);
        let provided = bench.inspect(&provider.name).await?;
        w.start(&stopped.name).await?;
        for (name, asked) in [
            (&by_name.name, provider.name.clone()),
            (&by_id.name, format!("{}:ro", provided.id)),
            (&stopped.name, provider.name.clone()),
        ] {
            let after = bench.inspect(name).await?;
            assert_eq!(after.state, State::Running);
            assert_eq!(after.host_config["VolumesFrom"], json!([asked]));
            assert_eq!(after.mounts[0].name, volume);
        }
        // And again, now that its provider has another id.
        bench.refreshed(&by_id.name, &new).await?;
        bench
            .only(&[&provider.name, &by_name.name, &by_id.name, &stopped.name])
            .await
    })
    .await
}

/// 36, 37: what does not run could never be started again, or would come back without its link.
#[tokio::test]
async fn stopped_dependent_is_replaced_and_stays_stopped() -> anyhow::Result<()> {
    with_world("a stopped dependent", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w.run(ContainerSpec::new("provider", &old)).await?;
        let links = vec![format!("{}:database", provider.name)];
        let user = w
            .create(ContainerSpec::new("user", &old).host(|host| host.links = Some(links)))
            .await?;
        let recreated = bench.refreshed(&provider.name, &new).await?;
        assert_eq!(follower_names(&recreated), [user.name.as_str()]);
        let after = bench.inspect(&user.name).await?;
        assert_ne!(after.id.as_str(), user.id);
        assert_eq!(after.state, State::Created, "it was not started");
        bench.only(&[&provider.name, &user.name]).await?;
        // It could never be started again otherwise.
        w.start(&user.name).await?;
        Ok(())
    })
    .await
}

/// A provider and its dependent that are both behind, in one wave: one replacement gives both their new images.
#[tokio::test]
async fn group_that_is_behind_is_replaced_at_once() -> anyhow::Result<()> {
    with_world("a group that is behind", |w| async move {
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
        // The dependent first: whoever comes first replaces the group.
        let wave = vec![
            bench.wanted(&follower.name, &new).await?,
            bench.wanted(&provider.name, &new).await?,
        ];
        for answer in bench.recreate_wave(wave).await {
            let recreated = answer.context("each member of the group is recreated")?;
            assert!(recreated.followers.is_empty(), "{recreated:?}");
        }
        assert_eq!(answers(&w, &provider.name).await?, ["v2", "v2"]);
        bench.only(&[&provider.name, &follower.name]).await
    })
    .await
}

/// A dependent that followed its provider in one wave and is asked for in the next: the policy knows it by the id that it had.
#[tokio::test]
async fn follower_gets_its_own_image_in_a_later_wave() -> anyhow::Result<()> {
    with_world("a later wave", |w| async move {
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
        let first = bench.wanted(&provider.name, &new).await?;
        let second = bench.wanted(&follower.name, &new).await?;
        let live = bench.live();
        for wanted in [first, second] {
            live.recreate(wanted)
                .await
                .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        }
        assert_eq!(answers(&w, &provider.name).await?, ["v2", "v2"]);
        bench.only(&[&provider.name, &follower.name]).await
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
        // The id of the image, which must become the new one's: Compose would make the container once more otherwise.
        let of_image = "com.docker.compose.image";
        let old_id = w.image_id(&old).await?.unwrap_or_default();
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
            })
            .label(of_image, &old_id);
        let a = w.run(spec).await?;
        bench.refreshed(&a.name, &new).await?;
        let after = bench.inspect(&a.name).await?;
        for (key, value) in labels {
            assert_eq!(after.label(key), Some(value));
        }
        assert_eq!(after.label(of_image), Some(after.image_id.as_str()));
        Ok(())
    })
    .await
}
