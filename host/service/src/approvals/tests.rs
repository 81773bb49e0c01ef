//! The state transitions of approvals, with fake refreshes. `tests/tests/e2e/approvals.rs` uses real ones.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use refit_model::container::ContainerId;
use refit_model::recreation::{RecreationRecord, Strategy};
use refit_model::request::Trigger;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::repository::{CLOCK_BELIEVED_AFTER, Repository, removable_ids};
use super::*;
use crate::watch::update_sink::{Disposition, Proposal, UpdateSink};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Images with their digests, and outdated containers.
type Stale = (Vec<(&'static str, &'static str)>, Vec<&'static str>);

/// Returns plans as the test sets them, and records the refreshes that it starts.
#[derive(Default)]
struct FakeRefreshes {
    now: Mutex<Stale>,
    begun: Mutex<Vec<(Option<String>, ApprovedScope)>>,
    under_way: Mutex<Vec<refit_history::Id>>,
    full: Mutex<bool>,
    stopping: Mutex<bool>,
    /// If set, plans wait for this.
    plan_gate: Mutex<Option<Arc<Notify>>>,
    plans: AtomicUsize,
}

impl FakeRefreshes {
    fn new(images: &[(&'static str, &'static str)], containers: &[&'static str]) -> Arc<Self> {
        let refreshes = Arc::new(Self::default());
        refreshes.set_stale(images, containers);
        refreshes
    }

    fn set_stale(&self, images: &[(&'static str, &'static str)], containers: &[&'static str]) {
        *self.now.lock().unwrap() = (images.to_vec(), containers.to_vec());
    }

    fn begun(&self) -> Vec<Option<String>> {
        let begun = self.begun.lock().unwrap();
        begun.iter().map(|(by, _)| by.clone()).collect()
    }

    fn report(&self) -> Report {
        let (images, containers) = self.now.lock().unwrap().clone();
        report(&images, &containers)
    }
}

#[async_trait]
impl Refreshes for Arc<FakeRefreshes> {
    async fn plan(&self, _: &Request) -> Result<Report, RefreshError> {
        self.plans.fetch_add(1, Ordering::SeqCst);
        let plan_gate = self.plan_gate.lock().unwrap().clone();
        if let Some(plan_gate) = plan_gate {
            plan_gate.notified().await;
        }
        Ok(self.report())
    }

    async fn begin(
        &self,
        _: Request,
        by: Option<String>,
        approved: ApprovedScope,
    ) -> Result<refit_history::Id, StartError> {
        if *self.full.lock().unwrap() {
            return Err(StartError::TooMany);
        }
        let mut begun = self.begun.lock().unwrap();
        begun.push((by, approved));
        Ok(begun.len() as refit_history::Id)
    }

    fn is_under_way(&self, refresh: refit_history::Id) -> bool {
        self.under_way.lock().unwrap().contains(&refresh)
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.lock().unwrap()
    }
}

/// A plan that pulls each image. The digest `-` stands for an image that cannot be checked. Each container runs the first
/// image.
fn report(images: &[(&str, &str)], containers: &[&str]) -> Report {
    let request = request(Trigger::Api);
    let image_json = |(name, digest): &(&str, &str)| match *digest {
        "-" => {
            json!({ "image": name, "outcome": "failed", "error": "the registry is down", "duration_ms": 1 })
        }
        digest => {
            json!({ "image": name, "outcome": "would-pull", "digest": digest, "duration_ms": 1 })
        }
    };
    let container_json = |name: &&str| {
        json!({ "name": name, "verdict": "recreate", "rule": "stale", "reason": "it is behind", "recreation": {
            "container": name, "strategy": "replace", "outcome": "would-recreate", "old_id": "old",
            "to_image_id": images[0].1, "image": images[0].0, "duration_ms": 1,
        } })
    };
    let pulls = images.iter().filter(|(_, digest)| *digest != "-").count();
    let report = json!({
        "format": 1, "mode": "plan", "started": "2026-11-25T10:00:00Z", "duration_ms": 1,
        "policy": { "name": "workspace", "version": "0.1.0", "digest": "sha256:p", "generation": 1 },
        "request": request,
        "summary": {
            "pulled": 0, "up_to_date": 0, "would_pull": pulls, "pull_failed": images.len() - pulls, "recreated": 0,
            "removed": 0, "would_recreate": containers.len(), "current": 0, "stale": 0, "unknown": 0, "recreate_failed": 0,
        },
        "targets": [],
        "images": images.iter().map(image_json).collect::<Vec<_>>(),
        "containers": containers.iter().map(container_json).collect::<Vec<_>>(),
    });
    serde_json::from_value(report).unwrap()
}

fn request(trigger: Trigger) -> Request {
    Request {
        trigger,
        targets: vec![],
        images: vec![],
        recreate: true,
        force: false,
    }
}

const APP: &str = "ghcr.io/acme/app:latest";
const DB: &str = "ghcr.io/acme/db:latest";

fn proposal(images: &[(&str, &str)]) -> Proposal {
    let updates = images.iter().map(|(image, digest)| AvailableUpdate {
        image: image.parse().unwrap(),
        digest: (*digest).to_owned(),
    });
    Proposal {
        request: request(Trigger::Schedule),
        findings: updates.collect(),
        plan: report(images, &["ws-ana"]),
    }
}

async fn open_for(
    folder: &TempDir,
    life: Duration,
    refreshes: &Arc<FakeRefreshes>,
) -> Arc<Approvals> {
    let terms = Terms {
        state: folder.path().to_owned(),
        life,
        required_for: vec![Trigger::Schedule],
    };
    Approvals::open(terms, Arc::new(refreshes.clone()), None).await
}

async fn open(folder: &TempDir, refreshes: &Arc<FakeRefreshes>) -> Arc<Approvals> {
    open_for(folder, DAY, refreshes).await
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[track_caller]
fn expect_waiting(hold: Result<Hold, ApprovalError>) -> Id {
    match hold {
        Ok(Hold::Waits(approval)) => approval.id,
        other => panic!("it should wait: {other:?}"),
    }
}

#[track_caller]
fn expect_created(requested: Result<Requested, ApprovalError>) -> Arc<PendingApproval> {
    match requested {
        Ok(Requested::Held(approval)) => approval,
        other => panic!("it should be held: {other:?}"),
    }
}

fn states(approvals: &Approvals) -> Vec<(Id, State)> {
    let all = approvals.list(None).into_iter().rev();
    all.map(|approval| (approval.id, approval.state.name()))
        .collect()
}

fn path(folder: &TempDir, id: Id) -> std::path::PathBuf {
    folder.path().join(format!("approvals/{id}.json"))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn approved_refresh_starts_once_within_its_plan() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    let ana = Some("ana".to_owned());
    let approval = expect_created(approvals.request(request(Trigger::Api), ana.clone()).await);
    assert_eq!((approval.id, approval.by.clone()), (1, ana));
    assert!(refreshes.begun().is_empty());

    let approved = approvals.approve(1, Some("bo".into())).await.unwrap();
    assert!(
        matches!(
            approved.state,
            ApprovalState::Approved {
                refresh: Some(1),
                ..
            }
        ),
        "{:?}",
        approved.state
    );
    assert_eq!(refreshes.begun(), [Some("bo (approval 1)".into())]);
    let approved = refreshes.begun.lock().unwrap()[0].1.clone();
    assert_eq!(approved.images[&APP.parse().unwrap()], "sha256:1");
    let ana = &approved.containers["ws-ana"];
    assert_eq!((ana.id.as_str(), ana.strategy), ("old", Strategy::Replace));
    assert_eq!(ana.image, APP.parse().unwrap());

    let again = approvals.approve(1, None).await.unwrap_err();
    assert!(again.to_string().ends_with("by bo"), "{again}");
    assert!(again.hints()[0].contains("history show 1"));
    let rejected = approvals.reject(1, None, None).await;
    assert!(matches!(rejected, Err(ApprovalError::Decided { .. })));
    assert_eq!(refreshes.begun().len(), 1);
    assert!(matches!(
        approvals.approve(2, None).await,
        Err(ApprovalError::NoSuch(2))
    ));
    let kept = read(&path(&folder, 1));
    assert_eq!(
        (&kept["state"], &kept["refresh"], &kept["decided_by"]),
        (&json!("approved"), &json!(1), &json!("bo"))
    );
}

#[tokio::test]
async fn moved_digest_supersedes_approval_and_starts_nothing() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    expect_created(
        approvals
            .request(request(Trigger::Api), Some("ana".into()))
            .await,
    );
    refreshes.set_stale(&[(APP, "sha256:2")], &["ws-ana"]);
    let error = approvals.approve(1, None).await.unwrap_err();
    let diagnostic = error.diagnostic();
    assert!(
        diagnostic.causes[0].contains("stood for `sha256:1`, and stands for `sha256:2` now"),
        "{diagnostic}"
    );
    assert!(diagnostic.hints[0].contains("approval 2"), "{diagnostic}");
    assert_eq!(
        states(&approvals),
        [(1, State::Superseded), (2, State::Waiting)]
    );
    assert_eq!(approvals.get(2).unwrap().by.as_deref(), Some("ana"));
    assert!(refreshes.begun().is_empty());
    // A second request gets the same answer.
    let again = approvals.approve(1, None).await.unwrap_err();
    assert_eq!(again.diagnostic(), diagnostic);
    approvals.approve(2, None).await.unwrap();
    assert_eq!(refreshes.begun().len(), 1);
}

#[tokio::test]
async fn removed_and_new_containers_are_no_change() {
    let both = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), FakeRefreshes::new(&both, &["ws-ana", "ws-bo"]));
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    refreshes.set_stale(&both, &["ws-bo", "ws-new"]);
    approvals.approve(1, None).await.unwrap();
    let approved = refreshes.begun.lock().unwrap()[0].1.clone();
    assert!(!approved.containers.contains_key("ws-new") && !approved.others.contains("ws-new"));
}

#[tokio::test]
async fn newly_recreated_container_is_a_change() {
    let mut before = report(&[(APP, "sha256:1")], &["ws-ana", "ws-bo"]);
    before.containers[1].recreation = None;
    let before = Plan::from_report(&before);
    let now = Plan::from_report(&report(&[(APP, "sha256:1")], &["ws-ana", "ws-bo"]));
    let changes = before.compare(&now);
    assert_eq!(changes.moved, ["`ws-bo` would be recreated too now"]);
    assert!(now.compare(&before).moved.is_empty());
    let mut other_way = report(&[(APP, "sha256:1")], &["ws-ana"]);
    other_way.containers[0]
        .recreation
        .as_mut()
        .unwrap()
        .strategy = Strategy::Remove;
    assert_eq!(
        before.compare(&Plan::from_report(&other_way)).moved.len(),
        1
    );
}

#[test]
fn another_container_image_or_follower_is_a_change() {
    let plan = |change: &dyn Fn(&mut RecreationRecord)| {
        let mut report = report(&[(APP, "sha256:1"), (DB, "sha256:2")], &["ws-ana"]);
        change(report.containers[0].recreation.as_mut().unwrap());
        Plan::from_report(&report)
    };
    let follower = |planned: &mut RecreationRecord, id: &str| {
        planned.followed = vec!["ws-side".into()];
        planned.follower_ids = vec![ContainerId::new(id)];
    };
    let before = plan(&|planned| follower(planned, "s1"));
    let moved = |change: &dyn Fn(&mut RecreationRecord)| before.compare(&plan(change)).moved;
    // A missing follower is no change.
    assert!(moved(&|_| {}).is_empty());
    assert!(moved(&|planned| follower(planned, "s1")).is_empty());
    for (moved, why) in [
        (
            moved(&|planned| planned.old_id = ContainerId::new("again")),
            "`ws-ana` is another container now",
        ),
        (
            moved(&|planned| planned.image = Some(DB.parse().unwrap())),
            "`ws-ana` would get another image now",
        ),
        (
            moved(&|planned| follower(planned, "s2")),
            "`ws-side` would be recreated with `ws-ana` now",
        ),
    ] {
        assert_eq!(moved, [why]);
    }
    // Earlier versions did not write the ids.
    let mut old = serde_json::to_value(&before).unwrap();
    old["containers"][0].as_object_mut().unwrap().remove("id");
    let old: Plan = serde_json::from_value(old).unwrap();
    assert_eq!(old.compare(&before).moved.len(), 1);
    assert!(old.approved_scope(1).containers.is_empty());
}

#[tokio::test]
async fn approval_that_cannot_be_checked_keeps_waiting() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    refreshes.set_stale(&[(APP, "-")], &[]);
    let error = approvals.approve(1, None).await.unwrap_err();
    assert!(
        error.diagnostic().causes[0].contains("the registry is down"),
        "{error:?}"
    );
    assert_eq!(states(&approvals), [(1, State::Waiting)]);
    refreshes.set_stale(&[(APP, "sha256:1")], &["ws-ana"]);
    approvals.approve(1, None).await.unwrap();
}

