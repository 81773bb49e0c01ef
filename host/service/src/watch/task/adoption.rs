//! What becomes of a finding: what holds it, one refresh for all that nothing holds, and what came of that.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use refit_model::diagnostic::Diagnostic;
use refit_model::report::Report;
use refit_model::request::Trigger;
use refit_refresh::RefreshError;

use super::super::registry_poller::{CheckMode, Scope};
use super::super::schedule::{Backoff, chance};
use super::super::status::{
    Came, DeferReason, Deferral, RolloutRules, Watched, came, hold_together,
};
use super::super::update_sink::{AvailableUpdate, Disposition, Proposal};
use super::Task;
use crate::runs::{Panicked, StartedRefresh};

/// After a refresh could not be begun: too many are under way.
const BEGIN_AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// The longest that a refresh which fails again and again is put off.
pub(super) const RETRY_MOST: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a proposal may take. It is a row in a file, at most.
const ADOPT: Duration = Duration::from_secs(60);
/// A refresh of ours that has ended.
pub(super) struct Ended {
    repositories: BTreeSet<String>,
    findings: Vec<AvailableUpdate>,
    answer: Result<Result<Report, RefreshError>, Panicked>,
}

impl Task {
    pub(super) fn forgive(&mut self, scope: &Scope) {
        let mut memory = self.watcher.kept.memory();
        for watched in self.images.values() {
            if scope.has(&watched.image.repository())
                && let Some(finding) = watched.finding()
            {
                memory.forgives(&finding);
                self.put_off.remove(&finding.image.to_string());
            }
        }
    }

    /// Says of each finding what holds it now.
    pub(super) fn hold(&mut self) {
        let now = Timestamp::now();
        let memory = self.watcher.kept.memory();
        let gate = RolloutRules {
            windows: &self.settings.windows,
            minimum_age: self.settings.minimum_age,
            paused: memory.paused.as_ref(),
            under_way: &self.repositories_under_way,
        };
        for (name, watched) in &mut self.images {
            let finding = watched.finding();
            let put_off = |finding: &AvailableUpdate| {
                let (digest, held) = self.put_off.get(name)?;
                let holds =
                    *digest == finding.digest && held.until.is_some_and(|until| until > now);
                holds.then(|| held.clone())
            };
            watched.held =
                finding.and_then(|it| gate.holds(&it, &memory, now).or_else(|| put_off(&it)));
        }
        drop(memory);
        hold_together(&mut self.images);
    }

