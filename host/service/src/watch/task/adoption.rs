//! Applies updates: it determines what defers each one, submits one refresh for all that nothing defers, and handles the
//! result.

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
    Came, DeferReason, Deferral, RolloutRules, Watched, defer_whole_repositories, update_result,
};
use super::super::update_sink::{AvailableUpdate, Disposition, Proposal};
use super::Task;
use crate::runs::{Panicked, StartedRefresh};

/// The pause after a refresh could not start because too many are under way.
const RESTART_PAUSE: SignedDuration = SignedDuration::from_secs(30);
/// The longest pause after repeated failures.
pub(super) const RETRY_MOST: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a proposal may take. At most it writes a row to a file.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// A refresh that this task started and that has ended.
pub(super) struct Ended {
    repositories: BTreeSet<String>,
    findings: Vec<AvailableUpdate>,
    answer: Result<Result<Report, RefreshError>, Panicked>,
}

impl Task {
    pub(super) fn clear_failures(&mut self, scope: &Scope) {
        let mut memory = self.watcher.kept.memory();
        for watched in self.images.values() {
            if scope.contains(&watched.image.repository())
                && let Some(update) = watched.available_update()
            {
                memory.clear_failures(&update);
                self.postponed.remove(&update.image.to_string());
            }
        }
    }

    /// Determines what defers each update now.
    pub(super) fn update_deferrals(&mut self) {
        let now = Timestamp::now();
        let memory = self.watcher.kept.memory();
        let rules = RolloutRules {
            windows: &self.settings.windows,
            minimum_age: self.settings.minimum_age,
            paused: memory.paused.as_ref(),
            under_way: &self.repositories_under_way,
        };
        for (name, watched) in &mut self.images {
            let available_update = watched.available_update();
            let postponed = |update: &AvailableUpdate| {
                let (digest, deferral) = self.postponed.get(name)?;
                let is_active =
                    *digest == update.digest && deferral.until.is_some_and(|until| until > now);
                is_active.then(|| deferral.clone())
            };
            watched.held = available_update.and_then(|update| {
                rules
                    .deferral(&update, &memory, now)
                    .or_else(|| postponed(&update))
            });
        }
        drop(memory);
        defer_whole_repositories(&mut self.images);
    }

