//! Watchtower's labels and flags, one by one and together, on the fake engine.

use refit_policy::fake::{self, Call, FakeDocker, FakeHost};
use refit_policy::{
    ContainerInfo, ContainerState, EngineError, Failure, PullError, RecreateError, Report, Request,
    Verdict, rule,
};
use refit_policy_watchtower::{Watchtower, rules};

const WT: &str = "com.centurylinklabs.watchtower";

fn behind() -> FakeDocker {
    FakeDocker::new()
        .image("acme/app", "old", "new")
        .image("acme/web", "old web", "new web")
        .image("acme/same", "same", "same")
}

/// Labels below Watchtower's prefix.
fn labels(pairs: &[(&str, &str)]) -> impl FnOnce(&mut ContainerInfo) {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(key, value)| (format!("{WT}.{key}"), (*value).to_owned()))
        .collect();
    |info| info.labels.extend(pairs)
}

#[track_caller]
fn refresh(docker: &mut FakeDocker, config: &str, request: &Request) -> (Report, FakeHost) {
    let mut host = FakeHost::default();
    let report = fake::refresh::<Watchtower>(docker, &mut host, config, request).unwrap();
    (report, host)
}

/// What was decided about each container, in the order of their names.
#[track_caller]
fn check(mut docker: FakeDocker, config: &str, expected: &[(&str, Verdict, &str)]) {
    let (report, _) = refresh(&mut docker, config, &fake::request());
    let found: Vec<_> = report
        .decisions
        .iter()
        .map(|d| (d.container.as_str(), d.verdict, d.rule.as_str()))
        .collect();
    assert_eq!(found, expected, "{config}");
}

const MOVED: (Verdict, &str) = (Verdict::Recreate, rule::IMAGE_MOVED);

fn moved(name: &str) -> (&str, Verdict, &str) {
    (name, MOVED.0, MOVED.1)
}

#[test]
fn each_container_follows_its_own_image_which_is_pulled_once() {
    let mut docker = behind()
        .container("a", "acme/app")
        .container("b", "acme/app")
        .container("c", "acme/same")
        .container("d", "acme/web");
    let (report, host) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(
        docker.calls()[2],
        Call::Pull(vec![
            "acme/app".into(),
            "acme/same".into(),
            "acme/web".into()
        ])
    );
    assert_eq!(docker.waves(), [["a", "b", "d"]]);
    assert_eq!(report.decisions[2].rule, rule::UP_TO_DATE);
    let targets: Vec<_> = report
        .targets
        .iter()
        .map(|t| (t.name.as_str(), t.image.as_str()))
        .collect();
    assert_eq!(targets[1..3], [("b", "acme/app"), ("c", "acme/same")]);
    assert!(host.log.is_empty(), "{:?}", host.log);
}

#[test]
fn an_enable_label_says_no_and_where_it_is_required_also_yes() {
    let docker = || {
        [
            ("a", None),
            ("b", Some("true")),
            ("c", Some("false")),
            ("d", Some("F")),
            ("e", Some("yes")),
        ]
        .into_iter()
        .fold(behind(), |docker, (name, value)| {
            let pairs: Vec<_> = value.map(|value| ("enable", value)).into_iter().collect();
            docker.container_with(name, "acme/app", labels(&pairs))
        })
    };
    let no = |name| (name, Verdict::Leave, rules::DISABLED);
    check(
        docker(),
        "{}",
        &[moved("a"), moved("b"), no("c"), no("d"), moved("e")],
    );
    let absent = |name| (name, Verdict::Leave, rules::NOT_ENABLED);
    check(
        docker(),
        r#"{"label-enable": true}"#,
        &[absent("a"), moved("b"), no("c"), no("d"), absent("e")],
    );
    let (_, host) = refresh(&mut docker(), "{}", &fake::request());
    assert!(host.logged("enable=yes of `e`"), "{:?}", host.log);
}

