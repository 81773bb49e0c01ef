//! Replaces a container, from its inspection to its removal, and defines the order of the steps. The way back is in `rollback`.
//!
//! Refit stops nothing before the replacement exists and is verified, and removes nothing before the replacement is healthy and
//! has passed a last check. Everything that does not need downtime happens outside of it: the downtime is a stop, two renames
//! and a start. Refit addresses containers by id, so it never touches another container that somebody put under the same name.
//!
//! If somebody removes a replacement before it runs (a prune does that), Refit creates it again from the same intent, before
//! the old container is stopped and after.
//!
//! Containers that depend on the replaced container ([`dependents`](super::dependents)) would lose the resource that they share
//! with it; Refit replaces them with it, as one group, each on its new image or on its present image. A stopped dependent stays
//! stopped.

use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName, State};
use refit_model::image::{ImageId, ImageRef, Platform};
use refit_model::recreation::Step;
use tokio_util::sync::CancellationToken;

use super::concurrency::ConcurrencyLimits;
use super::health_gate::{ReadinessCheck, ensure_still_running, wait_until_healthy};
use super::intent::{Intent, network_to_connect};
use super::names::{self, BackupName, ParsedName};
use super::prepare::{self, CreatedContainer, PrepareError};
use super::retry::{
    ensure_removed, find_by_name, inspect_opt, is_gone, is_transient, wait_until_reachable,
};
use super::rollback::{RollbackOutcome, Undo, roll_back, stop_and_remove};
use super::stop::{StopTimeout, stop};
use super::{RecreateError, StepError};
use crate::image_records::ImageRecords;

/// How often Refit repeats a rollback because the engine went away during it.
const ROLLBACK_RETRIES: usize = 2;

/// How often Refit creates the replacements of one group again because somebody removed them.
const RECREATIONS_MAX: usize = 3;

/// The image that a replacement must run: present on this machine, with the reference that was requested.
#[derive(Clone, Debug)]
pub struct NewImage {
    pub reference: String,
    pub id: ImageId,
}

impl NewImage {
    pub fn pulled(reference: &ImageRef, id: ImageId) -> Self {
        Self {
            reference: reference.to_string(),
            id,
        }
    }

    /// Returns the present image of a container, by a name that still shows its repository: the name that the container was
    /// created with if that still means this image, else its digest; its id only if neither works.
    async fn from_container(
        engine: &dyn Engine,
        container: &Container,
    ) -> Result<Self, EngineError> {
        let id = container.image_id.clone();
        let by_name = match engine.image(container.image()).await {
            Ok(image) => image.id == id,
            Err(EngineError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        let reference = match by_name {
            true => container.image().to_owned(),
            false => Self::name_without_tag(engine, &id).await?,
        };
        Ok(Self { reference, id })
    }

    /// Returns a name for an image that no tag points to any more.
    pub async fn name_without_tag(
        engine: &dyn Engine,
        id: &ImageId,
    ) -> Result<String, EngineError> {
        let image = engine.image(id.as_str()).await?;
        let by_digest = image.repo_digests.into_iter().next();
        Ok(by_digest.unwrap_or_else(|| id.as_str().to_owned()))
    }
}

/// A container to replace.
#[derive(Clone, Debug)]
pub struct Target {
    pub container: Container,
    /// `None`: the present image. The container only follows a container that it depends on.
    pub image: Option<NewImage>,
}

/// Options of a replacement, and the callback that receives its steps.
pub struct ReplaceOptions<'a> {
    pub platform: Option<&'a Platform>,
    pub proof: ReadinessCheck,
    pub lanes: &'a ConcurrencyLimits,
    /// Records of images that the engine no longer shows.
    pub images: &'a ImageRecords,
    /// Cancelled: Refit leaves containers alone that it has not stopped by then.
    pub ending: &'a CancellationToken,
    pub step: &'a (dyn Fn(Step) + Send + Sync),
}

/// A finished group of replacements: the new containers run and are healthy.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// In the order of the targets.
    pub members: Vec<NewContainer>,
    /// The time from the request to stop the old containers until all new containers were started.
    pub gap: Duration,
    /// Names of old containers that could not be removed. They are stopped.
    pub left_over: Vec<String>,
}

