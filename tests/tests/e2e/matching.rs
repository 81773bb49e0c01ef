//! Which containers are meant: exact names, exact repositories, what inspection says of an image, and what is left alone.

use refit_tests::{ContainerSpec, ImageSpec, registry, with_world};
use serde_json::json;

use crate::{behind, container, refit, replaced, untouched};

#[tokio::test]
async fn names_and_repositories_match_whole_or_not_at_all() -> anyhow::Result<()> {
    with_world("names and repositories match whole", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let neighbour = w
            .publish(registry, "hermes-x", ImageSpec::new("v1"))
            .await?;
        let neighbour = w.run(ContainerSpec::new("x", &neighbour.reference)).await?;
        w.publish(registry, "hermes-x", ImageSpec::new("v2"))
            .await?;
        let containing = format!("my-ws-{}-x", w.prefix());
        let containing = w
            .run(ContainerSpec::named(&containing, &v2.reference))
            .await?;

        // The patterns that are in force where nobody configures any.
        let refit = refit(&w, registry, &["hermes"])?
            .set("policy.config.containers", "ws-*")
            .set("grants.containers", json!(["ws-*"]));
        let output = refit.run(&["refresh", "--json"]).await?.expect(0);
        replaced(&w, &hermes, &v2).await?;
        untouched(&w, &neighbour).await?;
        untouched(&w, &containing).await?;
        let report = output.json();
        let names: Vec<_> = report["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| it["name"].clone())
            .collect();
        assert_eq!(
            names,
            [json!(hermes.name)],
            "nobody else is any of its business"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_workspace_is_found_by_what_it_was_made_from_also_after_its_tag_has_moved()
-> anyhow::Result<()> {
    with_world("the tag has moved before", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        // From here on the engine's list shows an image id where the name was.
        w.pull(&v2.reference).await?;
        let output = refit(&w, registry, &["hermes"])?
            .run(&["refresh", "--json"])
            .await?
            .expect(0);
        assert_eq!(output.json()["summary"]["up_to_date"], 1);
        replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn an_exited_workspace_is_left_as_it_is() -> anyhow::Result<()> {
    with_world("an exited workspace", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        w.stop(&hermes.name).await?;
        // Not even by force.
        for arguments in [
            &["refresh", "--json"][..],
            &["refresh", "--json", "--force"],
        ] {
            let output = refit(&w, registry, &["hermes"])?
                .run(arguments)
                .await?
                .expect(0);
            let report = output.json();
            let report = container(&report, &hermes.name);
            assert_eq!(report["verdict"], "stale", "{output}");
            assert_eq!(report["rule"], "not-running", "{output}");
        }
        let now = w.inspect(&hermes.name).await?;
        assert_eq!(now.id, Some(hermes.id));
        assert_eq!(now.state.and_then(|state| state.running), Some(false));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_workspace_that_removes_itself_is_refused_with_the_reason() -> anyhow::Result<()> {
    with_world("--rm", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let spec =
            ContainerSpec::new("hermes", &v1.reference).host(|host| host.auto_remove = Some(true));
        let hermes = w.run(spec).await?;
        w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let output = refit(&w, registry, &["hermes"])?
            .run(&["refresh", "--json"])
            .await?
            .expect(1);
        let report = output.json();
        let recreation = &container(&report, &hermes.name)["recreation"];
        assert_eq!(recreation["outcome"], "refused", "{output}");
        let error = recreation["error"].as_str().unwrap_or_default();
        assert!(error.contains("--rm"), "{output}");
        untouched(&w, &hermes).await
    })
    .await
}

/// A container that no grant covers is not touched, whatever it shares with one that is covered.
#[tokio::test]
async fn follower_outside_the_grants_keeps_its_provider_as_it_is() -> anyhow::Result<()> {
    with_world("a follower outside the grants", |w| async move {
        let registry = registry::open().await?;
        let (provider, v2) = behind(&w, registry, "hermes").await?;
        let image = w.load(ImageSpec::new("database")).await?;
        let mode = format!("container:{}", provider.id);
        let database = format!("prod-db-{}", w.prefix());
        // The provider listens at the port already.
        let spec = ContainerSpec::named(&database, &image)
            .host(|host| host.network_mode = Some(mode))
            .env("PORT", "8001");
        let database = w.run(spec).await?;

        let refit = refit(&w, registry, &["hermes"])?;
        let output = refit.run(&["refresh", "--json"]).await?.expect(1);
        let report = output.json();
        let recreation = &container(&report, &provider.name)["recreation"];
        assert_eq!(recreation["outcome"], "refused", "{report:#}");
        let hints = recreation["hints"].to_string();
        assert!(hints.contains(&database.name), "{hints}");
        assert!(hints.contains("[grants] followers"), "{hints}");
        untouched(&w, &provider).await?;
        untouched(&w, &database).await?;
        // A plan says so too.
        let plan = refit.run(&["plan", "--json"]).await?.expect(1).json();
        let planned = &container(&plan, &provider.name)["recreation"];
        assert_eq!(planned["outcome"], "refused", "{plan:#}");

        // It counts, too.
        let few = crate::refit(&w, registry, &["hermes"])?
            .set("grants.followers", true)
            .set("limits.recreates_max", 1);
        let report = few.run(&["refresh", "--json"]).await?.expect(1).json();
        let recreation = &container(&report, &provider.name)["recreation"];
        assert!(
            recreation["causes"].to_string().contains("recreates_max"),
            "{report:#}"
        );
        untouched(&w, &database).await?;

        let refit = refit.set("grants.followers", true);
        refit.run(&["refresh"]).await?.expect(0);
        replaced(&w, &provider, &v2).await?;
        assert!(!w.container_exists(&database.id).await?, "it was replaced");
        Ok(())
    })
    .await
}
