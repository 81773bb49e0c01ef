//! One replacement, from the look at the old container to its removal: the order of the steps, and beside each the way back.
//!
//! Nothing is stopped before its replacement exists, and nothing is removed before its replacement has proven itself. What is
//! not downtime happens outside it: the gap is stop, two renames and start. Everything is done by id, so a container that
//! somebody else put under the same name is never touched.

use std::time::{Duration, Instant};

use super::intent::{Intent, Replacement};
use super::{RecreateError, Step, StepError, candidate_name, parked_name};
use crate::container::{Container, ContainerId, Health, State};
use crate::engine::{Engine, EngineError, Removal};
use crate::image::{ImageId, ImageRef, Platform};

/// How a replacement proves itself.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    /// How long it must keep running. A program that cannot work usually exits within seconds.
    pub grace: Duration,
    /// How long one with a health check may take to become healthy, beyond its own start period.
    pub health: Duration,
}

/// How often a container that proves itself is looked at. A look costs the engine some 3 ms.
const PROOF_POLL: Duration = Duration::from_millis(200);

/// What the engine waits before it kills a container that has no stop timeout of its own.
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The image that the replacement is to run: on this machine, by the name it was asked for.
#[derive(Clone, Debug)]
pub struct NewImage {
    pub reference: ImageRef,
    pub id: ImageId,
}

/// A replacement that runs and has proven itself.
#[derive(Clone, Debug)]
pub struct Replaced {
    pub id: ContainerId,
    /// From the request to stop the old one until the new one was started.
    pub gap: Duration,
    /// The old container could not be removed; it is stopped, under this name.
    pub left_over: Option<String>,
}

/// Replace `old`, which runs, by one from `image`.
pub async fn replace(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
    platform: Option<&Platform>,
    proof: Proof,
    step: &(dyn Fn(Step) + Send + Sync),
) -> Result<Replaced, RecreateError> {
    let name = old.name.as_str();
    let aborted = |at, source: StepError| RecreateError::Aborted {
        name: name.to_owned(),
        step: at,
        source,
    };

    // Ahead of the gap. The old container runs on; whatever fails here leaves it as it is.
    step(Step::Inspect);
    let old_image = engine
        .image(old.image_id.as_str())
        .await
        .map_err(|error| aborted(Step::Inspect, no_old_image(error)))?;
    let wanted = Intent::of(old, &old_image.config).on(&image.reference.to_string(), &old.id, name);

    step(Step::Create);
    let new = match engine
        .create(&candidate_name(&old.id), &wanted.request, platform)
        .await
    {
        Ok(id) => id,
        // The name of a replacement can be taken only once: another Refit is at work on this container.
        Err(EngineError::Conflict { .. }) => {
            return Err(RecreateError::Busy {
                name: name.to_owned(),
            });
        }
        Err(error) => return Err(aborted(Step::Create, error.into())),
    };
    if let Err((at, source)) = prepare(engine, &new, &wanted, image, step).await {
        discard(engine, &new).await;
        return Err(aborted(at, source));
    }

    // The gap.
    step(Step::Stop);
    let stopping = Instant::now();
    let swapped = swap(engine, old, &new, step).await;
    let gap = stopping.elapsed();
    // Behind the gap.
    let proven = match swapped {
        Ok(()) => {
            step(Step::Prove);
            prove(engine, &new, proof)
                .await
                .map_err(|source| (Step::Prove, source))
        }
        Err(failed) => Err(failed),
    };
    if let Err((at, source)) = proven {
        return Err(put_back(engine, old, new, at, source).await);
    }

    step(Step::Remove);
    let left_over = match engine.remove(&old.id, Removal::IfStopped).await {
        Ok(()) | Err(EngineError::NotFound { .. }) => None,
        Err(error) => {
            tracing::warn!(
                container = name,
                old = old.id.as_str(),
                "the old container could not be removed: {error}"
            );
            Some(parked_name(&old.id))
        }
    };
    Ok(Replaced {
        id: new,
        gap,
        left_over,
    })
}

/// What is left to do before the old container may stop: the other networks, and a look at what the engine made.
async fn prepare(
    engine: &dyn Engine,
    new: &ContainerId,
    wanted: &Replacement,
    image: &NewImage,
    step: &(dyn Fn(Step) + Send + Sync),
) -> Result<(), (Step, StepError)> {
    step(Step::Connect);
    for (network, endpoint) in &wanted.networks {
        engine
            .connect(new, network, endpoint)
            .await
            .map_err(|error| (Step::Connect, error.into()))?;
    }
    step(Step::Verify);
    let made = engine
        .inspect(new.as_str())
        .await
        .map_err(|error| (Step::Verify, error.into()))?;
    if made.image_id != image.id {
        let problem = format!(
            "the tag moved meanwhile: `{}` now means {}, pulled was {}",
            image.reference, made.image_id, image.id
        );
        return Err((Step::Verify, StepError::Unfit(problem)));
    }
    Ok(())
}

