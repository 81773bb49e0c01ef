//! The watcher's task. It checks on schedule, on request, or when a deferral ends. [`adoption`] applies the updates that it
//! finds.

mod adoption;
mod announced;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use refit_model::diagnostic::Diagnostic;
use refit_model::report::Report;
use refit_model::request::Trigger;
use refit_refresh::{RefreshError, Refresher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::adoption::{Ended, RETRY_MOST, weight};
use self::announced::{Announced, Shown};
use super::check_queue::CheckRequest;
use super::clock::{Clock, SetBack};
use super::registry_poller::{CheckMode, RegistryPoller, Scope};
use super::schedule::{Backoff, chance};
use super::status::{
    CheckSummary, Deferral, Seen, Snapshot, Verdict, Watched, image_states, summarize,
};
use super::update_sink::{AvailableUpdate, UpdateSink};
use super::{WatchSettings, Watcher};

/// The quiet period after the last request before a check: often several tags of one image are pushed in a row.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
/// The longest delay of a check after the first request.
const QUEUE_DELAY_MAX: Duration = Duration::from_secs(5);
/// The longest sleep, so that the task notices if the machine was suspended or its clock was set.
const SLEEP_MOST: Duration = Duration::from_secs(60);
/// The backoff after a check failed because of the engine or the policy.
const CHECK_BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(5),
    most: Duration::from_secs(5 * 60),
};
pub(super) struct Task {
    watcher: Arc<Watcher>,
    poller: RegistryPoller,
    update_sink: Arc<dyn UpdateSink>,
    settings: WatchSettings,
    stopping: CancellationToken,
    /// The watched images by reference, as many as the policy uses.
    images: BTreeMap<String, Watched>,
    /// The trigger of each repository that is not current yet.
    triggers: BTreeMap<String, Trigger>,
    /// Digests that webhooks announced and the registry does not show yet.
    announced: Announced,
    next_tick: Option<Timestamp>,
    /// The number of consecutive failed checks.
    failed_checks: u32,
    /// When to check all images again after a failed check.
    retry_at: Option<Timestamp>,
    /// Updates whose refresh could not start, and until when.
    postponed: BTreeMap<String, (String, Deferral)>,
    /// The results of the last proposals, by image with the digest. The snapshot shows them until the next proposal.
    dispositions: BTreeMap<String, (String, Deferral)>,
    /// These may no longer be deferred: the task checks them again without asking the registries.
    reconsider: Option<Scope>,
    under_way: JoinSet<Ended>,
    repositories_under_way: BTreeSet<String>,
    last_check: Option<CheckSummary>,
    checks: u64,
    clock: Clock,
}

impl Task {
    pub(super) fn new(
        watcher: Arc<Watcher>,
        settings: WatchSettings,
        (refresher, update_sink): (Arc<Refresher>, Arc<dyn UpdateSink>),
        stopping: CancellationToken,
    ) -> Self {
        Self {
            poller: RegistryPoller::new(refresher, watcher.digests.clone()),
            watcher,
            update_sink,
            settings,
            stopping,
            images: BTreeMap::new(),
            triggers: BTreeMap::new(),
            announced: Announced::default(),
            // The first check takes place even without a schedule, so that requests from before a crash are not lost.
            next_tick: Some(Timestamp::now()),
            failed_checks: 0,
            retry_at: None,
            postponed: BTreeMap::new(),
            dispositions: BTreeMap::new(),
            reconsider: None,
            under_way: JoinSet::new(),
            repositories_under_way: BTreeSet::new(),
            last_check: None,
            checks: 0,
            clock: Clock::new(Timestamp::now()),
        }
    }

