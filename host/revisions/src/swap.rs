//! Swaps policies: from a candidate to the active generation, or to an error with the stage that failed.
//!
//! Nothing changes until the last stage of [`super::load`] has passed, so a bad candidate only costs an error message. Run a
//! swap in a separate task: if it is dropped halfway, it may have saved a generation that becomes active only at the next
//! start.

use std::sync::Arc;

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::printable::printable;
use refit_sandbox::PolicyError;

use super::load::{
    AtStage as _, BUILT_IN, Failed, Fetched, NAME_BYTES_MAX, Refusal, Source, Stage, normalize,
};
use super::permissions::Difference;
use super::shadow::Shadow;
use super::store::{ActivationReason, RevisionHistory};
use super::{Generation, Generations, PolicyRevision, Previous, Refused, SwapGuard};

/// A policy that a client wants to activate.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub source: Source,
    /// JSON. `None` keeps the current configuration.
    pub config: Option<String>,
    /// The generation that the caller expects to be active. If a different one is active, another client was faster, and
    /// nothing changes.
    pub expected: Option<u64>,
    /// Whether to accept a version of a signed policy that is older than one that was active.
    pub allow_older: bool,
    /// The client's name, as the client gives it.
    pub by: String,
}

/// The policy in the configuration.
#[derive(Clone, Debug)]
pub struct ConfiguredPolicy {
    /// Is [`Source::File`], [`Source::Registry`] or [`Source::BuiltIn`].
    pub source: Source,
    /// JSON.
    pub config: String,
    /// See [`Candidate::allow_older`].
    pub allow_older: bool,
}

impl ConfiguredPolicy {
    pub(super) fn may_be_older(&self) -> bool {
        self.allow_older || self.source.is_exact()
    }
}

/// A failed swap. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act}: it failed at `{stage}`; {still_active} is still in use")]
pub struct SwapError {
    /// The attempted action: `swap in "x.wasm"`, `roll back`.
    act: String,
    pub stage: Stage,
    /// The number and name of the active generation.
    pub still_active: String,
    #[source]
    pub source: Box<Refusal>,
}

impl Hints for SwapError {
    fn hints(&self) -> Vec<String> {
        self.source.hints()
    }
}

/// A successful swap, or a swap with nothing to do.
pub struct Swapped {
    pub generation: Arc<Generation>,
    /// `false`: the same component with the same configuration was active already.
    pub changed: bool,
    pub difference: Difference,
}

