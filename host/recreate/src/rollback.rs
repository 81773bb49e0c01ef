//! The way back from anything after the old containers were first touched: they run, and have their names.
//!
//! Service comes before bookkeeping. First the replacements are stopped, since they hold ports and addresses; then the old
//! containers are started; only then are replacements removed and names given back. So whoever refuses a removal or a renaming costs
//! nobody their service, and whoever dies midway leaves a name that says what was half done: a replacement is removed once the
//! old container runs, never before.

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName, State};
use refit_model::diagnostic::Diagnostic;

use super::names::{self, ParsedName};
use super::reconnect::ensure_started;
use super::retry::{ensure_named, ensure_removed, find, is_gone, look};
use super::stop::{ensure_killed, ensure_stopped, settle_stop};

/// One container on its way back.
pub(super) struct Undo<'a> {
    /// With the name that it is to have.
    pub(super) old: &'a Container,
    /// Whether it is to run.
    pub(super) ran: bool,
    pub(super) new: Option<&'a ContainerId>,
    /// It was asked to stop, and nobody knows whether the request arrived.
    pub(super) stop_in_doubt: bool,
}

/// How an old container came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RollbackOutcome {
    /// As it was, under its name.
    Restored,
    /// Somebody removed it meanwhile, or gave it another name and means to keep it.
    Gone,
    /// Somebody else's container runs under its name; it was removed like any container that was replaced.
    Superseded,
    /// It was asked to stop, has no stop timeout, and has not ended. Its replacement stays, as a trace.
    Stopping,
}

/// What became of each, and what could not be tidied up.
pub(super) struct RolledBack {
    pub(super) each: Vec<Result<RollbackOutcome, EngineError>>,
    /// Names of containers that are of no use any more and could not be removed.
    pub(super) left_over: Vec<String>,
}

/// Each of `group` comes behind all that it depends on.
pub(super) async fn roll_back(engine: &dyn Engine, group: &[Undo<'_>]) -> RolledBack {
    for new in group.iter().rev().filter_map(|member| member.new) {
        if let Err(error) = halt(engine, new).await {
            // The old container may be able to run all the same.
            tracing::warn!(
                container = new.short(),
                "the replacement could not be stopped: {}",
                Diagnostic::of(&error).sentence()
            );
        }
    }
    let mut each = Vec::with_capacity(group.len());
    for member in group {
        each.push(serve(engine, member).await);
    }
    let mut left_over = Vec::new();
    for (member, back) in group.iter().zip(&each).rev() {
        // A container that does not run yet needs the trace.
        let needs_trace = matches!(back, Err(_) | Ok(RollbackOutcome::Stopping));
        let Some(new) = member.new.filter(|_| !needs_trace) else {
            continue;
        };
        if let Err(error) = ensure_removed(engine, new, Removal::Discard).await {
            tracing::warn!(
                container = new.short(),
                "the replacement could not be removed: {}",
                Diagnostic::of(&error).sentence()
            );
            left_over.push(free_name(engine, member.old, new).await);
        }
    }
    for (member, back) in group.iter().zip(&mut each) {
        if let Ok(RollbackOutcome::Restored) = back {
            *back = give_name_back(engine, member).await;
        }
    }
    RolledBack { each, left_over }
}

/// It holds no port and no address any more.
async fn halt(engine: &dyn Engine, new: &ContainerId) -> Result<(), EngineError> {
    let Err(error) = ensure_killed(engine, new).await else {
        return Ok(());
    };
    if matches!(error, EngineError::NotFound { .. }) && is_gone(engine, new).await? {
        return Ok(());
    }
    match look(engine, new).await {
        Ok(Some(now)) if now.state == State::Running => {}
        Ok(_) => return Ok(()),
        Err(_) => return Err(error),
    }
    // Who does not let us stop it may let us remove it. The trace goes with it, but nothing runs at all otherwise.
    ensure_removed(engine, new, Removal::Discard)
        .await
        .map_err(|_| error)
}

/// The old container runs, under whatever name.
async fn serve(engine: &dyn Engine, member: &Undo<'_>) -> Result<RollbackOutcome, EngineError> {
    let old = member.old;
    let Some(now) = look(engine, &old.id).await? else {
        return Ok(RollbackOutcome::Gone);
    };
    let renamed = now.name != old.name;
    if renamed && ParsedName::parse(&now.name).is_none() {
        if member.ran {
            ensure_started(engine, &old.id).await?;
        }
        return Ok(RollbackOutcome::Gone);
    }
    if renamed && is_taken(engine, member).await? {
        return give_way(engine, old).await;
    }
    if !member.ran {
        return Ok(RollbackOutcome::Restored);
    }
    if member.stop_in_doubt && !settle_stop(engine, old).await? {
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

async fn give_name_back(
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
        Err(error @ EngineError::Conflict { .. }) => match is_taken(engine, member).await? {
            true => give_way(engine, old).await,
            false => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// A replacement that cannot be removed must not keep the old container's name. Returns the name under which it is left.
async fn free_name(engine: &dyn Engine, old: &Container, new: &ContainerId) -> String {
    let temporary = names::temporary_name(&old.id);
    match look(engine, new).await {
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

/// Whether somebody else's container runs under its name.
async fn is_taken(engine: &dyn Engine, member: &Undo<'_>) -> Result<bool, EngineError> {
    let name = ContainerName::new(&*member.old.name);
    let holder = find(engine, &name).await?;
    Ok(holder.is_some_and(|holder| {
        holder.state == Some(State::Running)
            && holder.id != member.old.id
            && member.new != Some(&holder.id)
    }))
}

async fn give_way(engine: &dyn Engine, old: &Container) -> Result<RollbackOutcome, EngineError> {
    stop_and_remove(engine, old).await?;
    Ok(RollbackOutcome::Superseded)
}

/// Remove an old container that may run.
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
