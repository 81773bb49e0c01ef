//! Makes the answers of a plan look like those of a refresh.
//!
//! A policy that could distinguish a plan from a refresh could show one thing for approval and do another. So after a simulated
//! recreation the policy sees what it would see after a real one: another id, the new image, a plausible gap; the old handle finds
//! nothing. The ids are random, so that no policy can compute them. The [`DryRunCapabilities`](super::dry_run::DryRunCapabilities)
//! behind this leave a container as it is, and a snapshot assigns a separate id: this module translates the ids in both directions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerId, ContainerSummary, State};
use refit_model::image::{ImageId, ImageRef};
use refit_model::unfinished::Unfinished;
use refit_recreate::{RecreateError, guard};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{CallError, Capabilities, PulledImage, Recreated, Recreation};

/// Capabilities that change nothing and answer as if they had.
pub struct SimulatedCapabilities {
    inner: Arc<dyn Capabilities>,
    force: bool,
    containers: Mutex<HashMap<ContainerId, Simulation>>,
}

/// The simulated result of recreating a container.
#[derive(Clone)]
enum Simulation {
    Removed,
    Replaced {
        id: ContainerId,
        /// The id by which the wrapped capabilities know the container now.
        inner: ContainerId,
        /// The new image, or `None` for a follower, which keeps its image.
        image_id: Option<ImageId>,
        /// The image reference in the container's configuration.
        reference: String,
        at: jiff::Timestamp,
    },
}

impl SimulatedCapabilities {
    /// `force` recreates also containers that are up to date.
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

    /// The original id of a container, and its simulated recreation.
    fn find(&self, id: &ContainerId) -> (ContainerId, Option<Simulation>) {
        let containers = self.lock();
        let found = containers.iter().find(
            |(_, now)| matches!(now, Simulation::Replaced { id: simulated, .. } if simulated == id),
        );
        match found {
            Some((first, now)) => (first.clone(), Some(now.clone())),
            None => (id.clone(), None),
        }
    }
}

/// 32 random bytes in hexadecimal digits, the form of an engine's container ids.
pub(super) fn random_digits() -> String {
    let mut bytes = [0; 32];
    // This fails only if the system has no randomness at all. A policy can then recognize the plan, which is still correct.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        tracing::warn!(
            "no random numbers from the system: a policy could distinguish a plan from a refresh"
        );
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_id() -> ContainerId {
    ContainerId::new(random_digits())
}

/// The downtime of a small container.
fn random_gap() -> Duration {
    let digits = random_digits();
    let random = u64::from_str_radix(&digits[..8], 16).unwrap_or_default();
    Duration::from_millis(400 + random % 800)
}

/// The id by which the wrapped capabilities know a container whose id is, or was, `id`.
fn known_id(id: &ContainerId, now: Option<&Simulation>) -> ContainerId {
    match now {
        Some(Simulation::Replaced { inner, .. }) => inner.clone(),
        Some(Simulation::Removed) | None => id.clone(),
    }
}

fn not_found_error(container: &ContainerSummary) -> EngineError {
    EngineError::NotFound {
        action: format!("inspect container `{}`", container.id.short()),
        source: format!("No such container: {}", container.id).into(),
    }
}