/// The container that runs in place of an old one.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// The name of the old container.
    pub name: String,
    pub id: ContainerId,
    /// The reference that the container was created from.
    pub image: String,
}

/// One container of a group, and its replacement.
pub(super) struct Member {
    pub(super) old: Container,
    pub(super) new: ContainerId,
    pub(super) image: NewImage,
    intent: Intent,
    clock: EngineClock,
}

/// An estimate of the engine's clock without a request: the engine reported the time when it created the replacement.
#[derive(Clone, Copy)]
struct EngineClock {
    then: jiff::Timestamp,
    at: Instant,
}

impl EngineClock {
    fn seconds(self) -> i64 {
        let elapsed = i64::try_from(self.at.elapsed().as_secs()).unwrap_or_default();
        self.then.as_second().saturating_add(elapsed)
    }
}

impl Member {
    /// Creates a member; `at` is a moment before the replacement was created.
    pub(super) fn new(
        old: Container,
        made: CreatedContainer,
        at: Instant,
        image: NewImage,
        intent: Intent,
    ) -> Self {
        let is_known = made.created != jiff::Timestamp::UNIX_EPOCH;
        let then = match is_known {
            true => made.created,
            false => jiff::Timestamp::now(),
        };
        Self {
            old,
            new: made.id,
            image,
            intent,
            clock: EngineClock { then, at },
        }
    }

    /// Reports whether the old container ran. If it did not, the new one does not run either.
    fn ran(&self) -> bool {
        self.old.state == State::Running
    }

    pub(super) fn name(&self) -> ContainerName {
        ContainerName::new(&*self.old.name)
    }

    /// Returns the old container's new name.
    pub(super) fn backup_name(&self) -> ContainerName {
        let since = self.clock.seconds();
        BackupName::new(&self.old.id, &self.new, since, self.ran(), &self.old.name).to_name()
    }

    fn undo(&self, stop_in_doubt: bool) -> Undo<'_> {
        Undo {
            old: &self.old,
            ran: self.ran(),
            new: Some(&self.new),
            stop_in_doubt,
        }
    }
}

/// Replaces the containers of `group`. The first one runs; each of the others depends on one before it. The flag reports
/// whether nothing is left to finish or undo.
pub async fn replace(
    engine: &dyn Engine,
    group: Vec<Target>,
    options: &ReplaceOptions<'_>,
) -> (Result<Replaced, RecreateError>, bool) {
    // Before the downtime. The old containers keep running; a failure here leaves them as they are.
    let background_permit = options.lanes.background().await;
    let mut group = match prepare_group(engine, group, options).await {
        Ok(group) => group,
        Err(prepare_error) => return (Err(prepare_error.error), prepare_error.settled),
    };
    drop(background_permit);

    let downtime_permit = options.lanes.downtime().await;
    if let Err(prepare_error) = check_preconditions(engine, &mut group, options).await {
        let settled = prepare_error.settled & discard_all(engine, &group).await;
        return (Err(prepare_error.error), settled);
    }

    // The downtime.
    let stopping = Instant::now();
    let swapped = swap_containers(engine, &mut group, options).await;
    let gap = stopping.elapsed();
    // After the downtime. A failed replacement keeps its permit until the old container is back.
    let health = match swapped {
        Ok(()) => {
            drop(downtime_permit);
            wait_until_all_healthy(engine, &group, options).await
        }
        Err(failed) => Err(failed),
    };
    // A healthy replacement waits here for its turn, and for the slowest of its group; so Refit checks it again before it
    // removes anything.
    let (background_permit, health) = match health {
        Ok(starts) => {
            let background_permit = options.lanes.background().await;
            (
                Some(background_permit),
                ensure_all_still_running(engine, &group, &starts).await,
            )
        }
        Err(failed) => (None, Err(failed)),
    };
    if let Err((step, source)) = health {
        return roll_back_group(engine, &group, step, source).await;
    }

    (options.step)(Step::Remove);
    let mut left_over = Vec::new();
    // Remove the container that the others depend on last.
    for member in group.iter().rev() {
        if let Err(error) = remove_old(engine, &member.old).await {
            tracing::warn!(
                container = member.old.name,
                old = member.old.id.as_str(),
                "cannot remove old container: {error}"
            );
            left_over.push(current_name(engine, member).await);
        }
    }
    drop(background_permit);
    let settled = left_over.is_empty();
    let members = group.into_iter().map(|member| NewContainer {
        name: member.old.name,
        id: member.new,
        image: member.image.reference,
    });
    (
        Ok(Replaced {
            members: members.collect(),
            gap,
            left_over,
        }),
        settled,
    )
}

