//! How a container is stopped, how long that may take, and what is known of it where the answer got lost.

use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, StopMode};
use refit_model::container::{Container, ContainerId, State};
use serde_json::Value;

use super::retry::{again, look};

/// What the engine waits before it kills a container that has no stop timeout of its own.
const ENGINE_DEFAULT: Duration = Duration::from_secs(10);

/// How long Refit waits for a container without a stop timeout. Databases that write everything out before they end take minutes.
/// One that takes longer is left to recovery, which starts it again when it has ended.
const UNLIMITED_WAIT: Duration = Duration::from_secs(60 * 60);

/// How often a container that is being stopped is looked at. Most are gone sooner.
const WATCH: Duration = Duration::from_secs(1);

/// The same where the request to stop it may never have arrived.
const LOOK: Duration = Duration::from_millis(500);

/// How long the container's own program may take to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopTimeout {
    /// Then the engine kills it. Zero: at once.
    After(Duration),
    /// `--stop-timeout -1`: the engine waits for as long as it takes.
    Unlimited,
}

impl StopTimeout {
    /// `Config.StopTimeout`: absent means the engine's default, a negative number no limit. Podman, whose number has no sign,
    /// writes the largest one for that.
    pub(super) fn of(container: &Container) -> Self {
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

    /// How long to wait for it at most.
    pub(super) fn bound(self) -> Duration {
        match self {
            Self::After(timeout) => timeout,
            Self::Unlimited => UNLIMITED_WAIT,
        }
    }

    fn mode(self) -> StopMode {
        StopMode::Graceful {
            limit: self.bound(),
        }
    }
}

/// Ask it to stop once, and look whether it has: an engine whose answer got lost would otherwise cost the whole time limit of
/// the call, while nothing runs under the name.
pub(super) async fn stop(engine: &dyn Engine, container: &Container) -> Result<(), EngineError> {
    let mut answer = engine.stop(&container.id, StopTimeout::of(container).mode());
    let mut seen_stopped = false;
    // Ends with the call, which has a time limit.
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = tokio::time::sleep(WATCH) => {}
        }
        tokio::select! {
            answer = &mut answer => return answer,
            now = engine.inspect(&container.id) => {
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

/// By its own stop signal and timeout; asked again where an answer got lost.
pub(super) async fn ensure_stopped(
    engine: &dyn Engine,
    container: &Container,
) -> Result<(), EngineError> {
    let mode = StopTimeout::of(container).mode();
    again(|| engine.stop(&container.id, mode)).await
}

/// Killed. For a replacement that is not to be, which holds ports and addresses that the old container needs.
pub(super) async fn ensure_killed(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<(), EngineError> {
    again(|| engine.stop(container, StopMode::Immediate)).await
}

/// After a stop whose answer got lost: whether it does not run any more. One with a stop timeout is asked again, and the engine
/// ends it. One without is only waited for, since many programs take a second signal for an order to drop everything.
pub(super) async fn settle_stop(
    engine: &dyn Engine,
    container: &Container,
) -> Result<bool, EngineError> {
    match StopTimeout::of(container) {
        StopTimeout::After(_) => ensure_stopped(engine, container).await.map(|()| true),
        StopTimeout::Unlimited => has_exited_within(engine, &container.id, UNLIMITED_WAIT).await,
    }
}

/// Whoever died may have asked for the stop of a container that still runs: the engine goes on with it for as long as the
/// container may take. Only then can it be said whether it runs.
pub(super) async fn wait_out_a_stop(
    engine: &dyn Engine,
    container: &Container,
) -> Result<(), EngineError> {
    // A container without a timeout has a trace of its own, see `names`.
    if let StopTimeout::After(timeout) = StopTimeout::of(container) {
        has_exited_within(engine, &container.id, timeout + 2 * LOOK).await?;
    }
    Ok(())
}

async fn has_exited_within(
    engine: &dyn Engine,
    container: &ContainerId,
    limit: Duration,
) -> Result<bool, EngineError> {
    let until = Instant::now() + limit;
    loop {
        let now = look(engine, container).await?;
        if now.is_none_or(|now| now.state != State::Running) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
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
            let found = StopTimeout::of(&container(config.clone(), json!({})));
            assert_eq!(found, expected, "{config}");
        }
    }
}