#[async_trait]
impl Capabilities for SimulatedCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let mut listed = self.inner.containers().await?;
        let containers = self.lock();
        listed.retain(|it| !matches!(containers.get(&it.id), Some(Simulation::Removed)));
        let replaced = containers.iter().filter_map(|(first, now)| match now {
            Simulation::Replaced { id, inner, .. } => Some([(first, id), (inner, id)]),
            Simulation::Removed => None,
        });
        let shown: HashMap<&ContainerId, &ContainerId> = replaced.flatten().collect();
        for it in &mut listed {
            if let Some(id) = shown.get(&it.id) {
                it.id = (*id).clone();
            }
        }
        Ok(listed)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        if self.lock().contains_key(&container.id) {
            return Err(not_found_error(container).into());
        }
        let (_, now) = self.find(&container.id);
        let asked = ContainerSummary {
            id: known_id(&container.id, now.as_ref()),
            ..container.clone()
        };
        let mut found = self.inner.inspect(&asked).await?;
        if let Some(Simulation::Replaced {
            id,
            inner: _,
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
            // A container that is not running is replaced without being started.
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

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        let name = recreation.container.name.clone();
        let old = self.lock().get(&recreation.container.id).cloned();
        match &old {
            Some(Simulation::Removed) => return Err(RecreateError::Gone { name }.into()),
            // A follower is still known by its old id.
            Some(Simulation::Replaced { image_id: None, .. }) | None => {}
            Some(Simulation::Replaced {
                id,
                image_id: Some(image_id),
                ..
            }) => {
                return Err(RecreateError::ReplacedByOther {
                    name,
                    id: id.clone(),
                    current: *image_id == recreation.image.id,
                    image_id: image_id.clone(),
                }
                .into());
            }
        }
        // Use the id that the container has now.
        let recreation = match old {
            Some(Simulation::Replaced { id, .. }) => Recreation {
                container: ContainerSummary {
                    id,
                    ..recreation.container
                },
                ..recreation
            },
            Some(Simulation::Removed) | None => recreation,
        };
        let (first, now) = self.find(&recreation.container.id);
        let replaced_with = match &now {
            Some(Simulation::Replaced { image_id, .. }) => image_id.as_ref(),
            Some(Simulation::Removed) | None => None,
        };
        if now.is_some() {
            let found = self.inspect(&recreation.container).await;
            if let Ok(found) = found
                && found.state != State::Running
            {
                let reason = guard::not_running(found.state);
                return Err(RecreateError::Unsupported { name, reason }.into());
            }
        }
        if replaced_with == Some(&recreation.image.id) && !self.force {
            return Err(RecreateError::Current { name }.into());
        }
        let image_id = recreation.image.id.clone();
        let reference = recreation.image.reference.to_string();
        let asked = Recreation {
            container: ContainerSummary {
                id: known_id(&first, now.as_ref()),
                ..recreation.container
            },
            ..recreation
        };
        let mut recreated = self.inner.recreate(asked).await?;
        let at = jiff::Timestamp::now();
        let mut containers = self.lock();
        let Some(inner) = recreated.id.take() else {
            containers.insert(first, Simulation::Removed);
            return Ok(recreated);
        };
        let id = random_id();
        recreated.id = Some(id.clone());
        recreated.gap = Some(random_gap());
        let now = Simulation::Replaced {
            id,
            inner,
            image_id: Some(image_id),
            reference,
            at,
        };
        containers.insert(first, now);
        for follower in &mut recreated.followers {
            let inner = std::mem::replace(&mut follower.new_id, random_id());
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
                inner,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::snapshot::Snapshot;
    use crate::snapshot::replay::SnapshotCapabilities;
    use refit_model::recreation::Strategy;

    const APP: &str = "ghcr.io/acme/app:latest";

    /// Simulates on a snapshot, which gives a recreated container a predictable id.
    fn simulated() -> SimulatedCapabilities {
        let snapshot = json!({
            "snapshot": 1,
            "taken": "2026-11-29T12:00:00Z",
            "containers": [{
                "id": "old", "name": "ws-a", "image": APP, "image_id": "sha256:old",
                "state": "running", "created": 0,
            }],
            "images": { APP: { "id": "sha256:new" } },
        });
        let snapshot = Snapshot::parse(snapshot.to_string().as_bytes(), "a test").unwrap();
        SimulatedCapabilities::new(Arc::new(SnapshotCapabilities::new(snapshot, false)), false)
    }

    async fn recreate(
        simulated: &SimulatedCapabilities,
        container: &ContainerSummary,
        strategy: Strategy,
    ) -> Result<Recreated, CallError<RecreateError>> {
        let image = simulated.pull(&APP.parse().unwrap()).await.unwrap();
        let recreation = Recreation {
            container: container.clone(),
            image,
            strategy,
        };
        simulated.recreate(recreation).await
    }

    #[tokio::test]
    async fn recreated_container_is_found_under_the_new_id_alone() {
        let simulated = simulated();
        let old = simulated.containers().await.unwrap().remove(0);
        let recreated = recreate(&simulated, &old, Strategy::Replace).await.unwrap();
        let new = simulated.containers().await.unwrap().remove(0);
        assert_eq!(Some(&new.id), recreated.id.as_ref());
        assert_eq!(new.id.as_str().len(), 64);
        let found = simulated.inspect(&new).await.unwrap();
        assert_eq!(found.id, new.id);
        assert_eq!(found.image_id.as_str(), "sha256:new");
        assert!(simulated.inspect(&old).await.is_err());
        let again = recreate(&simulated, &new, Strategy::Replace).await;
        assert!(matches!(
            again,
            Err(CallError::Failed(RecreateError::Current { .. }))
        ));
    }

    #[tokio::test]
    async fn removed_container_is_not_listed() {
        let simulated = simulated();
        let old = simulated.containers().await.unwrap().remove(0);
        let removed = recreate(&simulated, &old, Strategy::Remove).await.unwrap();
        assert_eq!(removed.id, None);
        assert!(simulated.containers().await.unwrap().is_empty());
        let again = recreate(&simulated, &old, Strategy::Remove).await;
        assert!(matches!(
            again,
            Err(CallError::Failed(RecreateError::Gone { .. }))
        ));
    }

    #[tokio::test]
    async fn two_plans_show_other_ids() {
        let mut ids = Vec::new();
        for simulated in [simulated(), simulated()] {
            let old = simulated.containers().await.unwrap().remove(0);
            let recreated = recreate(&simulated, &old, Strategy::Replace).await.unwrap();
            ids.push(recreated.id);
        }
        assert_ne!(ids[0], ids[1]);
    }
}
