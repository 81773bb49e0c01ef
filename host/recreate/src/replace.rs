//! A replacement, from the look at the old container to its removal: the order of the steps. The way back is in `rollback`.
//!
//! Nothing is stopped before its replacement exists and was verified, and nothing is removed before its replacement has proven
//! itself and was looked at once more. What is not downtime happens outside it: the gap is stop, two renames and start. Everything is
//! done by id, so a container that somebody else put under the same name is never touched.
//!
//! A replacement that somebody removes before it runs (a prune does so) is made again from the same intent, before the old
//! container is stopped and after.
//!
//! Containers that depend on the one that is replaced ([`dependents`](super::dependents)) would lose what they have of it; they
//! are replaced with it, as one group, each on its new image or on the one that it has. One that was stopped stays so.

use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, ContainerId, ContainerName, State};
use refit_model::image::{ImageId, ImageRef, Platform};
use refit_model::recreation::Step;
use tokio_util::sync::CancellationToken;

use super::concurrency::ConcurrencyLimits;
use super::health_gate::{ReadinessCheck, check_again, prove};
use super::intent::{Intent, network_to_connect};
use super::names::{self, BackupName, ParsedName};
use super::prepare::{self, Made, PrepareError};
use super::retry::{ensure_removed, find, is_gone, look, may_pass, until_reachable};
use super::rollback::{RollbackOutcome, Undo, roll_back, stop_and_remove};
use super::stop::{StopTimeout, stop};
use super::{RecreateError, StepError};
use crate::image_records::ImageRecords;

/// How often the way back is taken again when the engine went away on it.
const ROLLBACKS_MORE: usize = 2;

/// How often the replacements of one group are made again because somebody removed them.
const REMAKES_MAX: usize = 3;

/// The image that a replacement is to run: on this machine, by the name it was asked for.
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

    /// The one that a container has, by a name from which its repository can still be told: the one it was made by where that
    /// still means it, or its digest; by its id only where neither does.
    async fn of(engine: &dyn Engine, container: &Container) -> Result<Self, EngineError> {
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

    /// What an image is called that no tag means any more.
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
    /// `None`: the one that it has. It only follows a container that it depends on.
    pub image: Option<NewImage>,
}

/// How, and who is told.
pub struct ReplaceOptions<'a> {
    pub platform: Option<&'a Platform>,
    pub proof: ReadinessCheck,
    pub lanes: &'a ConcurrencyLimits,
    /// What is known of images that the engine no longer shows.
    pub images: &'a ImageRecords,
    /// Set: what has not been stopped by then is left as it is.
    pub ending: &'a CancellationToken,
    pub step: &'a (dyn Fn(Step) + Send + Sync),
}

/// A group of replacements that run and have proven themselves.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// In the order of the targets.
    pub members: Vec<NewContainer>,
    /// From the request to stop the old ones until all new ones were started.
    pub gap: Duration,
    /// Old containers that could not be removed. They are stopped, under these names.
    pub left_over: Vec<String>,
}

/// What runs in the place of a container now.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// That of the old one.
    pub name: String,
    pub id: ContainerId,
    /// The reference that it was made from.
    pub image: String,
}

/// One container of a group, and what takes its place.
pub(super) struct Member {
    pub(super) old: Container,
    pub(super) new: ContainerId,
    pub(super) image: NewImage,
    intent: Intent,
    clock: EngineClock,
}

