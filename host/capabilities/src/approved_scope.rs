//! The limits that an approval puts on one refresh: the approved images, containers and strategies, and nothing else.
//!
//! A tag can move, and another container can take a name, between the plan and the refresh that was approved. So
//! [`ScopedCapabilities`] checks an image before the pull and again after it, and compares each recreation with the plan: the
//! container's id, its image, the strategy, and the containers that are replaced with it. It hides newer containers from the
//! policy, because no approval covers them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerId, ContainerSummary};
use refit_model::image::ImageRef;
use refit_model::recreation::Strategy;
use refit_model::unfinished::Unfinished;
use refit_recreate::RecreateError;

use super::{CallError, Capabilities, PulledImage, Recreated, Recreation};

/// The actions that an approval allows.
#[derive(Clone, Debug)]
pub struct ApprovedScope {
    /// The name of the approval in a refusal: `approval 7`.
    pub title: String,
    /// The digest that the registry must have for each image.
    pub images: HashMap<ImageRef, String>,
    /// The containers that may be recreated, by name.
    pub containers: BTreeMap<String, ApprovedContainer>,
    /// The names of the other containers that existed when the plan was made.
    pub others: BTreeSet<String>,
    /// The containers that this refresh has created itself, by name.
    renewed: Arc<Mutex<HashMap<String, ContainerId>>>,
}

/// A container that may be recreated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovedContainer {
    pub id: ContainerId,
    pub strategy: Strategy,
    /// The image that the new container runs.
    pub image: ImageRef,
    /// The containers that depend on it and may be replaced with it, by name.
    pub followers: BTreeMap<String, ContainerId>,
}

impl ApprovedScope {
    pub fn new(
        title: String,
        images: HashMap<ImageRef, String>,
        containers: BTreeMap<String, ApprovedContainer>,
        others: BTreeSet<String>,
    ) -> Self {
        Self {
            title,
            images,
            containers,
            others,
            renewed: Arc::default(),
        }
    }

    fn covers(&self, pulled: &PulledImage) -> Result<(), String> {
        let (title, image) = (&self.title, &pulled.reference);
        let Some(approved) = self.images.get(image) else {
            return Err(format!("{title} says nothing about `{image}`"));
        };
        match &pulled.digest {
            // An image may have several digests: it is approved if the approved digest is among them.
            _ if pulled.has_digest(approved) => Ok(()),
            Some(digest) => Err(format!(
                "{title} is for `{approved}`, and `{image}` stands for `{digest}` now"
            )),
            None => Err(format!(
                "{title} is for `{approved}`, and the engine does not say what `{image}` stands for"
            )),
        }
    }

    fn allows(&self, recreation: &Recreation) -> Result<(), String> {
        let (title, name) = (&self.title, &recreation.container.name);
        let Some(approved) = self.containers.get(name) else {
            return Err(format!("{title} does not say that `{name}` is recreated"));
        };
        if approved.strategy != recreation.strategy {
            return Err(format!("{title} is for another way of recreating `{name}`"));
        }
        let image = &recreation.image.reference;
        if approved.image != *image {
            return Err(format!(
                "{title} gives `{name}` the image `{}`, not `{image}`",
                approved.image
            ));
        }
        self.covers(&recreation.image)?;
        self.is_approved_one(name, &approved.id, &recreation.container.id)
    }

    /// Check whether the approval covers replacing `followers` with `providers`: as followers of these, or as containers that are
    /// approved themselves.
    pub(super) fn covers_followers(
        &self,
        providers: &[&str],
        followers: &[&Container],
    ) -> Result<(), String> {
        for follower in followers {
            let name = &follower.name;
            let of_providers = providers
                .iter()
                .filter_map(|provider| self.containers.get(*provider)?.followers.get(name));
            let itself = self.containers.get(name).map(|approved| &approved.id);
            let Some(approved) = of_providers.chain(itself).next() else {
                return Err(format!(
                    "{} does not say that `{name}` is recreated with `{}`",
                    self.title,
                    providers.join("`, `")
                ));
            };
            self.is_approved_one(name, approved, &follower.id)?;
        }
        Ok(())
    }

