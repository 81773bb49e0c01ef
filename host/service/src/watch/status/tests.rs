//! Reports of plans and refreshes, and the state of an image in them.

use serde_json::{Value, json};

use super::super::windows::Window;
use super::*;

const IMAGE: &str = "ghcr.io/acme/app:1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn report(mode: &str, image: Value, recreations: &[Value]) -> Report {
    let containers: Vec<Value> = recreations
        .iter()
        .map(|it| json!({ "name": it["container"], "recreation": it }))
        .collect();
    let mut record = json!({ "image": IMAGE, "duration_ms": 1 });
    record
        .as_object_mut()
        .unwrap()
        .extend(image.as_object().unwrap().clone());
    let report = json!({
        "format": 1, "mode": mode, "started": at(0), "duration_ms": 1,
        "policy": { "name": "p", "version": "1", "digest": "sha256:p", "generation": 1 },
        "request": { "trigger": "schedule", "targets": [], "images": [], "recreate": true, "force": false },
        "summary": Value::Object(serde_json::to_value(refit_model::report::Summary::default()).unwrap().as_object().unwrap().clone()),
        "targets": [], "images": [record], "containers": containers,
    });
    serde_json::from_value(report).unwrap()
}

fn recreation(outcome: &str, to: &str) -> Value {
    json!({
        "container": format!("ws-{outcome}"), "strategy": "replace", "outcome": outcome, "old_id": "a", "to_image_id": to, "duration_ms": 1,
    })
}

#[track_caller]
fn assert_state(report: &Report, verdict: Verdict, containers: &[&str]) {
    let states = image_states(report);
    let [state] = &states[..] else {
        panic!("one image: {states:?}")
    };
    assert_eq!(
        (
            state.verdict,
            state
                .containers
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
        ),
        (verdict, containers.to_vec())
    );
}

fn update() -> AvailableUpdate {
    AvailableUpdate {
        image: IMAGE.parse().unwrap(),
        digest: "sha256:new".into(),
    }
}

#[test]
fn image_to_pull_is_behind_with_and_without_containers() {
    let image = json!({ "outcome": "would-pull", "digest": "sha256:new" });
    assert_state(&report("plan", image.clone(), &[]), Verdict::Behind, &[]);
    let recreations = [
        recreation("would-recreate", "sha256:new"),
        recreation("refused", "sha256:new"),
    ];
    assert_state(
        &report("plan", image, &recreations),
        Verdict::Behind,
        &["ws-would-recreate"],
    );
}

#[test]
fn pulled_image_that_does_not_run_is_behind() {
    let image = json!({ "outcome": "up-to-date", "digest": "sha256:new", "id": "sha256:id" });
    assert_state(&report("plan", image.clone(), &[]), Verdict::Current, &[]);
    assert_state(
        &report(
            "plan",
            image.clone(),
            &[recreation("would-recreate", "sha256:id")],
        ),
        Verdict::Behind,
        &["ws-would-recreate"],
    );
    // A container of another image, or one that the host would not touch.
    assert_state(
        &report(
            "plan",
            image.clone(),
            &[recreation("would-recreate", "sha256:other")],
        ),
        Verdict::Current,
        &[],
    );
    assert_state(
        &report("plan", image, &[recreation("busy", "sha256:id")]),
        Verdict::Current,
        &[],
    );
}

#[test]
fn failed_image_is_unknown() {
    let image = json!({ "outcome": "failed", "error": "cannot reach it" });
    let report = report("plan", image, &[]);
    assert_state(&report, Verdict::Unknown, &[]);
    assert_eq!(
        image_states(&report)[0].reason.as_ref().unwrap().error,
        "cannot reach it"
    );
}

#[track_caller]
fn assert_result(image: Value, recreations: &[Value], expected: Came) {
    let report = report("refresh", image, recreations);
    assert_eq!(update_result(&update(), Ok(&report)), expected);
}

