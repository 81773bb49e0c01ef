//! What a plan says, and that it changes nothing.

use refit_tests::registry::Registry;
use refit_tests::{ContainerSpec, ImageSpec, Proxy, World, registry, with_world};

use crate::snapshot::{progress, snapshot};
use crate::{behind, container, image, refit, replaced, untouched};

/// Layers of this world's images that somebody fetched so far. `ids` are those of the images: an image's id is the digest of
/// its configuration, some hundred bytes that an engine reads to answer for which platform an image is.
fn layers_fetched(w: &World, registry: &Registry, ids: &[&str]) -> anyhow::Result<usize> {
    let requests = registry.requests_for(w.prefix())?;
    let blobs = requests.iter().filter_map(|request| {
        let (_, blob) = request.path.split_once("/blobs/")?;
        (request.method == "GET").then_some(blob)
    });
    Ok(blobs.filter(|blob| !ids.contains(blob)).count())
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
        let ids = [hermes.image_id.as_str(), v2.id.as_str(), crewai.image_id.as_str()];
        let before = layers_fetched(&w, registry, &ids)?;
        assert!(before > 0, "v1 was pulled: {:#?}", registry.requests_for(w.prefix())?);
        let output = refit
            .run(&["plan", "--json", "--detailed-exitcode", "--runtime", "hermes", "--runtime", "crewai"])
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
        assert_eq!(layers_fetched(&w, registry, &ids)?, before, "a plan may not fetch layers");
        assert_eq!(w.image_id(&v2.reference).await?, Some(hermes.image_id.clone()));
        let (a, b) = (crewai.name.clone(), hermes.name.clone());
        assert_eq!(w.containers().await?, [a, b]);
        untouched(&w, &hermes).await?;
        untouched(&w, &crewai).await?;

        // As people read it, with an image that nobody has published.
        let output = refit.run(&["plan"]).await?.expect(1);
        snapshot!(&w, output.stdout, @r#"
        not pulled        REGISTRY/PREFIX/workspace-template-autogen:latest
        up to date        REGISTRY/PREFIX/workspace-template-crewai:latest
        would pull        REGISTRY/PREFIX/workspace-template-hermes:latest

        current           ws-PREFIX-crewai  it runs what `REGISTRY/PREFIX/workspace-template-crewai:latest` stands for now
        would recreate    ws-PREFIX-hermes  `REGISTRY/PREFIX/workspace-template-hermes:latest` stands for another image now

        error: registry `REGISTRY` has no image `REGISTRY/PREFIX/workspace-template-autogen:latest`
          caused by: manifest unknown: manifest unknown

        hint: check the name and the tag: is the image published yet?
        hint: a private image and a missing one can look alike from outside

        images: 1 to pull, 1 up to date, 1 not pulled; containers: 1 to recreate, 1 current (plan, nothing was changed in N s)
        "#);
        snapshot!(&w, progress(&output.stderr), @r#"
        not pulled        REGISTRY/PREFIX/workspace-template-autogen:latest
        up to date        REGISTRY/PREFIX/workspace-template-crewai:latest
        would pull        REGISTRY/PREFIX/workspace-template-hermes:latest
        would recreate    ws-PREFIX-hermes
        "#);
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

#[tokio::test]
async fn a_status_says_whether_there_is_something_to_do_and_a_failure_goes_first()
-> anyhow::Result<()> {
    with_world("statuses of a plan", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes", "autogen"])?.set("state_dir", "state");
        let planned = async |arguments: &[&str]| {
            let arguments = [&["plan", "--detailed-exitcode"], arguments].concat();
            anyhow::Ok(refit.run(&arguments).await?.status)
        };
        assert_eq!(planned(&["--runtime", "hermes"]).await?, 3);
        // Nobody has published it: there is something to do, and it is not known whether that is all.
        assert_eq!(planned(&[]).await?, 1);
        assert_eq!(planned(&["--runtime", "nope"]).await?, 2);
        assert_eq!(planned(&["--colour"]).await?, 2);
        assert_eq!(
            planned(&[
                "--engine",
                "unix:///nonexistent.sock",
                "--runtime",
                "hermes"
            ])
            .await?,
            2
        );
        assert_eq!(planned(&["--config", "absent.toml"]).await?, 2);

        let daemon = refit.env("ADMIN_TOKEN", "s3cret").serve().await?;
        let ask = async |body: String, kind: &str| {
            daemon
                .send("POST", "/v1/plan", &[("Content-Type", kind)], body)
                .await
        };
        // By repository, whatever the tag.
        let images = format!(
            "{}/{}/workspace-template-hermes",
            registry.host(),
            w.prefix()
        );
        let plan = ask(
            format!("{{\"images\": [\"{images}\"]}}"),
            "application/json",
        )
        .await?
        .json()?;
        assert_eq!(plan["images"].as_array().map(Vec::len), Some(1), "{plan:#}");
        assert_eq!(
            (
                &plan["summary"]["would_pull"],
                &plan["summary"]["would_recreate"]
            ),
            (&1.into(), &1.into())
        );
        for (body, kind, status) in [
            ("{}".to_owned(), "text/plain", 415),
            ("{}x".to_owned(), "application/json", 400),
            ("{\"force\": \"yes\"}".to_owned(), "application/json", 422),
            (
                format!("{{\"targets\": [\"{}\"]}}", "x".repeat(70_000)),
                "application/json",
                413,
            ),
        ] {
            let answer = ask(body.clone(), kind).await?;
            assert_eq!(answer.status, status, "{body:.30}: {}", answer.text);
            assert_eq!(answer.json()?["code"], "bad-body");
        }
        let answer = refit_tests::http::request(daemon.address, "POST", "/v1/plan", None).await?;
        assert_eq!(answer.status, 401);
        let answer = daemon.request("GET", "/v1/plan").await?;
        assert_eq!(answer.status, 405);
        untouched(&w, &hermes).await
    })
    .await
}
