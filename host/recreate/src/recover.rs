//! Finishes or undoes replacements that another process could not end: a killed Refit, or an engine that went away.
//!
//! All necessary state is in the engine, in the [names](super::names) of containers. Recovery leaves replacements alone that a
//! living process works on ([lease](super::lease)); if no process on this machine started a replacement, recovery waits until
//! any replacement would have ended. Recovery can run at any time, and twice; a daemon runs it for as long as anything is
//! unfinished.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerSummary, State};
use refit_model::diagnostic::Diagnostic;
use refit_model::unfinished::{Unfinished, UnfinishedState};

use super::dependents::{Dependencies, sort_providers_first};
use super::health_gate::{ReadinessCheck, ensure_still_running, wait_until_healthy};
use super::lease::{LeaseMarker, Leases};
use super::names::{BackupName, ParsedName};
use super::retry::{ensure_removed, inspect_opt, retry};
use super::rollback::{RollbackOutcome, Undo, roll_back, stop_and_remove};
use super::stop::{StopTimeout, wait_for_stop};

/// The result of recovering one unfinished replacement.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Recovered {
    /// The name of the replaced container.
    pub container: String,
    pub outcome: Outcome,
    /// The reason, or further facts for the user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Whether a living process on this machine works on it.
    #[serde(skip)]
    pub is_attended: bool,
    /// When recovery may finish or undo it, if it may not now.
    #[serde(skip)]
    pub due_in: Option<Duration>,
}

impl Recovered {
    /// Converts the result for reports; `None` if the replacement has ended, or a living process on this machine works on it.
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

    /// Reports whether the replacement could not be ended, and no process works on it.
    pub fn is_abandoned(&self) -> bool {
        self.unfinished().is_some_and(|it| it.is_abandoned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The replacement runs and is healthy; the old container was removed.
    Finished,
    /// The old container runs again, or never stopped; the replacement was removed.
    Undone,
    /// A container of another program has the name; the remains of our replacement were removed.
    Superseded,
    /// Another process may be working on it. Recovery left it alone.
    InProgress,
    /// The right container runs under the name, but another container could not be removed.
    LeftOver,
    /// Recovery could neither finish nor undo it. Nothing was deleted.
    Stranded,
}

/// Time limits of recovery.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryTimeouts {
    pub proof: ReadinessCheck,
    /// The timeout of one engine call.
    pub call: Duration,
}

/// The most engine calls that a replacement makes outside its waits, to estimate how long it may take.
const CALLS_MAX: u32 = 12;

/// The time that a replacement may take beyond its calls and waits: the engine's time to kill a container that does not stop,
/// and the waits between retries.
const MARGIN: Duration = Duration::from_secs(120);

/// How long a container without a stop timeout may take to exit after a process that died requested its stop. After that time
/// Refit assumes that the request never arrived.
const STOPPING_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// When this process first saw each unfinished replacement, by its own monotonic clock: an engine clock that was set back must
/// not delay recovery.
#[derive(Debug, Default)]
pub struct FirstSeen(Mutex<HashMap<String, Instant>>);

impl FirstSeen {
    /// Replaces the set of unfinished replacements, and keeps the times of those that are still in it.
    fn update(&self, keys: &[String]) {
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

/// An unfinished replacement.
struct UnfinishedReplacement {
    name: String,
    old: Option<Container>,
    new: Option<Container>,
    /// Whether the old container must run.
    ran: bool,
    /// The old container's parsed backup name, if it was renamed.
    backup: Option<BackupName>,
    /// Whether a stop was requested from a container without a stop timeout, which may not have exited.
    is_stopping: bool,
}

impl UnfinishedReplacement {
    /// Reports whether the new container already runs under the name, so that finishing is nearer than undoing.
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

    /// Reports whether the old container depends on the other replacement's old container.
    fn depends_on(&self, other: &Self) -> bool {
        let (Some(ours), Some(theirs)) = (&self.old, &other.old) else {
            return false;
        };
        ours.id != theirs.id
            && Dependencies::from_container(ours)
                .dependency_on(&theirs.id, &theirs.name)
                .is_some()
    }

    fn to_recovered(&self, outcome: Outcome, detail: impl Into<String>) -> Recovered {
        recovery_result(self.name.clone(), outcome, detail)
    }
}

fn recovery_result(container: String, outcome: Outcome, detail: impl Into<String>) -> Recovered {
    Recovered {
        container,
        outcome,
        detail: detail.into(),
        is_attended: false,
        due_in: None,
    }
}

/// Lists unfinished replacements from the names in the engine's list alone: sends no request and changes nothing.
pub fn survey(listed: &[ContainerSummary], leases: &Leases) -> Vec<Unfinished> {
    let mut unfinished = Vec::new();
    for key in list_keys(listed) {
        // A living process works on it.
        let Some((lease, marker)) = leases.take_key(&key) else {
            continue;
        };
        lease.give_back();
        if is_name_only(listed, &key, marker) {
            continue;
        }
        let (state, next_step) = match marker == LeaseMarker::Abandoned || is_old(listed, &key) {
            true => (
                UnfinishedState::HalfDone,
                "`refit recover` finishes or undoes it",
            ),
            false => (
                UnfinishedState::InProgress,
                "another Refit may be at work on it",
            ),
        };
        let container = container_name(listed, &key);
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
                "a replacement was begun and not ended ({} is left): {runs}; {next_step}",
                ours.join(", ")
            ),
        });
    }
    unfinished
}

