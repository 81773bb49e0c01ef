//! The watcher: a task that looks when it is time or when it rings, and has what it finds adopted when nothing holds it.
//!
//! [`Watcher`] is the handle: to ring, pause, and see what is known. The task keeps no promise in memory that matters: what it
//! found is found again by the next look, and what must outlive it is in [`super::memory`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::adopt::{Adopt, Adopted, Finding, Proposal};
use super::bell::{Bell, Rung};
use super::look::{Checks, Looks, Scope};
use super::memory::{Kept, Pause, Store};
use super::schedule::{Backoff, chance};
use super::status::{
    By, Came, Gate, Held, Looked, Seen, Snapshot, Verdict, Watched, came, hold_together, seen,
    summary,
};
use crate::diagnostic::Diagnostic;
use crate::refresh::{RefreshError, Refresher, Report, Trigger};
use crate::registry::digests::Digests;
use crate::runs::{Begun, Panicked};

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
/// After a refresh could not be begun: too many are under way.
const BEGIN_AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// The longest that a refresh which fails again and again is put off.
const RETRY_MOST: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a proposal may take. It is a row in a file, at most.
const ADOPT: Duration = Duration::from_secs(60);
/// Longest name of whoever pauses.
const BY_CHARACTERS_MAX: usize = 100;

/// What a watcher is made with, besides those that it works for.
pub struct Watching {
    pub settings: Settings,
    pub digests: Arc<Digests>,
    pub bell: Arc<Bell>,
    /// Where it remembers.
    pub state_folder: std::path::PathBuf,
}

/// See the module.
pub struct Watcher {
    bell: Arc<Bell>,
    digests: Arc<Digests>,
    kept: Kept,
    snapshot: Mutex<Arc<Snapshot>>,
    changed: Notify,
}

impl Watcher {
    /// The handle, and the task behind it, which looks for the first time when `ready` is set and ends with `stopping`.
    pub fn new(
        parts: Watching,
        refresher: Arc<Refresher>,
        adopt: Arc<dyn Adopt>,
        ready: CancellationToken,
        stopping: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let kept = Kept::load(Store::in_folder(&parts.state_folder));
        let snapshot = Snapshot {
            enabled: true,
            scheduled: parts.settings.ticks.is_some(),
            paused: kept.memory().paused.clone(),
            problem: kept.trouble(),
            ..Snapshot::off()
        };
        let watcher = Arc::new(Self {
            bell: parts.bell,
            digests: parts.digests.clone(),
            kept,
            snapshot: Mutex::new(Arc::new(snapshot)),
            changed: Notify::new(),
        });
        let task = Task {
            watcher: watcher.clone(),
            looks: Looks::new(refresher, parts.digests),
            adopt,
            settings: parts.settings,
            stopping: stopping.clone(),
            images: BTreeMap::new(),
            triggers: BTreeMap::new(),
            // The first look, also where it does not look by itself: what was rung for before a crash is not lost.
            next_tick: Some(Timestamp::now()),
            failed_looks: 0,
            look_again: None,
            put_off: BTreeMap::new(),
            reconsider: None,
            under_way: JoinSet::new(),
            repositories_under_way: BTreeSet::new(),
            last_look: None,
            number: 0,
        };
        let run = async move {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = ready.cancelled() => {}
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = task.run() => {}
            }
        };
        (watcher, run)
    }

    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// What is known now. Cheap.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().clone()
    }

    /// Requests to registries so far: registry, status (0 where no answer came), number.
    pub fn requests(&self) -> Vec<(String, u16, u64)> {
        self.digests.counts()
    }

    /// Nothing is adopted until it is resumed, over restarts too. Looks go on. An error means that it does not outlive a restart.
    pub async fn pause(&self, by: Option<String>) -> Result<(), Diagnostic> {
        let by = by.map(|by| by.chars().take(BY_CHARACTERS_MAX).collect());
        self.set_paused(Some(Pause {
            since: Timestamp::now(),
            by,
        }))
        .await
    }

    pub async fn resume(&self) -> Result<(), Diagnostic> {
        self.set_paused(None).await
    }

    async fn set_paused(&self, pause: Option<Pause>) -> Result<(), Diagnostic> {
        {
            let mut memory = self.kept.memory();
            // Who pauses what is paused already changes nothing.
            if memory.paused.is_some() != pause.is_some() {
                match &pause {
                    Some(pause) => tracing::info!(by = pause.by, "the watcher is paused"),
                    None => tracing::info!("the watcher is resumed"),
                }
                memory.paused = pause;
                memory.is_changed = true;
            }
            let paused = memory.paused.clone();
            drop(memory);
            self.publish(|snapshot| snapshot.paused = paused);
        }
        let written = self.kept.write().await;
        self.publish(|snapshot| snapshot.problem = self.kept.trouble());
        self.changed.notify_one();
        written
    }

    fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut current = self.lock();
        let mut snapshot = Snapshot::clone(&current);
        change(&mut snapshot);
        *current = Arc::new(snapshot);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Snapshot>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refresh of ours that has ended.