#[tokio::test]
async fn concurrent_decisions_have_one_winner() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    let plan_gate = Arc::new(Notify::new());
    *refreshes.plan_gate.lock().unwrap() = Some(plan_gate.clone());
    let before = refreshes.plans.load(Ordering::SeqCst);
    let first = tokio::spawn({
        let approvals = approvals.clone();
        async move { approvals.approve(1, Some("ana".into())).await }
    });
    while refreshes.plans.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    for second in [
        approvals.approve(1, None).await,
        approvals.reject(1, None, None).await,
    ] {
        assert!(
            matches!(second, Err(ApprovalError::BeingDecided(1))),
            "{second:?}"
        );
    }
    plan_gate.notify_one();
    first.await.unwrap().unwrap();
    assert_eq!(refreshes.begun(), [Some("ana (approval 1)".into())]);
}

#[tokio::test]
async fn equal_request_is_reused_and_moved_one_supersedes() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    let ask = || approvals.request(request(Trigger::Api), None);
    expect_created(ask().await);
    assert!(matches!(ask().await, Ok(Requested::Same(same)) if same.id == 1));
    let other = Request {
        force: true,
        ..request(Trigger::Api)
    };
    assert_eq!(expect_created(approvals.request(other, None).await).id, 2);
    refreshes.set_stale(&[(APP, "sha256:2")], &["ws-ana"]);
    assert_eq!(expect_created(ask().await).id, 3);
    assert_eq!(
        states(&approvals),
        [
            (1, State::Superseded),
            (2, State::Waiting),
            (3, State::Waiting)
        ]
    );
    refreshes.set_stale(&[], &[]);
    assert!(matches!(ask().await, Ok(Requested::NothingToDo(_))));
}