    /// Submits one refresh for all updates that nothing defers.
    pub(super) async fn submit_due_updates(&mut self) {
        let due = self.due_updates();
        if due.is_empty() {
            return;
        }
        let repositories: BTreeSet<String> =
            due.iter().map(|update| update.image.repository()).collect();
        let trigger_of = |name: &String| self.triggers.get(name).copied();
        let trigger = repositories
            .iter()
            .filter_map(trigger_of)
            .max_by_key(|trigger| weight(*trigger));
        let trigger = trigger.unwrap_or(Trigger::Schedule);
        // Plan exactly this refresh: other updates may be deferred, and an earlier result may be outdated.
        let scope = Scope::Only(repositories.clone());
        let planned = self
            .poller
            .check(&scope, trigger, CheckMode::Stale, &self.stopping)
            .await;
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return drop(self.record_failed_check(&error)),
        };
        self.update_images(&scope, &plan).await;
        self.update_deferrals();
        let findings: Vec<AvailableUpdate> = self
            .due_updates()
            .into_iter()
            .filter(|update| repositories.contains(&update.image.repository()))
            .collect();
        let still_due: BTreeSet<String> = findings
            .iter()
            .map(|update| update.image.repository())
            .collect();
        if findings.is_empty() || still_due != repositories {
            // Something has changed since the check. The next turn of the loop finds out what.
            self.reconsider = (!findings.is_empty()).then_some(Scope::Only(still_due));
            return;
        }
        // Save the state before anything depends on it.
        let _ = self.watcher.kept.write().await;
        let proposal = Proposal {
            request: scope.request(trigger),
            findings: findings.clone(),
            plan,
        };
        let disposition =
            tokio::time::timeout(SUBMIT_TIMEOUT, self.update_sink.submit(proposal)).await;
        match disposition {
            Ok(Disposition::Begun(started_refresh)) => {
                self.track_refresh(started_refresh, repositories, findings)
            }
            Ok(Disposition::Held(number)) => self.record_disposition(
                &findings,
                Deferral {
                    approval: Some(number),
                    ..Deferral::new(DeferReason::Approval, None)
                },
            ),
            Ok(Disposition::Rejected) => {
                self.record_disposition(&findings, Deferral::new(DeferReason::Rejected, None))
            }
            Ok(Disposition::NotBegun(error)) => self.postpone(&findings, &Diagnostic::of(&error)),
            Err(_) => {
                let problem = format!("no answer within {} s", SUBMIT_TIMEOUT.as_secs());
                self.postpone(&findings, &Diagnostic::new(problem));
            }
        }
    }

    /// Returns the updates that nothing defers, sorted by image.
    fn due_updates(&self) -> Vec<AvailableUpdate> {
        let due = self
            .images
            .values()
            .filter(|watched| watched.held.is_none());
        due.filter_map(Watched::available_update).collect()
    }

    fn record_disposition(&mut self, findings: &[AvailableUpdate], deferral: Deferral) {
        for update in findings {
            let disposition = (update.digest.clone(), deferral.clone());
            self.dispositions
                .insert(update.image.to_string(), disposition);
        }
        self.set_deferral(findings, deferral);
    }

    fn set_deferral(&mut self, findings: &[AvailableUpdate], deferral: Deferral) {
        for update in findings {
            if let Some(watched) = self.images.get_mut(&update.image.to_string()) {
                watched.held = Some(deferral.clone());
            }
        }
    }

    fn postpone(&mut self, findings: &[AvailableUpdate], diagnostic: &Diagnostic) {
        tracing::warn!(
            "cannot start a refresh for updates: {}",
            diagnostic.sentence()
        );
        let until = Timestamp::now().checked_add(RESTART_PAUSE).ok();
        let deferral = Deferral::new(DeferReason::Backoff, until);
        for update in findings {
            let postponed = (update.digest.clone(), deferral.clone());
            self.postponed.insert(update.image.to_string(), postponed);
        }
        self.set_deferral(findings, deferral);
    }

    fn track_refresh(
        &mut self,
        started_refresh: StartedRefresh,
        repositories: BTreeSet<String>,
        findings: Vec<AvailableUpdate>,
    ) {
        let id = started_refresh.run.id;
        let images: Vec<String> = findings
            .iter()
            .map(|update| update.image.to_string())
            .collect();
        tracing::info!(id, ?images, "refresh started for updates");
        self.repositories_under_way.extend(repositories.clone());
        self.set_deferral(&findings, Deferral::new(DeferReason::Refresh, None));
        // Bounded: each repository has one running refresh at most.
        self.under_way.spawn(async move {
            Ended {
                repositories,
                findings,
                answer: started_refresh.wait().await,
            }
        });
    }

    pub(super) async fn handle_ended(&mut self, ended: Ended) {
        for repository in &ended.repositories {
            self.repositories_under_way.remove(repository);
        }
        if self.stopping.is_cancelled() {
            return;
        }
        let now = Timestamp::now();
        {
            let mut memory = self.watcher.kept.memory();
            for update in &ended.findings {
                let result = match &ended.answer {
                    Ok(answer) => update_result(update, answer.as_ref()),
                    Err(Panicked) => Came::Nothing,
                };
                match result {
                    Came::Progress => memory.clear_failures(update),
                    Came::Nothing => {
                        let (failures, _) = memory.failures(update);
                        let backoff = Backoff {
                            first: self.settings.retry,
                            most: RETRY_MOST.max(self.settings.retry),
                        };
                        let wait = backoff.wait(failures + 1, chance());
                        memory.record_failure(
                            update,
                            now.checked_add(wait).unwrap_or(Timestamp::MAX),
                        );
                    }
                }
            }
        }
        let _ = self.watcher.kept.write().await;
        let scope = Scope::Only(ended.repositories);
        self.check(&scope, Trigger::Schedule, CheckMode::Stale)
            .await;
    }
}

/// Returns the rank of a trigger. Of several triggers, the history names the one with the highest rank.
pub(super) fn weight(trigger: Trigger) -> u8 {
    match trigger {
        Trigger::Operator => 3,
        Trigger::Api => 2,
        Trigger::Webhook => 1,
        Trigger::Schedule => 0,
    }
}
