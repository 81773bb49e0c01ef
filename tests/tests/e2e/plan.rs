//! What a plan says, and that it changes nothing.

use refit_tests::registry::Registry;
use refit_tests::{ContainerSpec, ImageSpec, Proxy, World, registry, with_world};

use crate::snapshot::snapshot;
use crate::{behind, container, image, refit, replaced, untouched};

/// What was fetched of this world's images so far: manifests and layers, by whomever.
fn fetched(w: &World, registry: &Registry) -> anyhow::Result<usize> {
    let requests = registry.requests_for(w.prefix())?;
    Ok(requests
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains("/blobs/sha256:"))
        .count())
}

#[tokio::test]
async fn a_plan_says_what_a_refresh_would_do_and_does_none_of_it() -> anyhow::Result<()> {
    with_world("a plan does nothing", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let v1 = w.publish(registry, "crewai", ImageSpec::new("v1")).await?;
        let crewai = w.run(ContainerSpec::new("crewai", &v1.reference)).await?;

        let proxy = Proxy::before(&w).await?;
        let refit = refit(&w, registry, &["hermes", "crewai", "autogen"])?
            .env("DOCKER_HOST", &proxy.docker_host());
        let before = fetched(&w, registry)?;
        let output = refit
            .run(&[
                "plan",
                "--json",
                "--detailed-exitcode",
                "--runtime",
                "hermes",
                "--runtime",
                "crewai",
            ])
            .await?
            .expect(3);
        let report = output.json();
        assert_eq!(report["mode"], "plan");
        assert_eq!(image(&report, "hermes")["outcome"], "would-pull");
        assert_eq!(image(&report, "hermes")["digest"], v2.digest);
        assert_eq!(image(&report, "crewai")["outcome"], "up-to-date");
        let planned = &container(&report, &hermes.name)["recreation"];
        assert_eq!(planned["outcome"], "would-recreate");
        assert_eq!(planned["old_id"], hermes.id);
        assert_eq!(container(&report, &crewai.name)["verdict"], "current");

        assert_eq!(proxy.changes(), [], "a plan may only look");
        assert_eq!(
            fetched(&w, registry)?,
            before,
            "a plan may not fetch layers"
        );
        assert_eq!(
            w.image_id(&v2.reference).await?,
            Some(hermes.image_id.clone())
        );
        let (a, b) = (crewai.name.clone(), hermes.name.clone());
        assert_eq!(w.containers().await?, [a, b]);
        untouched(&w, &hermes).await?;
        untouched(&w, &crewai).await?;

        // As people read it, with an image that nobody has published.
        let output = refit.run(&["plan"]).await?.expect(1);
        snapshot!(&w, output.stdout, @r"");
        snapshot!(&w, output.stderr, @r"");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn after_a_refresh_there_is_nothing_to_plan_but_by_force() -> anyhow::Result<()> {
    with_world("plan, refresh, plan", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?;
        // Without the flag there is no third status.
        refit.run(&["plan"]).await?.expect(0);
        refit.run(&["refresh"]).await?.expect(0);
        replaced(&w, &hermes, &v2).await?;

        let output = refit
            .run(&["plan", "--json", "--detailed-exitcode"])
            .await?
            .expect(0);
        let report = output.json();
        assert_eq!(image(&report, "hermes")["outcome"], "up-to-date");
        assert_eq!(container(&report, &hermes.name)["verdict"], "current");

        let output = refit
            .run(&["plan", "--json", "--detailed-exitcode", "--force"])
            .await?
            .expect(3);
        let report = output.json();
        let planned = container(&report, &hermes.name);
        assert_eq!(planned["recreation"]["outcome"], "would-recreate");
        assert_eq!(planned["rule"], "forced");

        let output = refit
            .run(&["plan", "--detailed-exitcode", "--no-recreate"])
            .await?
            .expect(0);
        assert!(output.stdout.contains("current"), "{output}");
        Ok(())
    })
    .await
}