#[tokio::test]
async fn proposed_update_gets_one_approval_until_it_moves() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let notified = Arc::new(AtomicUsize::new(0));
    let terms = Terms {
        state: folder.path().to_owned(),
        life: DAY,
        required_for: vec![],
    };
    let count = notified.clone();
    let observer: Observer = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let approvals = Approvals::open(terms, Arc::new(refreshes.clone()), Some(observer)).await;
    let both = [(APP, "sha256:1"), (DB, "sha256:1")];
    assert_eq!(expect_waiting(approvals.propose(proposal(&both)).await), 1);
    assert_eq!(expect_waiting(approvals.propose(proposal(&both)).await), 1);
    // A webhook about one of them.
    assert_eq!(
        expect_waiting(approvals.propose(proposal(&both[..1])).await),
        1
    );
    assert_eq!(notified.load(Ordering::SeqCst), 1, "it is told once");
    let moved = [(APP, "sha256:1"), (DB, "sha256:2")];
    assert_eq!(expect_waiting(approvals.propose(proposal(&moved)).await), 2);
    assert_eq!(
        states(&approvals),
        [(1, State::Superseded), (2, State::Waiting)]
    );
    assert!(
        matches!(&approvals.get(1).unwrap().state, ApprovalState::Superseded { superseded_by: Some(2), moved, .. } if moved.len() == 1)
    );
    // A person's request is independent.
    expect_created(approvals.request(request(Trigger::Api), None).await);
    assert_eq!(expect_waiting(approvals.propose(proposal(&moved)).await), 2);
}

