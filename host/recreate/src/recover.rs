//! Finishing or undoing what somebody began and could not end: a Refit that was killed, an engine that went away.
//!
//! Everything needed is in the engine, in the [names](super::names) that containers bear. What a living process is at work on is left
//! to it ([lease](super::lease)); what nobody on this machine began is left alone until any replacement would have ended. Recovery
//! may be run at any time, and twice; a daemon runs it for as long as anything is half done.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerSummary, State};
use refit_model::diagnostic::Diagnostic;
use refit_model::unfinished::{Unfinished, UnfinishedState};

use super::dependents::{Dependencies, in_order};
use super::health_gate::{ReadinessCheck, check_again, prove};
use super::lease::{LeaseMarker, Leases};
use super::names::{BackupName, ParsedName};
use super::retry::{again, ensure_removed, look};
use super::rollback::{RollbackOutcome, Undo, roll_back, stop_and_remove};
use super::stop::{StopTimeout, wait_out_a_stop};

/// What came of one half-done replacement.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Recovered {
    /// The name that it was about.
    pub container: String,
    pub outcome: Outcome,
    /// Why, or what a person should know.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// A living process on this machine is at work on it.
    #[serde(skip)]
    pub is_attended: bool,
    /// When it may be finished or undone, where that is not now.
    #[serde(skip)]
    pub due_in: Option<Duration>,
}

impl Recovered {
    /// As reports have it; `None` where it was ended, or a living process on this machine is at work on it.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let state = match self.outcome {
            Outcome::InProgress if self.is_attended => return None,
            Outcome::InProgress => UnfinishedState::InProgress,
            Outcome::LeftOver => UnfinishedState::LeftOver,
            Outcome::Stranded => UnfinishedState::Stranded,
            Outcome::Finished | Outcome::Undone | Outcome::Superseded => return None,
        };
        Some(Unfinished {
            container: self.container.clone(),
            state,
            detail: self.detail.clone(),
        })
    }

    /// Whether it could not be ended, and nobody may be at work on it.
    pub fn is_abandoned(&self) -> bool {
        self.unfinished().is_some_and(|it| it.is_abandoned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The replacement runs and has proven itself; the old container was removed.
    Finished,
    /// The old container runs again, or never stopped; the replacement was removed.
    Undone,
    /// Somebody else's container has the name; what was left of ours was removed.
    Superseded,
    /// Somebody may be at work on it. Left alone.
    InProgress,
    /// The right container runs under the name, and another one could not be removed.
    LeftOver,
    /// It could be neither finished nor undone. Nothing was deleted.
    Stranded,
}

/// How recovery judges and waits.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryTimeouts {
    pub proof: ReadinessCheck,
    /// Of one call of the engine.
    pub call: Duration,
}

/// Calls of the engine that a replacement makes at most outside its waits, for an estimate of how long one may take.
const CALLS_MAX: u32 = 12;

/// What a replacement may take beyond its calls and waits: the engine's own time to kill what does not stop, and the waits
/// between calls that are made again.
const MARGIN: Duration = Duration::from_secs(120);

/// How long a container without a stop timeout may take to end after somebody who died had asked it to. Then it is believed that the
/// request never arrived.
const STOPPING_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Since when this process has seen each replacement half done, by its own monotonic clock: an engine's clock that was set back
/// must not keep recovery waiting.
#[derive(Debug, Default)]
pub struct FirstSeen(Mutex<HashMap<String, Instant>>);

impl FirstSeen {
    /// These are half done now, and no others.
    fn are(&self, keys: &[String]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|key, _| keys.contains(key));
        for key in keys {
            seen.entry(key.clone()).or_insert_with(Instant::now);
        }
    }

    fn age(&self, key: &str) -> Duration {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(key).map(Instant::elapsed).unwrap_or_default()
    }
}

/// One replacement that was begun.
struct BegunReplacement {
    name: String,
    old: Option<Container>,
    new: Option<Container>,
    /// Whether the old container is to run.
    ran: bool,
    /// What its name says, where it had given up its own.
    backup: Option<BackupName>,
    /// It was asked to stop, has no stop timeout, and may not have ended.
    is_stopping: bool,
}

impl BegunReplacement {
    /// Whether the replacement got as far as running under the name, so that going on is nearer than going back.
    fn took_over(&self) -> bool {
        let is_up = |new: &Container| {
            new.name == self.name
                && match self.ran {
                    true => new.state == State::Running,
                    false => new.state == State::Created,
                }
        };
        self.backup.is_some() && self.new.as_ref().is_some_and(is_up)
    }

