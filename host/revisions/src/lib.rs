//! The active policy, the policies before it, and the swap from one to the next.
//!
//! A **generation** is a policy with the configuration that it accepted, under a number that is never used twice.
//! [`Generations::active`] is the one pointer to the active generation; a refresh reads it once and keeps that generation to
//! its end. [`load`] turns bytes into a policy, [`swap`] replaces the active one, [`start`] selects the first one, [`store`]
//! saves them across restarts, [`permissions`] lists what a component can request at all, and [`watch`] polls a file for
//! changes. This crate does not depend on HTTP, the command line or an engine.

#![forbid(unsafe_code)]

pub mod artifact;
pub mod load;
pub mod permissions;
pub mod shadow;
pub mod start;
pub mod store;
pub mod swap;
mod version;
pub mod watch;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use refit_model::diagnostic::Diagnostic;
use refit_model::grants::Grants;
use refit_sandbox::{Policy, PolicyState};
use tokio::sync::{Mutex, MutexGuard};

use self::load::Loader;
use self::permissions::Permissions;
use self::shadow::Shadow;
use self::store::{ActivationReason, Configured, Record, RevisionHistory};
use crate::artifact::signature::Signer;

/// A policy with its configuration: the content of a generation, which a rollback restores.
#[derive(Clone)]
pub struct PolicyRevision {
    pub policy: Arc<Policy>,
    /// JSON.
    pub config: String,
    pub state: PolicyState,
    /// The origin of the policy, for people: a file, an upload, `the built-in policy`.
    pub origin: String,
    pub permissions: Permissions,
    /// The signer; `None` if no signature is required.
    pub signer: Option<Signer>,
    /// What it may do: `[grants]`, limited by the key of its signer.
    pub grants: Arc<Grants>,
    /// The signature as received. Refit verifies it again with the keys that a later start trusts.
    signature: Option<String>,
    /// The component, until the store has saved it.
    component: Bytes,
}

impl PolicyRevision {
    /// Returns the permissions that it requests and that the grants allow.
    pub fn granted(&self) -> Permissions {
        self.permissions.limited_to(&self.grants)
    }
}

/// One activation of a policy, under its own number.
pub struct Generation {
    pub number: u64,
    pub activated: jiff::Timestamp,
    pub content: PolicyRevision,
    /// The history up to this generation, as it was when this one became active.
    pub history: RevisionHistory,
    /// Why this generation is active instead of the intended one, if so. See [`start`].
    pub fallback: Option<Diagnostic>,
    replaced: OnceLock<Instant>,
}

impl Generation {
    fn new(
        content: PolicyRevision,
        history: RevisionHistory,
        fallback: Option<Diagnostic>,
    ) -> Self {
        let record = history.active();
        Self {
            number: record.number,
            activated: record.at,
            content,
            history,
            fallback,
            replaced: OnceLock::new(),
        }
    }

    /// Returns the policy for reports.
    pub fn policy_report(&self) -> refit_model::report::PolicyReport {
        let policy = self.policy();
        refit_model::report::PolicyReport {
            name: policy.name.clone(),
            version: policy.version.clone(),
            digest: policy.digest.clone(),
            generation: self.number,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.content.policy
    }

    pub fn record(&self) -> &Record {
        self.history.active()
    }

    /// Returns `generation 4 (workspace 0.1.0)`, for people.
    pub fn title(&self) -> String {
        format!("generation {} ({})", self.number, self.policy().title())
    }
}

/// Logs that the last refresh with this generation has ended, so that an operator knows that a swap is complete.
impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(replaced) = self.replaced.get() {
            let after_ms = u64::try_from(replaced.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                generation = self.number,
                policy = self.policy().title(),
                after_ms,
                "no refresh uses it any more"
            );
        }
    }
}

/// The revision that a rollback restores.
enum Previous {
    /// From this process: it is still loaded.
    Held(PolicyRevision),
    /// From before the start of this process.
    Recorded(Record),
}

/// The state that only a swap may change.
struct SwapState {
    previous: Option<Previous>,
    /// The history on the disk, as this process last read or wrote it.
    on_disk: Option<RevisionHistory>,
    /// The policy in the configuration when Refit last read it.
    configured: Configured,
    /// Whether the configuration names a policy in a registry, which may not answer at the next start.
    from_registry: bool,
}

