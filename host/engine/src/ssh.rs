//! An engine on another machine, reached by SSH: its address and its errors.
//!
//! The format is the Docker CLI's: `ssh://[user@]host[:port][/path/to.sock]`. This module knows the messages of `ssh` and of
//! the remote programs, but does not run any of them.

use std::fmt;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The SSH destination, and the socket there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub user: Option<String>,
    /// A name, an address, or an alias of `~/.ssh/config`.
    pub host: String,
    pub port: Option<u16>,
    /// The engine's socket on the remote machine. Without it, the default of the remote `docker`.
    pub socket: Option<String>,
}

impl Destination {
    /// Parses an SSH address. The error describes the problem.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = url.strip_prefix("ssh://").ok_or("no `ssh://`")?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err("it has a password in it, which everybody on this machine could read");
        }
        // Both become arguments of `ssh`, which would treat a leading `-` as an option.
        if user.is_some_and(|user| !is_word(user, "._-+@\\")) {
            return Err("the user's name is none");
        }
        let (host, port) = match address.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or("a `]` is missing")?;
                if !is_word(host, ":.%-_") {
                    return Err("the address in brackets is none");
                }
                (host, port)
            }
            None => {
                let (host, port) = address.split_at(address.find(':').unwrap_or(address.len()));
                if !is_word(host, "._-") {
                    return Err("the host's name is none");
                }
                (host, port)
            }
        };
        let port = match port {
            "" => None,
            port => {
                let digits = port.strip_prefix(':').unwrap_or_default();
                let number = digits.parse::<u16>().ok().filter(|number| *number > 0);
                Some(number.ok_or("the port is no number from 1 to 65535")?)
            }
        };
        // It becomes a word of a command for an unknown shell.
        let socket = match path {
            "" | "/" => None,
            path if is_word(&path[1..], "/._-+@") => Some(path.to_owned()),
            _ => {
                return Err(
                    "the socket's path has other characters than letters, digits and `/._-+@`",
                );
            }
        };
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            socket,
        })
    }

    /// Returns the arguments of `ssh`: the destination, and the command to run there.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(user) = &self.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        arguments.extend(["--".to_owned(), self.host.clone(), "docker".to_owned()]);
        if let Some(socket) = &self.socket {
            arguments.extend(["--host".to_owned(), format!("unix://{socket}")]);
        }
        arguments.extend(["system".to_owned(), "dial-stdio".to_owned()]);
        arguments
    }
}

/// Formats the destination as a user would write it after `ssh`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(port) = self.port {
            write!(f, "-p {port} ")?;
        }
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.host)
    }
}

fn is_word(text: &str, other_characters: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || other_characters.contains(c))
}

/// An SSH connection failed or ended unexpectedly. `source` is the text that came over it.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problem.sentence(.host))]
pub struct SshError {
    /// The destination as written after `ssh`.
    host: String,
    pub problem: Problem,
    source: Option<Cause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// This machine has no `ssh`.
    NoProgram,
    /// The name does not resolve, nothing listens, or nothing responds.
    NotThere,
    UnknownHostKey,
    ChangedHostKey,
    /// The server accepts none of our keys.
    Denied,
    /// The remote machine has no `docker`.
    NoDocker,
    /// The remote `docker` has no permission for its engine.
    NotAllowed,
    /// The remote `docker` finds no engine.
    NoEngine,
    /// The output is not an engine's response, for example from a shell's start-up file.
    Noise,
    Silent,
    /// An established connection ended.
    Broken,
    Other,
}

impl SshError {
    pub fn new(destination: &Destination, problem: Problem, source: Option<Cause>) -> Self {
        Self {
            host: destination.to_string(),
            problem,
            source,
        }
    }

    /// Creates an error from the exit status of `ssh`, and the stderr of it and the remote programs.
    pub fn from_exit(destination: &Destination, status: Option<i32>, stderr: &str) -> Self {
        let source = last_line(stderr).map(Cause::from);
        Self::new(destination, classify_failure(status, stderr), source)
    }

    pub fn hints(&self) -> Vec<String> {
        let Self { host, problem, .. } = self;
        match problem {
            Problem::NoProgram => vec!["install OpenSSH's client (`openssh-client`, `openssh`); an image made from scratch has none".into()],
            Problem::NotThere => vec![format!("`ssh {host} true` must work on this machine")],
            Problem::UnknownHostKey => vec![
                format!("nobody is asked here: run `ssh {host}` once, as the same user, and compare the fingerprint"),
                "or put the host's key into `~/.ssh/known_hosts`".into(),
            ],
            Problem::ChangedHostKey => vec![
                format!("either the machine was set up anew, or another one answers in its place: find out before `ssh-keygen -R` ({host})"),
            ],
            Problem::Denied => vec![
                format!("`ssh -o BatchMode=yes {host} true` must work as the same user: with a key, since nobody is asked for a password"),
                "a key with a passphrase takes an agent: is `SSH_AUTH_SOCK` set where Refit runs?".into(),
            ],
            Problem::NoDocker => vec![format!("the far side needs the Docker CLI, 18.09 or later, on the path that `ssh {host} env` shows")],
            Problem::NotAllowed => vec!["the user over there may not open the engine's socket: put it into the `docker` group, or log in as one who may".into()],
            Problem::NoEngine => vec![format!("`ssh {host} docker version` must work: is the engine running over there?")],
            Problem::Noise => vec!["start-up files of the shell over there (`.bashrc`) must print nothing when nobody is there to read it".into()],
            Problem::Silent => vec![format!("`ssh {host} docker system dial-stdio` must connect to the engine")],
            Problem::Broken | Problem::Other => vec![format!("`ssh {host} docker version` shows whether it works by hand")],
        }
    }
}

