//! From bytes that somebody sent to the generation in use, or to an error that says how far they came.
//!
//! `Loader::prepare` is the list of stages. Until the last of them has passed nothing has changed, so a bad newcomer costs an
//! error message. A swap should run in a task of its own: dropped halfway, it may have written down a generation that becomes
//! active only at the next start.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::permissions::{Difference, Permissions};
use super::shadow::Shadow;
use super::store::{CONFIG_BYTES_MAX, Configured, How, Store, StoreError};
use super::{Content, Generation, Generations, Previous, Refused, Turn};
use crate::artifact::signature::{SIGNATURE_BYTES_MAX, SignatureError, Signer, Trust};
use crate::artifact::{self, Artifact, ArtifactError, ArtifactRef, Carrier};
use crate::diagnostic::{Diagnostic, Hints};
use crate::grants::Grants;
use crate::policy::{
    DEFAULT_POLICY, PolicyEngine, PolicyError, PolicyStates, digest, limits, printable,
};

/// What the default policy is called where a file would be named.
pub const BUILT_IN: &str = "the built-in policy";

/// The longest name of a caller or an origin that is kept.
const NAME_BYTES_MAX: usize = 200;

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

/// What is to be swapped in.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub source: Source,
    /// JSON. `None`: the configuration in force.
    pub config: Option<String>,
    /// The generation that the caller believes is active. Where another one is, somebody was faster, and nothing is done.
    pub expected: Option<u64>,
    /// Who asks, as they say of themselves.
    pub by: String,
}

/// What the configuration asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// [`Source::File`], [`Source::Registry`] or [`Source::BuiltIn`].
    pub source: Source,
    /// JSON.
    pub config: String,
}

/// How far a candidate came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
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
            Self::Withdrawn
            | Self::NothingBefore
            | Self::NoObject
            | Self::ConfigTooLarge { .. } => vec![],
        }
    }
}

/// Nothing was swapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act}: it failed at `{stage}`; {still_active} is still in use")]
pub struct SwapError {
    /// `swap in "x.wasm"`, `roll back`
    act: String,
    pub stage: Stage,
    /// Its number and its name.
    pub still_active: String,
    #[source]
    pub source: Box<Refusal>,
}

impl Hints for SwapError {
    fn hints(&self) -> Vec<String> {
        self.source.hints()
    }
}

