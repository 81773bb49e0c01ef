//! The engine on another machine, by SSH: a real `sshd` before the engine, and everything that can be in the way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use refit_tests::sshd::{Cable, Sshd};
use refit_tests::{Proxy, Refit, registry, with_world};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{behind, container, image, refit, replaced, until, untouched, without_engine};

/// The far side's `docker` finds this engine.
async fn before(docker_host: &str) -> anyhow::Result<Sshd> {
    Sshd::start(&[("DOCKER_HOST", docker_host)]).await
}

/// The program with an `ssh` that has the test's key and known hosts.
fn calling(refit: Refit, sshd: &Sshd, at: SocketAddr) -> anyhow::Result<Refit> {
    let url = format!("ssh://{}@{at}", sshd.user());
    let script = format!(
        "exec /usr/bin/ssh -F {} \"$@\"",
        sshd.client_config()?.display()
    );
    refit.env("DOCKER_HOST", &url).program("ssh", &script)
}

/// What a plan says of an engine that cannot be reached.
async fn in_the_way(refit: &Refit, said: &[&str]) -> anyhow::Result<()> {
    let began = Instant::now();
    let output = refit.run(&["plan", "--runtime", "hermes"]).await?.expect(2);
    for said in said {
        output.says(said);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{output}");
    Ok(())
}

#[tokio::test]
async fn a_refresh_over_ssh_replaces_a_container() -> anyhow::Result<()> {
    with_world("over ssh", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let sshd = before(w.docker_host()).await?;
        let refit = calling(refit(&w, registry, &["hermes"])?, &sshd, sshd.address())?;
        refit.run(&["plan", "--detailed-exitcode"]).await?.expect(3);
        let output = refit.run(&["refresh", "--json"]).await?.expect(0);
        assert_eq!(image(&output.json(), "hermes")["outcome"], "pulled");
        replaced(&w, &hermes, &v2).await?;
        let output = refit.run(&["doctor"]).await?;
        assert!(
            output.stdout.contains("at `ssh://root@127.0.0.1:"),
            "{output}"
        );

        // The same by a context of the Docker CLI, with the socket's path in the address.
        let socket = w.docker_host().strip_prefix("unix://").unwrap_or_default();
        let host = format!("ssh://{}@{}{socket}", sshd.user(), sshd.address());
        let id: String = Sha256::digest(b"far")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let meta =
            json!({ "Name": "far", "Metadata": {}, "Endpoints": { "docker": { "Host": host } } });
        let refit = refit
            .without_env("DOCKER_HOST")
            .docker_config(&json!({ "currentContext": "far" }))?
            .file(
                &format!("docker/contexts/meta/{id}/meta.json"),
                meta.to_string(),
            )?;
        refit.run(&["plan", "--detailed-exitcode"]).await?.expect(0);
        sshd.stop().await
    })
    .await
}

