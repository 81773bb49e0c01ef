//! Selects the active generation when a process starts.
//!
//! A swapped-in policy stays active across restarts, until somebody rolls it back or the operator changes `[policy]`: the
//! history stores the configuration at the last swap, and a different configuration wins. If the intended policy cannot be
//! loaded, the last good one becomes active, and the generation reports that. Refit never falls back to a policy that nobody
//! chose: a policy that no operator requested must not start to recreate containers.

use std::path::Path;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use refit_model::diagnostic::Diagnostic;
use refit_model::grants::Grants;
use refit_sandbox::{PolicyEngine, PolicyStates};
use tokio::sync::Mutex;

use super::load::{Failed, Fetched, Loader, Source};
use super::store::{ActivationReason, Configured, Record, RevisionHistory, Store};
use super::swap::{ConfiguredPolicy, check_version};
use super::{Generation, Generations, PolicyRevision, Previous, SwapState};
use crate::artifact::Carrier;
use crate::artifact::signature::Trust;

/// Whether swaps survive the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// No: the configuration alone selects the policy at a start. For a single refresh from the command line, or a program with
    /// its own store.
    Nothing,
    /// Yes, in the state folder.
    Generations,
}

/// The host's grants, keys and registries, whatever the policy.
pub struct TrustConfig {
    pub grants: Arc<Grants>,
    /// The keys that may sign policies.
    pub trust: Trust,
    /// Fetches policies from files and registries.
    pub carrier: Carrier,
}

/// A policy that may become active, in the order of attempts.
enum Choice {
    Configured,
    Recorded(Box<Record>),
}

impl Generations {
    /// Loads the policy that becomes active.
    pub async fn start(
        engine: PolicyEngine,
        trust_config: TrustConfig,
        state: &Path,
        persistence: Persistence,
        configured_policy: ConfiguredPolicy,
    ) -> Result<Self, Diagnostic> {
        let store = match persistence {
            Persistence::Nothing => None,
            Persistence::Generations => Some(Arc::new(Store::new(state))),
        };
        let loader = Loader {
            engine,
            states: PolicyStates::in_folder(state.to_owned()),
            carrier: trust_config.carrier,
            trust: trust_config.trust,
            grants: trust_config.grants,
            store,
        };
        let from_registry = matches!(configured_policy.source, Source::Registry(_));
        let (on_disk, mut problem) = match loader.store.as_ref().map(|store| store.read()) {
            None => (None, None),
            Some(Ok(history)) => (history, None),
            // There is no folder, so there is no file in it.
            Some(Err(error)) if error.is_not_a_folder() => (None, Some(Diagnostic::of(&error))),
            // If a file cannot be read, a policy other than the swapped-in one must not decide.
            Some(Err(error)) => return Err(Diagnostic::of(&error)),
        };
        let may_be_older = configured_policy.may_be_older();
        let config = normalize_if_valid(configured_policy.config);
        let mut fetched = Some(loader.fetch(configured_policy.source).await);
        let configured = match &fetched {
            Some(Ok(fetched)) => fetched.configured(config.clone()),
            _ => Configured {
                digest: None,
                signature: None,
                config: config.clone(),
            },
        };
        let mut first_failure = None;
        for (index, choice) in choices(on_disk.as_ref(), &configured)
            .into_iter()
            .enumerate()
        {
            let loaded = match &choice {
                Choice::Configured => match fetched.take() {
                    Some(Ok(fetched)) => {
                        let content = loader.prepare(fetched, config.clone()).await;
                        content.and_then(|content| {
                            check_version(content, on_disk.as_ref(), may_be_older)
                        })
                    }
                    Some(Err(failed)) => Err(failed),
                    None => continue,
                },
                Choice::Recorded(record) => load_record(&loader, record).await,
            };
            let content = match loaded {
                Ok(content) => content,
                Err((_, refusal)) => {
                    first_failure.get_or_insert_with(|| Diagnostic::of(&refusal));
                    continue;
                }
            };
            if index > 0 {
                problem = first_failure.map(|failure| fallback_problem(failure, &content));
            }
            if let Some(problem) = &problem {
                tracing::error!(hints = ?problem.hints, "{}", problem.sentence());
            }
            let swap_state = SwapState {
                previous: None,
                on_disk,
                configured,
                from_registry,
            };
            return Ok(Self::from_choice(
                loader, swap_state, choice, content, problem,
            ));
        }
        Err(first_failure.unwrap_or_else(|| Diagnostic::new("there is no policy to load")))
    }

