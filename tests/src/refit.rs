//! The real program, run as a person would, in an environment of its own.
//!
//! Nothing of the machine's shows through: its variables, home folder, Docker logins and contexts are those that the test gives
//! it. Whatever it prints is searched for the secrets it was told. Knows how the program is run, and not what it should do.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bounded::within;
use crate::http::{self, Answer};
use crate::registry;

/// The longest run of a test: eight pulls and replacements with a second of proof each, on a loaded machine.
const RUN: Duration = Duration::from_secs(120);
/// From something that the daemon does to the line that it logs about it.
const LOGGED: Duration = Duration::from_secs(30);
/// From its start to the word that it serves; it compiles its policy first.
const START: Duration = Duration::from_secs(60);

/// A way of running the program. Each run is made the same way, so that a plan and a refresh see the same world.
pub struct Refit {
    program: PathBuf,
    home: Arc<TempDir>,
    settings: BTreeMap<String, Value>,
    environment: BTreeMap<String, String>,
    secrets: Vec<String>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Output {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A daemon. Killed when it is dropped.
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    token: Option<String>,
    log: watch::Receiver<String>,
    reading: JoinHandle<()>,
    secrets: Vec<String>,
    /// It works in there, as long as it runs.
    _home: Arc<TempDir>,
}

impl Refit {
    /// `program` is its path, which cargo tells the tests; `docker_host` the engine that it finds in its environment.
    pub fn new(program: &str, docker_host: &str) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("refit-home-")
            .tempdir()
            .context("cannot create a home folder")?;
        for folder in ["bin", "docker"] {
            fs::create_dir(home.path().join(folder))?;
        }
        let refit = Self {
            program: program.into(),
            home: Arc::new(home),
            settings: BTreeMap::new(),
            environment: BTreeMap::new(),
            secrets: Vec::new(),
        };
        Ok(refit
            .env("DOCKER_HOST", docker_host)
            .secret(registry::PASSWORD))
    }

    /// Where it runs: `refit.toml` is here, the Docker CLI's folder is `docker`, and `bin` is on its path.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A key of `refit.toml`, for example `limits.pull_seconds`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    pub fn unset(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// From now on it is an error to print this.
    pub fn secret(mut self, secret: &str) -> Self {
        self.secrets.push(secret.to_owned());
        self
    }

    /// The Docker CLI's `config.json`.
    pub fn docker_config(self, config: &Value) -> anyhow::Result<Self> {
        self.file("docker/config.json", config.to_string())
    }

