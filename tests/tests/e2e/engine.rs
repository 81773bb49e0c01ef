//! Engines and registries that cannot be had: which one is meant, and what is said when it does not answer.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use refit_tests::registry::{Access, Registry};
use refit_tests::{ContainerSpec, ImageSpec, Proxy, Refit, registry, with_world};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::snapshot::snapshot;
use crate::{behind, container, image, refit, replaced, untouched, without_engine};

#[tokio::test]
async fn an_engine_whose_socket_is_missing() -> anyhow::Result<()> {
    let refit = without_engine()?;
    for command in ["refresh", "plan"] {
        let output = refit
            .run(&[command, "--runtime", "hermes", "--json"])
            .await?
            .expect(2);
        assert_eq!(output.stdout, "");
        output
            .says("cannot reach the container engine at `unix:///nonexistent/docker.sock`")
            .says("hint: the socket does not exist");
    }
    let output = refit.run(&["refresh", "--runtime", "hermes"]).await?;
    snapshot!(output.stderr, @r#"
    not pulled        ghcr.io/molecule-ai/workspace-template-hermes:latest
    error: cannot reach the container engine at `unix:///nonexistent/docker.sock`
      caused by: No such file or directory (os error 2)

    hint: the socket does not exist: is the engine running on this machine?
    hint: for a rootless or remote engine, set `--engine` or `DOCKER_HOST`
    "#);
    Ok(())
}

#[tokio::test]
async fn an_engine_that_is_no_socket() -> anyhow::Result<()> {
    let refit = without_engine()?.file("engine", "not a socket")?;
    let address = format!("unix://{}", refit.home().join("engine").display());
    let output = refit
        .run(&["refresh", "--runtime", "hermes", "--engine", &address])
        .await?
        .expect(2);
    output.says(&format!("cannot reach the container engine at `{address}`"));
    Ok(())
}

#[tokio::test]
async fn an_engine_that_is_too_old() -> anyhow::Result<()> {
    with_world("an old engine", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let version =
            json!({ "Version": "1.12.6", "ApiVersion": "1.24", "Os": "linux", "Arch": "amd64" });
        proxy.answer("GET", "/version", 200, version);
        let output = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .run(&["refresh"])
            .await?
            .expect(2);
        output
            .says("is too old: it speaks API 1.24, 1.41 is needed")
            .says("hint: Docker 20.10 and Podman 4 are the oldest");
        assert_eq!(proxy.changes(), []);
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_registry_that_is_down_leaves_everything_as_it_is() -> anyhow::Result<()> {
    with_world("the registry is down", |w| async move {
        let registry = Registry::start(Access::Anybody).await?;
        let (hermes, _) = behind(&w, &registry, "hermes").await?;
        let refit = refit(&w, &registry, &["hermes"])?;
        registry.stop().await?;
        for command in ["refresh", "plan"] {
            let output = refit.run(&[command, "--json"]).await?.expect(1);
            let report = output.json();
            let error = image(&report, "hermes")["error"].to_string();
            assert!(error.contains("cannot reach registry"), "{output}");
            assert_eq!(container(&report, &hermes.name)["verdict"], "unknown");
        }
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_registry_that_hangs_is_given_up() -> anyhow::Result<()> {
    with_world("the registry hangs", |w| async move {
        // Takes connections, as the kernel does for it, and never answers.
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let template = format!(
            "{}/{}/workspace-template-{{runtime}}",
            silent.local_addr()?,
            w.prefix()
        );
        let build = w.load(ImageSpec::new("v1")).await?;
        let reference = template.replace("{runtime}", "hermes") + ":latest";
        w.tag(&build, &reference).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &reference)).await?;
        let refit = Refit::new(crate::PROGRAM, w.docker_host())?
            .set("policy.config.images", template.as_str())
            .set("policy.config.runtimes", json!(["hermes"]))
            .set("grants.images", json!([template.replace("{runtime}", "*")]))
            .set("limits.pull_seconds", 1)
            .set("limits.engine_seconds", 2);
        for command in ["refresh", "plan"] {
            let began = Instant::now();
            let output = refit.run(&[command, "--json"]).await?.expect(1);
            // Of its own accord the engine would give up after 15 s.
            assert!(
                began.elapsed() < Duration::from_secs(12),
                "{:?}",
                began.elapsed()
            );
            let report = output.json();
            let error = image(&report, "hermes")["error"].to_string();
            assert!(error.contains("took longer than"), "{output}");
            assert_eq!(container(&report, &hermes.name)["verdict"], "unknown");
        }
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn the_engine_is_the_one_that_the_docker_cli_would_use() -> anyhow::Result<()> {
    with_world("which engine", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let id: String = Sha256::digest(b"elsewhere")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let meta = json!({ "Name": "elsewhere", "Metadata": {}, "Endpoints": { "docker": { "Host": w.docker_host() } } });
        let refit = refit(&w, registry, &["hermes"])?
            .without_env("DOCKER_HOST")
            .docker_config(&json!({ "currentContext": "elsewhere" }))?
            .file(&format!("docker/contexts/meta/{id}/meta.json"), meta.to_string())?;
        refit.run(&["plan", "--detailed-exitcode"]).await?.expect(3);

        // The variable goes over the context, and the flag over both.
        let refit = refit.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        refit.run(&["plan"]).await?.expect(2);
        refit
            .run(&["refresh", "--engine", w.docker_host()])
            .await?
            .expect(0);
        replaced(&w, &hermes, &v2).await?;

        let refit = refit
            .without_env("DOCKER_HOST")
            .docker_config(&json!({ "currentContext": "nowhere" }))?;
        let output = refit.run(&["plan"]).await?.expect(2);
        output.says("cannot find the Docker context `nowhere`");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_doctor_says_what_a_refresh_would_find() -> anyhow::Result<()> {
    with_world("doctor", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let refit = refit(&w, registry, &["hermes"])?.set("state_dir", "state");
        let output = refit.run(&["doctor"]).await?.expect(0);
        let version = w.docker().version().await?;
        let api = format!("API {}", version.api_version.unwrap_or_default());
        let told = output
            .stdout
            .replace(w.docker_host(), "ENGINE")
            .replace(&version.version.unwrap_or_default(), "VERSION")
            .replace(&api, "API VERSION");
        // Other tests have containers too.
        let (start, rest) = told.split_once(" of ").unwrap_or_default();
        let (_, rest) = rest.split_once(" containers").unwrap_or_default();
        snapshot!(&w, format!("{start} of N containers{rest}"), @r#"
        ok    config   `refit.toml`
        ok    engine   Engine VERSION on linux/amd64, API VERSION, at `ENGINE`, chosen by `DOCKER_HOST`
        ok    engine   the grants cover 1 of N containers
        ok    calls    every call that Refit makes is let through to the engine
        ok    policy   workspace 0.1.0 (sha256:…) from the built-in policy, and it accepts its configuration
        ok    grants   images REGISTRY/PREFIX/workspace-template-*; containers ws-PREFIX-*; verbs inspect, pull, replace, remove, overlap
        ok    history  nothing yet
        ok    login    `REGISTRY`: none found, images are pulled anonymously
        "#);

        let output = refit
            .run(&["doctor", "--engine", "unix:///nonexistent/docker.sock"])
            .await?
            .expect(1);
        assert!(output.stdout.contains("FAIL  engine"), "{output}");
        assert!(output.stdout.contains("the socket does not exist"), "{output}");
        let output = refit.run(&["doctor", "--json"]).await?.expect(0);
        assert!(output.json().as_array().is_some_and(|checks| checks.len() == 8), "{output}");
        fs::write(refit.home().join("docker/config.json"), "{")?;
        let output = refit.run(&["doctor"]).await?.expect(1);
        assert!(output.stdout.contains("FAIL  login"), "{output}");
        Ok(())
    })
    .await
}
