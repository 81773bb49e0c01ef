//! The daemon: the platform's endpoint in its three shapes, who may ask, and what becomes of work when somebody leaves.

use refit_tests::{ContainerSpec, ImageSpec, Proxy, http, registry, with_world};
use serde_json::{Value, json};

use crate::snapshot::snapshot;
use crate::{behind, container, refit, replaced, until, untouched, without_engine};

const TOKEN: &str = "correct-horse-battery-staple";

/// The three keys of the platform's original answer.
fn original(answer: &Value) -> Value {
    json!({ "pulled": answer["pulled"], "failed": answer["failed"], "recreated": answer["recreated"] })
}

#[tokio::test]
async fn the_endpoint_answers_with_runtimes_and_container_names() -> anyhow::Result<()> {
    with_world("200", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let v1 = w.publish(registry, "crewai", ImageSpec::new("v1")).await?;
        let crewai = w.run(ContainerSpec::new("crewai", &v1.reference)).await?;
        let daemon = refit(&w, registry, &["hermes", "crewai", "openclaw"])?
            .serve()
            .await?;

        let answer = daemon.refresh("").await?;
        assert_eq!((answer.status, answer.content_type.as_str()), (200, "application/json"));
        let answer = answer.json()?;
        assert_eq!(
            original(&answer),
            json!({ "pulled": ["hermes", "crewai"], "failed": ["openclaw"], "recreated": [hermes.name] })
        );
        assert_eq!(container(&answer["report"], &crewai.name)["verdict"], "current");
        replaced(&w, &hermes, &v2).await?;
        untouched(&w, &crewai).await?;

        let again = daemon.refresh("?runtime=hermes&recreate=true").await?.json()?;
        let nothing = json!({ "pulled": ["hermes"], "failed": [], "recreated": [] });
        assert_eq!(original(&again), nothing, "up to date counts as pulled, as in the original");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_endpoint_names_the_runtimes_that_it_knows() -> anyhow::Result<()> {
    with_world("400", |w| async move {
        let registry = registry::open().await?;
        let proxy = Proxy::before(&w).await?;
        let daemon = refit(&w, registry, &["hermes", "crewai"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        let answer = daemon.refresh("?runtime=hermez").await?;
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (400, "application/json")
        );
        assert_eq!(
            answer.json()?,
            json!({ "error": "unknown runtime: hermez", "known_runtimes": ["hermes", "crewai"] })
        );
        assert_eq!(proxy.changes(), []);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_endpoint_says_what_was_done_before_containers_could_not_be_listed()
-> anyhow::Result<()> {
    with_world("500", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        proxy.refuse("GET", "/containers/json", 500, "the list is lost");
        let daemon = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        let answer = daemon.refresh("").await?;
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (500, "application/json")
        );
        let answer = answer.json()?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains("the list is lost"), "{answer:#}");
        // The image came all the same: the tag means the new one now.
        let partial = json!({ "pulled": ["hermes"], "failed": [], "recreated": [] });
        assert_eq!(answer["partial_result"], partial);
        assert_eq!(w.image_id(&v2.reference).await?, Some(v2.id));
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn anything_but_true_asks_for_no_recreation() -> anyhow::Result<()> {
    with_world("recreate=false", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let daemon = refit(&w, registry, &["hermes"])?.serve().await?;
        for recreate in ["false", "nonsense", "TRUE", ""] {
            let answer = daemon.refresh(&format!("?recreate={recreate}")).await?;
            assert_eq!(answer.status, 200);
            let answer = answer.json()?;
            assert_eq!(answer["recreated"], json!([]), "recreate={recreate}");
            assert_eq!(
                container(&answer["report"], &hermes.name)["verdict"],
                "stale"
            );
        }
        assert_eq!(w.image_id(&v2.reference).await?, Some(v2.id));
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn only_who_has_the_token_may_ask() -> anyhow::Result<()> {
    with_world("bearer token", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let daemon = refit(&w, registry, &["hermes"])?
            .secret(TOKEN)
            .env("ADMIN_TOKEN", &format!("{TOKEN}\n"))
            .serve()
            .await?;
        let path = "/admin/workspace-images/refresh";
        let almost = format!("{TOKEN}r");
        for token in [
            None,
            Some(""),
            Some("wrong"),
            Some(&TOKEN[1..]),
            Some(almost.as_str()),
        ] {
            let answer = http::request(daemon.address, "POST", path, token).await?;
            assert_eq!(answer.status, 401, "with {token:?}");
            assert_eq!(answer.content_type, "application/problem+json");
            assert_eq!(answer.json()?["code"], "unauthorized");
        }
        untouched(&w, &hermes).await?;
        // Who watches needs none.
        daemon.until_ready().await?;
        for path in ["/healthz", "/readyz"] {
            let answer = http::request(daemon.address, "GET", path, None).await?;
            assert_eq!(answer.status, 200, "{path}");
        }
        let answer = daemon.refresh("?recreate=false").await?;
        assert_eq!(
            answer.status, 200,
            "the token without the line break around it"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_token_can_come_from_a_file() -> anyhow::Result<()> {
    let refit = without_engine()?
        .secret(TOKEN)
        .file("token", format!("{TOKEN}\n"))?
        .set("serve.token_file", "token");
    let daemon = refit.serve().await?;
    let path = "/admin/workspace-images/refresh?runtime=nobody";
    let answer = http::request(daemon.address, "POST", path, None).await?;
    assert_eq!(answer.status, 401);
    let answer = http::request(daemon.address, "POST", path, Some(TOKEN)).await?;
    assert_eq!(answer.status, 400);
    drop(daemon);

    let output = refit
        .set("serve.token_file", "absent")
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2);
    output.says("cannot read the admin token from `absent`");
    Ok(())
}

#[tokio::test]
async fn without_a_token_it_listens_on_loopback_alone() -> anyhow::Result<()> {
    let refit = without_engine()?.set("serve.allow_no_token", true);
    let output = refit
        .run(&["serve", "--listen", "0.0.0.0:0"])
        .await?
        .expect(2);
    snapshot!(output.stderr, @r#"
    error: will not listen on 0.0.0.0:0 without an admin token: anybody who reaches it could recreate containers

    hint: unset `[serve] allow_no_token`, and a token is made; or set `ADMIN_TOKEN`, or `[serve] token_file`
    hint: or listen on loopback: `--listen 127.0.0.1:8787`
    "#);
    let output = refit
        .set("serve.listen", "[::]:0")
        .run(&["serve"])
        .await?
        .expect(2);
    output.says("will not listen on [::]:0 without an admin token");
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_said_as_a_problem() -> anyhow::Result<()> {
    let daemon = without_engine()?.serve().await?;
    for (method, path, status, code) in [
        (
            "GET",
            "/admin/workspace-images/refresh",
            405,
            "method-not-allowed",
        ),
        ("POST", "/admin/workspace-images", 404, "not-found"),
        ("GET", "/", 404, "not-found"),
        (
            "POST",
            "/admin/workspace-images/refresh?runtime=a&runtime=b",
            400,
            "bad-query",
        ),
    ] {
        let answer = daemon.request(method, path).await?;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            answer.content_type, "application/problem+json",
            "{method} {path}"
        );
        assert_eq!(answer.json()?["code"], code, "{method} {path}");
    }
    Ok(())
}

#[tokio::test]
async fn it_is_healthy_always_and_ready_only_with_an_engine() -> anyhow::Result<()> {
    with_world("healthz and readyz", |w| async move {
        let registry = registry::open().await?;
        let proxy = Proxy::before(&w).await?;
        let daemon = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        daemon.until_ready().await?;
        drop(proxy);
        until("it notice that the engine is gone", || async {
            Ok(daemon.request("GET", "/readyz").await?.status == 503)
        })
        .await?;
        let answer = daemon.request("GET", "/readyz").await?;
        assert_eq!(answer.content_type, "application/problem+json");
        assert_eq!(answer.json()?["code"], "engine-unavailable");
        assert!(
            !answer.text.contains("refit-proxy"),
            "strangers need not know where: {}",
            answer.text
        );
        assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_refresh_is_finished_although_its_client_hangs_up() -> anyhow::Result<()> {
    with_world("the client hangs up", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let a = w.run(ContainerSpec::new("a", &v1.reference)).await?;
        let b = w.run(ContainerSpec::new("b", &v1.reference)).await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        // One after the other, so that the second has not been begun when the client leaves.
        let daemon = refit(&w, registry, &["hermes"])?
            .set("limits.recreate_concurrency", 1)
            .set("limits.recreate_pipeline", 1)
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        {
            let asking = daemon.refresh("");
            tokio::select! {
                waiting = stop.until_waiting(1) => waiting?,
                answer = asking => panic!("it did not wait: {answer:?}"),
            }
        }
        stop.release();
        until("both replacements", || async {
            let gone = !w.container_exists(&a.id).await? && !w.container_exists(&b.id).await?;
            Ok(gone && w.containers().await? == [a.name.as_str(), b.name.as_str()])
        })
        .await?;
        replaced(&w, &a, &v2).await?;
        replaced(&w, &b, &v2).await
    })
    .await
}

#[tokio::test]
async fn two_requests_at_once_recreate_a_workspace_once() -> anyhow::Result<()> {
    with_world("two at once", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        let daemon = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        let first = daemon.refresh("");
        let second = async {
            stop.until_waiting(1).await?;
            let answer = daemon.refresh("").await;
            stop.release();
            answer
        };
        let (first, second) = tokio::try_join!(first, second)?;
        let (first, second) = (first.json()?, second.json()?);
        assert_eq!(first["recreated"], json!([hermes.name]));
        assert_eq!(second["recreated"], json!([]));
        let told = &container(&second["report"], &hermes.name)["recreation"];
        assert_eq!(told["outcome"], "busy", "{told:#}");
        replaced(&w, &hermes, &v2).await?;
        let stops = proxy
            .changes()
            .into_iter()
            .filter(|it| it.path.ends_with("/stop"));
        assert_eq!(stops.count(), 1);
        let third = daemon.refresh("").await?.json()?;
        assert_eq!(
            container(&third["report"], &hermes.name)["verdict"],
            "current"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_daemon_that_is_told_to_stop_finishes_what_it_began_and_begins_nothing()
-> anyhow::Result<()> {
    with_world("SIGTERM", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let a = w.run(ContainerSpec::new("a", &v1.reference)).await?;
        let b = w.run(ContainerSpec::new("b", &v1.reference)).await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        let daemon = refit(&w, registry, &["hermes"])?
            .set("limits.recreate_concurrency", 1)
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        let first = daemon.refresh("");
        let meanwhile = async {
            stop.until_waiting(1).await?;
            daemon.terminate()?;
            daemon.until_logged("nothing new is begun").await?;
            stop.release();
            Ok(())
        };
        let (first, ()) = tokio::try_join!(first, meanwhile)?;
        let first = first.json()?;
        // Both were asked for at once, and one went first.
        let (a, b) = match first["recreated"] == json!([a.name]) {
            true => (a, b),
            false => (b, a),
        };
        assert_eq!(first["recreated"], json!([a.name]));
        let left = &container(&first["report"], &b.name)["recreation"];
        assert_eq!(left["outcome"], "refused", "{left:#}");
        daemon.ended().await?.expect(0);
        replaced(&w, &a, &v2).await?;
        untouched(&w, &b).await
    })
    .await
}
