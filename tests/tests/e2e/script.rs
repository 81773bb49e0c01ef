//! `scripts/refresh-workspace-images.sh`: the original's flags, on the program, on a laptop: no configuration of ours, and the login
//! that `docker login` has left.

use std::process::Output;

use refit_tests::registry::{self, PASSWORD, USER};
use refit_tests::{ContainerSpec, ImageSpec, Refit, with_world};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{PROGRAM, container, refit, replaced, untouched};

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../scripts/refresh-workspace-images.sh"
);

/// The script with nothing of this machine's but the path.
fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(SCRIPT);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// What it hands on, one a line.
async fn handed_on(arguments: &[&str]) -> anyhow::Result<Output> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("a program");
    std::fs::write(&program, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n")?;
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    Ok(script(arguments).env("REFIT", program).output().await?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn its_flags_become_those_of_refit_refresh_and_others_are_refused() -> anyhow::Result<()> {
    for (arguments, expected) in [
        (&[][..], "refresh\n"),
        (&["--no-recreate"], "refresh\n--no-recreate\n"),
        (
            &["--runtime", "hermes", "--no-recreate", "--runtime=crewai"],
            "refresh\n--runtime=hermes\n--no-recreate\n--runtime=crewai\n",
        ),
        (
            &[
                "--runtime",
                "a b",
                "--",
                "--json",
                "--config",
                "a $HOME.toml",
                "--",
            ],
            "refresh\n--runtime=a b\n--json\n--config\na $HOME.toml\n--\n",
        ),
    ] {
        let output = handed_on(arguments).await?;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert_eq!(text(&output.stdout), expected, "{arguments:?}");
    }
    for (arguments, told) in [
        (&["--force"][..], "unknown argument: --force"),
        (&["hermes"], "unknown argument: hermes"),
        (&["--runtime"], "--runtime needs the name"),
        (&["--runtime", "--no-recreate"], "and not `--no-recreate`"),
        (&["--runtime="], "--runtime needs the name"),
        (&["--no-recreate", "-x"], "unknown argument: -x"),
    ] {
        let output = handed_on(arguments).await?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert_eq!(text(&output.stdout), "", "nothing may run: {arguments:?}");
        assert!(
            text(&output.stderr).contains(told),
            "{arguments:?}: {output:?}"
        );
    }
    let output = handed_on(&["--help", "--force"]).await?;
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("--no-recreate"), "{output:?}");
    let output = script(&[])
        .env("REFIT", "/nonexistent/refit")
        .output()
        .await?;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("there is no program `/nonexistent/refit`"),
        "{output:?}"
    );
    Ok(())
}

/// The script, where and as this program would run.
async fn run(
    refit: &Refit,
    docker_host: &str,
    arguments: &[&str],
) -> anyhow::Result<(i32, Value, String)> {
    refit.write_config()?;
    let output = script(arguments)
        .current_dir(refit.home())
        .env("REFIT", PROGRAM)
        .env("HOME", refit.home())
        .env("DOCKER_HOST", docker_host)
        .env("REFIT_CONFIG", "refit.toml")
        .env("DOCKER_CONFIG", refit.home().join("docker"))
        .output()
        .await?;
    let told = text(&output.stderr);
    assert!(
        !told.contains(PASSWORD) && !text(&output.stdout).contains(PASSWORD),
        "{output:?}"
    );
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok((output.status.code().unwrap_or(-1), report, told))
}

#[tokio::test]
async fn it_refreshes_with_the_login_that_docker_has() -> anyhow::Result<()> {
    with_world("the original's script", |w| async move {
        let registry = registry::private().await?;
        let mut behind = Vec::new();
        for runtime in ["hermes", "crewai"] {
            let v1 = w.publish(registry, runtime, ImageSpec::new("v1")).await?;
            let container = w.run(ContainerSpec::new(runtime, &v1.reference)).await?;
            let v2 = w.publish(registry, runtime, ImageSpec::new("v2")).await?;
            behind.push((container, v2));
        }
        let [(hermes, hermes_v2), (crewai, _)] = behind.as_slice() else {
            unreachable!("there are two")
        };
        let refit = refit(&w, registry, &["hermes", "crewai"])?;
        let host = w.docker_host();
        let (status, _, told) = run(&refit, host, &["--runtime", "hermes"]).await?;
        assert_eq!(status, 1, "nobody is logged in: {told}");
        untouched(&w, hermes).await?;

        use base64::Engine as _;
        let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let refit =
            refit.docker_config(&json!({ "auths": { registry.host(): { "auth": login } } }))?;
        let (status, _, told) =
            run(&refit, host, &["--no-recreate", "--runtime", "hermes"]).await?;
        assert_eq!(status, 0, "{told}");
        assert_eq!(
            w.image_id(&hermes_v2.reference).await?.as_ref(),
            Some(&hermes_v2.id)
        );
        untouched(&w, hermes).await?;

        let (status, report, told) =
            run(&refit, host, &["--runtime", "hermes", "--", "--json"]).await?;
        assert_eq!(status, 0, "{told}");
        assert_eq!(
            container(&report, &hermes.name)["recreation"]["outcome"],
            "recreated"
        );
        replaced(&w, hermes, hermes_v2).await?;
        untouched(&w, crewai).await?;

        let (status, _, told) = run(&refit, host, &["--runtime", "nope"]).await?;
        assert_eq!(status, 2, "{told}");
        assert!(told.contains("unknown target: nope"), "{told}");
        Ok(())
    })
    .await
}
