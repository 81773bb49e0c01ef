//! Webhooks: GitHub's, signed, and those of the real registry; who is let in, what is looked at, what is told.

use std::time::Instant;

use anyhow::ensure;
use refit_tests::http::{self, Answer};
use refit_tests::refit::Daemon;
use refit_tests::registry::{self, Registry};
use refit_tests::world::{Published, Running};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, with_world};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{refit, replaced, until, untouched, without_engine};

const SECRET: &str = "webhook-secret-not-to-be-seen";
const TOKEN: &str = "correct-horse-battery-staple";

/// HMAC-SHA256 (RFC 2104), put together here so that it is not the program's own that is tried.
pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    let mut key = [0u8; 64];
    key[..secret.len()].copy_from_slice(secret.as_bytes());
    let padded = |with: u8| key.map(|byte| byte ^ with);
    let inner = Sha256::new()
        .chain_update(padded(0x36))
        .chain_update(body)
        .finalize();
    let outer = Sha256::new()
        .chain_update(padded(0x5c))
        .chain_update(inner)
        .finalize();
    let digits: String = outer.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

pub(crate) fn package(owner: &str, name: &str, tag: &str) -> Value {
    json!({
        "action": "published",
        "package": {
            "name": name, "namespace": owner, "ecosystem": "CONTAINER", "package_type": "CONTAINER",
            "owner": { "login": owner },
            "package_version": {
                "version": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8",
                "container_metadata": { "tag": { "name": tag, "digest": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8" } },
                "package_url": format!("ghcr.io/{owner}/{name}:{tag}")
            }
        },
        "repository": { "full_name": format!("{owner}/{name}") },
        "sender": { "login": "ana" }
    })
}

async fn deliver(
    daemon: &Daemon,
    event: &str,
    signature: Option<&str>,
    kind: &str,
    body: impl Into<Vec<u8>>,
) -> anyhow::Result<Answer> {
    let mut headers = vec![
        ("X-GitHub-Event", event),
        ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("Content-Type", kind),
    ];
    headers.extend(signature.map(|signature| ("X-Hub-Signature-256", signature)));
    // Without the admin token: who sends a webhook does not have it.
    let body: Vec<u8> = body.into();
    http::send(
        daemon.address,
        "POST",
        "/v1/hooks/github",
        None,
        &headers,
        body.into(),
    )
    .await
}

fn with_github() -> anyhow::Result<Refit> {
    Ok(without_engine()?
        .env("ADMIN_TOKEN", TOKEN)
        .secret(TOKEN)
        .secret(SECRET)
        .file("hook", format!("{SECRET}\n"))?
        .set("hooks.github.secret_file", "hook")
        .set("grants.images", json!(["ghcr.io/molecule-ai/*"])))
}

#[tokio::test]
async fn githubs_delivery_is_verified_before_it_is_read_and_rings_for_what_it_names()
-> anyhow::Result<()> {
    let daemon = with_github()?.serve().await?;
    let json = "application/json";
    let body = package("Molecule-AI", "workspace-template-hermes", "latest").to_string();
    let signature = sign(SECRET, body.as_bytes());

    let answer = deliver(&daemon, "package", Some(&signature), json, body.as_str()).await?;
    assert_eq!(answer.status, 202, "{answer:?}");
    let image = "ghcr.io/molecule-ai/workspace-template-hermes:latest";
    assert_eq!(
        answer.json()?,
        json!({ "delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958", "accepted": [image], "ignored": [] })
    );
    daemon.until_logged(image).await?;

    // As a form, which is what GitHub sends unless it is told otherwise. All of it is signed.
    let form = format!("payload={}", percent(&body));
    let signature_of_form = sign(SECRET, form.as_bytes());
    let kind = "application/x-www-form-urlencoded";
    let answer = deliver(&daemon, "package", Some(&signature_of_form), kind, form).await?;
    assert_eq!(
        (answer.status, &answer.json()?["accepted"]),
        (202, &json!([image]))
    );

    for (signature, code) in [
        (None, "unsigned"),
        (Some("".to_owned()), "wrong-signature"),
        (Some(signature[..70].to_owned()), "wrong-signature"),
        (
            Some(sign("another secret", body.as_bytes())),
            "wrong-signature",
        ),
        (Some(sign(SECRET, b"another body")), "wrong-signature"),
        (Some(signature.replace("sha256", "sha1")), "wrong-signature"),
    ] {
        // What is not signed is not parsed: nonsense is told of in the same words.
        for body in [body.as_str(), "{nonsense"] {
            let signature = signature
                .as_deref()
                .filter(|_| body != "{nonsense" || code == "unsigned");
            let answer = deliver(&daemon, "package", signature, json, body).await?;
            assert_eq!(answer.status, 401, "{signature:?} {answer:?}");
        }
        let answer = deliver(
            &daemon,
            "package",
            signature.as_deref(),
            json,
            body.as_str(),
        )
        .await?;
        assert_eq!(answer.json()?["code"], code, "{signature:?}");
        assert_eq!(answer.content_type, "application/problem+json");
    }
    let log = daemon.log();
    let refused = log.matches("a delivery of a webhook was refused").count();
    assert_eq!(refused, 1, "a flood is one line a minute:\n{log}");
    Ok(())
}

/// Every byte but letters and digits.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[tokio::test]
async fn what_concerns_nobody_is_answered_and_ignored() -> anyhow::Result<()> {
    let daemon = with_github()?.serve().await?;
    let signed = async |event: &str, kind: &str, body: String| {
        let signature = sign(SECRET, body.as_bytes());
        deliver(&daemon, event, Some(&signature), kind, body).await
    };
    let json = "application/json; charset=utf-8";
    let answer = signed(
        "ping",
        json,
        r#"{"zen":"Keep it logically awesome."}"#.into(),
    )
    .await?;
    assert_eq!(
        (answer.status, &answer.json()?["ignored"]),
        (200, &json!([]))
    );

    let other = package("somebody", "else", "v1").to_string();
    let answer = signed(
        "registry_package",
        json,
        other.replace("\"package\":", "\"registry_package\":"),
    )
    .await?;
    assert_eq!(
        (answer.status, &answer.json()?["ignored"][0]),
        (
            202,
            &json!({
                "what": "ghcr.io/somebody/else:v1",
                "why": "no pattern of `[grants] images` covers `ghcr.io/somebody/else`"
            })
        )
    );
    let answer = signed("push", json, "{}".into()).await?;
    assert_eq!(
        (answer.status, &answer.json()?["accepted"]),
        (202, &json!([]))
    );
    let deleted = other.replace("published", "deleted");
    assert_eq!(signed("package", json, deleted).await?.status, 202);

    let answer = signed("package", json, "{nonsense".into()).await?;
    assert_eq!(
        (answer.status, &answer.json()?["code"]),
        (400, &json!("bad-body"))
    );
    let answer = signed("package", "text/xml", other.clone()).await?;
    assert_eq!(
        (answer.status, &answer.json()?["code"]),
        (415, &json!("bad-content-type"))
    );
    let answer = signed("package", json, " ".repeat((1 << 20) + 1)).await?;
    assert_eq!(
        (answer.status, &answer.json()?["code"]),
        (413, &json!("body-too-large"))
    );

    let answer = daemon
        .send("POST", "/v1/hooks/registry", &[], other)
        .await?;
    assert_eq!(
        (answer.status, &answer.json()?["code"]),
        (404, &json!("hook-disabled"))
    );
    assert_eq!(daemon.request("GET", "/v1/hooks/github").await?.status, 405);
    Ok(())
}

#[tokio::test]
async fn a_registry_is_known_by_its_secret_and_called_as_it_is_pulled_from() -> anyhow::Result<()> {
    let daemon = without_engine()?
        .env("ADMIN_TOKEN", TOKEN)
        .env("REGISTRY_WEBHOOK_SECRET", SECRET)
        .secret(SECRET)
        .file("second", "the-second-registry's-secret")?
        .set(
            "hooks.registry",
            json!([{ "name": "first", "host": "registry.example:5000" }, { "name": "second", "secret_file": "second" }]),
        )
        .set("grants.images", json!(["*.example:5000/acme/*"]))
        .serve()
        .await?;
    let event = json!({ "events": [{
        "action": "push",
        "target": {
            "mediaType": "application/vnd.oci.image.index.v1+json", "repository": "acme/app", "tag": "v1",
            "url": "http://pushed.example:5000/v2/acme/app/manifests/sha256:0afb"
        }
    }] });
    let notify = async |header: (&str, &str), kind: &str| {
        let headers = [header, ("Content-Type", kind)];
        let body = event.to_string().into();
        http::send(
            daemon.address,
            "POST",
            "/v1/hooks/registry",
            None,
            &headers,
            body,
        )
        .await
    };
    let kind = "application/vnd.docker.distribution.events.v2+json";
    for (header, image) in [
        (
            ("Authorization", format!("Bearer {SECRET}")),
            "registry.example:5000/acme/app:v1",
        ),
        (
            ("X-Refit-Secret", "the-second-registry's-secret".into()),
            "pushed.example:5000/acme/app:v1",
        ),
    ] {
        let answer = notify((header.0, &header.1), kind).await?;
        assert_eq!(
            (answer.status, &answer.json()?["accepted"]),
            (202, &json!([image]))
        );
    }
    for wrong in [
        "",
        "Bearer",
        "Bearer wrong",
        &format!("Bearer {TOKEN}"),
        SECRET,
    ] {
        let answer = notify(("Authorization", wrong), kind).await?;
        assert_eq!(answer.status, 401, "{wrong:?}: not the admin token either");
    }
    let bearer = format!("Bearer {SECRET}");
    assert_eq!(
        notify(("Authorization", &bearer), "text/plain")
            .await?
            .status,
        415
    );
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_missing_or_shared_is_told_at_the_start() -> anyhow::Result<()> {
    let refit = without_engine()?.set("hooks.registry", json!([{ "name": "local" }]));
    let output = refit
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2);
    output.says("`local` in `[[hooks.registry]]` has no secret");
    let refit = without_engine()?.file("one", SECRET)?.set(
        "hooks.registry",
        json!([{ "name": "a", "secret_file": "one" }, { "name": "b", "secret_file": "one" }]),
    );
    let output = refit
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2);
    output.says("`a` and `b` in `[[hooks.registry]]` have the same secret");
    let refit = without_engine()?.set("hooks.github.secret_file", "absent");
    let output = refit
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2);
    output.says("cannot read the secret of a webhook from `absent`");
    Ok(())
}

