//! Tests the default refresh on the fake engine, with a policy that overrides only what it must.

use refit_policy::fake::{self, Call, FakeDocker, FakeHost};
use refit_policy::*;
use serde::Deserialize;

/// Targets `a` and `b`, or those in the configuration; the first letter of a target's name determines its image.
struct Plain;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    names: Vec<String>,
    strategy: Strategy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            names: vec!["a".into(), "b".into()],
            strategy: Strategy::Replace,
        }
    }
}

impl Policy for Plain {
    type Config = Config;

    fn describe() -> Description {
        unreachable!("a refresh needs no description")
    }

    fn targets(config: &Config) -> Vec<Target> {
        config
            .names
            .iter()
            .map(|name| Target::new(name, format!("acme/{}", &name[..1])))
            .collect()
    }

    fn considers(_: &Config, name: &str) -> bool {
        name != "database"
    }

    fn strategy(config: &Config, _: &ContainerInfo) -> Strategy {
        config.strategy
    }
}

fn behind() -> FakeDocker {
    FakeDocker::new()
        .image("acme/a", "old", "new")
        .image("acme/b:latest", "same", "same")
}

#[track_caller]
fn refresh(docker: &mut FakeDocker, request: &Request) -> Report {
    fake::refresh::<Plain>(docker, &mut FakeHost::default(), "{}", request).unwrap()
}

fn rules(report: &Report) -> Vec<(&str, Verdict, &str)> {
    report
        .decisions
        .iter()
        .map(|d| (d.container.as_str(), d.verdict, d.rule.as_str()))
        .collect()
}

#[test]
fn what_is_behind_is_recreated_in_one_wave_after_one_batch_of_pulls() {
    let mut docker = behind()
        // The fake treats another tag of the repository as another image, so this sets what the container runs.
        .container_with("one", "acme/a:v1", |info| {
            info.image_id = fake::image_id("old")
        })
        .container("two", "acme/a")
        .container("three", "acme/b")
        .container("other", "acme/c")
        .container("database", "acme/a");
    let report = refresh(&mut docker, &fake::request());
    assert_eq!(
        rules(&report),
        [
            ("one", Verdict::Recreate, rule::IMAGE_MOVED),
            ("three", Verdict::Current, rule::UP_TO_DATE),
            ("two", Verdict::Recreate, rule::IMAGE_MOVED),
        ]
    );
    assert_eq!(
        report.targets,
        [Target::new("a", "acme/a"), Target::new("b", "acme/b")]
    );
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let replaced = |name: &str| (name.to_owned(), "acme/a".to_owned(), Strategy::Replace);
    assert_eq!(
        docker.calls(),
        [
            Call::Pull(names(&["acme/a", "acme/b"])),
            Call::Containers,
            Call::Inspect(names(&["one", "other", "three", "two"])),
            Call::Recreate(vec![replaced("one"), replaced("two")]),
        ]
    );
}

#[test]
fn targets_that_share_an_image_share_its_pull_and_the_first_that_matches_counts() {
    let mut docker = behind().container("one", "acme/a");
    let config = r#"{"names": ["a1", "a2"]}"#;
    let report = fake::refresh::<Plain>(
        &mut docker,
        &mut FakeHost::default(),
        config,
        &fake::request(),
    )
    .unwrap();
    assert_eq!(report.targets.len(), 2);
    assert_eq!(
        rules(&report),
        [("one", Verdict::Recreate, rule::IMAGE_MOVED)]
    );
    assert_eq!(docker.calls()[0], Call::Pull(vec!["acme/a".into()]));
}

#[test]
fn a_failed_pull_is_told_in_words_and_never_called_current() {
    let refusal = Refusal {
        credentials_sent: false,
        message: "denied".into(),
    };
    let mut docker = behind()
        .container("one", "acme/a")
        .container("two", "acme/b")
        .pull_fails("acme/b", PullError::Unauthorized(refusal));
    let report = refresh(&mut docker, &fake::request());
    assert_eq!(
        rules(&report),
        [
            ("one", Verdict::Recreate, rule::IMAGE_MOVED),
            ("two", Verdict::Unknown, rule::PULL_FAILED),
        ]
    );
    assert_eq!(
        report.decisions[1].reason,
        "the registry wants a login for `acme/b`, and the host has none: denied"
    );
}

#[test]
fn force_recreates_what_runs_and_is_current() {
    let mut docker = behind()
        .container("run", "acme/b")
        .container_with("stop", "acme/b", |info| info.state = ContainerState::Exited);
    let request = Request {
        force: true,
        ..fake::request()
    };
    let report = refresh(&mut docker, &request);
    assert_eq!(
        rules(&report),
        [
            ("run", Verdict::Recreate, rule::FORCED),
            ("stop", Verdict::Leave, rule::NOT_RUNNING)
        ]
    );
    let before = fake::container_info("run", "acme/b").id;
    assert_ne!(docker.container_named("run").unwrap().id, before);
}

