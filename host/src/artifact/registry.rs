//! A policy in a registry, as the CNCF's layout for WebAssembly artifacts has it: a configuration, and one layer that is the
//! component. The signature goes along as an annotation of the manifest.
//!
//! Layout: <https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>. The media types that `oci-client` has constants
//! for are those of an older one, which other tools do not read.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::{Artifact, ArtifactError};
use crate::image::{ImageRef, ImageRefError};
use crate::registry::address::is_plain;
use crate::registry::budget::Rate;
use crate::registry::credentials::Credentials;
use crate::registry::digests::{DigestError, Digests, Reason};
use crate::secret::{ExposeSecret as _, Login};

const CONFIG_MEDIA_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_MEDIA_TYPE: &str = "application/wasm";
/// The `.minisig` file in base64: its lines would not survive the client's canonical JSON, which writes line breaks as they are.
const ANNOTATION_SIGNATURE: &str = "io.refit.policy.minisig";
const ANNOTATION_TITLE: &str = "org.opencontainers.image.title";
const ANNOTATION_VERSION: &str = "org.opencontainers.image.version";
const ANNOTATION_DESCRIPTION: &str = "org.opencontainers.image.description";

/// For a whole push or pull: 48 MB at 1 MB/s, and some.
const LIMIT: Duration = Duration::from_secs(120);
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

const FETCH: &str = "fetch";
/// One policy is a few requests. What a registry says about its limits is obeyed all the same.
const RATE: Rate = Rate {
    requests: 50,
    window: LIMIT,
};

/// `registry/repository:tag`, `…@sha256:…`, or both; never without a version.
#[derive(Clone, Debug, PartialEq)]
pub struct ArtifactRef(Reference);

impl ArtifactRef {
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// As the client of registries has it.
    fn image(&self) -> Result<ImageRef, ArtifactError> {
        let text = self.to_string();
        text.parse()
            .map_err(|error: ImageRefError| ArtifactError::Reference {
                problem: error.to_string(),
                text,
            })
    }

    /// The last part of its repository.
    pub fn name(&self) -> &str {
        let repository = self.0.repository();
        repository.rsplit('/').next().unwrap_or(repository)
    }

    /// The same, pinned to a digest.
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
        // Ours is the stricter parser, and says what is wrong in words.
        text.parse::<ImageRef>().map_err(|error| {
            refused(
                std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string),
            )
        })?;
        let host = text.split('/').next().unwrap_or_default();
        if !text.contains('/') || !(host.contains(['.', ':']) || host == "localhost") {
            return Err(refused("it names no registry".into()));
        }
        let versioned = text.contains('@')
            || text
                .rsplit('/')
                .next()
                .is_some_and(|last| last.contains(':'));
        if !versioned {
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

/// What is said of a policy in the registry, for people who look there.
#[derive(Clone, Debug)]
pub struct Title {
    pub name: String,
    pub version: String,
    pub summary: String,
}

/// Puts policies into registries and gets them from there.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    plain_http: Vec<String>,
}

impl Registries {
    /// `plain_http` are the registries, as `host:port`, that are spoken to without TLS. Those on this machine need not be listed.
    pub fn new(plain_http: Vec<String>) -> Self {
        Self { plain_http }
    }

    /// The component behind a reference, at most `bytes_max` of it. Where the reference has a digest, the registry's answer
    /// must have it.
    pub async fn pull(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        bytes_max: usize,
    ) -> Result<Artifact, ArtifactError> {
        let fetching = self.pull_unbounded(reference, login, bytes_max);
        match tokio::time::timeout(LIMIT, fetching).await {
            Ok(answer) => answer,
            Err(_) => Err(ArtifactError::TimedOut {
                action: FETCH,
                reference: reference.to_string(),
                limit: LIMIT,
            }),
        }
    }

