//! A private engine must not outlive its test process, however that process ends.
//!
//! Its engines have a network namespace of their own, so this runs beside any other engine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, ImportImageOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::TryStreamExt;
use refit_tests::ImageSpec;

/// The supervisor's own limit is 20 s for the engine, and some for the rest.
const GONE: Duration = Duration::from_secs(40);

#[tokio::test]
async fn nothing_outlives_a_process_that_is_killed() -> anyhow::Result<()> {
    let (mut holder, host, directory) = hold_engine()?;
    // The hardest case: something runs, and does not listen to SIGTERM.
    run_stubborn_container(&host).await?;
    assert!(
        processes(&directory)?.len() >= 3,
        "supervisor, dockerd, containerd and a shim were expected"
    );
    holder.kill().context("cannot kill the holder")?;
    holder.wait().context("cannot wait for the holder")?;
    until_gone(&directory).await
}

#[tokio::test]
async fn an_engine_that_is_killed_takes_its_containers_with_it() -> anyhow::Result<()> {
    let (mut holder, host, directory) = hold_engine()?;
    run_stubborn_container(&host).await?;
    let processes = processes(&directory)?;
    let (id, _) = processes
        .iter()
        .find(|(_, command)| command.starts_with("dockerd "))
        .context("no dockerd to kill")?;
    assert!(
        Command::new("kill")
            .args(["-KILL", &id.to_string()])
            .status()?
            .success()
    );
    holder.kill().context("cannot kill the holder")?;
    holder.wait().context("cannot wait for the holder")?;
    until_gone(&directory).await
}

fn hold_engine() -> anyhow::Result<(Child, String, PathBuf)> {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_private-engine"))
        .arg("isolated")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run private-engine")?;
    let mut lines = BufReader::new(holder.stdout.take().context("no stdout")?).lines();
    let mut line = || {
        lines
            .next()
            .context("private-engine ended without an engine")?
            .context("cannot read from private-engine")
    };
    let (host, directory) = (line()?, line()?);
    assert!(Path::new(&directory).exists());
    Ok((holder, host, directory.into()))
}

async fn run_stubborn_container(host: &str) -> anyhow::Result<()> {
    let docker = Docker::connect_with_unix(host, 60, API_DEFAULT_VERSION)?
        .negotiate_version()
        .await?;
    let archive = ImageSpec::new("v1")
        .env("IGNORE_TERM", "1")
        .archive("stubborn:1", "1")?;
    docker
        .import_image(
            ImportImageOptions::default(),
            bollard::body_full(archive.into()),
            None,
        )
        .try_collect::<Vec<_>>()
        .await?;
    let body = ContainerCreateBody {
        image: Some("stubborn:1".to_owned()),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let id = docker
        .create_container(None::<CreateContainerOptions>, body)
        .await?
        .id;
    docker.start_container(&id, None).await?;
    Ok(())
}

/// Everything on this machine whose command line names `directory`.
fn processes(directory: &Path) -> anyhow::Result<Vec<(u32, String)>> {
    let directory = directory.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse() else {
            continue;
        };
        // It may have ended since it was listed.
        let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&directory) {
            found.push((id, command));
        }
    }
    Ok(found)
}

async fn until_gone(directory: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let processes = processes(directory)?;
        let mounts =
            fs::read_to_string("/proc/self/mounts")?.contains(&directory.display().to_string());
        if processes.is_empty() && !mounts && !directory.exists() {
            return Ok(());
        }
        if begun.elapsed() > GONE {
            bail!(
                "{} outlived its process: exists {}, mounted {mounts}, {processes:?}",
                directory.display(),
                directory.exists()
            );
        }
        // No child of ours, so there is nothing to wait for.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
