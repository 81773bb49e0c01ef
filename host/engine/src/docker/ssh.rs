//! The engine's HTTP over SSH: for each connection a process of `ssh`, with `docker system dial-stdio` at its far end.
//!
//! As the Docker CLI does it, with the user's own `~/.ssh/config`, agent and known hosts. bollard has a connector of its own,
//! which loses the port of the address, trusts a host that it has never seen, leaves a master behind when it is killed, and has
//! no words for whatever goes wrong at the far side.
//!
//! A connection counts once an engine has answered over it. Until then `ssh` and the programs over there are listened to, so
//! that the error says what they said.

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

/// From the start of `ssh` to the engine's first answer. A jump host and a slow disk at the far side take seconds.
pub(super) const CONNECT_SECONDS_MAX: u64 = 30;
/// `ssh`'s own limit, for the connection and the server's first words: it says better than we what did not answer.
const REACH_SECONDS_MAX: u64 = 10;
/// A machine that is gone does not say so. After three of these without an answer the connection is given up.
const ALIVE_SECONDS: u64 = 15;
/// Log-ins at once: beyond ten, `sshd` by default refuses at random (`MaxStartups`).
const LOGINS_MAX: usize = 4;
/// What is kept of stderr: banners and a few lines of warnings.
const SAID_BYTES_MAX: usize = 8 * 1024;
/// The head of the answer to a ping. Docker's has some 300 bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Between the end of stdout and that of the process, or of its stderr: a master that `ssh` left behind holds stderr open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Answered without a body by every engine from 18.09 on.
const PING: &[u8] = b"HEAD /_ping HTTP/1.1\r\nHost: docker\r\n\r\n";

/// Nothing is contacted before the first request.
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
        async move { answer.await.map_err(in_our_words) }
    };
    // The address stands for the far end of a pipe: it becomes the `Host` of a request, and nothing is looked up.
    Docker::connect_with_custom_transport(transport, Some("http://docker"), seconds, version)
}

/// hyper wraps what a connector says twice.
fn in_our_words(error: hyper_util::client::legacy::Error) -> Error {
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

/// The one error, in hyper's hands and ours.
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

/// The SSH error within an I/O error, for whoever has hints to give.
pub(super) fn unwrap(error: io::Error) -> Box<dyn std::error::Error + Send + Sync> {
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
        let connecting = async {
            // Never closed.
            let _turn = self.logins.acquire().await;
            let mut stream = self.spawn()?;
            match stream.introduce().await {
                Ok(()) => Ok(stream),
                Err(failed) => Err(stream.why(failed).await),
            }
        };
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        let answer = tokio::time::timeout(limit, connecting).await;
        let late = |_| SshError::new(&self.destination, Problem::Silent, None);
        answer.map_err(late).flatten().map_err(as_io)
    }

    fn spawn(&self) -> Result<SshStream, SshError> {
        let mut command = Command::new("ssh");
        for option in [
            // Never a question: there is nobody to answer it.
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={REACH_SECONDS_MAX}"),
            format!("ServerAliveInterval={ALIVE_SECONDS}"),
            // What `~/.ssh/config` forwards is for a person's one session, not for each of our connections.
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
        // Ctrl-C is for us, who finish what was begun; it must not take the connection away meanwhile.
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
        let said = Arc::new(Mutex::new(Vec::new()));
        let listening = tokio::spawn(listen(stderr, said.clone()));
        Ok(SshStream {
            destination: self.destination.clone(),
            child,
            stdin,
            stdout,
            said,
            listening,
        })
    }
}

/// All of stderr is read, so that nobody waits for us to read it; the end of it is kept.
async fn listen(mut stderr: tokio::process::ChildStderr, said: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(&chunk[..length]);
        let excess = said.len().saturating_sub(SAID_BYTES_MAX);
        said.drain(..excess);
    }
}

fn as_io(error: SshError) -> io::Error {
    io::Error::other(Shared(Arc::new(error)))
}

/// One connection. Its `ssh` ends when it is dropped.
struct SshStream {
    destination: Arc<Destination>,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    said: Arc<Mutex<Vec<u8>>>,
    listening: tokio::task::JoinHandle<()>,
}

/// How the first exchange with the engine failed.
enum Failed {
    /// The process wrote no more, or read no more.
    Ended,
    /// The beginning of what came instead.
    Noise(String),
}

impl SshStream {
    /// Asks the engine whether it is there.
    async fn introduce(&mut self) -> Result<(), Failed> {
        // A process that has ended says why elsewhere.
        let sent = self.stdin.write_all(PING).await;
        sent.map_err(|_| Failed::Ended)?;
        let mut head = Vec::new();
        let mut byte = [0];
        // Byte by byte, so that nothing is taken that belongs to what comes next. It is a pipe and 300 bytes.
        while !head.ends_with(b"\r\n\r\n") {
            match self.stdout.read(&mut byte).await {
                Ok(1) => head.push(byte[0]),
                _ if head.is_empty() => return Err(Failed::Ended),
                _ => return Err(noise(&head)),
            }
            let expected = &b"HTTP/1."[..head.len().min(7)];
            if !head.starts_with(expected) {
                // The rest of its line, for whoever has to find out who printed it.
                while head.len() < HEAD_BYTES_MAX && !head.ends_with(b"\n") {
                    match self.stdout.read(&mut byte).await {
                        Ok(1) => head.push(byte[0]),
                        _ => break,
                    }
                }
                return Err(noise(&head));
            }
            if head.len() > HEAD_BYTES_MAX {
                return Err(noise(&head));
            }
        }
        let said = std::mem::take(&mut *self.said());
        if !said.is_empty() {
            tracing::debug!(host = %self.destination, "ssh says: {}", String::from_utf8_lossy(&said).trim());
        }
        Ok(())
    }

    /// Waits for last words.
    async fn why(mut self, failed: Failed) -> SshError {
        if let Failed::Noise(line) = failed {
            return SshError::new(&self.destination, Problem::Noise, Some(line.into()));
        }
        let status = tokio::time::timeout(LAST_WORDS, self.child.wait()).await;
        let _ = tokio::time::timeout(LAST_WORDS, &mut self.listening).await;
        let status = status.ok().and_then(Result::ok);
        let said = String::from_utf8_lossy(&self.said()).into_owned();
        SshError::of_end(
            &self.destination,
            status.and_then(|status| status.code()),
            &said,
        )
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn noise(head: &[u8]) -> Failed {
    const SHOWN_CHARS_MAX: usize = 80;
    let line = String::from_utf8_lossy(head);
    let line = line.lines().next().unwrap_or_default();
    let shown = line.chars().filter(|c| !c.is_control());
    Failed::Noise(format!(
        "`{}`",
        shown.take(SHOWN_CHARS_MAX).collect::<String>()
    ))
}

impl Drop for SshStream {
    fn drop(&mut self) {
        // Where a master was left behind, its stderr would be read for as long as that lives.
        self.listening.abort();
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
            && !self.said().is_empty()
        {
            let said = String::from_utf8_lossy(&self.said()).into_owned();
            let error = SshError::new(&self.destination, Problem::Broken, Some(said.trim().into()));
            return Poll::Ready(Err(as_io(error)));
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
