//! The engine the tests run on: one per process, found or started.
//!
//! `DOCKER_HOST` decides if it is set; otherwise the engine at Docker's usual socket, if it answers; otherwise a private
//! `dockerd` with everything it owns in one directory. Where none can be had a test fails, with the reason; nothing is skipped.
//! `TEST_ENGINE_SYSTEM` asks for a private one of another version: that of the Debian system in this folder.
//! `TEST_ENGINE_STORE=containerd` asks for a private one that keeps its images in containerd.
//! The private one runs in process and mount namespaces of its own: when its first process dies the kernel kills the rest and
//! drops the mounts. The price: `State.Pid` in an inspect counts in that namespace, not in the host's.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::net::UnixDatagram;
use tokio::sync::OnceCell;

use crate::bounded::{self, within};
use crate::certificates::Certificates;
use crate::install;
use crate::report::progress;
use crate::supervisor::{self, ManagedProcess, ProcessSpec};

const USUAL_SOCKET: &str = "/var/run/docker.sock";
/// An engine that is up answers a ping in milliseconds; a loaded machine gets the benefit of the doubt.
const PING: Duration = Duration::from_secs(10);
/// From the start of `dockerd` to its word that it is ready: 2 s here, and loading a kernel module or a slow disk on top.
const START: Duration = Duration::from_secs(60);
/// Two private engines would fight over `docker0` and the packet filter.
const LOCK: &str = "/run/refit-private-engine.lock";

/// Names the folder of another Debian system with `docker.io` in it, as `cargo xtask engine` makes one.
const SYSTEM: &str = "TEST_ENGINE_SYSTEM";

/// Names the image store of a private engine: [`CONTAINERD`], or unset for the engine's own default.
const STORE: &str = "TEST_ENGINE_STORE";
/// Docker's default from 29 on, for a new installation. Docker 24 is the first that can be told to use it.
const CONTAINERD: &str = "containerd";
/// How such an engine names the kind of its storage driver, in `DriverStatus` of `/info`.
const CONTAINERD_DRIVER: &str = "io.containerd.snapshotter.v1";

static SHARED: OnceCell<Engine> = OnceCell::const_new();

/// An engine that answered.
#[derive(Debug)]
pub struct Engine {
    host: String,
    tls: Option<Tls>,
    kept: Option<ManagedProcess>,
}

/// Where an engine speaks TLS, and takes certificates for clients only.
#[derive(Debug, Clone)]
pub struct Tls {
    /// `127.0.0.1:port`. Its certificate is for no other name.
    pub address: String,
    pub certificates: Certificates,
}

/// Whose network a private engine lays its bridges in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Networks {
    /// The machine's: containers and registries are within reach. One such engine at a time per machine.
    Machine,
    /// One of its own, which nobody reaches and which ends with it. Any number of them, beside any other engine.
    Isolated,
}

/// The engine of this process, made on first use.
pub async fn shared() -> anyhow::Result<&'static Engine> {
    SHARED.get_or_try_init(Engine::find_or_start).await
}

impl Engine {
    async fn find_or_start() -> anyhow::Result<Self> {
        let host = env::var("DOCKER_HOST").ok();
        for (variable, set) in [
            (SYSTEM, other_system().is_some()),
            (STORE, containerd_store()?),
        ] {
            if set && host.is_some() {
                bail!("DOCKER_HOST and {variable} both say which engine to use; unset one of them");
            }
            if set {
                return Self::start(Networks::Machine).await;
            }
        }
        if let Some(host) = host {
            let engine = Self {
                host,
                tls: None,
                kept: None,
            };
            engine.ping().await.with_context(|| {
                format!("DOCKER_HOST is {}; correct it, or unset it and the tests find or start an engine", engine.host)
            })?;
            return Ok(engine);
        }
        if let Some(engine) = Self::at_usual_socket().await {
            return Ok(engine);
        }
        Self::install().await?;
        // Installing a package may have started its service.
        if let Some(engine) = Self::at_usual_socket().await {
            return Ok(engine);
        }
        Self::start(Networks::Machine).await
    }

