//! Rolls a replacement back from any step after Refit first touched the old containers: they run again, under their names.
//!
//! Availability comes before bookkeeping. First Refit stops the replacements, since they hold ports and addresses; then it
//! starts the old containers; only then does it remove replacements and restore names. So an engine that refuses a removal or a
//! rename causes no downtime, and a process that dies midway leaves names that show the unfinished work: Refit removes a
//! replacement only after the old container runs, never before.

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName, State};
use refit_model::diagnostic::Diagnostic;

use super::names::{self, ParsedName};
use super::reconnect::ensure_started;
use super::retry::{ensure_named, ensure_removed, find_by_name, inspect_opt, is_gone};
use super::stop::{ensure_killed, ensure_stopped, resolve_stop};

/// One container to roll back.
pub(super) struct Undo<'a> {
    /// The old container, with its original name.
    pub(super) old: &'a Container,
    /// Whether the old container must run.
    pub(super) ran: bool,
    pub(super) new: Option<&'a ContainerId>,
    /// A stop was requested, and it is unknown whether the request arrived.
    pub(super) stop_in_doubt: bool,
}

/// The result of rolling back one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RollbackOutcome {
    /// The container is as it was before, under its name.
    Restored,
    /// Somebody removed the old container, or renamed it on purpose.
    Gone,
    /// A container of another program runs under the name; Refit removed the old container as after a replacement.
    Superseded,
    /// A stop was requested, the container has no stop timeout, and has not exited. Its replacement stays, as a marker.
    Stopping,
}

/// The result of rolling back each container, and the containers that could not be removed.
pub(super) struct RolledBack {
    pub(super) each: Vec<Result<RollbackOutcome, EngineError>>,
    /// Names of useless containers that could not be removed.
    pub(super) left_over: Vec<String>,
}

/// Rolls back a group. Each member comes after all members that it depends on.
pub(super) async fn roll_back(engine: &dyn Engine, group: &[Undo<'_>]) -> RolledBack {
    for new in group.iter().rev().filter_map(|member| member.new) {
        if let Err(error) = stop_replacement(engine, new).await {
            // The old container may still be able to run.
            tracing::warn!(
                container = new.short(),
                "cannot stop replacement: {}",
                Diagnostic::of(&error).sentence()
            );
        }
    }
    let mut each = Vec::with_capacity(group.len());
    for member in group {
        each.push(start_old(engine, member).await);
    }
    let mut left_over = Vec::new();
    for (member, outcome) in group.iter().zip(&each).rev() {
        // A container that does not run yet needs the marker.
        let needs_marker = matches!(outcome, Err(_) | Ok(RollbackOutcome::Stopping));
        let Some(new) = member.new.filter(|_| !needs_marker) else {
            continue;
        };
        if let Err(error) = ensure_removed(engine, new, Removal::Discard).await {
            tracing::warn!(
                container = new.short(),
                "cannot remove replacement: {}",
                Diagnostic::of(&error).sentence()
            );
            left_over.push(free_old_name(engine, member.old, new).await);
        }
    }
    for (member, outcome) in group.iter().zip(&mut each) {
        if let Ok(RollbackOutcome::Restored) = outcome {
            *outcome = restore_name(engine, member).await;
        }
    }
    RolledBack { each, left_over }
}

/// Stops a replacement, so that it holds no port and no address any more.
async fn stop_replacement(engine: &dyn Engine, new: &ContainerId) -> Result<(), EngineError> {
    let Err(error) = ensure_killed(engine, new).await else {
        return Ok(());
    };
    if matches!(error, EngineError::NotFound { .. }) && is_gone(engine, new).await? {
        return Ok(());
    }
    match inspect_opt(engine, new).await {
        Ok(Some(now)) if now.state == State::Running => {}
        Ok(_) => return Ok(()),
        Err(_) => return Err(error),
    }
    // If the engine refuses the stop, it may allow the removal. That removes the marker too, but otherwise no container runs at
    // all.
    ensure_removed(engine, new, Removal::Discard)
        .await
        .map_err(|_| error)
}

/// Starts the old container, under whatever name.
async fn start_old(engine: &dyn Engine, member: &Undo<'_>) -> Result<RollbackOutcome, EngineError> {
    let old = member.old;
    let Some(now) = inspect_opt(engine, &old.id).await? else {
        return Ok(RollbackOutcome::Gone);
    };
    let renamed = now.name != old.name;
    if renamed && ParsedName::parse(&now.name).is_none() {
        if member.ran {
            ensure_started(engine, &old.id).await?;
        }
        return Ok(RollbackOutcome::Gone);
    }
    if renamed && is_name_taken(engine, member).await? {
        return yield_to_successor(engine, old).await;
    }
    if !member.ran {
        return Ok(RollbackOutcome::Restored);
    }
    if member.stop_in_doubt && !resolve_stop(engine, old).await? {
        return Ok(RollbackOutcome::Stopping);
    }
    match ensure_started(engine, &old.id).await {
        Ok(()) => Ok(RollbackOutcome::Restored),
        Err(error @ EngineError::NotFound { .. }) => match is_gone(engine, &old.id).await? {
            true => Ok(RollbackOutcome::Gone),
            false => Err(error),
        },
        Err(error) => Err(error),
    }
}

async fn restore_name(
    engine: &dyn Engine,
    member: &Undo<'_>,
) -> Result<RollbackOutcome, EngineError> {
    let old = member.old;
    let name = ContainerName::new(&*old.name);
    match ensure_named(engine, &old.id, &name).await {
        Ok(()) => Ok(RollbackOutcome::Restored),
        Err(error @ EngineError::NotFound { .. }) => match is_gone(engine, &old.id).await? {
            true => Ok(RollbackOutcome::Gone),
            false => Err(error),
        },
        Err(error @ EngineError::Conflict { .. }) => match is_name_taken(engine, member).await? {
            true => yield_to_successor(engine, old).await,
            false => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Frees the old container's name from a replacement that cannot be removed. Returns the name that the replacement keeps.
async fn free_old_name(engine: &dyn Engine, old: &Container, new: &ContainerId) -> String {
    let temporary = names::temporary_name(&old.id);
    match inspect_opt(engine, new).await {
        Ok(Some(now)) if now.name == old.name => {
            match ensure_named(engine, new, &temporary).await {
                Ok(()) => temporary.as_str().to_owned(),
                Err(_) => now.name,
            }
        }
        Ok(Some(now)) => now.name,
        Ok(None) | Err(_) => new.short().to_owned(),
    }
}

/// Checks whether a container of another program runs under the name.
async fn is_name_taken(engine: &dyn Engine, member: &Undo<'_>) -> Result<bool, EngineError> {
    let name = ContainerName::new(&*member.old.name);
    let holder = find_by_name(engine, &name).await?;
    Ok(holder.is_some_and(|holder| {
        holder.state == Some(State::Running)
            && holder.id != member.old.id
            && member.new != Some(&holder.id)
    }))
}

async fn yield_to_successor(
    engine: &dyn Engine,
    old: &Container,
) -> Result<RollbackOutcome, EngineError> {
    stop_and_remove(engine, old).await?;
    Ok(RollbackOutcome::Superseded)
}

/// Removes an old container that may run.
pub(super) async fn stop_and_remove(
    engine: &dyn Engine,
    old: &Container,
) -> Result<(), EngineError> {
    match ensure_stopped(engine, old).await {
        Err(error @ EngineError::NotFound { .. }) => match is_gone(engine, &old.id).await? {
            true => return Ok(()),
            false => return Err(error),
        },
        answer => answer?,
    }
    ensure_removed(engine, &old.id, Removal::IfStopped).await
}
