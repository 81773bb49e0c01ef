//! The capabilities for real: the engine does what is asked.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::foreseen::Foreseen;
use super::ties::KnownTies;
use super::{CallError, Capabilities, PulledImage, Recreated, Recreation, Strategy, Transfer};
use crate::container::{Container, Listed, State};
use crate::diagnostic::{Diagnostic, Hints as _};
use crate::engine::{Engine, EngineError, PullError};
use crate::image::{ImageId, ImageRef, Platform};
use crate::journal::{Event, Events};
use crate::recreate::dependents::{Node, Ties, dependents};
use crate::recreate::lanes::Lanes;
use crate::recreate::lease::{Lease, Leases};
use crate::recreate::names::{self, Meaning};
use crate::recreate::recover::{Outcome, Patience, Recovered, recover};
use crate::recreate::replace::{Manner, NewImage, Replaced, replace, successor};
use crate::recreate::{RecreateError, Step, guard, overlap, remove};
use crate::registry::credentials::Credentials;
use crate::registry::digests::Digests;
use crate::secret::Login;

/// What every refresh on one engine shares.
pub struct Workshop {
    pub engine: Arc<dyn Engine>,
    pub credentials: Credentials,
    /// Asked before a pull, and by the watcher.
    pub digests: Arc<Digests>,
    /// Asked for when pulling and when creating, see [`crate::image::image_platform`].
    pub platform: Option<Platform>,
    pub patience: Patience,
    pub leases: Leases,
    pub lanes: Lanes,
    pub ties: KnownTies,
    /// Of the container that we run in, where we do.
    pub own_id: Option<String>,
}

impl Workshop {
    /// Finish or undo what somebody began and could not end. What came of it is logged.
    pub async fn recover(&self) -> Result<Vec<Recovered>, EngineError> {
        let recovered = recover(self.engine.as_ref(), &self.leases, self.patience).await?;
        for one in &recovered {
            let (container, outcome) = (one.container.as_str(), one.outcome);
            match outcome {
                Outcome::InProgress => tracing::info!(
                    container,
                    ?outcome,
                    "a replacement under way: {}",
                    one.detail
                ),
                Outcome::Stranded => tracing::error!(
                    container,
                    ?outcome,
                    "a half-done replacement could not be ended: {}",
                    one.detail
                ),
                Outcome::Finished | Outcome::Undone | Outcome::Superseded => {
                    tracing::warn!(
                        container,
                        ?outcome,
                        "a half-done replacement was ended: {}",
                        one.detail
                    );
                }
            }
        }
        Ok(recovered)
    }