/// Creates a replacement of each target, in their order.
async fn prepare_group(
    engine: &dyn Engine,
    targets: Vec<Target>,
    options: &ReplaceOptions<'_>,
) -> Result<Vec<Member>, PrepareError> {
    let mut images_by_target = Vec::with_capacity(targets.len());
    for Target { container, image } in targets {
        let image = match image {
            Some(image) => image,
            None => match NewImage::from_container(engine, &container).await {
                Ok(image) => image,
                Err(error) => {
                    let source = error.into();
                    return Err(PrepareError::aborted(
                        &container,
                        Step::Inspect,
                        source,
                        true,
                    ));
                }
            },
        };
        images_by_target.push((container, image));
    }
    let mut group: Vec<Member> = Vec::with_capacity(images_by_target.len());
    for (old, image) in images_by_target {
        let made = async {
            let intent = prepare::load_intent(engine, &old, options).await?;
            let at = Instant::now();
            let made = create_replacement(engine, &old, &image, &intent, &group, options).await?;
            Ok::<_, PrepareError>(Member::new(old, made, at, image, intent))
        };
        match made.await {
            Ok(member) => group.push(member),
            Err(prepare_error) => {
                let settled = prepare_error.settled & discard_all(engine, &group).await;
                return Err(PrepareError {
                    settled,
                    ..prepare_error
                });
            }
        }
    }
    Ok(group)
}

/// Creates the replacement of one container. `providers` are the members of its group before it.
async fn create_replacement(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
    intent: &Intent,
    providers: &[Member],
    options: &ReplaceOptions<'_>,
) -> Result<CreatedContainer, PrepareError> {
    let mut intent = intent.clone();
    for provider in providers {
        intent.follow_provider(&provider.old, &provider.new);
    }
    let replacement = intent.to_replacement(&image.reference, &image.id);
    prepare::create(engine, old, &replacement, image, options).await
}

/// Creates the missing replacement of `group[index]` again, and those of all members that may depend on it.
async fn recreate_replacements(
    engine: &dyn Engine,
    group: &mut [Member],
    index: usize,
    options: &ReplaceOptions<'_>,
) -> Result<(), PrepareError> {
    for index in index..group.len() {
        let (providers, rest) = group.split_at_mut(index);
        let Some(member) = rest.first_mut() else {
            break;
        };
        tracing::warn!(
            container = member.old.name,
            "replacement was removed, creating it again"
        );
        if !prepare::discard(engine, &member.new).await {
            let problem = StepError::Unfit("the one that was made before cannot be removed".into());
            return Err(PrepareError::aborted(
                &member.old,
                Step::Create,
                problem,
                false,
            ));
        }
        let made = create_replacement(
            engine,
            &member.old,
            &member.image,
            &member.intent,
            providers,
            options,
        );
        member.new = made.await?.id;
    }
    Ok(())
}

/// Removes replacements that never ran; returns whether all are gone.
async fn discard_all(engine: &dyn Engine, group: &[Member]) -> bool {
    let mut gone = true;
    for member in group.iter().rev() {
        gone &= prepare::discard(engine, &member.new).await;
    }
    gone
}

