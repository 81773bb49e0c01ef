//! The canary over several refreshes, on the fake engine: who goes first, what the others wait for, and what ends it.

use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy::{
    ContainerState, EngineError, Health, PullError, RecreateError, Request, StateError, Verdict,
    rule,
};
use refit_policy_canary::{Canary, record, rules};

const CONFIG: &str = r#"{"images": {"app": "acme/app"}, "soak_minutes": 30}"#;
const NOW: u64 = 1_800_000_000;

/// `a`, `b` and `c`, behind, half an hour of soaking, and what a test does to them.
struct Stage {
    docker: FakeDocker,
    host: FakeHost,
    config: &'static str,
    request: Request,
}

fn stage() -> Stage {
    stage_with(|docker| docker)
}

fn stage_with(change: impl FnOnce(FakeDocker) -> FakeDocker) -> Stage {
    let docker = FakeDocker::new().image("acme/app", "monday", "tuesday");
    let docker = ["a", "b", "c"]
        .iter()
        .fold(docker, |docker, name| docker.container(name, "acme/app"));
    Stage {
        docker: change(docker),
        host: FakeHost::at(NOW),
        config: CONFIG,
        request: fake::request(),
    }
}

impl Stage {
    /// One refresh: its waves, and who was left by which rule.
    #[track_caller]
    fn expect(&mut self, waves: &[&[&str]], left: &[(&str, Verdict, &str)]) {
        let earlier = self.docker.waves().len();
        let report =
            fake::refresh::<Canary>(&mut self.docker, &mut self.host, self.config, &self.request)
                .unwrap();
        assert_eq!(&self.docker.waves()[earlier..], waves, "waves");
        let found: Vec<_> = report
            .decisions
            .iter()
            .filter(|d| d.verdict != Verdict::Recreate)
            .map(|d| (d.container.as_str(), d.verdict, d.rule.as_str()))
            .collect();
        assert_eq!(found, left, "left");
        for decision in &report.decisions {
            let reason = &decision.reason;
            let is_fragment = !reason.ends_with('.') && !reason.starts_with(char::is_uppercase);
            assert!(is_fragment, "{reason:?}");
        }
    }

    fn after_minutes(&mut self, minutes: u64) -> &mut Self {
        self.host.passes(minutes * 60);
        self
    }
}

const A_CURRENT: (&str, Verdict, &str) = ("a", Verdict::Current, rule::UP_TO_DATE);

fn soaking(name: &str) -> (&str, Verdict, &str) {
    (name, Verdict::Stale, rules::SOAKING)
}

fn halted(name: &str) -> (&str, Verdict, &str) {
    (name, Verdict::Stale, rule::CANARY_FAILED)
}

#[test]
fn the_rest_follows_when_the_canary_has_soaked_and_not_before() {
    let mut stage = stage();
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage
        .after_minutes(29)
        .expect(&[], &[A_CURRENT, soaking("b"), soaking("c")]);
    stage.after_minutes(1).expect(&[&["b", "c"]], &[A_CURRENT]);
    // One that appears later on the old image has nothing to wait for.
    stage.docker.change("c", |info| {
        info.image_id = fake::image_id("monday");
    });
    stage.expect(
        &[&["c"]],
        &[A_CURRENT, ("b", Verdict::Current, rule::UP_TO_DATE)],
    );
}

#[test]
fn without_soaking_the_rest_follows_in_the_same_refresh() {
    let mut stage = stage();
    stage.config = r#"{"images": {"app": "acme/app"}, "soak_minutes": 0, "wave": 1}"#;
    stage.expect(&[&["a"], &["b"], &["c"]], &[]);
}

#[test]
fn the_canary_is_the_one_with_the_label() {
    for (value, first) in [("true", "b"), ("", "b"), ("false", "a")] {
        let mut stage = stage();
        let label = ("refit.canary".to_owned(), value.to_owned());
        stage.docker.change("b", |info| info.labels.push(label));
        let rest: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .filter(|name| *name != first)
            .map(soaking)
            .collect();
        stage.expect(&[&[first]], &rest);
    }
}

