//! How one state of an approval becomes the next.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use refit_model::diagnostic::Diagnostic;
use refit_model::request::{Request, Trigger};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::dispatcher::ApprovalDispatcher;
use super::plan::Plan;
use super::repository::{Book, Turn, WAITING_MAX, refusal};
use super::{ApprovalError, ApprovalState, Id, PendingApproval, Refreshes, State};
use crate::watch::update_sink::{AvailableUpdate, Proposal, UpdateSink};

/// The longest reason of a rejection.
const REASON_CHARACTERS_MAX: usize = 500;

/// Pauses between attempts to begin what was approved. They double.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_MOST: Duration = Duration::from_secs(5 * 60);

/// Told of each that is held, for notifications. Called on the task that holds it, so it must not wait for anything.
pub type Observer = Arc<dyn Fn(&PendingApproval) + Send + Sync>;

/// How refreshes are held.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The state directory.
    pub state: PathBuf,
    /// How long one waits, and how long one that was approved may wait to be begun.
    pub life: Duration,
    /// What the watcher proposes because of these is held.
    pub required_for: Vec<Trigger>,
}

/// What became of a proposal.
#[derive(Debug)]
pub enum Hold {
    Waits(Arc<PendingApproval>),
    /// A person has rejected all of its findings.
    Rejected,
}

/// What became of a request that asks for approval.
#[derive(Debug)]
pub enum Requested {
    Held(Arc<PendingApproval>),
    /// The same was held already.
    Same(Arc<PendingApproval>),
    /// A refresh would do nothing.
    NothingToDo(Box<Plan>),
}

/// See the [module above](super).
pub struct Approvals {
    life: Duration,
    required_for: Vec<Trigger>,
    refreshes: Arc<dyn Refreshes>,
    observer: Option<Observer>,
    book: Book,
    /// Something is approved and could not be begun.
    unbegun: Notify,
}

/// What is to be held.
struct Wanted {
    request: Request,
    by: Option<String>,
    findings: Vec<AvailableUpdate>,
    plan: Plan,
}

impl Approvals {
    /// What was held before is looked for. Where it cannot be read that is told, and tried again with the next change.
    pub async fn open(
        terms: Terms,
        refreshes: Arc<dyn Refreshes>,
        observer: Option<Observer>,
    ) -> Arc<Self> {
        let approvals = Self {
            life: terms.life,
            required_for: terms.required_for,
            refreshes,
            observer,
            book: Book::new(terms.state),
            unbegun: Notify::new(),
        };
        if approvals.book.is_there() {
            // What is wrong with it has been told.
            let _ = approvals.book.turn().await;
        }
        Arc::new(approvals)
    }

    /// For the watcher: holds what needs approval, and passes on the rest.
    pub fn gate(self: &Arc<Self>, open: Arc<dyn UpdateSink>) -> ApprovalDispatcher {
        ApprovalDispatcher::new(open, self.clone(), self.required_for.clone())
    }

    /// The newest first.
    pub fn list(&self, state: Option<State>) -> Vec<Arc<PendingApproval>> {
        self.book.list(state)
    }

    pub fn get(&self, id: Id) -> Result<Arc<PendingApproval>, ApprovalError> {
        self.book.get(id)
    }

    /// Why the last change could not be kept, or what was damaged when the daemon started.
    pub fn problem(&self) -> Option<Diagnostic> {
        self.book.problem()
    }

    /// A person or a CI asks for a refresh that a person approves. The same again, while it waits, is the same approval; where
    /// something has moved, the new one takes the place of the old.
    pub async fn request(
        &self,
        request: Request,
        by: Option<String>,
    ) -> Result<Requested, ApprovalError> {
        let plan = self.plan(&request).await?;
        if !plan.has_work() {
            return Ok(Requested::NothingToDo(Box::new(plan)));
        }
        let turn = self.book.turn().await?;
        let earlier = self
            .book
            .waiting(|held| same_request(&held.request, &request));
        if let Some(same) = earlier.iter().find(|held| plan.is_within(&held.plan)) {
            return Ok(Requested::Same(same.clone()));
        }
        let wanted = Wanted {
            request,
            by,
            findings: plan.findings(),
            plan,
        };
        Ok(Requested::Held(self.hold(&turn, wanted, &earlier).await?))
    }