/// Checks the old and the new containers a last time before Refit touches anything. As long as a replacement has its first
/// name, no other Refit can create one; but another Refit whose replacement existed before ours may have finished by now, and
/// users act at any time.
async fn check_preconditions(
    engine: &dyn Engine,
    group: &mut [Member],
    options: &ReplaceOptions<'_>,
) -> Result<(), PrepareError> {
    let mut recreations = 0;
    loop {
        if options.ending.is_cancelled() {
            let name = group[0].old.name.clone();
            return Err(PrepareError {
                error: RecreateError::Withdrawn { name },
                settled: true,
            });
        }
        for member in group.iter() {
            if let Err(error) = ensure_unchanged(engine, &member.old, &group[0].image).await {
                return Err(PrepareError {
                    error,
                    settled: true,
                });
            }
        }
        let Some(missing) = find_missing_replacement(engine, group).await? else {
            return Ok(());
        };
        if recreations == RECREATIONS_MAX {
            let problem = format!("somebody removed it {} times", recreations + 1);
            let old = &group[missing].old;
            let source = StepError::Unfit(problem);
            return Err(PrepareError::aborted(old, Step::Verify, source, true));
        }
        recreations += 1;
        recreate_replacements(engine, group, missing, options).await?;
    }
}

/// Finds the first member whose replacement is gone. Fails if a replacement exists but has changed since its creation.
async fn find_missing_replacement(
    engine: &dyn Engine,
    group: &[Member],
) -> Result<Option<usize>, PrepareError> {
    for (index, member) in group.iter().enumerate() {
        let failed = |source| PrepareError::aborted(&member.old, Step::Verify, source, true);
        let now = match inspect_opt(engine, &member.new).await {
            Ok(Some(now)) => now,
            Ok(None) => return Ok(Some(index)),
            Err(error) => return Err(failed(error.into())),
        };
        let is_ours = now.name == names::temporary_name(&member.old.id).as_str()
            && now.state == State::Created
            && now.image_id == member.image.id;
        if !is_ours {
            let problem = format!(
                "somebody changed it: it is called `{}` and is {}",
                now.name, now.state
            );
            return Err(failed(StepError::Unfit(problem)));
        }
    }
    Ok(None)
}

/// Checks an old container a last time before Refit touches it.
pub(super) async fn ensure_unchanged(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
) -> Result<(), RecreateError> {
    let name = old.name.clone();
    let now = match inspect_opt(engine, &old.id).await {
        Ok(Some(now)) => now,
        Ok(None) => return Err(describe_successor(engine, &name, &image.id).await),
        Err(error) => {
            return Err(RecreateError::Aborted {
                name,
                step: Step::Verify,
                source: error.into(),
            });
        }
    };
    if now.name != name {
        if ParsedName::parse(&now.name).is_some() {
            return Err(RecreateError::Busy { name });
        }
        let reason = format!("it was renamed to `{}` meanwhile", now.name);
        return Err(RecreateError::Unsupported { name, reason });
    }
    if now.state != old.state {
        let reason = match old.state {
            State::Running => format!(
                "it is {} by now, and only running containers are recreated",
                now.state
            ),
            _ => format!("it is {} by now, and it was {}", now.state, old.state),
        };
        return Err(RecreateError::Unsupported { name, reason });
    }
    Ok(())
}

/// A failed step of the downtime, and its cause.
type FailedStep = (Step, StepError);

/// Swaps the containers: everything that happens while nothing runs under the name.
async fn swap_containers(
    engine: &dyn Engine,
    group: &mut [Member],
    options: &ReplaceOptions<'_>,
) -> Result<(), FailedStep> {
    // The old container keeps its name until it has exited, so an observer sees a container that is stopping.
    (options.step)(Step::Stop);
    for member in group.iter().rev().filter(|member| member.ran()) {
        stop_old(engine, member)
            .await
            .map_err(|error| (Step::Stop, error.into()))?;
    }
    let mut recreations = 0;
    for index in 0..group.len() {
        while let Err(failed) = take_over(engine, &group[index], options).await {
            let is_missing = matches!(&failed.1, StepError::Engine(EngineError::NotFound { .. }))
                && matches!(is_gone(engine, &group[index].new).await, Ok(true));
            if !is_missing || recreations == RECREATIONS_MAX {
                return Err(failed);
            }
            recreations += 1;
            if recreate_replacements(engine, group, index, options)
                .await
                .is_err()
            {
                return Err(failed);
            }
        }
    }
    Ok(())
}

