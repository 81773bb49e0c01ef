//! A replacement, from the look at the old container to its removal: the order of the steps, and beside each the way back.
//!
//! Nothing is stopped before its replacement exists and was verified, and nothing is removed before its replacement has proven
//! itself. What is not downtime happens outside it: the gap is stop, two renames and start. Everything is done by id, so a
//! container that somebody else put under the same name is never touched.
//!
//! Containers that depend on the one that is replaced ([`dependents`](super::dependents)) would lose what they have of it; they
//! are replaced with it, as one group, each on the image that it has.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::candidate::{self, Unready};
use super::lanes::Lanes;
use super::names;
use super::proof::{Proof, prove};
use super::steady::{
    ensure_named, ensure_removed, ensure_running, ensure_stopped, look, may_pass, stop,
};
use super::{RecreateError, Step, StepError};
use crate::container::{Container, ContainerId, State};
use crate::engine::{Engine, EngineError, Removal};
use crate::image::{ImageId, ImageRef, Platform};

/// What the engine waits before it kills a container that has no stop timeout of its own.
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

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
        let reference = if by_name {
            container.image().to_owned()
        } else {
            let image = engine.image(id.as_str()).await?;
            image
                .repo_digests
                .into_iter()
                .next()
                .unwrap_or_else(|| id.as_str().to_owned())
        };
        Ok(Self { reference, id })
    }
}

/// How, and who is told.
pub struct Manner<'a> {
    pub platform: Option<&'a Platform>,
    pub proof: Proof,
    pub lanes: &'a Lanes,
    /// Set: what has not been stopped by then is left as it is.
    pub ending: &'a CancellationToken,
    pub step: &'a (dyn Fn(Step) + Send + Sync),
}

/// A replacement that runs and has proven itself.
#[derive(Clone, Debug)]
pub struct Replaced {
    pub id: ContainerId,
    /// From the request to stop the old one until the new one was started.
    pub gap: Duration,
    /// The names of those that were replaced with it, because they depend on it.
    pub followed: Vec<String>,
    /// Old containers that could not be removed. They are stopped, under these names.
    pub left_over: Vec<String>,
}

/// One container of a group, and what takes its place.
pub(super) struct Member {
    pub(super) old: Container,
    pub(super) new: ContainerId,
}

/// Replace `old`, which runs, by one from `image`, and with it the running `dependents`, each of which comes behind all that it
/// depends on. The flag says whether nothing is left to finish or undo.
pub async fn replace(
    engine: &dyn Engine,
    old: Container,
    image: &NewImage,
    dependents: Vec<Container>,
    manner: &Manner<'_>,
) -> (Result<Replaced, RecreateError>, bool) {
    let name = old.name.clone();
    // Ahead of the gap. The old containers run on; whatever fails here leaves them as they are.
    let aside = manner.lanes.aside().await;
    let group = match make_ready(engine, old, image, dependents, manner).await {
        Ok(group) => group,
        Err(unready) => return (Err(unready.error), unready.settled),
    };
    drop(aside);

    let lane = manner.lanes.gap().await;
    if manner.ending.is_cancelled() {
        let error = RecreateError::Withdrawn { name };
        return (Err(error), discard_all(engine, &group).await);
    }
    for member in &group {
        if let Err(error) = unchanged(engine, &member.old, image).await {
            return (Err(error), discard_all(engine, &group).await);
        }
    }

    // The gap.
    let stopping = Instant::now();
    let swapped = swap(engine, &group, manner).await;
    let gap = stopping.elapsed();
    // Behind the gap. One that failed keeps its lane until the old container is back.
    let proven = match swapped {
        Ok(()) => {
            drop(lane);
            prove_all(engine, &group, manner).await
        }
        Err(failed) => Err(failed),
    };
    if let Err((step, source)) = proven {
        let error = put_back(engine, &group, image, step, source).await;
        let settled = !matches!(error, RecreateError::Stranded { .. });
        return (Err(error), settled);
    }

    let _aside = manner.lanes.aside().await;
    (manner.step)(Step::Remove);
    let mut left_over = Vec::new();
    // The one that the others depend on goes last.
    for member in group.iter().rev() {
        if let Err(error) = remove_old(engine, &member.old).await {
            tracing::warn!(
                container = name,
                old = member.old.id.as_str(),
                "the old container could not be removed: {error}"
            );
            left_over.push(names::parked(&member.old.id, &member.new, &member.old.name));
        }
    }
    let settled = left_over.is_empty();
    let followed = group[1..].iter().map(|member| member.old.name.clone());
    (
        Ok(Replaced {
            id: group[0].new.clone(),
            gap,
            followed: followed.collect(),
            left_over,
        }),
        settled,
    )
}

