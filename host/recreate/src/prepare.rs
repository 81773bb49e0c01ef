//! Prepares a replacement: creates it under a temporary name, connects it to its networks, and compares it with the request.
//! The old container keeps running, and Refit does not touch it.

use std::time::Duration;

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName};
use refit_model::recreation::Step;

use super::intent::{Intent, Replacement, network_to_connect};
use super::replace::{NewImage, ReplaceOptions};
use super::retry::{ensure_removed, find_by_name, is_transient};
use super::stop::StopTimeout;
use super::verify::find_differences;
use super::{RecreateError, StepError, names};

/// Why there is no replacement, and whether nothing of it is left.
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

/// A new container that was created.
pub(super) struct CreatedContainer {
    pub(super) id: ContainerId,
    /// When the container was created, by the engine's clock.
    pub(super) created: jiff::Timestamp,
}

/// Loads the intent: what the user requested when `old` was created.
pub(super) async fn load_intent(
    engine: &dyn Engine,
    old: &Container,
    options: &ReplaceOptions<'_>,
) -> Result<Intent, PrepareError> {
    (options.step)(Step::Inspect);
    let error = match engine.image(old.image_id.as_str()).await {
        Ok(image) => return Ok(Intent::from_container(old, &image.config)),
        Err(error) => error,
    };
    if error.is_not_found()
        && let Some(record) = options.images.get(&old.image_id).await
    {
        return Ok(Intent::from_container(old, &record.config));
    }
    let source = missing_image_error(error, old);
    Err(PrepareError::aborted(old, Step::Inspect, source, true))
}

/// Creates, connects and verifies the replacement. If that fails, nothing is left of it, as far as that can be known.
pub(super) async fn create(
    engine: &dyn Engine,
    old: &Container,
    wanted: &Replacement,
    image: &NewImage,
    options: &ReplaceOptions<'_>,
) -> Result<CreatedContainer, PrepareError> {
    (options.step)(Step::Create);
    let busy = || PrepareError {
        error: RecreateError::Busy {
            name: old.name.clone(),
        },
        settled: false,
    };
    if StopTimeout::from_container(old) == StopTimeout::Unlimited
        && let Ok(Some(_)) = find_by_name(engine, &names::stopping_name(&old.id)).await
    {
        return Err(busy());
    }
    let name = names::temporary_name(&old.id);
    let created = engine.create(&name, &wanted.request, options.platform);
    let new = match created.await {
        Ok(id) => id,
        // The name can be used only once: another Refit works on this container, or died while it did.
        Err(error @ EngineError::Conflict { .. }) => match is_name_listed_soon(engine, &name).await
        {
            true => return Err(busy()),
            false => return Err(PrepareError::aborted(old, Step::Create, error.into(), true)),
        },
        Err(error) => {
            let lost = is_transient(&error);
            // The engine may still have created it, or may be about to: then its name shows that, now or later.
            if lost && let Ok(Some(container)) = find_by_name(engine, &name).await {
                let _ = ensure_removed(engine, &container.id, Removal::Discard).await;
            }
            return Err(PrepareError::aborted(
                old,
                Step::Create,
                error.into(),
                !lost,
            ));
        }
    };
    match connect_and_verify(engine, &new, wanted, image, options).await {
        Ok(created) => Ok(CreatedContainer { id: new, created }),
        Err((step, source)) => {
            let settled = discard(engine, &new).await;
            Err(PrepareError::aborted(old, step, source, settled))
        }
    }
}

/// The engine reserves a name a moment before it lists the container with that name.
const LISTING_WAITS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
];

/// Reports whether a conflict was about this name: an engine returns 409 for other reasons too.
async fn is_name_listed_soon(engine: &dyn Engine, name: &ContainerName) -> bool {
    for wait in LISTING_WAITS {
        if let Ok(Some(_)) = find_by_name(engine, name).await {
            return true;
        }
        tokio::time::sleep(wait).await;
    }
    false
}

/// Removes a discarded replacement; returns whether it is gone.
pub(super) async fn discard(engine: &dyn Engine, new: &ContainerId) -> bool {
    ensure_removed(engine, new, Removal::Discard).await.is_ok()
}

/// Connects the other networks and verifies what the engine created. Returns when it was created.
async fn connect_and_verify(
    engine: &dyn Engine,
    new: &ContainerId,
    wanted: &Replacement,
    image: &NewImage,
    options: &ReplaceOptions<'_>,
) -> Result<jiff::Timestamp, (Step, StepError)> {
    if !wanted.networks.is_empty() {
        (options.step)(Step::Connect);
    }
    for (network, endpoint) in &wanted.networks {
        engine
            .connect(new, network_to_connect(network, endpoint), endpoint)
            .await
            .map_err(|error| (Step::Connect, error.into()))?;
    }
    (options.step)(Step::Verify);
    let container = engine
        .inspect(new)
        .await
        .map_err(|error| (Step::Verify, error.into()))?;
    let unfit = |problem: String| Err((Step::Verify, StepError::Unfit(problem)));
    if container.image_id != image.id {
        return unfit(format!(
            "the tag moved meanwhile: `{}` now means {}, and {} was pulled",
            image.reference, container.image_id, image.id
        ));
    }
    let differences = find_differences(wanted, &container);
    if differences.is_empty() {
        return Ok(container.created);
    }
    unfit(format!(
        "the engine made something else: {}",
        differences.join("; ")
    ))
}

fn missing_image_error(error: EngineError, old: &Container) -> StepError {
    match error {
        EngineError::NotFound { .. } => StepError::Unfit(format!(
            "the image it was made from, {}, is no longer on this machine, so what was set by hand cannot be told from the image's \
             defaults; pull or load that image again, or recreate the container by hand",
            old.image_id
        )),
        other => other.into(),
    }
}