#[test]
fn without_recreate_images_are_pulled_and_no_container_is_touched() {
    for force in [false, true] {
        let mut docker = behind()
            .container("one", "acme/a")
            .container("two", "acme/b");
        let request = Request {
            recreate: false,
            force,
            ..fake::request()
        };
        let report = refresh(&mut docker, &request);
        assert_eq!(
            rules(&report),
            [
                ("one", Verdict::Stale, rule::RECREATE_NOT_ASKED),
                ("two", Verdict::Current, rule::UP_TO_DATE),
            ],
            "force = {force}"
        );
        assert!(docker.waves().is_empty());
    }
}

#[test]
fn what_does_not_run_is_left_as_it_is() {
    use ContainerState::*;
    for state in [Created, Paused, Restarting, Removing, Exited, Dead] {
        let mut docker = behind().container_with("one", "acme/a", |info| info.state = state);
        let report = refresh(&mut docker, &fake::request());
        assert_eq!(
            rules(&report),
            [("one", Verdict::Stale, rule::NOT_RUNNING)],
            "{state:?}"
        );
        assert!(docker.waves().is_empty(), "{state:?}");
    }
}

#[test]
fn a_container_that_went_away_needs_no_decision_and_one_that_hides_is_unknown() {
    let mut docker = behind()
        .container("gone", "acme/a")
        .container("hides", "acme/a")
        .inspect_fails("gone", EngineError::NotFound)
        .inspect_fails("hides", EngineError::Unavailable("timed out".into()));
    let report = refresh(&mut docker, &fake::request());
    assert_eq!(
        rules(&report),
        [("hides", Verdict::Unknown, rule::INSPECT_FAILED)]
    );
}

#[test]
fn a_list_that_fails_is_fatal_only_where_containers_are_to_be_recreated() {
    let error = EngineError::Unavailable("no socket".into());
    let mut docker = behind().listing_fails(error.clone());
    let mut host = FakeHost::default();
    let answer = fake::refresh::<Plain>(&mut docker, &mut host, "{}", &fake::request());
    let Err(Failure::Unlisted(unlisted)) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(unlisted.error, error);
    assert_eq!(
        unlisted.targets.len(),
        2,
        "whoever asked is told what the pulled images stand for"
    );
    assert!(
        matches!(docker.calls()[0], Call::Pull(_)),
        "images are pulled by then"
    );

    let request = Request {
        recreate: false,
        ..fake::request()
    };
    let report = fake::refresh::<Plain>(&mut docker, &mut host, "{}", &request).unwrap();
    assert_eq!((report.targets.len(), report.decisions.len()), (2, 0));
    assert_eq!(host.log[0].0, Level::Warn);
}

#[test]
fn a_request_selects_targets_by_name_and_by_image() {
    let selected = |targets: &[&str], images: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let request = Request {
            targets: owned(targets),
            images: owned(images),
            ..fake::request()
        };
        let report =
            fake::refresh::<Plain>(&mut behind(), &mut FakeHost::default(), "{}", &request);
        report.map(|report| {
            report
                .targets
                .into_iter()
                .map(|t| t.name)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(selected(&[], &[]).unwrap(), ["a", "b"]);
    assert_eq!(
        selected(&["b", "a", "b"], &[]).unwrap(),
        ["a", "b"],
        "in the policy's order, once"
    );
    assert_eq!(
        selected(&[], &["docker.io/acme/b:v7"]).unwrap(),
        ["b"],
        "a tag is only a hint"
    );
    assert!(
        selected(&["a"], &["acme/b"]).unwrap().is_empty(),
        "both must hold"
    );
    assert!(
        selected(&[], &["ghcr.io/acme/b"]).unwrap().is_empty(),
        "another registry"
    );
    let unknown = UnknownTargets {
        asked: vec!["x".into()],
        known: vec!["a".into(), "b".into()],
    };
    assert_eq!(
        selected(&["a", "x"], &[]),
        Err(Failure::UnknownTargets(unknown))
    );
}

#[test]
fn nothing_selected_asks_nothing() {
    let mut docker = behind().container("one", "acme/a");
    let request = Request {
        images: vec!["acme/z".into()],
        ..fake::request()
    };
    assert_eq!(
        refresh(&mut docker, &request),
        Report {
            targets: vec![],
            decisions: vec![]
        }
    );
    assert!(docker.calls().is_empty());
}

#[test]
fn the_engine_refuses_and_the_decision_stands() {
    let mut docker = behind()
        .container("one", "acme/a")
        .recreate_fails("one", RecreateError::Busy);
    let report = refresh(&mut docker, &fake::request());
    assert_eq!(
        rules(&report),
        [("one", Verdict::Recreate, rule::IMAGE_MOVED)]
    );
    assert_eq!(
        docker.container_named("one").unwrap().image_id,
        fake::image_id("old")
    );
}

#[test]
fn a_container_removed_is_gone_from_the_fake() {
    let mut docker = behind().container("one", "acme/a");
    let config = r#"{"strategy": "remove"}"#;
    fake::refresh::<Plain>(
        &mut docker,
        &mut FakeHost::default(),
        config,
        &fake::request(),
    )
    .unwrap();
    assert!(docker.container_named("one").is_none());
}