#[tokio::test]
async fn the_real_registry_tells_of_a_push_and_of_nothing_else() -> anyhow::Result<()> {
    with_world("a registry's notifications", |w| async move {
        let port = registry::free_port()?;
        let url = format!("http://127.0.0.1:{port}/v1/hooks/registry");
        let own = Registry::start_notifying(&url, SECRET).await?;
        // Before the daemon is there: the registry tries until it is.
        let published = w.publish(&own, "hermes", ImageSpec::new("v1")).await?;
        w.publish(&own, "other", ImageSpec::new("v1")).await?;
        let images = format!("{}/{}/workspace-template-hermes", own.host(), w.prefix());
        let daemon = refit(&w, &own, &["hermes"])?
            .set("grants.images", json!([images]))
            .env("REGISTRY_WEBHOOK_SECRET", SECRET)
            .secret(SECRET)
            .serve_on(port)
            .await?;
        daemon.until_logged(&published.reference).await?;
        daemon.until_logged("\"ignored\":1").await?;
        let log = daemon.log();
        ensure!(
            !log.contains("workspace-template-other:"),
            "not what no grant covers:\n{log}"
        );
        ensure!(!log.contains("refused"), "{log}");
        drop(daemon);
        own.stop().await
    })
    .await
}

/// Awaits that all of these run the image, and says for how long.
async fn until_they_run(
    w: &World,
    containers: &[Running],
    image: &Published,
    what: &str,
) -> anyhow::Result<()> {
    let began = Instant::now();
    until("the containers run what was pushed", || async {
        for container in containers {
            // Between two names it is not there.
            match w.inspect(&container.name).await {
                Ok(now) if now.image.as_deref() == Some(image.id.as_str()) => {}
                Ok(_) | Err(_) => return Ok(false),
            }
        }
        Ok(true)
    })
    .await?;
    let took = began.elapsed();
    refit_tests::progress(&format!(
        "{} containers ran a pushed image {took:.1?} after {what} (with a second of proof each, two at a time)",
        containers.len()
    ));
    Ok(())
}