#[tokio::test]
async fn rejected_updates_stay_rejected_until_one_moves() {
    let (folder, refreshes) = (folder(), FakeRefreshes::new(&[], &[]));
    let approvals = open(&folder, &refreshes).await;
    let first = [(APP, "sha256:1"), (DB, "sha256:1")];
    expect_waiting(approvals.propose(proposal(&first)).await);
    let reason = Some("not on\n a \u{1b}[31mFriday".to_owned());
    let rejected = approvals
        .reject(1, Some("ana".into()), reason)
        .await
        .unwrap();
    assert!(
        matches!(&rejected.state, ApprovalState::Rejected { reason: Some(reason), .. } if reason == "not on a [31mFriday")
    );
    // The next daemon remembers it.
    drop(approvals);
    let approvals = open(&folder, &refreshes).await;
    for again in [&first[..], &first[1..]] {
        assert!(matches!(
            approvals.propose(proposal(again)).await,
            Ok(Hold::Rejected)
        ));
    }
    let moved = [(APP, "sha256:2"), (DB, "sha256:1")];
    assert_eq!(expect_waiting(approvals.propose(proposal(&moved)).await), 2);
}

#[tokio::test]
async fn running_approved_refresh_prevents_new_approval() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), FakeRefreshes::new(&now, &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    expect_waiting(approvals.propose(proposal(&now)).await);
    refreshes.under_way.lock().unwrap().push(1);
    approvals.approve(1, None).await.unwrap();
    assert_eq!(expect_waiting(approvals.propose(proposal(&now)).await), 1);
    // It has ended, and updates are still due.
    refreshes.under_way.lock().unwrap().clear();
    assert_eq!(expect_waiting(approvals.propose(proposal(&now)).await), 2);
}

