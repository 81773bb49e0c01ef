//! A replacement before it takes over: made under a temporary name, attached to its networks, and compared with what was asked
//! for. The old container runs on meanwhile, and is not touched.

use std::time::Duration;

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName};
use refit_model::recreation::Step;

use super::intent::{Intent, Replacement, network_to_connect};
use super::replace::{NewImage, ReplaceOptions};
use super::retry::{ensure_removed, find, may_pass};
use super::stop::StopTimeout;
use super::verify::differences;
use super::{RecreateError, StepError, names};

/// Why there is no replacement, and whether nothing of one is left.
pub(super) struct PrepareError {
    pub(super) error: RecreateError,
    pub(super) settled: bool,
}

impl PrepareError {
    pub(super) fn aborted(old: &Container, step: Step, source: StepError, settled: bool) -> Self {
        let name = old.name.clone();
        Self {
            error: RecreateError::Aborted { name, step, source },
            settled,
        }
    }
}

/// A replacement that was made.
pub(super) struct Made {
    pub(super) id: ContainerId,
    /// By the engine's clock.
    pub(super) created: jiff::Timestamp,
}

/// What the user asked for when `old` was made.
pub(super) async fn intent(
    engine: &dyn Engine,
    old: &Container,
    manner: &ReplaceOptions<'_>,
) -> Result<Intent, PrepareError> {
    (manner.step)(Step::Inspect);
    let error = match engine.image(old.image_id.as_str()).await {
        Ok(image) => return Ok(Intent::of(old, &image.config)),
        Err(error) => error,
    };
    if error.is_not_found()
        && let Some(record) = manner.images.get(&old.image_id).await
    {
        return Ok(Intent::of(old, &record.config));
    }
    let source = no_old_image(error, old);
    Err(PrepareError::aborted(old, Step::Inspect, source, true))
}

/// Made, attached and verified; or nothing is there, as far as that can be known.
pub(super) async fn create(
    engine: &dyn Engine,
    old: &Container,
    wanted: &Replacement,
    image: &NewImage,
    manner: &ReplaceOptions<'_>,
) -> Result<Made, PrepareError> {
    (manner.step)(Step::Create);
    let busy = || PrepareError {
        error: RecreateError::Busy {
            name: old.name.clone(),
        },
        settled: false,
    };
    if StopTimeout::of(old) == StopTimeout::Unlimited
        && let Ok(Some(_)) = find(engine, &names::stopping_name(&old.id)).await
    {
        return Err(busy());
    }
    let name = names::temporary_name(&old.id);
    let created = engine.create(&name, &wanted.request, manner.platform);
    let new = match created.await {
        Ok(id) => id,
        // The name can be taken only once: another Refit is at work on this container, or one died at it.
        Err(error @ EngineError::Conflict { .. }) => match is_taken_soon(engine, &name).await {
            true => return Err(busy()),
            false => return Err(PrepareError::aborted(old, Step::Create, error.into(), true)),
        },
        Err(error) => {
            let lost = may_pass(&error);
            // The engine may have made it all the same, or may be about to: then the name tells, now or later.
            if lost && let Ok(Some(made)) = find(engine, &name).await {
                let _ = ensure_removed(engine, &made.id, Removal::Discard).await;
            }
            return Err(PrepareError::aborted(
                old,
                Step::Create,
                error.into(),
                !lost,
            ));
        }
    };
    match check(engine, &new, wanted, image, manner).await {
        Ok(created) => Ok(Made { id: new, created }),
        Err((step, source)) => {
            let settled = discard(engine, &new).await;
            Err(PrepareError::aborted(old, step, source, settled))
        }
    }
}

/// A name is taken a moment before the container that it was taken for is listed.
const LISTED_WITHIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
];

/// Whether a conflict was about this name: an engine answers 409 for other reasons too.
async fn is_taken_soon(engine: &dyn Engine, name: &ContainerName) -> bool {
    for wait in LISTED_WITHIN {
        if let Ok(Some(_)) = find(engine, name).await {
            return true;
        }
        tokio::time::sleep(wait).await;
    }
    false
}

/// Remove a replacement that is not to be; whether it is gone.
pub(super) async fn discard(engine: &dyn Engine, new: &ContainerId) -> bool {
    ensure_removed(engine, new, Removal::Discard).await.is_ok()
}

/// The other networks, and a look at what the engine made. Returns when it was made.
async fn check(
    engine: &dyn Engine,
    new: &ContainerId,
    wanted: &Replacement,
    image: &NewImage,
    manner: &ReplaceOptions<'_>,
) -> Result<jiff::Timestamp, (Step, StepError)> {
    if !wanted.networks.is_empty() {
        (manner.step)(Step::Connect);
    }
    for (network, endpoint) in &wanted.networks {
        engine
            .connect(new, network_to_connect(network, endpoint), endpoint)
            .await
            .map_err(|error| (Step::Connect, error.into()))?;
    }
    (manner.step)(Step::Verify);
    let made = engine
        .inspect(new)
        .await
        .map_err(|error| (Step::Verify, error.into()))?;
    let unfit = |problem: String| Err((Step::Verify, StepError::Unfit(problem)));
    if made.image_id != image.id {
        return unfit(format!(
            "the tag moved meanwhile: `{}` now means {}, and {} was pulled",
            image.reference, made.image_id, image.id
        ));
    }
    let differences = differences(wanted, &made);
    if differences.is_empty() {
        return Ok(made.created);
    }
    unfit(format!(
        "the engine made something else: {}",
        differences.join("; ")
    ))
}

fn no_old_image(error: EngineError, old: &Container) -> StepError {
    match error {
        EngineError::NotFound { .. } => StepError::Unfit(format!(
            "the image it was made from, {}, is no longer on this machine, so what was set by hand cannot be told from the image's \
             defaults; pull or load that image again, or recreate the container by hand",
            old.image_id
        )),
        other => other.into(),
    }
}
