//! The watcher's task: it looks when it is time, when it rings, or when something may hold no more. What becomes of what it finds
//! is in [`adoption`].

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
use super::status::{CheckSummary, Deferral, Seen, Snapshot, Verdict, Watched, seen, summary};
use super::update_sink::{AvailableUpdate, UpdateSink};
use super::{WatchSettings, Watcher};

/// After the last ring it is quiet for so long before anybody looks: several tags of one image are pushed one after the other.
const QUIET: Duration = Duration::from_secs(1);
/// And after the first one it is looked all the same.
const HEARD_MOST: Duration = Duration::from_secs(5);
/// Nobody sleeps for longer: a machine that was suspended, or whose clock was set, notices by then.
const SLEEP_MOST: Duration = Duration::from_secs(60);
/// After a look that came to nothing, because of the engine or the policy.
const LOOK_AGAIN: Backoff = Backoff {
    first: Duration::from_secs(5),
    most: Duration::from_secs(5 * 60),
};
pub(super) struct Task {
    watcher: Arc<Watcher>,
    looks: RegistryPoller,
    adopt: Arc<dyn UpdateSink>,
    settings: WatchSettings,
    stopping: CancellationToken,
    /// By reference. As many as the policy names.
    images: BTreeMap<String, Watched>,
    /// Who rang for a repository that is not current yet.
    triggers: BTreeMap<String, Trigger>,
    /// Digests that webhooks announced, and that the registry does not show yet.
    announced: Announced,
    next_tick: Option<Timestamp>,
    /// In a row.
    failed_looks: u32,
    /// A look at all images, after one that failed.
    look_again: Option<Timestamp>,
    /// Findings that nobody could begin a refresh for, until when.
    put_off: BTreeMap<String, (String, Deferral)>,
    /// What was said of findings when they were last proposed, by image with the digest: shown until they are proposed anew.
    answered: BTreeMap<String, (String, Deferral)>,
    /// Something may hold no more: these are looked at again, without asking registries anew.
    reconsider: Option<Scope>,
    under_way: JoinSet<Ended>,
    repositories_under_way: BTreeSet<String>,
    last_look: Option<CheckSummary>,
    number: u64,
    clock: Clock,
}

impl Task {
    pub(super) fn new(
        watcher: Arc<Watcher>,
        settings: WatchSettings,
        (refresher, adopt): (Arc<Refresher>, Arc<dyn UpdateSink>),
        stopping: CancellationToken,
    ) -> Self {
        Self {
            looks: RegistryPoller::new(refresher, watcher.digests.clone()),
            watcher,
            adopt,
            settings,
            stopping,
            images: BTreeMap::new(),
            triggers: BTreeMap::new(),
            announced: Announced::default(),
            // The first look, also where it does not look by itself: what was rung for before a crash is not lost.
            next_tick: Some(Timestamp::now()),
            failed_looks: 0,
            look_again: None,
            put_off: BTreeMap::new(),
            answered: BTreeMap::new(),
            reconsider: None,
            under_way: JoinSet::new(),
            repositories_under_way: BTreeSet::new(),
            last_look: None,
            number: 0,
            clock: Clock::new(Timestamp::now()),
        }
    }

