//! Night, idleness, cool-down and canary together, on the fake engine.

use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy::{PullError, RecreateError, Request, StateError, Trigger, Verdict, rule};
use refit_policy_quiet_hours::{QuietHours, cooldown, rules};

const HOUR: u64 = 60 * 60;
/// Monday the 23rd of November 2026, 03:00 UTC.
const NIGHT: u64 = 1_795_392_000 + 3 * HOUR;
const CONFIG: &str =
    r#"{"images": {"app": "acme/app"}, "from": "22:00", "to": "06:00", "cooldown_hours": 12}"#;

struct Stage {
    docker: FakeDocker,
    host: FakeHost,
    config: &'static str,
    request: Request,
}

/// `a`, `b` and `c`, behind, at night.
fn stage() -> Stage {
    let docker = FakeDocker::new().image("acme/app", "monday", "tuesday");
    let names = ["a", "b", "c"];
    Stage {
        docker: names
            .iter()
            .fold(docker, |docker, name| docker.container(name, "acme/app")),
        host: FakeHost::at(NIGHT),
        config: CONFIG,
        request: fake::request(),
    }
}

impl Stage {
    /// One refresh: its waves, and who was left by which rule.
    #[track_caller]
    fn expect(&mut self, waves: &[&[&str]], left: &[(&str, Verdict, &str)]) {
        let earlier = self.docker.waves().len();
        let report = fake::refresh::<QuietHours>(
            &mut self.docker,
            &mut self.host,
            self.config,
            &self.request,
        )
        .unwrap();
        assert_eq!(&self.docker.waves()[earlier..], waves, "waves");
        let found: Vec<_> = report
            .decisions
            .iter()
            .filter(|d| d.verdict != Verdict::Recreate)
            .map(|d| (d.container.as_str(), d.verdict, d.rule.as_str()))
            .collect();
        assert_eq!(found, left, "left");
    }

    fn label(&mut self, name: &str, value: &str) {
        let label = ("acme.busy".to_owned(), value.to_owned());
        self.docker.change(name, |info| info.labels.push(label));
    }
}

fn stale<'a>(name: &'a str, rule: &'a str) -> (&'a str, Verdict, &'a str) {
    (name, Verdict::Stale, rule)
}

fn current(name: &str) -> (&str, Verdict, &str) {
    (name, Verdict::Current, rule::UP_TO_DATE)
}

#[test]
fn at_night_the_idle_ones_are_recreated_canary_first() {
    let mut stage = stage();
    stage.label("a", "yes");
    stage.expect(&[&["b"], &["c"]], &[stale("a", rules::BUSY)]);
}

#[test]
fn a_canary_that_fails_holds_back_the_rest() {
    let mut stage = stage();
    stage.docker = stage
        .docker
        .recreate_fails("a", fake::rolled_back("unhealthy"));
    stage.expect(
        &[&["a"]],
        &[
            stale("b", rule::CANARY_FAILED),
            stale("c", rule::CANARY_FAILED),
        ],
    );
    // It was stopped for nothing, and is spared for a while; then the next one is canary.
    stage.docker.heal();
    stage.host.passes(HOUR);
    stage.expect(&[&["b"], &["c"]], &[stale("a", rules::COOLING_DOWN)]);
}

#[test]
fn what_a_busy_label_says() {
    for (value, is_busy) in [
        ("yes", true),
        ("1", true),
        ("ana", true),
        ("", false),
        ("0", false),
        ("no", false),
        ("false", false),
    ] {
        let mut stage = stage();
        for name in ["a", "b", "c"] {
            stage.label(name, value);
        }
        match is_busy {
            true => stage.expect(&[], &["a", "b", "c"].map(|name| stale(name, rules::BUSY))),
            false => stage.expect(&[&["a"], &["b", "c"]], &[]),
        }
    }
}

#[test]
fn by_day_images_are_pulled_and_containers_left() {
    let mut stage = stage();
    stage.host.now = NIGHT + 3 * HOUR;
    stage
        .docker
        .change("c", |info| info.image_id = fake::image_id("tuesday"));
    stage.expect(
        &[],
        &[
            stale("a", rules::OUTSIDE_WINDOW),
            stale("b", rules::OUTSIDE_WINDOW),
            current("c"),
        ],
    );
    // Force is about what is up to date, not about the hour.
    stage.request.force = true;
    stage.expect(
        &[],
        &[
            stale("a", rules::OUTSIDE_WINDOW),
            stale("b", rules::OUTSIDE_WINDOW),
            ("c", Verdict::Current, rules::OUTSIDE_WINDOW),
        ],
    );
}

#[test]
fn an_operator_ignores_the_window_where_the_configuration_says_so() {
    for (trigger, may) in [
        (Trigger::Operator, true),
        (Trigger::Api, false),
        (Trigger::Schedule, false),
        (Trigger::Webhook, false),
    ] {
        let mut stage = stage();
        stage.config =
            r#"{"images": {"app": "acme/app"}, "operator_ignores_window": true, "canaries": 0}"#;
        stage.host.now = NIGHT + 12 * HOUR;
        stage.request.trigger = trigger;
        // Of those who are at work even an operator has to take care.
        stage.label("c", "yes");
        match may {
            true => stage.expect(&[&["a", "b"]], &[stale("c", rules::BUSY)]),
            false => stage.expect(
                &[],
                &[
                    stale("a", rules::OUTSIDE_WINDOW),
                    stale("b", rules::OUTSIDE_WINDOW),
                    stale("c", rules::BUSY),
                ],
            ),
        }
    }
}