/// The age of a backup name, in seconds, after which no replacement can be in progress, whatever its timeouts. Only for the
/// text of a report: recovery computes the time.
const OLD_AFTER_SECONDS: i64 = 60 * 60;

fn is_old(listed: &[ContainerSummary], key: &str) -> bool {
    listed
        .iter()
        .any(|listed| match ParsedName::parse(&listed.name) {
            Some(ParsedName::Backup(backup)) if backup.old == key => {
                let now = jiff::Timestamp::now().as_second();
                backup
                    .since
                    .is_some_and(|since| now - since > OLD_AFTER_SECONDS)
            }
            _ => false,
        })
}

/// Recovers all unfinished replacements on this engine.
pub async fn recover(
    engine: &dyn Engine,
    leases: &Leases,
    first_seen: &FirstSeen,
    timeouts: RecoveryTimeouts,
) -> Result<Vec<Recovered>, EngineError> {
    let listed = retry(|| engine.containers()).await?;
    let keys = list_keys(&listed);
    first_seen.update(&keys);
    let mut clock = None;

    let mut recovered = Vec::new();
    let mut leases_taken = Vec::new();
    let mut replacements: BTreeMap<String, UnfinishedReplacement> = BTreeMap::new();
    for key in keys {
        let Some((lease, marker)) = leases.take_key(&key) else {
            let detail = "a living process on this machine is at work on it";
            recovered.push(Recovered {
                is_attended: true,
                ..recovery_result(container_name(&listed, &key), Outcome::InProgress, detail)
            });
            continue;
        };
        if is_name_only(&listed, &key, marker) {
            tracing::warn!(
                container = container_name(&listed, &key),
                "ignoring container that is only named like a replacement"
            );
            lease.settle();
            continue;
        }
        let Some(replacement) = inspect_replacement(engine, &listed, &key).await? else {
            lease.settle();
            continue;
        };
        let now = *match &clock {
            Some(now) => now,
            None => clock.insert(engine_time(engine).await),
        };
        if marker == LeaseMarker::None {
            let left = time_left(&replacement, timeouts, now)
                .min(max_duration(&replacement, timeouts).saturating_sub(first_seen.age(&key)));
            if !left.is_zero() {
                let detail = format!(
                    "nobody on this machine began it, and it may be under way elsewhere for another {} s",
                    left.as_secs() + 1
                );
                recovered.push(Recovered {
                    due_in: Some(left),
                    ..replacement.to_recovered(Outcome::InProgress, detail)
                });
                // We only checked: a file that we leave would make the next process believe that a process on this machine died
                // here.
                lease.settle();
                continue;
            }
        }
        leases_taken.push((key.clone(), lease));
        replacements.insert(key, replacement);
    }

    let now = clock.unwrap_or_else(jiff::Timestamp::now);
    for group in group_by_dependency(replacements) {
        for (key, result) in finish_or_undo(engine, group, timeouts.proof, now).await {
            if !result.is_abandoned()
                && let Some(index) = leases_taken.iter().position(|(taken, _)| *taken == key)
            {
                leases_taken.swap_remove(index).1.settle();
            }
            recovered.push(result);
        }
    }
    recovered.sort_by(|a, b| a.container.cmp(&b.container));
    Ok(recovered)
}