#[test]
fn a_canary_that_fails_halts_the_image_until_it_moves() {
    let mut stage = stage_with(|d| d.recreate_fails("a", fake::rolled_back("unhealthy")));
    stage.expect(&[&["a"]], &[halted("b"), halted("c")]);
    stage.docker.heal();
    stage
        .after_minutes(10_000)
        .expect(&[], &[halted("a"), halted("b"), halted("c")]);
    stage.docker.publish("acme/app", "wednesday");
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
}

#[test]
fn force_tries_again_and_does_not_wait() {
    let mut stage = stage_with(|d| d.recreate_fails("a", fake::rolled_back("unhealthy")));
    stage.expect(&[&["a"]], &[halted("b"), halted("c")]);
    stage.docker.heal();
    stage.request.force = true;
    stage.expect(&[&["a"], &["b", "c"]], &[]);
    // Once it went well by force, it is no longer known as failed.
    stage.request.force = false;
    stage.docker.change("c", |info| {
        info.image_id = fake::image_id("monday");
    });
    stage.expect(
        &[&["c"]],
        &[A_CURRENT, ("b", Verdict::Current, rule::UP_TO_DATE)],
    );
}

#[test]
fn a_canary_that_does_not_stay_well_halts_the_image() {
    type Change = fn(&mut refit_policy::ContainerInfo);
    let ills: [(&str, Change); 4] = [
        ("unhealthy", |info| info.health = Health::Unhealthy),
        ("exited", |info| info.state = ContainerState::Exited),
        ("restarting", |info| info.state = ContainerState::Restarting),
        ("on another image", |info| {
            info.image_id = fake::image_id("monday");
            info.state = ContainerState::Exited;
        }),
    ];
    for (what, change) in ills {
        let mut stage = stage();
        stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
        stage.docker.change("a", change);
        let known = stage.docker.container_named("a").unwrap();
        let runs = known.state == ContainerState::Running;
        let canary = match known.image_id == fake::image_id("tuesday") {
            true if runs => A_CURRENT,
            true => ("a", Verdict::Leave, rule::NOT_RUNNING),
            false => ("a", Verdict::Stale, rule::NOT_RUNNING),
        };
        stage
            .after_minutes(60)
            .expect(&[], &[canary, halted("b"), halted("c")]);
        // And it stays so when it recovers: what happened once, happens again.
        stage.docker.change("a", |info| {
            info.state = ContainerState::Running;
            info.health = Health::Healthy;
            info.image_id = fake::image_id("tuesday");
        });
        stage.expect(&[], &[A_CURRENT, halted("b"), halted("c")]);
        assert!(
            stage.host.state[record::KEY].contains(" failed "),
            "{what}: {:?}",
            stage.host.state
        );
    }
}

#[test]
fn a_canary_that_was_put_back_on_the_old_image_halts_it() {
    let mut stage = stage();
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage.docker.change("a", |info| {
        info.image_id = fake::image_id("monday");
    });
    stage
        .after_minutes(60)
        .expect(&[], &[halted("a"), halted("b"), halted("c")]);
}

#[test]
fn nothing_goes_on_while_nobody_knows_how_the_canary_is() {
    let mut stage = stage();
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    // In its start period.
    stage
        .docker
        .change("a", |info| info.health = Health::Starting);
    stage
        .after_minutes(60)
        .expect(&[], &[A_CURRENT, soaking("b"), soaking("c")]);
    // The engine does not answer.
    stage.docker = stage
        .docker
        .clone()
        .inspect_fails("a", EngineError::Unavailable("busy".into()));
    let a = ("a", Verdict::Unknown, rule::INSPECT_FAILED);
    stage.expect(&[], &[a, soaking("b"), soaking("c")]);
    // The registry does not.
    stage.docker.heal();
    stage.docker = stage
        .docker
        .clone()
        .pull_fails("acme/app", PullError::RateLimited(None));
    let unknown = |name| (name, Verdict::Unknown, rule::PULL_FAILED);
    stage.expect(&[], &[unknown("a"), unknown("b"), unknown("c")]);
    // Afterwards it goes on where it was.
    stage.docker.heal();
    stage
        .docker
        .change("a", |info| info.health = Health::Healthy);
    stage.expect(&[&["b", "c"]], &[A_CURRENT]);
}

