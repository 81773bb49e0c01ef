//! Engine calls that are safe to repeat: each checks the current state first, so a lost response does no harm.
//!
//! Finishing or undoing a replacement must not fail because one engine call failed. Every retry here is bounded.

use std::future::Future;
use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName, ContainerSummary, State};

/// The wait before each further attempt.
const RETRY_WAITS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// How long to wait for an unreachable engine. A restarted engine is back within seconds, an upgraded one within a minute or
/// two, and until then Refit can only wait. After this time, recovery takes over.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(2 * 60);
const UNREACHABLE_POLL: Duration = Duration::from_secs(2);

/// Repeats a call until it succeeds, or fails with an error that a retry cannot fix.
pub(super) async fn retry<T, F>(mut call: impl FnMut() -> F) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    for wait in RETRY_WAITS {
        match call().await {
            Err(error) if is_transient(&error) => tokio::time::sleep(wait).await,
            answer => return answer,
        }
    }
    call().await
}

/// Waits for an unreachable engine while a container is down that only this engine can start again.
pub(super) async fn wait_until_reachable(engine: &dyn Engine, container: &ContainerId) {
    let start = Instant::now();
    while start.elapsed() < UNREACHABLE_TIMEOUT {
        match engine.is_listed(container).await {
            Err(error) if error.is_unreachable() => tokio::time::sleep(UNREACHABLE_POLL).await,
            Ok(_) | Err(_) => return,
        }
    }
}

/// Reports whether a retry may help. A refusal with a reason (4xx) stays a refusal; a server error, a lost connection or a
/// missing response may be temporary.
pub(super) fn is_transient(error: &EngineError) -> bool {
    error.is_passing() || matches!(error, EngineError::Refused { status: 500.., .. })
}

/// How often to compare a 404 with the engine's list before deciding whether it is true.
const CONFIRMATIONS: usize = 3;
const CONFIRMATION_WAIT: Duration = Duration::from_millis(100);

/// Inspects a container; `None` if it is gone. A 404 alone does not prove that: a proxy also returns 404 for a request that it
/// blocks.
pub(super) async fn inspect_opt(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<Option<Container>, EngineError> {
    for _ in 0..CONFIRMATIONS {
        match retry(|| engine.inspect(container)).await {
            Ok(container) => return Ok(Some(container)),
            Err(EngineError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        if !retry(|| engine.is_listed(container)).await? {
            return Ok(None);
        }
        tokio::time::sleep(CONFIRMATION_WAIT).await;
    }
    Err(EngineError::Refused {
        action: format!("inspect container `{}`", container.short()),
        status: 404,
        source: "the engine lists it, and answers 404 when it is asked about it".into(),
    })
}

/// Finds the container that has exactly this name.
pub(super) async fn find_by_name(
    engine: &dyn Engine,
    name: &ContainerName,
) -> Result<Option<ContainerSummary>, EngineError> {
    retry(|| engine.find_by_name(name)).await
}

/// Checks whether the container is gone after a call about it returned 404. Such a response can be about something else: if the
/// container's network is gone, the engine answers its start with "network … not found".
pub(super) async fn is_gone(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<bool, EngineError> {
    inspect_opt(engine, container)
        .await
        .map(|found| found.is_none())
}

/// Removes a container. A container that is already gone counts as removed.
pub(super) async fn ensure_removed(
    engine: &dyn Engine,
    container: &ContainerId,
    removal: Removal,
) -> Result<(), EngineError> {
    let removed = retry(|| async {
        match engine.remove(container, removal).await {
            // "Removal is already in progress": check until it is over.
            Err(error @ EngineError::Conflict { .. }) => match inspect_opt(engine, container).await
            {
                Ok(Some(now)) if now.state == State::Removing => Err(EngineError::Refused {
                    action: format!("remove container `{}`", container.short()),
                    status: 503,
                    source: "its removal is under way".into(),
                }),
                Ok(None) => Ok(()),
                Ok(Some(_)) | Err(_) => Err(error),
            },
            answer => answer,
        }
    });
    match removed.await {
        Err(error @ EngineError::NotFound { .. }) => match is_gone(engine, container).await? {
            true => Ok(()),
            false => Err(error),
        },
        answer => answer,
    }
}

pub(super) async fn ensure_named(
    engine: &dyn Engine,
    container: &ContainerId,
    name: &ContainerName,
) -> Result<(), EngineError> {
    retry(|| async {
        let now = engine.inspect(container).await?;
        if now.name == name.as_str() {
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
    retry(|| async {
        let now = engine.inspect(container).await?;
        if now.state == State::Running {
            Ok(())
        } else {
            engine.start(container).await
        }
    })
    .await
}
