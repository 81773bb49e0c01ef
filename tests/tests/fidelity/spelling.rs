//! One thing in several spellings: paths, ports, networks of one name, and lists that an engine filled in by itself.

use bollard::models::NetworkCreateRequest;
use refit::model::container::Container;
use refit_tests::{ContainerSpec, ImageSpec, with_world};
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::changes::changes;

fn volumes(container: &Container) -> Vec<(String, Option<String>)> {
    let mounts = container.mounts.iter();
    let mut volumes: Vec<_> = mounts
        .map(|mount| (mount.destination.clone(), mount.name.clone()))
        .collect();
    volumes.sort();
    volumes
}

/// 38, 39: the engine cleans a path where it mounts, and shows the wish as it came.
#[tokio::test]
async fn path_with_a_trailing_slash_keeps_its_volume() -> anyhow::Result<()> {
    with_world("path with a trailing slash", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1").volume("/vol/")).await?,
            w.load(ImageSpec::new("v2").volume("/vol")).await?,
        );
        let named = w.volume("named").await?;
        let name = w.name("a");
        let host = json!({
            "Mounts": [
                {"Type": "volume", "Target": "/data/"},
                {"Type": "volume", "Target": "/x/../data2"},
                {"Type": "volume", "Source": named, "Target": "/named/"},
            ],
            "Binds": ["/usr/:/bound/:ro"],
            "Tmpfs": {"/scratch/": "size=1m"},
        });
        let config =
            json!({"Volumes": {"/cache/": {}, "/cache/below/": {}}, "WorkingDir": "/tmp/"});
        let before = bench.run(&name, &old, config, host).await?;
        assert_eq!(before.mounts.len(), 7, "{:#?}", before.mounts);
        for image in [&new, &old] {
            bench.refreshed(&name, image).await?;
            let after = bench.inspect(&name).await?;
            assert_eq!(volumes(&after), volumes(&before));
            assert_eq!(after.config["WorkingDir"], before.config["WorkingDir"]);
        }
        bench.only(&[&name]).await
    })
    .await
}

/// 25: the engine cleans the working directory of an image when it makes a container.
#[tokio::test]
async fn working_directory_of_an_image_follows_the_image() -> anyhow::Result<()> {
    with_world("working directory with a slash", |w| async move {
        let bench = Bench::new(&w);
        let image = |version: &str, working_dir: &str, port: &str| {
            let ports = json!({ port: {} });
            let spec = ImageSpec::new(version).working_dir(working_dir);
            spec.config("ExposedPorts", ports).stop_signal("SIGTERM")
        };
        let old = w.load(image("v1", "/tmp/", "81")).await?;
        let new = w.load(image("v2", "/data/", "82")).await?;
        let before = w.run(ContainerSpec::new("a", &old)).await?;
        bench.refreshed(&before.name, &new).await?;
        let after = bench.inspect(&before.name).await?;
        // Not every engine shows it cleaned.
        let shown = after.config["WorkingDir"].as_str().unwrap_or_default();
        assert_eq!(shown.trim_end_matches('/'), "/data");
        let ports = after.config["ExposedPorts"].as_object().cloned();
        let ports: Vec<String> = ports
            .unwrap_or_default()
            .into_iter()
            .map(|it| it.0)
            .collect();
        assert!(
            ports.iter().all(|port| !port.starts_with("81")),
            "{ports:?}"
        );
        Ok(())
    })
    .await
}

/// 32: Docker up to 24 lets two networks have one name. Such a name means neither.
#[tokio::test]
async fn network_that_shares_its_name_is_found_by_id() -> anyhow::Result<()> {
    with_world("networks of one name", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let (first, second) = (w.network("first").await?, w.network("second").await?);
        let by_id = w.docker().inspect_network(&first, None).await?.id.unwrap();
        w.run(ContainerSpec::new("a", &old).network(&first, &["web"]))
            .await?;
        let other = bollard::models::NetworkConnectRequest {
            container: w.name("a"),
            endpoint_config: None,
        };
        w.docker().connect_network(&second, other).await?;
        bench
            .run(
                &w.name("b"),
                &old,
                json!({}),
                json!({ "NetworkMode": by_id }),
            )
            .await?;
        for name in [&first, &second] {
            let request = NetworkCreateRequest {
                name: name.clone(),
                labels: Some(w.labels()),
                ..NetworkCreateRequest::default()
            };
            let made = w.docker().create_network(request).await;
            // Newer engines refuse.
            assert_eq!(made.is_ok(), bench.api().await? < (1, 44), "{made:?}");
        }
        for name in [w.name("a"), w.name("b")] {
            let before = bench.inspect(&name).await?;
            bench.refreshed(&name, &new).await?;
            let after = bench.inspect(&name).await?;
            assert_eq!(changes(&before, &after), Vec::<String>::new());
            let ids = |container: &Container| -> Vec<Value> {
                let endpoints = container.endpoints.values();
                endpoints.map(|it| it["NetworkID"].clone()).collect()
            };
            assert_eq!(ids(&after), ids(&before));
        }
        Ok(())
    })
    .await
}

/// 42: what an engine masks by itself depends on its version. After an upgrade the new engine's list holds.
#[tokio::test]
async fn masked_paths_of_an_older_engine_are_not_kept() -> anyhow::Result<()> {
    with_world("masked paths", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let lists = |container: &Container| {
            ["MaskedPaths", "ReadonlyPaths"].map(|list| container.host_config[list].clone())
        };
        let plain = bench
            .run(&w.name("plain"), &old, json!({}), json!({}))
            .await?;
        // Docker 18.09 did not know of /proc/asound.
        let older = json!({"MaskedPaths": [
            "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
            "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
        ]});
        let before = bench.run(&w.name("a"), &old, json!({}), older).await?;
        assert_ne!(lists(&before), lists(&plain));
        bench.refreshed(&w.name("a"), &new).await?;
        assert_eq!(lists(&bench.inspect(&w.name("a")).await?), lists(&plain));
        // As `--security-opt systempaths=unconfined` asks, and a list of one's own.
        for (name, wish) in [("none", json!([])), ("own", json!(["/proc/kcore"]))] {
            let host = json!({"MaskedPaths": wish, "ReadonlyPaths": wish});
            let before = bench.run(&w.name(name), &old, json!({}), host).await?;
            bench.refreshed(&w.name(name), &new).await?;
            let after = bench.inspect(&w.name(name)).await?;
            assert_eq!(lists(&after), lists(&before));
            assert_eq!(lists(&after), [wish.clone(), wish]);
        }
        Ok(())
    })
    .await
}
