//! Enforces grants and call counts around any [`Capabilities`]. A refused call never reaches the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerSummary};
use refit_model::grants::Verb;
use refit_model::image::ImageRef;
use refit_model::recreation::Strategy;
use refit_model::unfinished::Unfinished;
use refit_recreate::RecreateError;
use tokio_util::sync::CancellationToken;

use super::scope::{Scope, ScopeError};
use super::{CallError, Capabilities, PulledImage, Recreated, Recreation};

/// The number of calls of each capability that a policy may make in one refresh.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub inspects: u32,
    pub pulls: u32,
    pub recreates: u32,
}

pub struct Guard {
    inner: Arc<dyn Capabilities>,
    scope: Arc<Scope>,
    inspects: Quota,
    pulls: Quota,
    cancel: CancellationToken,
}

/// A counter with a limit.
pub(super) struct Quota {
    key: &'static str,
    limit: u32,
    used: AtomicU32,
}

impl Quota {
    pub(super) fn new(key: &'static str, limit: u32) -> Self {
        Self {
            key,
            limit,
            used: AtomicU32::new(0),
        }
    }

    pub(super) fn left(&self) -> usize {
        let left = self.limit - self.used.load(Ordering::Relaxed);
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    /// Use up `count`, or return the name of the limit if fewer are left.
    pub(super) fn take(&self, count: u32) -> Result<(), String> {
        // The counter saturates: it does not wrap around if a guest calls four thousand million times.
        let used = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(count).filter(|sum| *sum <= self.limit)
            });
        used.map(drop).map_err(|_| {
            format!(
                "the limit `[limits] {}` of {} is used up",
                self.key, self.limit
            )
        })
    }
}

impl Guard {
    pub fn new(
        inner: Arc<dyn Capabilities>,
        scope: Arc<Scope>,
        counts: Counts,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            inner,
            scope,
            inspects: Quota::new("inspects_max", counts.inspects),
            pulls: Quota::new("pulls_max", counts.pulls),
            cancel,
        }
    }

    fn check_cancelled<E>(&self) -> Result<(), CallError<E>> {
        if self.cancel.is_cancelled() {
            Err(CallError::Cancelled)
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Capabilities for Guard {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        self.check_cancelled()?;
        self.scope
            .grants()
            .may(Verb::Inspect)
            .map_err(CallError::Denied)?;
        self.inspects.take(1).map_err(CallError::QuotaExceeded)?;
        let mut containers = self.inner.containers().await?;
        containers.retain(|container| self.scope.grants().covers(container));
        Ok(containers)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        self.check_cancelled()?;
        self.scope
            .grants()
            .may(Verb::Inspect)
            .map_err(CallError::Denied)?;
        self.inspects.take(1).map_err(CallError::QuotaExceeded)?;
        self.inner.inspect(container).await
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        if self.cancel.is_cancelled() {
            return;
        }
        let granted = images
            .iter()
            .filter(|it| self.scope.grants().may_pull(it).is_ok());
        let granted: Vec<ImageRef> = granted.take(self.pulls.left()).cloned().collect();
        self.inner.expect_pulls(&granted).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        self.check_cancelled()?;
        self.scope
            .grants()
            .may_pull(image)
            .map_err(CallError::Denied)?;
        self.pulls.take(1).map_err(CallError::QuotaExceeded)?;
        self.inner.pull(image).await
    }

    async fn expect_recreations(&self, wave: &[Recreation]) {
        if self.cancel.is_cancelled() {
            return;
        }
        // A recreation that will be refused must not be part of a group.
        let granted = wave
            .iter()
            .filter(|it| self.scope.grants().may(verb(it.strategy)).is_ok());
        let granted: Vec<Recreation> = granted.take(self.scope.recreates_left()).cloned().collect();
        self.inner.expect_recreations(&granted).await;
    }

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        self.check_cancelled()?;
        self.scope
            .grants()
            .may(verb(recreation.strategy))
            .map_err(CallError::Denied)?;
        let counted = self.scope.count(&recreation.container.id);
        counted.map_err(ScopeError::into_call_error)?;
        self.inner.recreate(recreation).await
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.inner.unfinished().await
    }
}

fn verb(strategy: Strategy) -> Verb {
    match strategy {
        Strategy::Replace => Verb::Replace,
        Strategy::Remove => Verb::Remove,
        Strategy::Overlap => Verb::Overlap,
    }
}
