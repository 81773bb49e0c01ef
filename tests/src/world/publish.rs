//! Images of a world: made, pushed as a workflow elsewhere would push them, pulled.

use std::time::Duration;

use anyhow::Context;
use bollard::models::ImageInspect;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptions, PushImageOptionsBuilder,
    RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::TryStreamExt;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{LABEL_IMAGE, World};
use crate::bounded::{self, within};
use crate::image::ImageSpec;
use crate::registry::Registry;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Loading, pushing or pulling some megabytes on one machine takes well under a second; a loaded engine gets this much.
const TRANSFER: Duration = Duration::from_secs(120);

/// An image that a registry has.
#[derive(Debug, Clone)]
pub struct Published {
    /// `<registry>/<repository>:<tag>`
    pub reference: String,
    /// The image id (`sha256:…`) that an engine gives it: what an inspect of a container calls `Image`.
    pub id: String,
    /// The digest (`sha256:…`) of its manifest in the registry.
    pub digest: String,
}

impl World {
    /// Publishes an image as this world's `workspace-template-<runtime>:latest`.
    pub async fn publish(
        &self,
        registry: &Registry,
        runtime: &str,
        spec: ImageSpec,
    ) -> anyhow::Result<Published> {
        self.publish_as(registry, &self.reference(registry, runtime), spec)
            .await
    }

    /// Publishes an image under any reference; it should contain the world's prefix.
    ///
    /// The engine does the pushing, but is left as if somebody else had pushed: the image is not on it, and if the tag was,
    /// it still names the image it named before.
    pub async fn publish_as(
        &self,
        registry: &Registry,
        reference: &str,
        spec: ImageSpec,
    ) -> anyhow::Result<Published> {
        if let Some(credentials) = registry.credentials() {
            self.records()
                .credentials
                .insert(registry.host(), credentials);
        }
        let build = self.load(spec).await?;
        let id = self
            .image_id(&build)
            .await?
            .with_context(|| format!("cannot find {build}, which was loaded just now"))?;
        let before = self.image_id(reference).await?;
        self.tag(&build, reference).await?;
        self.push(reference).await?;
        let digest = self.digest(reference).await?;
        match before {
            Some(before) => self.tag(&before, reference).await?,
            None => self.untag(reference).await?,
        }
        // By id and with force: the push has left a name by digest beside the build's tag.
        self.remove_image(&id, true).await?;
        Ok(Published {
            reference: reference.to_owned(),
            id,
            digest,
        })
    }