    fn is_approved_one(
        &self,
        name: &str,
        approved: &ContainerId,
        found: &ContainerId,
    ) -> Result<(), String> {
        if approved == found || self.lock().get(name) == Some(found) {
            return Ok(());
        }
        Err(format!(
            "{} is for container {} as `{name}`; {} has the name now",
            self.title,
            approved.short(),
            found.short()
        ))
    }

    fn note(&self, name: &str, recreated: &Recreated) {
        let mut renewed = self.lock();
        renewed.extend(recreated.id.clone().map(|id| (name.to_owned(), id)));
        for follower in &recreated.followers {
            renewed.insert(follower.name.clone(), follower.new_id.clone());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, ContainerId>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Capabilities that refuse everything the approval does not cover.
pub struct ScopedCapabilities {
    inner: Arc<dyn Capabilities>,
    /// The capabilities of a plan: their `pull` returns the registry's digest and pulls nothing.
    plan: Arc<dyn Capabilities>,
    scope: Arc<ApprovedScope>,
}

impl ScopedCapabilities {
    pub fn new(
        inner: Arc<dyn Capabilities>,
        plan: Arc<dyn Capabilities>,
        scope: Arc<ApprovedScope>,
    ) -> Self {
        Self { inner, plan, scope }
    }
}

#[async_trait]
impl Capabilities for ScopedCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let mut containers = self.inner.containers().await?;
        containers.retain(|container| {
            let name = &container.name;
            self.scope.containers.contains_key(name) || self.scope.others.contains(name)
        });
        Ok(containers)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        self.inner.inspect(container).await
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        let covered = images
            .iter()
            .filter(|it| self.scope.images.contains_key(it));
        let covered: Vec<ImageRef> = covered.cloned().collect();
        self.inner.expect_pulls(&covered).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        if !self.scope.images.contains_key(image) {
            let title = &self.scope.title;
            return Err(CallError::Denied(format!(
                "{title} says nothing about `{image}`"
            )));
        }
        let covered = |pulled: &PulledImage| self.scope.covers(pulled);
        // Check before the pull: if the tag has moved in the registry, it should not move on this machine.
        covered(&self.plan.pull(image).await?).map_err(CallError::Denied)?;
        let pulled = self.inner.pull(image).await?;
        covered(&pulled).map_err(CallError::Denied)?;
        Ok(pulled)
    }

    async fn expect_recreations(&self, wave: &[Recreation]) {
        let allowed = wave.iter().filter(|it| self.scope.allows(it).is_ok());
        let allowed: Vec<Recreation> = allowed.cloned().collect();
        self.inner.expect_recreations(&allowed).await;
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.inner.unfinished().await
    }

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        self.scope.allows(&recreation).map_err(CallError::Denied)?;
        let name = recreation.container.name.clone();
        let recreated = self.inner.recreate(recreation).await?;
        self.scope.note(&name, &recreated);
        Ok(recreated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Follower, Transfer};
    use refit_model::container::{Image, Object};
    use refit_model::image::ImageId;

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    fn inspected() -> Container {
        let document = br#"{"Id": "a1", "Name": "/ws-a", "Image": "sha256:old", "Created": "1970-01-01T00:00:00Z",
            "State": {"Status": "running"}, "Config": {}, "HostConfig": {}, "NetworkSettings": {}, "Mounts": []}"#;
        refit_engine::docker::parse_container(document).unwrap()
    }

    fn scope() -> ApprovedScope {
        let ana = ApprovedContainer {
            id: ContainerId::new("a1"),
            strategy: Strategy::Replace,
            image: image("ghcr.io/acme/app"),
            followers: [("ws-side".to_owned(), ContainerId::new("s1"))].into(),
        };
        let other = (image("ghcr.io/acme/other"), "sha256:o".to_owned());
        ApprovedScope::new(
            "approval 7".into(),
            [(image("ghcr.io/acme/app"), "sha256:a".to_owned()), other].into(),
            [("ws-ana".to_owned(), ana)].into(),
            ["ws-bo".to_owned()].into(),
        )
    }

    fn found(reference: &str, digest: Option<&str>, also: &[&str]) -> PulledImage {
        let reference = image(reference);
        let names = also.iter().map(|it| format!("ghcr.io/acme/app@{it}"));
        let local = Image {
            id: ImageId::new("sha256:c"),
            repo_digests: names.collect(),
            os: "linux".into(),
            architecture: "amd64".into(),
            config: Object::new(),
            content: None,
        };
        PulledImage {
            reference,
            id: local.id.clone(),
            digest: digest.map(str::to_owned),
            local: Some(Arc::new(local)),
            replaced: None,
            transfer: Transfer::Pulled,
        }
    }

