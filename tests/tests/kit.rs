//! The kit tested by itself: if one of these fails, no other suite says anything about Refit.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use refit_tests::registry::{self, Access, Registry};
use refit_tests::{ContainerSpec, ImageSpec, World, engine, with_world};

#[tokio::test]
async fn the_engine_answers() -> anyhow::Result<()> {
    let docker = engine::shared().await?.client().await?;
    assert_eq!(docker.ping().await?, "OK");
    Ok(())
}

#[tokio::test]
async fn two_versions_are_two_images_and_publishing_does_not_touch_the_local_tag()
-> anyhow::Result<()> {
    with_world("two versions are two images", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        assert_eq!(
            w.image_id(&v1.reference).await?,
            None,
            "an image that was published elsewhere is not on the engine"
        );
        w.pull(&v1.reference).await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        assert_eq!(v1.reference, v2.reference);
        assert_ne!(v1.id, v2.id);
        assert_ne!(v1.digest, v2.digest);
        assert_eq!(
            w.image_id(&v1.reference).await?,
            Some(v1.id),
            "the tag moves with a pull, not with a publication"
        );
        assert_eq!(
            w.image_id(&v2.id).await?,
            None,
            "the new image is only in the registry"
        );
        w.pull(&v2.reference).await?;
        assert_eq!(w.image_id(&v2.reference).await?, Some(v2.id));

        let requests = registry.requests_for(w.prefix())?;
        let pushes = requests
            .iter()
            .filter(|request| request.method == "PUT" && request.path.contains("/manifests/"));
        assert_eq!(pushes.count(), 2, "{requests:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_private_registry_wants_the_right_login() -> anyhow::Result<()> {
    with_world("the private registry wants a login", |w| async move {
        let registry = registry::private().await?;
        let image = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        // Another world was never told the password.
        let reference = image.reference.clone();
        with_world("a stranger", |stranger| async move {
            let refusal = stranger
                .pull(&reference)
                .await
                .expect_err("an anonymous pull was let in");
            assert!(
                format!("{refusal:#}").contains("no basic auth credentials"),
                "{refusal:#}"
            );
            Ok(())
        })
        .await?;
        w.pull(&image.reference).await?;
        assert_eq!(w.image_id(&image.reference).await?, Some(image.id));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_stopped_registry_refuses_connections() -> anyhow::Result<()> {
    with_world("a stopped registry", |w| async move {
        let registry = Registry::start(Access::Anybody).await?;
        let image = w.publish(&registry, "hermes", ImageSpec::new("v1")).await?;
        registry.stop().await?;
        let refusal = w
            .pull(&image.reference)
            .await
            .expect_err("a stopped registry served an image");
        assert!(
            format!("{refusal:#}").contains("connection refused"),
            "{refusal:#}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_workspace_runs_stamps_and_stops_at_once() -> anyhow::Result<()> {
    with_world("a workspace runs", |w| async move {
        let image = w
            .publish(
                registry::open().await?,
                "hermes",
                ImageSpec::new("v1").cmd(&["serve"]),
            )
            .await?;
        let (volume, network) = (w.volume("data").await?, w.network("net").await?);
        let subnet = w.network_with_subnet("fixed").await?;
        let address = format!("{}.17", subnet.start);
        let spec = ContainerSpec::new("a", &image.reference)
            .network(&network, &["hermes"])
            .network_at(&subnet.network, &[], &address)
            .volume(&volume, "/data")
            .publish(8000)
            .env("STAMP_FILE", "/data/stamps");
        let a = w.run(spec).await?;
        assert_eq!(a.name, w.name("a"));
        assert_eq!(a.image_id, image.id);
        assert_eq!(w.read_line(&a.name).await?, "v1");
        assert_eq!(
            w.read_line_at(format!("{address}:8000").parse()?).await?,
            "v1"
        );
        let settings = w
            .inspect(&a.name)
            .await?
            .network_settings
            .context("no network settings")?;
        let port = settings.ports.context("no ports")?["8000/tcp"]
            .clone()
            .context("not published")?[0]
            .host_port
            .clone();
        let published = format!("127.0.0.1:{}", port.context("no host port")?);
        assert_eq!(w.read_line_at(published.parse()?).await?, "v1");

        w.stop(&a.name).await?;
        let stamps = w.volume_stamps(&volume, "stamps").await?;
        let events: Vec<_> = stamps
            .iter()
            .map(|stamp| (stamp.event.as_str(), stamp.more.as_str()))
            .collect();
        assert_eq!(events, [("start", "serve"), ("listen", ""), ("stop", "")]);
        assert_eq!(
            stamps,
            w.stamps(&a.name).await?,
            "file and log tell the same story"
        );
        let state = w.inspect(&a.name).await?.state.context("no state")?;
        assert_eq!(
            state.exit_code,
            Some(0),
            "137 would be a SIGKILL after the timeout"
        );
        assert_eq!(w.containers().await?, [a.name]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_program_misbehaves_on_request() -> anyhow::Result<()> {
    with_world("the program misbehaves", |w| async move {
        let image = w
            .load(ImageSpec::new("v1").healthcheck(Duration::from_millis(100), 1))
            .await?;
        let exits = ContainerSpec::new("exits", &image)
            .env("EXIT_AFTER_MS", "0")
            .env("LISTEN_AFTER_MS", "60000");
        let failure = w
            .run(exits)
            .await
            .expect_err("it listened in spite of its exit");
        assert!(
            format!("{failure:#}").contains("ended without the stamp `listen`"),
            "{failure:#}"
        );
        assert_eq!(
            w.inspect(&w.name("exits"))
                .await?
                .state
                .and_then(|state| state.exit_code),
            Some(1)
        );

        let healthy = w.run(ContainerSpec::new("healthy", &image)).await?;
        let sick = w
            .run(ContainerSpec::new("sick", &image).env("UNHEALTHY", "1"))
            .await?;
        assert_eq!(until_probed(&w, &healthy.name).await?, "healthy");
        assert_eq!(until_probed(&w, &sick.name).await?, "unhealthy");

        let stubborn = ContainerSpec::new("stubborn", &image)
            .env("IGNORE_TERM", "1")
            .body(|body| body.stop_timeout = Some(1));
        let stubborn = w.run(stubborn).await?;
        w.stop(&stubborn.name).await?;
        assert_eq!(
            w.inspect(&stubborn.name)
                .await?
                .state
                .and_then(|state| state.exit_code),
            Some(137)
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_world_that_panics_leaves_nothing_behind() -> anyhow::Result<()> {
    let world: Arc<Mutex<Option<World>>> = Arc::default();
    let slot = Arc::clone(&world);
    let test = tokio::spawn(with_world("this panics on purpose", move |w| async move {
        *slot.lock().unwrap() = Some(w.clone());
        let image = w
            .publish(
                registry::open().await?,
                "hermes",
                ImageSpec::new("v1").volume("/cache"),
            )
            .await?;
        let network = w.network("net").await?;
        let volume = w.volume("data").await?;
        w.run(
            ContainerSpec::new("a", &image.reference)
                .network(&network, &[])
                .volume(&volume, "/data"),
        )
        .await?;
        w.load(ImageSpec::new("v2")).await?;
        // The container, its named and its anonymous volume, the network, two images.
        assert_eq!(w.remains().await?.len(), 6, "{:?}", w.remains().await?);
        panic!("on purpose");
    }));
    let panic = test
        .await
        .expect_err("the panic was swallowed")
        .into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    let world = world
        .lock()
        .unwrap()
        .take()
        .context("the world was never made")?;
    assert_eq!(world.remains().await?, Vec::<String>::new());
    Ok(())
}

/// Awaits the first verdict of a healthcheck. The engine offers no call that waits for one.
async fn until_probed(w: &World, container: &str) -> anyhow::Result<String> {
    const LIMIT: Duration = Duration::from_secs(20);
    let probing = async {
        loop {
            let health = w
                .inspect(container)
                .await?
                .state
                .and_then(|state| state.health)
                .and_then(|health| health.status);
            match health.map(|status| status.to_string()) {
                Some(status) if status != "starting" => return Ok(status),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, probing)
        .await
        .context("no verdict of the healthcheck")?
}