#[test]
fn a_scope_selects_and_none_means_those_without() {
    let docker = || {
        [
            ("a", None),
            ("b", Some("")),
            ("c", Some("none")),
            ("d", Some("prod")),
        ]
        .into_iter()
        .fold(behind(), |docker, (name, value)| {
            let pairs: Vec<_> = value.map(|value| ("scope", value)).into_iter().collect();
            docker.container_with(name, "acme/app", labels(&pairs))
        })
    };
    let other = |name| (name, Verdict::Leave, rules::OTHER_SCOPE);
    check(docker(), "{}", &["a", "b", "c", "d"].map(moved));
    check(
        docker(),
        r#"{"scope": "none"}"#,
        &[moved("a"), moved("b"), moved("c"), other("d")],
    );
    check(
        docker(),
        r#"{"scope": "prod"}"#,
        &[other("a"), other("b"), other("c"), moved("d")],
    );
}

#[test]
fn names_select_whole_and_with_a_slash_too() {
    let docker = || {
        ["web", "web-1", "db"]
            .into_iter()
            .fold(behind(), |docker, name| docker.container(name, "acme/app"))
    };
    check(
        docker(),
        r#"{"containers": ["/web", "db"]}"#,
        &[moved("db"), moved("web")],
    );
    check(
        docker(),
        r#"{"containers": ["web*"], "disable-containers": ["web"]}"#,
        &[moved("web-1")],
    );
}

#[test]
fn monitor_only_pulls_and_tells_and_a_label_overrides_it_only_with_precedence() {
    let docker = || {
        behind()
            .container("a", "acme/app")
            .container_with("b", "acme/app", labels(&[("monitor-only", "true")]))
            .container_with("c", "acme/app", labels(&[("monitor-only", "false")]))
            .container("d", "acme/same")
    };
    let only = |name| (name, Verdict::Stale, rules::MONITOR_ONLY);
    let d = ("d", Verdict::Current, rule::UP_TO_DATE);
    check(docker(), "{}", &[moved("a"), only("b"), moved("c"), d]);
    check(
        docker(),
        r#"{"monitor-only": true}"#,
        &[only("a"), only("b"), only("c"), d],
    );
    check(
        docker(),
        r#"{"monitor-only": true, "label-take-precedence": true}"#,
        &[only("a"), only("b"), moved("c"), d],
    );
}

#[test]
fn no_pull_asks_no_registry_and_then_nobody_knows() {
    let docker = || {
        behind()
            .container_with("a", "acme/app", labels(&[("no-pull", "true")]))
            .container_with("b", "acme/web", labels(&[("no-pull", "true")]))
            .container("c", "acme/web")
    };
    let unknown = |name| (name, Verdict::Unknown, rules::NO_PULL);
    // `b` follows the image that `c` has pulled.
    check(docker(), "{}", &[unknown("a"), moved("b"), moved("c")]);
    check(
        docker(),
        r#"{"no-pull": true}"#,
        &[unknown("a"), unknown("b"), unknown("c")],
    );
    let mut docker = docker();
    refresh(&mut docker, r#"{"no-pull": true}"#, &fake::request());
    assert!(
        !docker
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Pull(_)))
    );
}

#[test]
fn states_that_watchtower_leaves_out_are_left_out_and_never_recreated() {
    let docker = || {
        use ContainerState::{Created, Dead, Exited, Paused, Restarting};
        [
            ("a", Created),
            ("b", Exited),
            ("c", Restarting),
            ("d", Dead),
            ("e", Paused),
        ]
        .into_iter()
        .fold(behind(), |docker, (name, state)| {
            docker.container_with(name, "acme/app", |info| info.state = state)
        })
    };
    let still = |name| (name, Verdict::Stale, rule::NOT_RUNNING);
    check(docker(), "{}", &[still("e")]);
    check(
        docker(),
        r#"{"include-stopped": true}"#,
        &[still("a"), still("b"), still("e")],
    );
    check(
        docker(),
        r#"{"include-restarting": true}"#,
        &[still("c"), still("e")],
    );
}

