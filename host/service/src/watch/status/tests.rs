//! Reports as plans and refreshes make them, and what they say of an image.

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
fn sees(report: &Report, verdict: Verdict, containers: &[&str]) {
    let seen = seen(report);
    let [seen] = &seen[..] else {
        panic!("one image: {seen:?}")
    };
    assert_eq!(
        (
            seen.verdict,
            seen.containers
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
        ),
        (verdict, containers.to_vec())
    );
}

fn finding() -> AvailableUpdate {
    AvailableUpdate {
        image: IMAGE.parse().unwrap(),
        digest: "sha256:new".into(),
    }
}

#[test]
fn what_would_be_pulled_is_behind_with_and_without_containers() {
    let image = json!({ "outcome": "would-pull", "digest": "sha256:new" });
    sees(&report("plan", image.clone(), &[]), Verdict::Behind, &[]);
    let recreations = [
        recreation("would-recreate", "sha256:new"),
        recreation("refused", "sha256:new"),
    ];
    sees(
        &report("plan", image, &recreations),
        Verdict::Behind,
        &["ws-would-recreate"],
    );
}

#[test]
fn what_is_here_and_does_not_run_is_behind() {
    let image = json!({ "outcome": "up-to-date", "digest": "sha256:new", "id": "sha256:id" });
    sees(&report("plan", image.clone(), &[]), Verdict::Current, &[]);
    sees(
        &report(
            "plan",
            image.clone(),
            &[recreation("would-recreate", "sha256:id")],
        ),
        Verdict::Behind,
        &["ws-would-recreate"],
    );
    // Another image's, or one that the host would not touch.
    sees(
        &report(
            "plan",
            image.clone(),
            &[recreation("would-recreate", "sha256:other")],
        ),
        Verdict::Current,
        &[],
    );
    sees(
        &report("plan", image, &[recreation("busy", "sha256:id")]),
        Verdict::Current,
        &[],
    );
}

#[test]
fn what_failed_is_unknown_and_no_finding() {
    let image = json!({ "outcome": "failed", "error": "cannot reach it" });
    let report = report("plan", image, &[]);
    sees(&report, Verdict::Unknown, &[]);
    assert_eq!(
        seen(&report)[0].reason.as_ref().unwrap().error,
        "cannot reach it"
    );
}

#[track_caller]
fn comes(image: Value, recreations: &[Value], expected: Came) {
    let report = report("refresh", image, recreations);
    assert_eq!(came(&finding(), Ok(&report)), expected);
}

#[test]
fn a_refresh_came_to_something_where_something_was_done_and_nothing_failed() {
    let pulled = json!({ "outcome": "pulled", "digest": "sha256:new", "id": "sha256:id" });
    let here = json!({ "outcome": "up-to-date", "digest": "sha256:new", "id": "sha256:id" });
    let done = recreation("recreated", "sha256:id");
    let failed = recreation("rolled-back", "sha256:id");
    comes(pulled.clone(), &[], Came::Progress);
    comes(here.clone(), std::slice::from_ref(&done), Came::Progress);
    comes(here.clone(), &[], Came::Nothing);
    comes(pulled.clone(), std::slice::from_ref(&failed), Came::Nothing);
    comes(pulled.clone(), &[done, failed], Came::Nothing);
    comes(
        json!({ "outcome": "failed" , "error": "no"}),
        &[],
        Came::Nothing,
    );
    comes(
        pulled,
        &[recreation("rolled-back", "sha256:other")],
        Came::Progress,
    );
}

#[test]
fn of_several_reasons_the_longest_is_told() {
    let mut memory = Memory::default();
    memory.sees(IMAGE, "sha256:new", at(0));
    let none = BTreeSet::new();
    let open = Windows::default();
    let mut gate = RolloutRules {
        windows: &open,
        minimum_age: SignedDuration::ZERO,
        paused: None,
        under_way: &none,
    };
    assert_eq!(gate.holds(&finding(), &memory, at(0)), None);

    gate.minimum_age = SignedDuration::from_secs(100);
    assert_eq!(
        gate.holds(&finding(), &memory, at(99)),
        Some(Deferral::by(DeferReason::Age, Some(at(100))))
    );
    assert_eq!(gate.holds(&finding(), &memory, at(100)), None);

    memory.failed(&finding(), at(200));
    assert_eq!(
        gate.holds(&finding(), &memory, at(99)),
        Some(Deferral::by(DeferReason::Backoff, Some(at(200))))
    );
    assert_eq!(gate.holds(&finding(), &memory, at(200)), None);

    // `at(0)` is 2027-01-15, 8:00.
    let nights = Windows(vec![
        Window::new(&[], "22:00", "23:00", jiff::tz::TimeZone::UTC).unwrap(),
    ]);
    gate.windows = &nights;
    assert_eq!(
        gate.holds(&finding(), &memory, at(99)),
        Some(Deferral::by(DeferReason::Window, Some(at(14 * 3600))))
    );
    assert_eq!(gate.holds(&finding(), &memory, at(14 * 3600)), None);

    let repositories = BTreeSet::from(["ghcr.io/acme/app".to_owned()]);
    gate.under_way = &repositories;
    assert_eq!(
        gate.holds(&finding(), &memory, at(99)),
        Some(Deferral::by(DeferReason::Refresh, None))
    );
    let pause = Pause {
        since: at(0),
        by: None,
    };
    gate.paused = Some(&pause);
    assert_eq!(
        gate.holds(&finding(), &memory, at(99)),
        Some(Deferral::by(DeferReason::Pause, None))
    );
}

#[test]
fn what_holds_one_image_holds_its_repository() {
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
    let age = |second| Some(Deferral::by(DeferReason::Age, Some(at(second))));
    let mut images = BTreeMap::from([
        watched("app:1", Verdict::Behind, age(5)),
        watched("app:2", Verdict::Behind, None),
        watched("app:3", Verdict::Behind, age(9)),
        watched("app:4", Verdict::Current, None),
        watched("other:1", Verdict::Behind, None),
    ]);
    hold_together(&mut images);
    let held: Vec<_> = images.values().map(|it| it.held.clone()).collect();
    assert_eq!(held, [age(5), age(9), age(9), None, None]);
}