#[test]
fn no_container_is_stopped_twice_within_the_cooldown() {
    let mut stage = stage();
    stage.expect(&[&["a"], &["b", "c"]], &[]);
    stage.docker.publish("acme/app", "wednesday");
    stage.docker = stage.docker.clone().container("d", "acme/app");
    stage
        .docker
        .change("d", |info| info.image_id = fake::image_id("monday"));
    stage.host.passes(2 * HOUR);
    let cooling = ["a", "b", "c"].map(|name| stale(name, rules::COOLING_DOWN));
    stage.expect(&[&["d"]], &cooling);
    // It ends to the second; by then it is day, and the next night has to come.
    stage.host.now = NIGHT + 12 * HOUR - 1;
    stage.config = r#"{"images": {"app": "acme/app"}, "from": "00:00", "to": "24:00"}"#;
    stage.expect(&[], &[cooling[0], cooling[1], cooling[2], current("d")]);
    stage.host.passes(1);
    stage.expect(&[&["a"], &["b", "c"]], &[current("d")]);
}

#[test]
fn force_does_not_wait_for_the_cooldown() {
    let mut stage = stage();
    stage.expect(&[&["a"], &["b", "c"]], &[]);
    stage.request.force = true;
    stage.expect(&[&["a"], &["b", "c"]], &[]);
}

#[test]
fn what_was_never_stopped_need_not_cool_down() {
    let mut stage = stage();
    stage.docker = stage
        .docker
        .recreate_fails("a", RecreateError::Busy)
        .recreate_fails("c", RecreateError::Gone);
    stage.expect(&[&["a"], &["b"], &["c"]], &[]);
    assert_eq!(stage.host.state[cooldown::KEY], format!("b {NIGHT}\n"));
    stage.docker.heal();
    stage.expect(&[&["a"], &["c"]], &[current("b")]);
}

#[test]
fn who_is_gone_is_forgotten_by_a_refresh_of_everything_only() {
    let mut stage = stage();
    stage.config = r#"{"images": {"app": "acme/app", "web": "acme/web"}, "canaries": 0}"#;
    stage.docker = stage
        .docker
        .image("acme/web", "1", "2")
        .container("w", "acme/web");
    stage.expect(&[&["a", "b", "c", "w"]], &[]);
    stage.docker.remove("a");
    stage.request.targets = vec!["web".to_owned()];
    stage.expect(&[], &[current("w")]);
    assert!(
        stage.host.state[cooldown::KEY].contains("a "),
        "nobody looked"
    );
    stage.request.targets.clear();
    // A pull that fails is no sign that its containers are gone.
    stage.docker = stage
        .docker
        .clone()
        .pull_fails("acme/web", PullError::NotFound);
    stage.expect(
        &[],
        &[
            current("b"),
            current("c"),
            ("w", Verdict::Unknown, rule::PULL_FAILED),
        ],
    );
    let state = &stage.host.state[cooldown::KEY];
    assert_eq!(*state, format!("b {NIGHT}\nc {NIGHT}\nw {NIGHT}\n"));
    // And all of it when it is over.
    stage.host.passes(13 * HOUR);
    stage.expect(
        &[],
        &[
            current("b"),
            current("c"),
            ("w", Verdict::Unknown, rule::PULL_FAILED),
        ],
    );
    assert!(stage.host.state.is_empty(), "{:?}", stage.host.state);
}

#[test]
fn garbage_in_the_state_and_a_clock_that_goes_back_stop_nothing_for_ever() {
    let mut stage = stage();
    let garbage = format!("\u{0}\n\na -1\nb {}\n", u64::MAX);
    stage.host.state.insert(cooldown::KEY.to_owned(), garbage);
    stage.expect(&[&["a"], &["c"]], &[stale("b", rules::COOLING_DOWN)]);
    stage.host.now = NIGHT + 24 * HOUR;
    stage.expect(&[&["b"]], &[current("a"), current("c")]);
    stage.host.now = u64::MAX;
    stage.config = r#"{"images": {"app": "acme/app"}, "from": "00:00", "to": "24:00"}"#;
    stage.expect(&[], &["a", "b", "c"].map(current));
}

#[test]
fn a_state_that_cannot_be_written_is_said() {
    let mut stage = stage();
    stage.host.state_error = Some(StateError::TooLarge("16 KiB".into()));
    stage.expect(&[&["a"], &["b", "c"]], &[]);
    assert!(stage.host.logged("again too early"), "{:?}", stage.host.log);
}

#[test]
fn waves_stop_after_one_that_failed() {
    let mut stage = stage();
    stage.config = r#"{"images": {"app": "acme/app"}, "wave": 1, "canaries": 0}"#;
    stage.docker = stage.docker.recreate_fails("b", fake::rolled_back("no"));
    stage.expect(&[&["a"], &["b"]], &[stale("c", rule::HALTED)]);
}