impl Generations {
    /// Makes a candidate the active policy. Swaps run one at a time; another one waits, for a limited time.
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
            self.check_expected(candidate.expected)
                .at_stage(Stage::Expectation)?;
            let prefetched = self.loader.prefetch(&candidate.source).await?;
            let mut swap_guard = self
                .swap_guard()
                .await
                .ok_or(Refusal::Busy)
                .at_stage(Stage::Turn)?;
            tracing::info!(by, "beginning to {act}");
            self.check_expected(candidate.expected)
                .at_stage(Stage::Expectation)?;
            let content = self.load_candidate(candidate, prefetched).await?;
            swap_guard
                .replace(content, ActivationReason::Swapped, &by)
                .await
        };
        let outcome = swapping.await;
        self.log_outcome(act, outcome)
    }

    /// Starts a shadow evaluation of a candidate against the active generation. See [`super::shadow`].
    pub async fn start_shadow(
        &self,
        candidate: Candidate,
        after: Option<u32>,
    ) -> Result<Arc<Shadow>, SwapError> {
        let act = "try out a candidate".to_owned();
        let by = printable(&candidate.by, NAME_BYTES_MAX);
        let trying = async {
            self.check_expected(candidate.expected)
                .at_stage(Stage::Expectation)?;
            let prefetched = self.loader.prefetch(&candidate.source).await?;
            let _guard = self
                .swap_guard()
                .await
                .ok_or(Refusal::Busy)
                .at_stage(Stage::Turn)?;
            self.check_expected(candidate.expected)
                .at_stage(Stage::Expectation)?;
            let content = self.load_candidate(candidate, prefetched).await?;
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
                    "shadow evaluation started"
                );
                Ok(shadow)
            }
            Err(failed) => Err(self.record_refusal(act, failed)),
        }
    }

    /// Activates a candidate that has agreed often enough.
    pub async fn promote(&self, shadow: &Arc<Shadow>) {
        let act = format!("swap in `{}`, which was on trial", shadow.content.origin);
        let promoting = async {
            let mut swap_guard = self
                .swap_guard()
                .await
                .ok_or(Refusal::Busy)
                .at_stage(Stage::Turn)?;
            self.check_expected(Some(shadow.beside))
                .at_stage(Stage::Expectation)?;
            let is_current = self
                .shadow()
                .is_some_and(|current| Arc::ptr_eq(&current, shadow));
            if !is_current {
                return Err(Refusal::Withdrawn).at_stage(Stage::Expectation);
            }
            let content = shadow.content.clone();
            swap_guard
                .replace(content, ActivationReason::Promoted, &shadow.by)
                .await
        };
        // No caller waits for it; `log_outcome` logs it.
        let _ = self.log_outcome(act, promoting.await);
    }

    /// Activates the previous revision again, with its configuration, as a new generation.
    pub async fn roll_back(&self, expected: Option<u64>, by: &str) -> Result<Swapped, SwapError> {
        let by = printable(by, NAME_BYTES_MAX);
        let rolling = async {
            let mut swap_guard = self
                .swap_guard()
                .await
                .ok_or(Refusal::Busy)
                .at_stage(Stage::Turn)?;
            self.check_expected(expected).at_stage(Stage::Expectation)?;
            let content = match &swap_guard.swap_state.previous {
                None => return Err(Refusal::NothingBefore).at_stage(Stage::Fetch),
                Some(Previous::Held(content)) => content.clone(),
                Some(Previous::Recorded(record)) => {
                    let (digest, config) = (record.digest.clone(), record.config.to_string());
                    let origin = record.origin.clone();
                    let signature = record.signature.clone();
                    let fetch = self.loader.fetch(Source::Kept { digest, signature });
                    let fetched = Fetched {
                        origin,
                        ..fetch.await?
                    };
                    self.loader.prepare(fetched, config).await?
                }
            };
            swap_guard
                .replace(content, ActivationReason::RolledBack, &by)
                .await
        };
        self.log_outcome("roll back".to_owned(), rolling.await)
    }

    /// Handles a reload of the configuration. It swaps if the configuration names a different policy than before; otherwise a
    /// swapped-in policy stays.
    pub async fn reload(
        &self,
        configured_policy: ConfiguredPolicy,
        by: &str,
    ) -> Result<Option<Swapped>, SwapError> {
        let act = "swap in what the configuration asks for".to_owned();
        let reloading = async {
            let may_be_older = configured_policy.may_be_older();
            let prefetched = self.loader.prefetch(&configured_policy.source).await?;
            let mut swap_guard = self
                .swap_guard()
                .await
                .ok_or(Refusal::Busy)
                .at_stage(Stage::Turn)?;
            let config = normalize(&configured_policy.config).at_stage(Stage::Config)?;
            let from_registry = prefetched.is_some();
            let fetched = match prefetched {
                Some(fetched) => fetched,
                None => self.loader.fetch(configured_policy.source).await?,
            };
            let configured = fetched.configured(config.clone());
            if !configured.differs_from(&swap_guard.swap_state.configured) {
                return Ok(None);
            }
            let content = self.loader.prepare(fetched, config).await?;
            let history = &self.active().history;
            let content = check_version(content, Some(history), may_be_older)?;
            swap_guard.swap_state.from_registry = from_registry;
            let before = std::mem::replace(&mut swap_guard.swap_state.configured, configured);
            let result = swap_guard
                .replace(content, ActivationReason::Reloaded, by)
                .await;
            if result.is_err() {
                swap_guard.swap_state.configured = before;
            }
            result.map(Some)
        };
        match reloading.await {
            Ok(None) => Ok(None),
            Ok(Some(swapped)) => self.log_outcome(act, Ok(swapped)).map(Some),
            Err(failed) => self.log_outcome(act, Err(failed)).map(Some),
        }
    }

    fn check_expected(&self, expected: Option<u64>) -> Result<(), Refusal> {
        let active = self.active.load().number;
        match expected {
            Some(expected) if expected != active => Err(Refusal::Overtaken { expected, active }),
            _ => Ok(()),
        }
    }

    async fn load_candidate(
        &self,
        candidate: Candidate,
        prefetched: Option<Fetched>,
    ) -> Result<PolicyRevision, Failed> {
        let Candidate { source, config, .. } = candidate;
        let may_be_older = candidate.allow_older || source.is_exact();
        let active = self.active().content.clone();
        let config = match config {
            Some(config) => normalize(&config).at_stage(Stage::Config)?,
            None => active.config.clone(),
        };
        if let Source::Active = source {
            let problems = active.policy.validate_config(&config).await;
            let problems = problems.at_stage(Stage::Config)?;
            if !problems.is_empty() {
                let policy = active.policy.title();
                return Err(PolicyError::Config { policy, problems }).at_stage(Stage::Config);
            }
            return Ok(PolicyRevision { config, ..active });
        }
        let fetched = match prefetched {
            Some(fetched) => fetched,
            None => self.loader.fetch(self.with_signature(source)).await?,
        };
        let content = self.loader.prepare(fetched, config).await?;
        let history = &self.active().history;
        check_version(content, Some(history), may_be_older)
    }

    /// Adds the last signature of a stored component to its source.
    fn with_signature(&self, source: Source) -> Source {
        match source {
            Source::Kept {
                digest,
                signature: None,
            } => {
                let active = self.active();
                let mut records = active.history.records();
                let last =
                    records.find(|record| record.digest == digest && record.signature.is_some());
                let signature = last.and_then(|record| record.signature.clone());
                Source::Kept { digest, signature }
            }
            other => other,
        }
    }

    /// Logs the outcome of a swap, and keeps a failure for later queries.
    fn log_outcome(
        &self,
        act: String,
        outcome: Result<Swapped, Failed>,
    ) -> Result<Swapped, SwapError> {
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
                        "policy swapped"
                    );
                }
                Ok(swapped)
            }
            Err(failed) => Err(self.record_refusal(act, failed)),
        }
    }

    fn record_refusal(&self, act: String, (stage, source): Failed) -> SwapError {
        let error = SwapError {
            act,
            stage,
            still_active: self.active().title(),
            source: Box::new(source),
        };
        let diagnostic = Diagnostic::of(&error);
        tracing::error!(%stage, hints = ?diagnostic.hints, "{}", diagnostic.sentence());
        let at = jiff::Timestamp::now();
        self.refused.store(Some(Arc::new(Refused {
            at,
            told: diagnostic,
        })));
        error
    }
}