#[tokio::test]
async fn approval_past_expiry_is_expired_on_read() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), FakeRefreshes::new(&now, &["ws-ana"]));
    let approvals = open_for(&folder, Duration::ZERO, &refreshes).await;
    expect_waiting(approvals.propose(proposal(&now)).await);
    assert_eq!(
        read(&path(&folder, 1))["state"],
        "waiting",
        "nobody has written it down"
    );
    assert_eq!(states(&approvals), [(1, State::Expired)]);
    assert!(approvals.list(Some(State::Waiting)).is_empty());
    for refused in [
        approvals.approve(1, None).await,
        approvals.reject(1, None, None).await,
    ] {
        assert!(
            matches!(refused, Err(ApprovalError::Expired { id: 1, .. })),
            "{refused:?}"
        );
    }
    assert_eq!(
        expect_waiting(approvals.propose(proposal(&now)).await),
        2,
        "it is proposed anew"
    );
    // One reading of the clock is not saved.
    assert_eq!(read(&path(&folder, 1))["state"], "waiting");
}

#[tokio::test]
async fn temporarily_wrong_clock_saves_no_expiry() {
    use std::time::Instant;

    let folder = folder();
    let repository = Repository::new(folder.path().to_owned());
    let write_guard = repository.write_guard().await.unwrap();
    let now = Timestamp::now();
    let hours = |hours| jiff::SignedDuration::from_hours(hours);
    let approval = |id: Id, created: Timestamp| PendingApproval {
        id,
        created,
        expires: created + hours(24),
        state: ApprovalState::Waiting,
        request: request(Trigger::Api),
        by: None,
        findings: vec![],
        plan: Plan::from_report(&report(&[(APP, "sha256:1")], &[])),
    };
    write_guard.save(approval(1, now)).await.unwrap();
    // A clock that was ahead created this one.
    let year = hours(24 * 365);
    write_guard.save(approval(2, now + year)).await.unwrap();
    let start = Instant::now();
    let state = |id| read(&path(&folder, id))["state"].clone();

    // The clock is a year ahead for a minute, and then right again.
    write_guard.clean_up_at(now + year + hours(1), start).await;
    assert_eq!(
        repository.get(1).unwrap().state,
        ApprovalState::Waiting,
        "for whoever looks"
    );
    write_guard
        .clean_up_at(now, start + CLOCK_BELIEVED_AFTER / 2)
        .await;
    write_guard
        .clean_up_at(now + hours(25), start + CLOCK_BELIEVED_AFTER)
        .await;
    assert_eq!(state(1), "waiting", "it has said so for a moment only");
    write_guard
        .clean_up_at(now + hours(26), start + 2 * CLOCK_BELIEVED_AFTER)
        .await;
    assert_eq!(state(1), "expired");
    let again = repository.get(2).unwrap();
    assert_eq!(
        again.created,
        now + hours(26),
        "it waits as long as was meant"
    );
    assert_eq!(again.expires, now + hours(50));
}