    async fn at_usual_socket() -> Option<Self> {
        let engine = Self {
            host: format!("unix://{USUAL_SOCKET}"),
            tls: None,
            kept: None,
        };
        (Path::new(USUAL_SOCKET).exists() && engine.ping().await.is_ok()).then_some(engine)
    }

    async fn install() -> anyhow::Result<()> {
        if !cfg!(target_os = "linux") || !install::is_root() {
            bail!(
                "cannot start a private engine: that takes Linux and root. \
                 Start Docker, or set DOCKER_HOST to an engine on this machine, and run again"
            );
        }
        let mut programs = vec![("ip", "iproute2"), ("iptables", "iptables")];
        match other_system().map(|system| Path::new(&system).join("usr/sbin/dockerd")) {
            Some(engine) if !engine.exists() => {
                bail!(
                    "there is no {}: `cargo xtask engine` makes such a system and prints its folder for {SYSTEM}",
                    engine.display()
                )
            }
            Some(_) => {}
            None => programs.push(("dockerd", "docker.io")),
        }
        tokio::task::spawn_blocking(move || install::ensure(&programs)).await?
    }

    /// Starts a private engine, whatever else there is. Most tests want [`shared`].
    pub async fn start(networks: Networks) -> anyhow::Result<Self> {
        let directory = supervisor::directory("engine")?;
        let place = directory.clone();
        Self::start_in(networks, directory, &place).await
    }

    /// Starts an isolated engine whose socket and containers are in `place` and outlive it, so that it can be started again.
    pub async fn start_again_in(place: &Path) -> anyhow::Result<Self> {
        Self::start_in(Networks::Isolated, supervisor::directory("engine")?, place).await
    }

    async fn start_in(
        networks: Networks,
        directory: PathBuf,
        place: &Path,
    ) -> anyhow::Result<Self> {
        Self::install().await?;
        progress("starting a private dockerd");
        let host = format!("unix://{}", place.join("docker.sock").display());
        // dockerd tells systemd when it is ready; here we are systemd.
        let notified = directory.join("notify.sock");
        let ready = UnixDatagram::bind(&notified)
            .with_context(|| format!("cannot listen at {}", notified.display()))?;
        let tls = match networks {
            Networks::Machine => Some(Tls {
                address: format!("127.0.0.1:{}", quiet_port()?),
                certificates: Certificates::make(directory.join("tls")).await?,
            }),
            // Nobody would reach it.
            Networks::Isolated => None,
        };
        let kept = ManagedProcess::start(ProcessSpec {
            name: "engine",
            lock: (networks == Networks::Machine).then_some(Path::new(LOCK)),
            environment: vec![
                ("NOTIFY_SOCKET", notified.display().to_string()),
                (
                    "PATH",
                    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default()),
                ),
            ],
            command: command(&directory, place, &host, networks, tls.as_ref())?,
            directory,
        })?;
        kept.until(START, until_ready(ready)).await?;
        let engine = Self {
            host,
            tls,
            kept: Some(kept),
        };
        engine.ping().await?;
        if containerd_store()? {
            engine.expect_containerd_store().await?;
        }
        Ok(engine)
    }

    /// An engine that is too old for that store ignores the wish.
    async fn expect_containerd_store(&self) -> anyhow::Result<()> {
        let docker = self.client().await?;
        let info = within(PING, "ask the engine about its store", docker.info()).await?;
        let told = info.driver_status.unwrap_or_default();
        if told.iter().flatten().any(|word| word == CONTAINERD_DRIVER) {
            return Ok(());
        }
        bail!(
            "{STORE} asks for the {CONTAINERD} store, and Docker {} does not use it; \
             {SYSTEM} names a newer engine, see `cargo xtask engine`",
            info.server_version.unwrap_or_default()
        )
    }

    /// A new client. Not kept, because each test has a runtime of its own and pooled connections belong to one.
    pub async fn client(&self) -> anyhow::Result<Docker> {
        let docker = match self.host.strip_prefix("unix://") {
            Some(socket) => {
                Docker::connect_with_unix(socket, bounded::CALL.as_secs(), API_DEFAULT_VERSION)
            }
            None => Docker::connect_with_host(&self.host)
                .map(|docker| docker.with_timeout(bounded::CALL)),
        };
        let docker =
            docker.with_context(|| format!("cannot connect to the engine at {}", self.host))?;
        within(
            PING,
            &format!("agree on an API version with the engine at {}", self.host),
            docker.negotiate_version(),
        )
        .await
    }

    /// What `DOCKER_HOST` must be for a program to use this engine.
    pub fn docker_host(&self) -> &str {
        &self.host
    }

    /// Its other address; none if the engine was there before us.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Where a private engine keeps everything; none if the engine was there before us.
    pub fn private_directory(&self) -> Option<PathBuf> {
        self.kept.as_ref().map(|kept| kept.directory().to_owned())
    }

    /// Ends a private engine and waits until nothing is left of it. An engine that was there before us stays.
    pub async fn stop(self) -> anyhow::Result<()> {
        match self.kept {
            Some(kept) => kept.stop().await,
            None => Ok(()),
        }
    }

    /// Ends a private engine as a power cut does, its containers too, and waits until nothing is left of it.
    pub async fn crash(self) -> anyhow::Result<()> {
        let kept = self
            .kept
            .context("an engine that was there before us is not ours to kill")?;
        kept.kill()?;
        kept.stop().await
    }

    async fn ping(&self) -> anyhow::Result<()> {
        let docker = self.client().await?;
        within(
            PING,
            &format!("reach the engine at {}", self.host),
            docker.ping(),
        )
        .await
        .map(|_| ())
    }
}