/// What the engine's clock shows, without asking: it said so when the replacement was made.
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
    /// `at` is a moment before the replacement was made.
    pub(super) fn new(
        old: Container,
        made: Made,
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

    /// A container that did not run before does not run afterwards.
    fn ran(&self) -> bool {
        self.old.state == State::Running
    }

    pub(super) fn name(&self) -> ContainerName {
        ContainerName::new(&*self.old.name)
    }

    /// The old container's name from now on.
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

/// Replace the containers of `group`, the first of which runs; each of the others depends on one before it. The flag says whether
/// nothing is left to finish or undo.
pub async fn replace(
    engine: &dyn Engine,
    group: Vec<Target>,
    manner: &ReplaceOptions<'_>,
) -> (Result<Replaced, RecreateError>, bool) {
    // Ahead of the gap. The old containers run on; whatever fails here leaves them as they are.
    let aside = manner.lanes.aside().await;
    let mut group = match make_ready(engine, group, manner).await {
        Ok(group) => group,
        Err(unready) => return (Err(unready.error), unready.settled),
    };
    drop(aside);

    let lane = manner.lanes.gap().await;
    if let Err(unready) = look_once_more(engine, &mut group, manner).await {
        let settled = unready.settled & discard_all(engine, &group).await;
        return (Err(unready.error), settled);
    }

    // The gap.
    let stopping = Instant::now();
    let swapped = swap(engine, &mut group, manner).await;
    let gap = stopping.elapsed();
    // Behind the gap. One that failed keeps its lane until the old container is back.
    let proven = match swapped {
        Ok(()) => {
            drop(lane);
            prove_all(engine, &group, manner).await
        }
        Err(failed) => Err(failed),
    };
    // What has proven itself waits here for its turn, and for the slowest of its group; so it is looked at again before anything is
    // removed.
    let (aside, proven) = match proven {
        Ok(starts) => {
            let aside = manner.lanes.aside().await;
            (Some(aside), look_at_all(engine, &group, &starts).await)
        }
        Err(failed) => (None, Err(failed)),
    };
    if let Err((step, source)) = proven {
        return put_back(engine, &group, step, source).await;
    }

    (manner.step)(Step::Remove);
    let mut left_over = Vec::new();
    // The one that the others depend on goes last.
    for member in group.iter().rev() {
        if let Err(error) = remove_old(engine, &member.old).await {
            tracing::warn!(
                container = member.old.name,
                old = member.old.id.as_str(),
                "the old container could not be removed: {error}"
            );
            left_over.push(present_name(engine, member).await);
        }
    }
    drop(aside);
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

/// A replacement of each, in their order.
async fn make_ready(
    engine: &dyn Engine,
    targets: Vec<Target>,
    manner: &ReplaceOptions<'_>,
) -> Result<Vec<Member>, PrepareError> {
    let mut wanted = Vec::with_capacity(targets.len());
    for Target { container, image } in targets {
        let image = match image {
            Some(image) => image,
            None => match NewImage::of(engine, &container).await {
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
        wanted.push((container, image));
    }
    let mut group: Vec<Member> = Vec::with_capacity(wanted.len());
    for (old, image) in wanted {
        let made = async {
            let intent = prepare::intent(engine, &old, manner).await?;
            let at = Instant::now();
            let made = make(engine, &old, &image, &intent, &group, manner).await?;
            Ok::<_, PrepareError>(Member::new(old, made, at, image, intent))
        };
        match made.await {
            Ok(member) => group.push(member),
            Err(unready) => {
                let settled = unready.settled & discard_all(engine, &group).await;
                return Err(PrepareError { settled, ..unready });
            }
        }
    }
    Ok(group)
}

/// `providers` are those of its group that come before it.
async fn make(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
    intent: &Intent,
    providers: &[Member],
    manner: &ReplaceOptions<'_>,
) -> Result<Made, PrepareError> {
    let mut intent = intent.clone();
    for provider in providers {
        intent.follow(&provider.old, &provider.new);
    }
    let wanted = intent.on(&image.reference, &image.id);
    prepare::create(engine, old, &wanted, image, manner).await
}

/// Make the replacement of `group[index]` again, which is gone, and those of all that may depend on it.
async fn make_again(
    engine: &dyn Engine,
    group: &mut [Member],
    index: usize,
    manner: &ReplaceOptions<'_>,
) -> Result<(), PrepareError> {
    for index in index..group.len() {
        let (providers, rest) = group.split_at_mut(index);
        let Some(member) = rest.first_mut() else {
            break;
        };
        tracing::warn!(
            container = member.old.name,
            "somebody removed its replacement: making it again"
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
        let made = make(
            engine,
            &member.old,
            &member.image,
            &member.intent,
            providers,
            manner,
        );
        member.new = made.await?.id;
    }
    Ok(())
}

/// Remove replacements that never ran; whether all are gone.
async fn discard_all(engine: &dyn Engine, group: &[Member]) -> bool {
    let mut gone = true;
    for member in group.iter().rev() {
        gone &= prepare::discard(engine, &member.new).await;
    }
    gone
}

/// The last look before anything is touched, at both halves. A replacement exists, and as long as it bears its first name no other
/// Refit can make one; but one that had made its own before ours may have finished meanwhile, and people act at any time.
async fn look_once_more(
    engine: &dyn Engine,
    group: &mut [Member],
    manner: &ReplaceOptions<'_>,
) -> Result<(), PrepareError> {
    let mut remakes = 0;
    loop {
        if manner.ending.is_cancelled() {
            let name = group[0].old.name.clone();
            return Err(PrepareError {
                error: RecreateError::Withdrawn { name },
                settled: true,
            });
        }
        for member in group.iter() {
            if let Err(error) = unchanged(engine, &member.old, &group[0].image).await {
                return Err(PrepareError {
                    error,
                    settled: true,
                });
            }
        }
        let Some(missing) = missing_replacement(engine, group).await? else {
            return Ok(());
        };
        if remakes == REMAKES_MAX {
            let problem = format!("somebody removed it {} times", remakes + 1);
            let old = &group[missing].old;
            let source = StepError::Unfit(problem);
            return Err(PrepareError::aborted(old, Step::Verify, source, true));
        }
        remakes += 1;
        make_again(engine, group, missing, manner).await?;
    }
}

/// The first whose replacement is gone. An error where one is there and is not as it was made.
async fn missing_replacement(
    engine: &dyn Engine,
    group: &[Member],
) -> Result<Option<usize>, PrepareError> {
    for (index, member) in group.iter().enumerate() {
        let failed = |source| PrepareError::aborted(&member.old, Step::Verify, source, true);
        let now = match look(engine, &member.new).await {
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

/// The last look at an old container before it is touched.
pub(super) async fn unchanged(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
) -> Result<(), RecreateError> {
    let name = old.name.clone();
    let now = match look(engine, &old.id).await {
        Ok(Some(now)) => now,
        Ok(None) => return Err(successor(engine, &name, &image.id).await),
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

/// A step of the gap that failed.
type Failed = (Step, StepError);

/// Everything that happens while nothing runs under the name.
async fn swap(
    engine: &dyn Engine,
    group: &mut [Member],
    manner: &ReplaceOptions<'_>,
) -> Result<(), Failed> {
    // The name stays with the old container until it has exited: who looks in between sees a container that is stopping.
    (manner.step)(Step::Stop);
    for member in group.iter().rev().filter(|member| member.ran()) {
        stop_old(engine, member)
            .await
            .map_err(|error| (Step::Stop, error.into()))?;
    }
    let mut remakes = 0;
    for index in 0..group.len() {
        while let Err(failed) = take_over(engine, &group[index], manner).await {
            let is_missing = matches!(&failed.1, StepError::Engine(EngineError::NotFound { .. }))
                && matches!(is_gone(engine, &group[index].new).await, Ok(true));
            if !is_missing || remakes == REMAKES_MAX {
                return Err(failed);
            }
            remakes += 1;
            if make_again(engine, group, index, manner).await.is_err() {
                return Err(failed);
            }
        }
    }
    Ok(())
}

/// It has exited. One that is gone was removed while it ran, which only somebody does who means it.
async fn stop_old(engine: &dyn Engine, member: &Member) -> Result<(), EngineError> {
    if StopTimeout::of(&member.old) == StopTimeout::Unlimited {
        // It may take any time to end, and whoever comes after us must know that it was asked to.
        let stopping = names::stopping_name(&member.old.id);
        engine.rename(&member.new, &stopping).await?;
    }
    stop(engine, &member.old).await
}

/// The replacement takes the old container's place, which has exited. May be done again with another replacement.
async fn take_over(
    engine: &dyn Engine,
    member: &Member,
    manner: &ReplaceOptions<'_>,
) -> Result<(), Failed> {
    (manner.step)(Step::Park);
    match engine.rename(&member.old.id, &member.backup_name()).await {
        Ok(()) => {}
        Err(error @ EngineError::NotFound { .. }) => {
            // Somebody removed it once it had exited, as a prune does. Its replacement can take over all the same.
            if !matches!(is_gone(engine, &member.old.id).await, Ok(true)) {
                return Err((Step::Park, error.into()));
            }
        }
        Err(error) => return Err((Step::Park, error.into())),
    }
    (manner.step)(Step::Rename);
    engine
        .rename(&member.new, &member.name())
        .await
        .map_err(|error| (Step::Rename, error.into()))?;
    if member.ran() {
        (manner.step)(Step::Start);
        engine
            .start(&member.new)
            .await
            .map_err(|error| (Step::Start, error.into()))?;
    }
    Ok(())
}

/// When each was started that proved itself; `None` for those that are not to run.
type Starts = Vec<Option<jiff::Timestamp>>;

async fn prove_all(
    engine: &dyn Engine,
    group: &[Member],
    manner: &ReplaceOptions<'_>,
) -> Result<Starts, Failed> {
    (manner.step)(Step::Prove);
    let proofs = group.iter().map(async |member| match member.ran() {
        true => prove(engine, &member.new, manner.proof).await,
        false => Ok(None),
    });
    futures_util::future::try_join_all(proofs)
        .await
        .map_err(|source| (Step::Prove, source))
}

/// All still run as they did when they had proven themselves.
async fn look_at_all(engine: &dyn Engine, group: &[Member], starts: &Starts) -> Result<(), Failed> {
    for (member, started) in group.iter().zip(starts) {
        if member.ran() {
            check_again(engine, &member.new, *started)
                .await
                .map_err(|source| (Step::Prove, source))?;
        }
    }
    Ok(())
}

/// The old containers run again under their names; what to say of it, and whether nothing is left to finish or undo.
pub(super) async fn put_back(
    engine: &dyn Engine,
    group: &[Member],
    step: Step,
    source: StepError,
) -> (Result<Replaced, RecreateError>, bool) {
    let error = roll_back_all(engine, group, step, source).await;
    let settled = match &error {
        RecreateError::Stranded { .. } | RecreateError::StillStopping { .. } => false,
        RecreateError::RolledBack { left_over, .. } => left_over.is_empty(),
        _ => true,
    };
    (Err(error), settled)
}

async fn roll_back_all(
    engine: &dyn Engine,
    group: &[Member],
    step: Step,
    source: StepError,
) -> RecreateError {
    let first = &group[0];
    let name = first.old.name.clone();
    // After a stop whose answer got lost the container may exit at any moment: only one that has exited can be started.
    let lost = matches!(&source, StepError::Engine(error) if may_pass(error));
    let in_doubt = step == Step::Stop && lost;
    let undo: Vec<Undo<'_>> = group.iter().map(|member| member.undo(in_doubt)).collect();
    until_reachable(engine, &first.old.id).await;
    let mut rolled_back = roll_back(engine, &undo).await;
    for _ in 0..ROLLBACKS_MORE {
        let unreachable = |back: &Result<RollbackOutcome, EngineError>| {
            back.as_ref().is_err_and(EngineError::is_unreachable)
        };
        if !rolled_back.each.iter().any(unreachable) {
            break;
        }
        // It went away midway. What was done is found done.
        until_reachable(engine, &first.old.id).await;
        rolled_back = roll_back(engine, &undo).await;
    }
    let left_over = rolled_back.left_over;
    let mut first_back = None;
    for (member, back) in group.iter().zip(rolled_back.each) {
        match back {
            Err(undoing) => {
                return RecreateError::Stranded {
                    kept_as: present_name(engine, member).await,
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
            Ok(back) => {
                first_back.get_or_insert(back);
            }
        }
    }
    let mut notes = Vec::new();
    match first_back {
        Some(RollbackOutcome::Restored) | None => {}
        Some(RollbackOutcome::Gone)
            if step != Step::Stop && group.len() == 1 && make_old_again(engine, first).await =>
        {
            notes.push(format!(
                "somebody removed the old container ({}) meanwhile: it was made again with its settings on its old image",
                first.old.id.short()
            ));
        }
        Some(RollbackOutcome::Gone | RollbackOutcome::Superseded | RollbackOutcome::Stopping) => {
            return successor(engine, &name, &first.image.id).await;
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

/// The replacement failed, and the old container was removed by somebody once it had exited: as long as nobody else has its name, a
/// container like it, on its image, is better than none. Whether one runs.
async fn make_old_again(engine: &dyn Engine, member: &Member) -> bool {
    let made = async {
        if find(engine, &member.name()).await?.is_some() || !is_gone(engine, &member.old.id).await?
        {
            return Ok(false);
        }
        let image = NewImage::of(engine, &member.old).await?;
        let wanted = member.intent.on(&image.reference, &image.id);
        let new = engine.create(&member.name(), &wanted.request, None).await?;
        for (network, endpoint) in &wanted.networks {
            let network = network_to_connect(network, endpoint);
            engine.connect(&new, network, endpoint).await?;
        }
        engine.start(&new).await?;
        Ok::<bool, EngineError>(true)
    };
    made.await.unwrap_or_else(|error| {
        tracing::error!(
            container = member.old.name,
            "the old container is gone and could not be made again: {error}"
        );
        false
    })
}

/// What the old container is called now, as far as that can be known.
async fn present_name(engine: &dyn Engine, member: &Member) -> String {
    match look(engine, &member.old.id).await {
        Ok(Some(old)) => old.name,
        Ok(None) | Err(_) => member.backup_name().as_str().to_owned(),
    }
}

/// Remove an old container that was replaced. Somebody may have started it meanwhile, under the name that we gave it.
async fn remove_old(engine: &dyn Engine, old: &Container) -> Result<(), EngineError> {
    match ensure_removed(engine, &old.id, Removal::IfStopped).await {
        Err(EngineError::Conflict { .. }) => stop_and_remove(engine, old).await,
        answer => answer,
    }
}

/// What to say of a container that somebody else took away: who has its name now, and whether that one is up to date.
pub async fn successor(engine: &dyn Engine, name: &str, image: &ImageId) -> RecreateError {
    let name = name.to_owned();
    let found = async {
        let Some(listed) = find(engine, &ContainerName::new(&*name)).await? else {
            return Ok(None);
        };
        look(engine, &listed.id).await
    };
    match found.await {
        Ok(Some(other)) => RecreateError::ReplacedByOther {
            name,
            // One that does not run is nobody's up-to-date container.
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