    /// Saves the result of the start, so that no other generation gets its number. A failure has no other effect.
    pub async fn save(&self) {
        let Some(store) = self.loader.store.clone() else {
            return;
        };
        let mut swap_state = self.swap_state.lock().await;
        let expected = swap_state.on_disk.clone();
        let active = self.active();
        let history = match (&expected, &active.fallback) {
            // Before the first swap, the configuration alone selects the policy, and there is nothing to save. But a registry
            // may not answer at the next start, and the version of a signed policy must not go back.
            (None, _) if !swap_state.from_registry && active.content.signer.is_none() => return,
            // The next start should not try a fallback first.
            (Some(expected), Some(_)) => expected.with_reserved_numbers(active.history.next),
            _ => active.history.clone(),
        };
        if expected.as_ref() == Some(&history) {
            return;
        }
        let components = vec![(
            active.policy().digest.clone(),
            active.content.component.clone(),
        )];
        let new_history = history.clone();
        let write = tokio::task::spawn_blocking(move || {
            store.write(expected.as_ref(), &new_history, &components)
        });
        match write.await {
            Ok(Ok(())) => swap_state.on_disk = Some(history),
            Ok(Err(error)) => tracing::warn!(
                "cannot save the active generation: {}",
                Diagnostic::of(&error).sentence()
            ),
            Err(panicked) => tracing::error!("the store panicked, please report it: {panicked}"),
        }
    }

    fn from_choice(
        loader: Loader,
        mut swap_state: SwapState,
        choice: Choice,
        mut content: PolicyRevision,
        fallback: Option<Diagnostic>,
    ) -> Self {
        // The component is on the disk, or never will be.
        if loader.store.is_none() || matches!(choice, Choice::Recorded(_)) {
            content.component = bytes::Bytes::new();
        }
        let configured = &swap_state.configured;
        let history = match (&swap_state.on_disk, choice) {
            // Nothing has changed.
            (Some(history), Choice::Recorded(record))
                if record.number == history.active().number =>
            {
                history.clone()
            }
            (Some(history), choice) => {
                let reason = match choice {
                    Choice::Configured if fallback.is_none() => ActivationReason::Configured,
                    Choice::Configured | Choice::Recorded(_) => ActivationReason::FellBack,
                };
                let record = Record::new(history.next, &content, reason, BY);
                // If the active policy is a fallback, keep the old entry, so that the next start tries the configured policy
                // again.
                let configured = match reason {
                    ActivationReason::FellBack => history.configured.clone(),
                    _ => configured.clone(),
                };
                history.with_record(record, configured)
            }
            (None, _) => {
                let record = Record::new(1, &content, ActivationReason::Configured, BY);
                RevisionHistory::new(record, configured.clone())
            }
        };
        swap_state.previous = history.previous().cloned().map(Previous::Recorded);
        Self {
            active: ArcSwap::from_pointee(Generation::new(content, history, fallback)),
            refused: ArcSwapOption::empty(),
            shadow: ArcSwapOption::empty(),
            swap_state: Mutex::new(swap_state),
            loader,
        }
    }
}

const BY: &str = "the start";

fn choices(on_disk: Option<&RevisionHistory>, configured: &Configured) -> Vec<Choice> {
    let Some(history) = on_disk else {
        return vec![Choice::Configured];
    };
    let active = Choice::Recorded(Box::new(history.active().clone()));
    let previous = history
        .previous()
        .cloned()
        .map(|record| Choice::Recorded(Box::new(record)));
    let recorded_choices = std::iter::once(active).chain(previous);
    if configured.differs_from(&history.configured) {
        std::iter::once(Choice::Configured)
            .chain(recorded_choices)
            .collect()
    } else {
        recorded_choices.chain([Choice::Configured]).collect()
    }
}

async fn load_record(loader: &Loader, record: &Record) -> Result<PolicyRevision, Failed> {
    let source = Source::Kept {
        digest: record.digest.clone(),
        signature: record.signature.clone(),
    };
    let fetched = Fetched {
        origin: record.origin.clone(),
        ..loader.fetch(source).await?
    };
    loader.prepare(fetched, record.config.to_string()).await
}

/// Normalizes the configuration. If it is invalid, the policy reports that better than Refit could.
fn normalize_if_valid(config: String) -> String {
    match serde_json::from_str::<serde_json::Value>(&config) {
        Ok(value) => value.to_string(),
        Err(_) => config,
    }
}

fn fallback_problem(failure: Diagnostic, content: &PolicyRevision) -> Diagnostic {
    let mut problem = Diagnostic::new(format!(
        "the policy that should be active cannot be used; `{}` from {} is instead",
        content.policy.title(),
        content.origin
    ));
    problem.causes = std::iter::once(failure.error)
        .chain(failure.causes)
        .collect();
    problem.hints = failure.hints;
    problem.hint("swap in a good one, or roll back, or set `[policy] component`; the next start tries this one again")
}