/// A refresh that a webhook asked for has recreated all of them, and nothing is left over.
async fn done_for_a_webhook(
    w: &World,
    daemon: &Daemon,
    containers: &[Running],
    image: &Published,
) -> anyhow::Result<()> {
    let recreated = containers.len();
    until("the refresh in the history", || async {
        let answer = daemon
            .request("GET", "/v1/refreshes?limit=20")
            .await?
            .json()?;
        let refreshes = answer["refreshes"].as_array().cloned().unwrap_or_default();
        let done = refreshes
            .iter()
            .find(|it| it["summary"]["recreated"] == recreated);
        Ok(done.is_some_and(|it| it["request"]["trigger"] == "webhook"))
    })
    .await?;
    for container in containers {
        replaced(w, container, image).await?;
    }
    Ok(())
}

async fn workspaces(w: &World, registry: &Registry) -> anyhow::Result<(Vec<Running>, Running)> {
    let hermes = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
    let other = w
        .publish(registry, "langgraph", ImageSpec::new("v1"))
        .await?;
    let mut containers = Vec::new();
    for name in ["a", "b", "c", "d"] {
        containers.push(w.run(ContainerSpec::new(name, &hermes.reference)).await?);
    }
    let other = w.run(ContainerSpec::new("other", &other.reference)).await?;
    Ok((containers, other))
}