    /// All containers but those that are half of a replacement, sorted by name.
    pub(super) async fn containers(&self) -> Result<Vec<Listed>, EngineError> {
        let mut containers = self.engine.containers().await?;
        containers.retain(|container| names::meaning(&container.name).is_none());
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    pub(super) async fn login(&self, image: &ImageRef) -> Result<Option<Login>, PullError> {
        let found = self.credentials.login(image.registry()).await;
        let found = found.map_err(|source| PullError::Credentials {
            registry: image.registry().to_owned(),
            image: image.clone(),
            source: source.into(),
        })?;
        Ok(found.map(|(login, _)| login))
    }

    /// Look again at a container that was listed: is it still that one, is it behind, may it be touched?
    pub(super) async fn examine(
        &self,
        wanted: &Recreation,
        force: bool,
    ) -> Result<Container, RecreateError> {
        let name = wanted.container.name.clone();
        let container = match self.engine.inspect(wanted.container.id.as_str()).await {
            Ok(container) => container,
            Err(error) if error.is_not_found() => {
                return Err(successor(self.engine.as_ref(), &name, &wanted.image.id).await);
            }
            Err(error) => {
                return Err(RecreateError::Aborted {
                    name,
                    step: Step::Inspect,
                    source: error.into(),
                });
            }
        };
        if container.image_id == wanted.image.id && !force {
            return Err(RecreateError::Current { name });
        }
        if container.name != name {
            if names::meaning(&container.name).is_some() {
                return Err(RecreateError::Busy { name });
            }
            let reason = format!("it was renamed to `{}` since it was listed", container.name);
            return Err(RecreateError::Unsupported { name, reason });
        }
        if let Some(reason) = guard::objection(&container, self.own_id.as_deref()) {
            // Another Refit stops it before it gives it another name; until then its replacement tells.
            let stopped_by_us = container.state != State::Running
                && self
                    .engine
                    .inspect(&names::candidate(&container.id))
                    .await
                    .is_ok();
            return Err(if stopped_by_us {
                RecreateError::Busy { name }
            } else {
                RecreateError::Unsupported { name, reason }
            });
        }
        Ok(container)
    }

    /// The running containers that depend on this one and are replaced with it, each behind all that it depends on. An error
    /// where one of them could not be.
    pub(super) async fn dependents(
        &self,
        container: &Container,
    ) -> Result<Vec<Container>, RecreateError> {
        let name = || container.name.clone();
        let failed = |error: EngineError| RecreateError::Aborted {
            name: name(),
            step: Step::Inspect,
            source: error.into(),
        };
        let listed = self.engine.containers().await.map_err(failed)?;
        let being_proven = |listed: &Listed| matches!(names::meaning(&listed.name), Some(Meaning::Parked { new, .. }) if new == container.id.short());
        if listed.iter().any(being_proven) {
            return Err(RecreateError::Busy { name: name() });
        }
        let others = self.ties.of(self.engine.as_ref(), &listed).await;
        let first = Node {
            id: container.id.clone(),
            name: name(),
            ties: Ties::of(container),
        };
        let mut running = Vec::new();
        for (node, tie) in dependents(&first, others.map_err(failed)?) {
            let dependent = match self.engine.inspect(node.id.as_str()).await {
                Ok(dependent) => dependent,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(failed(error)),
            };
            match guard::objection(&dependent, self.own_id.as_deref()) {
                None => running.push(dependent),
                // It could never be started again: the engine knows its provider by id.
                Some(reason) if tie.must_follow() => {
                    let reason = format!(
                        "`{}` {} and cannot be recreated with it: {reason}",
                        dependent.name,
                        tie.said()
                    );
                    return Err(RecreateError::Unsupported {
                        name: name(),
                        reason,
                    });
                }
                Some(_) => {}
            }
        }
        Ok(running)
    }

    /// Whether two of it may run at once for a while.
    pub(super) async fn may_overlap(&self, container: &Container) -> Result<(), RecreateError> {
        let reason = match self.dependents(container).await?.first() {
            Some(dependent) => Some(format!("`{}` depends on it", dependent.name)),
            None => overlap::objection(container),
        };
        match reason {
            None => Ok(()),
            Some(reason) => Err(RecreateError::Unsupported {
                name: container.name.clone(),
                reason: format!("not by the strategy `overlap`: {reason}; `replace` works"),
            }),
        }
    }

    fn manner<'a>(
        &'a self,
        ending: &'a CancellationToken,
        step: &'a (dyn Fn(Step) + Send + Sync),
    ) -> Manner<'a> {
        Manner {
            platform: self.platform.as_ref(),
            proof: self.patience.proof,
            lanes: &self.lanes,
            ending,
            step,
        }
    }

    /// One on each; `None` where somebody is at work on one of them.
    fn leases(&self, dependents: &[Container]) -> Option<Vec<Lease>> {
        let leases = dependents.iter().map(|it| self.leases.take(&it.id));
        leases.collect()
    }
}

/// One refresh's hands.
pub struct Live {
    pub workshop: Arc<Workshop>,
    /// Recreate also what is up to date.
    pub force: bool,
    pub events: Events,
    /// Set when the refresh is to end: what was stopped by then is finished, and nothing else is.
    pub ending: CancellationToken,
    pub foreseen: Foreseen,
}