#[test]
fn refresh_makes_progress_if_nothing_failed() {
    let pulled = json!({ "outcome": "pulled", "digest": "sha256:new", "id": "sha256:id" });
    let here = json!({ "outcome": "up-to-date", "digest": "sha256:new", "id": "sha256:id" });
    let done = recreation("recreated", "sha256:id");
    let failed = recreation("rolled-back", "sha256:id");
    assert_result(pulled.clone(), &[], Came::Progress);
    assert_result(here.clone(), std::slice::from_ref(&done), Came::Progress);
    assert_result(here.clone(), &[], Came::Nothing);
    assert_result(pulled.clone(), std::slice::from_ref(&failed), Came::Nothing);
    assert_result(pulled.clone(), &[done, failed], Came::Nothing);
    assert_result(
        json!({ "outcome": "failed" , "error": "no"}),
        &[],
        Came::Nothing,
    );
    assert_result(
        pulled,
        &[recreation("rolled-back", "sha256:other")],
        Came::Progress,
    );
}

#[test]
fn longest_deferral_reason_wins() {
    let mut memory = Memory::default();
    memory.record_seen(IMAGE, "sha256:new", at(0));
    let none = BTreeSet::new();
    let open = Windows::default();
    let mut rules = RolloutRules {
        windows: &open,
        minimum_age: SignedDuration::ZERO,
        paused: None,
        under_way: &none,
    };
    assert_eq!(rules.deferral(&update(), &memory, at(0)), None);

    rules.minimum_age = SignedDuration::from_secs(100);
    assert_eq!(
        rules.deferral(&update(), &memory, at(99)),
        Some(Deferral::new(DeferReason::Age, Some(at(100))))
    );
    assert_eq!(rules.deferral(&update(), &memory, at(100)), None);

    memory.record_failure(&update(), at(200));
    assert_eq!(
        rules.deferral(&update(), &memory, at(99)),
        Some(Deferral::new(DeferReason::Backoff, Some(at(200))))
    );
    assert_eq!(rules.deferral(&update(), &memory, at(200)), None);

    // `at(0)` is 2027-01-15, 8:00.
    let nights = Windows(vec![
        Window::new(&[], "22:00", "23:00", jiff::tz::TimeZone::UTC).unwrap(),
    ]);
    rules.windows = &nights;
    assert_eq!(
        rules.deferral(&update(), &memory, at(99)),
        Some(Deferral::new(DeferReason::Window, Some(at(14 * 3600))))
    );
    assert_eq!(rules.deferral(&update(), &memory, at(14 * 3600)), None);

    let repositories = BTreeSet::from(["ghcr.io/acme/app".to_owned()]);
    rules.under_way = &repositories;
    assert_eq!(
        rules.deferral(&update(), &memory, at(99)),
        Some(Deferral::new(DeferReason::Refresh, None))
    );
    let pause = Pause {
        since: at(0),
        by: None,
    };
    rules.paused = Some(&pause);
    assert_eq!(
        rules.deferral(&update(), &memory, at(99)),
        Some(Deferral::new(DeferReason::Pause, None))
    );
}

#[test]
fn deferred_image_defers_its_repository() {
    let watched = |tag: &str, verdict, held| {
        let image: ImageRef = format!("ghcr.io/acme/{tag}").parse().unwrap();
        let watched = Watched {
            image: image.clone(),
            verdict,
            since: at(0),
            local: None,
            remote: Some("sha256:x".into()),
            first_seen: None,
            checked: None,
            reason: None,
            containers: vec![],
            held,
        };
        (image.to_string(), watched)
    };
    let age = |second| Some(Deferral::new(DeferReason::Age, Some(at(second))));
    let mut images = BTreeMap::from([
        watched("app:1", Verdict::Behind, age(5)),
        watched("app:2", Verdict::Behind, None),
        watched("app:3", Verdict::Behind, age(9)),
        watched("app:4", Verdict::Current, None),
        watched("other:1", Verdict::Behind, None),
    ]);
    defer_whole_repositories(&mut images);
    let held: Vec<_> = images.values().map(|it| it.held.clone()).collect();
    assert_eq!(held, [age(5), age(9), age(9), None, None]);
}
