//! Which generation is active when a process starts.
//!
//! What was swapped in stays in use over restarts, until it is rolled back or the operator changes `[policy]`: the ledger
//! remembers what the configuration asked for at the last swap, and where it asks for something else now, it wins. Where the one
//! that should be active cannot be loaded, the last good one is, and says so. What nobody ever chose is no way out: a policy
//! that an operator has not asked for must not begin to recreate containers.

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

/// Whether swaps outlive the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The configuration alone says which policy is active at a start: a single refresh from the command line, a program that
    /// has a store of its own.
    Nothing,
    /// Below the state folder.
    Generations,
}

/// What the host goes by, whatever the policy.
pub struct TrustConfig {
    pub grants: Arc<Grants>,
    /// Who may ship policies.
    pub trust: Trust,
    /// How policies come from files and registries.
    pub carrier: Carrier,
}

/// One that may be active, in the order in which they are tried.
enum Choice {
    Asked,
    Recorded(Box<Record>),
}

impl Generations {
    /// Loads the one that is to be active.
    pub async fn start(
        engine: PolicyEngine,
        terms: TrustConfig,
        state: &Path,
        keep: Persistence,
        asked: ConfiguredPolicy,
    ) -> Result<Self, Diagnostic> {
        let store = match keep {
            Persistence::Nothing => None,
            Persistence::Generations => Some(Arc::new(Store::below(state))),
        };
        let loader = Loader {
            engine,
            states: PolicyStates::in_folder(state.to_owned()),
            carrier: terms.carrier,
            trust: terms.trust,
            grants: terms.grants,
            store,
        };
        let from_registry = matches!(asked.source, Source::Registry(_));
        let (on_disk, mut problem) = match loader.store.as_ref().map(|store| store.read()) {
            None => (None, None),
            Some(Ok(ledger)) => (ledger, None),
            // There is no folder, and so no file in it.
            Some(Err(error)) if error.is_about_no_folder() => (None, Some(Diagnostic::of(&error))),
            // Another policy than the one that was swapped in must not decide because a file cannot be read.
            Some(Err(error)) => return Err(Diagnostic::of(&error)),
        };
        let may_be_older = asked.may_be_older();
        let config = normal_or_as_is(asked.config);
        let mut fetched = Some(loader.fetch(asked.source).await);
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
                Choice::Asked => match fetched.take() {
                    Some(Ok(fetched)) => {
                        let content = loader.prepare(fetched, config.clone()).await;
                        content.and_then(|it| check_version(it, on_disk.as_ref(), may_be_older))
                    }
                    Some(Err(failed)) => Err(failed),
                    None => continue,
                },
                Choice::Recorded(record) => recorded(&loader, record).await,
            };
            let content = match loaded {
                Ok(content) => content,
                Err((_, refusal)) => {
                    first_failure.get_or_insert_with(|| Diagnostic::of(&refusal));
                    continue;
                }
            };
            if index > 0 {
                problem = first_failure.map(|failure| fallen_back(failure, &content));
            }
            if let Some(problem) = &problem {
                tracing::error!(hints = ?problem.hints, "{}", problem.sentence());
            }
            let past = SwapState {
                previous: None,
                on_disk,
                configured,
                from_registry,
            };
            return Ok(Self::beginning_with(loader, past, choice, content, problem));
        }
        Err(first_failure.unwrap_or_else(|| Diagnostic::new("there is no policy to load")))
    }

    /// Writes down what the start has come to, so that no other generation gets its number. A failure costs no more than that.
    pub async fn write_down(&self) {
        let Some(store) = self.loader.store.clone() else {
            return;
        };
        let mut past = self.past.lock().await;
        let seen = past.on_disk.clone();
        let active = self.active();
        let ledger = match (&seen, &active.fallback) {
            // Before the first swap the configuration alone says which policy is active, and there is nothing to remember. But a
            // registry may be out of reach at the next start, and the version of a signed policy must not go back.
            (None, _) if !past.from_registry && active.content.signer.is_none() => return,
            // One that only stands in is not what the next start should try first.
            (Some(seen), Some(_)) => seen.with_numbers_up_to(active.ledger.next),
            _ => active.ledger.clone(),
        };
        if seen.as_ref() == Some(&ledger) {
            return;
        }
        let components = vec![(
            active.policy().digest.clone(),
            active.content.component.clone(),
        )];
        let writing = ledger.clone();
        let written =
            tokio::task::spawn_blocking(move || store.write(seen.as_ref(), &writing, &components));
        match written.await {
            Ok(Ok(())) => past.on_disk = Some(ledger),
            Ok(Err(error)) => tracing::warn!(
                "the start cannot be written down: {}",
                Diagnostic::of(&error).sentence()
            ),
            Err(panicked) => tracing::error!("the store panicked, please report it: {panicked}"),
        }
    }

    fn beginning_with(
        loader: Loader,
        mut past: SwapState,
        choice: Choice,
        mut content: PolicyRevision,
        fallback: Option<Diagnostic>,
    ) -> Self {
        // It is on disk, or never will be.
        if loader.store.is_none() || matches!(choice, Choice::Recorded(_)) {
            content.component = bytes::Bytes::new();
        }
        let configured = &past.configured;
        let ledger = match (&past.on_disk, choice) {
            // As it was.
            (Some(ledger), Choice::Recorded(record)) if record.number == ledger.active().number => {
                ledger.clone()
            }
            (Some(ledger), choice) => {
                let how = match choice {
                    Choice::Asked if fallback.is_none() => ActivationReason::Configured,
                    Choice::Asked | Choice::Recorded(_) => ActivationReason::FellBack,
                };
                let record = Record::new(ledger.next, &content, how, BY);
                // Not what it asks for now, if that is not what is active: the next start is to try it again.
                let configured = match how {
                    ActivationReason::FellBack => ledger.configured.clone(),
                    _ => configured.clone(),
                };
                ledger.followed_by(record, configured)
            }
            (None, _) => {
                let record = Record::new(1, &content, ActivationReason::Configured, BY);
                RevisionHistory::beginning_with(record, configured.clone())
            }
        };
        past.previous = ledger.previous().cloned().map(Previous::Recorded);
        Self {
            active: ArcSwap::from_pointee(Generation::new(content, ledger, fallback)),
            refused: ArcSwapOption::empty(),
            shadow: ArcSwapOption::empty(),
            past: Mutex::new(past),
            loader,
        }
    }
}

