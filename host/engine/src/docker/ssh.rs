//! The engine's HTTP API over SSH: one `ssh` process for each connection, with `docker system dial-stdio` at its remote end.
//!
//! The Docker CLI does the same, with the user's own `~/.ssh/config`, agent and known hosts. bollard's own connector loses the
//! port of the address, trusts unknown hosts, leaves a master process behind when it is killed, and does not report remote
//! errors.
//!
//! A connection counts once an engine has responded over it. Until then Refit collects the output of `ssh` and of the remote
//! programs, so that the error can quote it.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::errors::Error;
use bollard::{BollardRequest, ClientVersion, Docker};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use refit_storage::child_environment::Child as ChildProgram;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;

use super::super::ssh::{Destination, Problem, SshError};

/// The limit from the start of `ssh` to the engine's first response. A jump host and a slow remote disk take seconds.
pub(super) const CONNECT_SECONDS_MAX: u64 = 30;
/// The limit within `ssh`, for the connection and the server's first message: its error names the failed part better than ours.
const REACH_SECONDS_MAX: u64 = 10;
/// The keep-alive interval, since a machine that disappears sends nothing. After three intervals without a response `ssh`
/// closes the connection.
const ALIVE_SECONDS: u64 = 15;
/// The number of concurrent logins: beyond ten, `sshd` by default refuses at random (`MaxStartups`).
const LOGINS_MAX: usize = 4;
/// How much of stderr to keep: banners and a few lines of warnings.
const STDERR_BYTES_MAX: usize = 8 * 1024;
/// The longest head of a response to a ping. Docker's has some 300 bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long to wait for the process and its stderr after stdout has ended: a master process that `ssh` left behind keeps stderr
/// open.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Every engine from 18.09 on responds to this without a body.
const PING: &[u8] = b"HEAD /_ping HTTP/1.1\r\nHost: docker\r\n\r\n";

/// Opens a client. It connects only with the first request.
pub(super) fn open(
    destination: Destination,
    seconds: u64,
    version: &ClientVersion,
) -> Result<Docker, Error> {
    let dialer = Dialer {
        destination: Arc::new(destination),
        logins: Arc::new(Semaphore::new(LOGINS_MAX)),
    };
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialer = dialer.clone();
        Box::pin(async move { dialer.dial().await.map(TokioIo::new) })
    });
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let transport = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { answer.await.map_err(unwrap_connect_error) }
    };
    // The address is only a placeholder for the end of a pipe: it becomes the `Host` of a request, and no name is resolved.
    Docker::connect_with_custom_transport(transport, Some("http://docker"), seconds, version)
}

/// Unwraps the connector's error, which hyper wraps twice.
fn unwrap_connect_error(error: hyper_util::client::legacy::Error) -> Error {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<io::Error>();
        if let Some(shared) = io.and_then(|io| io.get_ref()?.downcast_ref::<Shared>()) {
            let err = io::Error::other(shared.clone());
            return Error::IOError { err };
        }
        next = cause.source();
    }
    Error::HyperLegacyError { err: error }
}

/// An error that hyper and Refit share.
#[derive(Clone, Debug)]
struct Shared(Arc<SshError>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Returns the SSH error within an I/O error, which has hints.
pub(super) fn unwrap_ssh_error(error: io::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Shared>())
    {
        Some(Shared(ssh)) => Box::new(ssh.clone()),
        None => Box::new(error),
    }
}

#[derive(Clone)]
struct Dialer {
    destination: Arc<Destination>,
    logins: Arc<Semaphore>,
}

impl Dialer {
    async fn dial(self) -> io::Result<SshStream> {
        let connection = async {
            // The semaphore is never closed.
            let _turn = self.logins.acquire().await;
            let mut stream = self.spawn()?;
            match stream.ping().await {
                Ok(()) => Ok(stream),
                Err(failed) => Err(stream.explain(failed).await),
            }
        };
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        let answer = tokio::time::timeout(limit, connection).await;
        let late = |_| SshError::new(&self.destination, Problem::Silent, None);
        answer.map_err(late).flatten().map_err(to_io_error)
    }