/// A swap that came about, or had nothing to do.
pub struct Swapped {
    pub generation: Arc<Generation>,
    /// `false`: the same component with the same configuration was active already.
    pub changed: bool,
    pub difference: Difference,
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
    ) -> Result<Content, Failed> {
        let Fetched {
            bytes,
            origin,
            signature,
        } = fetched;
        check_size(&bytes, &origin).at(Stage::Size)?;
        let signer = self.check_signature(&bytes, &origin, signature.as_deref());
        let signer = signer.at(Stage::Signature)?;
        let examined = self.engine.examine(bytes, &origin).await.at(Stage::Parse)?;
        self.engine.check_contract(&examined).at(Stage::Imports)?;
        let component = examined.bytes().clone();
        let compiled = self.engine.compile(examined).await.at(Stage::Compile)?;
        let linked = self.engine.link(compiled).at(Stage::Link)?;
        let policy = self.engine.introduce(linked).await.at(Stage::Describe)?;
        let problems = policy.validate_config(&config).await.at(Stage::Config)?;
        if !problems.is_empty() {
            let policy = policy.title();
            return Err(PolicyError::Config { policy, problems }).at(Stage::Config);
        }
        Ok(Content {
            state: self.states.of(&policy.name),
            permissions: Permissions::of(&policy.imports),
            policy: Arc::new(policy),
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
    async fn fetch_early(&self, source: &Source) -> Result<Option<Fetched>, Failed> {
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

/// The same text for the same configuration, however it was written.
fn normal(config: &str) -> Result<String, Refusal> {
    if config.len() > CONFIG_BYTES_MAX {
        return Err(Refusal::ConfigTooLarge {
            bytes: config.len(),
        });
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(config).map_err(|_| Refusal::NoObject)?;
    Ok(serde_json::Value::Object(object).to_string())
}

impl Generations {
    /// Puts a candidate in the active one's place. One at a time; a second waits for its turn, within bounds.
    pub async fn swap(&self, candidate: Candidate) -> Result<Swapped, SwapError> {
        let act = match &candidate.source {
            Source::BuiltIn => format!("swap in {BUILT_IN}"),
            Source::File(path) => format!("swap in `{}`", path.display()),
            Source::Registry(reference) => format!("swap in `{reference}`"),
            Source::Bytes { origin, .. } => {
                format!("swap in `{}`", printable(origin, NAME_BYTES_MAX))
            }
            Source::Kept { digest, .. } => {
                format!("swap in `{}`", printable(digest, NAME_BYTES_MAX))
            }
            Source::Active => "change the configuration of the policy".to_owned(),
        };
        let by = printable(&candidate.by, NAME_BYTES_MAX);
        let swapping = async {
            self.expect(candidate.expected).at(Stage::Expectation)?;
            let early = self.loader.fetch_early(&candidate.source).await?;
            let mut turn = self.turn().await.ok_or(Refusal::Busy).at(Stage::Turn)?;
            tracing::info!(by, "beginning to {act}");
            self.expect(candidate.expected).at(Stage::Expectation)?;
            let content = self.content(candidate.source, early, candidate.config);
            let content = content.await?;
            turn.replace(content, How::Swapped, &by).await
        };
        let outcome = swapping.await;
        self.told(act, outcome)
    }

    /// Puts a candidate on trial beside the active generation. See [`super::shadow`].
    pub async fn try_out(
        &self,
        candidate: Candidate,
        after: Option<u32>,
    ) -> Result<Arc<Shadow>, SwapError> {
        let act = "try out a candidate".to_owned();
        let by = printable(&candidate.by, NAME_BYTES_MAX);
        let trying = async {
            self.expect(candidate.expected).at(Stage::Expectation)?;
            let early = self.loader.fetch_early(&candidate.source).await?;
            let _turn = self.turn().await.ok_or(Refusal::Busy).at(Stage::Turn)?;
            self.expect(candidate.expected).at(Stage::Expectation)?;
            let content = self.content(candidate.source, early, candidate.config);
            let content = content.await?;
            let beside = self.active.load().number;
            let shadow = Arc::new(Shadow::new(content, by, beside, after));
            self.shadow.store(Some(shadow.clone()));
            Ok(shadow)
        };
        match trying.await {
            Ok(shadow) => {
                tracing::info!(
                    candidate = shadow.content.policy.title(),
                    digest = shadow.content.policy.digest,
                    beside = shadow.beside,
                    after = shadow.after,
                    by = shadow.by,
                    "a candidate is on trial"
                );
                Ok(shadow)
            }
            Err(failed) => Err(self.refused(act, failed)),
        }
    }

    /// The candidate has agreed often enough.
    pub async fn promote(&self, shadow: &Arc<Shadow>) {
        let act = format!("swap in `{}`, which was on trial", shadow.content.origin);
        let promoting = async {
            let mut turn = self.turn().await.ok_or(Refusal::Busy).at(Stage::Turn)?;
            self.expect(Some(shadow.beside)).at(Stage::Expectation)?;
            let on_trial = self.shadow().is_some_and(|now| Arc::ptr_eq(&now, shadow));
            if !on_trial {
                return Err(Refusal::Withdrawn).at(Stage::Expectation);
            }
            let content = shadow.content.clone();
            turn.replace(content, How::Promoted, &shadow.by).await
        };
        // Nobody waits for it; `told` writes it down.
        let _ = self.told(act, promoting.await);
    }

    /// Puts what was active before back in its place, configuration included, as a new generation.
    pub async fn roll_back(&self, expected: Option<u64>, by: &str) -> Result<Swapped, SwapError> {
        let by = printable(by, NAME_BYTES_MAX);
        let rolling = async {
            let mut turn = self.turn().await.ok_or(Refusal::Busy).at(Stage::Turn)?;
            self.expect(expected).at(Stage::Expectation)?;
            let content = match &turn.past.previous {
                None => return Err(Refusal::NothingBefore).at(Stage::Fetch),
                Some(Previous::Held(content)) => content.clone(),
                Some(Previous::Recorded(record)) => {
                    let (digest, config) = (record.digest.clone(), record.config.to_string());
                    let origin = record.origin.clone();
                    let signature = record.signature.clone();
                    let kept = self.loader.fetch(Source::Kept { digest, signature });
                    let fetched = Fetched {
                        origin,
                        ..kept.await?
                    };
                    self.loader.prepare(fetched, config).await?
                }
            };
            turn.replace(content, How::RolledBack, &by).await
        };
        self.told("roll back".to_owned(), rolling.await)
    }

    /// The configuration was read again. Swaps where it asks for something else than it did before; whatever was swapped in
    /// since stays where it does not.
    pub async fn reload(&self, asked: Asked, by: &str) -> Result<Option<Swapped>, SwapError> {
        let act = "swap in what the configuration asks for".to_owned();
        let reloading = async {
            let early = self.loader.fetch_early(&asked.source).await?;
            let mut turn = self.turn().await.ok_or(Refusal::Busy).at(Stage::Turn)?;
            let config = normal(&asked.config).at(Stage::Config)?;
            let from_registry = early.is_some();
            let fetched = match early {
                Some(fetched) => fetched,
                None => self.loader.fetch(asked.source).await?,
            };
            let configured = fetched.configured(config.clone());
            if !configured.differs_from(&turn.past.configured) {
                return Ok(None);
            }
            let content = self.loader.prepare(fetched, config).await?;
            turn.past.from_registry = from_registry;
            let before = std::mem::replace(&mut turn.past.configured, configured);
            let replaced = turn.replace(content, How::Reloaded, by).await;
            if replaced.is_err() {
                turn.past.configured = before;
            }
            replaced.map(Some)
        };
        match reloading.await {
            Ok(None) => Ok(None),
            Ok(Some(swapped)) => self.told(act, Ok(swapped)).map(Some),
            Err(failed) => self.told(act, Err(failed)).map(Some),
        }
    }

    fn expect(&self, expected: Option<u64>) -> Result<(), Refusal> {
        let active = self.active.load().number;
        match expected {
            Some(expected) if expected != active => Err(Refusal::Overtaken { expected, active }),
            _ => Ok(()),
        }
    }

    async fn content(
        &self,
        source: Source,
        early: Option<Fetched>,
        config: Option<String>,
    ) -> Result<Content, Failed> {
        let active = self.active().content.clone();
        let config = match config {
            Some(config) => normal(&config).at(Stage::Config)?,
            None => active.config.clone(),
        };
        if let Source::Active = source {
            let problems = active.policy.validate_config(&config).await;
            let problems = problems.at(Stage::Config)?;
            if !problems.is_empty() {
                let policy = active.policy.title();
                return Err(PolicyError::Config { policy, problems }).at(Stage::Config);
            }
            return Ok(Content { config, ..active });
        }
        let fetched = match early {
            Some(fetched) => fetched,
            None => self.loader.fetch(self.with_signature(source)).await?,
        };
        self.loader.prepare(fetched, config).await
    }

    /// One that is kept, with the signature that it had when it was last in use.
    fn with_signature(&self, source: Source) -> Source {
        match source {
            Source::Kept {
                digest,
                signature: None,
            } => {
                let active = self.active();
                let mut records = active.ledger.history();
                let last = records.find(|it| it.digest == digest && it.signature.is_some());
                let signature = last.and_then(|record| record.signature.clone());
                Source::Kept { digest, signature }
            }
            other => other,
        }
    }

    /// The outcome, in the log and for whoever asks later.
    fn told(&self, act: String, outcome: Result<Swapped, Failed>) -> Result<Swapped, SwapError> {
        match outcome {
            Ok(swapped) => {
                if swapped.changed {
                    let generation = &swapped.generation;
                    tracing::info!(
                        generation = generation.number,
                        policy = generation.policy().title(),
                        digest = generation.policy().digest,
                        origin = generation.content.origin,
                        signer = generation.content.signer.as_ref().map(tracing::field::display),
                        by = generation.record().by,
                        gained = %swapped.difference.gained,
                        lost = %swapped.difference.lost,
                        "swapped"
                    );
                }
                Ok(swapped)
            }
            Err(failed) => Err(self.refused(act, failed)),
        }
    }

    fn refused(&self, act: String, (stage, source): Failed) -> SwapError {
        let error = SwapError {
            act,
            stage,
            still_active: self.active().title(),
            source: Box::new(source),
        };
        let told = Diagnostic::of(&error);
        tracing::error!(%stage, hints = ?told.hints, "{}", told.sentence());
        let at = jiff::Timestamp::now();
        self.refused.store(Some(Arc::new(Refused { at, told })));
        error
    }
}

impl Turn<'_> {
    async fn replace(&mut self, content: Content, how: How, by: &str) -> Result<Swapped, Failed> {
        let before = self.of.active();
        let (old, new) = (&before.content, &content);
        // One that stands in for another becomes the right one when somebody asks for it.
        let changed = old.policy.digest != new.policy.digest
            || old.config != new.config
            || old.signer != new.signer
            || before.fallback.is_some();
        let difference = Difference::between(&old.granted(), &new.granted());
        // To make a generation of it would make a rollback lead nowhere.
        if !changed {
            return Ok(Swapped {
                generation: before,
                changed,
                difference,
            });
        }
        let ledger = self.next(&content, how, by);
        match self.make_durable(&ledger, &content).await {
            Ok(()) => {}
            // Its configuration is the lasting record of it, and the next start finds that.
            Err(error) if how == How::Reloaded => tracing::error!(
                "the swap cannot be written down: {}",
                Diagnostic::of(&error).sentence()
            ),
            // Somebody was told that it is in use; a restart that undoes it without a word would make that a lie.
            Err(error) => return Err((Stage::Durable, error.into())),
        }
        Ok(Swapped {
            generation: self.activate(ledger, content),
            changed,
            difference,
        })
    }
}
