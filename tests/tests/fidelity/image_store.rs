//! What an engine forgets about an image when its tag moves: everything (Docker 26 with the containerd image store), where it
//! came from (28 with that store), or nothing but the tag.

use std::collections::BTreeSet;
use std::path::Path;

use refit::engine::{Engine as _, PullError};
use refit::model::image::ImageRef;
use refit::recreate::retention;
use refit_tests::disk::Disk;
use refit_tests::registry::Registry;
use refit_tests::world::Running;
use refit_tests::{ContainerSpec, ImageSpec, World, registry, with_world};

use crate::bench::{Bench, docker, follower_names, told};
use crate::engine_faults::Between;

async fn publish(w: &World, registry: &Registry, version: &str) -> anyhow::Result<String> {
    let spec = ImageSpec::new(version).env("OF_IMAGE", version);
    let published = w.publish(registry, "app", spec).await?;
    Ok(published.reference)
}

/// Runs what the tag means now, with one variable of its own.
async fn run(w: &World, registry: &Registry, name: &str) -> anyhow::Result<Running> {
    let reference = w.reference(registry, "app");
    w.run(ContainerSpec::new(name, &reference).env("MINE", "1"))
        .await
}

/// It runs the version, with what is the image's and what is the user's.
async fn runs(bench: &Bench, name: &str, version: &str) -> anyhow::Result<()> {
    let container = bench.inspect(name).await?;
    let environment: BTreeSet<_> = container
        .environment()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    for variable in [&format!("OF_IMAGE={version}"), "MINE=1"] {
        anyhow::ensure!(environment.contains(variable), "{environment:?}");
    }
    Ok(())
}

/// 21, 49: again and again, by the one that pulled, by another process, and after somebody else has pulled.
#[tokio::test]
async fn container_is_recreated_although_the_engine_forgot_its_image() -> anyhow::Result<()> {
    with_world("engine forgets an image", |w| async move {
        let registry = registry::open().await?;
        let reference = publish(&w, registry, "v1").await?;
        w.pull(&reference).await?;
        let name = run(&w, registry, "a").await?.name;

        let bench = Bench::new(&w);
        for version in ["v2", "v3"] {
            publish(&w, registry, version).await?;
            let pulled = bench.pulled(&reference).await?;
            bench.refreshed_by(&name, pulled).await?;
            runs(&bench, &name, version).await?;
        }

        // Refit has pulled, and died before it replaced anything; another one goes on, which knows nothing.
        publish(&w, registry, "v4").await?;
        bench.pulled(&reference).await?;
        let other = Bench::new(&w);
        let pulled = other.pulled(&reference).await?;
        other.refreshed_by(&name, pulled).await?;
        runs(&other, &name, "v4").await?;

        publish(&w, registry, "v5").await?;
        w.pull(&reference).await?;
        let pulled = Bench::new(&w).pulled(&reference).await?;
        let recreated = Bench::new(&w).refreshed_by(&name, pulled).await?;
        runs(&other, &name, "v5").await?;
        assert_eq!(
            bench.inspect(&name).await?.image_id,
            recreated.image_id,
            "the new one"
        );
        bench.only(&[&name]).await
    })
    .await
}

/// 36: one that is replaced with its provider runs its own image again, under a name that tells its repository.
#[tokio::test]
async fn dependent_keeps_its_image_although_the_tag_moved() -> anyhow::Result<()> {
    with_world("dependent of a moved tag", |w| async move {
        let registry = registry::open().await?;
        let reference = publish(&w, registry, "v1").await?;
        w.pull(&reference).await?;
        let provider = run(&w, registry, "provider").await?;
        let follower = {
            let spec = ContainerSpec::new("follower", &reference).env("MINE", "1");
            let network = format!("container:{}", provider.id);
            let spec = spec.host(|host| host.network_mode = Some(network));
            // The provider listens at the port already.
            w.run(spec.env("PORT", "8001")).await?
        };
        let bench = Bench::new(&w);
        let of_follower = bench.inspect(&follower.name).await?.image_id;
        publish(&w, registry, "v2").await?;
        let pulled = bench.pulled(&reference).await?;
        let recreated = bench.refreshed_by(&provider.name, pulled).await?;
        assert_eq!(follower_names(&recreated), [follower.name.as_str()]);
        runs(&bench, &provider.name, "v2").await?;
        runs(&bench, &follower.name, "v1").await?;
        let after = bench.inspect(&follower.name).await?;
        assert_eq!(after.image_id, of_follower);
        let image: ImageRef = after.image().parse()?;
        assert_eq!(
            image.repository(),
            reference.parse::<ImageRef>()?.repository()
        );
        Ok(())
    })
    .await
}