/// Cut while the old container is being stopped, the moment when most would be lost.
#[tokio::test]
async fn a_connection_that_is_cut_midway_loses_nothing() -> anyhow::Result<()> {
    with_world("ssh is cut", |w| async move {
        let registry = registry::open().await?;
        for request in ["/stop", "/rename"] {
            let (old, v2) = behind(&w, registry, "hermes").await?;
            let proxy = Proxy::before(&w).await?;
            let hold = proxy.hold("POST", request);
            let sshd = before(&proxy.docker_host()).await?;
            let cable = Cable::to(sshd.address()).await?;
            let far = calling(refit(&w, registry, &["hermes"])?, &sshd, cable.address)?;
            let (output, ()) = tokio::try_join!(far.run(&["refresh", "--json"]), async {
                hold.until_waiting(1).await?;
                cable.cut();
                hold.release();
                Ok(())
            })?;
            let output = output.expect(1);
            let report = output.json();
            assert_ne!(
                container(&report, &old.name)["verdict"],
                "replaced",
                "{output}"
            );

            // The line works again, and what was begun is finished or put back. Once, with whatever the engine still does.
            let again = calling(refit(&w, registry, &["hermes"])?, &sshd, sshd.address())?;
            again.run(&["recover"]).await?.expect(0);
            until("the container under its name, running", || async {
                let now = w.inspect(&old.name).await?;
                Ok(now.state.and_then(|state| state.running) == Some(true))
            })
            .await?;
            again.run(&["refresh"]).await?.expect(0);
            replaced(&w, &old, &v2).await?;
            w.remove_container(&old.name).await?;
            sshd.stop().await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn whatever_is_in_the_way_is_told_and_nobody_is_asked() -> anyhow::Result<()> {
    let sshd = before("unix:///nonexistent/far.sock").await?;
    let cable = Cable::to(sshd.address()).await?;
    let at = cable.address;
    let port = at.port();
    let called = format!("-p {port} root@127.0.0.1");
    let refit = calling(without_engine()?, &sshd, at)?;
    in_the_way(
        &refit,
        &[
            &format!("cannot reach the container engine at `ssh://root@127.0.0.1:{port}`"),
            &format!("`docker` at `{called}` finds no engine"),
            "/nonexistent/far.sock",
            &format!("hint: `ssh {called} docker version` must work"),
        ],
    )
    .await?;

    sshd.forget()?;
    in_the_way(
        &refit,
        &[
            "the host key of",
            "is not known here",
            "compare the fingerprint",
        ],
    )
    .await?;
    sshd.mistrust()?;
    in_the_way(&refit, &["is not the one that is known here"]).await?;
    sshd.trust()?;
    sshd.let_nobody_in()?;
    in_the_way(
        &refit,
        &[
            "does not let us in",
            "Permission denied (publickey",
            "BatchMode=yes",
        ],
    )
    .await?;
    cable.cut();
    in_the_way(&refit, &["by SSH", "Connection refused"]).await?;

    let no_program = refit.env("PATH", "/nonexistent");
    in_the_way(&no_program, &["cannot run `ssh`", "openssh-client"]).await?;
    sshd.stop().await
}

#[tokio::test]
async fn a_far_side_without_docker_and_one_that_chatters() -> anyhow::Result<()> {
    let bare = Sshd::start(&[("PATH", "/nonexistent")]).await?;
    let refit = calling(without_engine()?, &bare, bare.address())?;
    in_the_way(&refit, &["there is no `docker` at", "18.09 or later"]).await?;
    bare.stop().await?;

    // What a start-up file prints comes before what the engine says.
    let talker = tempfile::tempdir()?;
    let docker = talker.path().join("docker");
    std::fs::write(
        &docker,
        "#!/bin/sh\necho 'Welcome to build!'\ncat >/dev/null\n",
    )?;
    std::fs::set_permissions(&docker, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = format!("{}:/usr/bin:/bin", talker.path().display());
    let chatter = Sshd::start(&[("PATH", &path)]).await?;
    let refit = calling(without_engine()?, &chatter, chatter.address())?;
    in_the_way(
        &refit,
        &[
            "something else than an engine answers",
            "`Welcome to build!`",
            ".bashrc",
        ],
    )
    .await?;
    chatter.stop().await
}

/// Nothing of ours is left when the program has ended, whichever way.
#[tokio::test]
async fn no_ssh_outlives_the_program() -> anyhow::Result<()> {
    with_world("ssh is left behind", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let hold = proxy.hold("POST", "/containers/create");
        let sshd = before(&proxy.docker_host()).await?;
        let refit = calling(refit(&w, registry, &["hermes"])?, &sshd, sshd.address())?;
        let mut child = refit.spawn(&["refresh"])?;
        hold.until_waiting(1).await?;
        assert!(calls(sshd.address().port())? > 0);
        child.kill().await?;
        // It is held at the engine for good, as a network that takes packets and gives none back would.
        until("no `ssh` call the server", || async {
            Ok(calls(sshd.address().port())? == 0)
        })
        .await?;
        proxy.refuse("POST", "/containers/create", 500, "too late");
        drop(proxy);
        sshd.stop().await?;
        untouched(&w, &hermes).await
    })
    .await
}

/// Processes of `ssh` that call this port.
fn calls(port: u16) -> anyhow::Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        let command = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.starts_with("/usr/bin/ssh ") && command.contains(&format!("-p {port} ")) {
            found += 1;
        }
    }
    Ok(found)
}