#[test]
fn what_is_pinned_and_watchtower_itself_are_left() {
    let digest = format!("acme/app@sha256:{}", "a".repeat(64));
    let docker = behind()
        .container("a", &digest)
        .container("b", &fake::image_id("old"))
        .container_with("c", "acme/app", |info| {
            info.labels.push((WT.to_owned(), "true".to_owned()));
        });
    let pinned = |name| (name, Verdict::Leave, rules::PINNED);
    check(
        docker,
        "{}",
        &[
            pinned("a"),
            pinned("b"),
            ("c", Verdict::Leave, rules::WATCHTOWER),
        ],
    );
}

#[test]
fn what_fails_costs_only_its_own_containers() {
    let docker = behind()
        .container("a", "acme/app")
        .container("b", "acme/nowhere")
        .container("c", "acme/app")
        .container("d", "not an image")
        .inspect_fails("c", EngineError::Unavailable("busy".into()))
        .pull_fails("not an image", PullError::InvalidReference("spaces".into()));
    let unknown = |name| (name, Verdict::Unknown, rule::PULL_FAILED);
    check(
        docker,
        "{}",
        &[
            moved("a"),
            unknown("b"),
            ("c", Verdict::Unknown, rule::INSPECT_FAILED),
            unknown("d"),
        ],
    );
    let mut docker = behind().listing_fails(EngineError::Unavailable("down".into()));
    let failure = fake::refresh::<Watchtower>(
        &mut docker,
        &mut FakeHost::default(),
        "{}",
        &fake::request(),
    );
    assert!(matches!(failure, Err(Failure::Unlisted(_))), "{failure:?}");
    // Nothing there, nothing asked.
    check(behind(), "{}", &[]);
}

#[test]
fn a_request_selects_containers_by_name_and_images_by_repository() {
    let docker = || {
        behind()
            .container("a", "acme/app")
            .container("b", "acme/web")
            .container_with("c", "acme/app", labels(&[("enable", "false")]))
    };
    let names = |request: &Request| {
        let (report, _) = refresh(&mut docker(), "{}", request);
        let name = |d: &refit_policy::Decision| format!("{} {}", d.container, d.rule);
        report.decisions.iter().map(name).collect::<Vec<_>>()
    };
    let targets = |targets: &[&str]| Request {
        targets: targets.iter().map(|&t| t.to_owned()).collect(),
        ..fake::request()
    };
    assert_eq!(names(&targets(&["b"])), ["b image-moved"]);
    assert_eq!(
        names(&targets(&["c"])),
        ["c disabled"],
        "asked for, and still not enabled"
    );
    let by_image = Request {
        images: vec!["docker.io/acme/web:other".into()],
        ..fake::request()
    };
    assert_eq!(names(&by_image), ["b image-moved"]);
    let failure = fake::refresh::<Watchtower>(
        &mut docker(),
        &mut FakeHost::default(),
        r#"{"disable-containers": ["b"]}"#,
        &targets(&["a", "b", "x"]),
    );
    match failure {
        Err(Failure::UnknownTargets(unknown)) => {
            assert_eq!(unknown.asked, ["b", "x"]);
            assert_eq!(unknown.known, ["a", "c"]);
        }
        other => panic!("{other:?}"),
    }
    let no_recreate = Request {
        recreate: false,
        ..fake::request()
    };
    assert_eq!(names(&no_recreate)[0], "a recreate-not-asked");
}

/// `a` needs `b`, `b` needs `c`; `d` needs nobody.
fn chain() -> FakeDocker {
    behind()
        .container_with("a", "acme/app", labels(&[("depends-on", "b")]))
        .container_with("b", "acme/app", labels(&[("depends-on", "/c , ")]))
        .container("c", "acme/app")
        .container("d", "acme/app")
}

#[test]
fn a_provider_is_recreated_before_its_dependents() {
    let mut docker = chain();
    refresh(&mut docker, "{}", &fake::request());
    assert_eq!(docker.waves(), [vec!["c", "d"], vec!["b"], vec!["a"]]);
    let mut docker = chain();
    refresh(
        &mut docker,
        r#"{"rolling-restart": true}"#,
        &fake::request(),
    );
    assert_eq!(docker.waves(), [["c"], ["d"], ["b"], ["a"]]);
    // The way from `a` to `c` leads over one that is up to date.
    let mut docker = chain();
    docker.change("b", |info| info.image_id = fake::image_id("new"));
    let (report, _) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(docker.waves(), [vec!["c", "d"], vec!["a"]]);
    assert_eq!(report.decisions[1].rule, rules::PROVIDER_RECREATED);
}

