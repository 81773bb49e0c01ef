//! The host side of the WIT imports: it checks and converts each call, and passes it to the capabilities, which decide what it
//! means.

#![expect(
    unreachable_pub,
    reason = "the generated bindings re-export the resource types as `pub`"
)]

use futures_util::StreamExt as _;
use refit_capabilities::{PulledImage, Recreation};
use refit_model::container::ContainerSummary;
use refit_model::image::ImageRef;
use wasmtime::component::Resource;

use super::bindings::refit::policy::{docker, host, types};
use super::convert;
use super::instance::{Exceeded, HostState};
use super::limits::BATCH_MAX;

/// The host's data of a `container` handle. The guest holds a number; the id never leaves the host.
pub struct ContainerResource(pub(super) ContainerSummary);

/// The host's data of a `pulled-image` handle.
pub struct ImageResource(pub(super) PulledImage);

/// Return an error if a batch is larger than any policy needs: its policy is broken or hostile.
fn check_batch_size(length: usize) -> Result<(), Exceeded> {
    if length > BATCH_MAX {
        return Err(Exceeded {
            asked: length,
            of: "calls in one batch",
            limit: BATCH_MAX,
        });
    }
    Ok(())
}

impl HostState {
    /// Charge a text that goes to the guest to its budget.
    fn charge_text(&mut self, text: String) -> wasmtime::Result<String> {
        self.spent.text(text.len())?;
        Ok(text)
    }
}

impl docker::HostContainer for HostState {
    async fn name(&mut self, container: Resource<ContainerResource>) -> wasmtime::Result<String> {
        self.spent.call()?;
        let name = self.table.get(&container)?.0.name.clone();
        self.charge_text(name)
    }

    async fn drop(&mut self, container: Resource<ContainerResource>) -> wasmtime::Result<()> {
        self.spent.call()?;
        self.table.delete(container)?;
        Ok(())
    }
}

impl docker::HostPulledImage for HostState {
    async fn reference(&mut self, image: Resource<ImageResource>) -> wasmtime::Result<String> {
        self.spent.call()?;
        let reference = self.table.get(&image)?.0.reference.to_string();
        self.charge_text(reference)
    }

    async fn id(&mut self, image: Resource<ImageResource>) -> wasmtime::Result<String> {
        self.spent.call()?;
        let id = self.table.get(&image)?.0.id.as_str().to_owned();
        self.charge_text(id)
    }

    async fn digest(&mut self, image: Resource<ImageResource>) -> wasmtime::Result<Option<String>> {
        self.spent.call()?;
        let digest = self.table.get(&image)?.0.digest.clone();
        digest.map(|digest| self.charge_text(digest)).transpose()
    }

    async fn drop(&mut self, image: Resource<ImageResource>) -> wasmtime::Result<()> {
        self.spent.call()?;
        self.table.delete(image)?;
        Ok(())
    }
}

impl docker::Host for HostState {
    async fn containers(
        &mut self,
    ) -> wasmtime::Result<Result<Vec<Resource<ContainerResource>>, types::EngineError>> {
        self.spent.call()?;
        if let Err(limit) = self.spent.list() {
            return Ok(Err(types::EngineError::QuotaExceeded(limit)));
        }
        let listed = match self.capabilities().containers().await {
            Ok(listed) => listed,
            Err(error) => return Ok(Err(convert::engine_error(error))),
        };
        for listed in &listed {
            self.spent.text(container_handle_bytes(listed))?;
            if !self.lent.contains(&listed.name) {
                self.lent.insert(listed.name.clone());
            }
        }
        let handles: Result<Vec<_>, _> = listed
            .into_iter()
            .map(|listed| self.table.push(ContainerResource(listed)))
            .collect();
        Ok(Ok(handles?))
    }

    async fn inspect(
        &mut self,
        containers: Vec<Resource<ContainerResource>>,
    ) -> wasmtime::Result<Vec<Result<types::ContainerInfo, types::EngineError>>> {
        check_batch_size(containers.len())?;
        self.spent.calls(containers.len().max(1))?;
        let listed: Result<Vec<ContainerSummary>, _> = containers
            .iter()
            .map(|it| self.table.get(it).map(|lent| lent.0.clone()))
            .collect();
        let capabilities = self.capabilities();
        let calls = listed?.into_iter().map(|listed| {
            let capabilities = capabilities.clone();
            async move { capabilities.inspect(&listed).await }
        });
        let mut calls = futures_util::stream::iter(calls).buffered(self.concurrency.inspects);
        let mut answers = Vec::new();
        // One after the other, because a batch that names one large container thousands of times must end before it is answered.
        while let Some(answer) = calls.next().await {
            answers.push(match answer {
                Ok(container) => {
                    let info = convert::container_info(&container, &self.grants);
                    self.spent.text(container_info_bytes(&info))?;
                    Ok(info)
                }
                Err(error) => Err(convert::engine_error(error)),
            });
        }
        Ok(answers)
    }

