//! The capabilities for real: the engine does what is asked.

use std::sync::Arc;

use async_trait::async_trait;

use super::{CallError, Capabilities, PulledImage, Recreated, Recreation, Strategy, Transfer};
use crate::container::{Container, Listed};
use crate::diagnostic::Hints as _;
use crate::engine::{Engine, EngineError, PullError, Removal};
use crate::image::{ImageRef, Platform};
use crate::journal::{Event, Events};
use crate::recreate::replace::{NewImage, Proof, replace};
use crate::recreate::{Locks, RecreateError, Step, guard};
use crate::registry::credentials::Credentials;
use crate::secret::Login;

/// What every refresh on one engine shares.
pub struct Workshop {
    pub engine: Arc<dyn Engine>,
    pub credentials: Credentials,
    /// Asked for when pulling and when creating, see [`crate::image::image_platform`].
    pub platform: Option<Platform>,
    pub proof: Proof,
    pub locks: Locks,
    /// Of the container that we run in, where we do.
    pub own_id: Option<String>,
}

impl Workshop {
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
            Err(error) if error.is_not_found() => return Err(self.successor(wanted).await),
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
            // Somebody moves names about, another Refit for one. What we were asked about is no longer what it was.
            let reason = format!("it was renamed to `{}` since it was listed", container.name);
            return Err(RecreateError::Unsupported { name, reason });
        }
        if let Some(reason) = guard::objection(&container, self.own_id.as_deref()) {
            return Err(RecreateError::Unsupported { name, reason });
        }
        Ok(container)
    }

    async fn successor(&self, wanted: &Recreation) -> RecreateError {
        let name = wanted.container.name.clone();
        match self.engine.inspect(&name).await {
            Ok(other) => RecreateError::ReplacedByOther {
                name,
                current: other.image_id == wanted.image.id,
                id: other.id,
                image_id: other.image_id,
            },
            Err(error) if error.is_not_found() => RecreateError::Gone { name },
            Err(error) => RecreateError::Aborted {
                name,
                step: Step::Inspect,
                source: error.into(),
            },
        }
    }
}

/// One refresh's hands.
pub struct Live {
    pub workshop: Arc<Workshop>,
    /// Recreate also what is up to date.
    pub force: bool,
    pub events: Events,
}

#[async_trait]
impl Capabilities for Live {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        let mut containers = self.workshop.engine.containers().await?;
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    async fn inspect(&self, container: &Listed) -> Result<Container, CallError<EngineError>> {
        Ok(self.workshop.engine.inspect(container.id.as_str()).await?)
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let engine = &self.workshop.engine;
        let failed = |source| PullError::Engine {
            image: image.clone(),
            source,
        };
        let login = self.workshop.login(image).await?;
        let before = match engine.image(&image.to_string()).await {
            Ok(image) => Some(image.id),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(failed(error).into()),
        };
        let progress = |layer| {
            (self.events)(Event::Layer {
                image: image.clone(),
                layer,
            })
        };
        engine
            .pull(
                image,
                self.workshop.platform.as_ref(),
                login.as_ref(),
                &progress,
            )
            .await?;
        let after = engine.image(&image.to_string()).await.map_err(failed)?;
        Ok(PulledImage {
            reference: image.clone(),
            digest: digest_for(&after.repo_digests, image),
            transfer: if before.as_ref() == Some(&after.id) {
                Transfer::UpToDate
            } else {
                Transfer::Pulled
            },
            id: after.id,
        })
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        let Some(_lock) = self.workshop.locks.take(&wanted.container.id) else {
            return Err(RecreateError::Busy {
                name: wanted.container.name,
            }
            .into());
        };
        Ok(recreate(&self.workshop, wanted, self.force, &self.events).await?)
    }
}

async fn recreate(
    workshop: &Workshop,
    wanted: Recreation,
    force: bool,
    events: &Events,
) -> Result<Recreated, RecreateError> {
    let container = workshop.examine(&wanted, force).await?;
    let name = container.name.clone();
    let step = |step| {
        events(Event::Step {
            container: name.clone(),
            step,
        })
    };
    let outcome = match wanted.strategy {
        Strategy::Remove => {
            step(Step::Remove);
            match workshop.engine.remove(&container.id, Removal::Force).await {
                Ok(()) => Ok(Recreated {
                    id: None,
                    image_id: wanted.image.id,
                    from_image_id: container.image_id.clone(),
                    gap: None,
                    left_over: None,
                }),
                Err(error) if error.is_not_found() => {
                    Err(RecreateError::Gone { name: name.clone() })
                }
                Err(error) => Err(RecreateError::Aborted {
                    name: name.clone(),
                    step: Step::Remove,
                    source: error.into(),
                }),
            }
        }
        Strategy::Replace => {
            let image = NewImage {
                reference: wanted.image.reference,
                id: wanted.image.id,
            };
            let platform = workshop.platform.as_ref();
            let replaced = replace(
                workshop.engine.as_ref(),
                &container,
                &image,
                platform,
                workshop.proof,
                &step,
            )
            .await;
            replaced.map(|replaced| Recreated {
                id: Some(replaced.id),
                image_id: image.id,
                from_image_id: container.image_id.clone(),
                gap: Some(replaced.gap),
                left_over: replaced.left_over,
            })
        }
        Strategy::Overlap => {
            let reason =
                "this version of Refit does not know the strategy `overlap` yet; `replace` works"
                    .into();
            Err(RecreateError::Unsupported {
                name: name.clone(),
                reason,
            })
        }
    };
    if let Err(error) = &outcome {
        tracing::warn!(container = name, hints = ?error.hints(), "{}", crate::diagnostic::Diagnostic::of(error).sentence());
    }
    outcome
}

/// The digest under which this image's own repository serves it. An image may carry digests of several repositories.
pub(super) fn digest_for(repo_digests: &[String], image: &ImageRef) -> Option<String> {
    repo_digests.iter().find_map(|entry| {
        let (repository, digest) = entry.split_once('@')?;
        // The engine writes Docker Hub's short names here.
        let same = repository
            .parse::<ImageRef>()
            .is_ok_and(|it| it.repository() == image.repository());
        same.then(|| digest.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_of_another_repository_is_not_taken() {
        let (a, b) = (
            "sha256:".to_owned() + &"a".repeat(64),
            "sha256:".to_owned() + &"b".repeat(64),
        );
        let digests = [format!("ghcr.io/other/app@{a}"), format!("nginx@{b}")];
        assert_eq!(digest_for(&digests, &"nginx:1".parse().unwrap()), Some(b));
        assert_eq!(
            digest_for(&digests, &"ghcr.io/acme/app".parse().unwrap()),
            None
        );
    }
}
