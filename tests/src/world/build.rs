//! Images that the engine builds from a Dockerfile, and containers that run to their end. For what is handed out: the images of
//! other tests are made without a builder ([`crate::image`]).

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail};
use bollard::query_parameters::{BuildImageOptionsBuilder, WaitContainerOptions};
use futures_util::{StreamExt, TryStreamExt};

use super::{LABEL_IMAGE, World};
use crate::bounded::within;

/// Some copies of some megabytes each take seconds.
const BUILD: Duration = Duration::from_secs(180);
/// A program that runs to its end, on a loaded machine: the longest compiles a hundred policies.
const RUN: Duration = Duration::from_secs(240);

impl World {
    /// Has the engine's own builder make an image of a context (a tar with a `Dockerfile`). The tag is returned.
    pub async fn build(
        &self,
        context: Vec<u8>,
        arguments: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let tag = format!("refit-tests/{}:{}", self.prefix(), self.next_build());
        let arguments: HashMap<&str, &str> = arguments.iter().copied().collect();
        let labels = HashMap::from([(LABEL_IMAGE, self.prefix())]);
        let options = BuildImageOptionsBuilder::new()
            .t(&tag)
            .rm(true)
            .forcerm(true)
            .buildargs(&arguments)
            .labels(&labels)
            .build();
        let body = bollard::body_full(context.into());
        let mut building = self.docker().build_image(options, None, Some(body));
        let built = async {
            let mut said = String::new();
            while let Some(line) = building.next().await {
                let line = line.with_context(|| format!("the builder has said\n{said}"))?;
                if let Some(error) = line.error_detail.and_then(|it| it.message) {
                    bail!("{error}; the builder has said\n{said}");
                }
                said.push_str(&line.stream.unwrap_or_default());
            }
            Ok(())
        };
        within(BUILD, &format!("build image {tag}"), built).await?;
        Ok(tag)
    }

    /// Gives an image another name, and pushes it under that.
    pub async fn push_as(&self, image: &str, reference: &str) -> anyhow::Result<()> {
        self.tag(image, reference).await?;
        self.push(reference).await
    }

    /// Starts a container and awaits its end: its exit status.
    pub async fn run_to_its_end(&self, container: &str) -> anyhow::Result<i64> {
        self.start(container).await?;
        self.until_ended(container).await
    }

    /// Awaits a container's end: its exit status.
    pub async fn until_ended(&self, container: &str) -> anyhow::Result<i64> {
        let waiting = self
            .docker()
            .wait_container(container, None::<WaitContainerOptions>);
        let ended = async {
            match waiting.try_collect::<Vec<_>>().await {
                Ok(answers) => {
                    let answer = answers.first().context("the engine does not say how")?;
                    Ok(answer.status_code)
                }
                // bollard takes a status that is not 0 for an error of its own.
                Err(bollard::errors::Error::DockerContainerWaitError { code, .. }) => Ok(code),
                Err(error) => Err(error.into()),
            }
        };
        within::<_, anyhow::Error>(RUN, &format!("see container {container} end"), ended).await
    }
}