fn other_system() -> Option<String> {
    env::var(SYSTEM).ok().filter(|system| !system.is_empty())
}

/// Whether private engines keep their images in containerd.
fn containerd_store() -> anyhow::Result<bool> {
    match env::var(STORE).ok().as_deref() {
        None | Some("") => Ok(false),
        Some(CONTAINERD) => Ok(true),
        Some(other) => {
            bail!("{STORE} is `{other}`, and the only store that it names is `{CONTAINERD}`")
        }
    }
}

/// A free one that no system hands out by itself: another test cannot be given it before the engine takes it.
fn quiet_port() -> anyhow::Result<u16> {
    const TRIES: usize = 50;
    let ports = std::iter::repeat_with(|| fastrand::u16(20_000..30_000));
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports
        .take(TRIES)
        .find(free)
        .context("cannot find a free port on 127.0.0.1")
}

fn command(
    directory: &Path,
    place: &Path,
    host: &str,
    networks: Networks,
    tls: Option<&Tls>,
) -> anyhow::Result<Vec<String>> {
    let mut command = vec![
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    match networks {
        Networks::Machine => {}
        // Not `--bridge none`: with it dockerd deletes `docker0`, whoever made it.
        Networks::Isolated => command.push("--net"),
    }
    let system = other_system();
    if let Some(system) = &system {
        // Everything that runs from here on comes from there; all else, and each path, is this machine's.
        let mount = r#"mount --bind "$0/usr" /usr && exec "$@""#;
        command.extend(["sh", "-c", mount, system]);
    }
    command.extend(["dockerd", "--host", host, "--group", "root"]);
    let mut command: Vec<String> = command.into_iter().map(str::to_owned).collect();
    if let Some(tls) = tls {
        command.extend(["--host".to_owned(), format!("tcp://{}", tls.address)]);
        command.extend(tls.certificates.arguments());
    }
    for (option, path) in [
        ("--data-root", place.join("data")),
        ("--exec-root", directory.join("exec")),
        ("--pidfile", directory.join("dockerd.pid")),
    ] {
        command.extend([option.to_owned(), path.display().to_string()]);
    }
    if containerd_store()? {
        let file = directory.join("daemon.json");
        fs::write(&file, r#"{"features":{"containerd-snapshotter":true}}"#)
            .with_context(|| format!("cannot write {}", file.display()))?;
        command.extend(["--config-file".to_owned(), file.display().to_string()]);
    }
    Ok(command)
}

/// Awaits the word of a service to systemd (sd_notify(3)) that it is ready; other words are about its state and may come before.
async fn until_ready(socket: UnixDatagram) -> anyhow::Result<()> {
    let mut message = [0; 1024];
    loop {
        let length = socket
            .recv(&mut message)
            .await
            .context("cannot hear from dockerd")?;
        if message[..length]
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"READY=1")
        {
            return Ok(());
        }
    }
}