/// Refuses a signed policy if a newer version of it was active, according to the history.
pub(super) fn check_version(
    content: PolicyRevision,
    history: Option<&RevisionHistory>,
    may_be_older: bool,
) -> Result<PolicyRevision, Failed> {
    let policy = &content.policy;
    let newer = history.and_then(|history| {
        history.newer_version(&policy.name, &policy.version, content.signer.as_ref())
    });
    let Some(newest) = newer else {
        return Ok(content);
    };
    let policy = policy.title();
    if !may_be_older {
        return Err(Refusal::Older { policy, newest }).at_stage(Stage::Version);
    }
    tracing::warn!(newest, "taking an older version of `{policy}`");
    Ok(content)
}

impl SwapGuard<'_> {
    async fn replace(
        &mut self,
        content: PolicyRevision,
        reason: ActivationReason,
        by: &str,
    ) -> Result<Swapped, Failed> {
        let before = self.generations.active();
        let (old, new) = (&before.content, &content);
        // A fallback becomes a regular generation when a client requests it.
        let changed = old.policy.digest != new.policy.digest
            || old.config != new.config
            || old.signer != new.signer
            || before.fallback.is_some();
        let difference = Difference::between(&old.granted(), &new.granted());
        // A new generation would make a rollback useless.
        if !changed {
            return Ok(Swapped {
                generation: before,
                changed,
                difference,
            });
        }
        let history = self.next_history(&content, reason, by);
        match self.make_durable(&history, &content).await {
            Ok(()) => {}
            // The configuration is its permanent record, and the next start finds that.
            Err(error) if reason == ActivationReason::Reloaded => tracing::error!(
                "cannot save the swap: {}",
                Diagnostic::of(&error).sentence()
            ),
            // The client has to know: a restart would undo the swap silently.
            Err(error) => return Err((Stage::Durable, error.into())),
        }
        Ok(Swapped {
            generation: self.activate(history, content),
            changed,
            difference,
        })
    }
}
