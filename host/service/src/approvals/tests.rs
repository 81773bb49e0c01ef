//! What becomes of approvals, with refreshes that only pretend. The real ones are in `tests/tests/e2e/approvals.rs`.

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
use super::repository::{Book, CLOCK_BELIEVED_AFTER, forgettable};
use super::*;
use crate::watch::update_sink::{Disposition, Proposal, UpdateSink};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Images with their digests, and containers that are behind.
type Stale = (Vec<(&'static str, &'static str)>, Vec<&'static str>);

/// Plans as it is told, and begins what it is asked for.
#[derive(Default)]
struct Pretended {
    now: Mutex<Stale>,
    begun: Mutex<Vec<(Option<String>, ApprovedScope)>>,
    under_way: Mutex<Vec<refit_history::Id>>,
    full: Mutex<bool>,
    stopping: Mutex<bool>,
    /// Plans wait for this, where it is set.
    held_up: Mutex<Option<Arc<Notify>>>,
    plans: AtomicUsize,
}

impl Pretended {
    fn of(images: &[(&'static str, &'static str)], containers: &[&'static str]) -> Arc<Self> {
        let pretended = Arc::new(Self::default());
        pretended.are(images, containers);
        pretended
    }

    fn are(&self, images: &[(&'static str, &'static str)], containers: &[&'static str]) {
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
impl Refreshes for Arc<Pretended> {
    async fn plan(&self, _: &Request) -> Result<Report, RefreshError> {
        self.plans.fetch_add(1, Ordering::SeqCst);
        let held_up = self.held_up.lock().unwrap().clone();
        if let Some(held_up) = held_up {
            held_up.notified().await;
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

/// Each image is to be pulled, but one whose digest is `-`, which cannot be looked at; each container runs the first.
fn report(images: &[(&str, &str)], containers: &[&str]) -> Report {
    let request = request(Trigger::Api);
    let of_image = |(name, digest): &(&str, &str)| match *digest {
        "-" => {
            json!({ "image": name, "outcome": "failed", "error": "the registry is down", "duration_ms": 1 })
        }
        digest => {
            json!({ "image": name, "outcome": "would-pull", "digest": digest, "duration_ms": 1 })
        }
    };
    let of_container = |name: &&str| {
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
        "images": images.iter().map(of_image).collect::<Vec<_>>(),
        "containers": containers.iter().map(of_container).collect::<Vec<_>>(),
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
    let found = images.iter().map(|(image, digest)| AvailableUpdate {
        image: image.parse().unwrap(),
        digest: (*digest).to_owned(),
    });
    Proposal {
        request: request(Trigger::Schedule),
        findings: found.collect(),
        plan: report(images, &["ws-ana"]),
    }
}

async fn open_for(folder: &TempDir, life: Duration, refreshes: &Arc<Pretended>) -> Arc<Approvals> {
    let terms = Terms {
        state: folder.path().to_owned(),
        life,
        required_for: vec![Trigger::Schedule],
    };
    Approvals::open(terms, Arc::new(refreshes.clone()), None).await
}

async fn open(folder: &TempDir, refreshes: &Arc<Pretended>) -> Arc<Approvals> {
    open_for(folder, DAY, refreshes).await
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[track_caller]
fn waits(hold: Result<Hold, ApprovalError>) -> Id {
    match hold {
        Ok(Hold::Waits(held)) => held.id,
        other => panic!("it should wait: {other:?}"),
    }
}

#[track_caller]
fn held(requested: Result<Requested, ApprovalError>) -> Arc<PendingApproval> {
    match requested {
        Ok(Requested::Held(held)) => held,
        other => panic!("it should be held: {other:?}"),
    }
}

fn states(approvals: &Approvals) -> Vec<(Id, State)> {
    let all = approvals.list(None).into_iter().rev();
    all.map(|held| (held.id, held.fate.state())).collect()
}

fn path(folder: &TempDir, id: Id) -> std::path::PathBuf {
    folder.path().join(format!("approvals/{id}.json"))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_approved_begins_once_for_who_approved_and_within_what_was_planned() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    let ana = Some("ana".to_owned());
    let held = held(approvals.request(request(Trigger::Api), ana.clone()).await);
    assert_eq!((held.id, held.by.clone()), (1, ana));
    assert!(refreshes.begun().is_empty());

    let approved = approvals.approve(1, Some("bo".into())).await.unwrap();
    assert!(
        matches!(
            approved.fate,
            ApprovalState::Approved {
                refresh: Some(1),
                ..
            }
        ),
        "{:?}",
        approved.fate
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
async fn what_has_moved_is_superseded_and_nothing_begins() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(
        approvals
            .request(request(Trigger::Api), Some("ana".into()))
            .await,
    );
    refreshes.are(&[(APP, "sha256:2")], &["ws-ana"]);
    let error = approvals.approve(1, None).await.unwrap_err();
    let told = error.told();
    assert!(
        told.causes[0].contains("stood for `sha256:1`, and stands for `sha256:2` now"),
        "{told}"
    );
    assert!(told.hints[0].contains("approval 2"), "{told}");
    assert_eq!(
        states(&approvals),
        [(1, State::Superseded), (2, State::Waiting)]
    );
    assert_eq!(approvals.get(2).unwrap().by.as_deref(), Some("ana"));
    assert!(refreshes.begun().is_empty());
    // Asked again, it says the same.
    let again = approvals.approve(1, None).await.unwrap_err();
    assert_eq!(again.told(), told);
    approvals.approve(2, None).await.unwrap();
    assert_eq!(refreshes.begun().len(), 1);
}

#[tokio::test]
async fn less_than_was_approved_is_no_change_and_what_came_since_is_none_either() {
    let both = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), Pretended::of(&both, &["ws-ana", "ws-bo"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
    refreshes.are(&both, &["ws-bo", "ws-new"]);
    approvals.approve(1, None).await.unwrap();
    let approved = refreshes.begun.lock().unwrap()[0].1.clone();
    assert!(!approved.containers.contains_key("ws-new") && !approved.others.contains("ws-new"));
}

#[tokio::test]
async fn one_that_was_left_and_would_be_recreated_now_is_a_change() {
    let mut before = report(&[(APP, "sha256:1")], &["ws-ana", "ws-bo"]);
    before.containers[1].recreation = None;
    let before = Plan::of(&before);
    let now = Plan::of(&report(&[(APP, "sha256:1")], &["ws-ana", "ws-bo"]));
    let since = before.beside(&now);
    assert_eq!(since.moved, ["`ws-bo` would be recreated too now"]);
    assert!(now.beside(&before).moved.is_empty());
    let mut other_way = report(&[(APP, "sha256:1")], &["ws-ana"]);
    other_way.containers[0]
        .recreation
        .as_mut()
        .unwrap()
        .strategy = Strategy::Remove;
    assert_eq!(before.beside(&Plan::of(&other_way)).moved.len(), 1);
}

#[test]
fn another_container_image_or_follower_is_a_change() {
    let plan = |change: &dyn Fn(&mut RecreationRecord)| {
        let mut report = report(&[(APP, "sha256:1"), (DB, "sha256:2")], &["ws-ana"]);
        change(report.containers[0].recreation.as_mut().unwrap());
        Plan::of(&report)
    };
    let follower = |planned: &mut RecreationRecord, id: &str| {
        planned.followed = vec!["ws-side".into()];
        planned.follower_ids = vec![ContainerId::new(id)];
    };
    let before = plan(&|planned| follower(planned, "s1"));
    let moved = |change: &dyn Fn(&mut RecreationRecord)| before.beside(&plan(change)).moved;
    // A follower that is gone takes nothing from what was approved.
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
    // Versions before this one did not write the ids down.
    let mut old = serde_json::to_value(&before).unwrap();
    old["containers"][0].as_object_mut().unwrap().remove("id");
    let old: Plan = serde_json::from_value(old).unwrap();
    assert_eq!(old.beside(&before).moved.len(), 1);
    assert!(old.scope(1).containers.is_empty());
}

#[tokio::test]
async fn what_cannot_be_looked_at_waits_on() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
    refreshes.are(&[(APP, "-")], &[]);
    let error = approvals.approve(1, None).await.unwrap_err();
    assert!(
        error.told().causes[0].contains("the registry is down"),
        "{error:?}"
    );
    assert_eq!(states(&approvals), [(1, State::Waiting)]);
    refreshes.are(&[(APP, "sha256:1")], &["ws-ana"]);
    approvals.approve(1, None).await.unwrap();
}

#[tokio::test]
async fn of_two_who_decide_at_once_one_wins() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
    let held_up = Arc::new(Notify::new());
    *refreshes.held_up.lock().unwrap() = Some(held_up.clone());
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
    held_up.notify_one();
    first.await.unwrap().unwrap();
    assert_eq!(refreshes.begun(), [Some("ana (approval 1)".into())]);
}

#[tokio::test]
async fn the_same_request_is_held_once_and_one_that_moved_takes_its_place() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    let ask = || approvals.request(request(Trigger::Api), None);
    held(ask().await);
    assert!(matches!(ask().await, Ok(Requested::Same(same)) if same.id == 1));
    let other = Request {
        force: true,
        ..request(Trigger::Api)
    };
    assert_eq!(held(approvals.request(other, None).await).id, 2);
    refreshes.are(&[(APP, "sha256:2")], &["ws-ana"]);
    assert_eq!(held(ask().await).id, 3);
    assert_eq!(
        states(&approvals),
        [
            (1, State::Superseded),
            (2, State::Waiting),
            (3, State::Waiting)
        ]
    );
    refreshes.are(&[], &[]);
    assert!(matches!(ask().await, Ok(Requested::NothingToDo(_))));
}

#[tokio::test]
async fn a_finding_is_held_once_until_it_moves() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let told = Arc::new(AtomicUsize::new(0));
    let terms = Terms {
        state: folder.path().to_owned(),
        life: DAY,
        required_for: vec![],
    };
    let count = told.clone();
    let observer: Observer = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let approvals = Approvals::open(terms, Arc::new(refreshes.clone()), Some(observer)).await;
    let both = [(APP, "sha256:1"), (DB, "sha256:1")];
    assert_eq!(waits(approvals.propose(proposal(&both)).await), 1);
    assert_eq!(waits(approvals.propose(proposal(&both)).await), 1);
    // A webhook that is about one of them.
    assert_eq!(waits(approvals.propose(proposal(&both[..1])).await), 1);
    assert_eq!(told.load(Ordering::SeqCst), 1, "it is told once");
    let moved = [(APP, "sha256:1"), (DB, "sha256:2")];
    assert_eq!(waits(approvals.propose(proposal(&moved)).await), 2);
    assert_eq!(
        states(&approvals),
        [(1, State::Superseded), (2, State::Waiting)]
    );
    assert!(
        matches!(&approvals.get(1).unwrap().fate, ApprovalState::Superseded { superseded_by: Some(2), moved, .. } if moved.len() == 1)
    );
    // A person's is another matter.
    held(approvals.request(request(Trigger::Api), None).await);
    assert_eq!(waits(approvals.propose(proposal(&moved)).await), 2);
}

#[tokio::test]
async fn rejected_findings_are_rejected_until_one_of_them_moves() {
    let (folder, refreshes) = (folder(), Pretended::of(&[], &[]));
    let approvals = open(&folder, &refreshes).await;
    let first = [(APP, "sha256:1"), (DB, "sha256:1")];
    waits(approvals.propose(proposal(&first)).await);
    let reason = Some("not on\n a \u{1b}[31mFriday".to_owned());
    let rejected = approvals
        .reject(1, Some("ana".into()), reason)
        .await
        .unwrap();
    assert!(
        matches!(&rejected.fate, ApprovalState::Rejected { reason: Some(reason), .. } if reason == "not on a [31mFriday")
    );
    // Also for another daemon.
    drop(approvals);
    let approvals = open(&folder, &refreshes).await;
    for again in [&first[..], &first[1..]] {
        assert!(matches!(
            approvals.propose(proposal(again)).await,
            Ok(Hold::Rejected)
        ));
    }
    let moved = [(APP, "sha256:2"), (DB, "sha256:1")];
    assert_eq!(waits(approvals.propose(proposal(&moved)).await), 2);
}

#[tokio::test]
async fn while_what_was_approved_is_under_way_the_same_is_not_held_again() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), Pretended::of(&now, &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    waits(approvals.propose(proposal(&now)).await);
    refreshes.under_way.lock().unwrap().push(1);
    approvals.approve(1, None).await.unwrap();
    assert_eq!(waits(approvals.propose(proposal(&now)).await), 1);
    // It has ended, and something is still due.
    refreshes.under_way.lock().unwrap().clear();
    assert_eq!(waits(approvals.propose(proposal(&now)).await), 2);
}

#[tokio::test]
async fn expired_is_what_has_waited_too_long_whenever_somebody_looks() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), Pretended::of(&now, &["ws-ana"]));
    let approvals = open_for(&folder, Duration::ZERO, &refreshes).await;
    waits(approvals.propose(proposal(&now)).await);
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
        waits(approvals.propose(proposal(&now)).await),
        2,
        "it is proposed anew"
    );
    // One reading of the clock is not written down.
    assert_eq!(read(&path(&folder, 1))["state"], "waiting");
}

#[tokio::test]
async fn clock_that_is_wrong_for_a_while_makes_nothing_expire_for_good() {
    use std::time::Instant;

    let folder = folder();
    let book = Book::new(folder.path().to_owned());
    let turn = book.turn().await.unwrap();
    let now = Timestamp::now();
    let hours = |hours| jiff::SignedDuration::from_hours(hours);
    let held = |id: Id, created: Timestamp| PendingApproval {
        id,
        created,
        expires: created + hours(24),
        fate: ApprovalState::Waiting,
        request: request(Trigger::Api),
        by: None,
        findings: vec![],
        plan: Plan::of(&report(&[(APP, "sha256:1")], &[])),
    };
    turn.keep(held(1, now)).await.unwrap();
    // Held by a clock that was ahead.
    let year = hours(24 * 365);
    turn.keep(held(2, now + year)).await.unwrap();
    let start = Instant::now();
    let state = |id| read(&path(&folder, id))["state"].clone();

    // The clock is a year ahead for a minute, and right again.
    turn.tidy_at(now + year + hours(1), start).await;
    assert_eq!(
        book.get(1).unwrap().fate,
        ApprovalState::Waiting,
        "for whoever looks"
    );
    turn.tidy_at(now, start + CLOCK_BELIEVED_AFTER / 2).await;
    turn.tidy_at(now + hours(25), start + CLOCK_BELIEVED_AFTER)
        .await;
    assert_eq!(state(1), "waiting", "it has said so for a moment only");
    turn.tidy_at(now + hours(26), start + 2 * CLOCK_BELIEVED_AFTER)
        .await;
    assert_eq!(state(1), "expired");
    let again = book.get(2).unwrap();
    assert_eq!(
        again.created,
        now + hours(26),
        "it waits as long as was meant"
    );
    assert_eq!(again.expires, now + hours(50));
}

#[tokio::test]
async fn what_was_approved_and_not_begun_is_begun_by_the_next_daemon() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
    *refreshes.full.lock().unwrap() = true;
    let approved = approvals.approve(1, Some("ana".into())).await.unwrap();
    assert!(matches!(
        approved.fate,
        ApprovalState::Approved { refresh: None, .. }
    ));
    drop(approvals);

    *refreshes.full.lock().unwrap() = false;
    let approvals = open(&folder, &refreshes).await;
    let stopping = CancellationToken::new();
    let beginning = tokio::spawn({
        let (approvals, stopping) = (approvals.clone(), stopping.clone());
        async move { approvals.begin_the_approved(stopping).await }
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
        approvals.get(1).unwrap().fate,
        ApprovalState::Approved {
            refresh: Some(1),
            ..
        }
    ));
}

#[tokio::test]
async fn what_was_approved_too_long_ago_or_for_something_else_is_not_begun() {
    for (life, digest, state) in [
        (Duration::ZERO, "sha256:1", State::Expired),
        (DAY, "sha256:2", State::Superseded),
    ] {
        let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
        let approvals = open(&folder, &refreshes).await;
        held(approvals.request(request(Trigger::Api), None).await);
        *refreshes.full.lock().unwrap() = true;
        approvals.approve(1, None).await.unwrap();
        drop(approvals);
        *refreshes.full.lock().unwrap() = false;
        refreshes.are(&[(APP, digest)], &["ws-ana"]);
        let approvals = open_for(&folder, life, &refreshes).await;
        let stopping = CancellationToken::new();
        stopping.cancel();
        approvals.begin_the_approved(stopping).await;
        assert_eq!(approvals.get(1).unwrap().fate.state(), state);
        assert!(refreshes.begun().is_empty());
    }
}

#[tokio::test]
async fn a_damaged_file_is_moved_aside_and_told_and_its_number_is_not_used_again() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
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
    let problem = approvals.problem().unwrap();
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
        waits(approvals.propose(proposal(&[(DB, "sha256:1")])).await),
        7
    );
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_to_is_told_and_tried_again() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    // Also for root there is no way to write below a file.
    fs::write(folder.path().join("approvals"), "").unwrap();
    let approvals = open(&folder, &refreshes).await;
    let ask = || approvals.request(request(Trigger::Api), None);
    assert!(matches!(ask().await, Err(ApprovalError::Store { .. })));
    assert!(approvals.problem().is_some());
    fs::remove_file(folder.path().join("approvals")).unwrap();
    held(ask().await);
    assert_eq!(approvals.problem(), None);
    // Another daemon, meanwhile, holds nothing.
    let other = open(&folder, &refreshes).await;
    let refused = other
        .request(request(Trigger::Api), None)
        .await
        .unwrap_err();
    assert!(
        refused.told().sentence().contains("another Refit holds"),
        "{refused:?}"
    );
    drop(approvals);
    assert!(matches!(
        other.request(request(Trigger::Api), None).await,
        Ok(Requested::Same(_))
    ));
}

