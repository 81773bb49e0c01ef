//! Data: the same volumes under the same paths, whoever named them, and whatever becomes of the replacement.

use bollard::models::{Mount, MountType};
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};
use serde_json::json;

use crate::bench::Bench;
use crate::changes::changes;

/// The volume mounted there.
async fn volume_at(w: &World, container: &str, path: &str) -> anyhow::Result<String> {
    let mounts = w.inspect(container).await?.mounts.unwrap_or_default();
    let mount = mounts
        .into_iter()
        .find(|mount| mount.destination.as_deref() == Some(path));
    Ok(mount.and_then(|mount| mount.name).unwrap_or_default())
}

/// 38, 39: named by the user, by the engine through `-v`, `--mount` and the image's `VOLUME`.
#[tokio::test]
async fn every_volume_is_mounted_again_with_its_data() -> anyhow::Result<()> {
    with_world("every volume is mounted again", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1").volume("/of-image")).await?,
            w.load(ImageSpec::new("v2").volume("/of-image")).await?,
        );
        let named = w.volume("data").await?;
        let mount = Mount {
            typ: Some(MountType::VOLUME),
            target: Some("/mounted".into()),
            ..Mount::default()
        };
        let spec = ContainerSpec::new("a", &old)
            .volume(&named, "/named")
            .anonymous_volume("/by-path")
            .host(|host| host.mounts = Some(vec![mount]));
        let paths = ["/named", "/by-path", "/mounted", "/of-image"];
        // One of them keeps a diary.
        let mut names = Vec::new();
        w.run(spec.env("STAMP_FILE", "/of-image/stamps")).await?;
        for path in paths {
            names.push(volume_at(&w, &w.name("a"), path).await?);
        }
        for image in [&new, &old] {
            bench.refreshed(&w.name("a"), image).await?;
            w.until_listening(&w.name("a")).await?;
            for (path, name) in paths.iter().zip(&names) {
                assert_eq!(volume_at(&w, &w.name("a"), path).await?, *name, "{path}");
            }
        }
        let stamps = w.volume_stamps(&names[3], "stamps").await?;
        let starts: Vec<_> = stamps
            .iter()
            .filter(|stamp| stamp.event == "start")
            .map(|stamp| stamp.version.as_str())
            .collect();
        assert_eq!(starts, ["v1", "v2", "v1"]);
        Ok(())
    })
    .await
}

/// 39: what the replacement took over stays when it is discarded, and what was made for it goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_fails_takes_only_its_own_volumes_with_it() -> anyhow::Result<()> {
    with_world("a replacement that fails", |w| async move {
        let old = w.load(ImageSpec::new("v1").volume("/data")).await?;
        let failing = ImageSpec::new("v2")
            .volume("/data")
            .volume("/tmp")
            .env("EXIT_AFTER_MS", "300");
        let new = w.load(failing).await?;
        w.run(
            ContainerSpec::new("a", &old)
                .anonymous_volume("/mine")
                .env("STAMP_FILE", "/data/stamps"),
        )
        .await?;
        let kept = [
            volume_at(&w, &w.name("a"), "/data").await?,
            volume_at(&w, &w.name("a"), "/mine").await?,
        ];
        let seen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (world, noted) = (w.clone(), seen.clone());
        let bench = Bench::new(&w)
            .grace(std::time::Duration::from_secs(2))
            .before(refit::model::recreation::Step::Prove, move || {
                let (world, noted) = (world.clone(), noted.clone());
                async move {
                    let volume = volume_at(&world, &world.name("a"), "/tmp").await.unwrap();
                    *noted.lock().unwrap() = volume;
                }
            });
        let error = bench.refused(&w.name("a"), &new).await?;
        assert!(
            matches!(error, RecreateError::RolledBack { .. }),
            "{error:?}"
        );
        for volume in &kept {
            w.docker().inspect_volume(volume).await?;
        }
        let made = seen.lock().unwrap().clone();
        assert_eq!(made.len(), 64, "the replacement had a volume of its own");
        assert!(
            w.docker().inspect_volume(&made).await.is_err(),
            "`{made}` is left over"
        );
        w.until_listening(&w.name("a")).await?;
        let stamps = w.volume_stamps(&kept[0], "stamps").await?;
        let starts: Vec<_> = stamps
            .iter()
            .filter(|stamp| stamp.event == "start")
            .map(|stamp| stamp.version.as_str())
            .collect();
        assert_eq!(starts, ["v1", "v2", "v1"]);
        Ok(())
    })
    .await
}

/// 39: an image that declares one volume more gets it, and one that declares one less loses nothing.
#[tokio::test]
async fn volumes_that_images_declare_come_and_stay() -> anyhow::Result<()> {
    with_world("volumes that images declare", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1").volume("/data")).await?,
            w.load(ImageSpec::new("v2").volume("/tmp")).await?,
        );
        w.run(ContainerSpec::new("a", &old)).await?;
        let data = volume_at(&w, &w.name("a"), "/data").await?;
        bench.refreshed(&w.name("a"), &new).await?;
        assert_eq!(volume_at(&w, &w.name("a"), "/data").await?, data);
        assert_eq!(volume_at(&w, &w.name("a"), "/tmp").await?.len(), 64);
        Ok(())
    })
    .await
}

/// 40: in either order, by name.
#[tokio::test]
async fn volumes_from_another_container_stay_when_either_is_replaced() -> anyhow::Result<()> {
    with_world("volumes from another container", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1").volume("/data")).await?,
            w.load(ImageSpec::new("v2").volume("/data")).await?,
        );
        let plain = w.load(ImageSpec::new("v1")).await?;
        let provider = w
            .run(ContainerSpec::new("provider", &old).volume(&w.volume("named").await?, "/named"))
            .await?;
        let before = bench
            .run(
                &w.name("user"),
                &plain,
                json!({}),
                json!({"VolumesFrom": [format!("{}:ro", provider.name)]}),
            )
            .await?;
        let data = volume_at(&w, &provider.name, "/data").await?;
        bench.refreshed(&provider.name, &new).await?;
        assert_eq!(volume_at(&w, &provider.name, "/data").await?, data);
        bench.forced().refreshed(&w.name("user"), &plain).await?;
        assert_eq!(volume_at(&w, &w.name("user"), "/data").await?, data);
        let after = Bench::new(&w).inspect(&w.name("user")).await?;
        let changes = changes(&before, &after);
        assert_eq!(changes, Vec::<String>::new());
        Ok(())
    })
    .await
}
