//! Decides when a replacement is healthy: it has run for its grace time and, if it has a health check, that check passes.
//!
//! `restarting` does not count as running, and a program that exits and is restarted by its restart policy has not stayed up.
//!
//! Refit listens to the engine's events, so it notices an exit at once, and its polling does not lengthen other containers'
//! downtimes. If an engine sends no events, Refit polls.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, Health, HealthCheckRun, State};

use super::{StepError, retry};

/// The conditions under which a replacement counts as healthy.
#[derive(Clone, Copy, Debug)]
pub struct ReadinessCheck {
    /// How long the container must keep running. A program that cannot work usually exits within seconds.
    pub grace: Duration,
    /// How long a container with a health check may take to become healthy, beyond its start period.
    pub health: Duration,
}

/// Overrides [`ReadinessCheck::grace`] for one container, in seconds. The container's operator sets it for a program that is
/// known to be slow.
pub const LABEL_GRACE: &str = "io.refit.grace-seconds";
/// Overrides [`ReadinessCheck::health`] for one container, in seconds; `0` means that Refit does not wait for its health.
pub const LABEL_HEALTH: &str = "io.refit.health-seconds";

/// The largest value of a label. A replacement that takes longer would hold up a release.
const LABEL_SECONDS_MAX: u64 = 60 * 60;

/// The shortest poll interval without events, as most broken containers exit at once. A poll costs the engine some 3 ms, during
/// other containers' downtimes.
const POLL_MIN: Duration = Duration::from_millis(200);
/// The longest poll interval without events.
const POLL_MAX: Duration = Duration::from_secs(2);
/// The poll interval with events: Refit polls at least this often.
const POLL_WITH_EVENTS: Duration = Duration::from_secs(10);

/// The engine's events about a container, until the stream ends.
type Events<'a> = Option<BoxStream<'a, Result<(), EngineError>>>;

impl ReadinessCheck {
    /// Applies the labels of the container.
    pub fn for_container(self, container: &Container) -> Self {
        let seconds = |label: &str| {
            container
                .label(label)?
                .trim()
                .parse::<u64>()
                .ok()
                .map(|it| Duration::from_secs(it.min(LABEL_SECONDS_MAX)))
        };
        Self {
            grace: seconds(LABEL_GRACE).unwrap_or(self.grace),
            health: seconds(LABEL_HEALTH).unwrap_or(self.health),
        }
    }

    /// Returns the longest time that this container may take to become healthy.
    pub fn max_wait(self, container: &Container) -> Duration {
        self.grace.max(start_period(container) + self.health)
    }
}

/// Waits until the container is healthy, or shows that it will not be. Returns when the healthy container was started.
pub async fn wait_until_healthy(
    engine: &dyn Engine,
    id: &ContainerId,
    proof: ReadinessCheck,
) -> Result<Option<jiff::Timestamp>, StepError> {
    poll_until_decided(engine, id, proof, None).await
}

/// The state of a container before a change, after which it must become healthy again.
#[derive(Clone, Copy)]
pub(super) struct Baseline {
    /// The container must not have been started since this time.
    pub(super) started: Option<jiff::Timestamp>,
    /// The newest run of its health check before the change.
    pub(super) health_check: Option<HealthCheckRun>,
}

/// Waits until a changed container is healthy again. The grace time is `proof.grace`, whatever the container's labels say.
/// Earlier health check results do not count if the next run comes soon enough to wait for it.
pub(super) async fn wait_until_healthy_again(
    engine: &dyn Engine,
    id: &ContainerId,
    proof: ReadinessCheck,
    baseline: Baseline,
) -> Result<Option<jiff::Timestamp>, StepError> {
    poll_until_decided(engine, id, proof, Some(baseline)).await
}