struct Ended {
    repositories: BTreeSet<String>,
    findings: Vec<Finding>,
    answer: Result<Result<Report, RefreshError>, Panicked>,
}

struct Task {
    watcher: Arc<Watcher>,
    looks: Looks,
    adopt: Arc<dyn Adopt>,
    settings: Settings,
    stopping: CancellationToken,
    /// By reference. As many as the policy names.
    images: BTreeMap<String, Watched>,
    /// Who rang for a repository that is not current yet.
    triggers: BTreeMap<String, Trigger>,
    next_tick: Option<Timestamp>,
    /// In a row.
    failed_looks: u32,
    /// A look at all images, after one that failed.
    look_again: Option<Timestamp>,
    /// Findings that nobody could begin a refresh for, until when.
    put_off: BTreeMap<String, (String, Held)>,
    /// Something may hold no more: these are looked at again, without asking registries anew.
    reconsider: Option<Scope>,
    under_way: JoinSet<Ended>,
    repositories_under_way: BTreeSet<String>,
    last_look: Option<Looked>,
    number: u64,
}

impl Task {
    async fn run(mut self) {
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

    /// Does what is due, if anything is.
    async fn turn(&mut self) {
        let now = Timestamp::now();
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
            self.look(&Scope::All, Trigger::Schedule, Checks::Due).await;
        } else if can_look {
            let (retries, _) = self.looks.retries(now);
            if !retries.is_empty() {
                let scope = Scope::Only(retries);
                self.look(&scope, Trigger::Schedule, Checks::Retries).await;
            } else if let Some(scope) = self.reconsider.take() {
                self.look(&scope, Trigger::Schedule, Checks::Stale).await;
            } else if due(self.release()) {
                let scope = self.released(now);
                self.look(&scope, Trigger::Schedule, Checks::Stale).await;
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
        wait.min(heard).min(SLEEP_MOST)
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
        let is_over = |held: &Held| held.until.is_some_and(|until| until <= now);
        let over = self.images.values();
        let over = over.filter(|it| it.held.as_ref().is_some_and(is_over));
        Scope::Only(over.map(|it| it.image.repository()).collect())
    }

    async fn answer_the_bell(&mut self) {
        let Some(rung) = self.watcher.bell.take() else {
            return;
        };
        let (scope, trigger) = match rung {
            Rung::ForAll(trigger) => {
                let all = self.images.values().map(|it| it.image.repository());
                self.triggers.extend(all.map(|it| (it, trigger)));
                (Scope::All, trigger)
            }
            Rung::For(repositories) => {
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
        self.look(&scope, trigger, Checks::Forced).await;
    }

    fn forgive(&mut self, scope: &Scope) {
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

    /// Looks, and has adopted what nothing holds.
    async fn look(&mut self, scope: &Scope, trigger: Trigger, checks: Checks) {
        let (started, clock) = (Timestamp::now(), Instant::now());
        let looked = self
            .looks
            .look(scope, trigger, checks, &self.stopping)
            .await;
        let failure = match looked {
            Ok(report) => {
                self.learn(scope, &report).await;
                (self.failed_looks, self.look_again) = (0, None);
                None
            }
            Err(error) => Some(self.look_failed(&error)),
        };
        self.number += 1;
        self.last_look = Some(Looked {
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
        // One that fails has been told of.
        let _ = self.watcher.kept.write().await;
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
        let images = seen.iter().map(|seen| seen.image.clone()).collect();
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
            memory.first_seen(&Finding {
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

    /// Says of each finding what holds it now.
    fn hold(&mut self) {
        let now = Timestamp::now();
        let memory = self.watcher.kept.memory();
        let gate = Gate {
            windows: &self.settings.windows,
            minimum_age: self.settings.minimum_age,
            paused: memory.paused.as_ref(),
            under_way: &self.repositories_under_way,
        };
        for (name, watched) in &mut self.images {
            let finding = watched.finding();
            let put_off = |finding: &Finding| {
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
    async fn adopt_what_is_due(&mut self) {
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
            .look(&scope, trigger, Checks::Stale, &self.stopping)
            .await;
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return drop(self.look_failed(&error)),
        };
        self.learn(&scope, &plan).await;
        self.hold();
        let findings: Vec<Finding> = self
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
            Ok(Adopted::Begun(begun)) => self.begun(begun, repositories, findings),
            Ok(Adopted::Held(number)) => self.held(
                &findings,
                Held {
                    approval: Some(number),
                    ..Held::by(By::Approval, None)
                },
            ),
            Ok(Adopted::Rejected) => self.held(&findings, Held::by(By::Rejected, None)),
            Ok(Adopted::NotBegun(error)) => self.not_begun(&findings, &Diagnostic::of(&error)),
            Err(_) => {
                let problem = format!("no answer within {} s", ADOPT.as_secs());
                self.not_begun(&findings, &Diagnostic::new(problem));
            }
        }
    }

    /// What nothing holds, sorted by image.
    fn due(&self) -> Vec<Finding> {
        let free = self.images.values().filter(|it| it.held.is_none());
        free.filter_map(Watched::finding).collect()
    }

    fn held(&mut self, findings: &[Finding], held: Held) {
        for finding in findings {
            if let Some(watched) = self.images.get_mut(&finding.image.to_string()) {
                watched.held = Some(held.clone());
            }
        }
    }

    fn not_begun(&mut self, findings: &[Finding], told: &Diagnostic) {
        tracing::warn!(
            "cannot begin a refresh for what was found, and tries again: {}",
            told.sentence()
        );
        let until = Timestamp::now().checked_add(BEGIN_AGAIN).ok();
        let held = Held::by(By::Backoff, until);
        for finding in findings {
            let put_off = (finding.digest.clone(), held.clone());
            self.put_off.insert(finding.image.to_string(), put_off);
        }
        self.held(findings, held);
    }

    fn begun(&mut self, begun: Begun, repositories: BTreeSet<String>, findings: Vec<Finding>) {
        let id = begun.run.id;
        let images: Vec<String> = findings.iter().map(|it| it.image.to_string()).collect();
        tracing::info!(id, ?images, "a refresh has begun for what was found");
        self.repositories_under_way.extend(repositories.clone());
        self.held(&findings, Held::by(By::Refresh, None));
        // Bounded: each repository is under way once.
        self.under_way.spawn(async move {
            Ended {
                repositories,
                findings,
                answer: begun.ended().await,
            }
        });
    }

    async fn ended(&mut self, ended: Ended) {
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
        self.look(&scope, Trigger::Schedule, Checks::Stale).await;
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
                images: self.images.values().cloned().collect(),
                problem: self.watcher.kept.trouble(),
            };
        });
    }
}

/// Of several who asked the one that the history should name.
fn weight(trigger: Trigger) -> u8 {
    match trigger {
        Trigger::Operator => 3,
        Trigger::Api => 2,
        Trigger::Webhook => 1,
        Trigger::Schedule => 0,
    }
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