#[tokio::test]
async fn unstarted_approved_refresh_is_started_by_next_daemon() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    *refreshes.full.lock().unwrap() = true;
    let approved = approvals.approve(1, Some("ana".into())).await.unwrap();
    assert!(matches!(
        approved.state,
        ApprovalState::Approved { refresh: None, .. }
    ));
    drop(approvals);

    *refreshes.full.lock().unwrap() = false;
    let approvals = open(&folder, &refreshes).await;
    let stopping = CancellationToken::new();
    let beginning = tokio::spawn({
        let (approvals, stopping) = (approvals.clone(), stopping.clone());
        async move { approvals.start_approved(stopping).await }
    });
    let begun = async {
        while refreshes.begun().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun)
        .await
        .unwrap();
    stopping.cancel();
    beginning.await.unwrap();
    assert_eq!(refreshes.begun(), [Some("ana (approval 1)".into())]);
    assert_eq!(read(&path(&folder, 1))["refresh"], 1);
    drop(approvals);
    let approvals = open(&folder, &refreshes).await;
    assert!(matches!(
        approvals.get(1).unwrap().state,
        ApprovalState::Approved {
            refresh: Some(1),
            ..
        }
    ));
}

#[tokio::test]
async fn outdated_approved_refresh_is_not_started() {
    for (life, digest, state) in [
        (Duration::ZERO, "sha256:1", State::Expired),
        (DAY, "sha256:2", State::Superseded),
    ] {
        let (folder, refreshes) = (
            folder(),
            FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
        );
        let approvals = open(&folder, &refreshes).await;
        expect_created(approvals.request(request(Trigger::Api), None).await);
        *refreshes.full.lock().unwrap() = true;
        approvals.approve(1, None).await.unwrap();
        drop(approvals);
        *refreshes.full.lock().unwrap() = false;
        refreshes.set_stale(&[(APP, digest)], &["ws-ana"]);
        let approvals = open_for(&folder, life, &refreshes).await;
        let stopping = CancellationToken::new();
        stopping.cancel();
        approvals.start_approved(stopping).await;
        assert_eq!(approvals.get(1).unwrap().state.name(), state);
        assert!(refreshes.begun().is_empty());
    }
}

