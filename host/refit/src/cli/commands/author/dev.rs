//! `refit policy dev`: on each change of a source, build, check and test the policy, and run it as a shadow of a daemon's active
//! policy.
//!
//! If no daemon responds, the command still builds, checks and tests.

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

/// The interval of checking the sources, and of requesting new comparisons from the daemon.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The largest number of watched files. A project has dozens; one with more contains its tools.
const FILES_MAX: usize = 10_000;

pub(in super::super) async fn dev(
    config: &Config,
    arguments: DevArguments,
) -> Result<Status, Diagnostic> {
    let project = Project::find(&arguments.folder)?;
    let mut shadow_slot = ShadowSlot {
        daemon: daemon(config, &arguments.server)?,
        policy_config: arguments.policy_config,
        component: String::new(),
        on_trial: false,
        told_until: None,
        compared: 0,
    };
    let ended = shutdown_signal();
    tokio::select! {
        () = watch_sources(config, &project, &mut shadow_slot) => {}
        () = ended => {}
    }
    shadow_slot.end().await;
    Ok(Status::Done)
}

/// Run until the user ends it.
async fn watch_sources(config: &Config, project: &Project, shadow_slot: &mut ShadowSlot) {
    loop {
        let seen = fingerprint(&project.sources());
        let outcome = run_round(config, project, shadow_slot).await;
        if let Err(problem) = outcome {
            tell(&problem);
        }
        note("watching    the sources; Ctrl-C ends\n");
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let now = fingerprint(&project.sources());
            // Wait until an editor has written all of its files.
            if now != seen && now == after(POLL_INTERVAL, &project.sources()).await {
                break;
            }
            shadow_slot.print_comparisons().await;
        }
    }
}

/// Run one build and all that follows it.
async fn run_round(
    config: &Config,
    project: &Project,
    shadow_slot: &mut ShadowSlot,
) -> Result<(), Diagnostic> {
    let running = |command: &str| note(&format!("running     {command}\n"));
    project.tools(&running).await?;
    project.build(&running).await?;
    let component = built(project)?;
    let policy_config = shadow_slot.policy_config.as_deref();
    if !check::print_summary(config, &component, policy_config).await? {
        return Ok(());
    }
    if project.scenarios().is_dir() {
        test::print_summary(config, &component, &[project.scenarios()]).await?;
    }
    shadow_slot.try_out(&project.component_path()).await
}

/// The shadow run of the candidate in a daemon.
struct ShadowSlot {
    daemon: Daemon,
    policy_config: Option<String>,
    /// The digest of the last candidate.
    component: String,
    on_trial: bool,
    /// The time of the last printed comparison with a difference.
    told_until: Option<jiff::Timestamp>,
    /// The number of all comparisons until then.
    compared: u64,
}

impl ShadowSlot {
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
        // The candidate never becomes active automatically.
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
        // The next refresh may be hours away. A plan calls the policy too, and changes nothing.
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

    /// Print the new comparisons.
    async fn print_comparisons(&mut self) {
        if !self.on_trial {
            return;
        }
        // If the daemon does not respond now, the next round tries again.
        match self.daemon.ask(read("/v1/policy/shadow")).await {
            Ok(Answer::Done(body)) => self.print_new(&body),
            Ok(Answer::Refused(problem)) => {
                note(&format!("beside      {}\n", problem.sentence()));
                self.on_trial = false;
            }
            Err(_) => {}
        }
    }

    fn print_new(&mut self, body: &Value) {
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

    /// End the shadow run, because the author has stopped working on the candidate.
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

/// The signature of a file: path, length, time of the last change.
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
    fn changed_added_or_removed_file_is_detected() {
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