impl Problem {
    fn sentence(self, host: &str) -> String {
        match self {
            Self::NoProgram => "cannot run `ssh`".into(),
            Self::NotThere => format!("cannot reach `{host}` by SSH"),
            Self::UnknownHostKey => format!("the host key of `{host}` is not known here"),
            Self::ChangedHostKey => {
                format!("the host key of `{host}` is not the one that is known here")
            }
            Self::Denied => format!("`{host}` does not let us in"),
            Self::NoDocker => format!("there is no `docker` at `{host}`"),
            Self::NotAllowed => format!("the user at `{host}` may not use the engine there"),
            Self::NoEngine => format!("`docker` at `{host}` finds no engine"),
            Self::Noise => format!("something else than an engine answers at `{host}`"),
            Self::Silent => format!("nothing came from `{host}` in time"),
            Self::Broken => format!("the SSH connection to `{host}` ended"),
            Self::Other => format!("cannot connect to the engine at `{host}` by SSH"),
        }
    }
}

/// Classifies a failure. `ssh` exits with 255 for its own failures, otherwise with the status of the remote command. Its
/// messages are always in English; those of a shell may not be, but its status for "no such command" is always 127.
fn classify_failure(status: Option<i32>, stderr: &str) -> Problem {
    let has = |words: &[&str]| words.iter().any(|words| stderr.contains(words));
    match status {
        Some(127) => Problem::NoDocker,
        Some(255) if has(&["IDENTIFICATION HAS CHANGED"]) => Problem::ChangedHostKey,
        Some(255) if has(&["Host key verification failed", "No matching host key"]) => {
            Problem::UnknownHostKey
        }
        Some(255) if has(&["Permission denied (", "Too many authentication failures"]) => {
            Problem::Denied
        }
        Some(255)
            if has(&[
                "Could not resolve hostname",
                "Connection refused",
                "timed out",
                "No route to host",
                "Network is unreachable",
                "Connection closed by",
                "Connection reset by",
                "kex_exchange_identification",
            ]) =>
        {
            Problem::NotThere
        }
        _ if has(&["permission denied"]) => Problem::NotAllowed,
        _ if has(&[
            "Cannot connect to the Docker daemon",
            "raw stream connection",
        ]) =>
        {
            Problem::NoEngine
        }
        _ if has(&[
            "'dial-stdio' is not",
            "unknown command",
            "is not a docker command",
        ]) =>
        {
            Problem::NoDocker
        }
        _ => Problem::Other,
    }
}

/// Returns the last line, which contains the result; warnings and banners come before it.
fn last_line(stderr: &str) -> Option<String> {
    const SHOWN_CHARS_MAX: usize = 300;
    let line = stderr
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())?;
    let shown = line.chars().filter(|c| !c.is_control());
    Some(shown.take(SHOWN_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_parsed_as_by_docker_cli() {
        let arguments = |url| Destination::parse(url).unwrap().arguments().join(" ");
        assert_eq!(
            arguments("ssh://build"),
            "-- build docker system dial-stdio"
        );
        assert_eq!(
            arguments("ssh://build/"),
            "-- build docker system dial-stdio"
        );
        assert_eq!(
            arguments("ssh://me@build.example:2222"),
            "-l me -p 2222 -- build.example docker system dial-stdio"
        );
        assert_eq!(
            arguments("ssh://me@[fe80::1%eth0]:22/run/user/1000/docker.sock"),
            "-l me -p 22 -- fe80::1%eth0 docker --host unix:///run/user/1000/docker.sock system dial-stdio"
        );
    }

    #[test]
    fn address_cannot_inject_options_or_commands() {
        for url in [
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://me@",
            "ssh://@host",
            "ssh://me:password@host",
            "ssh://host:0",
            "ssh://host:ssh",
            "ssh://host:99999",
            "ssh://[::1",
            "ssh://[::1]22",
            "ssh://ho st",
            "ssh://host;id",
            "ssh://host/run/$(id)",
            "ssh://host/run/a b",
            "ssh://host?x=y",
            "http://host",
        ] {
            assert!(Destination::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn ssh_failures_are_distinguished() {
        let destination = Destination::parse("ssh://me@build:2222").unwrap();
        for (status, stderr, expected) in [
            (
                255,
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                Problem::ChangedHostKey,
            ),
            (
                255,
                "Host key verification failed.\r\n",
                Problem::UnknownHostKey,
            ),
            (
                255,
                "me@build: Permission denied (publickey).\r\n",
                Problem::Denied,
            ),
            (
                255,
                "ssh: connect to host build port 2222: Connection refused\r\n",
                Problem::NotThere,
            ),
            (
                255,
                "ssh: Could not resolve hostname build: Name or service not known",
                Problem::NotThere,
            ),
            (
                127,
                "bash: Zeile 1: docker: Befehl nicht gefunden",
                Problem::NoDocker,
            ),
            (
                1,
                "failed to open the raw stream connection: dial unix /var/run/docker.sock: connect: permission denied",
                Problem::NotAllowed,
            ),
            (
                1,
                "failed to open the raw stream connection: dial unix /x: connect: no such file or directory",
                Problem::NoEngine,
            ),
            (1, "", Problem::Other),
        ] {
            let error = SshError::from_exit(&destination, Some(status), stderr);
            assert_eq!(error.problem, expected, "{stderr}");
            assert!(!error.hints().is_empty());
            assert!(error.to_string().contains("-p 2222 me@build"), "{error}");
        }
        let error = SshError::from_exit(&destination, Some(1), "a banner\n\nthe \u{1b}[31mend\n\n");
        assert_eq!(
            std::error::Error::source(&error).unwrap().to_string(),
            "the [31mend"
        );
    }
}