    /// Gives the tag of an image a new index: the same image, beside an attestation that no index before had. As a build that is
    /// pushed again with other provenance.
    pub async fn publish_attested(
        &self,
        registry: &Registry,
        image: &Published,
        attestation: &str,
    ) -> anyhow::Result<Published> {
        let name = image.reference.strip_prefix(&registry.host());
        let name = name.and_then(|name| name.strip_prefix('/'));
        let (repository, tag) = split(name.context("the image is not of this registry")?)?;
        let manifest = registry.manifest(repository, &image.digest).await?;
        let config =
            json!({ "architecture": "unknown", "os": "unknown", "attestation": attestation });
        let config = config.to_string();
        let blob = registry.put_blob(repository, config.clone()).await?;
        let document = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob, "size": config.len() },
        });
        let document = document.to_string();
        let attested = digest_of(&document);
        registry
            .put_manifest(repository, &attested, OCI_MANIFEST, document.clone())
            .await?;
        let (os, architecture) = ("linux", crate::image::architecture());
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            {
                "mediaType": manifest.content_type, "digest": image.digest, "size": manifest.text.len(),
                "platform": { "os": os, "architecture": architecture },
            },
            {
                "mediaType": OCI_MANIFEST, "digest": attested, "size": document.len(),
                "platform": { "os": "unknown", "architecture": "unknown" },
                "annotations": {
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": image.digest,
                },
            },
        ]});
        let index = index.to_string();
        let digest = digest_of(&index);
        registry
            .put_manifest(repository, tag, OCI_INDEX, index)
            .await?;
        Ok(Published {
            digest,
            ..image.clone()
        })
    }

    /// Makes an image that only the engine has, under a tag of its own, which is returned.
    pub async fn load(&self, spec: ImageSpec) -> anyhow::Result<String> {
        let number = self.next_build();
        let tag = format!("refit-tests/{}:{number}", self.prefix());
        let spec = spec.label(LABEL_IMAGE, self.prefix());
        let archive = spec
            .archive(&tag, &tag)
            .with_context(|| format!("cannot write the archive of image {tag}"))?;
        let loading = self.docker().import_image(
            ImportImageOptions::default(),
            bollard::body_full(archive.into()),
            None,
        );
        within(
            TRANSFER,
            &format!("load image {tag}"),
            loading.try_collect::<Vec<_>>(),
        )
        .await?;
        Ok(tag)
    }

    /// Pulls an image with the credentials of the registry it was published to; an error inside the stream is an error.
    pub async fn pull(&self, reference: &str) -> anyhow::Result<()> {
        let options = CreateImageOptionsBuilder::new()
            .from_image(reference)
            .build();
        let pulling = self
            .docker()
            .create_image(Some(options), None, self.credentials(reference));
        within(
            TRANSFER,
            &format!("pull {reference}"),
            pulling.try_collect::<Vec<_>>(),
        )
        .await
        .map(|_| ())
    }

    /// The id of an image on the engine, if it is there.
    pub async fn image_id(&self, reference: &str) -> anyhow::Result<Option<String>> {
        Ok(self
            .inspect_image(reference)
            .await?
            .and_then(|image| image.id))
    }

    /// Removes a name from the engine, and the image with its last name.
    pub async fn untag(&self, reference: &str) -> anyhow::Result<()> {
        self.remove_image(reference, false).await
    }

    pub async fn tag(&self, image: &str, reference: &str) -> anyhow::Result<()> {
        let (repository, tag) = split(reference)?;
        let options = TagImageOptionsBuilder::new()
            .repo(repository)
            .tag(tag)
            .build();
        within(
            bounded::CALL,
            &format!("tag {image} as {reference}"),
            self.docker().tag_image(image, Some(options)),
        )
        .await
    }

    pub(super) async fn push(&self, reference: &str) -> anyhow::Result<()> {
        let (repository, tag) = split(reference)?;
        let options = PushImageOptionsBuilder::new().tag(tag).build();
        let pushing =
            self.docker()
                .push_image(repository, Some(options), self.credentials(reference));
        within(
            TRANSFER,
            &format!("push {reference}"),
            pushing.try_collect::<Vec<_>>(),
        )
        .await
        .map(|_| ())
    }

    async fn digest(&self, reference: &str) -> anyhow::Result<String> {
        let (repository, _) = split(reference)?;
        let names = self
            .inspect_image(reference)
            .await?
            .and_then(|image| image.repo_digests)
            .unwrap_or_default();
        let digest = names
            .iter()
            .find_map(|name| name.strip_prefix(repository)?.strip_prefix('@'));
        digest.map(str::to_owned).with_context(|| {
            format!("cannot find the digest of {reference} among {names:?} after a push")
        })
    }

    pub(super) async fn remove_image(&self, image: &str, force: bool) -> anyhow::Result<()> {
        let options = RemoveImageOptionsBuilder::new().force(force).build();
        let removal = self.docker().remove_image(image, Some(options), None);
        let removal = async {
            match removal.await {
                Err(error) if bounded::is_absent(&error) => Ok(()),
                other => other.map(|_| ()),
            }
        };
        within(bounded::CALL, &format!("remove image {image}"), removal).await
    }

    async fn inspect_image(&self, reference: &str) -> anyhow::Result<Option<ImageInspect>> {
        let call = async {
            match self.docker().inspect_image(reference).await {
                Err(error) if bounded::is_absent(&error) => Ok(None),
                other => other.map(Some),
            }
        };
        within(bounded::CALL, &format!("inspect image {reference}"), call).await
    }

    fn credentials(&self, reference: &str) -> Option<bollard::auth::DockerCredentials> {
        let registry = reference.split('/').next()?;
        self.records().credentials.get(registry).cloned()
    }
}

/// bollard 0.21 writes `X-Registry-Auth` in the alphabet with `+` and `/`, which engines cannot read: some passwords would not
/// arrive. To go when bollard writes it in the other one.
pub(super) fn url_safe_login(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    if let Some(login) = request.headers_mut().get_mut("X-Registry-Auth") {
        let text = login.to_str().unwrap_or_default();
        let text = text.replace('+', "-").replace('/', "_");
        *login = text.parse().expect("base64 fits into a header");
    }
    request
}

/// Repository and tag. The last colon: the first one belongs to the registry's port.
fn split(reference: &str) -> anyhow::Result<(&str, &str)> {
    let parts = reference
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'));
    parts.with_context(|| format!("cannot use the image reference {reference}: give it a tag"))
}

fn digest_of(text: &str) -> String {
    let hex = Sha256::digest(text);
    let hex: String = hex.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
