//! A refresh that works: what comes back, what it keeps, what it takes from the new image, and what is left alone.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context;
use bollard::models::{ContainerInspectResponse, RestartPolicyNameEnum};
use refit_tests::proxy::Asked;
use refit_tests::world::Stamp;
use refit_tests::{ContainerSpec, ImageSpec, Proxy, World, registry, with_world};
use serde_json::json;

use crate::snapshot::{progress, snapshot};
use crate::{behind, container, image, refit, replaced, untouched};

#[tokio::test]
async fn a_workspace_keeps_what_its_user_set_and_takes_what_its_image_changed() -> anyhow::Result<()>
{
    with_world("settings of two origins", |w| async move {
        let registry = registry::open().await?;
        let v1 = ImageSpec::new("v1")
            .cmd(&["serve"])
            .label("tier", "old")
            .healthcheck(Duration::from_millis(200), 9);
        let v1 = w.publish(registry, "hermes", v1).await?;
        let spec = ContainerSpec::new("hermes", &v1.reference)
            .env("USER_KEY", "kept")
            .env("MODEL_DEFAULT", "mine")
            .label("owner", "ann")
            .restart(RestartPolicyNameEnum::UNLESS_STOPPED);
        let old = w.run(spec).await?;
        let v2 = ImageSpec::new("v2")
            .cmd(&["serve", "--fast"])
            .env("ONLY_IN_V2", "1")
            .label("tier", "new")
            .healthcheck(Duration::from_millis(300), 7);
        let v2 = w.publish(registry, "hermes", v2).await?;

        let output = refit(&w, registry, &["hermes"])?
            .run(&["refresh", "--json"])
            .await?
            .expect(0);
        replaced(&w, &old, &v2).await?;
        assert_eq!(
            w.containers().await?,
            [old.name.as_str()],
            "something was left behind"
        );
        assert_eq!(w.read_line(&old.name).await?, "v2");
        let report = output.json();
        assert_eq!(image(&report, "hermes")["outcome"], "pulled");
        assert_eq!(image(&report, "hermes")["digest"], v2.digest);
        let recreation = &container(&report, &old.name)["recreation"];
        assert_eq!(recreation["outcome"], "recreated");
        assert_eq!(recreation["old_id"], old.id);
        assert_eq!(recreation["from_image_id"], old.image_id);
        assert_eq!(recreation["to_image_id"], v2.id);

        let now = w.inspect(&old.name).await?;
        assert_eq!(recreation["new_id"].as_str(), now.id.as_deref());
        let config = now.config.context("no config")?;
        assert_eq!(config.image, Some(v2.reference));
        let env = config.env.unwrap_or_default();
        for set in [
            "USER_KEY=kept",
            "MODEL_DEFAULT=mine",
            "WS_VERSION=v2",
            "ONLY_IN_V2=1",
        ] {
            assert!(env.contains(&set.to_owned()), "`{set}` is not in {env:?}");
        }
        assert_eq!(
            env.iter()
                .filter(|it| it.starts_with("WS_VERSION="))
                .count(),
            1
        );
        let labels = config.labels.unwrap_or_default();
        assert_eq!(labels["owner"], "ann");
        assert_eq!(labels["tier"], "new");
        assert_eq!(labels["org.opencontainers.image.version"], "v2");
        assert_eq!(config.cmd.unwrap_or_default(), ["serve", "--fast"]);
        let check = config.healthcheck.context("no health check")?;
        assert_eq!(
            (check.interval, check.retries),
            (Some(300_000_000), Some(7))
        );
        let restart = now.host_config.and_then(|host| host.restart_policy);
        assert_eq!(
            restart.and_then(|restart| restart.name),
            Some(RestartPolicyNameEnum::UNLESS_STOPPED)
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn data_stays_and_the_old_one_stops_before_the_new_one_starts() -> anyhow::Result<()> {
    with_world("data in volumes", |w| async move {
        let registry = registry::open().await?;
        let v1 = ImageSpec::new("v1").volume("/cache");
        let v1 = w.publish(registry, "hermes", v1).await?;
        let named = w.volume("data").await?;
        let spec = |name| ContainerSpec::new(name, &v1.reference).anonymous_volume("/scratch");
        let a = spec("a")
            .volume(&named, "/data")
            .env("STAMP_FILE", "/data/stamps");
        let a = w.run(a).await?;
        let b = w.run(spec("b").env("STAMP_FILE", "/cache/stamps")).await?;
        let c = w
            .run(spec("c").env("STAMP_FILE", "/scratch/stamps"))
            .await?;
        let v2 = ImageSpec::new("v2").volume("/cache");
        let v2 = w.publish(registry, "hermes", v2).await?;
        let volumes = [volumes(&w, &a.name).await?, volumes(&w, &b.name).await?];

        let output = refit(&w, registry, &["hermes"])?
            .run(&["refresh", "--json"])
            .await?
            .expect(0);
        assert_eq!(output.json()["summary"]["recreated"], 3);
        for old in [&a, &b, &c] {
            replaced(&w, old, &v2).await?;
        }
        assert_eq!(
            [
                crate::refresh::volumes(&w, &a.name).await?,
                crate::refresh::volumes(&w, &b.name).await?
            ],
            volumes,
            "the same volumes at the same places, named or not"
        );
        in_order(&w.volume_stamps(&named, "stamps").await?);
        for (container, file) in [(&b, "/cache/stamps"), (&c, "/scratch/stamps")] {
            let text = w.read_container_file(&container.name, file).await?;
            in_order(&refit_tests::world::stamps(&text));
        }
        Ok(())
    })
    .await
}

/// Name and place of every volume.
async fn volumes(w: &World, container: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mounts = w.inspect(container).await?.mounts.unwrap_or_default();
    let mut volumes: Vec<_> = mounts
        .into_iter()
        .map(|mount| {
            (
                mount.destination.unwrap_or_default(),
                mount.name.unwrap_or_default(),
            )
        })
        .collect();
    volumes.sort();
    assert!(volumes.len() >= 2, "{volumes:?}");
    Ok(volumes)
}

/// Both wrote into one file, one after the other.
#[track_caller]
fn in_order(stamps: &[Stamp]) {
    let told: Vec<_> = stamps
        .iter()
        .map(|stamp| (stamp.event.as_str(), stamp.version.as_str()))
        .collect();
    let order = [
        ("start", "v1"),
        ("listen", "v1"),
        ("stop", "v1"),
        ("start", "v2"),
        ("listen", "v2"),
    ];
    assert_eq!(told, order);
    assert!(stamps.is_sorted_by_key(|stamp| stamp.at_ms), "{stamps:?}");
}

#[tokio::test]
async fn a_workspace_is_found_where_it_was_by_name_alias_address_and_port() -> anyhow::Result<()> {
    with_world("networks and ports", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let (first, fixed) = (
            w.network("net").await?,
            w.network_with_subnet("fixed").await?,
        );
        let address = format!("{}.17", fixed.start);
        let port = free_port()?;
        let spec = ContainerSpec::new("hermes", &v1.reference)
            .network(&first, &["agent", "hermes"])
            .network_at(&fixed.network, &["static"], &address)
            .publish_at(8000, port);
        let old = w.run(spec).await?;
        let spec = ContainerSpec::new("ephemeral", &v1.reference).publish(8000);
        let ephemeral = w.run(spec).await?;
        let chosen = published_port(&w.inspect(&ephemeral.name).await?)?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;

        let output = refit(&w, registry, &["hermes"])?.run(&["refresh"]).await?;
        output.expect(0);
        replaced(&w, &old, &v2).await?;
        replaced(&w, &ephemeral, &v2).await?;
        let now = w.inspect(&old.name).await?;
        let networks = now
            .network_settings
            .and_then(|settings| settings.networks)
            .context("no networks")?;
        let mut names: Vec<_> = networks.keys().collect();
        names.sort();
        assert_eq!(names, [&fixed.network, &first]);
        let aliases = |network: &String| {
            let mut aliases = networks[network].aliases.clone().unwrap_or_default();
            // The engine adds the short id of each container by itself.
            aliases.retain(|alias| !now.id.as_deref().is_some_and(|id| id.starts_with(alias)));
            aliases
        };
        assert_eq!(
            aliases(&first),
            ["agent", "hermes"],
            "the old one's own id is no alias"
        );
        assert_eq!(aliases(&fixed.network), ["static"]);
        assert_eq!(
            w.read_line_at(format!("{address}:8000").parse()?).await?,
            "v2"
        );
        for port in [port, chosen] {
            let published = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            assert_eq!(w.read_line_at(published).await?, "v2");
        }
        Ok(())
    })
    .await
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn published_port(container: &ContainerInspectResponse) -> anyhow::Result<u16> {
    let ports = container
        .network_settings
        .as_ref()
        .and_then(|it| it.ports.as_ref());
    let bindings = ports.and_then(|ports| ports.get("8000/tcp")?.as_ref());
    let port = bindings.and_then(|bindings| bindings.first()?.host_port.as_ref());
    Ok(port.context("port 8000 is not published")?.parse()?)
}

#[tokio::test]
async fn one_unpublished_image_among_eight_costs_only_its_own_workspaces() -> anyhow::Result<()> {
    with_world("one of eight is unpublished", |w| async move {
        let registry = registry::open().await?;
        let runtimes = [
            "claude-code",
            "langgraph",
            "crewai",
            "autogen",
            "deepagents",
            "hermes",
            "gemini-cli",
            "openclaw",
        ];
        for runtime in runtimes
            .iter()
            .filter(|it| !matches!(**it, "hermes" | "openclaw"))
        {
            w.publish(registry, runtime, ImageSpec::new("v1")).await?;
        }
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        // It was published once, and is gone from the registry since.
        let build = w.load(ImageSpec::new("v1")).await?;
        let openclaw = w.reference(registry, "openclaw");
        w.tag(&build, &openclaw).await?;
        let openclaw = w.run(ContainerSpec::new("openclaw", &openclaw)).await?;

        let refit = refit(&w, registry, &runtimes)?;
        let output = refit.run(&["refresh", "--json"]).await?.expect(1);
        let report = output.json();
        assert_eq!(report["summary"]["pulled"], 7, "{output}");
        assert_eq!(report["summary"]["pull_failed"], 1);
        let failed = image(&report, "openclaw");
        assert_eq!(failed["outcome"], "failed");
        let error = failed["error"].as_str().unwrap_or_default();
        assert!(error.contains("has no image"), "{failed:#}");
        let left = container(&report, &openclaw.name);
        assert_eq!(
            (&left["verdict"], &left["rule"]),
            (&json!("unknown"), &json!("pull-failed"))
        );
        assert_eq!(
            container(&report, &hermes.name)["recreation"]["outcome"],
            "recreated"
        );
        replaced(&w, &hermes, &v2).await?;
        untouched(&w, &openclaw).await?;

        // As people read it, now that the rest is done.
        let output = refit.run(&["refresh"]).await?.expect(1);
        snapshot!(&w, output.stdout, @r#"
        up to date        REGISTRY/PREFIX/workspace-template-autogen:latest
        up to date        REGISTRY/PREFIX/workspace-template-claude-code:latest
        up to date        REGISTRY/PREFIX/workspace-template-crewai:latest
        up to date        REGISTRY/PREFIX/workspace-template-deepagents:latest
        up to date        REGISTRY/PREFIX/workspace-template-gemini-cli:latest
        up to date        REGISTRY/PREFIX/workspace-template-hermes:latest
        up to date        REGISTRY/PREFIX/workspace-template-langgraph:latest
        not pulled        REGISTRY/PREFIX/workspace-template-openclaw:latest

        current           ws-PREFIX-hermes  it runs what `REGISTRY/PREFIX/workspace-template-hermes:latest` stands for now
        unknown           ws-PREFIX-openclaw  the registry has no `REGISTRY/PREFIX/workspace-template-openclaw:latest`, as far as it tells

        error: registry `REGISTRY` has no image `REGISTRY/PREFIX/workspace-template-openclaw:latest`
          caused by: manifest for REGISTRY/PREFIX/workspace-template-openclaw:latest not found: manifest unknown: manifest unknown

        hint: check the name and the tag: is the image published yet?
        hint: a private image and a missing one can look alike from outside

        images: 7 up to date, 1 not pulled; containers: 1 current, 1 unknown (done in N s)
        "#);
        snapshot!(&w, progress(&output.stderr), @r#"
        not pulled        REGISTRY/PREFIX/workspace-template-openclaw:latest
        up to date        REGISTRY/PREFIX/workspace-template-autogen:latest
        up to date        REGISTRY/PREFIX/workspace-template-claude-code:latest
        up to date        REGISTRY/PREFIX/workspace-template-crewai:latest
        up to date        REGISTRY/PREFIX/workspace-template-deepagents:latest
        up to date        REGISTRY/PREFIX/workspace-template-gemini-cli:latest
        up to date        REGISTRY/PREFIX/workspace-template-hermes:latest
        up to date        REGISTRY/PREFIX/workspace-template-langgraph:latest
        "#);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_current_is_left_alone_until_force_is_asked_for() -> anyhow::Result<()> {
    with_world("current, then forced", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let old = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let refit = refit(&w, registry, &["hermes"])?;

        let output = refit.run(&["refresh", "--json"]).await?.expect(0);
        let report = output.json();
        assert_eq!(image(&report, "hermes")["outcome"], "up-to-date");
        assert_eq!(container(&report, &old.name)["verdict"], "current");
        assert_eq!(report["summary"]["recreated"], 0);
        untouched(&w, &old).await?;

        let output = refit.run(&["refresh", "--force"]).await?.expect(0);
        snapshot!(&w, output.stdout, @r#"
        up to date        REGISTRY/PREFIX/workspace-template-hermes:latest

        recreated         ws-PREFIX-hermes  N ms down; it already runs `REGISTRY/PREFIX/workspace-template-hermes:latest`, and the request asked to recreate it anyway

        images: 1 up to date; containers: 1 recreated (done in N s)
        "#);
        replaced(&w, &old, &v1).await
    })
    .await
}

#[tokio::test]
async fn where_nothing_is_to_be_done_the_engine_is_asked_to_change_nothing() -> anyhow::Result<()> {
    with_world("nothing to do", |w| async move {
        const CONTAINERS: usize = 12;
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let old = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let crewai = w.publish(registry, "crewai", ImageSpec::new("v1")).await?;
        let mut ids = vec![old.id.clone()];
        for number in 1..CONTAINERS {
            let image = [&v1, &crewai][number % 2];
            let spec = ContainerSpec::new(&format!("other-{number}"), &image.reference);
            ids.push(w.create(spec).await?.id);
        }
        let proxy = Proxy::before(&w).await?;
        let refit =
            refit(&w, registry, &["hermes", "crewai"])?.env("DOCKER_HOST", &proxy.docker_host());
        refit.run(&["refresh"]).await?.expect(0);
        let asked = proxy.asked();
        let read = |path: &str, last: &str| {
            let of = |it: &&Asked| it.path.starts_with(path) && it.path.ends_with(last);
            asked.iter().filter(of).count()
        };
        assert_eq!(proxy.changes(), [], "not even to pull");
        // More than one where another test on this engine is in the middle of a replacement: whose it is has to be found out.
        let lists = read("/containers/json", "");
        assert!((1..=5).contains(&lists), "{lists} lists: {asked:?}");
        assert_eq!(
            (read("/images/", "/json"), read("/distribution/", "")),
            (2, 0),
            "{asked:?}"
        );
        for id in &ids {
            let looked_at = read(&format!("/containers/{id}/json"), "");
            assert!(
                looked_at <= 1,
                "container {id}, {looked_at} times: {asked:?}"
            );
        }

        w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        refit.run(&["refresh"]).await?.expect(0);
        let pulls = proxy.changes();
        let pulls = pulls
            .iter()
            .filter(|it| it.path.ends_with("/images/create"));
        assert_eq!(pulls.count(), 1, "what is not here is pulled");
        anyhow::ensure!(!w.container_exists(&old.id).await?, "it was recreated");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_refresh_of_named_runtimes_leaves_the_others_alone() -> anyhow::Result<()> {
    with_world("named runtimes", |w| async move {
        let registry = registry::open().await?;
        let (hermes, hermes_v2) = behind(&w, registry, "hermes").await?;
        let (crewai, crewai_v2) = behind(&w, registry, "crewai").await?;
        let (autogen, autogen_v2) = behind(&w, registry, "autogen").await?;
        let refit = refit(&w, registry, &["hermes", "crewai", "autogen"])?;

        refit
            .run(&["refresh", "--runtime", "hermes"])
            .await?
            .expect(0);
        replaced(&w, &hermes, &hermes_v2).await?;
        untouched(&w, &crewai).await?;
        let output = refit
            .run(&[
                "refresh",
                "--json",
                "--runtime",
                "crewai",
                "--runtime",
                "hermes",
            ])
            .await?
            .expect(0);
        let report = output.json();
        assert_eq!(report["summary"]["recreated"], 1);
        assert_eq!(report["summary"]["current"], 1);
        replaced(&w, &crewai, &crewai_v2).await?;
        untouched(&w, &autogen).await?;
        assert_eq!(
            w.image_id(&autogen_v2.reference).await?,
            Some(autogen.image_id),
            "its image was pulled although nobody asked for it"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn images_can_be_pulled_without_recreating_anything() -> anyhow::Result<()> {
    with_world("--no-recreate", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let output = refit(&w, registry, &["hermes"])?
            .run(&["refresh", "--no-recreate", "--json"])
            .await?
            .expect(0);
        let report = output.json();
        let left = container(&report, &hermes.name);
        assert_eq!(
            (&left["verdict"], &left["rule"]),
            (&json!("stale"), &json!("recreate-not-asked"))
        );
        assert_eq!(w.image_id(&v2.reference).await?, Some(v2.id));
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn the_strategy_remove_removes_what_is_behind_and_keeps_its_data() -> anyhow::Result<()> {
    with_world("strategy remove", |w| async move {
        let registry = registry::open().await?;
        let v1 = ImageSpec::new("v1").volume("/cache");
        let v1 = w.publish(registry, "hermes", v1).await?;
        let data = w.volume("data").await?;
        let spec = ContainerSpec::new("hermes", &v1.reference).volume(&data, "/data");
        let hermes = w.run(spec).await?;
        let volumes = volumes(&w, &hermes.name).await?;
        let v1 = w.publish(registry, "crewai", ImageSpec::new("v1")).await?;
        let crewai = w.run(ContainerSpec::new("crewai", &v1.reference)).await?;
        w.publish(registry, "hermes", ImageSpec::new("v2")).await?;

        let output = refit(&w, registry, &["hermes", "crewai"])?
            .set("policy.config.strategy", "remove")
            .run(&["refresh", "--json"])
            .await?
            .expect(0);
        let report = output.json();
        assert_eq!(
            container(&report, &hermes.name)["recreation"]["outcome"],
            "removed"
        );
        assert_eq!(w.containers().await?, [crewai.name.as_str()]);
        untouched(&w, &crewai).await?;
        for (_, volume) in volumes {
            w.docker()
                .inspect_volume(&volume)
                .await
                .context("its data is gone")?;
        }
        Ok(())
    })
    .await
}
