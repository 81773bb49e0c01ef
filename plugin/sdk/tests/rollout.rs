//! Tests canaries, waves and their ends on the fake engine: the touched containers, their order, and the decisions about the
//! others.

use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy::*;
use serde::Deserialize;

/// A policy with the rollout of its configuration, for two images.
struct Rolled;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    canaries: usize,
    wave: usize,
    stop_after: usize,
    last_first: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            canaries: 0,
            wave: usize::MAX,
            stop_after: 1,
            last_first: false,
        }
    }
}

impl Policy for Rolled {
    type Config = Config;

    fn describe() -> Description {
        unreachable!("a refresh needs no description")
    }

    fn targets(_: &Config) -> Vec<Target> {
        vec![Target::new("a", "acme/a"), Target::new("b", "acme/b")]
    }

    fn refresh(
        config: &Config,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Report, Failure> {
        let mut survey = survey::<Self>(config, request, context)?;
        if config.last_first {
            survey.due.reverse();
        }
        let rollout = Rollout::in_waves_of(config.wave)
            .with_canaries(config.canaries)
            .stop_after(config.stop_after);
        for outcome in survey.roll_out(context.docker, &rollout) {
            let line = format!("{} of {}", outcome.container, outcome.target);
            context.host.log(Level::Info, &line);
        }
        assert!(survey.due.is_empty(), "a rollout leaves nothing due");
        Ok(survey.into_report())
    }
}

/// The outdated containers `a1` … `a4` and `b1` … `b2`.
fn six() -> FakeDocker {
    let docker = FakeDocker::new()
        .image("acme/a", "old a", "new a")
        .image("acme/b", "old b", "new b");
    let names = ["a1", "a2", "a3", "a4", "b1", "b2"];
    names.iter().fold(docker, |docker, name| {
        docker.container(name, &format!("acme/{}", &name[..1]))
    })
}

/// Check the containers in each wave, and the rules for the containers in none.
#[track_caller]
fn check(mut docker: FakeDocker, config: &str, waves: &[&[&str]], held: &[(&str, &str)]) {
    let mut host = FakeHost::default();
    let report = fake::refresh::<Rolled>(&mut docker, &mut host, config, &fake::request()).unwrap();
    assert_eq!(docker.waves(), waves, "waves");
    let left: Vec<_> = report
        .decisions
        .iter()
        .filter(|decision| decision.verdict != Verdict::Recreate)
        .map(|decision| (decision.container.as_str(), decision.rule.as_str()))
        .collect();
    assert_eq!(left, held, "held back");
    assert_eq!(report.decisions.len(), 6, "one decision a container");
    let tried: Vec<&str> = waves.iter().copied().flatten().copied().collect();
    let told: Vec<&str> = host.log.iter().map(|(_, line)| &line[..2]).collect();
    assert_eq!(told, tried, "one outcome for each that was tried");
}

#[test]
fn without_canaries_waves_follow_the_order_of_what_is_due() {
    check(six(), "{}", &[&["a1", "a2", "a3", "a4", "b1", "b2"]], &[]);
    check(
        six(),
        r#"{"wave": 4}"#,
        &[&["a1", "a2", "a3", "a4"], &["b1", "b2"]],
        &[],
    );
    check(
        six(),
        r#"{"wave": 4, "last_first": true}"#,
        &[&["b2", "b1", "a4", "a3"], &["a2", "a1"]],
        &[],
    );
    // There must not be an endless series of empty waves.
    let one_by_one: &[&[&str]] = &[&["a1"], &["a2"], &["a3"], &["a4"], &["b1"], &["b2"]];
    check(six(), r#"{"wave": 0}"#, one_by_one, &[]);
}

#[test]
fn each_image_has_canaries_of_its_own() {
    check(
        six(),
        r#"{"canaries": 1}"#,
        &[&["a1", "b1"], &["a2", "a3", "a4", "b2"]],
        &[],
    );
    check(
        six(),
        r#"{"canaries": 3, "wave": 1}"#,
        &[&["a1", "a2", "a3", "b1", "b2"], &["a4"]],
        &[],
    );
}

#[test]
fn a_canary_that_fails_holds_back_its_image_and_no_other() {
    for error in [
        fake::rolled_back("unhealthy"),
        RecreateError::Aborted(FailedStep {
            step: "create".into(),
            cause: "no".into(),
        }),
        RecreateError::Stranded(FailedStep {
            step: "stop".into(),
            cause: "no".into(),
        }),
    ] {
        check(
            six().recreate_fails("a1", error),
            r#"{"canaries": 1}"#,
            &[&["a1", "b1"], &["b2"]],
            &[
                ("a2", rule::CANARY_FAILED),
                ("a3", rule::CANARY_FAILED),
                ("a4", rule::CANARY_FAILED),
            ],
        );
    }
}

#[test]
fn a_canary_that_says_nothing_is_replaced_by_the_next_one() {
    let successor = |current| {
        RecreateError::ReplacedByOther(Successor {
            id: "1".into(),
            image_id: "2".into(),
            current,
        })
    };
    for error in [
        RecreateError::Current,
        RecreateError::Gone,
        RecreateError::Busy,
        RecreateError::Denied("no grant".into()),
        RecreateError::Unsupported("--rm".into()),
        RecreateError::Other("?".into()),
        successor(true),
        successor(false),
    ] {
        check(
            six().recreate_fails("a1", error),
            r#"{"canaries": 1}"#,
            &[&["a1", "b1"], &["a2"], &["a3", "a4", "b2"]],
            &[],
        );
    }
    // If no container can be a canary, each was tried once.
    let docker = ["a1", "a2", "a3", "a4"].iter().fold(six(), |docker, name| {
        docker.recreate_fails(name, RecreateError::Busy)
    });
    check(
        docker,
        r#"{"canaries": 1}"#,
        &[&["a1", "b1"], &["a2"], &["a3"], &["a4"], &["b2"]],
        &[],
    );
}

#[test]
fn so_many_failures_end_a_rollout_and_canaries_are_not_among_them() {
    let two_fail = || {
        six()
            .recreate_fails("a1", fake::rolled_back("unhealthy"))
            .recreate_fails("a3", fake::rolled_back("unhealthy"))
    };
    check(
        two_fail(),
        r#"{"wave": 2}"#,
        &[&["a1", "a2"]],
        &[
            ("a3", rule::HALTED),
            ("a4", rule::HALTED),
            ("b1", rule::HALTED),
            ("b2", rule::HALTED),
        ],
    );
    check(
        two_fail(),
        r#"{"wave": 2, "stop_after": 2}"#,
        &[&["a1", "a2"], &["a3", "a4"]],
        &[("b1", rule::HALTED), ("b2", rule::HALTED)],
    );
    check(
        two_fail(),
        r#"{"wave": 1, "canaries": 1}"#,
        &[&["a1", "b1"], &["b2"]],
        &[
            ("a2", rule::CANARY_FAILED),
            ("a3", rule::CANARY_FAILED),
            ("a4", rule::CANARY_FAILED),
        ],
    );
    // A result without evidence about the image is no failure.
    check(
        six().recreate_fails("a1", RecreateError::Busy),
        r#"{"wave": 3}"#,
        &[&["a1", "a2", "a3"], &["a4", "b1", "b2"]],
        &[],
    );
}

#[test]
fn a_refresh_that_is_over_tries_nothing_more_and_blames_no_image() {
    for error in [
        RecreateError::Cancelled,
        RecreateError::QuotaExceeded("counts.recreate".into()),
    ] {
        let rest = [
            ("a3", rule::NOT_REACHED),
            ("a4", rule::NOT_REACHED),
            ("b1", rule::NOT_REACHED),
            ("b2", rule::NOT_REACHED),
        ];
        check(
            six().recreate_fails("a2", error.clone()),
            r#"{"wave": 2}"#,
            &[&["a1", "a2"]],
            &rest,
        );
        check(
            six().recreate_fails("b1", error),
            r#"{"canaries": 1}"#,
            &[&["a1", "b1"]],
            &[
                ("a2", rule::NOT_REACHED),
                ("a3", rule::NOT_REACHED),
                ("a4", rule::NOT_REACHED),
                ("b2", rule::NOT_REACHED),
            ],
        );
    }
}

#[test]
fn the_fakes_go_on_from_what_the_last_refresh_left() {
    let mut docker = six().recreate_fails("a1", fake::rolled_back("unhealthy"));
    let mut host = FakeHost::at(u64::MAX - 1);
    let mut refresh = |docker: &mut FakeDocker| {
        fake::refresh::<Rolled>(docker, &mut host, "{}", &fake::request()).unwrap()
    };
    refresh(&mut docker);
    docker.heal();
    docker.remove("a2");
    docker.publish("acme/b:latest", "newer b");
    refresh(&mut docker);
    assert_eq!(docker.waves(), [["a1", "b1", "b2"]]);
    host.passes(10);
    assert_eq!(host.now, u64::MAX, "the clock stops at its end");
}

#[test]
fn one_that_only_force_made_due_is_held_back_as_what_it_is() {
    let mut docker = six().recreate_fails("a1", fake::rolled_back("unhealthy"));
    docker.change("a3", |info| info.image_id = fake::image_id("new a"));
    let request = Request {
        force: true,
        ..fake::request()
    };
    let config = r#"{"canaries": 1}"#;
    let mut host = FakeHost::default();
    let report = fake::refresh::<Rolled>(&mut docker, &mut host, config, &request).unwrap();
    let verdicts: Vec<_> = report.decisions[1..4].iter().map(|d| d.verdict).collect();
    assert_eq!(verdicts, [Verdict::Stale, Verdict::Current, Verdict::Stale]);
}