    /// The watcher has found something.
    pub async fn propose(&self, proposal: Proposal) -> Result<Hold, ApprovalError> {
        let Proposal {
            request,
            findings,
            plan,
        } = proposal;
        let turn = self.book.turn().await?;
        // There is nothing to hold until what was approved of it has ended.
        let adopted = self.book.approved(|held| {
            all_within(&findings, &held.findings) && self.is_still_to_be_done(&held.fate)
        });
        if let Some(adopted) = adopted.first() {
            return Ok(Hold::Waits(adopted.clone()));
        }
        if self.book.has_rejected(&findings) {
            return Ok(Hold::Rejected);
        }
        let is_of_images = |held: &PendingApproval| {
            let mut images = held.findings.iter().map(|found| &found.image);
            images.any(|image| findings.iter().any(|found| found.image == *image))
        };
        let earlier = self
            .book
            .waiting(|held| was_proposed(held) && is_of_images(held));
        let same = earlier
            .iter()
            .find(|held| all_within(&findings, &held.findings));
        if let Some(same) = same {
            return Ok(Hold::Waits(same.clone()));
        }
        let wanted = Wanted {
            request,
            by: None,
            findings,
            plan: Plan::of(&plan),
        };
        Ok(Hold::Waits(self.hold(&turn, wanted, &earlier).await?))
    }

    /// Returns when it has begun, or is to begin as soon as there is room. To be called in a task of its own: whoever hangs up
    /// has approved all the same.
    pub async fn approve(
        &self,
        id: Id,
        by: Option<String>,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let _claim = self.book.claim(id)?;
        let held = self.undecided(id)?;
        self.look_again(&held).await?;
        let approved = ApprovalState::Approved {
            decided_by: by,
            decided_at: Timestamp::now(),
            refresh: None,
        };
        let held = self.decide(&held, approved).await?;
        let begun = self.begin(&held).await;
        if begun.is_none() {
            self.unbegun.notify_one();
        }
        Ok(begun.unwrap_or(held))
    }

    pub async fn reject(
        &self,
        id: Id,
        by: Option<String>,
        reason: Option<String>,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let _claim = self.book.claim(id)?;
        let held = self.undecided(id)?;
        let said = reason.map(|reason| {
            let words = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            let printable = words.chars().filter(|c| !c.is_control());
            printable.take(REASON_CHARACTERS_MAX).collect::<String>()
        });
        let rejected = ApprovalState::Rejected {
            decided_by: by,
            decided_at: Timestamp::now(),
            reason: said.filter(|said| !said.is_empty()),
        };
        self.decide(&held, rejected).await
    }

