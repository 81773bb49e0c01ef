//! A real `sshd` on loopback, which lets in whoever has the key that was made for it; and a cable to it that can be cut.
//!
//! Its sessions find `DOCKER_HOST` set, as the user's shell at a far side would set it. Knows nothing of Refit: a program gets
//! [`Sshd::client_config`], since `ssh` looks for a user's own in the home folder that the password file names.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::{AbortHandle, JoinSet};

use crate::bounded::within;
use crate::install;
use crate::registry::free_port;
use crate::supervisor::{self, ManagedProcess, ProcessSpec};

/// It is up after some 20 ms; the rest is for a loaded machine.
const START: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Making a key takes milliseconds.
const KEYGEN: Duration = Duration::from_secs(20);

/// A server that lets in the holder of `key`.
#[derive(Debug)]
pub struct Sshd {
    port: u16,
    kept: ManagedProcess,
}

impl Sshd {
    /// What runs in its sessions finds these variables, the engine's address and the path for instance.
    pub async fn start(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let programs = [("sshd", "openssh-server"), ("ssh", "openssh-client")];
        tokio::task::spawn_blocking(move || install::ensure(&programs)).await??;
        // sshd wants it, and on a machine without the service nobody makes it.
        fs::create_dir_all("/run/sshd").context("cannot make sshd's folder /run/sshd")?;
        let directory = supervisor::directory("sshd")?;
        for name in ["host_key", "key"] {
            let file = directory.join(name).display().to_string();
            let keygen = Command::new("ssh-keygen")
                .args([
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-C",
                    "refit-tests",
                    "-f",
                    &file,
                ])
                .stdin(Stdio::null())
                .status();
            let status = within(KEYGEN, "make a key", keygen).await?;
            ensure!(
                status.success(),
                "cannot make a key: ssh-keygen ended with {status}"
            );
        }
        fs::copy(directory.join("key.pub"), directory.join("authorized_keys"))?;
        let port = free_port()?;
        let config = directory.join("sshd_config");
        fs::write(&config, server_config(&directory, port, environment))?;
        let kept = ManagedProcess::start(ProcessSpec {
            name: "sshd",
            directory,
            lock: None,
            environment: vec![],
            command: [
                "/usr/sbin/sshd",
                "-D",
                "-e",
                "-f",
                &config.display().to_string(),
            ]
            .map(str::to_owned)
            .to_vec(),
        })?;
        kept.until(START, until_greeting(port)).await?;
        let sshd = Self { port, kept };
        sshd.trust()?;
        Ok(sshd)
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The user that it lets in: the one who runs the tests, who is root where engines are private.
    pub fn user(&self) -> &'static str {
        "root"
    }

    fn folder(&self) -> &Path {
        self.kept.directory()
    }

    /// The server's key becomes known to clients, under whatever name they call it by.
    pub fn trust(&self) -> anyhow::Result<()> {
        self.known_hosts("host_key.pub")
    }

    /// Another key than the server's is known to clients.
    pub fn mistrust(&self) -> anyhow::Result<()> {
        self.known_hosts("key.pub")
    }

    /// The server's key is not known to clients.
    pub fn forget(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.folder().join("known_hosts"), "")?)
    }

    fn known_hosts(&self, key: &str) -> anyhow::Result<()> {
        let key = fs::read_to_string(self.folder().join(key))?;
        Ok(fs::write(
            self.folder().join("known_hosts"),
            format!("refit-tests {key}"),
        )?)
    }

    /// No key is let in any more.
    pub fn let_nobody_in(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.folder().join("authorized_keys"), "")?)
    }

    /// For `ssh -F`: its key, and the hosts that it knows.
    pub fn client_config(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder();
        let path = folder.join("config");
        let text = format!(
            "Host *\n  IdentityFile {0}/key\n  IdentitiesOnly yes\n  UserKnownHostsFile {0}/known_hosts\n  \
             GlobalKnownHostsFile /dev/null\n  HostKeyAlias refit-tests\n",
            folder.display()
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.kept.stop().await
    }
}

fn server_config(folder: &Path, port: u16, environment: &[(&str, &str)]) -> String {
    let folder = folder.display();
    let mut config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n\
         PidFile none\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
         PermitRootLogin prohibit-password\n"
    );
    if !environment.is_empty() {
        let variables: Vec<_> = environment
            .iter()
            .map(|(name, value)| format!("\"{name}={value}\""))
            .collect();
        config.push_str(&format!("SetEnv {}\n", variables.join(" ")));
    }
    config
}

/// Awaits the words that a server begins with. Bounded by the caller.
async fn until_greeting(port: u16) -> anyhow::Result<()> {
    loop {
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            let mut greeting = [0; 4];
            stream.read_exact(&mut greeting).await?;
            ensure!(
                &greeting == b"SSH-",
                "port {port} is answered by something else"
            );
            return Ok(());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// A way to a server that can be cut, as a network can. Connections that come after the cut are refused.
pub struct Cable {
    pub address: SocketAddr,
    accepting: AbortHandle,
}

impl Cable {
    pub async fn to(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            // Aborted with this task.
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut far = TcpStream::connect(server).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Ok(Self {
            address,
            accepting: accepting.abort_handle(),
        })
    }

    pub fn cut(&self) {
        self.accepting.abort();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
    }
}