async fn poll_until_decided(
    engine: &dyn Engine,
    id: &ContainerId,
    proof: ReadinessCheck,
    baseline: Option<Baseline>,
) -> Result<Option<jiff::Timestamp>, StepError> {
    let start = Instant::now();
    let mut first_start = baseline.map(|baseline| baseline.started);
    let mut events: Option<Events<'_>> = None;
    loop {
        let Some(now) = retry::inspect_opt(engine, id).await? else {
            return Err(StepError::Unfit("somebody removed it".into()));
        };
        if now.state != State::Running {
            return Err(StepError::Unfit(describe_exit(&now)));
        }
        if *first_start.get_or_insert(now.started) != now.started {
            return Err(StepError::Unfit(
                "it exited and was started again within its grace time".into(),
            ));
        }
        let proof = match baseline {
            Some(_) => ReadinessCheck {
                health: proof.for_container(&now).health,
                ..proof
            },
            None => proof.for_container(&now),
        };
        let now = match baseline {
            Some(baseline) => ignore_stale_health(now, baseline, proof),
            None => now,
        };
        if let Some(verdict) = judge(&now, start.elapsed(), proof) {
            return verdict.map(|()| now.started).map_err(StepError::Unfit);
        }
        // Subscribe from its start on, to also receive what happened between the inspection and the subscription.
        let events = events.get_or_insert_with(|| now.started.map(|at| engine.events(id, at)));
        let due = [proof.grace, proof.max_wait(&now)];
        // The engine sends no event for a health check that passes again.
        let has_events = events.is_some() && baseline.is_none();
        let wait = next_poll(start.elapsed(), due, has_events);
        if let Ok(Err(ended)) = tokio::time::timeout(wait, wait_for_event(events)).await {
            tracing::debug!(
                container = now.name,
                "engine events ended, polling instead: {ended}"
            );
        }
    }
}

/// Verifies that a healthy container still runs as it did when it became healthy.
pub(super) async fn ensure_still_running(
    engine: &dyn Engine,
    id: &ContainerId,
    started: Option<jiff::Timestamp>,
) -> Result<(), StepError> {
    let Some(now) = retry::inspect_opt(engine, id).await? else {
        return Err(StepError::Unfit("somebody removed it".into()));
    };
    if now.state != State::Running {
        return Err(StepError::Unfit(describe_exit(&now)));
    }
    if now.started != started {
        return Err(StepError::Unfit(
            "it exited and was started again after it had passed its check".into(),
        ));
    }
    if now.has_healthcheck() && now.health == Health::Unhealthy {
        return Err(StepError::Unfit("it became unhealthy".into()));
    }
    Ok(())
}

/// Ignores a `healthy` that is older than the change: it counts once a health check that started later has passed. If checks
/// are so far apart that the next one may come too late, the engine's present state counts.
fn ignore_stale_health(now: Container, baseline: Baseline, proof: ReadinessCheck) -> Container {
    let is_stale = match (now.last_health_check, baseline.health_check) {
        (Some(run), Some(baseline)) => run.started <= baseline.started || run.exit_code != 0,
        (Some(run), None) => run.exit_code != 0,
        (None, _) => true,
    };
    if now.health == Health::Healthy && is_stale && check_interval(&now) < proof.health {
        return Container {
            health: Health::Starting,
            ..now
        };
    }
    now
}

/// The longest time between the ends of two runs of the health check, with the engine's defaults for values that are absent or
/// zero.
fn check_interval(container: &Container) -> Duration {
    const ENGINE_DEFAULT: Duration = Duration::from_secs(30);
    let check = container.config.get("Healthcheck");
    let duration = |key: &str| {
        let nanoseconds = check.and_then(|check| check.get(key)?.as_u64());
        match nanoseconds {
            None | Some(0) => ENGINE_DEFAULT,
            Some(nanoseconds) => Duration::from_nanos(nanoseconds),
        }
    };
    duration("Interval") + duration("Timeout")
}

/// Waits for the next event. Fails when the stream ends.
async fn wait_for_event(events: &mut Events<'_>) -> Result<(), String> {
    let Some(stream) = events else {
        return std::future::pending().await;
    };
    let ended = match stream.next().await {
        Some(Ok(())) => return Ok(()),
        Some(Err(error)) => error.to_string(),
        None => "the engine tells no more".into(),
    };
    *events = None;
    Err(ended)
}

/// Returns the time until the next poll. Polls are due when the grace time is over, and when all time is over. Before that,
/// without events, a poll follows after half of the running time: Refit detects a failure within one and a half times the time
/// that it took.
fn next_poll(running_for: Duration, due: [Duration; 2], has_events: bool) -> Duration {
    let wait = if has_events {
        POLL_WITH_EVENTS
    } else {
        (running_for / 2).clamp(POLL_MIN, POLL_MAX)
    };
    let left = due.into_iter().map(|due| due.saturating_sub(running_for));
    left.filter(|left| !left.is_zero())
        .fold(wait, Duration::min)
}

