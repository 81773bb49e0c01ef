//! Registries on loopback, which engines trust without TLS: Debian's `docker-registry`, open or behind a password.
//!
//! The two shared ones are started at most once per process; a test that wants to stop a registry starts its own. Their access
//! logs can be read back, so that a test can count what was asked of them. Knows manifests and blobs, and nothing of what is in them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bollard::auth::DockerCredentials;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::http::{self, Answer};
use crate::install;
use crate::supervisor::{self, ManagedProcess, ProcessSpec};
use crate::tokens::TokenServer;

/// A registry is up after 50 ms; the rest is for a loaded machine.
const START: Duration = Duration::from_secs(20);
/// There is no word from the registry that it listens, so it is asked; this often.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Between our finding a free port and the registry's taking it somebody else may be faster. Not often in a row.
const PORTS_TO_TRY: usize = 5;
/// The lowest cost bcrypt knows but one: these passwords guard nothing, and each request checks one.
const BCRYPT_COST: u32 = 5;

/// All kinds of manifests.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

pub const USER: &str = "refit";
/// Made to be found: a test can look for it in whatever must not contain a password.
pub const PASSWORD: &str = "not-to-be-seen-anywhere";

static OPEN: OnceCell<Registry> = OnceCell::const_new();
static PRIVATE: OnceCell<Registry> = OnceCell::const_new();

/// Who may pull from and push to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Anybody,
    /// Only [`USER`] with [`PASSWORD`], by HTTP Basic authentication.
    Password,
}

/// A registry that answers.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    /// None where anybody is let in.
    password: Option<String>,
    kept: ManagedProcess,
}

/// One line of a registry's access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub status: u16,
}

/// The registry of this process that anybody may use.
pub async fn open() -> anyhow::Result<&'static Registry> {
    OPEN.get_or_try_init(|| Registry::start(Access::Anybody))
        .await
}

/// The registry of this process that wants a password.
pub async fn private() -> anyhow::Result<&'static Registry> {
    PRIVATE
        .get_or_try_init(|| Registry::start(Access::Password))
        .await
}

impl Registry {
    /// A registry of the test's own, for instance to stop it.
    pub async fn start(access: Access) -> anyhow::Result<Self> {
        Self::start_behind(match access {
            Access::Anybody => None,
            Access::Password => Some(PASSWORD),
        })
        .await
    }

    /// A registry of the test's own that lets [`USER`] in with a password of the test's choice.
    pub async fn start_with_password(password: &str) -> anyhow::Result<Self> {
        Self::start_behind(Some(password)).await
    }

    /// A registry of the test's own that sends its notifications to this address, with a secret, until they are taken.
    pub async fn start_notifying(url: &str, secret: &str) -> anyhow::Result<Self> {
        // docs/webhooks.md has the same, line by line.
        let notifications = format!(
            "notifications:\n  endpoints:\n    - name: refit\n      url: {url}\n      headers:\n        \
             Authorization: [Bearer {secret}]\n      timeout: 5s\n      threshold: 3\n      backoff: 1s\n"
        );
        Self::start_as(None, &notifications).await
    }

    /// A registry of the test's own that lets in whoever brings a token of this server's.
    pub async fn start_trusting(tokens: &TokenServer) -> anyhow::Result<Self> {
        let mut registry = Self::start_as(None, &tokens.auth()).await?;
        // What the kit's own pushes are let in with, at the server of tokens.
        registry.password = Some(PASSWORD.to_owned());
        Ok(registry)
    }

    async fn start_behind(password: Option<&str>) -> anyhow::Result<Self> {
        Self::start_as(password, "").await
    }