    pub(super) async fn run(mut self) {
        let now = Timestamp::now();
        // A clock that was ahead may have written the file.
        self.watcher
            .kept
            .memory()
            .correct(now, wait_most(), |at| at);
        loop {
            self.run_due_work().await;
            self.publish();
            let sleep = self.time_until_due();
            tokio::select! {
                () = self.watcher.check_queue.changed() => {}
                () = self.watcher.changed.notified() => {
                    if self.watcher.kept.memory().paused.is_none() {
                        self.reconsider = Some(Scope::All);
                    }
                    self.update_deferrals();
                }
                Some(ended) = self.under_way.join_next() => match ended {
                    Ok(ended) => self.handle_ended(ended).await,
                    // The task only awaits a refresh.
                    Err(error) => tracing::error!("watcher task panicked, please report it: {error}"),
                },
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Corrects all future times after the clock was set back.
    fn correct(&mut self, set_back: SetBack) {
        let seconds = set_back.by.as_secs();
        tracing::warn!(seconds, "clock was set back, moving future times");
        let correct = |at: Timestamp| set_back.correct(at);
        let schedule = self.settings.schedule.as_ref();
        // The next time of a cron schedule differs, and an interval is never longer than its length.
        let latest = schedule.map(|schedule| schedule.next(set_back.now, 1.0));
        self.next_tick = self.next_tick.map(correct).min(latest.or(self.next_tick));
        self.retry_at = self.retry_at.map(correct);
        self.poller.correct(correct);
        let deferrals = self
            .postponed
            .values_mut()
            .chain(self.dispositions.values_mut());
        for (_, deferral) in deferrals {
            deferral.until = deferral.until.map(correct);
        }
        for watched in self.images.values_mut() {
            let times = [watched.first_seen.as_mut(), watched.checked.as_mut()];
            for at in times.into_iter().flatten().chain([&mut watched.since]) {
                *at = correct(*at).min(set_back.now);
            }
        }
        let mut memory = self.watcher.kept.memory();
        memory.correct(set_back.now, wait_most(), correct);
        drop(memory);
        self.update_deferrals();
    }

    /// Runs one action that is due, if any.
    async fn run_due_work(&mut self) {
        let now = Timestamp::now();
        if let Some(set_back) = self.clock.read(now) {
            self.correct(set_back);
        }
        let due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        // While the engine or the policy does not answer, all checks wait for the next check of all images.
        let can_check = self.retry_at.is_none();
        if self.queue_due_at().is_some_and(|at| at <= Instant::now()) {
            self.handle_queue().await;
        } else if due(self.next_tick) || due(self.retry_at) {
            self.next_tick = self
                .settings
                .schedule
                .as_ref()
                .map(|schedule| schedule.next(now, chance()));
            self.check(&Scope::All, Trigger::Schedule, CheckMode::Due)
                .await;
        } else if can_check {
            let (retries, _) = self.poller.retries(now);
            let awaited = self.announced.due(Instant::now());
            if !awaited.is_empty() {
                let triggers = awaited
                    .iter()
                    .map(|repository| (repository.clone(), Trigger::Webhook));
                self.triggers.extend(triggers);
                let scope = Scope::Only(awaited);
                self.check(&scope, Trigger::Webhook, CheckMode::Forced)
                    .await;
            } else if !retries.is_empty() {
                let scope = Scope::Only(retries);
                self.check(&scope, Trigger::Schedule, CheckMode::Retries)
                    .await;
            } else if let Some(scope) = self.reconsider.take() {
                self.check(&scope, Trigger::Schedule, CheckMode::Stale)
                    .await;
            } else if due(self.next_release()) {
                let scope = self.released_scope(now);
                self.check(&scope, Trigger::Schedule, CheckMode::Stale)
                    .await;
            }
        }
    }

    /// Returns the time until the next action is due.
    fn time_until_due(&self) -> Duration {
        let now = Timestamp::now();
        let (retries, next_retry) = self.poller.retries(now);
        let can_check = self.retry_at.is_none();
        if can_check && (!retries.is_empty() || self.reconsider.is_some()) {
            return Duration::ZERO;
        }
        let check_times = [next_retry, self.next_release()];
        let check_times = check_times.into_iter().flatten().filter(|_| can_check);
        let times = [self.next_tick, self.retry_at].into_iter().flatten();
        let times = times.chain(check_times);
        let next = times.min();
        let wait = next.map_or(SLEEP_MOST, |at| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default()
        });
        let queue_wait = self.queue_due_at().map_or(SLEEP_MOST, |at| {
            at.saturating_duration_since(Instant::now())
        });
        let next_check = self.announced.next_check().filter(|_| can_check);
        let announced_wait = next_check.map_or(SLEEP_MOST, |at| {
            at.saturating_duration_since(Instant::now())
        });
        wait.min(queue_wait).min(announced_wait).min(SLEEP_MOST)
    }

    /// Returns when to handle the waiting requests.
    fn queue_due_at(&self) -> Option<Instant> {
        let (first, last) = self.watcher.check_queue.waiting_since()?;
        Some((last + QUIET_PERIOD).min(first + QUEUE_DELAY_MAX))
    }

    /// Returns when the first deferral ends.
    fn next_release(&self) -> Option<Timestamp> {
        let deferrals = self
            .images
            .values()
            .filter_map(|watched| watched.held.as_ref());
        deferrals.filter_map(|deferral| deferral.until).min()
    }

    fn released_scope(&self, now: Timestamp) -> Scope {
        let is_over = |deferral: &Deferral| deferral.until.is_some_and(|until| until <= now);
        let released = self
            .images
            .values()
            .filter(|watched| watched.held.as_ref().is_some_and(is_over));
        Scope::Only(released.map(|watched| watched.image.repository()).collect())
    }

    async fn handle_queue(&mut self) {
        let Some(check_request) = self.watcher.check_queue.take() else {
            return;
        };
        let announced = self.watcher.check_queue.take_announced();
        self.announced.add(announced, Instant::now());
        let (scope, trigger) = match check_request {
            CheckRequest::ForAll(trigger) => {
                let repositories = self
                    .images
                    .values()
                    .map(|watched| watched.image.repository());
                self.triggers
                    .extend(repositories.map(|repository| (repository, trigger)));
                (Scope::All, trigger)
            }
            CheckRequest::For(repositories) => {
                let trigger = repositories
                    .values()
                    .copied()
                    .max_by_key(|trigger| weight(*trigger));
                self.triggers.extend(repositories.clone());
                let only = repositories.into_keys().collect();
                (Scope::Only(only), trigger.unwrap_or(Trigger::Webhook))
            }
        };
        if trigger == Trigger::Operator {
            // A person who requests a check has usually changed something.
            self.clear_failures(&scope);
        }
        self.check(&scope, trigger, CheckMode::Forced).await;
    }

    /// Checks the images in scope, and submits the updates that nothing defers.
    async fn check(&mut self, scope: &Scope, trigger: Trigger, mode: CheckMode) {
        let (started, clock) = (Timestamp::now(), Instant::now());
        let result = self
            .poller
            .check(scope, trigger, mode, &self.stopping)
            .await;
        let failure = match result {
            Ok(report) => {
                self.update_images(scope, &report).await;
                self.compare_announced(scope);
                (self.failed_checks, self.retry_at) = (0, None);
                None
            }
            Err(error) => Some(self.record_failed_check(&error)),
        };
        self.checks += 1;
        self.last_check = Some(CheckSummary {
            started,
            duration_ms: u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
            trigger,
            images: self.count_images(scope),
            failure: failure.clone(),
        });
        self.update_deferrals();
        self.publish();
        if failure.is_none() {
            self.submit_due_updates().await;
        }
        if let Some(teller) = self.watcher.teller.get() {
            self.publish();
            teller(&self.watcher.snapshot());
        }
        // A failed write has logged its error.
        let _ = self.watcher.kept.write().await;
    }

    /// Records whether the registries show the digests that webhooks announced.
    fn compare_announced(&mut self, scope: &Scope) {
        let now = Instant::now();
        self.announced
            .retain(|image| self.images.contains_key(image));
        for (name, watched) in &self.images {
            if !scope.contains(&watched.image.repository()) {
                continue;
            }
            let check = self.poller.last_check(&watched.image);
            let found = check.and_then(|check| check.found.as_deref().ok());
            let Some((digest, shown)) = self.announced.record_check(name, found, now) else {
                continue;
            };
            match shown {
                Shown::Yes => {}
                Shown::NotYet(delay) => tracing::info!(
                    image = name,
                    digest,
                    again_in_seconds = delay.as_secs(),
                    "the registry does not show yet what a webhook announced"
                ),
                Shown::GivenUp => tracing::warn!(
                    image = name,
                    digest,
                    "the registry does not show what a webhook announced, giving up"
                ),
            }
        }
    }

    fn count_images(&self, scope: &Scope) -> usize {
        let images = self.images.values();
        images
            .filter(|watched| scope.contains(&watched.image.repository()))
            .count()
    }

    fn record_failed_check(&mut self, error: &RefreshError) -> Diagnostic {
        self.failed_checks = self.failed_checks.saturating_add(1);
        let wait = CHECK_BACKOFF.wait(self.failed_checks, chance());
        self.retry_at = Timestamp::now().checked_add(wait).ok();
        let diagnostic = Diagnostic::of(error);
        let before = self
            .last_check
            .as_ref()
            .and_then(|check| check.failure.as_ref());
        // Each check tries again; the log needs the error once.
        if before != Some(&diagnostic) {
            tracing::error!(hints = ?diagnostic.hints, "cannot look for new images: {}", diagnostic.sentence());
        }
        diagnostic
    }

    /// Updates the watched images after a check.
    async fn update_images(&mut self, scope: &Scope, report: &Report) {
        let states = image_states(report);
        let images = states
            .iter()
            .map(|state| (state.image.clone(), state.remote.clone()))
            .collect();
        let local_digests = self.poller.local_digests(images).await;
        let now = Timestamp::now();
        let mut before = std::mem::take(&mut self.images);
        // Images out of scope stay as they were. Images in scope that the check did not see are no longer watched.
        let others = before.extract_if(.., |_, watched| {
            !scope.contains(&watched.image.repository())
        });
        self.images = others.collect();
        for state in states {
            let name = state.image.to_string();
            let local_digest = local_digests.get(&state.image).cloned();
            let watched = self.watched_image(state, local_digest, before.remove(&name), now);
            self.images.insert(name, watched);
        }
        let images = self.images.values();
        let not_current = images.filter(|watched| watched.verdict != Verdict::Current);
        let repositories: BTreeSet<String> = not_current
            .map(|watched| watched.image.repository())
            .collect();
        self.triggers.retain(|name, _| repositories.contains(name));
        self.postponed
            .retain(|name, _| self.images.contains_key(name));
        self.dispositions
            .retain(|name, _| self.images.contains_key(name));
    }

    fn watched_image(
        &self,
        state: Seen,
        local: Option<String>,
        before: Option<Watched>,
        now: Timestamp,
    ) -> Watched {
        let name = state.image.to_string();
        let before = before.as_ref();
        log_change(&state, before);
        let check = self.poller.last_check(&state.image);
        let remote = state
            .remote
            .or_else(|| before.and_then(|before| before.remote.clone()));
        let mut memory = self.watcher.kept.memory();
        if let Some(digest) = check.and_then(|check| check.found.as_ref().ok()) {
            memory.record_seen(&name, digest, now);
        }
        let first_seen = remote.as_ref().and_then(|digest| {
            memory.first_seen(&AvailableUpdate {
                image: state.image.clone(),
                digest: digest.clone(),
            })
        });
        let same = before.filter(|before| before.verdict == state.verdict);
        Watched {
            since: same.map_or(now, |before| before.since),
            image: state.image,
            verdict: state.verdict,
            local,
            remote,
            first_seen,
            checked: check.map(|check| check.at),
            reason: state.reason,
            containers: state.containers,
            held: None,
        }
    }

    /// Returns the images for the snapshot. An update that is about to be proposed again appears with its last disposition.
    fn snapshot_images(&self) -> impl Iterator<Item = Watched> {
        self.images.iter().map(|(name, watched)| {
            let mut image = watched.clone();
            if image.held.is_none()
                && let Some(update) = watched.available_update()
                && let Some((digest, deferral)) = self.dispositions.get(name)
                && *digest == update.digest
            {
                image.held = Some(deferral.clone());
            }
            image
        })
    }

    fn publish(&self) {
        let times = [self.next_tick, self.retry_at];
        let memory = self.watcher.kept.memory();
        let paused = memory.paused.clone();
        drop(memory);
        self.watcher.publish(|snapshot| {
            *snapshot = Snapshot {
                enabled: true,
                scheduled: self.settings.schedule.is_some(),
                paused,
                next_look: times.into_iter().flatten().min(),
                last_look: self.last_check.clone(),
                looks: self.checks,
                summary: summarize(self.images.values()),
                images: self.snapshot_images().collect(),
                problem: self.watcher.kept.last_error(),
            };
        });
    }
}

/// The longest time that anything is postponed, including jitter.
fn wait_most() -> SignedDuration {
    SignedDuration::try_from(RETRY_MOST.mul_f64(1.25)).unwrap_or(SignedDuration::ZERO)
}

/// Logs a change of an image's state once.
fn log_change(state: &Seen, before: Option<&Watched>) {
    let image = state.image.to_string();
    match state.verdict {
        Verdict::Current => {
            if before.is_some_and(|before| before.verdict != Verdict::Current) {
                tracing::info!(image, "image is current again");
            }
        }
        Verdict::Behind => {
            let same = before.is_some_and(|before| {
                before.verdict == Verdict::Behind && before.remote == state.remote
            });
            if !same {
                let (digest, containers) = (state.remote.as_deref(), state.containers.len());
                tracing::info!(image, digest, containers, "image is behind its registry");
            }
        }
        Verdict::Unknown => {
            let diagnostic = state
                .reason
                .clone()
                .unwrap_or_else(|| Diagnostic::new("unknown"));
            let same = before.is_some_and(|before| {
                let reason = before.reason.as_ref().map(|reason| &reason.error);
                before.verdict == Verdict::Unknown && reason == Some(&diagnostic.error)
            });
            if !same {
                tracing::warn!(image, hints = ?diagnostic.hints, "image state is unknown: {}", diagnostic.sentence());
            }
        }
    }
}