/// Judges a container that has been running for this long; `None`: not decided yet.
fn judge(
    now: &Container,
    running_for: Duration,
    proof: ReadinessCheck,
) -> Option<Result<(), String>> {
    let graced = running_for >= proof.grace;
    if !now.has_healthcheck() || proof.health.is_zero() {
        return graced.then_some(Ok(()));
    }
    match now.health {
        Health::Unhealthy => Some(Err("it became unhealthy".into())),
        Health::Healthy => graced.then_some(Ok(())),
        Health::Starting | Health::None => (running_for >= proof.max_wait(now)).then(|| {
            Err(format!(
                "it did not become healthy within {} s",
                running_for.as_secs()
            ))
        }),
    }
}

fn describe_exit(container: &Container) -> String {
    let mut text = format!("it did not stay up: it is {}", container.state);
    if let Some(code) = container
        .exit_code
        .filter(|_| container.state == State::Exited)
    {
        text.push_str(&format!(" with status {code}"));
    }
    if let Some(error) = &container.error {
        text.push_str(&format!(" ({error})"));
    }
    text
}

/// Reads the start period, which the engine gives in nanoseconds.
fn start_period(container: &Container) -> Duration {
    let check = container.config.get("Healthcheck");
    let nanoseconds = check
        .and_then(|check| check.get("StartPeriod"))
        .and_then(serde_json::Value::as_u64);
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::tests::container;
    use serde_json::json;

    const PROOF: ReadinessCheck = ReadinessCheck {
        grace: Duration::from_secs(5),
        health: Duration::from_secs(60),
    };

    fn checked(health: Health) -> Container {
        let config =
            json!({"Healthcheck": {"Test": ["CMD", "/h"], "StartPeriod": 30_000_000_000_u64}});
        Container {
            health,
            ..container(config, json!({}))
        }
    }

    #[track_caller]
    fn check(now: &Container, seconds: u64, expected: Option<bool>) {
        let verdict = judge(now, Duration::from_secs(seconds), PROOF.for_container(now));
        assert_eq!(verdict.map(|verdict| verdict.is_ok()), expected);
    }

    #[test]
    fn without_health_check_staying_up_suffices() {
        let plain = container(json!({}), json!({}));
        check(&plain, 4, None);
        check(&plain, 5, Some(true));
        let switched_off = container(json!({"Healthcheck": {"Test": ["NONE"]}}), json!({}));
        check(&switched_off, 5, Some(true));
    }

    #[test]
    fn health_check_must_pass_and_start_period_counts() {
        check(&checked(Health::Healthy), 4, None);
        check(&checked(Health::Healthy), 5, Some(true));
        check(&checked(Health::Unhealthy), 1, Some(false));
        check(&checked(Health::Starting), 89, None);
        check(&checked(Health::Starting), 90, Some(false));
    }

    #[track_caller]
    fn check_polls(has_events: bool, until: Duration, expected: &[u128]) {
        let (mut at, mut polls) = (Duration::ZERO, vec![]);
        while at < until {
            at += next_poll(at, [PROOF.grace, PROOF.health], has_events);
            polls.push(at.as_millis());
        }
        assert_eq!(polls, expected);
    }

    #[test]
    fn polls_grow_apart_and_hit_end_of_grace_time() {
        let without_events = [
            200, 400, 600, 900, 1350, 2025, 3037, 4556, 5000, 7000, 9000, 11000, 13000,
        ];
        check_polls(false, Duration::from_secs(12), &without_events);
        let with_events = [5_000, 15_000, 25_000, 35_000, 45_000, 55_000, 60_000];
        check_polls(true, PROOF.health, &with_events);
    }

    #[test]
    fn label_overrides_readiness_check() {
        let config = json!({"Healthcheck": {"Test": ["CMD", "/h"]}, "Labels": {LABEL_GRACE: "1", LABEL_HEALTH: "0"}});
        let labelled = Container {
            health: Health::Starting,
            ..container(config, json!({}))
        };
        check(&labelled, 0, None);
        check(&labelled, 1, Some(true));
    }
}
