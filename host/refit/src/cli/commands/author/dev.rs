//! `refit policy dev`: build, check, test, and stand beside the active policy of a daemon, each time that a source changes.
//!
//! Where no daemon answers, it builds, checks and tests all the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Method;
use refit_author::project::Project;
use refit_model::diagnostic::Diagnostic;
use refit_sandbox::digest;
use serde_json::Value;

use super::{built, check, note, test};
use crate::cli::arguments::author::DevArguments;
use crate::cli::commands::policy::{JSON, daemon, read, swap};
use crate::cli::commands::{compare, shutdown_signal};
use crate::cli::remote::{Answer, Ask, Daemon};
use crate::cli::{Status, print, tell};
use crate::config::Config;

/// How often sources are looked at, and the daemon is asked what came of its comparisons.
const LOOK: Duration = Duration::from_millis(500);

/// Sources that are looked at. A project has dozens; what has more has its tools among them.
const FILES_MAX: usize = 10_000;

pub(in super::super) async fn dev(
    config: &Config,
    arguments: DevArguments,
) -> Result<Status, Diagnostic> {
    let project = Project::find(&arguments.folder)?;
    let mut beside = Beside {
        daemon: daemon(config, &arguments.server)?,
        policy_config: arguments.policy_config,
        component: String::new(),
        on_trial: false,
        told_until: None,
        compared: 0,
    };
    let ended = shutdown_signal();
    tokio::select! {
        () = work(config, &project, &mut beside) => {}
        () = ended => {}
    }
    beside.end().await;
    Ok(Status::Done)
}

/// Until somebody ends it.
async fn work(config: &Config, project: &Project, beside: &mut Beside) {
    loop {
        let seen = fingerprint(&project.sources());
        let outcome = round(config, project, beside).await;
        if let Err(problem) = outcome {
            tell(&problem);
        }
        note("watching    the sources; Ctrl-C ends\n");
        loop {
            tokio::time::sleep(LOOK).await;
            let now = fingerprint(&project.sources());
            // An editor that writes several files is let finish.
            if now != seen && now == after(LOOK, &project.sources()).await {
                break;
            }
            beside.listen().await;
        }
    }
}

/// One build, and what comes of it.
async fn round(config: &Config, project: &Project, beside: &mut Beside) -> Result<(), Diagnostic> {
    let running = |command: &str| note(&format!("running     {command}\n"));
    project.tools(&running).await?;
    project.build(&running).await?;
    let component = built(project)?;
    let policy_config = beside.policy_config.as_deref();
    if !check::quietly(config, &component, policy_config).await? {
        return Ok(());
    }
    if project.scenarios().is_dir() {
        test::quietly(config, &component, &[project.scenarios()]).await?;
    }
    beside.try_out(&project.component_path()).await
}

/// The candidate's place beside the policy of a daemon.
struct Beside {
    daemon: Daemon,
    policy_config: Option<String>,
    /// Digest of the one that was tried out last.
    component: String,
    on_trial: bool,
    /// When the last comparison was that has been told, of those that differed.
    told_until: Option<jiff::Timestamp>,
    /// How many there were by then, in all.
    compared: u64,
}

impl Beside {
    async fn try_out(&mut self, path: &Path) -> Result<(), Diagnostic> {
        let bytes = std::fs::read(path).map_err(|error| {
            Diagnostic::new(format!("cannot read `{}`", path.display())).because(error.to_string())
        })?;
        let digest = digest(&bytes);
        if self.on_trial && digest == self.component {
            note("beside      the same component is on trial already\n");
            return Ok(());
        }
        let source = refit_revisions::artifact::Source::File(path.to_owned());
        let mut ask = swap(&source, self.policy_config.as_deref(), None)?;
        // It never takes over by itself.
        ask.path += "&shadow=0";
        let body = match self.daemon.ask(ask).await {
            Ok(Answer::Done(body)) => body,
            Ok(Answer::Refused(problem)) => return Err(problem),
            Err(absent) => {
                note(&format!("beside      no daemon: {}\n", absent.sentence()));
                return Ok(());
            }
        };
        self.component = digest;
        self.on_trial = true;
        self.told_until = None;
        self.compared = 0;
        note(&format!(
            "beside      generation {}, on trial\n",
            body["beside"]
        ));
        // Nobody may ask for a refresh for hours; a plan is a question, too, and changes nothing.
        let plan = Ask {
            method: Method::POST,
            path: "/v1/plan".to_owned(),
            expected: None,
            body: Some((JSON, Bytes::from_static(b"{}"))),
        };
        match self.daemon.ask(plan).await? {
            Answer::Done(_) => Ok(()),
            Answer::Refused(problem) => Err(problem),
        }
    }

    /// Tells what has come of the comparisons since.
    async fn listen(&mut self) {
        if !self.on_trial {
            return;
        }
        // One that cannot be asked now can be asked later.
        match self.daemon.ask(read("/v1/policy/shadow")).await {
            Ok(Answer::Done(body)) => self.tell_new(&body),
            Ok(Answer::Refused(problem)) => {
                note(&format!("beside      {}\n", problem.sentence()));
                self.on_trial = false;
            }
            Err(_) => {}
        }
    }

    fn tell_new(&mut self, body: &Value) {
        for comparison in body["differing"].as_array().into_iter().flatten() {
            let at = comparison["at"].as_str().and_then(|at| at.parse().ok());
            if at > self.told_until {
                print(&compare::comparison_lines(comparison));
                self.told_until = at;
            }
        }
        let compared = body["compared"].as_u64().unwrap_or_default();
        if compared != self.compared {
            self.compared = compared;
            note(&format!(
                "compared    {compared}, agreed {}\n",
                body["agreed"]
            ));
        }
    }

    /// A candidate that nobody works on any more has no business beside a policy.
    async fn end(&self) {
        if !self.on_trial {
            return;
        }
        let mut ask = read("/v1/policy/shadow");
        ask.method = Method::DELETE;
        match self.daemon.ask(ask).await {
            Ok(Answer::Done(_)) => note("beside      the trial is ended\n"),
            Ok(Answer::Refused(problem)) | Err(problem) => tell(&problem),
        }
    }
}

async fn after(pause: Duration, sources: &[PathBuf]) -> Vec<Seen> {
    tokio::time::sleep(pause).await;
    fingerprint(sources)
}

/// What tells a file from what it was: path, length, time of the last change.
type Seen = (PathBuf, u64, Option<SystemTime>);

fn fingerprint(sources: &[PathBuf]) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut folders: Vec<PathBuf> = sources.to_vec();
    while let Some(path) = folders.pop() {
        let Ok(metadata) = path.metadata() else {
            continue;
        };
        if seen.len() >= FILES_MAX {
            break;
        }
        if !metadata.is_dir() {
            seen.push((path, metadata.len(), metadata.modified().ok()));
            continue;
        }
        let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path()));
    }
    seen.sort();
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_comes_or_goes_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("src");
        std::fs::create_dir(&below).unwrap();
        let (one, two) = (below.join("one"), folder.path().join("two"));
        std::fs::write(&one, "1").unwrap();
        let look = || fingerprint(&[folder.path().to_owned()]);
        let first = look();
        assert_eq!(first, look());
        std::fs::write(&one, "12").unwrap();
        let second = look();
        assert_ne!(first, second);
        std::fs::write(&two, "").unwrap();
        assert_eq!(look().len(), 2);
        std::fs::remove_file(&two).unwrap();
        assert_eq!(look(), second);
    }
}
