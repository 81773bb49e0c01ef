//! A refresh that does not work: nothing is stopped before its replacement exists, and who was stopped comes back.

use std::time::Duration;

use bollard::models::RestartPolicyNameEnum;
use refit_tests::world::Running;
use refit_tests::{ContainerSpec, ImageSpec, Proxy, World, registry, with_world};
use serde_json::Value;

use crate::{behind, container, refit, untouched};

/// A workspace on v1 whose v2 does not come up; the refresh is made. What the report says of it.
async fn is_rolled_back(
    w: &World,
    spec: impl FnOnce(ContainerSpec) -> ContainerSpec,
    v2: ImageSpec,
) -> anyhow::Result<Value> {
    let registry = registry::open().await?;
    let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
    let old = w
        .run(spec(ContainerSpec::new("hermes", &v1.reference)))
        .await?;
    w.publish(registry, "hermes", v2).await?;
    let output = refit(w, registry, &["hermes"])?
        .run(&["refresh", "--json"])
        .await?
        .expect(1);
    let report = output.json();
    let recreation = container(&report, &old.name)["recreation"].clone();
    assert_eq!(recreation["outcome"], "rolled-back", "{output}");
    runs_again(w, &old).await?;
    Ok(recreation)
}

/// The very container, under its own name, was stopped once and started again.
async fn runs_again(w: &World, old: &Running) -> anyhow::Result<()> {
    assert_eq!(
        w.inspect(&old.name).await?.id.as_deref(),
        Some(old.id.as_str())
    );
    assert_eq!(
        w.containers().await?,
        [old.name.as_str()],
        "something was left behind"
    );
    crate::until("the old one listen again", || async {
        let stamps = w.stamps(&old.id).await?;
        let events: Vec<_> = stamps.iter().map(|stamp| stamp.event.as_str()).collect();
        Ok(events == ["start", "listen", "stop", "start", "listen"])
    })
    .await?;
    assert_eq!(w.read_line(&old.name).await?, "v1");
    Ok(())
}

#[track_caller]
fn says(recreation: &Value, words: &str) {
    let told = format!("{} {}", recreation["error"], recreation["causes"]);
    assert!(
        told.contains(words),
        "it does not say `{words}`: {recreation:#}"
    );
}

#[tokio::test]
async fn a_replacement_that_exits_at_once_makes_way_for_the_old_one() -> anyhow::Result<()> {
    with_world("the replacement exits", |w| async move {
        let v2 = ImageSpec::new("v2").env("EXIT_AFTER_MS", "0");
        let recreation = is_rolled_back(&w, |spec| spec, v2).await?;
        says(&recreation, "cannot prove the replacement of");
        says(&recreation, "the old container is running again");
        says(&recreation, "exited with status 1");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_replacement_that_exits_again_and_again_makes_way_for_the_old_one() -> anyhow::Result<()>
{
    with_world("the replacement loops", |w| async move {
        let v2 = ImageSpec::new("v2").env("EXIT_AFTER_MS", "50");
        let always = |spec: ContainerSpec| spec.restart(RestartPolicyNameEnum::ALWAYS);
        let recreation = is_rolled_back(&w, always, v2).await?;
        says(&recreation, "cannot prove the replacement of");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_replacement_that_becomes_unhealthy_makes_way_for_the_old_one() -> anyhow::Result<()> {
    with_world("the replacement is unhealthy", |w| async move {
        let v2 = ImageSpec::new("v2")
            .healthcheck(Duration::from_millis(100), 1)
            .env("UNHEALTHY", "1");
        let recreation = is_rolled_back(&w, |spec| spec, v2).await?;
        says(&recreation, "cannot prove the replacement of");
        says(&recreation, "unhealthy");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn nothing_is_stopped_when_the_replacement_cannot_be_made() -> anyhow::Result<()> {
    with_world("create fails", |w| async move {
        let registry = registry::open().await?;
        let (old, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        proxy.refuse(
            "POST",
            "/containers/create",
            500,
            "no more containers today",
        );
        let output = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .run(&["refresh", "--json"])
            .await?
            .expect(1);
        let report = output.json();
        let recreation = &container(&report, &old.name)["recreation"];
        assert_eq!(recreation["outcome"], "aborted", "{output}");
        says(recreation, "cannot create the replacement of");
        says(recreation, "never stopped");
        says(recreation, "no more containers today");
        assert!(
            !proxy
                .changes()
                .iter()
                .any(|asked| asked.path.ends_with("/stop"))
        );
        untouched(&w, &old).await
    })
    .await
}

#[tokio::test]
async fn a_replacement_is_made_before_the_old_one_is_stopped() -> anyhow::Result<()> {
    with_world("create comes before stop", |w| async move {
        let registry = registry::open().await?;
        let (old, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .run(&["refresh"])
            .await?
            .expect(0);
        let changes = proxy.changes();
        let at = |what: &dyn Fn(&str, &str) -> bool| {
            let found = changes.iter().position(|it| what(&it.method, &it.path));
            found.unwrap_or_else(|| panic!("it never happened: {changes:#?}"))
        };
        let order = [
            at(&|_, path| path == "/images/create"),
            at(&|_, path| path == "/containers/create"),
            at(&|_, path| path == format!("/containers/{}/stop", old.id)),
            at(&|_, path| path.ends_with("/start")),
            at(&|method, path| method == "DELETE" && path == format!("/containers/{}", old.id)),
        ];
        assert!(order.is_sorted(), "{changes:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_replacement_whose_name_is_taken_is_left_to_whoever_took_it() -> anyhow::Result<()> {
    with_world("another Refit is at work", |w| async move {
        let registry = registry::open().await?;
        let (old, _) = behind(&w, registry, "hermes").await?;
        // As the replacement that another Refit is just making.
        let name = format!("refit-new.{}", &old.id[..12]);
        let other = w.create(ContainerSpec::named(&name, &old.image_id)).await?;
        let output = refit(&w, registry, &["hermes"])?
            .run(&["refresh", "--json"])
            .await?
            .expect(1);
        let report = output.json();
        let recreation = &container(&report, &old.name)["recreation"];
        assert_eq!(recreation["outcome"], "busy", "{output}");
        untouched(&w, &old).await?;
        assert!(
            w.container_exists(&other.id).await?,
            "it is not ours to remove"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_old_one_that_cannot_be_put_back_is_kept_and_named() -> anyhow::Result<()> {
    with_world("neither starts", |w| async move {
        let registry = registry::open().await?;
        let (old, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        proxy.refuse("POST", "/start", 500, "nothing starts today");
        let output = refit(&w, registry, &["hermes"])?
            // Another test's Refit would find that this one died at it, and put the container back.
            .set("state_dir", "state")
            .env("DOCKER_HOST", &proxy.docker_host())
            .run(&["refresh", "--json"])
            .await?
            .expect(1);
        let report = output.json();
        let recreation = &container(&report, &old.name)["recreation"];
        assert_eq!(recreation["outcome"], "stranded", "{output}");
        says(recreation, &old.id);
        says(recreation, "nothing starts today");
        assert!(
            w.container_exists(&old.id).await?,
            "it must never be removed"
        );
        Ok(())
    })
    .await
}