#[test]
fn where_the_canary_is_gone_another_one_goes_first() {
    let mut stage = stage();
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage.docker.remove("a");
    stage.after_minutes(60).expect(&[&["b"]], &[soaking("c")]);
    let current = ("b", Verdict::Current, rule::UP_TO_DATE);
    stage
        .after_minutes(29)
        .expect(&[], &[current, soaking("c")]);
    stage.after_minutes(1).expect(&[&["c"]], &[current]);
}

#[test]
fn one_that_was_not_tried_is_no_canary() {
    let mut stage = stage_with(|d| d.recreate_fails("a", RecreateError::Busy));
    stage.expect(&[&["a"], &["b"]], &[soaking("c")]);
    let mut stage = stage_with(|d| d.recreate_fails("a", RecreateError::Cancelled));
    let unreached = |name| (name, Verdict::Stale, rule::NOT_REACHED);
    stage.expect(&[&["a"]], &[unreached("b"), unreached("c")]);
    assert!(stage.host.state.is_empty(), "{:?}", stage.host.state);
}

#[test]
fn an_image_that_moves_while_its_canary_soaks_begins_anew() {
    let mut stage = stage();
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage.docker.publish("acme/app", "wednesday");
    stage
        .after_minutes(60)
        .expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage
        .after_minutes(29)
        .expect(&[], &[A_CURRENT, soaking("b"), soaking("c")]);
}

#[test]
fn each_image_has_a_canary_of_its_own() {
    let mut stage = stage_with(|docker| {
        docker
            .image("acme/web", "w1", "w2")
            .container("w", "acme/web")
            .container("x", "acme/web")
            .recreate_fails("w", fake::rolled_back("no"))
    });
    stage.config = r#"{"images": {"app": "acme/app", "web": "acme/web"}, "soak_minutes": 1}"#;
    stage.expect(&[&["a", "w"]], &[soaking("b"), soaking("c"), halted("x")]);
    stage
        .after_minutes(1)
        .expect(&[&["b", "c"]], &[A_CURRENT, halted("w"), halted("x")]);
}

#[test]
fn a_clock_that_goes_back_or_ends_makes_nothing_follow_early() {
    let mut stage = stage();
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage.host.now = 0;
    let all: &[_] = &[A_CURRENT, soaking("b"), soaking("c")];
    stage.expect(&[], all);
    stage.after_minutes(29).expect(&[], all);
    stage.after_minutes(1).expect(&[&["b", "c"]], &[A_CURRENT]);

    let mut stage = self::stage();
    stage.host.now = u64::MAX;
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    stage.expect(&[], all);
}

#[test]
fn a_state_that_is_garbage_or_cannot_be_written_costs_another_canary() {
    let mut stage = stage();
    for garbage in ["", "{}", "\u{0}", "a b c d e f"] {
        let state = &mut stage.host.state;
        state.insert(record::KEY.to_owned(), garbage.to_owned());
        let mut fresh = self::stage();
        fresh.host = stage.host.clone();
        fresh.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    }
    stage.host.state.clear();
    stage.host.state_error = Some(StateError::Unavailable("disk full".into()));
    stage.expect(&[&["a"]], &[soaking("b"), soaking("c")]);
    assert!(
        stage.host.logged("will begin with another canary"),
        "{:?}",
        stage.host.log
    );
    stage.expect(&[&["b"]], &[A_CURRENT, soaking("c")]);
}

#[test]
fn who_asks_for_images_only_gets_images_only() {
    let mut stage = stage();
    stage.request.recreate = false;
    let stale = |name| (name, Verdict::Stale, rule::RECREATE_NOT_ASKED);
    stage.expect(&[], &[stale("a"), stale("b"), stale("c")]);
    assert!(stage.host.state.is_empty());
}