#[tokio::test]
async fn an_approval_that_cannot_be_written_down_does_not_begin() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
    // A folder where the file is to be written beside.
    let beside = path(&folder, 1).with_extension("new");
    fs::create_dir(&beside).unwrap();
    assert!(matches!(
        approvals.approve(1, None).await,
        Err(ApprovalError::Store { .. })
    ));
    assert!(refreshes.begun().is_empty());
    assert_eq!(states(&approvals), [(1, State::Waiting)]);
    fs::remove_dir(&beside).unwrap();
    approvals.approve(1, None).await.unwrap();
    assert_eq!(approvals.problem(), None);
}

#[tokio::test]
async fn no_more_are_held_than_anybody_looks_at() {
    let (folder, refreshes) = (folder(), Pretended::of(&[(APP, "sha256:1")], &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    let ask = |n: usize| Request {
        targets: vec![n.to_string()],
        ..request(Trigger::Api)
    };
    for n in 0..super::repository::WAITING_MAX {
        held(approvals.request(ask(n), None).await);
    }
    let refused = approvals.request(ask(1000), None).await;
    assert!(
        matches!(refused, Err(ApprovalError::TooMany { .. })),
        "{refused:?}"
    );
    approvals.reject(7, None, None).await.unwrap();
    held(approvals.request(ask(1000), None).await);
}

#[test]
fn what_was_decided_is_forgotten_in_time_but_for_rejections_and_the_newest() {
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(24 * 31);
    let one = |id: Id, expires: Timestamp, fate: ApprovalState| {
        let held = PendingApproval {
            id,
            created: expires,
            expires,
            fate,
            request: request(Trigger::Api),
            by: None,
            findings: vec![],
            plan: Plan::of(&report(&[(APP, "sha256:1")], &[])),
        };
        (id, Arc::new(held))
    };
    let rejected = ApprovalState::Rejected {
        decided_by: None,
        decided_at: long_ago,
        reason: None,
    };
    let unbegun = ApprovalState::Approved {
        decided_by: None,
        decided_at: long_ago,
        refresh: None,
    };
    let mut all: std::collections::BTreeMap<Id, Arc<PendingApproval>> = [
        one(1, long_ago, ApprovalState::Expired),
        one(2, long_ago, rejected),
        one(3, long_ago, unbegun),
        one(4, Timestamp::now(), ApprovalState::Expired),
        one(5, long_ago, ApprovalState::Expired),
    ]
    .into();
    let now = Timestamp::now();
    assert_eq!(
        forgettable(&all, Some(now)).into_iter().collect::<Vec<_>>(),
        [1]
    );
    assert!(
        forgettable(&all, None).is_empty(),
        "the clock is not believed"
    );
    all.extend((6..300).map(|id| one(id, now, ApprovalState::Expired)));
    let forgotten = forgettable(&all, Some(now));
    assert_eq!(forgotten.len(), 3 + 294 - 200, "{forgotten:?}");
    assert!(!forgotten.contains(&2) && !forgotten.contains(&3));
}

#[tokio::test]
async fn a_plan_that_was_cut_short_decides_nothing() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), Pretended::of(&now, &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    held(approvals.request(request(Trigger::Api), None).await);
    *refreshes.stopping.lock().unwrap() = true;
    refreshes.are(&[(APP, "sha256:2")], &[]);
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

/// Begins nothing, and says so.
struct Open;

#[async_trait]
impl UpdateSink for Open {
    async fn adopt(&self, _: Proposal) -> Disposition {
        Disposition::NotBegun(StartError::TooMany)
    }
}

#[tokio::test]
async fn the_gate_holds_what_it_is_for_and_lets_pass_the_rest() {
    let now = [(APP, "sha256:1")];
    let (folder, refreshes) = (folder(), Pretended::of(&now, &["ws-ana"]));
    let approvals = open(&folder, &refreshes).await;
    let gate = approvals.gate(Arc::new(Open));
    for _ in 0..2 {
        assert!(matches!(
            gate.adopt(proposal(&now)).await,
            Disposition::Held(1)
        ));
    }
    let by = |trigger| Proposal {
        request: request(trigger),
        ..proposal(&now)
    };
    let passed = gate.adopt(by(Trigger::Webhook)).await;
    assert!(
        matches!(passed, Disposition::NotBegun(StartError::TooMany)),
        "{passed:?}"
    );
    // A check by hand finds what the schedule would have found.
    for trigger in [Trigger::Operator, Trigger::Api] {
        let held = gate.adopt(by(trigger)).await;
        assert!(matches!(held, Disposition::Held(_)), "{held:?}");
    }
    approvals.reject(1, None, None).await.unwrap();
    assert!(matches!(
        gate.adopt(proposal(&now)).await,
        Disposition::Rejected
    ));
    // Where nothing can be kept, nothing begins either.
    let beside = path(&folder, 2).with_extension("new");
    fs::create_dir(&beside).unwrap();
    let moved = [(APP, "sha256:2")];
    let refused = gate.adopt(proposal(&moved)).await;
    assert!(
        matches!(refused, Disposition::NotBegun(StartError::NotHeld(_))),
        "{refused:?}"
    );
    assert!(refreshes.begun().is_empty());
}