    /// Whether the old container depends on the other's.
    fn depends_on(&self, other: &Self) -> bool {
        let (Some(ours), Some(theirs)) = (&self.old, &other.old) else {
            return false;
        };
        ours.id != theirs.id
            && Dependencies::of(ours)
                .to(&theirs.id, &theirs.name)
                .is_some()
    }

    fn told(&self, outcome: Outcome, detail: impl Into<String>) -> Recovered {
        told(self.name.clone(), outcome, detail)
    }
}

fn told(container: String, outcome: Outcome, detail: impl Into<String>) -> Recovered {
    Recovered {
        container,
        outcome,
        detail: detail.into(),
        is_attended: false,
        due_in: None,
    }
}

/// What is half done, from the names in the engine's list alone: nothing is asked and nothing is changed.
pub fn survey(listed: &[ContainerSummary], leases: &Leases) -> Vec<Unfinished> {
    let mut unfinished = Vec::new();
    for key in keys(listed) {
        // Held: a living process is at work on it.
        let Some((lease, trace)) = leases.take_key(&key) else {
            continue;
        };
        lease.give_back();
        if is_name_only(listed, &key, trace) {
            continue;
        }
        let (state, then) = match trace == LeaseMarker::Abandoned || is_old(listed, &key) {
            true => (
                UnfinishedState::HalfDone,
                "`refit recover` finishes or undoes it",
            ),
            false => (
                UnfinishedState::InProgress,
                "another Refit may be at work on it",
            ),
        };
        let container = title(listed, &key);
        let holder = listed.iter().find(|it| it.name == container);
        let runs = match holder.and_then(|holder| holder.state) {
            Some(State::Running) => "a container runs under the name",
            Some(_) => "the container under the name does not run",
            None => "nothing has the name",
        };
        let ours = listed.iter().filter(|listed| {
            ParsedName::parse(&listed.name).is_some_and(|parsed| parsed.old() == key)
        });
        let ours: Vec<String> = ours.map(|it| format!("`{}`", it.name)).collect();
        unfinished.push(Unfinished {
            container,
            state,
            detail: format!(
                "a replacement was begun and not ended ({} is left): {runs}; {then}",
                ours.join(", ")
            ),
        });
    }
    unfinished
}

/// How long, in seconds, an old container has had its backup name when no replacement can be under way any more, whatever its timeouts.
/// Only for what is said of it: recovery computes the time.
const OLD: i64 = 60 * 60;

fn is_old(listed: &[ContainerSummary], key: &str) -> bool {
    listed
        .iter()
        .any(|listed| match ParsedName::parse(&listed.name) {
            Some(ParsedName::Backup(backup)) if backup.old == key => {
                let now = jiff::Timestamp::now().as_second();
                backup.since.is_some_and(|since| now - since > OLD)
            }
            _ => false,
        })
}

/// Recover everything on this engine.
pub async fn recover(
    engine: &dyn Engine,
    leases: &Leases,
    first_seen: &FirstSeen,
    patience: RecoveryTimeouts,
) -> Result<Vec<Recovered>, EngineError> {
    let listed = again(|| engine.containers()).await?;
    let keys = keys(&listed);
    first_seen.are(&keys);
    let mut clock = None;

    let mut recovered = Vec::new();
    let mut taken = Vec::new();
    let mut begun: BTreeMap<String, BegunReplacement> = BTreeMap::new();
    for key in keys {
        let Some((lease, trace)) = leases.take_key(&key) else {
            let detail = "a living process on this machine is at work on it";
            recovered.push(Recovered {
                is_attended: true,
                ..told(title(&listed, &key), Outcome::InProgress, detail)
            });
            continue;
        };
        if is_name_only(&listed, &key, trace) {
            tracing::warn!(
                container = title(&listed, &key),
                "left alone: it is named like a replacement of Refit's, and nothing shows that Refit made it"
            );
            lease.settle();
            continue;
        }
        let Some(found) = gather(engine, &listed, &key).await? else {
            lease.settle();
            continue;
        };
        let now = *match &clock {
            Some(now) => now,
            None => clock.insert(engine_time(engine).await),
        };
        if trace == LeaseMarker::None {
            let left = time_left(&found, patience, now)
                .min(longest(&found, patience).saturating_sub(first_seen.age(&key)));
            if !left.is_zero() {
                let detail = format!(
                    "nobody on this machine began it, and it may be under way elsewhere for another {} s",
                    left.as_secs() + 1
                );
                recovered.push(Recovered {
                    due_in: Some(left),
                    ..found.told(Outcome::InProgress, detail)
                });
                // Ours is only a look: what we leave must not make the next one believe that somebody here died at it.
                lease.settle();
                continue;
            }
        }
        taken.push((key.clone(), lease));
        begun.insert(key, found);
    }

    let now = clock.unwrap_or_else(jiff::Timestamp::now);
    for group in groups(begun) {
        for (key, one) in settle(engine, group, patience.proof, now).await {
            if !one.is_abandoned()
                && let Some(index) = taken.iter().position(|(taken, _)| *taken == key)
            {
                taken.swap_remove(index).1.settle();
            }
            recovered.push(one);
        }
    }
    recovered.sort_by(|a, b| a.container.cmp(&b.container));
    Ok(recovered)
}