    async fn pull(
        &mut self,
        images: Vec<String>,
    ) -> wasmtime::Result<Vec<Result<Resource<ImageResource>, types::PullError>>> {
        check_batch_size(images.len())?;
        self.spent.calls(images.len().max(1))?;
        self.spent.text(images.iter().map(String::len).sum())?;
        let capabilities = self.capabilities();
        let images = images.iter().map(|image| image.parse::<ImageRef>());
        let images: Vec<_> = images.collect();
        let expected: Vec<ImageRef> = images.iter().flatten().cloned().collect();
        capabilities.expect_pulls(&expected).await;
        let calls = images.into_iter().map(|image| {
            let capabilities = capabilities.clone();
            async move {
                let image = image.map_err(convert::invalid_reference)?;
                capabilities.pull(&image).await.map_err(convert::pull_error)
            }
        });
        let answers = run_concurrently(calls, self.concurrency.pulls).await;
        let mut handles = Vec::with_capacity(answers.len());
        for answer in answers {
            handles.push(match answer {
                Ok(pulled) => Ok(self.table.push(ImageResource(pulled))?),
                Err(error) => Err(error),
            });
        }
        Ok(handles)
    }

    async fn recreate(
        &mut self,
        wave: Vec<docker::Recreation>,
    ) -> wasmtime::Result<Vec<Result<types::Recreated, types::RecreateError>>> {
        check_batch_size(wave.len())?;
        self.spent.calls(wave.len().max(1))?;
        let mut wanted = Vec::with_capacity(wave.len());
        let mut names = Vec::with_capacity(wave.len());
        for item in &wave {
            let container = self.table.get(&item.container)?.0.clone();
            self.spent.text(container.name.len())?;
            names.push(container.name.clone());
            wanted.push(Recreation {
                container,
                image: self.table.get(&item.image)?.0.clone(),
                strategy: convert::strategy(item.strategy),
            });
        }
        self.waves.push(names);
        let capabilities = self.capabilities();
        capabilities.expect_recreations(&wanted).await;
        let calls = wanted.into_iter().map(|wanted| {
            let capabilities = capabilities.clone();
            async move { capabilities.recreate(wanted).await }
        });
        let answers = run_concurrently(calls, self.concurrency.recreates).await;
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
        self.spent.call()?;
        self.spent.text(message.len())?;
        self.log.write(level, &message);
        Ok(())
    }

    async fn now(&mut self) -> wasmtime::Result<u64> {
        self.spent.call()?;
        Ok(self.clock.now())
    }

    async fn state_get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        self.spent.call()?;
        self.spent.text(key.len())?;
        let value = self.state.get(&key);
        value.map(|value| self.charge_text(value)).transpose()
    }

    async fn state_set(
        &mut self,
        key: String,
        value: Option<String>,
    ) -> wasmtime::Result<Result<(), host::StateError>> {
        self.spent.call()?;
        self.spent
            .text(key.len() + value.as_ref().map_or(0, String::len))?;
        if let Err(limit) = self.spent.state_write() {
            return Ok(Err(host::StateError::TooLarge(limit)));
        }
        Ok(self.state.set(&key, value).map_err(convert::state_error))
    }
}

/// Run `at_once` calls at a time, and return the answers in the order of the calls. The next call starts when any ends, so that a
/// long call does not delay the ones after it, as it would in a stream that is `buffered`.
fn run_concurrently<T: Send>(
    calls: impl Iterator<Item: Future<Output = T> + Send>,
    at_once: usize,
) -> impl Future<Output = Vec<T>> + Send {
    let numbered = calls.enumerate();
    let numbered: Vec<_> = numbered
        .map(|(number, call)| async move { (number, call.await) })
        .collect();
    async move {
        let answers = futures_util::stream::iter(numbered).buffer_unordered(at_once);
        let mut answers: Vec<_> = answers.collect().await;
        answers.sort_unstable_by_key(|(number, _)| *number);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// The memory that a handle takes on the host. If a guest drops no handles, its budget ends.
fn container_handle_bytes(listed: &ContainerSummary) -> usize {
    let labels: usize = listed
        .labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    size_of::<ContainerResource>() + listed.name.len() + listed.network_mode.len() + labels
}

fn container_info_bytes(info: &types::ContainerInfo) -> usize {
    let pairs = |pairs: &[(String, String)]| -> usize {
        pairs
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum()
    };
    size_of::<types::ContainerInfo>()
        + info.name.len()
        + info.image.len()
        + pairs(&info.labels)
        + pairs(&info.environment)
        + info.networks.iter().map(String::len).sum::<usize>()
        + info.published_ports.len() * size_of::<types::PublishedPort>()
}

/// `types` has no functions, but the generated linker needs this implementation.
impl types::Host for HostState {}
