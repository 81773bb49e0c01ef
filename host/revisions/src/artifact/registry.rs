//! A policy in a registry, in the CNCF's layout for WebAssembly artifacts: a configuration, and one layer with the component.
//! The signature is an annotation of the manifest.
//!
//! Layout: <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>. The media types of `oci-client`'s constants
//! belong to an older layout, which other tools do not read.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use oci_client::Reference;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciManifest};
use refit_model::image::{ImageRef, ImageRefError, sha256};
use refit_model::secret::Login;
use refit_registry::budget::Rate;
use refit_registry::credentials::Credentials;
use refit_registry::digests::{DigestError, Digests, Reason};

use super::{Artifact, ArtifactError};

const CONFIG_MEDIA_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_MEDIA_TYPE: &str = "application/wasm";
/// The `.minisig` file in base64: other tools do not keep line breaks in an annotation.
const ANNOTATION_SIGNATURE: &str = "io.refit.policy.minisig";
const ANNOTATION_TITLE: &str = "org.opencontainers.image.title";
const ANNOTATION_VERSION: &str = "org.opencontainers.image.version";
const ANNOTATION_DESCRIPTION: &str = "org.opencontainers.image.description";

/// The time limit of a push or pull: 48 MB at 1 MB/s, and some more.
const LIMIT: Duration = Duration::from_secs(120);

const FETCH: &str = "fetch";
const PUSH: &str = "push";
/// The rate limit. One policy takes a few requests. Refit also obeys the limits of the registry.
const RATE: Rate = Rate {
    requests: 50,
    window: LIMIT,
};

/// A reference `registry/repository:tag`, `…@sha256:…`, or both; never without a version.
#[derive(Clone, Debug, PartialEq)]
pub struct ArtifactRef(Reference);

impl ArtifactRef {
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Returns the reference in the type of the registry client.
    fn image(&self) -> Result<ImageRef, ArtifactError> {
        let text = self.to_string();
        text.parse()
            .map_err(|error: ImageRefError| ArtifactError::Reference {
                problem: error.to_string(),
                text,
            })
    }

    /// Returns the last part of the repository.
    pub fn name(&self) -> &str {
        let repository = self.0.repository();
        repository.rsplit('/').next().unwrap_or(repository)
    }

    pub fn is_pinned(&self) -> bool {
        self.0.digest().is_some()
    }

    /// Returns the reference, pinned to a digest.
    pub fn pinned(&self, digest: &str) -> Self {
        let (registry, repository) = (self.0.registry().to_owned(), self.0.repository().to_owned());
        Self(match self.0.tag() {
            Some(tag) => Reference::with_tag_and_digest(
                registry,
                repository,
                tag.to_owned(),
                digest.to_owned(),
            ),
            None => Reference::with_digest(registry, repository, digest.to_owned()),
        })
    }
}

impl FromStr for ArtifactRef {
    type Err = ArtifactError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |problem: String| ArtifactError::Reference {
            text: text.to_owned(),
            problem,
        };
        // Refit's parser is stricter, and its errors are clear.
        text.parse::<ImageRef>().map_err(|error| {
            refused(
                std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
            )
        })?;
        let host = text.split('/').next().unwrap_or_default();
        if !text.contains('/') || !(host.contains(['.', ':']) || host == "localhost") {
            return Err(refused("it names no registry".into()));
        }
        let has_version = text.contains('@')
            || text
                .rsplit('/')
                .next()
                .is_some_and(|last| last.contains(':'));
        if !has_version {
            return Err(refused("it names no tag and no digest".into()));
        }
        let reference = text.parse::<Reference>();
        reference
            .map(Self)
            .map_err(|error| refused(error.to_string()))
    }
}

impl fmt::Display for ArtifactRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The annotations of a policy in the registry, for people.
#[derive(Clone, Debug)]
pub struct Title {
    pub name: String,
    pub version: String,
    pub summary: String,
}

/// Pushes policies to registries and pulls them.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    plain_http: Vec<String>,
}

impl Registries {
    /// Creates a client. `plain_http` are the registries, as `host:port`, that it uses without TLS. Registries on this machine
    /// need not be listed.
    pub fn new(plain_http: Vec<String>) -> Self {
        Self { plain_http }
    }

    /// Pulls a component of at most `bytes_max` bytes. If the reference has a digest, the registry's answer must have the same.
    pub async fn pull(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        bytes_max: usize,
    ) -> Result<Artifact, ArtifactError> {
        let fetching = self.pull_unbounded(reference, login, bytes_max);
        limit_time(FETCH, reference, fetching).await
    }