    /// Begins what was approved and could not be begun: by a daemon that died, or for want of room. Ends when `stopping` is set.
    pub async fn begin_the_approved(&self, stopping: CancellationToken) {
        let mut pause = AGAIN_FIRST;
        loop {
            if self.book.is_unread().await {
                // What is wrong with it has been told.
                let _ = self.book.turn().await;
            }
            for id in self.book.unbegun() {
                self.take_up(id).await;
            }
            let is_done = self.book.unbegun().is_empty() && !self.book.is_unread().await;
            let again = async {
                match is_done {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(pause).await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.unbegun.notified() => pause = AGAIN_FIRST,
                () = again => pause = (pause * 2).min(AGAIN_MOST),
            }
        }
    }

    async fn take_up(&self, id: Id) {
        // Somebody is at it.
        let Ok(_claim) = self.book.claim(id) else {
            return;
        };
        let Ok(held) = self.book.get(id) else { return };
        let ApprovalState::Approved {
            decided_at,
            refresh: None,
            ..
        } = held.fate
        else {
            return;
        };
        if Timestamp::now() >= later(decided_at, self.life) {
            tracing::warn!(
                id,
                "what was approved could not be begun in time, and has expired"
            );
            // What cannot be written down is told by whoever cannot.
            let _ = self.decide(&held, ApprovalState::Expired).await;
            return;
        }
        if let Err(error) = self.look_again(&held).await {
            let told = error.told();
            tracing::warn!(id, hints = ?told.hints, "cannot begin what was approved: {}", told.sentence());
            return;
        }
        if let Some(begun) = self.begin(&held).await {
            tracing::info!(id, fate = ?begun.fate, "what was approved earlier has begun");
        }
    }

    /// Whether what is held still says what is so. Where it does not, it is superseded.
    async fn look_again(&self, held: &PendingApproval) -> Result<(), ApprovalError> {
        let now = self.plan(&held.request).await?;
        let since = held.plan.beside(&now);
        let id = held.id;
        match (since.moved.is_empty(), since.unknown.is_empty()) {
            (true, true) => return Ok(()),
            (true, false) => {
                let problems = since.unknown;
                return Err(ApprovalError::Unseen { id, problems });
            }
            (false, _) => {}
        }
        let turn = self.book.turn().await?;
        turn.unchanged(held)?;
        let new = match now.has_work() {
            false => None,
            true => {
                let wanted = Wanted {
                    request: held.request.clone(),
                    by: held.by.clone(),
                    findings: now.findings(),
                    plan: now,
                };
                Some(turn.keep(self.held(&turn, wanted)).await?)
            }
        };
        let superseded_by = new.as_ref().map(|new| new.id);
        let superseded = held.with(ApprovalState::Superseded {
            decided_at: Timestamp::now(),
            superseded_by,
            moved: since.moved,
        });
        let superseded = turn.keep(superseded).await?;
        if let Some(new) = &new {
            self.tell(new);
        }
        Err(refusal(&superseded))
    }

    /// `None` where it could not be begun now.
    async fn begin(&self, held: &PendingApproval) -> Option<Arc<PendingApproval>> {
        let ApprovalState::Approved {
            decided_by,
            decided_at,
            ..
        } = &held.fate
        else {
            return None;
        };
        let who = decided_by.as_deref().unwrap_or("somebody");
        let by = format!("{who} (approval {})", held.id);
        let approved = held.plan.scope(held.id);
        let begun = self
            .refreshes
            .begin(held.request.clone(), Some(by), approved);
        let refresh = match begun.await {
            Ok(refresh) => refresh,
            Err(not_begun) => {
                tracing::warn!(id = held.id, "what is approved is begun later: {not_begun}");
                return None;
            }
        };
        let begun = held.with(ApprovalState::Approved {
            decided_by: decided_by.clone(),
            decided_at: *decided_at,
            refresh: Some(refresh),
        });
        let turn = match self.book.turn().await {
            Ok(turn) => turn,
            Err(_) => return Some(Arc::new(begun)),
        };
        match turn.keep(begun.clone()).await {
            Ok(begun) => Some(begun),
            // That was told. It runs, and the next daemon would begin it again, and find it done.
            Err(_) => Some(turn.know(Arc::new(begun))),
        }
    }

    /// From what it was when somebody looked, to this.
    async fn decide(
        &self,
        held: &PendingApproval,
        fate: ApprovalState,
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        let turn = self.book.turn().await?;
        turn.unchanged(held)?;
        turn.keep(held.with(fate)).await
    }

    /// A new one, in the place of those before it.
    async fn hold(
        &self,
        turn: &Turn<'_>,
        wanted: Wanted,
        earlier: &[Arc<PendingApproval>],
    ) -> Result<Arc<PendingApproval>, ApprovalError> {
        turn.tidy().await;
        if self.book.waiting(|_| true).len() >= WAITING_MAX + earlier.len() {
            return Err(ApprovalError::TooMany { most: WAITING_MAX });
        }
        let new = turn.keep(self.held(turn, wanted)).await?;
        self.tell(&new);
        for held in earlier {
            let superseded = ApprovalState::Superseded {
                decided_at: new.created,
                superseded_by: Some(new.id),
                moved: held.plan.beside(&new.plan).moved,
            };
            turn.keep(held.with(superseded)).await?;
        }
        Ok(new)
    }

    fn held(&self, turn: &Turn<'_>, wanted: Wanted) -> PendingApproval {
        let created = Timestamp::now();
        let Wanted {
            request,
            by,
            findings,
            plan,
        } = wanted;
        PendingApproval {
            id: turn.number(),
            created,
            expires: later(created, self.life),
            fate: ApprovalState::Waiting,
            request,
            by,
            findings,
            plan,
        }
    }

    fn tell(&self, new: &PendingApproval) {
        tracing::info!(
            id = new.id,
            images = new.findings.len(),
            containers = new.plan.containers.len(),
            "a refresh waits for approval"
        );
        if let Some(observer) = &self.observer {
            observer(new);
        }
    }

    async fn plan(&self, request: &Request) -> Result<Plan, ApprovalError> {
        let planned = self.refreshes.plan(request).await;
        // One that was cut short says less than is so.
        if self.refreshes.is_stopping() {
            return Err(ApprovalError::Stopping);
        }
        match planned {
            Ok(report) => Ok(Plan::of(&report)),
            Err(source) => Err(ApprovalError::Unplanned { source }),
        }
    }

    fn undecided(&self, id: Id) -> Result<Arc<PendingApproval>, ApprovalError> {
        let held = self.book.get(id)?;
        match held.fate {
            ApprovalState::Waiting => Ok(held),
            _ => Err(refusal(&held)),
        }
    }

    fn is_still_to_be_done(&self, fate: &ApprovalState) -> bool {
        match fate {
            ApprovalState::Approved { refresh, .. } => {
                refresh.is_none_or(|refresh| self.refreshes.is_under_way(refresh))
            }
            _ => false,
        }
    }
}

fn same_request(one: &Request, other: &Request) -> bool {
    one.trigger == other.trigger
        && one.targets == other.targets
        && one.images == other.images
        && one.recreate == other.recreate
        && one.force == other.force
}

fn was_proposed(held: &PendingApproval) -> bool {
    match held.request.trigger {
        Trigger::Schedule | Trigger::Webhook => true,
        Trigger::Operator | Trigger::Api => false,
    }
}

fn all_within(findings: &[AvailableUpdate], others: &[AvailableUpdate]) -> bool {
    findings.iter().all(|found| others.contains(found))
}

fn later(time: Timestamp, life: Duration) -> Timestamp {
    time.checked_add(life).unwrap_or(Timestamp::MAX)
}