const BY: &str = "the start";

fn choices(on_disk: Option<&RevisionHistory>, configured: &Configured) -> Vec<Choice> {
    let Some(ledger) = on_disk else {
        return vec![Choice::Asked];
    };
    let active = Choice::Recorded(Box::new(ledger.active().clone()));
    let previous = ledger
        .previous()
        .cloned()
        .map(|record| Choice::Recorded(Box::new(record)));
    let recorded = std::iter::once(active).chain(previous);
    if configured.differs_from(&ledger.configured) {
        std::iter::once(Choice::Asked).chain(recorded).collect()
    } else {
        recorded.chain([Choice::Asked]).collect()
    }
}

async fn recorded(loader: &Loader, record: &Record) -> Result<PolicyRevision, Failed> {
    let kept = Source::Kept {
        digest: record.digest.clone(),
        signature: record.signature.clone(),
    };
    let fetched = Fetched {
        origin: record.origin.clone(),
        ..loader.fetch(kept).await?
    };
    loader.prepare(fetched, record.config.to_string()).await
}

/// The policy says what is wrong with it, better than we could.
fn normal_or_as_is(config: String) -> String {
    match serde_json::from_str::<serde_json::Value>(&config) {
        Ok(value) => value.to_string(),
        Err(_) => config,
    }
}

fn fallen_back(failure: Diagnostic, content: &PolicyRevision) -> Diagnostic {
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
