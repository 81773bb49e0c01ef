//! Which policy is in use, which were before it, and the way from one to the next.
//!
//! A **generation** is a policy with the configuration that it accepted, under a number that is never used twice. There is one
//! pointer to the active one ([`Generations::active`]); a refresh takes it once and keeps it to its end. [`load`] makes a policy
//! of bytes, [`swap`] puts another one in place, [`start`] says which one it is at first, [`store`] what outlives the process,
//! [`permissions`] what a component can ask for at all, [`watch`] looks at a file again and again. Knows of no HTTP, no command
//! line and no engine.

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

/// What a generation consists of, and what a rollback brings back.
#[derive(Clone)]
pub struct PolicyRevision {
    pub policy: Arc<Policy>,
    /// JSON.
    pub config: String,
    pub state: PolicyState,
    /// Where the policy came from, for people: a file, an upload, `the built-in policy`.
    pub origin: String,
    pub permissions: Permissions,
    /// Who vouches for it; `None` where nobody needs to.
    pub signer: Option<Signer>,
    /// What it may do: `[grants]`, within what its signer's key allows.
    pub grants: Arc<Grants>,
    /// As it came along. Kept, so that it is verified again under the keys that a later start trusts.
    signature: Option<String>,
    /// The component, until the store has it.
    component: Bytes,
}

impl PolicyRevision {
    /// What it asks for and would really be given.
    pub fn granted(&self) -> Permissions {
        self.permissions.within(&self.grants)
    }
}

/// A policy in its time.
pub struct Generation {
    pub number: u64,
    pub activated: jiff::Timestamp,
    pub content: PolicyRevision,
    /// This one, and those before it, as they were when it became active.
    pub ledger: RevisionHistory,
    /// Why it is not the one that should be active, where it is not. See [`start`].
    pub fallback: Option<Diagnostic>,
    replaced: OnceLock<Instant>,
}

impl Generation {
    fn new(content: PolicyRevision, ledger: RevisionHistory, fallback: Option<Diagnostic>) -> Self {
        let record = ledger.active();
        Self {
            number: record.number,
            activated: record.at,
            content,
            ledger,
            fallback,
            replaced: OnceLock::new(),
        }
    }

    /// What reports say of it.
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
        self.ledger.active()
    }

    /// `generation 4 (workspace 0.1.0)`, for people.
    pub fn title(&self) -> String {
        format!("generation {} ({})", self.number, self.policy().title())
    }
}

/// The last refresh that used it has ended. A log that says so tells an operator that a swap is complete.
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

/// What a rollback would go back to.
enum Previous {
    /// From this process's own time: nothing has to be loaded.
    Held(PolicyRevision),
    /// From before its start.
    Recorded(Record),
}

/// What only the one who swaps may touch.
struct SwapState {
    previous: Option<Previous>,
    /// As this process last read or wrote it.
    on_disk: Option<RevisionHistory>,
    /// What the configuration asked for when it was last looked at.
    configured: Configured,
    /// Whether it names a policy in a registry, which may not answer at the next start.
    from_registry: bool,
}

/// A swap that did not come about, kept for whoever asks what became of it.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Refused {
    pub at: jiff::Timestamp,
    #[serde(flatten)]
    pub told: Diagnostic,
}

/// How long a swap waits for one that is under way, before it is refused: longer than all but the largest policies take to
/// compile, shorter than a client's patience.
const TURN: Duration = Duration::from_secs(20);

/// All there is to know about policies in this process. One for each [`crate::refresh::Refresher`].
pub struct Generations {
    active: ArcSwap<Generation>,
    refused: ArcSwapOption<Refused>,
    shadow: ArcSwapOption<Shadow>,
    past: Mutex<SwapState>,
    loader: Loader,
}

impl Generations {
    /// The one in use now. Whoever needs it for longer than a moment keeps the pointer, and is not affected by swaps.
    pub fn active(&self) -> Arc<Generation> {
        self.active.load_full()
    }

    /// The last swap that failed since the start.
    pub fn last_refused(&self) -> Option<Arc<Refused>> {
        self.refused.load_full()
    }

    /// The candidate on trial.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.load_full()
    }

    /// The same, where it stands beside this generation.
    pub fn shadow_beside(&self, active: &Generation) -> Option<Arc<Shadow>> {
        self.shadow()
            .filter(|shadow| shadow.beside == active.number)
    }

    /// Ends the trial. The candidate that was on it.
    pub fn end_shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.swap(None)
    }

    /// Whoever holds the turn is the only one who can change which generation is active.
    async fn turn(&self) -> Option<SwapGuard<'_>> {
        let past = tokio::time::timeout(TURN, self.past.lock()).await.ok()?;
        Some(SwapGuard { of: self, past })
    }
}

struct SwapGuard<'a> {
    of: &'a Generations,
    past: MutexGuard<'a, SwapState>,
}

impl SwapGuard<'_> {
    /// What the ledger will say once this content is active.
    fn next(&self, content: &PolicyRevision, how: ActivationReason, by: &str) -> RevisionHistory {
        let active = self.of.active.load();
        active.ledger.followed_by(
            Record::new(active.ledger.next, content, how, by),
            self.past.configured.clone(),
        )
    }

    /// Writes down what is about to be, so that a restart finds it. Not begun, it changes nothing; half done neither.
    async fn make_durable(
        &mut self,
        ledger: &RevisionHistory,
        content: &PolicyRevision,
    ) -> Result<(), store::StoreError> {
        let Some(store) = self.of.loader.store.clone() else {
            return Ok(());
        };
        // The one before it too: it may never have been written, if it came with the configuration.
        let before = self.of.active();
        let components = vec![
            (
                before.policy().digest.clone(),
                before.content.component.clone(),
            ),
            (content.policy.digest.clone(), content.component.clone()),
        ];
        let (seen, writing) = (self.past.on_disk.clone(), ledger.clone());
        let written =
            tokio::task::spawn_blocking(move || store.write(seen.as_ref(), &writing, &components));
        match written.await {
            Ok(written) => written?,
            Err(panicked) => return Err(store::StoreError::Panicked(panicked.to_string())),
        }
        self.past.on_disk = Some(ledger.clone());
        Ok(())
    }

    /// The pointer changes. Refreshes under way keep the generation that they began with.
    fn activate(
        &mut self,
        ledger: RevisionHistory,
        mut content: PolicyRevision,
    ) -> Arc<Generation> {
        // Once it is on disk, or where nothing ever will be, memory need not hold it.
        let let_go = self.of.loader.store.is_none() || self.past.on_disk.as_ref() == Some(&ledger);
        if let_go {
            content.component = Bytes::new();
        }
        let next = Arc::new(Generation::new(content, ledger, None));
        let before = self.of.active.swap(next.clone());
        // It was compared with the one that is no longer in use.
        if let Some(shadow) = self.of.end_shadow() {
            tracing::info!(
                candidate = shadow.content.policy.title(),
                generation = next.number,
                "the trial of a candidate ended, since another generation is active"
            );
        }
        let _ = before.replaced.set(Instant::now());
        let mut previous = before.content.clone();
        if let_go {
            previous.component = Bytes::new();
        }
        self.past.previous = Some(Previous::Held(previous));
        next
    }
}
