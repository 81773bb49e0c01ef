//! The watcher: from an image that was pushed to the containers that run it, and all that may come in between.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use refit_tests::gateway::{Gateway, Tokens};
use refit_tests::refit::Daemon;
use refit_tests::registry::{self, Access, PASSWORD, Registry, USER};
use refit_tests::world::{Published, Running};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, http, progress, with_world};
use serde_json::{Value, json};

use crate::{behind, refit, replaced, until, untouched, without_engine};

/// An interval that does not come in a test.
const NEVER: u64 = 24 * 60 * 60;

fn watching(w: &World, registry: &Registry, runtimes: &[&str]) -> anyhow::Result<Refit> {
    Ok(refit(w, registry, runtimes)?
        // What it remembers is its own.
        .set("state_dir", "state")
        .set("watch.enabled", true)
        .set("watch.interval_seconds", 1)
        .set("watch.jitter_seconds", 0))
}

/// The same, for images that are reached through a gateway.
fn through(
    w: &World,
    gateway: &Gateway,
    registry: &Registry,
    runtimes: &[&str],
) -> anyhow::Result<Refit> {
    let images = format!("{}/{}/workspace-template-", gateway.host(), w.prefix());
    Ok(watching(w, registry, runtimes)?
        .set(
            "policy.config.images",
            format!("{images}{{runtime}}:latest"),
        )
        .set("grants.images", json!([format!("{images}*")])))
}

/// A workspace whose image is named as the gateway's, on v1.
async fn behind_gateway(
    w: &World,
    gateway: &Gateway,
    registry: &Registry,
    runtime: &str,
) -> anyhow::Result<Running> {
    let v1 = w.publish(registry, runtime, ImageSpec::new("v1")).await?;
    let name = v1.reference.replace(&registry.host(), &gateway.host());
    w.pull(&v1.reference).await?;
    w.tag(&v1.reference, &name).await?;
    w.run(ContainerSpec::new(runtime, &name)).await
}

async fn status(daemon: &Daemon) -> anyhow::Result<Value> {
    daemon.request("GET", "/v1/watch").await?.json()
}

/// Awaits what the watcher says of itself.
async fn until_status(
    daemon: &Daemon,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let (holds, last) = (&holds, std::cell::RefCell::new(Value::Null));
    let seen = until(what, || async {
        let status = status(daemon).await?;
        let seen = holds(&status);
        last.replace(status);
        Ok(seen)
    })
    .await;
    let last = last.into_inner();
    seen.with_context(|| format!("the last status is {last:#}\n{}", daemon.log()))?;
    Ok(last)
}

fn image<'a>(status: &'a Value, runtime: &str) -> &'a Value {
    let name = format!("/workspace-template-{runtime}:");
    let mut images = status["images"].as_array().into_iter().flatten();
    images
        .find(|it| {
            it["image"]
                .as_str()
                .is_some_and(|image| image.contains(&name))
        })
        .unwrap_or(&Value::Null)
}

fn is(runtime: &str, verdict: &str) -> impl Fn(&Value) -> bool {
    let (runtime, verdict) = (runtime.to_owned(), verdict.to_owned());
    move |status| image(status, &runtime)["verdict"] == *verdict
}

fn is_held(runtime: &str, by: &str) -> impl Fn(&Value) -> bool {
    let (runtime, by) = (runtime.to_owned(), by.to_owned());
    move |status| image(status, &runtime)["held"]["by"] == *by
}

/// So many looks more.
async fn looks(daemon: &Daemon, number: u64) -> anyhow::Result<Value> {
    let wanted = status(daemon).await?["looks"].as_u64().unwrap_or_default() + number;
    until_status(daemon, "more looks", |status| {
        status["looks"].as_u64() >= Some(wanted)
    })
    .await
}