/// A swap that did not come about, kept for whoever asks what became of it.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Refused {
    pub at: jiff::Timestamp,
    #[serde(flatten)]
    pub told: Diagnostic,
}

/// How long a swap waits for another one: longer than all but the largest policies take to compile, and shorter than the
/// timeout of a client.
const SWAP_TIMEOUT: Duration = Duration::from_secs(20);

/// The policies of this process. There is one for each `Refresher`.
pub struct Generations {
    active: ArcSwap<Generation>,
    refused: ArcSwapOption<Refused>,
    shadow: ArcSwapOption<Shadow>,
    swap_state: Mutex<SwapState>,
    loader: Loader,
}

impl Generations {
    /// Returns the active generation. A caller that keeps the pointer is not affected by swaps.
    pub fn active(&self) -> Arc<Generation> {
        self.active.load_full()
    }

    /// Returns the last swap that failed since the start.
    pub fn last_refused(&self) -> Option<Arc<Refused>> {
        self.refused.load_full()
    }

    /// Returns the candidate of the current shadow evaluation.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.load_full()
    }

    /// Returns the candidate if Refit compares it with this generation.
    pub fn shadow_for(&self, active: &Generation) -> Option<Arc<Shadow>> {
        self.shadow()
            .filter(|shadow| shadow.beside == active.number)
    }

    /// Ends the shadow evaluation, and returns its candidate.
    pub fn end_shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.swap(None)
    }

    /// Returns the exclusive right to change the active generation.
    async fn swap_guard(&self) -> Option<SwapGuard<'_>> {
        let swap_state = tokio::time::timeout(SWAP_TIMEOUT, self.swap_state.lock())
            .await
            .ok()?;
        Some(SwapGuard {
            generations: self,
            swap_state,
        })
    }
}

struct SwapGuard<'a> {
    generations: &'a Generations,
    swap_state: MutexGuard<'a, SwapState>,
}

impl SwapGuard<'_> {
    /// Returns the history after this revision becomes active.
    fn next_history(
        &self,
        content: &PolicyRevision,
        reason: ActivationReason,
        by: &str,
    ) -> RevisionHistory {
        let active = self.generations.active.load();
        active.history.with_record(
            Record::new(active.history.next, content, reason, by),
            self.swap_state.configured.clone(),
        )
    }

    /// Saves the next history before the swap, so that a restart finds it. If it fails or stops halfway, nothing changes.
    async fn make_durable(
        &mut self,
        history: &RevisionHistory,
        content: &PolicyRevision,
    ) -> Result<(), store::StoreError> {
        let Some(store) = self.generations.loader.store.clone() else {
            return Ok(());
        };
        // Also the component of the active policy: if it came with the configuration, it may never have been saved.
        let before = self.generations.active();
        let components = vec![
            (
                before.policy().digest.clone(),
                before.content.component.clone(),
            ),
            (content.policy.digest.clone(), content.component.clone()),
        ];
        let (expected, new_history) = (self.swap_state.on_disk.clone(), history.clone());
        let write = tokio::task::spawn_blocking(move || {
            store.write(expected.as_ref(), &new_history, &components)
        });
        match write.await {
            Ok(result) => result?,
            Err(panicked) => return Err(store::StoreError::Panicked(panicked.to_string())),
        }
        self.swap_state.on_disk = Some(history.clone());
        Ok(())
    }

    /// Makes the revision active. Running refreshes keep their generation.
    fn activate(
        &mut self,
        history: RevisionHistory,
        mut content: PolicyRevision,
    ) -> Arc<Generation> {
        // If it is on the disk, or never will be, memory need not hold it.
        let drop_component = self.generations.loader.store.is_none()
            || self.swap_state.on_disk.as_ref() == Some(&history);
        if drop_component {
            content.component = Bytes::new();
        }
        let next = Arc::new(Generation::new(content, history, None));
        let before = self.generations.active.swap(next.clone());
        // The candidate was compared with the previous generation.
        if let Some(shadow) = self.generations.end_shadow() {
            tracing::info!(
                candidate = shadow.content.policy.title(),
                generation = next.number,
                "shadow evaluation ended, another generation is active"
            );
        }
        let _ = before.replaced.set(Instant::now());
        let mut previous = before.content.clone();
        if drop_component {
            previous.component = Bytes::new();
        }
        self.swap_state.previous = Some(Previous::Held(previous));
        next
    }
}
