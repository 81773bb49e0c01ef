//! Finishing or undoing what somebody began and could not end: a Refit that was killed, an engine that went away.
//!
//! Everything needed is in the engine, in the [names] that containers bear. What a living process is at work on is left to it
//! ([lease](super::lease)); what nobody on this machine began is left alone until any replacement would have ended. Recovery
//! may be run at any time, and twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::dependents::{Ties, in_order};
use super::lease::{Leases, Trace};
use super::names::{self, Meaning};
use super::proof::{Proof, prove};
use super::replace::{Back, mark_stopped, restore, stop_and_remove, stop_timeout};
use super::steady::{again, ensure_removed, look};
use crate::container::{Container, Listed, State};
use crate::engine::{Engine, EngineError, Removal};

/// What came of one half-done replacement.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Recovered {
    /// The name that it was about.
    pub container: String,
    pub outcome: Outcome,
    /// Why, or what a person should know.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
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
    /// It could be neither finished nor undone. Nothing was deleted.
    Stranded,
}

/// How recovery judges and waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub proof: Proof,
    /// Of one call of the engine.
    pub call: Duration,
}

/// Calls of the engine that a replacement makes at most outside its waits, for an estimate of how long one may take.
const CALLS_MAX: u32 = 12;

/// What a replacement may take beyond its calls and waits: the engine's own time to kill what does not stop, and the waits
/// between calls that are made again.
const MARGIN: Duration = Duration::from_secs(120);

/// One replacement that was begun.
struct Begun {
    name: String,
    old: Option<Container>,
    new: Option<Container>,
    /// Whether the old container had given up its name.
    parked: bool,
}

impl Begun {
    /// Whether the replacement got as far as running under the name, so that going on is nearer than going back.
    fn took_over(&self) -> bool {
        self.parked
            && self
                .new
                .as_ref()
                .is_some_and(|new| new.name == self.name && new.state == State::Running)
    }

    /// Whether the old container depends on the other's.
    fn depends_on(&self, other: &Self) -> bool {
        let (Some(ours), Some(theirs)) = (&self.old, &other.old) else {
            return false;
        };
        ours.id != theirs.id && Ties::of(ours).to(&theirs.id, &theirs.name).is_some()
    }
}