/// A replacement of each, in their order.
async fn make_ready(
    engine: &dyn Engine,
    old: Container,
    image: &NewImage,
    dependents: Vec<Container>,
    manner: &Manner<'_>,
) -> Result<Vec<Member>, Unready> {
    let mut members = vec![(old, image.clone())];
    for dependent in dependents {
        match NewImage::of(engine, &dependent).await {
            Ok(image) => members.push((dependent, image)),
            Err(error) => {
                return Err(Unready::aborted(
                    &dependent,
                    Step::Inspect,
                    error.into(),
                    true,
                ));
            }
        }
    }
    let mut group: Vec<Member> = Vec::with_capacity(members.len());
    for (old, image) in members {
        match make(engine, &old, &image, &group, manner).await {
            Ok(new) => group.push(Member { old, new }),
            Err(unready) => {
                let settled = unready.settled & discard_all(engine, &group).await;
                return Err(Unready { settled, ..unready });
            }
        }
    }
    Ok(group)
}

/// `providers` are those of its group that came before it.
async fn make(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
    providers: &[Member],
    manner: &Manner<'_>,
) -> Result<ContainerId, Unready> {
    let mut intent = candidate::intent(engine, old, manner).await?;
    for provider in providers {
        intent.follow(&provider.old, &provider.new);
    }
    let wanted = intent.on(&image.reference, &image.id);
    candidate::create(engine, old, &wanted, image, manner).await
}

/// Remove replacements that never ran; whether all are gone.
async fn discard_all(engine: &dyn Engine, group: &[Member]) -> bool {
    let mut gone = true;
    for member in group.iter().rev() {
        gone &= candidate::discard(engine, &member.new).await;
    }
    gone
}

/// The last look at an old container before it is touched. Its replacement exists, and as long as that bears its first name no
/// other Refit can make one; but one that had made its own before ours may have finished meanwhile, and people act at any time.
pub(super) async fn unchanged(
    engine: &dyn Engine,
    old: &Container,
    image: &NewImage,
) -> Result<(), RecreateError> {
    let name = old.name.clone();
    let now = match look(engine, old.id.as_str()).await {
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
        if names::meaning(&now.name).is_some() {
            return Err(RecreateError::Busy { name });
        }
        let reason = format!("it was renamed to `{}` meanwhile", now.name);
        return Err(RecreateError::Unsupported { name, reason });
    }
    if now.state != State::Running {
        let reason = format!(
            "it is {} by now, and only running containers are recreated",
            now.state
        );
        return Err(RecreateError::Unsupported { name, reason });
    }
    Ok(())
}

/// Everything that happens while nothing runs under the name.
async fn swap(
    engine: &dyn Engine,
    group: &[Member],
    manner: &Manner<'_>,
) -> Result<(), (Step, StepError)> {
    // The name stays with the old container until it has exited: who looks in between sees a container that is stopping.
    (manner.step)(Step::Stop);
    for member in group.iter().rev() {
        stop(engine, &member.old.id, stop_timeout(&member.old))
            .await
            .map_err(|error| (Step::Stop, error.into()))?;
    }
    for member in group {
        (manner.step)(Step::Park);
        let parked = names::parked(&member.old.id, &member.new, &member.old.name);
        engine
            .rename(&member.old.id, &parked)
            .await
            .map_err(|error| (Step::Park, error.into()))?;
        (manner.step)(Step::Rename);
        engine
            .rename(&member.new, &member.old.name)
            .await
            .map_err(|error| (Step::Rename, error.into()))?;
        (manner.step)(Step::Start);
        engine
            .start(&member.new)
            .await
            .map_err(|error| (Step::Start, error.into()))?;
    }
    Ok(())
}

async fn prove_all(
    engine: &dyn Engine,
    group: &[Member],
    manner: &Manner<'_>,
) -> Result<(), (Step, StepError)> {
    (manner.step)(Step::Prove);
    let proofs = group
        .iter()
        .map(|member| prove(engine, &member.new, manner.proof));
    futures_util::future::try_join_all(proofs)
        .await
        .map(drop)
        .map_err(|source| (Step::Prove, source))
}

/// The way back from anything after the old containers were first touched: they have their names, and run.
pub(super) async fn put_back(
    engine: &dyn Engine,
    group: &[Member],
    image: &NewImage,
    step: Step,
    source: StepError,
) -> RecreateError {
    let first = &group[0];
    let name = first.old.name.clone();
    // After a stop whose answer got lost the container may exit at any moment: only one that has exited can be started.
    let lost = matches!(&source, StepError::Engine(error) if may_pass(error));
    let in_doubt = step == Step::Stop && lost;
    let mut back = Ok(Back::Running);
    for member in group.iter().rev() {
        let removed = async {
            mark_stopped(engine, &member.old, &member.new, in_doubt).await?;
            ensure_removed(engine, &member.new, Removal::Discard).await
        };
        if let Err(error) = removed.await {
            back = Err(error);
        }
    }
    if back.is_ok() {
        for (index, member) in group.iter().enumerate() {
            let one = restore(engine, &member.old, in_doubt).await;
            if index == 0 || one.is_err() {
                back = one;
            }
        }
    }
    match back {
        Ok(Back::Running) => RecreateError::RolledBack { name, step, source },
        Ok(Back::Gone | Back::Superseded) => successor(engine, &name, &image.id).await,
        Err(undoing) => {
            let parked = || names::parked(&first.old.id, &first.new, &name);
            let kept_as = engine
                .inspect(first.old.id.as_str())
                .await
                .map_or_else(|_| parked(), |old| old.name);
            RecreateError::Stranded {
                name,
                step,
                source,
                old: first.old.id.clone(),
                new: first.new.clone(),
                kept_as,
                undoing: Box::new(undoing),
            }
        }
    }
}

