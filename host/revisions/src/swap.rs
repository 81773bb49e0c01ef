//! From what somebody sent to the generation in use, or to an error that says how far it came.
//!
//! Until the last stage of [`super::load`] has passed nothing has changed, so a bad newcomer costs an error message. A swap should run in a task of its own: dropped halfway, it may have written down a generation that becomes
//! active only at the next start.

use std::sync::Arc;

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::printable::printable;
use refit_sandbox::PolicyError;

use super::load::{
    At as _, BUILT_IN, Failed, Fetched, NAME_BYTES_MAX, Refusal, Source, Stage, normal,
};
use super::permissions::Difference;
use super::shadow::Shadow;
use super::store::{ActivationReason, RevisionHistory};
use super::{Generation, Generations, PolicyRevision, Previous, Refused, SwapGuard};

/// What is to be swapped in.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub source: Source,
    /// JSON. `None`: the configuration in force.
    pub config: Option<String>,
    /// The generation that the caller believes is active. Where another one is, somebody was faster, and nothing is done.
    pub expected: Option<u64>,
    /// Also a version of a signed policy that is older than one that was active.
    pub allow_older: bool,
    /// Who asks, as they say of themselves.
    pub by: String,
}

/// What the configuration asks for.
#[derive(Clone, Debug)]
pub struct ConfiguredPolicy {
    /// [`Source::File`], [`Source::Registry`] or [`Source::BuiltIn`].
    pub source: Source,
    /// JSON.
    pub config: String,
    /// As of [`Candidate`].
    pub allow_older: bool,
}

impl ConfiguredPolicy {
    pub(super) fn may_be_older(&self) -> bool {
        self.allow_older || self.source.is_exact()
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
            let content = self.content(candidate, early).await?;
            turn.replace(content, ActivationReason::Swapped, &by).await
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
            let content = self.content(candidate, early).await?;
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
            turn.replace(content, ActivationReason::Promoted, &shadow.by)
                .await
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
            turn.replace(content, ActivationReason::RolledBack, &by)
                .await
        };
        self.told("roll back".to_owned(), rolling.await)
    }

    /// The configuration was read again. Swaps where it asks for something else than it did before; whatever was swapped in
    /// since stays where it does not.
    pub async fn reload(
        &self,
        asked: ConfiguredPolicy,
        by: &str,
    ) -> Result<Option<Swapped>, SwapError> {
        let act = "swap in what the configuration asks for".to_owned();
        let reloading = async {
            let may_be_older = asked.may_be_older();
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
            let ledger = &self.active().ledger;
            let content = check_version(content, Some(ledger), may_be_older)?;
            turn.past.from_registry = from_registry;
            let before = std::mem::replace(&mut turn.past.configured, configured);
            let replaced = turn.replace(content, ActivationReason::Reloaded, by).await;
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
        candidate: Candidate,
        early: Option<Fetched>,
    ) -> Result<PolicyRevision, Failed> {
        let Candidate { source, config, .. } = candidate;
        let may_be_older = candidate.allow_older || source.is_exact();
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
            return Ok(PolicyRevision { config, ..active });
        }
        let fetched = match early {
            Some(fetched) => fetched,
            None => self.loader.fetch(self.with_signature(source)).await?,
        };
        let content = self.loader.prepare(fetched, config).await?;
        let ledger = &self.active().ledger;
        check_version(content, Some(ledger), may_be_older)
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

/// Refuses a signed policy if a newer version of it was active, by what the ledger remembers.
pub(super) fn check_version(
    content: PolicyRevision,
    ledger: Option<&RevisionHistory>,
    may_be_older: bool,
) -> Result<PolicyRevision, Failed> {
    let policy = &content.policy;
    let newer = ledger.and_then(|ledger| {
        ledger.newer_than(&policy.name, &policy.version, content.signer.as_ref())
    });
    let Some(newest) = newer else {
        return Ok(content);
    };
    let policy = policy.title();
    if !may_be_older {
        return Err(Refusal::Older { policy, newest }).at(Stage::Version);
    }
    tracing::warn!(newest, "taking an older version of `{policy}`");
    Ok(content)
}

impl SwapGuard<'_> {
    async fn replace(
        &mut self,
        content: PolicyRevision,
        how: ActivationReason,
        by: &str,
    ) -> Result<Swapped, Failed> {
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
            Err(error) if how == ActivationReason::Reloaded => tracing::error!(
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