/// Stops the old container. If it is gone, somebody removed it while it ran, which no user does by accident.
async fn stop_old(engine: &dyn Engine, member: &Member) -> Result<(), EngineError> {
    if StopTimeout::from_container(&member.old) == StopTimeout::Unlimited {
        // It may take any time to exit, and a later process must know that the stop was requested.
        let stopping = names::stopping_name(&member.old.id);
        engine.rename(&member.new, &stopping).await?;
    }
    stop(engine, &member.old).await
}

/// Puts the replacement into the place of the exited old container. Can be repeated with another replacement.
async fn take_over(
    engine: &dyn Engine,
    member: &Member,
    options: &ReplaceOptions<'_>,
) -> Result<(), FailedStep> {
    (options.step)(Step::Park);
    match engine.rename(&member.old.id, &member.backup_name()).await {
        Ok(()) => {}
        Err(error @ EngineError::NotFound { .. }) => {
            // Somebody removed it after it exited, as a prune does. Its replacement can still take over.
            if !matches!(is_gone(engine, &member.old.id).await, Ok(true)) {
                return Err((Step::Park, error.into()));
            }
        }
        Err(error) => return Err((Step::Park, error.into())),
    }
    (options.step)(Step::Rename);
    engine
        .rename(&member.new, &member.name())
        .await
        .map_err(|error| (Step::Rename, error.into()))?;
    if member.ran() {
        (options.step)(Step::Start);
        engine
            .start(&member.new)
            .await
            .map_err(|error| (Step::Start, error.into()))?;
    }
    Ok(())
}

/// The start time of each healthy replacement; `None` for replacements that must not run.
type Starts = Vec<Option<jiff::Timestamp>>;

async fn wait_until_all_healthy(
    engine: &dyn Engine,
    group: &[Member],
    options: &ReplaceOptions<'_>,
) -> Result<Starts, FailedStep> {
    (options.step)(Step::Prove);
    let checks = group.iter().map(async |member| match member.ran() {
        true => wait_until_healthy(engine, &member.new, options.proof).await,
        false => Ok(None),
    });
    futures_util::future::try_join_all(checks)
        .await
        .map_err(|source| (Step::Prove, source))
}

/// Verifies that all replacements still run as they did when they became healthy.
async fn ensure_all_still_running(
    engine: &dyn Engine,
    group: &[Member],
    starts: &Starts,
) -> Result<(), FailedStep> {
    for (member, started) in group.iter().zip(starts) {
        if member.ran() {
            ensure_still_running(engine, &member.new, *started)
                .await
                .map_err(|source| (Step::Prove, source))?;
        }
    }
    Ok(())
}

/// Rolls the group back: the old containers run again under their names. Returns the error to report, and whether nothing is
/// left to finish or undo.
pub(super) async fn roll_back_group(
    engine: &dyn Engine,
    group: &[Member],
    step: Step,
    source: StepError,
) -> (Result<Replaced, RecreateError>, bool) {
    let error = roll_back_and_explain(engine, group, step, source).await;
    let settled = match &error {
        RecreateError::Stranded { .. } | RecreateError::StillStopping { .. } => false,
        RecreateError::RolledBack { left_over, .. } => left_over.is_empty(),
        _ => true,
    };
    (Err(error), settled)
}

