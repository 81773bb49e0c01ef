//! Calls that may be made again: what they bring about is looked at first, so an answer that got lost does no harm.
//!
//! Finishing and undoing a replacement must not fail because one call of the engine did. Nothing here is tried without end.

use std::future::Future;
use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName, ContainerSummary, State};

/// What is waited before each further try.
const WAITS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// How long an engine that nobody reaches is waited for. One that is restarted is back within seconds, one that is upgraded within
/// a minute or two, and until then nothing can be done but to wait. Recovery goes on where this ends.
const AWAY: Duration = Duration::from_secs(2 * 60);
const AWAY_WAIT: Duration = Duration::from_secs(2);

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

/// Wait for an engine that nobody reaches, while a container is down that only it can start again.
pub(super) async fn until_reachable(engine: &dyn Engine, container: &ContainerId) {
    let began = Instant::now();
    while began.elapsed() < AWAY {
        match engine.is_listed(container).await {
            Err(error) if error.is_unreachable() => tokio::time::sleep(AWAY_WAIT).await,
            Ok(_) | Err(_) => return,
        }
    }
}

/// A refusal with a reason (4xx) stays one; a server error, a lost connection or silence may not.
pub(super) fn may_pass(error: &EngineError) -> bool {
    error.is_passing() || matches!(error, EngineError::Refused { status: 500.., .. })
}

/// How often a 404 is held against the engine's list before it is believed or not.
const CONFIRMATIONS: usize = 3;
const CONFIRMATION_WAIT: Duration = Duration::from_millis(100);

/// As the engine has it; `None` where it is gone. A 404 alone does not say that: a proxy answers so to what it does not let
/// through.
pub(super) async fn look(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<Option<Container>, EngineError> {
    for _ in 0..CONFIRMATIONS {
        match again(|| engine.inspect(container)).await {
            Ok(found) => return Ok(Some(found)),
            Err(EngineError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        if !again(|| engine.is_listed(container)).await? {
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

/// The container that has exactly this name.
pub(super) async fn find(
    engine: &dyn Engine,
    name: &ContainerName,
) -> Result<Option<ContainerSummary>, EngineError> {
    again(|| engine.find_by_name(name)).await
}

/// Whether the container is gone, after a call about it was answered 404. Such an answer can be about something else: the start of a
/// container whose network is gone is answered "network … not found".
pub(super) async fn is_gone(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<bool, EngineError> {
    look(engine, container).await.map(|found| found.is_none())
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
            Err(error @ EngineError::Conflict { .. }) => match look(engine, container).await {
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
    again(|| async {
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
    again(|| async {
        let now = engine.inspect(container).await?;
        if now.state == State::Running {
            Ok(())
        } else {
            engine.start(container).await
        }
    })
    .await
}