    /// A file, below where it runs.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> anyhow::Result<Self> {
        let path = self.home().join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(self)
    }

    /// A shell script on its path.
    pub fn program(self, name: &str, script: &str) -> anyhow::Result<Self> {
        let refit = self.file(&format!("bin/{name}"), format!("#!/bin/sh\n{script}\n"))?;
        let path = refit.home().join("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(refit)
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.run_within(RUN, arguments).await
    }

    /// The same, where more is to be done than tests have patience for.
    pub async fn run_within(&self, limit: Duration, arguments: &[&str]) -> anyhow::Result<Output> {
        let run = self.command(arguments)?.output();
        let output = within(limit, &format!("run `refit {}`", arguments.join(" ")), run).await?;
        let output = Output {
            status: output
                .status
                .code()
                .with_context(|| format!("`refit` was killed: {output:?}"))?,
            stdout: String::from_utf8(output.stdout).context("stdout is not UTF-8")?,
            stderr: String::from_utf8(output.stderr).context("stderr is not UTF-8")?,
        };
        keeps(
            &self.secrets,
            &format!("{}{}", output.stdout, output.stderr),
        );
        Ok(output)
    }

    /// Starts it without awaiting its end.
    pub fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        self.command(arguments)?.spawn().context("cannot run refit")
    }

    /// Starts the daemon on a free port of loopback, and awaits its word that it serves. Requests carry its token.
    pub async fn serve(&self) -> anyhow::Result<Daemon> {
        self.serve_on(0).await
    }

    /// The same on a port that somebody else has to know before.
    pub async fn serve_on(&self, port: u16) -> anyhow::Result<Daemon> {
        let listen = format!("127.0.0.1:{port}");
        let arguments = ["serve", "--listen", &listen, "--log-format", "json"];
        let mut child = self.spawn(&arguments)?;
        let stderr = child.stderr.take().context("stderr is a pipe")?;
        let (writing, log) = watch::channel(String::new());
        let mut lines = BufReader::new(stderr).lines();
        let serving = async {
            while let Some(line) = lines.next_line().await? {
                push(&writing, &line);
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if line["fields"]["message"] == "serving" {
                    let address = line["fields"]["address"].as_str();
                    return Ok(address.context("it serves at no address")?.parse()?);
                }
            }
            bail!("it ended; its log is\n{}", *log.borrow())
        };
        let address = within(START, "start the daemon", serving).await?;
        let token = self.token();
        let mut secrets = self.secrets.clone();
        secrets.extend(token.clone());
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                push(&writing, &line);
            }
        });
        Ok(Daemon {
            child,
            address,
            token,
            log,
            reading,
            secrets,
            _home: self.home.clone(),
        })
    }

    /// The token of the environment, or the one that a daemon has made for itself. None if a test has it read from elsewhere.
    fn token(&self) -> Option<String> {
        if let Some(token) = self.environment.get("ADMIN_TOKEN") {
            return Some(token.trim().to_owned());
        }
        let elsewhere = self.environment.contains_key("ADMIN_TOKEN_FILE")
            || self.settings.contains_key("serve.token_file")
            || self.settings.get("serve.allow_no_token") == Some(&Value::Bool(true));
        if elsewhere {
            return None;
        }
        let made = fs::read_to_string(self.state_folder().join("token")).ok()?;
        Some(made.trim().to_owned())
    }

    /// Where it keeps its state.
    pub fn state_folder(&self) -> PathBuf {
        let configured = self.settings.get("state_dir").and_then(Value::as_str);
        let variable = |name: &str| self.environment.get(name).map(String::as_str);
        match configured.or_else(|| variable("REFIT_STATE_DIR")) {
            Some(folder) => self.home().join(folder),
            None => match variable("XDG_STATE_HOME") {
                Some(folder) => self.home().join(folder).join("refit"),
                None => state_folder().join("refit"),
            },
        }
    }

    /// Writes `refit.toml` as the settings say; each run does so itself.
    pub fn write_config(&self) -> anyhow::Result<()> {
        let config: String = self
            .settings
            .iter()
            .map(|(key, value)| format!("{key} = {}\n", toml(value)))
            .collect();
        // A test may have written one by hand.
        if !config.is_empty() {
            fs::write(self.home().join("refit.toml"), config).context("cannot write refit.toml")?;
        }
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        self.write_config()?;
        let path = std::env::var("PATH").unwrap_or_default();
        // It is not looked for where the program runs.
        let there = self.home().join("refit.toml").exists();
        let config = there.then_some(("REFIT_CONFIG", "refit.toml"));
        let mut command = Command::new(&self.program);
        command
            .arg0("refit")
            .args(arguments)
            .current_dir(self.home())
            .env_clear()
            .env("HOME", self.home())
            .env(
                "PATH",
                format!("{}:{path}", self.home().join("bin").display()),
            )
            .env("DOCKER_CONFIG", self.home().join("docker"))
            .env("XDG_STATE_HOME", state_folder())
            .envs(config)
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }
}

impl Output {
    /// The exit status must be this.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "exit status\n{self}");
        self
    }

    /// What was printed with `--json`.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is no JSON: {error}\n{self}"))
    }

    /// stderr must say this, somewhere.
    #[track_caller]
    pub fn says(&self, what: &str) -> &Self {
        assert!(
            self.stderr.contains(what),
            "stderr does not say `{what}`\n{self}"
        );
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "--- stdout\n{}--- stderr\n{}--- status {}",
            self.stdout, self.stderr, self.status
        )
    }
}

