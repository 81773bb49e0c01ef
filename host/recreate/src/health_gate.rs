//! When a replacement has proven itself: it ran for its grace time and, where it has a health check, is healthy.
//!
//! `restarting` is not running, and a program that exits and is started again by its restart policy has not stayed.
//!
//! The engine tells when there is something to see, so that an exit is noticed at once and other containers' gaps are not made
//! longer by looks. An engine that does not tell is looked at again and again.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, Health, HealthCheckRun, State};

use super::{StepError, retry};

/// How a replacement proves itself.
#[derive(Clone, Copy, Debug)]
pub struct ReadinessCheck {
    /// How long it must keep running. A program that cannot work usually exits within seconds.
    pub grace: Duration,
    /// How long one with a health check may take to become healthy, beyond its own start period.
    pub health: Duration,
}

/// Over [`ReadinessCheck::grace`] for one container, in seconds. Set by whoever runs it, for a program that is known to take its time.
pub const LABEL_GRACE: &str = "io.refit.grace-seconds";
/// Over [`ReadinessCheck::health`] for one container, in seconds; `0` means that its health is not waited for.
pub const LABEL_HEALTH: &str = "io.refit.health-seconds";

/// The most that a label may ask for. A replacement that is waited for longer holds up a release.
const LABEL_SECONDS_MAX: u64 = 60 * 60;

/// The first looks at a container of which the engine tells nothing follow each other so closely, as most that cannot work end at
/// once. A look costs the engine some 3 ms, beside other containers' gaps.
const LOOK_FIRST: Duration = Duration::from_millis(200);
/// And the last ones no further apart than this.
const LOOK_LAST: Duration = Duration::from_secs(2);
/// After so long we look whether or not the engine has told anything.
const LOOK_UNTOLD: Duration = Duration::from_secs(10);

/// What the engine tells of a container, as long as it does.
type Events<'a> = Option<BoxStream<'a, Result<(), EngineError>>>;

impl ReadinessCheck {
    /// With what the container's own labels say.
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

    /// How long the proof of this container may take at most.
    pub fn longest(self, container: &Container) -> Duration {
        self.grace.max(start_period(container) + self.health)
    }
}

/// Wait until the container has proven itself, or shown that it will not. Returns when it was started that did.
pub async fn prove(
    engine: &dyn Engine,
    id: &ContainerId,
    proof: ReadinessCheck,
) -> Result<Option<jiff::Timestamp>, StepError> {
    watch(engine, id, proof, None).await
}

/// What is known of a container that proves itself again, after something about it was changed.
#[derive(Clone, Copy)]
pub(super) struct Before {
    /// It must not have been started since.
    pub(super) started: Option<jiff::Timestamp>,
    /// The newest run of its health check that was about it as it was before.
    pub(super) health_check: Option<HealthCheckRun>,
}

/// The same of one that ran before, for `proof.grace` whatever its labels say: what its health check said then counts no more, where the next run of it can be waited for.
pub(super) async fn prove_since(
    engine: &dyn Engine,
    id: &ContainerId,
    proof: ReadinessCheck,
    before: Before,
) -> Result<Option<jiff::Timestamp>, StepError> {
    watch(engine, id, proof, Some(before)).await
}

async fn watch(
    engine: &dyn Engine,
    id: &ContainerId,
    proof: ReadinessCheck,
    before: Option<Before>,
) -> Result<Option<jiff::Timestamp>, StepError> {
    let began = Instant::now();
    let mut first_start = before.map(|before| before.started);
    let mut events: Option<Events<'_>> = None;
    loop {
        let Some(now) = retry::look(engine, id).await? else {
            return Err(StepError::Unfit("somebody removed it".into()));
        };
        if now.state != State::Running {
            return Err(StepError::Unfit(did_not_stay(&now)));
        }
        if *first_start.get_or_insert(now.started) != now.started {
            return Err(StepError::Unfit(
                "it exited and was started again within its grace time".into(),
            ));
        }
        let proof = match before {
            Some(_) => ReadinessCheck {
                health: proof.for_container(&now).health,
                ..proof
            },
            None => proof.for_container(&now),
        };
        let now = match before {
            Some(before) => with_health_since(now, before, proof),
            None => now,
        };
        if let Some(verdict) = verdict(&now, began.elapsed(), proof) {
            return verdict.map(|()| now.started).map_err(StepError::Unfit);
        }
        // From its start on: what happened between that look and the engine's first word is told too.
        let events = events.get_or_insert_with(|| now.started.map(|at| engine.events(id, at)));
        let due = [proof.grace, proof.longest(&now)];
        // A health check that passes once more is no news to the engine.
        let is_told = events.is_some() && before.is_none();
        let wait = next_look(began.elapsed(), due, is_told);
        if let Ok(Err(ended)) = tokio::time::timeout(wait, next_event(events)).await {
            tracing::debug!(
                container = now.name,
                "looking instead of listening: {ended}"
            );
        }
    }
}

