//! Loads a policy from untrusted bytes, stage by stage.
//!
//! `Loader::prepare` lists the stages. A start, a swap, a shadow evaluation and [`check`] all use it, and differ in what they
//! do with the result.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use refit_model::diagnostic::Hints;
use refit_model::grants::Grants;
use refit_model::printable::printable;
use refit_sandbox::{
    DEFAULT_POLICY, Examined, Policy, PolicyEngine, PolicyError, PolicyStates, digest, limits,
};
use serde::Serialize;

use super::PolicyRevision;
use super::permissions::Permissions;
use super::start::TrustConfig;
use super::store::{CONFIG_BYTES_MAX, Configured, Store, StoreError};
use crate::artifact::signature::{SIGNATURE_BYTES_MAX, SignatureError, Signer, Trust};
use crate::artifact::{self, Artifact, ArtifactError, ArtifactRef, Carrier};

/// The name of the default policy, in place of a file.
pub const BUILT_IN: &str = "the built-in policy";

/// The maximum length of the stored name of a caller or an origin.
pub(super) const NAME_BYTES_MAX: usize = 200;

/// The source of a component.
#[derive(Clone, Debug)]
pub enum Source {
    BuiltIn,
    /// A file, with the signature file next to it.
    File(PathBuf),
    /// An artifact in a registry, with the signature in it.
    Registry(ArtifactRef),
    /// Bytes in the request. `origin` is the sender's name for them.
    Bytes {
        bytes: Bytes,
        origin: String,
        signature: Option<String>,
    },
    /// A stored component that was active before. If `signature` is `None`, its last signature applies.
    Kept {
        digest: String,
        signature: Option<String>,
    },
    /// The active component, with a new configuration.
    Active,
}

impl Source {
    /// Returns whether the name identifies the bytes, so that nobody can replace them.
    pub(super) fn is_exact(&self) -> bool {
        match self {
            Self::Registry(reference) => reference.is_pinned(),
            Self::BuiltIn | Self::Kept { .. } | Self::Active => true,
            Self::File(_) | Self::Bytes { .. } => false,
        }
    }
}

/// How far a candidate came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum Stage {
    /// Another swap goes first.
    Turn,
    /// Whether the expected generation is active.
    Expectation,
    Fetch,
    Size,
    Signature,
    Parse,
    Imports,
    Compile,
    Link,
    /// Its first call: it says who it is.
    Describe,
    /// Whether a newer version of it was active.
    Version,
    Config,
    /// What is not written down does not become active.
    Durable,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Turn => "turn",
            Self::Expectation => "expectation",
            Self::Fetch => "fetch",
            Self::Size => "size",
            Self::Signature => "signature",
            Self::Parse => "parse",
            Self::Imports => "imports",
            Self::Compile => "compile",
            Self::Link => "link",
            Self::Describe => "describe",
            Self::Version => "version",
            Self::Config => "config",
            Self::Durable => "durable",
        })
    }
}

/// Why a candidate was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("another swap is under way")]
    Busy,
    #[error("generation {active} is active, not {expected}: somebody was faster")]
    Overtaken { expected: u64, active: u64 },
    #[error("it is no longer on trial")]
    Withdrawn,
    #[error("no generation is known from before it")]
    NothingBefore,
    #[error("its configuration is no JSON object")]
    NoObject,
    #[error("its configuration has {bytes} bytes, and may have {CONFIG_BYTES_MAX}")]
    ConfigTooLarge { bytes: usize },
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("`{origin}` is not trusted")]
    Untrusted {
        origin: String,
        source: SignatureError,
    },
    #[error("`{policy}` is older than version {newest}, which was active before")]
    Older { policy: String, newest: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Hints for Refusal {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Busy => vec!["try again when it has ended".into()],
            Self::Overtaken { .. } => {
                vec!["look at what is active now: `GET /v1/policy`, `refit policy history`".into()]
            }
            Self::Policy(error) => error.hints(),
            Self::Artifact(error) => error.hints(),
            Self::Untrusted { source, .. } => source.hints(),
            Self::Store(error) => error.hints(),
            Self::Older { .. } => vec![
                "its signature is valid, but anybody who has a copy can send an old policy again".into(),
                "to take it all the same: `refit policy swap --allow-older`, `PUT /v1/policy?allow_older=true`, or `[policy] allow_older = true`; `refit policy rollback` needs none of them".into(),
            ],
            Self::Withdrawn
            | Self::NothingBefore
            | Self::NoObject
            | Self::ConfigTooLarge { .. } => vec![],
        }
    }
}