/// By the engine's clock, which wrote down the times that this is compared with. A proxy may not let that question through; then ours
/// has to do.
async fn engine_time(engine: &dyn Engine) -> jiff::Timestamp {
    match again(|| engine.clock()).await {
        Ok(now) => now,
        Err(error) => {
            tracing::debug!("the engine's clock is unknown, this machine's is used: {error}");
            jiff::Timestamp::now()
        }
    }
}

/// The first digits of the ids of the containers that are, or were to be, replaced.
fn keys(listed: &[ContainerSummary]) -> Vec<String> {
    let keys = listed.iter().filter_map(|it| ParsedName::parse(&it.name));
    let mut keys: Vec<String> = keys.map(|parsed| parsed.old().to_owned()).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Whether a name is all that speaks of a replacement: the container that it names is not here, and nobody on this machine began it.
/// Anybody can give a container such a name, and it must not be removed for that.
fn is_name_only(listed: &[ContainerSummary], key: &str, trace: LeaseMarker) -> bool {
    trace == LeaseMarker::None && listed.iter().all(|it| it.id.short() != key)
}

fn title(listed: &[ContainerSummary], key: &str) -> String {
    let by_name = listed
        .iter()
        .find_map(|listed| match ParsedName::parse(&listed.name) {
            Some(ParsedName::Backup(backup)) if backup.old == key => Some(backup.name),
            _ => None,
        });
    let by_id = || {
        listed
            .iter()
            .find(|listed| listed.id.short() == key)
            .map(|listed| listed.name.clone())
    };
    by_name.or_else(by_id).unwrap_or_else(|| key.to_owned())
}

/// What is there of one replacement, looked at again under the lease. `None` where nothing of it is left.
async fn gather(
    engine: &dyn Engine,
    listed: &[ContainerSummary],
    key: &str,
) -> Result<Option<BegunReplacement>, EngineError> {
    let old = match listed.iter().find(|listed| listed.id.short() == key) {
        Some(old) => look(engine, &old.id).await?,
        None => None,
    };
    let backup = old
        .as_ref()
        .and_then(|old| match ParsedName::parse(&old.name)? {
            ParsedName::Backup(backup) => Some(backup),
            ParsedName::Temporary { .. } => None,
        });
    let temporary = listed
        .iter()
        .find_map(|listed| match ParsedName::parse(&listed.name)? {
            ParsedName::Temporary { old, stopping } if old == key => Some((&listed.id, stopping)),
            _ => None,
        });
    let (mut new, is_stopping) = match temporary {
        Some((id, stopping)) => (look(engine, id).await?, stopping),
        None => (None, false),
    };
    if new.is_none()
        && let Some(backup) = &backup
        && let Some(id) = find_id(listed, &backup.new)
    {
        new = look(engine, id).await?;
    }
    let begun = match (old, new, backup) {
        (None, None, _) => return Ok(None),
        // The name was given back before we looked, and no replacement is left.
        (Some(_), None, None) => return Ok(None),
        (Some(old), new, Some(backup)) => BegunReplacement {
            name: backup.name.clone(),
            // As it was: it is compared and put back by the name that it had.
            old: Some(Container {
                name: backup.name.clone(),
                ..old
            }),
            new,
            ran: backup.ran,
            backup: Some(backup),
            is_stopping,
        },
        (old, Some(new), _) => BegunReplacement {
            name: old
                .as_ref()
                .map_or_else(|| new.name.clone(), |old| old.name.clone()),
            ran: old.as_ref().is_none_or(|old| ran_before(old, &new)),
            old,
            new: Some(new),
            backup: None,
            is_stopping,
        },
    };
    Ok(Some(begun))
}

fn find_id<'a>(listed: &'a [ContainerSummary], short: &str) -> Option<&'a ContainerId> {
    let found = listed.iter().find(|listed| listed.id.short() == short);
    found.map(|listed| &listed.id)
}