    async fn start_as(password: Option<&str>, more: &str) -> anyhow::Result<Self> {
        tokio::task::spawn_blocking(|| install::ensure(&[("docker-registry", "docker-registry")]))
            .await??;
        let mut refusals = Vec::new();
        for _ in 0..PORTS_TO_TRY {
            match Self::start_on(free_port()?, password, more).await {
                Ok(registry) => return Ok(registry),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        bail!(
            "cannot start a registry on any of {PORTS_TO_TRY} ports:\n{}",
            refusals.join("\n")
        )
    }

    async fn start_on(port: u16, password: Option<&str>, more: &str) -> anyhow::Result<Self> {
        let directory = supervisor::directory("registry")?;
        let config = directory.join("config.yml");
        fs::write(&config, configuration(&directory, port, password)? + more)
            .with_context(|| format!("cannot write {}", config.display()))?;
        let kept = ManagedProcess::start(ProcessSpec {
            name: "registry",
            directory,
            lock: None,
            environment: Vec::new(),
            command: vec![
                "docker-registry".to_owned(),
                "serve".to_owned(),
                config.display().to_string(),
            ],
        })?;
        let wants_login = password.is_some() || more.starts_with("auth:");
        kept.until(START, until_answering(port, wants_login))
            .await?;
        Ok(Self {
            port,
            password: password.map(str::to_owned),
            kept,
        })
    }

    /// `127.0.0.1:port`, the first part of its images' names.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What to send to be let in; none where anybody is.
    pub fn credentials(&self) -> Option<DockerCredentials> {
        let password = self.password.clone()?;
        Some(DockerCredentials {
            username: Some(USER.to_owned()),
            password: Some(password),
            serveraddress: Some(self.host()),
            ..DockerCredentials::default()
        })
    }

    /// Every request so far, in order of completion. A request is logged after it was answered: what was asked a moment ago
    /// by somebody else may be missing still.
    pub fn requests(&self) -> anyhow::Result<Vec<Request>> {
        let log = self.kept.output();
        let text = fs::read_to_string(&log)
            .with_context(|| format!("cannot read the access log {}", log.display()))?;
        // A line that is still being written has no end yet and is left for the next reader.
        Ok(text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .filter_map(parse)
            .collect())
    }

    /// The requests for repositories below `prefix`, a world's own for instance: the shared registries are everybody's.
    pub fn requests_for(&self, prefix: &str) -> anyhow::Result<Vec<Request>> {
        let mut requests = self.requests()?;
        requests.retain(|request| request.path.starts_with(&format!("/v2/{prefix}/")));
        Ok(requests)
    }

    /// A manifest as it is, by tag or digest. Of a registry that anybody may use.
    pub async fn manifest(&self, repository: &str, reference: &str) -> anyhow::Result<Answer> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("Accept", MANIFESTS)];
        let answer = self.send("GET", &path, &headers, String::new()).await?;
        ensure!(answer.status == 200, "no manifest at {path}: {answer:?}");
        Ok(answer)
    }

    /// Puts a manifest there, by tag or digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        manifest: String,
    ) -> anyhow::Result<()> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("Content-Type", media_type)];
        let answer = self.send("PUT", &path, &headers, manifest).await?;
        ensure!(answer.status == 201, "{path} was not taken: {answer:?}");
        Ok(())
    }

    /// Puts a blob there, and returns its digest.
    pub async fn put_blob(&self, repository: &str, blob: String) -> anyhow::Result<String> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = self.send("POST", &path, &[], String::new()).await?;
        let place = begun.headers.get("location");
        let place = place.and_then(|place| place.to_str().ok());
        let place = place.with_context(|| format!("no upload at {path}: {begun:?}"))?;
        let path = place.trim_start_matches(&format!("http://{}", self.host()));
        let hex = Sha256::digest(&blob);
        let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = format!("{path}&digest=sha256:{hex}");
        let headers = [("Content-Type", "application/octet-stream")];
        let answer = self.send("PUT", &path, &headers, blob).await?;
        ensure!(answer.status == 201, "{path} was not taken: {answer:?}");
        Ok(format!("sha256:{hex}"))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> anyhow::Result<Answer> {
        let address: SocketAddr = self.host().parse()?;
        http::send(address, method, path, None, headers, body.into()).await
    }

    /// Stops it and removes its images; afterwards connections to its port are refused.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.kept.stop().await
    }
}

/// One that nobody listens on now.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .context("cannot find a free port on 127.0.0.1")?;
    Ok(listener
        .local_addr()
        .context("cannot read the port of a socket")?
        .port())
}

fn configuration(directory: &Path, port: u16, password: Option<&str>) -> anyhow::Result<String> {
    let directory = directory.display();
    let mut yaml = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {directory}/storage\n  \
         delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: refit-tests\n"
    );
    if let Some(password) = password {
        let hash =
            bcrypt::hash(password, BCRYPT_COST).context("cannot hash the registry's password")?;
        let file = format!("{directory}/htpasswd");
        fs::write(&file, format!("{USER}:{hash}\n"))
            .with_context(|| format!("cannot write {file}"))?;
        yaml.push_str(&format!(
            "auth:\n  htpasswd:\n    realm: refit-tests\n    path: {file}\n"
        ));
    }
    Ok(yaml)
}

/// Awaits the right answer to the API's version check. Bounded by the caller.
async fn until_answering(port: u16, wants_login: bool) -> anyhow::Result<()> {
    let expected = match wants_login {
        false => "HTTP/1.1 200",
        true => "HTTP/1.1 401",
    };
    loop {
        if let Ok(answer) = version_check((Ipv4Addr::LOCALHOST, port).into()).await {
            if answer.starts_with(expected) {
                return Ok(());
            }
            bail!(
                "port {port} is answered by something else: {}",
                answer.lines().next().unwrap_or_default()
            );
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn version_check(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Reads a line of the combined log format: `host - user [date] "METHOD path HTTP/1.1" status …`.
fn parse(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once('"')?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let status = rest.split_whitespace().next()?.parse().ok()?;
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        status,
    })
}