/// Remove an old container that was replaced. Somebody may have started it meanwhile, under the name that we gave it.
pub(super) async fn remove_old(engine: &dyn Engine, old: &Container) -> Result<(), EngineError> {
    match ensure_removed(engine, &old.id, Removal::IfStopped).await {
        Err(EngineError::Conflict { .. }) => stop_and_remove(engine, old).await,
        answer => answer,
    }
}

/// The same of one that may run.
pub(super) async fn stop_and_remove(
    engine: &dyn Engine,
    old: &Container,
) -> Result<(), EngineError> {
    ensure_stopped(engine, &old.id, stop_timeout(old)).await?;
    ensure_removed(engine, &old.id, Removal::IfStopped).await
}

/// How an old container came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    Running,
    /// Somebody removed it meanwhile.
    Gone,
    /// Somebody else's container runs under its name; it was removed like any container that was replaced.
    Superseded,
}

/// A container that was stopped is known as ours by its replacement's name, or by its own. Before its replacement goes, it gets
/// a name that says so: whoever dies then leaves a trace all the same.
pub(super) async fn mark_stopped(
    engine: &dyn Engine,
    old: &Container,
    new: &ContainerId,
    stop_in_doubt: bool,
) -> Result<(), EngineError> {
    match look(engine, old.id.as_str()).await? {
        Some(now) if now.name == old.name && (stop_in_doubt || now.state != State::Running) => {
            let parked = names::parked(&old.id, new, &old.name);
            ensure_named(engine, &old.id, &parked).await
        }
        Some(_) | None => Ok(()),
    }
}

/// Put an old container back, running, under its name. Which of the steps were done before is not known, so each looks first.
/// It runs before it has its name back: as long as it does not run, its name says that it should.
pub(super) async fn restore(
    engine: &dyn Engine,
    old: &Container,
    stop_in_doubt: bool,
) -> Result<Back, EngineError> {
    let Some(now) = look(engine, old.id.as_str()).await? else {
        return Ok(Back::Gone);
    };
    if now.name != old.name && names::meaning(&now.name).is_none() {
        // Somebody gave it another name meanwhile, and means to keep it.
        ensure_running(engine, &old.id).await?;
        return Ok(Back::Gone);
    }
    if now.name != old.name && taken(engine, old).await? {
        return give_way(engine, old).await;
    }
    if stop_in_doubt {
        ensure_stopped(engine, &old.id, stop_timeout(old)).await?;
    }
    let back = async {
        ensure_running(engine, &old.id).await?;
        ensure_named(engine, &old.id, &old.name).await
    };
    match back.await {
        Ok(()) => Ok(Back::Running),
        Err(EngineError::NotFound { .. }) => Ok(Back::Gone),
        Err(error @ EngineError::Conflict { .. }) => {
            if taken(engine, old).await? {
                give_way(engine, old).await
            } else {
                Err(error)
            }
        }
        Err(error) => Err(error),
    }
}

/// Whether somebody else's container runs under its name.
async fn taken(engine: &dyn Engine, old: &Container) -> Result<bool, EngineError> {
    let holder = look(engine, &old.name).await?;
    Ok(holder.is_some_and(|holder| holder.state == State::Running && holder.id != old.id))
}

async fn give_way(engine: &dyn Engine, old: &Container) -> Result<Back, EngineError> {
    stop_and_remove(engine, old).await?;
    Ok(Back::Superseded)
}

/// What to say of a container that somebody else took away: who has its name now, and whether that one is up to date.
pub async fn successor(engine: &dyn Engine, name: &str, image: &ImageId) -> RecreateError {
    let name = name.to_owned();
    match look(engine, &name).await {
        Ok(Some(other)) => RecreateError::ReplacedByOther {
            name,
            current: other.image_id == *image,
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

/// How long the container's own program may take to end.
pub(super) fn stop_timeout(container: &Container) -> Duration {
    let seconds = container
        .config
        .get("StopTimeout")
        .and_then(serde_json::Value::as_u64);
    seconds.map_or(STOP_TIMEOUT_DEFAULT, Duration::from_secs)
}