/// Whether the old container ran when its replacement was made: one that had exited before is to stay as it was.
fn ran_before(old: &Container, new: &Container) -> bool {
    match old.state {
        State::Created => false,
        State::Exited => old.finished.is_none_or(|finished| finished > new.created),
        _ => true,
    }
}

/// How long a replacement like this may take.
fn longest(begun: &BegunReplacement, patience: RecoveryTimeouts) -> Duration {
    let stop = match &begun.old {
        Some(_) if begun.is_stopping => STOPPING_MAX,
        Some(old) => StopTimeout::of(old).bound(),
        None => Duration::ZERO,
    };
    let proven = begun.new.as_ref().or(begun.old.as_ref());
    let proof = proven.map_or(Duration::ZERO, |it| {
        patience.proof.for_container(it).longest(it)
    });
    patience.call * CALLS_MAX + stop + proof + MARGIN
}

/// Until any replacement would have ended that began when this one did, by the engine's clock.
fn time_left(
    begun: &BegunReplacement,
    patience: RecoveryTimeouts,
    now: jiff::Timestamp,
) -> Duration {
    let parked = begun.backup.as_ref().and_then(|backup| backup.since);
    let parked = parked.and_then(|since| jiff::Timestamp::from_second(since).ok());
    let made = begun.new.as_ref().map(|new| new.created);
    // Names of older versions do not say when they were given; the old container's stop is as near as one can get.
    let exited = || begun.old.as_ref().and_then(|old| old.finished);
    let Some(since) = parked.or(made).or_else(exited) else {
        return Duration::ZERO;
    };
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    longest(begun, patience).saturating_sub(age)
}

/// Containers that depend on each other go on or back together, each behind all that it depends on.
fn groups(begun: BTreeMap<String, BegunReplacement>) -> Vec<Vec<(String, BegunReplacement)>> {
    let mut groups: Vec<Vec<(String, BegunReplacement)>> = Vec::new();
    for (key, one) in begun {
        let tied = |(_, other): &(String, BegunReplacement)| {
            one.depends_on(other) || other.depends_on(&one)
        };
        let (with_it, others): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.iter().any(tied));
        groups = others;
        groups.push(with_it.into_iter().flatten().chain([(key, one)]).collect());
    }
    let behind = |(_, one): &(String, BegunReplacement), others: &[(String, BegunReplacement)]| {
        others.iter().any(|(_, other)| one.depends_on(other))
    };
    groups
        .into_iter()
        .map(|group| in_order(group, behind))
        .collect()
}

async fn settle(
    engine: &dyn Engine,
    group: Vec<(String, BegunReplacement)>,
    proof: ReadinessCheck,
    now: jiff::Timestamp,
) -> Vec<(String, Recovered)> {
    if let Some(detail) = still_stopping(&group, now) {
        let each = group.iter();
        return each
            .map(|(key, one)| (key.clone(), one.told(Outcome::Stranded, detail.clone())))
            .collect();
    }
    let mut reason = String::from("it was cut off before the replacement ran");
    if group.iter().all(|(_, one)| one.took_over()) {
        match finish(engine, &group, proof).await {
            Ok(finished) => return finished,
            Err(problem) => reason = problem,
        }
    }
    for (_, one) in &group {
        if let (Some(old), None) = (&one.old, &one.backup)
            && let Err(error) = wait_out_a_stop(engine, old).await
        {
            tracing::debug!(container = one.name, "cannot look at it: {error}");
        }
    }
    let undo: Vec<Undo<'_>> = group
        .iter()
        .filter_map(|(_, one)| {
            Some(Undo {
                old: one.old.as_ref()?,
                ran: one.ran,
                new: one.new.as_ref().map(|new| &new.id),
                stop_in_doubt: false,
            })
        })
        .collect();
    let rolled_back = roll_back(engine, &undo).await;
    let left_over = rolled_back.left_over;
    let mut each = rolled_back.each.into_iter();
    let mut outcomes = Vec::new();
    for (key, one) in &group {
        let told = match &one.old {
            None => replacement_of_none(engine, one).await,
            Some(_) => match each.next() {
                Some(Ok(RollbackOutcome::Restored)) if left_over.is_empty() => {
                    one.told(Outcome::Undone, reason.clone())
                }
                Some(Ok(RollbackOutcome::Restored)) => one.told(
                    Outcome::LeftOver,
                    format!(
                        "{reason}; the old container runs, and `{}` could not be removed",
                        left_over.join("`, `")
                    ),
                ),
                Some(Ok(RollbackOutcome::Gone)) => {
                    one.told(Outcome::Superseded, "somebody removed it meanwhile")
                }
                Some(Ok(RollbackOutcome::Superseded)) => one.told(
                    Outcome::Superseded,
                    "somebody else's container runs under the name",
                ),
                Some(Ok(RollbackOutcome::Stopping)) | None => {
                    one.told(Outcome::Stranded, "it was asked to stop and has not ended")
                }
                Some(Err(error)) => {
                    let problem = Diagnostic::of(&error).sentence();
                    one.told(Outcome::Stranded, stranded(one, &problem))
                }
            },
        };
        outcomes.push((key.clone(), told));
    }
    outcomes
}