#[tokio::test]
async fn corrupt_file_is_renamed_and_its_id_not_reused() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    drop(approvals);
    let mut newer = read(&path(&folder, 1));
    newer["format"] = json!(99);
    newer["id"] = json!(2);
    let newer = newer.to_string();
    fs::write(path(&folder, 2), &newer).unwrap();
    for (id, text) in [(3, "{"), (4, "{\"format\":1}"), (5, "")] {
        fs::write(path(&folder, id), text).unwrap();
    }
    fs::copy(path(&folder, 1), path(&folder, 6)).unwrap();
    fs::write(path(&folder, 7).with_extension("new"), "half").unwrap();

    let approvals = open(&folder, &refreshes).await;
    assert_eq!(states(&approvals), [(1, State::Waiting)]);
    let problem = approvals.last_error().unwrap();
    assert!(
        problem.error.starts_with("4 approvals were damaged"),
        "{problem}"
    );
    assert_eq!(health(folder.path()).unwrap().damaged.len(), 4);
    assert_eq!(
        fs::read_to_string(path(&folder, 2)).unwrap(),
        newer,
        "it is left alone"
    );
    assert!(!path(&folder, 7).with_extension("new").exists());
    assert_eq!(
        expect_waiting(approvals.propose(proposal(&[(DB, "sha256:1")])).await),
        7
    );
}

#[tokio::test]
async fn unwritable_folder_is_reported_and_retried() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    // Even root cannot create a file below a file.
    fs::write(folder.path().join("approvals"), "").unwrap();
    let approvals = open(&folder, &refreshes).await;
    let ask = || approvals.request(request(Trigger::Api), None);
    assert!(matches!(ask().await, Err(ApprovalError::Store { .. })));
    assert!(approvals.last_error().is_some());
    fs::remove_file(folder.path().join("approvals")).unwrap();
    expect_created(ask().await);
    assert_eq!(approvals.last_error(), None);
    // A second daemon cannot create approvals.
    let other = open(&folder, &refreshes).await;
    let refused = other
        .request(request(Trigger::Api), None)
        .await
        .unwrap_err();
    assert!(
        refused
            .diagnostic()
            .sentence()
            .contains("another Refit holds"),
        "{refused:?}"
    );
    drop(approvals);
    assert!(matches!(
        other.request(request(Trigger::Api), None).await,
        Ok(Requested::Same(_))
    ));
}

#[tokio::test]
async fn approval_that_cannot_be_saved_does_not_start() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    // A folder blocks the path of the temporary file.
    let temporary_path = path(&folder, 1).with_extension("new");
    fs::create_dir(&temporary_path).unwrap();
    assert!(matches!(
        approvals.approve(1, None).await,
        Err(ApprovalError::Store { .. })
    ));
    assert!(refreshes.begun().is_empty());
    assert_eq!(states(&approvals), [(1, State::Waiting)]);
    fs::remove_dir(&temporary_path).unwrap();
    approvals.approve(1, None).await.unwrap();
    assert_eq!(approvals.last_error(), None);
}

#[tokio::test]
async fn waiting_approvals_are_bounded() {
    let (folder, refreshes) = (
        folder(),
        FakeRefreshes::new(&[(APP, "sha256:1")], &["ws-ana"]),
    );
    let approvals = open(&folder, &refreshes).await;
    let ask = |n: usize| Request {
        targets: vec![n.to_string()],
        ..request(Trigger::Api)
    };
    for n in 0..super::repository::WAITING_MAX {
        expect_created(approvals.request(ask(n), None).await);
    }
    let refused = approvals.request(ask(1000), None).await;
    assert!(
        matches!(refused, Err(ApprovalError::TooMany { .. })),
        "{refused:?}"
    );
    approvals.reject(7, None, None).await.unwrap();
    expect_created(approvals.request(ask(1000), None).await);
}