    pub(super) async fn run(mut self) {
        let now = Timestamp::now();
        // A clock that was ahead may have written it.
        self.watcher
            .kept
            .memory()
            .correct(now, wait_most(), |at| at);
        loop {
            self.turn().await;
            self.publish();
            let sleep = self.sleep();
            tokio::select! {
                () = self.watcher.bell.rings() => {}
                () = self.watcher.changed.notified() => {
                    if self.watcher.kept.memory().paused.is_none() {
                        self.reconsider = Some(Scope::All);
                    }
                    self.hold();
                }
                Some(ended) = self.under_way.join_next() => match ended {
                    Ok(ended) => self.ended(ended).await,
                    // It awaits and does nothing else.
                    Err(error) => tracing::error!("a task of the watcher failed, please report it: {error}"),
                },
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Nobody waits for a time of a clock that was wrong.
    fn correct(&mut self, back: SetBack) {
        let seconds = back.by.as_secs();
        tracing::warn!(
            seconds,
            "the clock was set back; what lies ahead comes closer by as much"
        );
        let correct = |at: Timestamp| back.correct(at);
        let ticks = self.settings.ticks.as_ref();
        // A cron's next time is another one, and no interval is longer than it is.
        let latest = ticks.map(|ticks| ticks.next(back.now, 1.0));
        self.next_tick = self.next_tick.map(correct).min(latest.or(self.next_tick));
        self.look_again = self.look_again.map(correct);
        self.looks.correct(correct);
        let held = self.put_off.values_mut().chain(self.answered.values_mut());
        for (_, held) in held {
            held.until = held.until.map(correct);
        }
        for watched in self.images.values_mut() {
            let times = [watched.first_seen.as_mut(), watched.checked.as_mut()];
            for at in times.into_iter().flatten().chain([&mut watched.since]) {
                *at = correct(*at).min(back.now);
            }
        }
        let mut memory = self.watcher.kept.memory();
        memory.correct(back.now, wait_most(), correct);
        drop(memory);
        self.hold();
    }

    /// Does what is due, if anything is.
    async fn turn(&mut self) {
        let now = Timestamp::now();
        if let Some(back) = self.clock.read(now) {
            self.correct(back);
        }
        let due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        // While the engine or the policy cannot be asked, what was to be looked at waits for the look at all of them.
        let can_look = self.look_again.is_none();
        if self.heard().is_some_and(|at| at <= Instant::now()) {
            self.answer_the_bell().await;
        } else if due(self.next_tick) || due(self.look_again) {
            self.next_tick = self
                .settings
                .ticks
                .as_ref()
                .map(|ticks| ticks.next(now, chance()));
            self.look(&Scope::All, Trigger::Schedule, CheckMode::Due)
                .await;
        } else if can_look {
            let (retries, _) = self.looks.retries(now);
            let awaited = self.announced.due(Instant::now());
            if !awaited.is_empty() {
                let triggers = awaited.iter().map(|it| (it.clone(), Trigger::Webhook));
                self.triggers.extend(triggers);
                let scope = Scope::Only(awaited);
                self.look(&scope, Trigger::Webhook, CheckMode::Forced).await;
            } else if !retries.is_empty() {
                let scope = Scope::Only(retries);
                self.look(&scope, Trigger::Schedule, CheckMode::Retries)
                    .await;
            } else if let Some(scope) = self.reconsider.take() {
                self.look(&scope, Trigger::Schedule, CheckMode::Stale).await;
            } else if due(self.release()) {
                let scope = self.released(now);
                self.look(&scope, Trigger::Schedule, CheckMode::Stale).await;
            }
        }
    }

    /// Until something is due.
    fn sleep(&self) -> Duration {
        let now = Timestamp::now();
        let (retries, next_retry) = self.looks.retries(now);
        let can_look = self.look_again.is_none();
        if can_look && (!retries.is_empty() || self.reconsider.is_some()) {
            return Duration::ZERO;
        }
        let waiting = [next_retry, self.release()];
        let waiting = waiting.into_iter().flatten().filter(|_| can_look);
        let times = [self.next_tick, self.look_again].into_iter().flatten();
        let times = times.chain(waiting);
        let next = times.min();
        let wait = next.map_or(SLEEP_MOST, |at| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default()
        });
        let heard = self.heard().map_or(SLEEP_MOST, |at| {
            at.saturating_duration_since(Instant::now())
        });
        let awaited = self.announced.next_check().filter(|_| can_look);
        let awaited = awaited.map_or(SLEEP_MOST, |at| {
            at.saturating_duration_since(Instant::now())
        });
        wait.min(heard).min(awaited).min(SLEEP_MOST)
    }

    /// When what has rung is answered.
    fn heard(&self) -> Option<Instant> {
        let (first, last) = self.watcher.bell.since()?;
        Some((last + QUIET).min(first + HEARD_MOST))
    }

    /// When the first of those that are held is held no more.
    fn release(&self) -> Option<Timestamp> {
        let held = self.images.values().filter_map(|it| it.held.as_ref());
        held.filter_map(|held| held.until).min()
    }

    fn released(&self, now: Timestamp) -> Scope {
        let is_over = |held: &Deferral| held.until.is_some_and(|until| until <= now);
        let over = self.images.values();
        let over = over.filter(|it| it.held.as_ref().is_some_and(is_over));
        Scope::Only(over.map(|it| it.image.repository()).collect())
    }

    async fn answer_the_bell(&mut self) {
        let Some(rung) = self.watcher.bell.take() else {
            return;
        };
        let announced = self.watcher.bell.take_announced();
        self.announced.add(announced, Instant::now());
        let (scope, trigger) = match rung {
            CheckRequest::ForAll(trigger) => {
                let all = self.images.values().map(|it| it.image.repository());
                self.triggers.extend(all.map(|it| (it, trigger)));
                (Scope::All, trigger)
            }
            CheckRequest::For(repositories) => {
                let trigger = repositories.values().copied().max_by_key(|it| weight(*it));
                self.triggers.extend(repositories.clone());
                let only = repositories.into_keys().collect();
                (Scope::Only(only), trigger.unwrap_or(Trigger::Webhook))
            }
        };
        if trigger == Trigger::Operator {
            // A person who asks has changed something, as a rule.
            self.forgive(&scope);
        }
        self.look(&scope, trigger, CheckMode::Forced).await;
    }

    /// Looks, and has adopted what nothing holds.
    async fn look(&mut self, scope: &Scope, trigger: Trigger, checks: CheckMode) {
        let (started, clock) = (Timestamp::now(), Instant::now());
        let looked = self
            .looks
            .look(scope, trigger, checks, &self.stopping)
            .await;
        let failure = match looked {
            Ok(report) => {
                self.learn(scope, &report).await;
                self.compare_announced(scope);
                (self.failed_looks, self.look_again) = (0, None);
                None
            }
            Err(error) => Some(self.look_failed(&error)),
        };
        self.number += 1;
        self.last_look = Some(CheckSummary {
            started,
            duration_ms: u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
            trigger,
            images: self.in_scope(scope),
            failure: failure.clone(),
        });
        self.hold();
        self.publish();
        if failure.is_none() {
            self.adopt_what_is_due().await;
        }
        if let Some(teller) = self.watcher.teller.get() {
            self.publish();
            teller(&self.watcher.snapshot());
        }
        // One that fails has been told of.
        let _ = self.watcher.kept.write().await;
    }

    /// Whether the registries show what webhooks announced.
    fn compare_announced(&mut self, scope: &Scope) {
        let now = Instant::now();
        self.announced
            .retain(|image| self.images.contains_key(image));
        for (name, watched) in &self.images {
            if !scope.has(&watched.image.repository()) {
                continue;
            }
            let check = self.looks.checked(&watched.image);
            let found = check.and_then(|check| check.found.as_deref().ok());
            let Some((digest, shown)) = self.announced.checked(name, found, now) else {
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
                    "the registry does not show what a webhook announced, and is asked no more for it"
                ),
            }
        }
    }

    fn in_scope(&self, scope: &Scope) -> usize {
        let all = self.images.values();
        all.filter(|it| scope.has(&it.image.repository())).count()
    }

    fn look_failed(&mut self, error: &RefreshError) -> Diagnostic {
        self.failed_looks = self.failed_looks.saturating_add(1);
        let wait = LOOK_AGAIN.wait(self.failed_looks, chance());
        self.look_again = Timestamp::now().checked_add(wait).ok();
        let told = Diagnostic::of(error);
        let before = self.last_look.as_ref().and_then(|it| it.failure.as_ref());
        // Each look tries again; once is enough for the log.
        if before != Some(&told) {
            tracing::error!(hints = ?told.hints, "cannot look for new images: {}", told.sentence());
        }
        told
    }

    /// Takes what a look has shown.
    async fn learn(&mut self, scope: &Scope, report: &Report) {
        let seen = seen(report);
        let images = seen.iter();
        let images = images
            .map(|seen| (seen.image.clone(), seen.remote.clone()))
            .collect();
        let local = self.looks.local(images).await;
        let now = Timestamp::now();
        let mut before = std::mem::take(&mut self.images);
        // What is out of scope stays as it was; what is in it and was not seen is not watched any more.
        let others = before.extract_if(.., |_, it| !scope.has(&it.image.repository()));
        self.images = others.collect();
        for seen in seen {
            let name = seen.image.to_string();
            let local = local.get(&seen.image).cloned();
            let watched = self.watched(seen, local, before.remove(&name), now);
            self.images.insert(name, watched);
        }
        let images = self.images.values();
        let waiting = images.filter(|it| it.verdict != Verdict::Current);
        let waiting: BTreeSet<String> = waiting.map(|it| it.image.repository()).collect();
        self.triggers.retain(|name, _| waiting.contains(name));
        self.put_off
            .retain(|name, _| self.images.contains_key(name));
        self.answered
            .retain(|name, _| self.images.contains_key(name));
    }

    fn watched(
        &self,
        seen: Seen,
        local: Option<String>,
        before: Option<Watched>,
        now: Timestamp,
    ) -> Watched {
        let name = seen.image.to_string();
        let before = before.as_ref();
        tell(&seen, before);
        let check = self.looks.checked(&seen.image);
        let remote = seen
            .remote
            .or_else(|| before.and_then(|before| before.remote.clone()));
        let mut memory = self.watcher.kept.memory();
        if let Some(found) = check.and_then(|check| check.found.as_ref().ok()) {
            memory.sees(&name, found, now);
        }
        let first_seen = remote.as_ref().and_then(|digest| {
            memory.first_seen(&AvailableUpdate {
                image: seen.image.clone(),
                digest: digest.clone(),
            })
        });
        let same = before.filter(|before| before.verdict == seen.verdict);
        Watched {
            since: same.map_or(now, |before| before.since),
            image: seen.image,
            verdict: seen.verdict,
            local,
            remote,
            first_seen,
            checked: check.map(|check| check.at),
            reason: seen.reason,
            containers: seen.containers,
            held: None,
        }
    }

    /// What is about to be proposed again is held, for all that anybody knows, by what held it before.
    fn shown(&self) -> impl Iterator<Item = Watched> {
        self.images.iter().map(|(name, watched)| {
            let mut shown = watched.clone();
            if shown.held.is_none()
                && let Some(finding) = watched.finding()
                && let Some((digest, held)) = self.answered.get(name)
                && *digest == finding.digest
            {
                shown.held = Some(held.clone());
            }
            shown
        })
    }

    fn publish(&self) {
        let times = [self.next_tick, self.look_again];
        let memory = self.watcher.kept.memory();
        let paused = memory.paused.clone();
        drop(memory);
        self.watcher.publish(|snapshot| {
            *snapshot = Snapshot {
                enabled: true,
                scheduled: self.settings.ticks.is_some(),
                paused,
                next_look: times.into_iter().flatten().min(),
                last_look: self.last_look.clone(),
                looks: self.number,
                summary: summary(self.images.values()),
                images: self.shown().collect(),
                problem: self.watcher.kept.trouble(),
            };
        });
    }
}

/// The longest that anything is put off, with what chance adds.
fn wait_most() -> SignedDuration {
    SignedDuration::try_from(RETRY_MOST.mul_f64(1.25)).unwrap_or(SignedDuration::ZERO)
}

/// What is new is logged once.
fn tell(seen: &Seen, before: Option<&Watched>) {
    let image = seen.image.to_string();
    match seen.verdict {
        Verdict::Current => {
            if before.is_some_and(|before| before.verdict != Verdict::Current) {
                tracing::info!(image, "an image is current again");
            }
        }
        Verdict::Behind => {
            let same = before.is_some_and(|before| {
                before.verdict == Verdict::Behind && before.remote == seen.remote
            });
            if !same {
                let (digest, containers) = (seen.remote.as_deref(), seen.containers.len());
                tracing::info!(image, digest, containers, "an image is behind its registry");
            }
        }
        Verdict::Unknown => {
            let told = seen
                .reason
                .clone()
                .unwrap_or_else(|| Diagnostic::new("unknown"));
            let same = before.is_some_and(|before| {
                let reason = before.reason.as_ref().map(|it| &it.error);
                before.verdict == Verdict::Unknown && reason == Some(&told.error)
            });
            if !same {
                tracing::warn!(image, hints = ?told.hints, "it is not known whether an image is current: {}", told.sentence());
            }
        }
    }
}