    fn spawn(&self) -> Result<SshStream, SshError> {
        let mut command = Command::new("ssh");
        for option in [
            // Never prompt: no user can answer.
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={REACH_SECONDS_MAX}"),
            format!("ServerAliveInterval={ALIVE_SECONDS}"),
            // Forwardings in `~/.ssh/config` are for a user's session, not for each of our connections.
            "ClearAllForwardings=yes".to_owned(),
            "ForwardAgent=no".to_owned(),
            "ForwardX11=no".to_owned(),
            "PermitLocalCommand=no".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
            .arg("-T")
            .args(self.destination.arguments())
            .env_clear()
            .envs(ChildProgram::Ssh.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C is for Refit, which finishes running work; it must not close the connection before that.
        #[cfg(unix)]
        command.process_group(0);
        let no_program = |error: io::Error| {
            SshError::new(&self.destination, Problem::NoProgram, Some(error.into()))
        };
        let mut child = command.spawn().map_err(no_program)?;
        let missing = || no_program(io::Error::other("it has no pipes"));
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let stderr_text = Arc::new(Mutex::new(Vec::new()));
        let stderr_task = tokio::spawn(collect_stderr(stderr, stderr_text.clone()));
        Ok(SshStream {
            destination: self.destination.clone(),
            child,
            stdin,
            stdout,
            stderr_text,
            stderr_task,
        })
    }
}

/// Reads all of stderr, so that no process blocks on it, and keeps the end.
async fn collect_stderr(mut stderr: tokio::process::ChildStderr, stderr_text: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
        let mut stderr_text = stderr_text.lock().unwrap_or_else(PoisonError::into_inner);
        stderr_text.extend_from_slice(&chunk[..length]);
        let excess = stderr_text.len().saturating_sub(STDERR_BYTES_MAX);
        stderr_text.drain(..excess);
    }
}

fn to_io_error(error: SshError) -> io::Error {
    io::Error::other(Shared(Arc::new(error)))
}

/// One connection. Dropping it ends its `ssh`.
struct SshStream {
    destination: Arc<Destination>,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr_text: Arc<Mutex<Vec<u8>>>,
    stderr_task: tokio::task::JoinHandle<()>,
}

/// Why the first exchange with the engine failed.
enum HandshakeError {
    /// The process stopped writing or reading.
    Ended,
    /// The beginning of the unexpected output.
    Noise(String),
}

impl SshStream {
    /// Sends a ping to the engine.
    async fn ping(&mut self) -> Result<(), HandshakeError> {
        // The reason why a process ended is reported elsewhere.
        let sent = self.stdin.write_all(PING).await;
        sent.map_err(|_| HandshakeError::Ended)?;
        let mut head = Vec::new();
        let mut byte = [0];
        // Read byte by byte, to take nothing that belongs to the next response. It is a pipe and 300 bytes.
        while !head.ends_with(b"\r\n\r\n") {
            match self.stdout.read(&mut byte).await {
                Ok(1) => head.push(byte[0]),
                _ if head.is_empty() => return Err(HandshakeError::Ended),
                _ => return Err(noise_error(&head)),
            }
            let expected = &b"HTTP/1."[..head.len().min(7)];
            if !head.starts_with(expected) {
                // Read the rest of the line, to show which program printed it.
                while head.len() < HEAD_BYTES_MAX && !head.ends_with(b"\n") {
                    match self.stdout.read(&mut byte).await {
                        Ok(1) => head.push(byte[0]),
                        _ => break,
                    }
                }
                return Err(noise_error(&head));
            }
            if head.len() > HEAD_BYTES_MAX {
                return Err(noise_error(&head));
            }
        }
        let stderr_text = std::mem::take(&mut *self.stderr_text());
        if !stderr_text.is_empty() {
            tracing::debug!(host = %self.destination, "ssh says: {}", String::from_utf8_lossy(&stderr_text).trim());
        }
        Ok(())
    }

    /// Explains a failure. Waits for the process and its last output.
    async fn explain(mut self, failed: HandshakeError) -> SshError {
        if let HandshakeError::Noise(line) = failed {
            return SshError::new(&self.destination, Problem::Noise, Some(line.into()));
        }
        let status = tokio::time::timeout(EXIT_TIMEOUT, self.child.wait()).await;
        let _ = tokio::time::timeout(EXIT_TIMEOUT, &mut self.stderr_task).await;
        let status = status.ok().and_then(Result::ok);
        let stderr_text = String::from_utf8_lossy(&self.stderr_text()).into_owned();
        SshError::from_exit(
            &self.destination,
            status.and_then(|status| status.code()),
            &stderr_text,
        )
    }

    fn stderr_text(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.stderr_text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn noise_error(head: &[u8]) -> HandshakeError {
    const SHOWN_CHARS_MAX: usize = 80;
    let line = String::from_utf8_lossy(head);
    let line = line.lines().next().unwrap_or_default();
    let shown = line.chars().filter(|c| !c.is_control());
    HandshakeError::Noise(format!(
        "`{}`",
        shown.take(SHOWN_CHARS_MAX).collect::<String>()
    ))
}

impl Drop for SshStream {
    fn drop(&mut self) {
        // If a master process was left behind, its stderr would be read for as long as that process lives.
        self.stderr_task.abort();
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let answer = Pin::new(&mut self.stdout).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = answer
            && buffer.filled().len() == before
            && !self.stderr_text().is_empty()
        {
            let stderr_text = String::from_utf8_lossy(&self.stderr_text()).into_owned();
            let error = SshError::new(
                &self.destination,
                Problem::Broken,
                Some(stderr_text.trim().into()),
            );
            return Poll::Ready(Err(to_io_error(error)));
        }
        answer
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(context)
    }
}

impl Connection for SshStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
