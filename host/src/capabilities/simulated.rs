//! What a plan answers, in the shape of what a refresh answers.
//!
//! A policy that could tell a plan from a refresh could have one thing approved and do another. So what it sees of a container that
//! would be recreated is what it would see of one that was: another id, the new image, a gap of some length; the old handle finds
//! nothing any more. The ids are random, so nobody can compute them. The [`Plan`](super::plan::Plan) or the snapshot behind it is
//! asked about each container once, by its real id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{CallError, Capabilities, PulledImage, Recreated, Recreation};
use crate::container::{Container, ContainerId, Listed, State};
use crate::engine::{EngineError, PullError};
use crate::image::{ImageId, ImageRef};
use crate::recreate::recover::Unfinished;
use crate::recreate::{RecreateError, guard};

/// Capabilities that change nothing, and answer as if they had.
pub struct Simulated {
    inner: Arc<dyn Capabilities>,
    force: bool,
    containers: Mutex<HashMap<ContainerId, Simulation>>,
}

/// What became of a container, by its real id.
#[derive(Clone)]
enum Simulation {
    Removed,
    Replaced {
        id: ContainerId,
        /// `None`: a follower, which keeps its image.
        image_id: Option<ImageId>,
        /// The name that it has in the container.
        reference: String,
        at: jiff::Timestamp,
    },
}

impl Simulated {
    /// `force`: recreate also what would be up to date.
    pub fn new(inner: Arc<dyn Capabilities>, force: bool) -> Self {
        Self {
            inner,
            force,
            containers: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Simulation>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The real id of a container, and what became of it.
    fn find(&self, id: &ContainerId) -> (ContainerId, Option<Simulation>) {
        let containers = self.lock();
        let found = containers.iter().find(
            |(_, now)| matches!(now, Simulation::Replaced { id: simulated, .. } if simulated == id),
        );
        match found {
            Some((real, now)) => (real.clone(), Some(now.clone())),
            None => (id.clone(), None),
        }
    }
}

/// 32 random bytes in hexadecimal digits, as an engine names containers.
pub(super) fn random_digits() -> String {
    let mut bytes = [0; 32];
    // It fails only where the system has no randomness at all. Then a plan can be recognised, and is right all the same.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        tracing::warn!(
            "the system has no random numbers: a policy could tell a plan from a refresh"
        );
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_id() -> ContainerId {
    ContainerId::new(random_digits())
}

/// What a small container takes.
fn random_gap() -> Duration {
    let digits = random_digits();
    let random = u64::from_str_radix(&digits[..8], 16).unwrap_or_default();
    Duration::from_millis(400 + random % 800)
}

fn gone(container: &Listed) -> EngineError {
    EngineError::NotFound {
        action: format!("inspect container `{}`", container.id.short()),
        source: format!("No such container: {}", container.id).into(),
    }
}

#[async_trait]
impl Capabilities for Simulated {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        let mut listed = self.inner.containers().await?;
        let containers = self.lock();
        listed.retain(|it| !matches!(containers.get(&it.id), Some(Simulation::Removed)));
        for it in &mut listed {
            if let Some(Simulation::Replaced { id, .. }) = containers.get(&it.id) {
                it.id = id.clone();
            }
        }
        Ok(listed)
    }

    async fn inspect(&self, container: &Listed) -> Result<Container, CallError<EngineError>> {
        if self.lock().contains_key(&container.id) {
            return Err(gone(container).into());
        }
        let (real, now) = self.find(&container.id);
        let asked = Listed {
            id: real,
            ..container.clone()
        };
        let mut found = self.inner.inspect(&asked).await?;
        if let Some(Simulation::Replaced {
            id,
            image_id,
            reference,
            at,
        }) = now
        {
            found.id = id;
            found.created = at;
            found.config.insert("Image".into(), reference.into());
            if let Some(id) = image_id {
                found.image_id = id;
            }
            // One that did not run is replaced without being started.
            (found.state, found.started) = match found.state {
                State::Running => (State::Running, Some(at)),
                _ => (State::Created, None),
            };
        }
        Ok(found)
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        self.inner.expect_pulls(images).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        self.inner.pull(image).await
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        let name = wanted.container.name.clone();
        let old = self.lock().get(&wanted.container.id).cloned();
        match &old {
            Some(Simulation::Removed) => return Err(RecreateError::Gone { name }.into()),
            // A follower is still known by the id that it had.
            Some(Simulation::Replaced { image_id: None, .. }) | None => {}
            Some(Simulation::Replaced {
                id,
                image_id: Some(image_id),
                ..
            }) => {
                return Err(RecreateError::ReplacedByOther {
                    name,
                    id: id.clone(),
                    current: *image_id == wanted.image.id,
                    image_id: image_id.clone(),
                }
                .into());
            }
        }
        // By the id that it has now.
        let wanted = match old {
            Some(Simulation::Replaced { id, .. }) => Recreation {
                container: Listed {
                    id,
                    ..wanted.container
                },
                ..wanted
            },
            Some(Simulation::Removed) | None => wanted,
        };
        let (real, now) = self.find(&wanted.container.id);
        let replaced_with = match &now {
            Some(Simulation::Replaced { image_id, .. }) => image_id.as_ref(),
            Some(Simulation::Removed) | None => None,
        };
        if now.is_some() {
            let found = self.inspect(&wanted.container).await;
            if let Ok(found) = found
                && found.state != State::Running
            {
                let reason = guard::not_running(found.state);
                return Err(RecreateError::Unsupported { name, reason }.into());
            }
        }
        if replaced_with == Some(&wanted.image.id) && !self.force {
            return Err(RecreateError::Current { name }.into());
        }
        let image_id = wanted.image.id.clone();
        let reference = wanted.image.reference.to_string();
        let asked = Recreation {
            container: Listed {
                id: real.clone(),
                ..wanted.container
            },
            ..wanted
        };
        let mut recreated = self.inner.recreate(asked).await?;
        let at = jiff::Timestamp::now();
        let mut containers = self.lock();
        if recreated.id.is_none() {
            containers.insert(real, Simulation::Removed);
            return Ok(recreated);
        }
        let id = random_id();
        recreated.id = Some(id.clone());
        recreated.gap = Some(random_gap());
        let now = Simulation::Replaced {
            id,
            image_id: Some(image_id),
            reference,
            at,
        };
        containers.insert(real, now);
        for follower in &mut recreated.followers {
            follower.new_id = random_id();
            let (image_id, reference) = match containers.remove(&follower.id) {
                Some(Simulation::Replaced {
                    image_id,
                    reference,
                    ..
                }) => (image_id, reference),
                Some(Simulation::Removed) | None => (None, follower.image.clone()),
            };
            let now = Simulation::Replaced {
                id: follower.new_id.clone(),
                image_id,
                reference,
                at,
            };
            containers.insert(follower.id.clone(), now);
        }
        Ok(recreated)
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.inner.unfinished().await
    }
}