/// Recover everything on this engine.
pub async fn recover(
    engine: &dyn Engine,
    leases: &Leases,
    patience: Patience,
) -> Result<Vec<Recovered>, EngineError> {
    let listed = again(|| engine.containers()).await?;
    let mut keys: Vec<String> = listed.iter().filter_map(key).collect();
    keys.sort();
    keys.dedup();

    let mut recovered = Vec::new();
    let mut taken = Vec::new();
    let mut begun: BTreeMap<String, Begun> = BTreeMap::new();
    for key in keys {
        let in_progress = |name: String, detail: &str| Recovered {
            container: name,
            outcome: Outcome::InProgress,
            detail: detail.to_owned(),
        };
        let Some((lease, trace)) = leases.take_key(&key) else {
            recovered.push(in_progress(
                title(&listed, &key),
                "a living process on this machine is at work on it",
            ));
            continue;
        };
        let Some(found) = gather(engine, &listed, &key).await? else {
            lease.settle();
            continue;
        };
        if trace == Trace::None && !long_ago(&found, patience) {
            recovered.push(in_progress(
                found.name,
                "nobody on this machine began it, and it is young: look again later",
            ));
            // Ours is only a look: what we leave must not make the next one believe that somebody here died at it.
            lease.settle();
            continue;
        }
        taken.push((key.clone(), lease));
        begun.insert(key, found);
    }

    for group in groups(begun) {
        for (key, one) in settle(engine, group, patience.proof).await {
            if one.outcome != Outcome::Stranded
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

/// The old container's first digits, from a name of ours.
fn key(listed: &Listed) -> Option<String> {
    match names::meaning(&listed.name)? {
        Meaning::Candidate { old } | Meaning::Parked { old, .. } => Some(old),
    }
}

fn title(listed: &[Listed], key: &str) -> String {
    let by_name = listed
        .iter()
        .find_map(|listed| match names::meaning(&listed.name) {
            Some(Meaning::Parked { old, name, .. }) if old == key => Some(name),
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
    listed: &[Listed],
    key: &str,
) -> Result<Option<Begun>, EngineError> {
    let candidate = names::candidate(&crate::container::ContainerId::new(key));
    let old = listed.iter().find(|listed| listed.id.short() == key);
    let old = match old {
        Some(old) => look(engine, old.id.as_str()).await?,
        None => None,
    };
    let parked = old
        .as_ref()
        .and_then(|old| match names::meaning(&old.name)? {
            Meaning::Parked { new, name, .. } => Some((new, name)),
            Meaning::Candidate { .. } => None,
        });
    let mut new = look(engine, &candidate).await?;
    if new.is_none()
        && let Some((id, _)) = &parked
    {
        new = look(engine, id).await?;
    }
    Ok(match (old, new, parked) {
        (None, None, _) => None,
        // The name was given back before we looked, and no replacement is left.
        (Some(_), None, None) => None,
        (Some(old), new, Some((_, name))) => {
            // As it was: it is compared and put back by the name that it had.
            Some(Begun {
                old: Some(Container {
                    name: name.clone(),
                    ..old
                }),
                name,
                new,
                parked: true,
            })
        }
        (old, new, None) => {
            let name = old
                .as_ref()
                .map_or_else(|| candidate.clone(), |old| old.name.clone());
            Some(Begun {
                name,
                old,
                new,
                parked: false,
            })
        }
        (None, Some(_), Some(_)) => None,
    })
}

/// Whether any replacement would have ended by now that began when this one's was made.
fn long_ago(begun: &Begun, patience: Patience) -> bool {
    let stop = begun.old.as_ref().map_or(Duration::ZERO, stop_timeout);
    // Somebody who is on the way back has removed the replacement; then the old one's stop tells when it was begun.
    let (since, proof) = match (&begun.new, &begun.old) {
        (Some(new), _) => (new.created, patience.proof.for_container(new).longest(new)),
        (None, Some(old)) => (
            old.finished.unwrap_or_default(),
            patience.proof.for_container(old).longest(old),
        ),
        (None, None) => return true,
    };
    let longest = patience.call * CALLS_MAX + stop + proof + MARGIN;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let since = Duration::from_secs(u64::try_from(since).unwrap_or_default());
    now.saturating_sub(since) > longest
}

/// Containers that depend on each other go on or back together, each behind all that it depends on.
fn groups(begun: BTreeMap<String, Begun>) -> Vec<Vec<(String, Begun)>> {
    let mut groups: Vec<Vec<(String, Begun)>> = Vec::new();
    for (key, one) in begun {
        let tied = |(_, other): &(String, Begun)| one.depends_on(other) || other.depends_on(&one);
        let (with_it, others): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.iter().any(tied));
        groups = others;
        groups.push(with_it.into_iter().flatten().chain([(key, one)]).collect());
    }
    let behind = |(_, one): &(String, Begun), others: &[(String, Begun)]| {
        others.iter().any(|(_, other)| one.depends_on(other))
    };
    groups
        .into_iter()
        .map(|group| in_order(group, behind))
        .collect()
}

async fn settle(
    engine: &dyn Engine,
    group: Vec<(String, Begun)>,
    proof: Proof,
) -> Vec<(String, Recovered)> {
    let mut reason = String::from("it was cut off before the replacement ran");
    if group.iter().all(|(_, one)| one.took_over()) {
        match finish(engine, &group, proof).await {
            Ok(()) => return told(&group, |_| (Outcome::Finished, String::new())),
            Err(problem) => reason = problem,
        }
    }
    let mut outcomes = Vec::new();
    // Replacements go before anything is put back: they hold names, ports and addresses.
    let mut removed = Ok(());
    for (_, one) in group.iter().rev() {
        if let (Some(new), Ok(())) = (&one.new, &removed) {
            removed = async {
                if let Some(old) = &one.old {
                    wait_out_a_stop(engine, old).await?;
                    mark_stopped(engine, old, &new.id, false).await?;
                }
                ensure_removed(engine, &new.id, Removal::Discard).await
            }
            .await;
        }
    }
    for (key, one) in &group {
        let outcome = match (&removed, &one.old) {
            (Err(error), _) => (Outcome::Stranded, error.to_string()),
            (Ok(()), None) => (
                Outcome::Superseded,
                "the container that was to be replaced is gone".to_owned(),
            ),
            (Ok(()), Some(old)) => match restore(engine, old, false).await {
                Ok(Back::Running) => (Outcome::Undone, reason.clone()),
                Ok(Back::Gone) => (
                    Outcome::Superseded,
                    "somebody removed it meanwhile".to_owned(),
                ),
                Ok(Back::Superseded) => (
                    Outcome::Superseded,
                    "somebody else's container runs under the name".to_owned(),
                ),
                Err(error) => (
                    Outcome::Stranded,
                    crate::diagnostic::Diagnostic::of(&error).sentence(),
                ),
            },
        };
        outcomes.push((
            key.clone(),
            Recovered {
                container: one.name.clone(),
                outcome: outcome.0,
                detail: outcome.1,
            },
        ));
    }
    outcomes
}

/// How often a container is looked at that may be about to stop.
const LOOK: Duration = Duration::from_millis(500);

/// Whoever died may have asked for the stop of a container that still runs: the engine goes on with it for as long as the
/// container may take. Only then can it be said whether it runs.
async fn wait_out_a_stop(engine: &dyn Engine, old: &Container) -> Result<(), EngineError> {
    let until = Instant::now() + stop_timeout(old) + 2 * LOOK;
    loop {
        let now = look(engine, old.id.as_str()).await?;
        if now.is_none_or(|now| now.state != State::Running) || Instant::now() >= until {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every replacement proves itself, then the old containers go. The error says why it is undone instead.
async fn finish(
    engine: &dyn Engine,
    group: &[(String, Begun)],
    proof: Proof,
) -> Result<(), String> {
    for new in group.iter().filter_map(|(_, one)| one.new.as_ref()) {
        prove(engine, &new.id, proof)
            .await
            .map_err(|error| format!("the replacement did not prove itself: {error}"))?;
    }
    for old in group.iter().rev().filter_map(|(_, one)| one.old.as_ref()) {
        // An engine that was restarted starts a stopped container whose policy is `always`.
        match stop_and_remove(engine, old).await {
            Ok(()) | Err(EngineError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(
                container = old.name,
                "the old container could not be removed: {error}"
            ),
        }
    }
    Ok(())
}

fn told(
    group: &[(String, Begun)],
    outcome: impl Fn(&Begun) -> (Outcome, String),
) -> Vec<(String, Recovered)> {
    let told = group.iter().map(|(key, one)| {
        let (outcome, detail) = outcome(one);
        (
            key.clone(),
            Recovered {
                container: one.name.clone(),
                outcome,
                detail,
            },
        )
    });
    told.collect()
}
