//! What a person has approved, around the hands of one refresh: no other image, no other container, no other strategy.
//!
//! Between a plan and the refresh that was approved for it a tag may move. So an image is looked at before it is pulled, and
//! once more when it is here. Containers that came since are not shown to the policy: nobody has approved anything about them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;

use super::{CallError, Capabilities, PulledImage, Recreated, Recreation, Strategy};
use crate::container::{Container, Listed};
use crate::engine::{EngineError, PullError};
use crate::image::ImageRef;
use crate::recreate::RecreateError;
use crate::recreate::recover::Unfinished;

/// What may be done, and no more.
#[derive(Clone, Debug, Default)]
pub struct Warrant {
    /// How it is called in a refusal: `approval 7`.
    pub title: String,
    /// The digest that the registry must have for each image.
    pub images: HashMap<ImageRef, String>,
    /// How each container may be recreated, by name.
    pub containers: BTreeMap<String, Strategy>,
    /// The names of the other containers that there were.
    pub others: BTreeSet<String>,
}

impl Warrant {
    fn covers(&self, found: &PulledImage) -> Result<(), String> {
        let (title, image) = (&self.title, &found.reference);
        let Some(approved) = self.images.get(image) else {
            return Err(format!("{title} says nothing about `{image}`"));
        };
        match &found.digest {
            // One image may have several digests: what is here is what was approved if this is one of them.
            _ if found.has_digest(approved) => Ok(()),
            Some(found) => Err(format!(
                "{title} is for `{approved}`, and `{image}` stands for `{found}` now"
            )),
            None => Err(format!(
                "{title} is for `{approved}`, and the engine does not say what `{image}` stands for"
            )),
        }
    }

    fn allows(&self, name: &str, strategy: Strategy) -> Result<(), String> {
        let title = &self.title;
        match self.containers.get(name) {
            Some(approved) if *approved == strategy => Ok(()),
            Some(_) => Err(format!("{title} is for another way of recreating `{name}`")),
            None => Err(format!("{title} does not say that `{name}` is recreated")),
        }
    }
}

pub struct Warranted {
    inner: Arc<dyn Capabilities>,
    /// A plan's: its `pull` says what a registry has, and pulls nothing.
    look: Arc<dyn Capabilities>,
    warrant: Arc<Warrant>,
}

impl Warranted {
    pub fn new(
        inner: Arc<dyn Capabilities>,
        look: Arc<dyn Capabilities>,
        warrant: Arc<Warrant>,
    ) -> Self {
        Self {
            inner,
            look,
            warrant,
        }
    }
}

#[async_trait]
impl Capabilities for Warranted {
    async fn containers(&self) -> Result<Vec<Listed>, CallError<EngineError>> {
        let mut containers = self.inner.containers().await?;
        containers.retain(|container| {
            let name = &container.name;
            self.warrant.containers.contains_key(name) || self.warrant.others.contains(name)
        });
        Ok(containers)
    }

    async fn inspect(&self, container: &Listed) -> Result<Container, CallError<EngineError>> {
        self.inner.inspect(container).await
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        let covered = images
            .iter()
            .filter(|it| self.warrant.images.contains_key(it));
        let covered: Vec<ImageRef> = covered.cloned().collect();
        self.inner.expect_pulls(&covered).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        if !self.warrant.images.contains_key(image) {
            let title = &self.warrant.title;
            return Err(CallError::Denied(format!(
                "{title} says nothing about `{image}`"
            )));
        }
        let covered = |pulled: &PulledImage| self.warrant.covers(pulled);
        // Before it is here: a tag that has moved is best not moved on this machine.
        covered(&self.look.pull(image).await?).map_err(CallError::Denied)?;
        let pulled = self.inner.pull(image).await?;
        covered(&pulled).map_err(CallError::Denied)?;
        Ok(pulled)
    }

    async fn expect_recreations(&self, wave: &[Recreation]) {
        let allowed = wave.iter().filter(|it| {
            let name = &it.container.name;
            self.warrant.allows(name, it.strategy).is_ok()
        });
        let allowed: Vec<Recreation> = allowed.cloned().collect();
        self.inner.expect_recreations(&allowed).await;
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.inner.unfinished().await
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        let allowed = self.warrant.allows(&wanted.container.name, wanted.strategy);
        allowed.map_err(CallError::Denied)?;
        self.inner.recreate(wanted).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Transfer;
    use crate::container::{Image, Object};
    use crate::image::ImageId;

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap()
    }

    fn warrant() -> Warrant {
        Warrant {
            title: "approval 7".into(),
            images: [(image("ghcr.io/acme/app"), "sha256:a".to_owned())].into(),
            containers: [("ws-ana".to_owned(), Strategy::Replace)].into(),
            others: ["ws-bo".to_owned()].into(),
        }
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
        let warrant = warrant();
        let app = "ghcr.io/acme/app:latest";
        let covers = |name, digest, also: &[_]| warrant.covers(&found(name, digest, also));
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
            assert_eq!(warrant().covers(&found), Ok(()), "{digest:?}");
        }
    }

    #[test]
    fn a_container_is_recreated_as_it_was_approved_or_not_at_all() {
        let warrant = warrant();
        assert_eq!(warrant.allows("ws-ana", Strategy::Replace), Ok(()));
        assert!(warrant.allows("ws-ana", Strategy::Remove).is_err());
        assert!(warrant.allows("ws-bo", Strategy::Replace).is_err());
    }
}