    /// With the client that watches images: it bounds what it reads, and no login leaves the registry or the realm that the
    /// registry itself names.
    async fn pull_unbounded(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        bytes_max: usize,
    ) -> Result<Artifact, ArtifactError> {
        let failed = |error: DigestError| fetch_error(reference, login, error);
        let client = Digests::new(Credentials::default(), self.plain_http.clone(), RATE);
        let image = reference.image()?;
        let manifest = client.manifest(&image, login).await.map_err(failed)?;
        let digest = manifest.digest;
        let pinned_to = reference.0.digest();
        if let Some(pinned_to) = pinned_to.filter(|it| *it != digest) {
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
        // What it says it has; what it has is bounded below.
        let said = u64::try_from(layer.size).unwrap_or_default();
        if said > bytes_max as u64 {
            return Err(too_large(Some(said)));
        }
        let bounds = (bytes_max, LIMIT);
        let blob = client.blob(&image, login, &layer.digest, bounds);
        let Some(bytes) = blob.await.map_err(failed)? else {
            return Err(too_large(None));
        };
        let annotations = manifest.annotations.unwrap_or_default();
        Ok(Artifact {
            bytes,
            // One that cannot be read is as good as none: nobody is trusted by it.
            signature: annotations
                .get(ANNOTATION_SIGNATURE)
                .and_then(|text| BASE64.decode(text).ok())
                .and_then(|text| String::from_utf8(text).ok()),
            origin,
        })
    }

    /// Puts a component there. Returns the reference, pinned to what was put.
    pub async fn push(
        &self,
        reference: &ArtifactRef,
        login: Option<&Login>,
        artifact: &Artifact,
        title: &Title,
    ) -> Result<ArtifactRef, ArtifactError> {
        let call = Call::new("push", reference, login)?;
        call.within(self.push_unbounded(&call, artifact, title))
            .await
    }

    async fn push_unbounded(
        &self,
        call: &Call<'_>,
        artifact: &Artifact,
        title: &Title,
    ) -> Result<ArtifactRef, ArtifactError> {
        let client = self.client(call.reference.registry());
        let layers = [ImageLayer::new(
            artifact.bytes.clone(),
            LAYER_MEDIA_TYPE.to_owned(),
            None,
        )];
        let config = serde_json::json!({
            "created": jiff::Timestamp::now().to_string(),
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [layers[0].sha256_digest()],
        });
        let mut annotations = BTreeMap::from([
            (ANNOTATION_TITLE.to_owned(), title.name.clone()),
            (ANNOTATION_VERSION.to_owned(), title.version.clone()),
            (ANNOTATION_DESCRIPTION.to_owned(), title.summary.clone()),
        ]);
        annotations.extend(
            artifact
                .signature
                .clone()
                .map(|signature| (ANNOTATION_SIGNATURE.to_owned(), BASE64.encode(signature))),
        );
        let config = Config::new(config.to_string(), CONFIG_MEDIA_TYPE.to_owned(), None);
        let mut manifest = OciImageManifest::build(&layers, &config, Some(annotations));
        // Other tools refuse an artifact that does not say what it is.
        manifest.media_type = Some(OCI_IMAGE_MEDIA_TYPE.to_owned());
        let pushed = client
            .push(
                &call.reference.0,
                &layers,
                config,
                &call.auth,
                Some(manifest),
            )
            .await;
        pushed.map_err(|error| call.failed(error))?;
        let digest = client
            .fetch_manifest_digest(&call.reference.0, &call.auth)
            .await;
        Ok(call
            .reference
            .pinned(&digest.map_err(|error| call.failed(error))?))
    }

    fn client(&self, registry: &str) -> Client {
        // The one provider of the whole process; somebody may have been first, and it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = is_plain(registry, &self.plain_http);
        Client::new(ClientConfig {
            protocol: if plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            connect_timeout: Some(CONNECT_LIMIT),
            read_timeout: Some(LIMIT),
            user_agent: concat!("refit/", env!("CARGO_PKG_VERSION")),
            // A policy is no image for a platform: a list of them is an error, and not a choice.
            platform_resolver: None,
            ..ClientConfig::default()
        })
    }
}

/// One conversation with a registry, for its errors.
struct Call<'a> {
    action: &'static str,
    reference: &'a ArtifactRef,
    auth: RegistryAuth,
}

impl<'a> Call<'a> {
    fn new(
        action: &'static str,
        reference: &'a ArtifactRef,
        login: Option<&Login>,
    ) -> Result<Self, ArtifactError> {
        let auth = match login {
            None => RegistryAuth::Anonymous,
            Some(Login::Password { username, password }) => {
                RegistryAuth::Basic(username.clone(), password.expose_secret().to_owned())
            }
            Some(Login::IdentityToken(_)) => {
                return Err(ArtifactError::Registry {
                    action,
                    reference: reference.to_string(),
                    source: "its login is an identity token, which Refit can use for images only: log in with a password or an access token".into(),
                });
            }
        };
        Ok(Self {
            action,
            reference,
            auth,
        })
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, ArtifactError>>,
    ) -> Result<T, ArtifactError> {
        match tokio::time::timeout(LIMIT, work).await {
            Ok(answer) => answer,
            Err(_) => Err(ArtifactError::TimedOut {
                action: self.action,
                reference: self.reference.to_string(),
                limit: LIMIT,
            }),
        }
    }

    fn failed(&self, error: OciDistributionError) -> ArtifactError {
        use OciDistributionError as E;
        let (registry, reference) = (
            self.reference.registry().to_owned(),
            self.reference.to_string(),
        );
        let has = |code: &OciErrorCode, wanted: &[OciErrorCode]| wanted.contains(code);
        let of_envelope = |wanted: &[OciErrorCode]| match &error {
            E::RegistryError { envelope, .. } => {
                envelope.errors.iter().any(|it| has(&it.code, wanted))
            }
            _ => false,
        };
        let code = match &error {
            E::ServerError { code, .. } => Some(*code),
            _ => None,
        };
        let refused = matches!(
            error,
            E::UnauthorizedError { .. } | E::AuthenticationFailure(_)
        ) || matches!(code, Some(401 | 403))
            || of_envelope(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]);
        if refused {
            return ArtifactError::Unauthorized {
                action: self.action,
                reference,
                registry,
                credentials_sent: self.auth != RegistryAuth::Anonymous,
            };
        }
        ArtifactError::Registry {
            action: self.action,
            reference,
            source: error.into(),
        }
    }
}

fn fetch_error(
    reference: &ArtifactRef,
    login: Option<&Login>,
    error: DigestError,
) -> ArtifactError {
    let (registry, reference) = (reference.registry().to_owned(), reference.to_string());
    match error.reason {
        Reason::Unauthorized { .. } => ArtifactError::Unauthorized {
            action: FETCH,
            reference,
            registry,
            credentials_sent: login.is_some(),
        },
        Reason::NotFound => ArtifactError::NotFound {
            registry,
            reference,
        },
        reason => ArtifactError::Registry {
            action: FETCH,
            reference,
            source: reason.into(),
        },
    }
}