async fn until_replaced(w: &World, old: &Running, new: &Published) -> anyhow::Result<()> {
    until("the container on the new image", || async {
        let now = w.inspect(&old.name).await;
        Ok(
            now.is_ok_and(|now| now.image.as_deref() == Some(new.id.as_str()))
                && !w.container_exists(&old.id).await?,
        )
    })
    .await?;
    replaced(w, old, new).await
}

/// How many refreshes there were.
async fn refreshes(daemon: &Daemon) -> anyhow::Result<usize> {
    let page = daemon.request("GET", "/v1/refreshes").await?.json()?;
    Ok(page["refreshes"].as_array().map_or(0, Vec::len))
}

#[tokio::test]
async fn what_is_pushed_comes_to_all_containers_by_itself() -> anyhow::Result<()> {
    with_world("watch: push", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        w.publish(registry, "langgraph", ImageSpec::new("v1")).await?;
        let mut containers = Vec::new();
        for name in ["a", "b", "c", "d"] {
            containers.push(w.run(ContainerSpec::new(name, &v1.reference)).await?);
        }
        let refit = watching(&w, registry, &["hermes", "langgraph"])?.set("watch.interval_seconds", 2);
        let daemon = refit.serve().await?;
        // It also gets what is published and not here, as the platform's own watcher does.
        until_status(&daemon, "both current", |it| it["summary"]["current"] == 2).await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let pushed = Instant::now();
        for container in &containers {
            until_replaced(&w, container, &v2).await?;
        }
        progress(&format!(
            "watcher, looks every 2 s, proof of 1 s, two at a time: {:.1} s from the push to 4 containers running it",
            pushed.elapsed().as_secs_f64()
        ));
        let status = until_status(&daemon, "it is current", is("hermes", "current")).await?;
        assert_eq!(image(&status, "hermes")["remote"], v2.digest.as_str());
        assert_eq!(image(&status, "hermes")["local"], v2.digest.as_str());
        let page = daemon.request("GET", "/v1/refreshes").await?.json()?;
        let last = &page["refreshes"][0];
        assert_eq!(last["request"]["trigger"], "schedule");
        let repository = v2.reference.trim_end_matches(":latest");
        assert_eq!(last["request"]["images"], json!([repository]), "and not the other one");
        assert_eq!(refreshes(&daemon).await?, 2);
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        Ok(())
    })
    .await
}

