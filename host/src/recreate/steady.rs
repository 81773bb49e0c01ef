//! Calls that may be made again: what they bring about is looked at first, so an answer that got lost does no harm.
//!
//! Finishing and undoing a replacement must not fail because one call of the engine did. Nothing here is tried without end.

use std::future::Future;
use std::time::Duration;

use crate::container::{Container, ContainerId, State};
use crate::engine::{Engine, EngineError, Removal};

/// What is waited before each further try. An engine that restarts is back within seconds; one that is away for longer is a
/// person's business, and recovery goes on when it is back.
const WAITS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Try until it works, or fails in a way that trying does not mend.
pub(super) async fn again<T, F>(mut call: impl FnMut() -> F) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    for wait in WAITS {
        match call().await {
            Err(error) if may_pass(&error) => tokio::time::sleep(wait).await,
            answer => return answer,
        }
    }
    call().await
}

/// A refusal with a reason (4xx) stays one; a server error, a lost connection or silence may not.
pub(super) fn may_pass(error: &EngineError) -> bool {
    error.is_passing() || matches!(error, EngineError::Refused { status: 500.., .. })
}

/// As the engine has it; `None` where it is gone.
pub(super) async fn look(
    engine: &dyn Engine,
    container: &str,
) -> Result<Option<Container>, EngineError> {
    match again(|| engine.inspect(container)).await {
        Ok(container) => Ok(Some(container)),
        Err(EngineError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removed, whether by us or before.
pub(super) async fn ensure_removed(
    engine: &dyn Engine,
    container: &ContainerId,
    removal: Removal,
) -> Result<(), EngineError> {
    let removed = again(|| async {
        match engine.remove(container, removal).await {
            // "Removal is already in progress": look until it is over.
            Err(error @ EngineError::Conflict { .. }) => {
                match engine.inspect(container.as_str()).await {
                    Ok(now) if now.state == State::Removing => Err(EngineError::Refused {
                        action: format!("remove container `{}`", container.short()),
                        status: 503,
                        source: "its removal is under way".into(),
                    }),
                    Err(EngineError::NotFound { .. }) => Ok(()),
                    Ok(_) | Err(_) => Err(error),
                }
            }
            answer => answer,
        }
    });
    match removed.await {
        Err(EngineError::NotFound { .. }) => Ok(()),
        answer => answer,
    }
}

/// How often a container that is being stopped is looked at. Most are gone sooner.
const WATCH: Duration = Duration::from_secs(1);

/// Ask it to stop once, and look whether it has: an engine whose answer got lost would otherwise cost the whole time limit of
/// the call, while nothing runs under the name.
pub(super) async fn stop(
    engine: &dyn Engine,
    container: &ContainerId,
    its_timeout: Duration,
) -> Result<(), EngineError> {
    let mut answer = engine.stop(container, its_timeout);
    let mut seen_stopped = false;
    // Ends with the call, which has a time limit.
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = tokio::time::sleep(WATCH) => {}
        }
        tokio::select! {
            answer = &mut answer => return answer,
            now = engine.inspect(container.as_str()) => {
                let stopped = now.is_ok_and(|now| now.state == State::Exited);
                // The answer itself follows within moments, where it is still to come.
                if stopped && seen_stopped {
                    return Ok(());
                }
                seen_stopped = stopped;
            }
        }
    }
}

pub(super) async fn ensure_stopped(
    engine: &dyn Engine,
    container: &ContainerId,
    its_timeout: Duration,
) -> Result<(), EngineError> {
    again(|| engine.stop(container, its_timeout)).await
}

pub(super) async fn ensure_named(
    engine: &dyn Engine,
    container: &ContainerId,
    name: &str,
) -> Result<(), EngineError> {
    again(|| async {
        let now = engine.inspect(container.as_str()).await?;
        if now.name == name {
            Ok(())
        } else {
            engine.rename(container, name).await
        }
    })
    .await
}

pub(super) async fn ensure_running(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<(), EngineError> {
    again(|| async {
        let now = engine.inspect(container.as_str()).await?;
        if now.state == State::Running {
            Ok(())
        } else {
            engine.start(container).await
        }
    })
    .await
}