#[tokio::test]
async fn a_push_to_the_real_registry_reaches_all_containers_by_itself() -> anyhow::Result<()> {
    with_world("from push to containers", |w| async move {
        let port = registry::free_port()?;
        let url = format!("http://127.0.0.1:{port}/v1/hooks/registry");
        let own = Registry::start_notifying(&url, SECRET).await?;
        let (containers, other) = workspaces(&w, &own).await?;
        let state = tempfile::tempdir()?;
        let daemon = refit(&w, &own, &["hermes", "langgraph"])?
            .set("state_dir", state.path().display().to_string())
            .env("REGISTRY_WEBHOOK_SECRET", SECRET)
            .secret(SECRET)
            .serve_on(port)
            .await?;
        daemon.until_ready().await?;
        // What was pushed before the daemon was there; nothing is to be done for it.
        daemon
            .until_logged("a registry's notification was delivered")
            .await?;

        let v2 = w.publish(&own, "hermes", ImageSpec::new("v2")).await?;
        until_they_run(
            &w,
            &containers,
            &v2,
            "its push, by the registry's notification",
        )
        .await?;
        done_for_a_webhook(&w, &daemon, &containers, &v2).await?;
        untouched(&w, &other).await?;
        drop(daemon);
        own.stop().await
    })
    .await
}

#[tokio::test]
async fn githubs_delivery_reaches_all_containers_of_its_image_and_no_other() -> anyhow::Result<()> {
    with_world("from GitHub to containers", |w| async move {
        let registry = registry::open().await?;
        let (containers, other) = workspaces(&w, registry).await?;
        let state = tempfile::tempdir()?;
        let daemon = refit(&w, registry, &["hermes", "langgraph"])?
            .set("state_dir", state.path().display().to_string())
            .set("hooks.github.registry", registry.host())
            .env("GITHUB_WEBHOOK_SECRET", SECRET)
            .secret(SECRET)
            .serve()
            .await?;
        daemon.until_ready().await?;
        // Both are behind, once the first look has been; only one is told of.
        daemon.until_logged("\"serving\"").await?;
        until("the first look", || async {
            Ok(daemon.request("GET", "/v1/watch").await?.json()?["looks"] == 1)
        })
        .await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        w.publish(registry, "langgraph", ImageSpec::new("v2"))
            .await?;
        let body = package(w.prefix(), "workspace-template-hermes", "latest").to_string();
        let signature = sign(SECRET, body.as_bytes());
        // Twice, as when somebody delivers it again: that costs a look at most.
        for _ in 0..2 {
            let answer = deliver(
                &daemon,
                "package",
                Some(&signature),
                "application/json",
                body.as_str(),
            )
            .await?;
            assert_eq!(
                (answer.status, &answer.json()?["accepted"]),
                (202, &json!([v2.reference]))
            );
        }
        until_they_run(&w, &containers, &v2, "GitHub's delivery").await?;
        done_for_a_webhook(&w, &daemon, &containers, &v2).await?;
        untouched(&w, &other).await
    })
    .await
}

/// A registry behind a cache shows what was pushed some seconds after it has told of it.
#[tokio::test]
async fn image_that_the_registry_shows_after_its_webhook_is_found() -> anyhow::Result<()> {
    with_world("webhook before registry", |w| async move {
        let registry = registry::open().await?;
        let (containers, other) = workspaces(&w, registry).await?;
        let daemon = refit(&w, registry, &["hermes", "langgraph"])?
            .set("state_dir", "state")
            .set("hooks.github.registry", registry.host())
            .env("GITHUB_WEBHOOK_SECRET", SECRET)
            .secret(SECRET)
            .serve()
            .await?;
        until("the first look", || async {
            Ok(daemon.request("GET", "/v1/watch").await?.json()?["looks"] == 1)
        })
        .await?;
        let latest = w.reference(registry, "hermes");
        let next = latest.replace(":latest", ":next");
        let v2 = w.publish_as(registry, &next, ImageSpec::new("v2")).await?;
        let mut body = package(w.prefix(), "workspace-template-hermes", "latest");
        body["package"]["package_version"]["container_metadata"]["tag"]["digest"] =
            json!(v2.digest);
        let body = body.to_string();
        let signature = sign(SECRET, body.as_bytes());
        let answer = deliver(
            &daemon,
            "package",
            Some(&signature),
            "application/json",
            body.as_str(),
        )
        .await?;
        assert_eq!(answer.status, 202, "{answer:?}");
        daemon
            .until_logged("the registry does not show yet what a webhook announced")
            .await?;
        let repository = format!("{}/workspace-template-hermes", w.prefix());
        let manifest = registry.manifest(&repository, &v2.digest).await?;
        registry
            .put_manifest(
                &repository,
                "latest",
                &manifest.content_type,
                manifest.text.clone(),
            )
            .await?;
        until_they_run(&w, &containers, &v2, "the registry showed it").await?;
        done_for_a_webhook(&w, &daemon, &containers, &v2).await?;
        untouched(&w, &other).await
    })
    .await
}