/// 13: old images go, whatever the engine says of them; the newest stay where the engine keeps them at all.
#[tokio::test]
async fn old_images_go_beyond_the_number_that_is_kept() -> anyhow::Result<()> {
    with_world("old images go", |w| async move {
        let registry = registry::open().await?;
        let bench = Bench::new(&w);
        let engine = docker(&w);
        let mut pulled = Vec::new();
        for version in ["v1", "v2", "v3", "v4"] {
            let reference = publish(&w, registry, version).await?;
            pulled.push(bench.pulled(&reference).await?);
        }
        // One that has a name by its digest alone, as a pinned pull leaves it.
        let digest = pulled[0].digest.clone().unwrap();
        let repository = pulled[0].reference.repository();
        let pinned: ImageRef = format!("{repository}@{digest}").parse()?;
        engine.pull(&pinned, None, None, &|_| {}).await?;

        let is_here = async |index: usize| engine.image(pulled[index].id.as_str()).await.is_ok();
        let before = [
            is_here(0).await,
            is_here(1).await,
            is_here(2).await,
            is_here(3).await,
        ];
        assert!(before[0] && before[3], "{before:?}");
        let records = &bench.workshop().images;
        let repositories = BTreeSet::from([repository]);
        retention::sweep(&engine, records, &repositories, 1).await?;
        let after = [
            is_here(0).await,
            is_here(1).await,
            is_here(2).await,
            is_here(3).await,
        ];
        // Docker 26 with the containerd store drops what no name refers to: then the pinned one is the newest.
        let kept_by_engine = before[2];
        assert_eq!(after, [!kept_by_engine, false, kept_by_engine, true]);
        Ok(())
    })
    .await
}

/// 1: what would not fit is not begun; what the engine has already is not sent again, and takes no room.
#[tokio::test]
async fn pull_that_does_not_fit_is_not_begun() -> anyhow::Result<()> {
    with_world("pull that does not fit", |w| async move {
        let registry = registry::open().await?;
        let info = w.docker().info().await?;
        let engines_own = docker(&w).image_folder().await?;
        let root = info.docker_root_dir.unwrap_or_default();
        assert_eq!(engines_own.as_deref(), Some(Path::new(&root)));

        let folder = tempfile::tempdir()?;
        let disk = Disk::mount(folder.path().join("disk"), 12 << 20)?;
        let on_small_disk = || {
            let between = Between::new(&w).keeps_images_in(&disk.at);
            Bench::new(&w).asking_registries().through(between)
        };
        let reference = w.reference(registry, "app");
        // Its size would fit, and three times its size does not.
        let large = ImageSpec::new("v1").filling(5 << 20);
        w.publish(registry, "app", large).await?;
        let error = on_small_disk().pull(&reference).await?.unwrap_err();
        assert!(matches!(error, PullError::NoSpace { .. }), "{error:?}");
        for part in ["3 times", "is left in", &disk.at.display().to_string()] {
            assert!(told(&error).contains(part), "{}", told(&error));
        }
        assert_eq!(w.image_id(&reference).await?, None, "it was pulled");

        // Without an answer from the registry nothing is known, and nothing is held back.
        let between = Between::new(&w).keeps_images_in(&disk.at);
        Bench::new(&w).through(between).pulled(&reference).await?;
        w.publish(registry, "app", ImageSpec::new("v2")).await?;
        on_small_disk().pulled(&reference).await?;
        Ok(())
    })
    .await
}