/// A fetched component.
pub(super) struct Fetched {
    pub(super) bytes: Bytes,
    pub(super) origin: String,
    pub(super) signature: Option<String>,
}

impl From<Artifact> for Fetched {
    fn from(artifact: Artifact) -> Self {
        Self {
            bytes: artifact.bytes.into(),
            origin: artifact.origin,
            signature: artifact.signature,
        }
    }
}

impl Fetched {
    /// Returns the entry of the configuration, if it names this component.
    pub(super) fn configured(&self, config: String) -> Configured {
        Configured {
            digest: Some(digest(&self.bytes)),
            signature: self.signature.clone(),
            config,
        }
    }
}

pub(super) type Failed = (Stage, Refusal);

/// A passed stage, with its result.
pub enum Passed {
    Fetch { origin: String },
    Size(usize),
    Signature(Option<Signer>),
    Parse(Box<Examined>),
    Imports,
    Compile,
    Link,
    Describe(Arc<Policy>),
    Config,
}

pub(super) trait AtStage<T> {
    fn at_stage(self, stage: Stage) -> Result<T, Failed>;
}

impl<T, E: Into<Refusal>> AtStage<T> for Result<T, E> {
    fn at_stage(self, stage: Stage) -> Result<T, Failed> {
        self.map_err(|error| (stage, error.into()))
    }
}

/// Loads policies from bytes.
pub(super) struct Loader {
    pub(super) engine: PolicyEngine,
    pub(super) states: PolicyStates,
    pub(super) carrier: Carrier,
    pub(super) trust: Trust,
    /// The grants in the configuration, before any key limits them.
    pub(super) grants: Arc<Grants>,
    /// `None`: nothing is saved across restarts.
    pub(super) store: Option<Arc<Store>>,
}

impl Loader {
    /// Runs all stages that a candidate has to pass before it may become active.
    pub(super) async fn prepare(
        &self,
        fetched: Fetched,
        config: String,
    ) -> Result<PolicyRevision, Failed> {
        self.prepare_with_progress(fetched, config, &mut |_| {})
            .await
    }

    /// Runs all stages as [`Self::prepare`] does, and reports each stage that has passed.
    async fn prepare_with_progress(
        &self,
        fetched: Fetched,
        config: String,
        on_passed: &mut (dyn FnMut(Passed) + Send),
    ) -> Result<PolicyRevision, Failed> {
        let Fetched {
            bytes,
            origin,
            signature,
        } = fetched;
        check_size(&bytes, &origin).at_stage(Stage::Size)?;
        on_passed(Passed::Size(bytes.len()));
        let signer = self.check_signature(&bytes, &origin, signature.as_deref());
        let signer = signer.at_stage(Stage::Signature)?;
        on_passed(Passed::Signature(signer.clone()));
        let examined = self
            .engine
            .examine(bytes, &origin)
            .await
            .at_stage(Stage::Parse)?;
        on_passed(Passed::Parse(Box::new(examined.clone())));
        self.engine
            .check_contract(&examined)
            .at_stage(Stage::Imports)?;
        on_passed(Passed::Imports);
        let component = examined.bytes().clone();
        let compiled = self
            .engine
            .compile(examined)
            .await
            .at_stage(Stage::Compile)?;
        on_passed(Passed::Compile);
        let linked = self.engine.link(compiled).at_stage(Stage::Link)?;
        on_passed(Passed::Link);
        let policy = self
            .engine
            .introduce(linked)
            .await
            .at_stage(Stage::Describe)?;
        let policy = Arc::new(policy);
        on_passed(Passed::Describe(policy.clone()));
        let problems = policy
            .validate_config(&config)
            .await
            .at_stage(Stage::Config)?;
        if !problems.is_empty() {
            let policy = policy.title();
            return Err(PolicyError::Config { policy, problems }).at_stage(Stage::Config);
        }
        on_passed(Passed::Config);
        Ok(PolicyRevision {
            state: self.states.of(&policy.name),
            permissions: Permissions::from_imports(&policy.imports),
            policy,
            grants: self.grants_for(signer.as_ref()),
            signer,
            // If no signature is required, nobody has checked its length.
            signature: signature.filter(|text| text.len() <= SIGNATURE_BYTES_MAX),
            config,
            origin,
            component,
        })
    }

