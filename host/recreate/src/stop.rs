//! Stops containers, bounds how long that may take, and finds out whether one has stopped if the engine's response got lost.

use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, StopMode};
use refit_model::container::{Container, ContainerId, State};
use serde_json::Value;

use super::retry::{inspect_opt, retry};

/// How long the engine waits before it kills a container that has no stop timeout of its own.
const ENGINE_DEFAULT: Duration = Duration::from_secs(10);

/// How long Refit waits for a container without a stop timeout. Databases that write everything out before they exit take
/// minutes. If a container takes longer, recovery starts it again once it has exited.
const UNLIMITED_WAIT: Duration = Duration::from_secs(60 * 60);

/// How often Refit inspects a container while the engine stops it. Most exit sooner.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often Refit inspects a container if the stop request may never have arrived.
const DOUBT_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long the container's program may take to exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopTimeout {
    /// The engine kills it after this time. Zero: at once.
    After(Duration),
    /// `--stop-timeout -1`: the engine waits for as long as it takes.
    Unlimited,
}

impl StopTimeout {
    /// Reads `Config.StopTimeout`: if it is absent, the engine's default applies; a negative number means no limit. Podman,
    /// whose number has no sign, writes the largest number for no limit.
    pub(super) fn from_container(container: &Container) -> Self {
        match container.config.get("StopTimeout") {
            None | Some(Value::Null) => Self::After(ENGINE_DEFAULT),
            Some(seconds) => match seconds.as_u64() {
                Some(seconds) if seconds < u64::from(u32::MAX) => {
                    Self::After(Duration::from_secs(seconds))
                }
                Some(_) | None => Self::Unlimited,
            },
        }
    }

    /// The longest time to wait for the container.
    pub(super) fn max_wait(self) -> Duration {
        match self {
            Self::After(timeout) => timeout,
            Self::Unlimited => UNLIMITED_WAIT,
        }
    }

    fn to_stop_mode(self) -> StopMode {
        StopMode::Graceful {
            limit: self.max_wait(),
        }
    }
}

/// Sends one stop request and checks in parallel whether the container has stopped: if the engine's response gets lost, waiting
/// for it would cost the whole time limit of the call while nothing runs under the name.
pub(super) async fn stop(engine: &dyn Engine, container: &Container) -> Result<(), EngineError> {
    let mut answer = engine.stop(
        &container.id,
        StopTimeout::from_container(container).to_stop_mode(),
    );
    let mut seen_stopped = false;
    // The loop ends with the call, which has a time limit.
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        tokio::select! {
            answer = &mut answer => return answer,
            now = engine.inspect(&container.id) => {
                let stopped = now.is_ok_and(|now| now.state == State::Exited);
                // The response itself follows within moments, if it is still to come.
                if stopped && seen_stopped {
                    return Ok(());
                }
                seen_stopped = stopped;
            }
        }
    }
}

/// Stops a container with its own stop signal and timeout. Repeats the request if a response got lost.
pub(super) async fn ensure_stopped(
    engine: &dyn Engine,
    container: &Container,
) -> Result<(), EngineError> {
    let mode = StopTimeout::from_container(container).to_stop_mode();
    retry(|| engine.stop(&container.id, mode)).await
}

/// Kills a container. Used for a discarded replacement that holds ports and addresses that the old container needs.
pub(super) async fn ensure_killed(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<(), EngineError> {
    retry(|| engine.stop(container, StopMode::Immediate)).await
}

/// Checks whether a container has stopped after the response to a stop request got lost. If it has a stop timeout, Refit
/// repeats the request, and the engine kills it in the end. If it has none, Refit only waits, since many programs treat a
/// second signal as an order to drop everything.
pub(super) async fn resolve_stop(
    engine: &dyn Engine,
    container: &Container,
) -> Result<bool, EngineError> {
    match StopTimeout::from_container(container) {
        StopTimeout::After(_) => ensure_stopped(engine, container).await.map(|()| true),
        StopTimeout::Unlimited => wait_until_exited(engine, &container.id, UNLIMITED_WAIT).await,
    }
}

/// Waits for a stop that a dead process may have requested: the engine keeps stopping the container for as long as its timeout
/// allows. Only after that is it known whether the container runs.
pub(super) async fn wait_for_stop(
    engine: &dyn Engine,
    container: &Container,
) -> Result<(), EngineError> {
    // A container without a timeout has its own marker, see `names`.
    if let StopTimeout::After(timeout) = StopTimeout::from_container(container) {
        wait_until_exited(engine, &container.id, timeout + 2 * DOUBT_POLL_INTERVAL).await?;
    }
    Ok(())
}

async fn wait_until_exited(
    engine: &dyn Engine,
    container: &ContainerId,
    limit: Duration,
) -> Result<bool, EngineError> {
    let until = Instant::now() + limit;
    loop {
        let now = inspect_opt(engine, container).await?;
        if now.is_none_or(|now| now.state != State::Running) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(DOUBT_POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::tests::container;
    use serde_json::json;

    #[test]
    fn stop_timeout_is_read_as_the_engine_reads_it() {
        for (config, expected) in [
            (json!({}), StopTimeout::After(ENGINE_DEFAULT)),
            (
                json!({"StopTimeout": null}),
                StopTimeout::After(ENGINE_DEFAULT),
            ),
            (
                json!({"StopTimeout": 0}),
                StopTimeout::After(Duration::ZERO),
            ),
            (
                json!({"StopTimeout": 330}),
                StopTimeout::After(Duration::from_secs(330)),
            ),
            (json!({"StopTimeout": -1}), StopTimeout::Unlimited),
            (json!({"StopTimeout": -7}), StopTimeout::Unlimited),
            (json!({"StopTimeout": u32::MAX}), StopTimeout::Unlimited),
            (json!({"StopTimeout": u64::MAX}), StopTimeout::Unlimited),
        ] {
            let stop_timeout = StopTimeout::from_container(&container(config.clone(), json!({})));
            assert_eq!(stop_timeout, expected, "{config}");
        }
    }
}