#[async_trait]
impl Capabilities for Live {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        let mut containers = self.workshop.engine.containers().await?;
        if containers
            .iter()
            .any(|container| names::meaning(&container.name).is_some())
        {
            // Somebody did not end what they began. A policy should see whole containers only.
            self.workshop.recover().await?;
            return Ok(self.workshop.containers().await?);
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    async fn inspect(&self, container: &Listed) -> Result<Container, CallError<EngineError>> {
        Ok(self.workshop.engine.inspect(container.id.as_str()).await?)
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        self.foreseen.ask(images).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let engine = &self.workshop.engine;
        let failed = |source| PullError::Engine {
            image: image.clone(),
            source,
        };
        let before = match engine.image(&image.to_string()).await {
            Ok(image) => Some(image),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(failed(error).into()),
        };
        let platform = self.workshop.platform.as_ref();
        if let Some(here) = &before
            && let Some(digest) = self
                .foreseen
                .is_here(image, here, platform)
                .map_err(|error| PullError::from(*error))?
        {
            return Ok(PulledImage {
                reference: image.clone(),
                id: here.id.clone(),
                digest: Some(digest),
                transfer: Transfer::UpToDate,
            });
        }
        let login = self.workshop.login(image).await?;
        let progress = |layer| {
            (self.events)(Event::Layer {
                image: image.clone(),
                layer,
            })
        };
        engine
            .pull(image, platform, login.as_ref(), &progress)
            .await?;
        let after = engine.image(&image.to_string()).await.map_err(failed)?;
        Ok(PulledImage {
            reference: image.clone(),
            digest: after.digest_as(image),
            transfer: if before.is_some_and(|before| before.id == after.id) {
                Transfer::UpToDate
            } else {
                Transfer::Pulled
            },
            id: after.id,
        })
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        let Some(lease) = self.workshop.leases.take(&wanted.container.id) else {
            return Err(RecreateError::Busy {
                name: wanted.container.name,
            }
            .into());
        };
        let (outcome, settled) = recreate(self, wanted).await;
        match &outcome {
            Err(RecreateError::Busy { .. }) => lease.give_back(),
            _ if settled => lease.settle(),
            // Kept, for whoever recovers.
            _ => drop(lease),
        }
        if let Err(RecreateError::Withdrawn { .. }) = &outcome {
            return Err(CallError::Cancelled);
        }
        if let Err(error) = &outcome {
            tracing::warn!(hints = ?error.hints(), "{}", Diagnostic::of(error).sentence());
        }
        Ok(outcome?)
    }
}

/// The flag says whether nothing is left to finish or undo.
async fn recreate(live: &Live, wanted: Recreation) -> (Result<Recreated, RecreateError>, bool) {
    let (workshop, events) = (&live.workshop, &live.events);
    let container = match workshop.examine(&wanted, live.force).await {
        Ok(container) => container,
        Err(error) => return (Err(error), true),
    };
    let name = container.name.clone();
    let from_image_id = container.image_id.clone();
    let step = |step| {
        events(Event::Step {
            container: name.clone(),
            step,
        })
    };
    let engine = workshop.engine.as_ref();
    match wanted.strategy {
        Strategy::Remove => {
            step(Step::Remove);
            let removed = remove::remove(engine, &container).await;
            let recreated = Recreated {
                id: None,
                image_id: wanted.image.id,
                from_image_id,
                gap: None,
                followed: vec![],
                left_over: None,
            };
            (removed.map(|()| recreated), true)
        }
        Strategy::Replace => {
            let dependents = match workshop.dependents(&container).await {
                Ok(dependents) => dependents,
                Err(error) => return (Err(error), true),
            };
            let Some(leases) = workshop.leases(&dependents) else {
                return (Err(RecreateError::Busy { name }), true);
            };
            let image = NewImage::pulled(&wanted.image.reference, wanted.image.id);
            let manner = workshop.manner(&live.ending, &step);
            let (replaced, settled) = replace(engine, container, &image, dependents, &manner).await;
            match &replaced {
                Err(RecreateError::Busy { .. }) => leases.into_iter().for_each(Lease::give_back),
                _ if settled => leases.into_iter().for_each(Lease::settle),
                _ => drop(leases),
            }
            (
                replaced.map(|replaced| recreated(replaced, &image, from_image_id)),
                settled,
            )
        }
        Strategy::Overlap => {
            if let Err(error) = workshop.may_overlap(&container).await {
                return (Err(error), true);
            }
            let image = NewImage::pulled(&wanted.image.reference, wanted.image.id);
            let manner = workshop.manner(&live.ending, &step);
            let (replaced, settled) = overlap::overlap(engine, container, &image, &manner).await;
            (
                replaced.map(|replaced| recreated(replaced, &image, from_image_id)),
                settled,
            )
        }
    }
}

fn recreated(replaced: Replaced, image: &NewImage, from_image_id: ImageId) -> Recreated {
    Recreated {
        id: Some(replaced.id),
        image_id: image.id.clone(),
        from_image_id,
        gap: Some(replaced.gap),
        followed: replaced.followed,
        left_over: (!replaced.left_over.is_empty()).then(|| replaced.left_over.join(", ")),
    }
}
