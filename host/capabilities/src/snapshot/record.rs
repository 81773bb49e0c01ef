//! Records what the host shows a policy while it runs. It wraps grants and counts, so it does not record refused calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerSummary};
use refit_model::grants::Grants;
use refit_model::image::ImageRef;
use refit_model::unfinished::Unfinished;
use refit_recreate::RecreateError;

use super::{ContainerFacts, ImageFacts, RecreationFault, Snapshot};
use crate::{CallError, Capabilities, PulledImage, Recreated, Recreation};

/// Records a [`Snapshot`]. The counts of the guard, which it wraps, limit its size.
pub struct Recorder {
    inner: Arc<dyn Capabilities>,
    grants: Arc<Grants>,
    snapshot: Mutex<Snapshot>,
    listed: Mutex<Vec<ContainerSummary>>,
}

impl Recorder {
    pub fn new(inner: Arc<dyn Capabilities>, grants: Arc<Grants>) -> Self {
        Self {
            inner,
            grants,
            snapshot: Mutex::new(Snapshot::new(jiff::Timestamp::now())),
            listed: Mutex::default(),
        }
    }

    /// The snapshot so far. It lacks containers that were listed and never inspected.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.lock().clone();
        snapshot.containers.sort_by(|a, b| a.name.cmp(&b.name));
        snapshot
    }

    /// The containers in the last list that the policy received.
    pub fn listed(&self) -> Vec<ContainerSummary> {
        self.listed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Inspect every container that the policy may see, including those that it skipped.
    pub async fn inspect_all(&self) -> Result<(), CallError<EngineError>> {
        for container in self.containers().await? {
            match self.inspect(&container).await {
                Err(CallError::Failed(error)) if error.is_not_found() => {}
                answer => answer.map(drop)?,
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Capabilities for Recorder {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let listed = self.inner.containers().await?;
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = listed.clone();
        Ok(listed)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        let answer = self.inner.inspect(container).await;
        if let Ok(container) = &answer {
            let facts = ContainerFacts::from_container(container, &self.grants);
            let mut snapshot = self.lock();
            // The policy decided on its first inspection.
            if !snapshot.containers.iter().any(|it| it.name == facts.name) {
                snapshot.containers.push(facts);
            }
        }
        answer
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        self.inner.expect_pulls(images).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let answer = self.inner.pull(image).await;
        let facts = match &answer {
            Ok(pulled) => ImageFacts::Pulled {
                id: pulled.id.clone(),
                digest: pulled.digest.clone(),
            },
            Err(error) => ImageFacts::from_error(error),
        };
        self.lock().images.insert(image.to_string(), facts);
        answer
    }

    async fn expect_recreations(&self, wave: &[Recreation]) {
        self.inner.expect_recreations(wave).await;
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.inner.unfinished().await
    }

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        let name = recreation.container.name.clone();
        let answer = self.inner.recreate(recreation).await;
        if let Err(error) = &answer
            && let Some(fault) = RecreationFault::from_error(error)
        {
            self.lock().recreations.insert(name, fault);
        }
        answer
    }
}