    #[test]
    fn an_image_is_covered_by_its_digest_alone() {
        let scope = scope();
        let app = "ghcr.io/acme/app:latest";
        let covers = |name, digest, also: &[_]| scope.covers(&found(name, digest, also));
        assert_eq!(covers(app, Some("sha256:a"), &["sha256:a"]), Ok(()));
        for digest in [Some("sha256:b"), None] {
            let refused = covers(app, digest, &["sha256:b"]).unwrap_err();
            assert!(
                refused.contains("approval 7 is for `sha256:a`"),
                "{refused}"
            );
        }
        let other = covers("ghcr.io/acme/app:2", Some("sha256:a"), &[]);
        assert!(other.unwrap_err().contains("says nothing"));
    }

    #[test]
    fn an_image_is_covered_by_each_of_its_digests() {
        let both = ["sha256:0", "sha256:a"];
        for digest in [Some("sha256:0"), Some("sha256:a"), None] {
            let found = found("ghcr.io/acme/app:latest", digest, &both);
            assert_eq!(scope().covers(&found), Ok(()), "{digest:?}");
        }
    }

    fn recreation(
        name: &str,
        id: &str,
        image: &str,
        digest: &str,
        strategy: Strategy,
    ) -> Recreation {
        Recreation {
            container: ContainerSummary {
                id: ContainerId::new(id),
                name: name.into(),
                labels: BTreeMap::new(),
                state: None,
                network_mode: String::new(),
            },
            image: found(image, Some(digest), &[]),
            strategy,
        }
    }

    #[test]
    fn recreation_that_differs_from_the_approval_is_refused() {
        let (scope, app) = (scope(), "ghcr.io/acme/app");
        let allows = |name, id, image, digest, strategy| {
            scope.allows(&recreation(name, id, image, digest, strategy))
        };
        let approved = allows("ws-ana", "a1", app, "sha256:a", Strategy::Replace);
        assert_eq!(approved, Ok(()));
        for (refused, why) in [
            (
                allows("ws-ana", "a1", app, "sha256:a", Strategy::Remove),
                "another way",
            ),
            (
                allows("ws-bo", "b1", app, "sha256:a", Strategy::Replace),
                "does not say",
            ),
            // Another program has recreated the container under the same name.
            (
                allows("ws-ana", "a2", app, "sha256:a", Strategy::Replace),
                "has the name now",
            ),
            // This image was approved for another container.
            (
                allows(
                    "ws-ana",
                    "a1",
                    "ghcr.io/acme/other",
                    "sha256:o",
                    Strategy::Replace,
                ),
                "gives `ws-ana` the image",
            ),
            (
                allows("ws-ana", "a1", app, "sha256:b", Strategy::Replace),
                "is for `sha256:a`",
            ),
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn follower_that_was_not_planned_is_refused() {
        let scope = scope();
        let follower = |name: &str, id: &str| Container {
            id: ContainerId::new(id),
            name: name.into(),
            ..inspected()
        };
        let covers = |follower: &Container| scope.covers_followers(&["ws-ana"], &[follower]);
        assert_eq!(covers(&follower("ws-side", "s1")), Ok(()));
        assert_eq!(covers(&follower("ws-ana", "a1")), Ok(()), "approved itself");
        assert!(covers(&follower("ws-side", "s2")).is_err());
        assert!(covers(&follower("ws-new", "n1")).is_err());
        // The approval also covers the replacement that this refresh has created.
        let recreated = Recreated {
            id: Some(ContainerId::new("a9")),
            image_id: ImageId::new("sha256:n"),
            from_image_id: ImageId::new("sha256:m"),
            gap: None,
            followers: vec![Follower {
                name: "ws-side".into(),
                id: ContainerId::new("s1"),
                new_id: ContainerId::new("s9"),
                image: "app".into(),
            }],
            left_over: None,
        };
        scope.note("ws-ana", &recreated);
        assert_eq!(covers(&follower("ws-side", "s9")), Ok(()));
        assert_eq!(covers(&follower("ws-ana", "a9")), Ok(()));
    }
}