async fn roll_back_and_explain(
    engine: &dyn Engine,
    group: &[Member],
    step: Step,
    source: StepError,
) -> RecreateError {
    let first = &group[0];
    let name = first.old.name.clone();
    // If the response to a stop got lost, the container may exit at any moment, and only an exited container can be started.
    let lost = matches!(&source, StepError::Engine(error) if is_transient(error));
    let in_doubt = step == Step::Stop && lost;
    let undo: Vec<Undo<'_>> = group.iter().map(|member| member.undo(in_doubt)).collect();
    wait_until_reachable(engine, &first.old.id).await;
    let mut rolled_back = roll_back(engine, &undo).await;
    for _ in 0..ROLLBACK_RETRIES {
        let unreachable = |outcome: &Result<RollbackOutcome, EngineError>| {
            outcome.as_ref().is_err_and(EngineError::is_unreachable)
        };
        if !rolled_back.each.iter().any(unreachable) {
            break;
        }
        // The engine went away during the rollback. The next attempt skips finished work.
        wait_until_reachable(engine, &first.old.id).await;
        rolled_back = roll_back(engine, &undo).await;
    }
    let left_over = rolled_back.left_over;
    let mut first_outcome = None;
    for (member, outcome) in group.iter().zip(rolled_back.each) {
        match outcome {
            Err(undoing) => {
                return RecreateError::Stranded {
                    kept_as: current_name(engine, member).await,
                    name,
                    step,
                    source,
                    old: member.old.id.clone(),
                    new: member.new.clone(),
                    undoing: Box::new(undoing),
                };
            }
            Ok(RollbackOutcome::Stopping) => {
                return RecreateError::StillStopping {
                    name: member.old.name.clone(),
                    id: member.old.id.clone(),
                };
            }
            Ok(outcome) => {
                first_outcome.get_or_insert(outcome);
            }
        }
    }
    let mut notes = Vec::new();
    match first_outcome {
        Some(RollbackOutcome::Restored) | None => {}
        Some(RollbackOutcome::Gone)
            if step != Step::Stop && group.len() == 1 && recreate_old(engine, first).await =>
        {
            notes.push(format!(
                "somebody removed the old container ({}) meanwhile: it was made again with its settings on its old image",
                first.old.id.short()
            ));
        }
        Some(RollbackOutcome::Gone | RollbackOutcome::Superseded | RollbackOutcome::Stopping) => {
            return describe_successor(engine, &name, &first.image.id).await;
        }
    }
    RecreateError::RolledBack {
        name,
        step,
        source,
        notes,
        left_over,
    }
}

/// Creates the old container again, on its old image, after the replacement failed and somebody removed the exited old
/// container: as long as no other container has its name, a copy is better than none. Returns whether the copy runs.
async fn recreate_old(engine: &dyn Engine, member: &Member) -> bool {
    let made = async {
        if find_by_name(engine, &member.name()).await?.is_some()
            || !is_gone(engine, &member.old.id).await?
        {
            return Ok(false);
        }
        let image = NewImage::from_container(engine, &member.old).await?;
        let replacement = member.intent.to_replacement(&image.reference, &image.id);
        let new = engine
            .create(&member.name(), &replacement.request, None)
            .await?;
        for (network, endpoint) in &replacement.networks {
            let network = network_to_connect(network, endpoint);
            engine.connect(&new, network, endpoint).await?;
        }
        engine.start(&new).await?;
        Ok::<bool, EngineError>(true)
    };
    made.await.unwrap_or_else(|error| {
        tracing::error!(
            container = member.old.name,
            "old container is gone and cannot be recreated: {error}"
        );
        false
    })
}

/// Returns the present name of the old container, as far as it can be known.
async fn current_name(engine: &dyn Engine, member: &Member) -> String {
    match inspect_opt(engine, &member.old.id).await {
        Ok(Some(old)) => old.name,
        Ok(None) | Err(_) => member.backup_name().as_str().to_owned(),
    }
}

/// Removes an old container after its replacement. Somebody may have started it in the meantime, under the name that Refit gave
/// it.
async fn remove_old(engine: &dyn Engine, old: &Container) -> Result<(), EngineError> {
    match ensure_removed(engine, &old.id, Removal::IfStopped).await {
        Err(EngineError::Conflict { .. }) => stop_and_remove(engine, old).await,
        answer => answer,
    }
}

/// Describes the loss of a container that somebody else removed: which container has its name now, and whether that one is up
/// to date.
pub async fn describe_successor(engine: &dyn Engine, name: &str, image: &ImageId) -> RecreateError {
    let name = name.to_owned();
    let inspection = async {
        let Some(listed) = find_by_name(engine, &ContainerName::new(&*name)).await? else {
            return Ok(None);
        };
        inspect_opt(engine, &listed.id).await
    };
    match inspection.await {
        Ok(Some(other)) => RecreateError::ReplacedByOther {
            name,
            // A container that does not run does not count as up to date.
            current: other.image_id == *image && other.state == State::Running,
            id: other.id,
            image_id: other.image_id,
        },
        Ok(None) => RecreateError::Gone { name },
        Err(error) => RecreateError::Aborted {
            name,
            step: Step::Inspect,
            source: error.into(),
        },
    }
}
