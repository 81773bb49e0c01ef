//! When a replacement has proven itself: it ran for its grace time and, where it has a health check, is healthy.
//!
//! `restarting` is not running, and a program that exits and is started again by its restart policy has not stayed.

use std::time::{Duration, Instant};

use super::{StepError, steady};
use crate::container::{Container, ContainerId, Health, State};
use crate::engine::Engine;

/// How a replacement proves itself.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    /// How long it must keep running. A program that cannot work usually exits within seconds.
    pub grace: Duration,
    /// How long one with a health check may take to become healthy, beyond its own start period.
    pub health: Duration,
}

/// Over [`Proof::grace`] for one container, in seconds. Set by whoever runs it, for a program that is known to take its time.
pub const LABEL_GRACE: &str = "io.refit.grace-seconds";
/// Over [`Proof::health`] for one container, in seconds; `0` means that its health is not waited for.
pub const LABEL_HEALTH: &str = "io.refit.health-seconds";

/// The most that a label may ask for. A replacement that is waited for longer holds up a release.
const LABEL_SECONDS_MAX: u64 = 60 * 60;

/// The first looks at a container that proves itself follow each other so closely, as most that cannot work end at once. A look costs
/// the engine some 3 ms, beside other containers' gaps.
const LOOK_FIRST: Duration = Duration::from_millis(200);
/// And the last ones no further apart than this.
const LOOK_LAST: Duration = Duration::from_secs(2);

impl Proof {
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

/// Wait until the container has proven itself, or shown that it will not.
pub async fn prove(engine: &dyn Engine, id: &ContainerId, proof: Proof) -> Result<(), StepError> {
    let began = Instant::now();
    let mut first_start = None;
    loop {
        let Some(now) = steady::look(engine, id.as_str()).await? else {
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
        let proof = proof.for_container(&now);
        match verdict(&now, began.elapsed(), proof) {
            Some(verdict) => return verdict.map_err(StepError::Unfit),
            None => tokio::time::sleep(next_look(began.elapsed(), proof.grace)).await,
        }
    }
}

/// Half of what it has been running for: a failure is found out within half as much time again as it took. A look is due when the
/// grace time is over.
fn next_look(running_for: Duration, grace: Duration) -> Duration {
    let wait = (running_for / 2).clamp(LOOK_FIRST, LOOK_LAST);
    match grace.checked_sub(running_for) {
        Some(left) if !left.is_zero() => wait.min(left),
        _ => wait,
    }
}

/// What can be said of a container that has been running for so long; `None`: not yet.
fn verdict(now: &Container, running_for: Duration, proof: Proof) -> Option<Result<(), String>> {
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
    use crate::recreate::intent::tests::container;
    use serde_json::json;

    const PROOF: Proof = Proof {
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

    #[test]
    fn looks_grow_apart_and_one_is_due_at_the_end_of_the_grace_time() {
        let (mut at, mut looks) = (Duration::ZERO, vec![]);
        while at < Duration::from_secs(12) {
            at += next_look(at, PROOF.grace);
            looks.push(at.as_millis());
        }
        assert_eq!(
            looks,
            [
                200, 400, 600, 900, 1350, 2025, 3037, 4556, 5000, 7000, 9000, 11000, 13000
            ]
        );
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