/// A push that changes only an attestation gives the tag a new digest and leaves the image as it is. The engine lists both
/// digests, sorted by their digits, so the old one may be the first.
#[tokio::test]
async fn image_with_two_digests_is_current() -> anyhow::Result<()> {
    with_world("watch: two digests", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let old = w.publish_attested(registry, &v1, "0").await?;
        w.pull(&old.reference).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &old.reference)).await?;
        let mut number = 0;
        loop {
            number += 1;
            let new = w
                .publish_attested(registry, &v1, &number.to_string())
                .await?;
            if new.digest > old.digest {
                break;
            }
        }
        w.pull(&old.reference).await?;
        let refit = watching(&w, registry, &["hermes"])?;
        refit.run(&["plan", "--detailed-exitcode"]).await?.expect(0);
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it is current", is("hermes", "current")).await?;
        let seen = image(&status, "hermes");
        assert_eq!(seen["local"], seen["remote"], "{status:#}");
        looks(&daemon, 3).await?;
        assert_eq!(refreshes(&daemon).await?, 0);
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_release_during_downtime_is_found_by_the_first_look() -> anyhow::Result<()> {
    with_world("watch: downtime", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let (langgraph, pulled) = behind(&w, registry, "langgraph").await?;
        // Somebody has pulled this one, and recreated nothing.
        w.pull(&pulled.reference).await?;
        let refit = watching(&w, registry, &["hermes", "langgraph"])?
            .unset("watch.enabled")
            .set("watch.interval_seconds", NEVER)
            .env("IMAGE_AUTO_REFRESH", "True");
        let daemon = refit.serve().await?;
        until_replaced(&w, &hermes, &v2).await?;
        until_replaced(&w, &langgraph, &pulled).await?;
        until_status(&daemon, "both current", |it| it["summary"]["current"] == 2).await?;
        assert_eq!(refreshes(&daemon).await?, 1, "one refresh for both");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_unknown_and_found_when_it_does() -> anyhow::Result<()> {
    with_world("watch: registry down", |w| async move {
        let registry = registry::open().await?;
        let gateway = Gateway::before(registry, Tokens::None).await?;
        let hermes = behind_gateway(&w, &gateway, registry, "hermes").await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        for method in ["HEAD", "GET"] {
            gateway.answer(method, 503, &[]);
        }
        let refit = through(&w, &gateway, registry, &["hermes"])?;
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it is unknown", is("hermes", "unknown")).await?;
        assert!(
            image(&status, "hermes")["reason"]
                .to_string()
                .contains("cannot reach registry"),
            "{status:#}"
        );
        looks(&daemon, 2).await?;
        assert_eq!(refreshes(&daemon).await?, 0);
        untouched(&w, &hermes).await?;
        gateway.pass();
        until_replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn a_limit_of_the_rate_is_obeyed_and_never_answered_with_a_pull() -> anyhow::Result<()> {
    with_world("watch: 429", |w| async move {
        let registry = registry::open().await?;
        let gateway = Gateway::before(registry, Tokens::None).await?;
        let hermes = behind_gateway(&w, &gateway, registry, "hermes").await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        gateway.answer("HEAD", 429, &[("retry-after", "12")]);
        let refit = through(&w, &gateway, registry, &["hermes"])?;
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it is unknown", is("hermes", "unknown")).await?;
        let limited = Instant::now();
        assert!(
            image(&status, "hermes")["reason"]
                .to_string()
                .contains("limits the rate"),
            "{status:#}"
        );
        looks(&daemon, 2).await?;
        // Nobody may talk a registry out of it.
        let server = format!("http://{}", daemon.address);
        refit
            .run(&["watch", "check", "--server", &server])
            .await?
            .expect(0);
        assert!(
            limited.elapsed() < Duration::from_secs(11),
            "the machine is too slow for this test"
        );
        let heads: Vec<_> = gateway
            .asked()
            .into_iter()
            .filter(|it| it.method == "HEAD")
            .collect();
        assert_eq!(heads.len(), 1, "{heads:#?}");
        assert!(
            gateway.asked().iter().all(|it| it.by_refit),
            "the engine was made to ask: {:#?}",
            gateway.asked()
        );
        untouched(&w, &hermes).await?;
        gateway.pass();
        until_replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn a_refresh_that_fails_stays_due_and_is_not_repeated_at_each_look() -> anyhow::Result<()> {
    with_world("watch: failed refresh", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        w.publish(
            registry,
            "hermes",
            ImageSpec::new("v2").env("EXIT_AFTER_MS", "1"),
        )
        .await?;
        let refit = watching(&w, registry, &["hermes"])?.set("watch.retry_seconds", 3600);
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it is put off", is_held("hermes", "backoff")).await?;
        assert_eq!(image(&status, "hermes")["verdict"], "behind", "{status:#}");
        assert_eq!(image(&status, "hermes")["containers"], json!([hermes.name]));
        looks(&daemon, 3).await?;
        assert_eq!(refreshes(&daemon).await?, 1);
        // A person may ask for it.
        let server = format!("http://{}", daemon.address);
        refit
            .run(&["watch", "check", "--server", &server])
            .await?
            .expect(0);
        until("a second refresh", || async {
            Ok(refreshes(&daemon).await? == 2)
        })
        .await?;
        until_status(&daemon, "it is put off again", is_held("hermes", "backoff")).await?;
        // It is still put off after a restart.
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let daemon = refit.serve().await?;
        until_status(&daemon, "it is still put off", is_held("hermes", "backoff")).await?;
        looks(&daemon, 2).await?;
        assert_eq!(refreshes(&daemon).await?, 2);
        // The next version is another matter.
        let now = w.inspect(&hermes.name).await?;
        let now = Running {
            id: now.id.context("it is there")?,
            ..hermes.clone()
        };
        let v3 = w.publish(registry, "hermes", ImageSpec::new("v3")).await?;
        until_replaced(&w, &now, &v3).await
    })
    .await
}

#[tokio::test]
async fn a_refresh_that_fails_is_tried_again_by_itself() -> anyhow::Result<()> {
    with_world("watch: retried", |w| async move {
        let registry = registry::open().await?;
        behind(&w, registry, "langgraph").await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        w.publish(
            registry,
            "hermes",
            ImageSpec::new("v2").env("EXIT_AFTER_MS", "1"),
        )
        .await?;
        let refit = watching(&w, registry, &["hermes", "langgraph"])?
            .set("watch.retry_seconds", 1)
            .set("watch.interval_seconds", NEVER);
        let daemon = refit.serve().await?;
        until("three refreshes", || async {
            Ok(refreshes(&daemon).await? >= 3)
        })
        .await?;
        let page = daemon.request("GET", "/v1/refreshes").await?.json()?;
        let asked: Vec<_> = page["refreshes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| it["request"]["images"].as_array().map_or(0, Vec::len))
            .collect();
        assert_eq!(asked.last(), Some(&2), "both at first");
        assert_eq!(asked[..2], [1, 1], "and then the one that failed: {page:#}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_image_is_adopted_when_it_is_old_enough_and_nobody_is_asked_again() -> anyhow::Result<()>
{
    with_world("watch: minimum age", |w| async move {
        let registry = registry::open().await?;
        let gateway = Gateway::before(registry, Tokens::None).await?;
        let hermes = behind_gateway(&w, &gateway, registry, "hermes").await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let refit = through(&w, &gateway, registry, &["hermes"])?
            .set("watch.interval_seconds", NEVER)
            // Longer than a daemon takes to stop and to start again, on a machine that is busy.
            .set("watch.minimum_age_seconds", 25);
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it waits", is_held("hermes", "age")).await?;
        let first_seen = image(&status, "hermes")["first_seen"].clone();
        // The clock goes on over a restart.
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it still waits", is_held("hermes", "age")).await?;
        assert_eq!(image(&status, "hermes")["first_seen"], first_seen);
        untouched(&w, &hermes).await?;
        gateway.forget();
        until_replaced(&w, &hermes, &v2).await?;
        let mut again: Vec<_> = gateway.asked_by_refit();
        // A look is a `HEAD`. On a disk with little room the size is asked for before the pull, by `GET`.
        again.retain(|asked| asked.method == "HEAD");
        assert_eq!(
            again,
            [],
            "what was found is adopted without another look at the registry"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pause_holds_over_a_restart_until_it_is_resumed() -> anyhow::Result<()> {
    with_world("watch: pause", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let refit = watching(&w, registry, &["hermes"])?
            .set("watch.interval_seconds", NEVER)
            .env("USER", "ana");
        let daemon = refit.serve().await?;
        until_status(&daemon, "it is current", is("hermes", "current")).await?;
        let server = format!("http://{}", daemon.address);
        let output = refit
            .run(&["watch", "pause", "--server", &server])
            .await?
            .expect(0);
        assert!(
            output.stdout.starts_with("PAUSED ") && output.stdout.contains(", by ana\n"),
            "{output}"
        );
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let output = refit
            .run(&["watch", "check", &v2.reference, "--server", &server])
            .await?
            .expect(0);
        assert!(output.stdout.contains(", waits for pause\n"), "{output}");
        daemon.terminate()?;
        daemon.ended().await?.expect(0);

        let daemon = refit.serve().await?;
        until_status(&daemon, "it waits", is_held("hermes", "pause")).await?;
        untouched(&w, &hermes).await?;
        assert_eq!(status(&daemon).await?["paused"]["by"], "ana");
        let server = format!("http://{}", daemon.address);
        refit
            .run(&["watch", "resume", "--server", &server])
            .await?
            .expect(0);
        until_replaced(&w, &hermes, &v2).await?;
        let output = refit
            .run(&["watch", "status", "--server", &server])
            .await?
            .expect(0);
        assert!(!output.stdout.contains("PAUSED"), "{output}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_window_that_is_closed_holds_what_was_found() -> anyhow::Result<()> {
    with_world("watch: window", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        // An hour that is twelve hours away, wherever in the day this runs.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let hour = (now.as_secs() / 3600 + 12) % 24;
        let window = |start: u64, end: u64| {
            json!([{ "start": format!("{start:02}:00"), "end": format!("{end:02}:00"), "time_zone": "UTC" }])
        };
        let refit = watching(&w, registry, &["hermes"])?.set("watch.windows", window(hour, (hour + 1) % 24));
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it waits", is_held("hermes", "window")).await?;
        assert!(image(&status, "hermes")["held"]["until"].is_string(), "{status:#}");
        looks(&daemon, 2).await?;
        untouched(&w, &hermes).await?;
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let refit = refit.set("watch.windows", window(hour, hour));
        let _daemon = refit.serve().await?;
        until_replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn a_registry_with_a_password_is_watched_with_the_login_of_pulls() -> anyhow::Result<()> {
    with_world("watch: basic", |w| async move {
        let registry = registry::private().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = watching(&w, registry, &["hermes"])?
            .secret("also-not-to-be-seen")
            .set("credentials.registry", registry.host());
        let refit = refit
            .env("GHCR_USER", USER)
            .env("GHCR_TOKEN", "also-not-to-be-seen");
        let daemon = refit.serve().await?;
        let status = until_status(&daemon, "it is unknown", is("hermes", "unknown")).await?;
        let reason = image(&status, "hermes")["reason"].to_string();
        assert!(reason.contains("was sent and refused"), "{reason}");
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let refit = refit.env("GHCR_TOKEN", PASSWORD).secret(PASSWORD);
        let _daemon = refit.serve().await?;
        until_replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn tokens_are_got_renewed_and_got_anew_when_they_are_withdrawn() -> anyhow::Result<()> {
    with_world("watch: tokens", |w| async move {
        let registry = registry::open().await?;
        let gateway = Gateway::before(registry, Tokens::For(300)).await?;
        let hermes = behind_gateway(&w, &gateway, registry, "hermes").await?;
        let refit = through(&w, &gateway, registry, &["hermes"])?
            .secret("token-not-to-be-seen")
            .set("credentials.registry", gateway.host())
            .env("GHCR_USER", USER)
            .env("GHCR_TOKEN", PASSWORD);
        let daemon = refit.serve().await?;
        until_status(&daemon, "it is current", is("hermes", "current")).await?;
        looks(&daemon, 3).await?;
        let tokens = || {
            gateway
                .asked_by_refit()
                .iter()
                .filter(|it| it.path == "/token")
                .count()
        };
        assert_eq!(tokens(), 1);
        gateway.withdraw();
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        until_replaced(&w, &hermes, &v2).await?;
        assert_eq!(tokens(), 2);
        Ok(())
    })
    .await
}

/// Puts an image that the registry has into so many more repositories: as often as `docker push` would find its layers there.
async fn spread(registry: &Registry, from: &Published, to: &[String]) -> anyhow::Result<()> {
    let address: SocketAddr = registry.host().parse()?;
    let source = from
        .reference
        .trim_start_matches(&registry.host())
        .trim_matches('/')
        .trim_end_matches(":latest");
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let path = format!("/v2/{source}/manifests/latest");
    let manifest = http::send(
        address,
        "GET",
        &path,
        None,
        &[("Accept", kind)],
        Bytes::new(),
    )
    .await?;
    let document = manifest.json()?;
    let layers = document["layers"].as_array().into_iter().flatten();
    let blobs: Vec<&str> = layers
        .chain([&document["config"]])
        .filter_map(|it| it["digest"].as_str())
        .collect();
    for repository in to {
        for blob in &blobs {
            let path = format!("/v2/{repository}/blobs/uploads/?mount={blob}&from={source}");
            let answer = http::send(address, "POST", &path, None, &[], Bytes::new()).await?;
            anyhow::ensure!(answer.status == 201, "the blob was not mounted: {answer:?}");
        }
        let path = format!("/v2/{repository}/manifests/latest");
        let body = Bytes::from(manifest.text.clone());
        let answer =
            http::send(address, "PUT", &path, None, &[("Content-Type", kind)], body).await?;
        anyhow::ensure!(
            answer.status == 201,
            "the manifest was not taken: {answer:?}"
        );
    }
    Ok(())
}

/// Requests of one look at so many images, at a registry that anybody may ask and one that wants tokens, and of the next look.
async fn count(
    w: &World,
    registry: &Registry,
    from: &Published,
    number: usize,
) -> anyhow::Result<()> {
    let names: Vec<String> = (0..number).map(|n| format!("r{n}-of-{number}")).collect();
    let repositories: Vec<String> = names
        .iter()
        .map(|it| format!("{}/workspace-template-{it}", w.prefix()))
        .collect();
    spread(registry, from, &repositories).await?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Paused, so that all that is asked is asked by the looks.
    let pause = r#"{ "format": 1, "paused": { "since": "2026-01-01T00:00:00Z" } }"#;

    // What was answered a moment ago may not be in the log yet.
    let last = repositories
        .last()
        .map(|it| format!("/v2/{it}/manifests/latest"));
    until("the last manifest in the log", || async {
        Ok(registry
            .requests()?
            .iter()
            .any(|it| it.method == "PUT" && Some(&it.path) == last.as_ref()))
    })
    .await?;
    let before = registry.requests()?.len();
    let refit = watching(w, registry, &names)?
        .set("watch.interval_seconds", NEVER)
        .file("state/watch.json", pause)?;
    let daemon = refit.serve().await?;
    let status = until_status(&daemon, "all of them", |it| {
        it["summary"]["behind"] == number
    })
    .await?;
    let took = status["last_look"]["duration_ms"]
        .as_u64()
        .unwrap_or_default();
    until("the registry's log", || async {
        Ok(registry.requests()?.len() >= before + number)
    })
    .await?;
    let open = registry.requests()?.len() - before;
    drop(daemon);

    let gateway = Gateway::before(registry, Tokens::For(300)).await?;
    let refit = through(w, &gateway, registry, &names)?
        .set("watch.interval_seconds", NEVER)
        .set("credentials.registry", gateway.host())
        .env("GHCR_USER", USER)
        .env("GHCR_TOKEN", PASSWORD)
        .file("state/watch.json", pause)?;
    let daemon = refit.serve().await?;
    until_status(&daemon, "all of them", |it| {
        it["summary"]["behind"] == number
    })
    .await?;
    let tokens = gateway.asked().len();
    gateway.forget();
    let server = format!("http://{}", daemon.address);
    refit
        .run(&["watch", "check", "--server", &server])
        .await?
        .expect(0);
    let next = gateway.asked().len();
    progress(&format!(
        "requests to look at {number} images: {open} at the registry's log where anybody may ask, {tokens} with tokens; {next} the next time; {took} ms"
    ));
    assert!(open <= number + 1, "{open} requests for {number} images");
    assert!(
        tokens <= number + 2,
        "{tokens} requests for {number} images"
    );
    assert_eq!(next, number);
    assert!(
        gateway.asked().iter().all(|it| it.method == "HEAD"),
        "{:#?}",
        gateway.asked()
    );
    Ok(())
}

#[tokio::test]
async fn eight_images_are_ten_requests_and_a_hundred_are_a_hundred_and_two() -> anyhow::Result<()> {
    with_world("watch: requests", |w| async move {
        let registry = Registry::start(Access::Anybody).await?;
        let from = w.publish(&registry, "source", ImageSpec::new("v1")).await?;
        count(&w, &registry, &from, 8).await?;
        count(&w, &registry, &from, 100).await?;
        registry.stop().await
    })
    .await
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_of_and_waited_for() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("state_dir", "state")
        .set("watch.enabled", true)
        .set("watch.interval_seconds", 1);
    let daemon = refit.serve().await?;
    let status = until_status(&daemon, "a look that failed", |it| {
        it["last_look"]["failure"].is_object()
    })
    .await?;
    assert_eq!(status["images"], json!([]));
    looks(&daemon, 2).await?;
    let told = daemon.log().matches("cannot look for new images").count();
    assert_eq!(told, 1, "it is told once:\n{}", daemon.log());
    daemon.terminate()?;
    daemon.ended().await?.expect(0);
    Ok(())
}

#[tokio::test]
async fn a_daemon_that_does_not_watch_says_so() -> anyhow::Result<()> {
    let refit = without_engine()?.set("state_dir", "state");
    let daemon = refit.serve().await?;
    assert_eq!(status(&daemon).await?["enabled"], false);
    for what in ["pause", "resume", "check"] {
        let answer = daemon.request("POST", &format!("/v1/watch/{what}")).await?;
        assert_eq!(
            (answer.status, answer.json()?["code"].clone()),
            (409, json!("watch-off"))
        );
    }
    let server = format!("http://{}", daemon.address);
    let output = refit
        .run(&["watch", "status", "--server", &server])
        .await?
        .expect(0);
    assert!(output.stdout.contains("nothing is watched"), "{output}");
    refit
        .run(&["watch", "pause", "--server", &server])
        .await?
        .expect(2)
        .says("nothing is watched");
    Ok(())
}

#[tokio::test]
async fn a_memory_that_makes_no_sense_is_told_of_and_stops_nothing() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("state_dir", "state")
        .set("watch.enabled", true)
        .file("state/watch.json", "{ nonsense")?;
    let daemon = refit.serve().await?;
    daemon.until_logged("what the watcher knew is lost").await?;
    let status = status(&daemon).await?;
    assert!(
        status["problem"].to_string().contains("makes no sense"),
        "{status:#}"
    );
    assert!(refit.home().join("state/watch.damaged").is_file());
    for (body, expected) in [
        (r#"{"images":["ghcr.io/acme/app"]}"#, 202),
        ("", 202),
        ("{", 400),
        (r#"{"images":["A B"]}"#, 400),
        (r#"{"image":[]}"#, 400),
    ] {
        let kind = [("Content-Type", "application/json")];
        let answer = daemon
            .send("POST", "/v1/watch/check", &kind, body.to_owned())
            .await?;
        assert_eq!(answer.status, expected, "{body}");
    }
    Ok(())
}

#[tokio::test]
async fn a_schedule_that_makes_no_sense_is_refused() -> anyhow::Result<()> {
    for (key, value, says) in [
        ("watch.cron", json!("0 0 30 2 *"), "which never comes"),
        (
            "watch.time_zone",
            json!("Mars/Olympus"),
            "no time zone is called that",
        ),
        ("watch.interval_seconds", json!(0), "may be 1 to"),
        (
            "watch.windows",
            json!([{ "start": "9", "end": "10:00" }]),
            "is not a time of day",
        ),
        (
            "watch.windows",
            json!([{ "days": ["someday"], "start": "09:00", "end": "10:00" }]),
            "someday",
        ),
        ("registries.requests_max", json!(0), "at least 1"),
    ] {
        let output = without_engine()?
            .set(key, value)
            .run(&["config", "show"])
            .await?
            .expect(2);
        output.says(says);
    }
    Ok(())
}