#[test]
fn the_services_of_a_compose_project_depend_on_each_other_within_it() {
    let service = |project: &'static str, name: &'static str, on: &'static str| {
        move |info: &mut ContainerInfo| {
            info.compose_project = Some(project.to_owned());
            let label =
                |key: &str, value: &str| (format!("com.docker.compose.{key}"), value.to_owned());
            info.labels.push(label("service", name));
            info.labels.push(label("depends_on", on));
        }
    };
    let mut docker = behind()
        .container_with(
            "p-web",
            "acme/web",
            service(
                "p",
                "web",
                "zdb:service_healthy:false,gone:service_started:true",
            ),
        )
        .container_with("p-zdb", "acme/app", service("p", "zdb", ""))
        .container_with("q-zdb", "acme/same", service("q", "zdb", "web"));
    let (report, host) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(docker.waves(), [["p-zdb"], ["p-web"]]);
    assert_eq!(
        report.decisions[2].rule,
        rule::UP_TO_DATE,
        "another project"
    );
    assert!(host.log.is_empty(), "{:?}", host.log);
}

#[test]
fn a_circle_and_a_name_that_is_not_there_are_said_and_end() {
    let mut docker = behind()
        .container_with("a", "acme/app", labels(&[("depends-on", "b")]))
        .container_with("b", "acme/app", labels(&[("depends-on", "a,b,ghost")]))
        .container_with("c", "acme/app", labels(&[("depends-on", "b")]));
    let (_, host) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(docker.waves(), [["a"], ["b"], ["c"]]);
    assert!(host.logged("`ghost` of `b`"), "{:?}", host.log);
    assert!(host.logged("in a circle; there `a`"), "{:?}", host.log);
}

#[test]
fn a_failure_stops_nobody_else_and_a_refresh_that_is_over_stops_all() {
    let mut docker = chain().recreate_fails("c", fake::rolled_back("unhealthy"));
    docker.change("b", |info| info.image_id = fake::image_id("new"));
    let (report, _) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(docker.waves(), [vec!["c", "d"], vec!["a"]]);
    assert_eq!(
        report.decisions[1].rule,
        rule::UP_TO_DATE,
        "its provider is the old one"
    );
    let mut docker = chain().recreate_fails("c", RecreateError::Cancelled);
    let (report, _) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(docker.waves(), [["c", "d"]]);
    assert_eq!(report.decisions[0].rule, rule::NOT_REACHED);
    assert_eq!(report.decisions[1].rule, rule::NOT_REACHED);
}

#[test]
fn labels_that_are_not_heeded_are_said_once_each() {
    let hook = ("lifecycle.pre-update", "/dump.sh");
    let mut docker = (0..7).fold(behind(), |docker, n| {
        let pairs = [("stop-signal", "SIGHUP"), hook];
        docker.container_with(&format!("c{n}"), "acme/app", labels(&pairs))
    });
    let (_, host) = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(host.log.len(), 2, "{:?}", host.log);
    assert!(host.logged("stop-signal` of `c0`, `c1`, `c2`, `c3`, `c4` and 2 more"));
    assert!(host.logged("lifecycle.pre-update`"));
}

#[test]
fn force_recreates_what_is_up_to_date_in_the_same_order() {
    let mut docker = chain();
    for name in ["a", "b", "c", "d"] {
        docker.change(name, |info| info.image_id = fake::image_id("new"));
    }
    docker.change("d", labels(&[("monitor-only", "true")]));
    let force = Request {
        force: true,
        ..fake::request()
    };
    let (report, _) = refresh(&mut docker, "{}", &force);
    assert_eq!(docker.waves(), [["c"], ["b"], ["a"]]);
    let d = &report.decisions[3];
    assert_eq!(
        (d.verdict, &*d.rule),
        (Verdict::Current, rules::MONITOR_ONLY)
    );
}