impl Daemon {
    /// A request with the daemon's token, if it has one.
    pub async fn request(&self, method: &str, path: &str) -> anyhow::Result<Answer> {
        http::request(self.address, method, path, self.token.as_deref()).await
    }

    /// The same with headers and a body.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let token = self.token.as_deref();
        http::send(self.address, method, path, token, headers, body.into()).await
    }

    /// What requests carry.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The lines of a request's head that name it and let whoever asks in, for a request that is written by hand.
    pub fn head_lines(&self) -> String {
        let token = self.token.as_ref();
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        format!("Host: {}\r\n{}", self.address, token.unwrap_or_default())
    }

    /// The platform's endpoint, with a query.
    pub async fn refresh(&self, query: &str) -> anyhow::Result<Answer> {
        self.request("POST", &format!("/admin/workspace-images/refresh{query}"))
            .await
    }

    /// Tells it to stop.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::TERM)
    }

    /// Ends it as a power cut would, and awaits that it is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        within(RUN, "kill the daemon", self.child.kill()).await
    }

    /// Tells it to read its configuration again.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::HUP)
    }

    fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = self.child.id().context("the daemon has ended already")?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("no such process")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// What it holds of the machine's memory.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.child.id().context("the daemon has ended already")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kilobytes
            .context("no resident size")?
            .trim()
            .parse::<u64>()?
            << 10)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Awaits that it calls itself ready: it has looked for what was left half done.
    pub async fn until_ready(&self) -> anyhow::Result<()> {
        let asked = async {
            loop {
                if let Ok(answer) = http::request(self.address, "GET", "/readyz", None).await
                    && answer.status == 200
                {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(START, "see the daemon become ready", asked).await
    }

    /// Awaits a line in its log that contains this.
    pub async fn until_logged(&self, words: &str) -> anyhow::Result<()> {
        let mut log = self.log.clone();
        let logged = log.wait_for(|log| log.contains(words));
        within(LOGGED, &format!("see the daemon log `{words}`"), logged)
            .await
            .map(drop)
    }

    /// Awaits its end. Its log is in `stderr`.
    pub async fn ended(mut self) -> anyhow::Result<Output> {
        let status = within(RUN, "see the daemon end", self.child.wait()).await?;
        within(RUN, "read the daemon's log", &mut self.reading).await?;
        Ok(Output {
            status: status
                .code()
                .with_context(|| format!("the daemon was killed: {status}"))?,
            stdout: String::new(),
            stderr: self.log.borrow().clone(),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A panic within a panic would abort, and take the other tests with it.
        if !std::thread::panicking() {
            keeps(&self.secrets, &self.log.borrow());
        }
    }
}

/// JSON's strings and numbers are TOML's too.
fn toml(value: &Value) -> String {
    match value {
        Value::Object(table) => {
            let entries: Vec<String> = table
                .iter()
                .map(|(key, value)| format!("{key} = {}", toml(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(toml).collect();
            format!("[{}]", items.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// One for all that run on this machine, as it would be: there they see who is at work on which container. It holds files
/// without content, named after containers, and the history of all their refreshes.
fn state_folder() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("refit-tests-state-{user}"))
}

fn push(log: &watch::Sender<String>, line: &str) {
    log.send_modify(|log| {
        log.push_str(line);
        log.push('\n');
    });
}

/// No secret is in there, neither as it is nor as HTTP and the engine's API encode it.
#[track_caller]
fn keeps(secrets: &[String], printed: &str) {
    for secret in secrets {
        let basic = format!("{}:{secret}", registry::USER);
        let basic = base64::engine::general_purpose::STANDARD.encode(basic);
        for form in [secret, &basic] {
            assert!(
                !printed.contains(form.as_str()),
                "a secret was printed:\n{printed}"
            );
        }
    }
}