    /// One refresh for all that nothing holds.
    pub(super) async fn adopt_what_is_due(&mut self) {
        let due = self.due();
        if due.is_empty() {
            return;
        }
        let repositories: BTreeSet<String> = due.iter().map(|it| it.image.repository()).collect();
        let of = |name: &String| self.triggers.get(name).copied();
        let trigger = repositories
            .iter()
            .filter_map(of)
            .max_by_key(|it| weight(*it));
        let trigger = trigger.unwrap_or(Trigger::Schedule);
        // What exactly this refresh would do: others may be held, and what was found a while ago may be over.
        let scope = Scope::Only(repositories.clone());
        let planned = self
            .looks
            .look(&scope, trigger, CheckMode::Stale, &self.stopping)
            .await;
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return drop(self.look_failed(&error)),
        };
        self.learn(&scope, &plan).await;
        self.hold();
        let findings: Vec<AvailableUpdate> = self
            .due()
            .into_iter()
            .filter(|it| repositories.contains(&it.image.repository()))
            .collect();
        let still: BTreeSet<String> = findings.iter().map(|it| it.image.repository()).collect();
        if findings.is_empty() || still != repositories {
            // Something has changed in between. The next turn sees what.
            self.reconsider = (!findings.is_empty()).then_some(Scope::Only(still));
            return;
        }
        // Before anything is done on the strength of it.
        let _ = self.watcher.kept.write().await;
        let proposal = Proposal {
            request: scope.request(trigger),
            findings: findings.clone(),
            plan,
        };
        let adopted = tokio::time::timeout(ADOPT, self.adopt.adopt(proposal)).await;
        match adopted {
            Ok(Disposition::Begun(begun)) => self.begun(begun, repositories, findings),
            Ok(Disposition::Held(number)) => self.answered(
                &findings,
                Deferral {
                    approval: Some(number),
                    ..Deferral::by(DeferReason::Approval, None)
                },
            ),
            Ok(Disposition::Rejected) => {
                self.answered(&findings, Deferral::by(DeferReason::Rejected, None))
            }
            Ok(Disposition::NotBegun(error)) => self.not_begun(&findings, &Diagnostic::of(&error)),
            Err(_) => {
                let problem = format!("no answer within {} s", ADOPT.as_secs());
                self.not_begun(&findings, &Diagnostic::new(problem));
            }
        }
    }

    /// What nothing holds, sorted by image.
    fn due(&self) -> Vec<AvailableUpdate> {
        let free = self.images.values().filter(|it| it.held.is_none());
        free.filter_map(Watched::finding).collect()
    }

    fn answered(&mut self, findings: &[AvailableUpdate], held: Deferral) {
        for finding in findings {
            let answer = (finding.digest.clone(), held.clone());
            self.answered.insert(finding.image.to_string(), answer);
        }
        self.held(findings, held);
    }

    fn held(&mut self, findings: &[AvailableUpdate], held: Deferral) {
        for finding in findings {
            if let Some(watched) = self.images.get_mut(&finding.image.to_string()) {
                watched.held = Some(held.clone());
            }
        }
    }

    fn not_begun(&mut self, findings: &[AvailableUpdate], told: &Diagnostic) {
        tracing::warn!(
            "cannot begin a refresh for what was found, and tries again: {}",
            told.sentence()
        );
        let until = Timestamp::now().checked_add(BEGIN_AGAIN).ok();
        let held = Deferral::by(DeferReason::Backoff, until);
        for finding in findings {
            let put_off = (finding.digest.clone(), held.clone());
            self.put_off.insert(finding.image.to_string(), put_off);
        }
        self.held(findings, held);
    }

    fn begun(
        &mut self,
        begun: StartedRefresh,
        repositories: BTreeSet<String>,
        findings: Vec<AvailableUpdate>,
    ) {
        let id = begun.run.id;
        let images: Vec<String> = findings.iter().map(|it| it.image.to_string()).collect();
        tracing::info!(id, ?images, "a refresh has begun for what was found");
        self.repositories_under_way.extend(repositories.clone());
        self.held(&findings, Deferral::by(DeferReason::Refresh, None));
        // Bounded: each repository is under way once.
        self.under_way.spawn(async move {
            Ended {
                repositories,
                findings,
                answer: begun.ended().await,
            }
        });
    }

    pub(super) async fn ended(&mut self, ended: Ended) {
        for repository in &ended.repositories {
            self.repositories_under_way.remove(repository);
        }
        if self.stopping.is_cancelled() {
            return;
        }
        let now = Timestamp::now();
        {
            let mut memory = self.watcher.kept.memory();
            for finding in &ended.findings {
                let what = match &ended.answer {
                    Ok(answer) => came(finding, answer.as_ref()),
                    Err(Panicked) => Came::Nothing,
                };
                match what {
                    Came::Progress => memory.forgives(finding),
                    Came::Nothing => {
                        let (failures, _) = memory.failures(finding);
                        let backoff = Backoff {
                            first: self.settings.retry,
                            most: RETRY_MOST.max(self.settings.retry),
                        };
                        let wait = backoff.wait(failures + 1, chance());
                        memory.failed(finding, now.checked_add(wait).unwrap_or(Timestamp::MAX));
                    }
                }
            }
        }
        let _ = self.watcher.kept.write().await;
        let scope = Scope::Only(ended.repositories);
        self.look(&scope, Trigger::Schedule, CheckMode::Stale).await;
    }
}

/// Of several who asked the one that the history should name.
pub(super) fn weight(trigger: Trigger) -> u8 {
    match trigger {
        Trigger::Operator => 3,
        Trigger::Api => 2,
        Trigger::Webhook => 1,
        Trigger::Schedule => 0,
    }
}
