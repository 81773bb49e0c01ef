//! Writes down what a policy is shown while it works. Stands outside of grants and counts: what they refuse is not shown.

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

/// Bounded by the counts of the guard, which stands inside.
pub struct Recorder {
    inner: Arc<dyn Capabilities>,
    grants: Arc<Grants>,
    seen: Mutex<Snapshot>,
    listed: Mutex<Vec<ContainerSummary>>,
}

impl Recorder {
    pub fn new(inner: Arc<dyn Capabilities>, grants: Arc<Grants>) -> Self {
        Self {
            inner,
            grants,
            seen: Mutex::new(Snapshot::new(jiff::Timestamp::now())),
            listed: Mutex::default(),
        }
    }

    /// What was seen so far. A container that was listed and never looked at is not in it.
    pub fn seen(&self) -> Snapshot {
        let mut seen = self.lock().clone();
        seen.containers.sort_by(|a, b| a.name.cmp(&b.name));
        seen
    }

    /// The containers that the policy was shown when it listed them last.
    pub fn listed(&self) -> Vec<ContainerSummary> {
        self.listed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Looks at every container that may be seen, also those that the policy passed over.
    pub async fn look_at_all(&self) -> Result<(), CallError<EngineError>> {
        for container in self.containers().await? {
            match self.inspect(&container).await {
                Err(CallError::Failed(error)) if error.is_not_found() => {}
                answer => answer.map(drop)?,
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
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
            let facts = ContainerFacts::of(container, &self.grants);
            let mut seen = self.lock();
            // The first look is what was decided by.
            if !seen.containers.iter().any(|it| it.name == facts.name) {
                seen.containers.push(facts);
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
            Err(error) => ImageFacts::failed(error),
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
            && let Some(fault) = RecreationFault::of(error)
        {
            self.lock().recreations.insert(name, fault);
        }
        answer
    }
}