/// Everything that happens while nothing runs under the name.
async fn swap(
    engine: &dyn Engine,
    old: &Container,
    new: &ContainerId,
    step: &(dyn Fn(Step) + Send + Sync),
) -> Result<(), (Step, StepError)> {
    // The name stays with the old container until it has exited: who looks in between sees a container that is stopping.
    engine
        .stop(&old.id, stop_timeout(old))
        .await
        .map_err(|error| (Step::Stop, error.into()))?;
    step(Step::Park);
    engine
        .rename(&old.id, &parked_name(&old.id))
        .await
        .map_err(|error| (Step::Park, error.into()))?;
    step(Step::Rename);
    engine
        .rename(new, &old.name)
        .await
        .map_err(|error| (Step::Rename, error.into()))?;
    step(Step::Start);
    engine
        .start(new)
        .await
        .map_err(|error| (Step::Start, error.into()))
}

/// Wait until the container has run for the grace time and, where it has a health check, is healthy. `restarting` is not
/// running: a container that exits and is started again by its restart policy has not proven itself.
async fn prove(engine: &dyn Engine, new: &ContainerId, proof: Proof) -> Result<(), StepError> {
    let started = Instant::now();
    let mut health_deadline = None;
    let mut restarts_seen = None;
    loop {
        let now = engine.inspect(new.as_str()).await?;
        if now.state != State::Running {
            return Err(StepError::Unfit(did_not_stay(&now)));
        }
        if *restarts_seen.get_or_insert(now.started) != now.started {
            return Err(StepError::Unfit(
                "it exited and was started again within its grace time".into(),
            ));
        }
        let deadline = *health_deadline.get_or_insert(started + start_period(&now) + proof.health);
        let graced = started.elapsed() >= proof.grace;
        match now.health {
            Health::Unhealthy => return Err(StepError::Unfit("it became unhealthy".into())),
            Health::Healthy if graced => return Ok(()),
            Health::None if graced && !now.has_healthcheck() => return Ok(()),
            Health::Starting | Health::None if graced && Instant::now() >= deadline => {
                let seconds = started.elapsed().as_secs();
                return Err(StepError::Unfit(format!(
                    "it did not become healthy within {seconds} s"
                )));
            }
            Health::Healthy | Health::Starting | Health::None => {}
        }
        tokio::time::sleep(PROOF_POLL).await;
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

/// The way back from anything after the request to stop: the old container under its name, running.
async fn put_back(
    engine: &dyn Engine,
    old: &Container,
    new: ContainerId,
    step: Step,
    source: StepError,
) -> RecreateError {
    let name = old.name.clone();
    match restore(engine, old, &new).await {
        Ok(()) => RecreateError::RolledBack { name, step, source },
        Err(undoing) => {
            let kept_as = engine
                .inspect(old.id.as_str())
                .await
                .map_or_else(|_| parked_name(&old.id), |old| old.name);
            RecreateError::Stranded {
                name,
                step,
                source,
                old: old.id.clone(),
                new,
                kept_as,
                undoing: Box::new(undoing),
            }
        }
    }
}

/// Each step looks at what is there first: which of them was done before the failure is not known, an answer may be all that
/// was lost.
async fn restore(
    engine: &dyn Engine,
    old: &Container,
    new: &ContainerId,
) -> Result<(), EngineError> {
    // It holds the name, and maybe ports and addresses. It ran for seconds at most and its data is in the volumes both share.
    match engine.remove(new, Removal::Force).await {
        Ok(()) | Err(EngineError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let now = engine.inspect(old.id.as_str()).await?;
    if now.name != old.name {
        engine.rename(&old.id, &old.name).await?;
    }
    if now.state != State::Running {
        engine.start(&old.id).await?;
    }
    Ok(())
}

/// Remove a replacement that never ran. What cannot be removed now is found by its label later.
async fn discard(engine: &dyn Engine, new: &ContainerId) {
    if let Err(error) = engine.remove(new, Removal::Force).await
        && !error.is_not_found()
    {
        tracing::warn!(
            container = new.as_str(),
            "an unused replacement could not be removed: {error}"
        );
    }
}

fn no_old_image(error: EngineError) -> StepError {
    match error {
        EngineError::NotFound { .. } => StepError::Unfit(
            "the image it was made from is no longer on this machine, so what was set by hand cannot be told from the image's defaults".into(),
        ),
        other => other.into(),
    }
}

fn stop_timeout(container: &Container) -> Duration {
    let seconds = container
        .config
        .get("StopTimeout")
        .and_then(serde_json::Value::as_u64);
    seconds.map_or(STOP_TIMEOUT_DEFAULT, Duration::from_secs)
}

/// The engine's documents give it in nanoseconds.
fn start_period(container: &Container) -> Duration {
    let nanoseconds = container
        .config
        .get("Healthcheck")
        .and_then(|check| check.get("StartPeriod"))
        .and_then(serde_json::Value::as_u64);
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}