    /// Verifies the signature, if one is required. The built-in policy is part of this program and always trusted.
    fn check_signature(
        &self,
        bytes: &[u8],
        origin: &str,
        signature: Option<&str>,
    ) -> Result<Option<Signer>, Refusal> {
        if bytes == DEFAULT_POLICY {
            return Ok(None);
        }
        let verified = self.trust.verify(bytes, signature);
        verified.map_err(|source| Refusal::Untrusted {
            origin: origin.to_owned(),
            source,
        })
    }

    fn grants_for(&self, signer: Option<&Signer>) -> Arc<Grants> {
        match signer {
            Some(Signer {
                name,
                verbs: Some(verbs),
            }) => Arc::new(self.grants.limited_to(name, verbs)),
            _ => self.grants.clone(),
        }
    }

    pub(super) async fn fetch(&self, source: Source) -> Result<Fetched, Failed> {
        match source {
            Source::BuiltIn => Ok(Fetched {
                bytes: Bytes::from_static(DEFAULT_POLICY),
                origin: BUILT_IN.to_owned(),
                signature: None,
            }),
            Source::File(path) => self.fetch_artifact(artifact::Source::File(path)).await,
            Source::Registry(reference) => {
                self.fetch_artifact(artifact::Source::Registry(reference))
                    .await
            }
            Source::Bytes {
                bytes,
                origin,
                signature,
            } => Ok(Fetched {
                bytes,
                origin: printable(&origin, NAME_BYTES_MAX),
                signature,
            }),
            Source::Kept { digest, signature } => {
                let Some(store) = self.store.clone() else {
                    return Err(StoreError::Absent { digest }).at_stage(Stage::Fetch);
                };
                let origin = digest.clone();
                let read = tokio::task::spawn_blocking(move || store.read_component(&digest)).await;
                let read =
                    read.unwrap_or_else(|panicked| Err(StoreError::Panicked(panicked.to_string())));
                Ok(Fetched {
                    bytes: read.at_stage(Stage::Fetch)?,
                    origin,
                    signature,
                })
            }
            // `Generations::load_candidate` handles this source.
            Source::Active => Err(Refusal::NothingBefore).at_stage(Stage::Fetch),
        }
    }

    async fn fetch_artifact(&self, source: artifact::Source) -> Result<Fetched, Failed> {
        let fetch = self.carrier.fetch(&source, limits::COMPONENT_BYTES_MAX);
        match fetch.await {
            Ok(artifact) => Ok(artifact.into()),
            Err(error @ ArtifactError::TooLarge { .. }) => Err(error).at_stage(Stage::Size),
            Err(error) => Err(error).at_stage(Stage::Fetch),
        }
    }

    /// Fetches a component from a registry before the swap takes its lock, since that may take minutes.
    pub(super) async fn prefetch(&self, source: &Source) -> Result<Option<Fetched>, Failed> {
        match source {
            Source::Registry(_) => self.fetch(source.clone()).await.map(Some),
            _ => Ok(None),
        }
    }
}

fn check_size(bytes: &Bytes, origin: &str) -> Result<(), PolicyError> {
    if bytes.len() <= limits::COMPONENT_BYTES_MAX {
        return Ok(());
    }
    Err(PolicyError::TooLarge {
        origin: origin.to_owned(),
        bytes: bytes.len(),
    })
}

/// Runs all stages of a swap for a candidate without swapping. It reports each stage that has passed.
pub async fn check(
    engine: PolicyEngine,
    trust_config: TrustConfig,
    source: Source,
    config: &str,
    on_passed: &mut (dyn FnMut(Passed) + Send),
) -> Result<PolicyRevision, (Stage, Refusal)> {
    let loader = Loader {
        engine,
        // Nothing is stored: a policy only writes state in a refresh.
        states: PolicyStates::in_folder(PathBuf::new()),
        carrier: trust_config.carrier,
        trust: trust_config.trust,
        grants: trust_config.grants,
        store: None,
    };
    let fetched = loader.fetch(source).await?;
    let origin = fetched.origin.clone();
    on_passed(Passed::Fetch { origin });
    let config = normalize(config).at_stage(Stage::Config)?;
    loader
        .prepare_with_progress(fetched, config, on_passed)
        .await
}

/// Returns the same text for equal configurations, however they were formatted.
pub(super) fn normalize(config: &str) -> Result<String, Refusal> {
    if config.len() > CONFIG_BYTES_MAX {
        return Err(Refusal::ConfigTooLarge {
            bytes: config.len(),
        });
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(config).map_err(|_| Refusal::NoObject)?;
    Ok(serde_json::Value::Object(object).to_string())
}