    /// Pulls with the client that checks images: it bounds what it reads, and sends a login only to the registry and to the
    /// realm that the registry itself names.
    async fn pull_unbounded(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        bytes_max: usize,
    ) -> Result<Artifact, ArtifactError> {
        let failed = |error: DigestError| registry_error(FETCH, reference, login, error);
        let client = Digests::new(Credentials::default(), self.plain_http.clone(), RATE);
        let image = reference.image()?;
        let manifest = client.manifest(&image, login).await.map_err(failed)?;
        let digest = manifest.digest;
        let pinned_to = reference.0.digest();
        if let Some(pinned_to) = pinned_to.filter(|pinned_to| *pinned_to != digest) {
            let problem = format!("the registry has `{digest}` under `{pinned_to}`");
            return Err(ArtifactError::Registry {
                action: FETCH,
                reference: reference.to_string(),
                source: problem.into(),
            });
        }
        let not = |problem: String| ArtifactError::NotAPolicy {
            reference: reference.to_string(),
            problem,
        };
        let manifest = match serde_json::from_slice(&manifest.bytes) {
            Ok(OciManifest::Image(manifest)) => manifest,
            Ok(OciManifest::ImageIndex(_)) => {
                return Err(not("it is a list of images for several platforms".into()));
            }
            Err(error) => return Err(not(format!("its manifest cannot be read: {error}"))),
        };
        if manifest.config.media_type != CONFIG_MEDIA_TYPE {
            return Err(not(format!(
                "its configuration is `{}`, and that of a component is `{CONFIG_MEDIA_TYPE}`",
                manifest.config.media_type
            )));
        }
        let [layer] = manifest.layers.as_slice() else {
            return Err(not(format!(
                "it has {} layers, and a component is one",
                manifest.layers.len()
            )));
        };
        if layer.media_type != LAYER_MEDIA_TYPE {
            return Err(not(format!(
                "its layer is `{}`, and a component is `{LAYER_MEDIA_TYPE}`",
                layer.media_type
            )));
        }
        let pinned = reference.pinned(&digest);
        let origin = super::Source::Registry(pinned).to_string();
        let too_large = |bytes: Option<u64>| ArtifactError::TooLarge {
            origin: origin.clone(),
            bytes,
            limit: bytes_max as u64,
        };
        // This is the claimed size; the download below has its own bound.
        let claimed_bytes = u64::try_from(layer.size).unwrap_or_default();
        if claimed_bytes > bytes_max as u64 {
            return Err(too_large(Some(claimed_bytes)));
        }
        let bounds = (bytes_max, LIMIT);
        let blob = client.blob(&image, login, &layer.digest, bounds);
        let Some(bytes) = blob.await.map_err(failed)? else {
            return Err(too_large(None));
        };
        let annotations = manifest.annotations.unwrap_or_default();
        Ok(Artifact {
            bytes,
            // An unreadable signature counts as none, and makes nobody trusted.
            signature: annotations
                .get(ANNOTATION_SIGNATURE)
                .and_then(|text| BASE64.decode(text).ok())
                .and_then(|text| String::from_utf8(text).ok()),
            origin,
        })
    }

    /// Pushes a component, and returns the reference, pinned to its digest.
    pub async fn push(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        artifact: &Artifact,
        title: &Title,
    ) -> Result<ArtifactRef, ArtifactError> {
        let pushing = self.push_unbounded(reference, login, artifact, title);
        limit_time(PUSH, reference, pushing).await
    }

    async fn push_unbounded(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        artifact: &Artifact,
        title: &Title,
    ) -> Result<ArtifactRef, ArtifactError> {
        let failed = |error: DigestError| registry_error(PUSH, reference, login, error);
        let component = Bytes::from(artifact.bytes.clone());
        let component_digest = sha256(&component);
        let config = serde_json::json!({
            "created": jiff::Timestamp::now().to_string(),
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [component_digest],
        });
        let config = Bytes::from(config.to_string());
        let config_digest = sha256(&config);
        let mut annotations = BTreeMap::from([
            (ANNOTATION_TITLE, title.name.clone()),
            (ANNOTATION_VERSION, title.version.clone()),
            (ANNOTATION_DESCRIPTION, title.summary.clone()),
        ]);
        annotations.extend(
            artifact
                .signature
                .as_ref()
                .map(|signature| (ANNOTATION_SIGNATURE, BASE64.encode(signature))),
        );
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            // Other tools refuse an artifact that does not say what it is.
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": {
                "mediaType": CONFIG_MEDIA_TYPE,
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": [{
                "mediaType": LAYER_MEDIA_TYPE,
                "digest": component_digest,
                "size": component.len(),
            }],
            "annotations": annotations,
        });
        let manifest = Bytes::from(manifest.to_string());
        let digest = sha256(&manifest);
        let client = Digests::new(Credentials::default(), self.plain_http.clone(), RATE);
        let blobs = vec![(component_digest, component), (config_digest, config)];
        let manifest = (OCI_IMAGE_MEDIA_TYPE, manifest);
        let image = reference.image()?;
        let pushed = client.push(&image, login, blobs, manifest, LIMIT);
        pushed.await.map_err(failed)?;
        Ok(reference.pinned(&digest))
    }
}

async fn limit_time<T>(
    action: &'static str,
    reference: &ArtifactRef,
    work: impl Future<Output = Result<T, ArtifactError>>,
) -> Result<T, ArtifactError> {
    let timed_out = |_| ArtifactError::TimedOut {
        action,
        reference: reference.to_string(),
        limit: LIMIT,
    };
    tokio::time::timeout(LIMIT, work).await.map_err(timed_out)?
}

fn registry_error(
    action: &'static str,
    reference: &ArtifactRef,
    login: Option<&Login>,
    error: DigestError,
) -> ArtifactError {
    let (registry, reference) = (reference.registry().to_owned(), reference.to_string());
    match error.reason {
        Reason::Unauthorized { .. } => ArtifactError::Unauthorized {
            action,
            reference,
            registry,
            credentials_sent: login.is_some(),
        },
        Reason::NotFound => ArtifactError::NotFound {
            registry,
            reference,
        },
        reason => ArtifactError::Registry {
            action,
            reference,
            source: reason.into(),
        },
    }
}