/// Returns the time by the engine's clock, which also set the times that it is compared with. If a proxy does not allow the
/// request, our own clock must do.
async fn engine_time(engine: &dyn Engine) -> jiff::Timestamp {
    match retry(|| engine.clock()).await {
        Ok(now) => now,
        Err(error) => {
            tracing::debug!("engine clock unavailable, using local clock: {error}");
            jiff::Timestamp::now()
        }
    }
}

/// Returns the first digits of the ids of the old containers.
fn list_keys(listed: &[ContainerSummary]) -> Vec<String> {
    let keys = listed.iter().filter_map(|it| ParsedName::parse(&it.name));
    let mut keys: Vec<String> = keys.map(|parsed| parsed.old().to_owned()).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Reports whether a name is the only sign of a replacement: the container that it names does not exist here, and no process on
/// this machine started it. Anybody can give a container such a name, and that must not get it removed.
fn is_name_only(listed: &[ContainerSummary], key: &str, marker: LeaseMarker) -> bool {
    marker == LeaseMarker::None && listed.iter().all(|it| it.id.short() != key)
}

fn container_name(listed: &[ContainerSummary], key: &str) -> String {
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

/// Inspects the containers of one replacement again under the lease. `None` if none is left.
async fn inspect_replacement(
    engine: &dyn Engine,
    listed: &[ContainerSummary],
    key: &str,
) -> Result<Option<UnfinishedReplacement>, EngineError> {
    let old = match listed.iter().find(|listed| listed.id.short() == key) {
        Some(old) => inspect_opt(engine, &old.id).await?,
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
        Some((id, stopping)) => (inspect_opt(engine, id).await?, stopping),
        None => (None, false),
    };
    if new.is_none()
        && let Some(backup) = &backup
        && let Some(id) = find_id(listed, &backup.new)
    {
        new = inspect_opt(engine, id).await?;
    }
    let replacement = match (old, new, backup) {
        (None, None, _) => return Ok(None),
        // The old container had its name back before this check, and no replacement is left.
        (Some(_), None, None) => return Ok(None),
        (Some(old), new, Some(backup)) => UnfinishedReplacement {
            name: backup.name.clone(),
            // With its original name, for comparison and rollback.
            old: Some(Container {
                name: backup.name.clone(),
                ..old
            }),
            new,
            ran: backup.ran,
            backup: Some(backup),
            is_stopping,
        },
        (old, Some(new), _) => UnfinishedReplacement {
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
    Ok(Some(replacement))
}

fn find_id<'a>(listed: &'a [ContainerSummary], short: &str) -> Option<&'a ContainerId> {
    let container = listed.iter().find(|listed| listed.id.short() == short);
    container.map(|listed| &listed.id)
}

/// Reports whether the old container ran when its replacement was created: if it had exited before, it must stay as it was.
fn ran_before(old: &Container, new: &Container) -> bool {
    match old.state {
        State::Created => false,
        State::Exited => old.finished.is_none_or(|finished| finished > new.created),
        _ => true,
    }
}

/// Returns the longest time that a replacement like this may take.
fn max_duration(replacement: &UnfinishedReplacement, timeouts: RecoveryTimeouts) -> Duration {
    let stop = match &replacement.old {
        Some(_) if replacement.is_stopping => STOPPING_MAX,
        Some(old) => StopTimeout::from_container(old).max_wait(),
        None => Duration::ZERO,
    };
    let healthy = replacement.new.as_ref().or(replacement.old.as_ref());
    let proof = healthy.map_or(Duration::ZERO, |it| {
        timeouts.proof.for_container(it).max_wait(it)
    });
    timeouts.call * CALLS_MAX + stop + proof + MARGIN
}

/// Returns the time until any replacement that started when this one did would have ended, by the engine's clock.
fn time_left(
    replacement: &UnfinishedReplacement,
    timeouts: RecoveryTimeouts,
    now: jiff::Timestamp,
) -> Duration {
    let renamed = replacement.backup.as_ref().and_then(|backup| backup.since);
    let renamed = renamed.and_then(|since| jiff::Timestamp::from_second(since).ok());
    let made = replacement.new.as_ref().map(|new| new.created);
    // Names of older versions do not contain their time; the old container's stop is the nearest known time.
    let exited = || replacement.old.as_ref().and_then(|old| old.finished);
    let Some(since) = renamed.or(made).or_else(exited) else {
        return Duration::ZERO;
    };
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    max_duration(replacement, timeouts).saturating_sub(age)
}

/// Groups containers that depend on each other, which Refit must finish or undo together: each after all that it depends on.
fn group_by_dependency(
    replacements: BTreeMap<String, UnfinishedReplacement>,
) -> Vec<Vec<(String, UnfinishedReplacement)>> {
    let mut groups: Vec<Vec<(String, UnfinishedReplacement)>> = Vec::new();
    for (key, replacement) in replacements {
        let is_related = |(_, other): &(String, UnfinishedReplacement)| {
            replacement.depends_on(other) || other.depends_on(&replacement)
        };
        let (related, others): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|group| group.iter().any(is_related));
        groups = others;
        groups.push(
            related
                .into_iter()
                .flatten()
                .chain([(key, replacement)])
                .collect(),
        );
    }
    let depends_on_any = |(_, replacement): &(String, UnfinishedReplacement),
                          others: &[(String, UnfinishedReplacement)]| {
        others
            .iter()
            .any(|(_, other)| replacement.depends_on(other))
    };
    groups
        .into_iter()
        .map(|group| sort_providers_first(group, depends_on_any))
        .collect()
}

async fn finish_or_undo(
    engine: &dyn Engine,
    group: Vec<(String, UnfinishedReplacement)>,
    proof: ReadinessCheck,
    now: jiff::Timestamp,
) -> Vec<(String, Recovered)> {
    if let Some(detail) = still_stopping_reason(&group, now) {
        let each = group.iter();
        return each
            .map(|(key, replacement)| {
                (
                    key.clone(),
                    replacement.to_recovered(Outcome::Stranded, detail.clone()),
                )
            })
            .collect();
    }
    let mut reason = String::from("it was cut off before the replacement ran");
    if group.iter().all(|(_, replacement)| replacement.took_over()) {
        match finish(engine, &group, proof).await {
            Ok(finished) => return finished,
            Err(problem) => reason = problem,
        }
    }
    for (_, replacement) in &group {
        if let (Some(old), None) = (&replacement.old, &replacement.backup)
            && let Err(error) = wait_for_stop(engine, old).await
        {
            tracing::debug!(
                container = replacement.name,
                "cannot inspect old container: {error}"
            );
        }
    }
    let undo: Vec<Undo<'_>> = group
        .iter()
        .filter_map(|(_, replacement)| {
            Some(Undo {
                old: replacement.old.as_ref()?,
                ran: replacement.ran,
                new: replacement.new.as_ref().map(|new| &new.id),
                stop_in_doubt: false,
            })
        })
        .collect();
    let rolled_back = roll_back(engine, &undo).await;
    let left_over = rolled_back.left_over;
    let mut each = rolled_back.each.into_iter();
    let mut outcomes = Vec::new();
    for (key, replacement) in &group {
        let recovered = match &replacement.old {
            None => remove_orphan(engine, replacement).await,
            Some(_) => match each.next() {
                Some(Ok(RollbackOutcome::Restored)) if left_over.is_empty() => {
                    replacement.to_recovered(Outcome::Undone, reason.clone())
                }
                Some(Ok(RollbackOutcome::Restored)) => replacement.to_recovered(
                    Outcome::LeftOver,
                    format!(
                        "{reason}; the old container runs, and `{}` could not be removed",
                        left_over.join("`, `")
                    ),
                ),
                Some(Ok(RollbackOutcome::Gone)) => {
                    replacement.to_recovered(Outcome::Superseded, "somebody removed it meanwhile")
                }
                Some(Ok(RollbackOutcome::Superseded)) => replacement.to_recovered(
                    Outcome::Superseded,
                    "somebody else's container runs under the name",
                ),
                Some(Ok(RollbackOutcome::Stopping)) | None => replacement
                    .to_recovered(Outcome::Stranded, "it was asked to stop and has not ended"),
                Some(Err(error)) => {
                    let problem = Diagnostic::of(&error).sentence();
                    replacement
                        .to_recovered(Outcome::Stranded, describe_stranded(replacement, &problem))
                }
            },
        };
        outcomes.push((key.clone(), recovered));
    }
    outcomes
}

/// Describes a stranded container for the user: which container it is, and why it does not run.
fn describe_stranded(replacement: &UnfinishedReplacement, problem: &str) -> String {
    let id = |container: &Option<Container>| match container {
        Some(container) => container.id.short().to_owned(),
        None => "gone".to_owned(),
    };
    format!(
        "the old container ({}) could not be put back: {problem}; its replacement is {}; nothing was deleted",
        id(&replacement.old),
        id(&replacement.new)
    )
}

/// Returns why Refit cannot act: somebody requested the stop of a container that has no stop timeout and has not exited.
fn still_stopping_reason(
    group: &[(String, UnfinishedReplacement)],
    now: jiff::Timestamp,
) -> Option<String> {
    let stopping = group.iter().find(|(_, replacement)| {
        let runs = replacement
            .old
            .as_ref()
            .is_some_and(|old| old.state == State::Running);
        let made = replacement.new.as_ref().map(|new| new.created);
        let age = made.and_then(|made| Duration::try_from(now.duration_since(made)).ok());
        replacement.is_stopping && runs && age.is_none_or(|age| age < STOPPING_MAX)
    });
    let (_, replacement) = stopping?;
    let id = replacement.old.as_ref().map_or("", |old| old.id.short());
    Some(format!(
        "`{}` ({id}) was asked to stop, has no stop timeout and has not ended: it is started again when it has; `docker kill {id}` ends it at once",
        replacement.name
    ))
}

/// Removes the replacement of a container that is gone.
async fn remove_orphan(engine: &dyn Engine, replacement: &UnfinishedReplacement) -> Recovered {
    if let Some(new) = &replacement.new
        && let Err(error) = ensure_removed(engine, &new.id, Removal::Discard).await
    {
        let problem = Diagnostic::of(&error).sentence();
        return replacement.to_recovered(
            Outcome::LeftOver,
            format!("the container that was to be replaced is gone, and its replacement could not be removed: {problem}"),
        );
    }
    replacement.to_recovered(
        Outcome::Superseded,
        "the container that was to be replaced is gone",
    )
}

/// Finishes a group: waits until every replacement is healthy, checks each again, then removes the old containers. The error
/// contains the reason for undoing it instead.
async fn finish(
    engine: &dyn Engine,
    group: &[(String, UnfinishedReplacement)],
    proof: ReadinessCheck,
) -> Result<Vec<(String, Recovered)>, String> {
    let failed = |error| format!("the replacement did not prove itself: {error}");
    let mut healthy = Vec::new();
    for (_, replacement) in group.iter().filter(|(_, replacement)| replacement.ran) {
        if let Some(new) = &replacement.new {
            let started = wait_until_healthy(engine, &new.id, proof)
                .await
                .map_err(failed)?;
            healthy.push((&new.id, started));
        }
    }
    for (new, started) in healthy {
        ensure_still_running(engine, new, started)
            .await
            .map_err(failed)?;
    }
    let mut outcomes = Vec::new();
    for (key, replacement) in group.iter().rev() {
        let removed = match &replacement.old {
            // A restarted engine starts a stopped container whose restart policy is `always`.
            Some(old) => stop_and_remove(engine, old).await,
            None => Ok(()),
        };
        let recovered = match removed {
            Ok(()) => replacement.to_recovered(Outcome::Finished, ""),
            Err(error) => replacement.to_recovered(
                Outcome::LeftOver,
                format!(
                    "the replacement runs, and the old container could not be removed: {}",
                    Diagnostic::of(&error).sentence()
                ),
            ),
        };
        outcomes.push((key.clone(), recovered));
    }
    outcomes.reverse();
    Ok(outcomes)
}
