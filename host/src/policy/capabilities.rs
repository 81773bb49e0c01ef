//! The WIT imports: check, convert, do. What a call means is not decided here.

#![expect(
    unreachable_pub,
    reason = "the generated bindings re-export the resource types as `pub`"
)]

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use wasmtime::component::Resource;

use super::bindings::refit::policy::{docker, host, types};
use super::convert;
use super::instance::HostState;
use super::limits::BATCH_MAX;
use crate::capabilities::{CallError, PulledImage, Recreation};
use crate::container::Listed;
use crate::image::ImageRef;

/// What stands behind a `container` handle. The guest holds a number; the id never leaves the host.
pub struct Lent(pub(super) Listed);

/// What stands behind a `pulled-image` handle.
pub struct Fetched(pub(super) PulledImage);

/// A batch that no policy needs is a broken or hostile one.
fn bounded(length: usize) -> wasmtime::Result<()> {
    wasmtime::ensure!(
        length <= BATCH_MAX,
        "a batch of {length} is more than the {BATCH_MAX} that are allowed"
    );
    Ok(())
}

impl docker::HostContainer for HostState {
    async fn name(&mut self, container: Resource<Lent>) -> wasmtime::Result<String> {
        Ok(self.table.get(&container)?.0.name.clone())
    }

    async fn drop(&mut self, container: Resource<Lent>) -> wasmtime::Result<()> {
        self.table.delete(container)?;
        Ok(())
    }
}

impl docker::HostPulledImage for HostState {
    async fn reference(&mut self, image: Resource<Fetched>) -> wasmtime::Result<String> {
        Ok(self.table.get(&image)?.0.reference.to_string())
    }

    async fn id(&mut self, image: Resource<Fetched>) -> wasmtime::Result<String> {
        Ok(self.table.get(&image)?.0.id.as_str().to_owned())
    }

    async fn digest(&mut self, image: Resource<Fetched>) -> wasmtime::Result<Option<String>> {
        Ok(self.table.get(&image)?.0.digest.clone())
    }

    async fn drop(&mut self, image: Resource<Fetched>) -> wasmtime::Result<()> {
        self.table.delete(image)?;
        Ok(())
    }
}

impl docker::Host for HostState {
    async fn containers(
        &mut self,
    ) -> wasmtime::Result<Result<Vec<Resource<Lent>>, types::EngineError>> {
        let listed = match self.capabilities().containers().await {
            Ok(listed) => listed,
            Err(error) => return Ok(Err(convert::engine_error(error))),
        };
        let handles: Result<Vec<_>, _> = listed
            .into_iter()
            .map(|listed| self.table.push(Lent(listed)))
            .collect();
        Ok(Ok(handles?))
    }

    async fn inspect(
        &mut self,
        containers: Vec<Resource<Lent>>,
    ) -> wasmtime::Result<Vec<Result<types::ContainerInfo, types::EngineError>>> {
        bounded(containers.len())?;
        let listed: Result<Vec<Listed>, _> = containers
            .iter()
            .map(|it| self.table.get(it).map(|lent| lent.0.clone()))
            .collect();
        let capabilities = self.capabilities();
        let calls = listed?.into_iter().map(|listed| {
            let capabilities = capabilities.clone();
            async move { capabilities.inspect(&listed).await }
        });
        let answers: Vec<_> = futures_util::stream::iter(calls)
            .buffered(self.concurrency.inspects)
            .collect()
            .await;
        let grants = self.grants.clone();
        let answers = answers.into_iter().map(|answer| match answer {
            Ok(container) => Ok(convert::container_info(&container, &grants)),
            Err(error) => Err(convert::engine_error(error)),
        });
        Ok(answers.collect())
    }

    async fn pull(
        &mut self,
        images: Vec<String>,
    ) -> wasmtime::Result<Vec<Result<Resource<Fetched>, types::PullError>>> {
        bounded(images.len())?;
        let capabilities = self.capabilities();
        let calls = images.into_iter().map(|image| {
            let capabilities = capabilities.clone();
            async move {
                let image: ImageRef = image.parse().map_err(convert::invalid_reference)?;
                capabilities.pull(&image).await.map_err(convert::pull_error)
            }
        });
        let answers: Vec<_> = futures_util::stream::iter(calls)
            .buffered(self.concurrency.pulls)
            .collect()
            .await;
        let mut handles = Vec::with_capacity(answers.len());
        for answer in answers {
            handles.push(match answer {
                Ok(pulled) => Ok(self.table.push(Fetched(pulled))?),
                Err(error) => Err(error),
            });
        }
        Ok(handles)
    }

    async fn recreate(
        &mut self,
        wave: Vec<docker::Recreation>,
    ) -> wasmtime::Result<Vec<Result<types::Recreated, types::RecreateError>>> {
        bounded(wave.len())?;
        let mut wanted = Vec::with_capacity(wave.len());
        for item in &wave {
            wanted.push(Recreation {
                container: self.table.get(&item.container)?.0.clone(),
                image: self.table.get(&item.image)?.0.clone(),
                strategy: convert::strategy(item.strategy),
            });
        }
        let capabilities = self.capabilities();
        let calls = wanted.into_iter().map(|wanted| {
            let capabilities = capabilities.clone();
            async move { capabilities.recreate(wanted).await }
        });
        let answers: Vec<_> = futures_util::stream::iter(calls)
            .buffered(self.concurrency.recreates)
            .collect()
            .await;
        let answers = answers.into_iter().map(|answer| {
            answer
                .map(convert::recreated)
                .map_err(convert::recreate_error)
        });
        Ok(answers.collect())
    }
}

impl host::Host for HostState {
    async fn log(&mut self, level: host::Level, message: String) -> wasmtime::Result<()> {
        self.log.write(level, &message);
        Ok(())
    }

    async fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()))
    }

    async fn state_get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.state.get(&key))
    }

    async fn state_set(
        &mut self,
        key: String,
        value: Option<String>,
    ) -> wasmtime::Result<Result<(), host::StateError>> {
        Ok(self.state.set(&key, value).map_err(convert::state_error))
    }
}

/// `types` has no functions; the generated linker wants to hear so.
impl types::Host for HostState {}

impl<E> CallError<E> {
    pub(super) fn or_else<T>(
        self,
        denied: impl FnOnce(String) -> T,
        quota: impl FnOnce(String) -> T,
        cancelled: T,
        failed: impl FnOnce(E) -> T,
    ) -> T {
        match self {
            Self::Denied(grant) => denied(grant),
            Self::QuotaExceeded(limit) => quota(limit),
            Self::Cancelled => cancelled,
            Self::Failed(error) => failed(error),
        }
    }
}