#[test]
fn old_decisions_are_removed_except_rejections_and_newest() {
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(24 * 31);
    let approval = |id: Id, expires: Timestamp, state: ApprovalState| {
        let approval = PendingApproval {
            id,
            created: expires,
            expires,
            state,
            request: request(Trigger::Api),
            by: None,
            findings: vec![],
            plan: Plan::from_report(&report(&[(APP, "sha256:1")], &[])),
        };
        (id, Arc::new(approval))
    };
    let rejected = ApprovalState::Rejected {
        decided_by: None,
        decided_at: long_ago,
        reason: None,
    };
    let unstarted = ApprovalState::Approved {
        decided_by: None,
        decided_at: long_ago,
        refresh: None,
    };
    let mut all: std::collections::BTreeMap<Id, Arc<PendingApproval>> = [
        approval(1, long_ago, ApprovalState::Expired),
        approval(2, long_ago, rejected),
        approval(3, long_ago, unstarted),
        approval(4, Timestamp::now(), ApprovalState::Expired),
        approval(5, long_ago, ApprovalState::Expired),
    ]
    .into();
    let now = Timestamp::now();
    assert_eq!(
        removable_ids(&all, Some(now))
            .into_iter()
            .collect::<Vec<_>>(),
        [1]
    );
    assert!(
        removable_ids(&all, None).is_empty(),
        "the clock is not believed"
    );
    all.extend((6..300).map(|id| approval(id, now, ApprovalState::Expired)));
    let removed_ids = removable_ids(&all, Some(now));
    assert_eq!(removed_ids.len(), 3 + 294 - 200, "{removed_ids:?}");
    assert!(!removed_ids.contains(&2) && !removed_ids.contains(&3));
}

#[tokio::test]
async fn plan_cut_short_decides_nothing() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), FakeRefreshes::new(&now, &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    expect_created(approvals.request(request(Trigger::Api), None).await);
    *refreshes.stopping.lock().unwrap() = true;
    refreshes.set_stale(&[(APP, "sha256:2")], &[]);
    for stopped in [
        approvals.approve(1, None).await.map(drop),
        approvals
            .request(request(Trigger::Api), None)
            .await
            .map(drop),
    ] {
        assert!(
            matches!(stopped, Err(ApprovalError::Stopping)),
            "{stopped:?}"
        );
    }
    assert_eq!(states(&approvals), [(1, State::Waiting)]);
}

/// A sink that refuses each proposal.
struct RefusingSink;

#[async_trait]
impl UpdateSink for RefusingSink {
    async fn submit(&self, _: Proposal) -> Disposition {
        Disposition::NotBegun(StartError::TooMany)
    }
}

#[tokio::test]
async fn dispatcher_creates_approvals_for_required_triggers() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), FakeRefreshes::new(&now, &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    let dispatcher = approvals.dispatcher(Arc::new(RefusingSink));
    for _ in 0..2 {
        assert!(matches!(
            dispatcher.submit(proposal(&now)).await,
            Disposition::Held(1)
        ));
    }
    let proposal_by = |trigger| Proposal {
        request: request(trigger),
        ..proposal(&now)
    };
    let passed = dispatcher.submit(proposal_by(Trigger::Webhook)).await;
    assert!(
        matches!(passed, Disposition::NotBegun(StartError::TooMany)),
        "{passed:?}"
    );
    // A manual check finds the same updates as the schedule.
    for trigger in [Trigger::Operator, Trigger::Api] {
        let disposition = dispatcher.submit(proposal_by(trigger)).await;
        assert!(
            matches!(disposition, Disposition::Held(_)),
            "{disposition:?}"
        );
    }
    approvals.reject(1, None, None).await.unwrap();
    assert!(matches!(
        dispatcher.submit(proposal(&now)).await,
        Disposition::Rejected
    ));
    // If nothing can be saved, nothing starts.
    let temporary_path = path(&folder, 2).with_extension("new");
    fs::create_dir(&temporary_path).unwrap();
    let moved = [(APP, "sha256:2")];
    let refused = dispatcher.submit(proposal(&moved)).await;
    assert!(
        matches!(refused, Disposition::NotBegun(StartError::NotHeld(_))),
        "{refused:?}"
    );
    assert!(refreshes.begun().is_empty());
}