/// For whoever has to mend it: which container it is, and why it does not run.
fn stranded(one: &BegunReplacement, problem: &str) -> String {
    let id = |container: &Option<Container>| match container {
        Some(container) => container.id.short().to_owned(),
        None => "gone".to_owned(),
    };
    format!(
        "the old container ({}) could not be put back: {problem}; its replacement is {}; nothing was deleted",
        id(&one.old),
        id(&one.new)
    )
}

/// Why nothing can be done about a container that somebody asked to stop, that has no stop timeout and has not ended.
fn still_stopping(group: &[(String, BegunReplacement)], now: jiff::Timestamp) -> Option<String> {
    let stopping = group.iter().find(|(_, one)| {
        let runs = one
            .old
            .as_ref()
            .is_some_and(|old| old.state == State::Running);
        let made = one.new.as_ref().map(|new| new.created);
        let age = made.and_then(|made| Duration::try_from(now.duration_since(made)).ok());
        one.is_stopping && runs && age.is_none_or(|age| age < STOPPING_MAX)
    });
    let (_, one) = stopping?;
    let id = one.old.as_ref().map_or("", |old| old.id.short());
    Some(format!(
        "`{}` ({id}) was asked to stop, has no stop timeout and has not ended: it is started again when it has; `docker kill {id}` ends it at once",
        one.name
    ))
}

/// The container that was to be replaced is gone, so its replacement goes too.
async fn replacement_of_none(engine: &dyn Engine, one: &BegunReplacement) -> Recovered {
    if let Some(new) = &one.new
        && let Err(error) = ensure_removed(engine, &new.id, Removal::Discard).await
    {
        let problem = Diagnostic::of(&error).sentence();
        return one.told(
            Outcome::LeftOver,
            format!("the container that was to be replaced is gone, and its replacement could not be removed: {problem}"),
        );
    }
    one.told(
        Outcome::Superseded,
        "the container that was to be replaced is gone",
    )
}

/// Every replacement proves itself and is looked at once more, then the old containers go. The error says why it is undone instead.
async fn finish(
    engine: &dyn Engine,
    group: &[(String, BegunReplacement)],
    proof: ReadinessCheck,
) -> Result<Vec<(String, Recovered)>, String> {
    let failed = |error| format!("the replacement did not prove itself: {error}");
    let mut proven = Vec::new();
    for (_, one) in group.iter().filter(|(_, one)| one.ran) {
        if let Some(new) = &one.new {
            let started = prove(engine, &new.id, proof).await.map_err(failed)?;
            proven.push((&new.id, started));
        }
    }
    for (new, started) in proven {
        check_again(engine, new, started).await.map_err(failed)?;
    }
    let mut outcomes = Vec::new();
    for (key, one) in group.iter().rev() {
        let removed = match &one.old {
            // An engine that was restarted starts a stopped container whose policy is `always`.
            Some(old) => stop_and_remove(engine, old).await,
            None => Ok(()),
        };
        let told = match removed {
            Ok(()) => one.told(Outcome::Finished, ""),
            Err(error) => one.told(
                Outcome::LeftOver,
                format!(
                    "the replacement runs, and the old container could not be removed: {}",
                    Diagnostic::of(&error).sentence()
                ),
            ),
        };
        outcomes.push((key.clone(), told));
    }
    outcomes.reverse();
    Ok(outcomes)
}
