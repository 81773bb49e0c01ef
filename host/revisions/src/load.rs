//! What makes a policy of bytes that nobody vouches for, stage by stage.
//!
//! `Loader::prepare` is the list of stages: a start, a swap, a trial and [`check`] all go through it, and differ in what they do
//! with the result.

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

/// What the default policy is called where a file would be named.
pub const BUILT_IN: &str = "the built-in policy";

/// The longest name of a caller or an origin that is kept.
pub(super) const NAME_BYTES_MAX: usize = 200;

/// Where a component comes from.
#[derive(Clone, Debug)]
pub enum Source {
    BuiltIn,
    /// With the signature that lies beside it.
    File(PathBuf),
    /// With the signature that was pushed along.
    Registry(ArtifactRef),
    /// Sent along. `origin` is what the sender calls it.
    Bytes {
        bytes: Bytes,
        origin: String,
        signature: Option<String>,
    },
    /// One that was in use before and is still kept. Without a signature, the last one that it had.
    Kept {
        digest: String,
        signature: Option<String>,
    },
    /// The one in use: only its configuration changes.
    Active,
}

impl Source {
    /// Whether its name says which bytes are meant, so that nobody can put others in their place.
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

/// Why it came no further.
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

/// A component on its way in.
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
    /// What the configuration asks for, if this is what it names.
    pub(super) fn configured(&self, config: String) -> Configured {
        Configured {
            digest: Some(digest(&self.bytes)),
            signature: self.signature.clone(),
            config,
        }
    }
}

pub(super) type Failed = (Stage, Refusal);

/// A stage that has passed, with what was found out in it.
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

pub(super) trait At<T> {
    fn at(self, stage: Stage) -> Result<T, Failed>;
}

impl<T, E: Into<Refusal>> At<T> for Result<T, E> {
    fn at(self, stage: Stage) -> Result<T, Failed> {
        self.map_err(|error| (stage, error.into()))
    }
}

/// What makes a policy of bytes.
pub(super) struct Loader {
    pub(super) engine: PolicyEngine,
    pub(super) states: PolicyStates,
    pub(super) carrier: Carrier,
    pub(super) trust: Trust,
    /// As configured, before any key limits them.
    pub(super) grants: Arc<Grants>,
    /// `None`: nothing outlives the process.
    pub(super) store: Option<Arc<Store>>,
}

impl Loader {
    /// All that a newcomer has to pass before it may be active.
    pub(super) async fn prepare(
        &self,
        fetched: Fetched,
        config: String,
    ) -> Result<PolicyRevision, Failed> {
        self.prepare_telling(fetched, config, &mut |_| {}).await
    }

    /// The same, telling each stage that has passed.
    async fn prepare_telling(
        &self,
        fetched: Fetched,
        config: String,
        passed: &mut (dyn FnMut(Passed) + Send),
    ) -> Result<PolicyRevision, Failed> {
        let Fetched {
            bytes,
            origin,
            signature,
        } = fetched;
        check_size(&bytes, &origin).at(Stage::Size)?;
        passed(Passed::Size(bytes.len()));
        let signer = self.check_signature(&bytes, &origin, signature.as_deref());
        let signer = signer.at(Stage::Signature)?;
        passed(Passed::Signature(signer.clone()));
        let examined = self.engine.examine(bytes, &origin).await.at(Stage::Parse)?;
        passed(Passed::Parse(Box::new(examined.clone())));
        self.engine.check_contract(&examined).at(Stage::Imports)?;
        passed(Passed::Imports);
        let component = examined.bytes().clone();
        let compiled = self.engine.compile(examined).await.at(Stage::Compile)?;
        passed(Passed::Compile);
        let linked = self.engine.link(compiled).at(Stage::Link)?;
        passed(Passed::Link);
        let policy = self.engine.introduce(linked).await.at(Stage::Describe)?;
        let policy = Arc::new(policy);
        passed(Passed::Describe(policy.clone()));
        let problems = policy.validate_config(&config).await.at(Stage::Config)?;
        if !problems.is_empty() {
            let policy = policy.title();
            return Err(PolicyError::Config { policy, problems }).at(Stage::Config);
        }
        passed(Passed::Config);
        Ok(PolicyRevision {
            state: self.states.of(&policy.name),
            permissions: Permissions::of(&policy.imports),
            policy,
            grants: self.granted_to(signer.as_ref()),
            signer,
            // Nobody has looked at one that nobody asks for.
            signature: signature.filter(|text| text.len() <= SIGNATURE_BYTES_MAX),
            config,
            origin,
            component,
        })
    }

    /// Who vouches for it, where somebody has to. The built-in policy is part of this program, and trusted as it is.
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

    fn granted_to(&self, signer: Option<&Signer>) -> Arc<Grants> {
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
            Source::File(path) => self.carried(artifact::Source::File(path)).await,
            Source::Registry(reference) => {
                self.carried(artifact::Source::Registry(reference)).await
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
                    return Err(StoreError::Absent { digest }).at(Stage::Fetch);
                };
                let origin = digest.clone();
                let read = tokio::task::spawn_blocking(move || store.read_component(&digest)).await;
                let read =
                    read.unwrap_or_else(|panicked| Err(StoreError::Panicked(panicked.to_string())));
                Ok(Fetched {
                    bytes: read.at(Stage::Fetch)?,
                    origin,
                    signature,
                })
            }
            // There is a shorter way, see `Generations::content`.
            Source::Active => Err(Refusal::NothingBefore).at(Stage::Fetch),
        }
    }

    async fn carried(&self, source: artifact::Source) -> Result<Fetched, Failed> {
        let carried = self.carrier.fetch(&source, limits::COMPONENT_BYTES_MAX);
        match carried.await {
            Ok(artifact) => Ok(artifact.into()),
            Err(error @ ArtifactError::TooLarge { .. }) => Err(error).at(Stage::Size),
            Err(error) => Err(error).at(Stage::Fetch),
        }
    }

    /// One that comes from a registry, which may take minutes: long before anybody's turn, so that nobody waits for it.
    pub(super) async fn fetch_early(&self, source: &Source) -> Result<Option<Fetched>, Failed> {
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

/// Takes a candidate through all stages that a swap would, and swaps nothing. What has passed is told as it passes.
pub async fn check(
    engine: PolicyEngine,
    terms: TrustConfig,
    source: Source,
    config: &str,
    passed: &mut (dyn FnMut(Passed) + Send),
) -> Result<PolicyRevision, (Stage, Refusal)> {
    let loader = Loader {
        engine,
        // Nothing is kept: a policy keeps something in a refresh only.
        states: PolicyStates::in_folder(PathBuf::new()),
        carrier: terms.carrier,
        trust: terms.trust,
        grants: terms.grants,
        store: None,
    };
    let fetched = loader.fetch(source).await?;
    let origin = fetched.origin.clone();
    passed(Passed::Fetch { origin });
    let config = normal(config).at(Stage::Config)?;
    loader.prepare_telling(fetched, config, passed).await
}

/// The same text for the same configuration, however it was written.
pub(super) fn normal(config: &str) -> Result<String, Refusal> {
    if config.len() > CONFIG_BYTES_MAX {
        return Err(Refusal::ConfigTooLarge {
            bytes: config.len(),
        });
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(config).map_err(|_| Refusal::NoObject)?;
    Ok(serde_json::Value::Object(object).to_string())
}