/// One that has proven itself still runs as it did then.
pub(super) async fn check_again(
    engine: &dyn Engine,
    id: &ContainerId,
    started: Option<jiff::Timestamp>,
) -> Result<(), StepError> {
    let Some(now) = retry::look(engine, id).await? else {
        return Err(StepError::Unfit("somebody removed it".into()));
    };
    if now.state != State::Running {
        return Err(StepError::Unfit(did_not_stay(&now)));
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

/// `healthy` counts once a health check that began later has passed. Where checks are so far apart that the next one may not come in
/// time, what the engine says is taken as it is.
fn with_health_since(now: Container, before: Before, proof: ReadinessCheck) -> Container {
    let is_stale = match (now.last_health_check, before.health_check) {
        (Some(run), Some(before)) => run.started <= before.started || run.exit_code != 0,
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

/// Between the end of one run of the health check and the end of the next one at most, with the engine's defaults for what is
/// absent or zero.
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

/// Returns when there is something to see.
async fn next_event(events: &mut Events<'_>) -> Result<(), String> {
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

/// A look is due when the grace time is over, and when all time is. Before that, where the engine tells nothing, after half of what
/// it has been running for: a failure is found out within half as much time again as it took.
fn next_look(running_for: Duration, due: [Duration; 2], is_told: bool) -> Duration {
    let wait = if is_told {
        LOOK_UNTOLD
    } else {
        (running_for / 2).clamp(LOOK_FIRST, LOOK_LAST)
    };
    let left = due.into_iter().map(|due| due.saturating_sub(running_for));
    left.filter(|left| !left.is_zero())
        .fold(wait, Duration::min)
}

/// What can be said of a container that has been running for so long; `None`: not yet.
fn verdict(
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
        Health::Starting | Health::None => (running_for >= proof.longest(now)).then(|| {
            Err(format!(
                "it did not become healthy within {} s",
                running_for.as_secs()
            ))
        }),
    }
}

fn did_not_stay(container: &Container) -> String {
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

/// The engine's documents give it in nanoseconds.
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
        let said = verdict(now, Duration::from_secs(seconds), PROOF.for_container(now));
        assert_eq!(said.map(|said| said.is_ok()), expected);
    }

    #[test]
    fn without_a_health_check_it_must_only_stay() {
        let plain = container(json!({}), json!({}));
        check(&plain, 4, None);
        check(&plain, 5, Some(true));
        let switched_off = container(json!({"Healthcheck": {"Test": ["NONE"]}}), json!({}));
        check(&switched_off, 5, Some(true));
    }

    #[test]
    fn with_one_it_must_become_healthy_and_its_start_period_counts() {
        check(&checked(Health::Healthy), 4, None);
        check(&checked(Health::Healthy), 5, Some(true));
        check(&checked(Health::Unhealthy), 1, Some(false));
        check(&checked(Health::Starting), 89, None);
        check(&checked(Health::Starting), 90, Some(false));
    }

    #[track_caller]
    fn looks(is_told: bool, until: Duration, expected: &[u128]) {
        let (mut at, mut looks) = (Duration::ZERO, vec![]);
        while at < until {
            at += next_look(at, [PROOF.grace, PROOF.health], is_told);
            looks.push(at.as_millis());
        }
        assert_eq!(looks, expected);
    }

    #[test]
    fn looks_grow_apart_and_one_is_due_at_the_end_of_the_grace_time() {
        let often = [
            200, 400, 600, 900, 1350, 2025, 3037, 4556, 5000, 7000, 9000, 11000, 13000,
        ];
        looks(false, Duration::from_secs(12), &often);
        let told = [5_000, 15_000, 25_000, 35_000, 45_000, 55_000, 60_000];
        looks(true, PROOF.health, &told);
    }

    #[test]
    fn a_label_speaks_for_its_container() {
        let config = json!({"Healthcheck": {"Test": ["CMD", "/h"]}, "Labels": {LABEL_GRACE: "1", LABEL_HEALTH: "0"}});
        let labelled = Container {
            health: Health::Starting,
            ..container(config, json!({}))
        };
        check(&labelled, 0, None);
        check(&labelled, 1, Some(true));
    }
}
