//! The default policy, whole, on the fake engine.

use refit_policy::fake::{self, FakeDocker, FakeHost};
use refit_policy::{
    ContainerInfo, ContainerState, Failure, Policy, PullError, Report, Request, Strategy, Verdict,
    rule,
};
use refit_policy_workspace::{Config, Workspace};

fn image(runtime: &str) -> String {
    format!("ghcr.io/molecule-ai/workspace-template-{runtime}:latest")
}

/// All eight are behind, and one workspace of each runs.
fn platform() -> FakeDocker {
    Config::default()
        .runtimes
        .iter()
        .fold(FakeDocker::new(), |docker, runtime| {
            let image = image(runtime);
            let (local, remote) = (format!("{runtime} v1"), format!("{runtime} v2"));
            docker
                .image(&image, &local, &remote)
                .container(&format!("ws-{runtime}"), &image)
        })
}

#[track_caller]
fn refresh(docker: &mut FakeDocker, config: &str, request: &Request) -> Report {
    fake::refresh::<Workspace>(docker, &mut FakeHost::default(), config, request).unwrap()
}

#[track_caller]
fn verdict<'a>(report: &'a Report, name: &str) -> (Verdict, &'a str) {
    let decision = report
        .decisions
        .iter()
        .find(|decision| decision.container == name)
        .unwrap();
    (decision.verdict, &decision.rule)
}

#[test]
fn eight_runtimes_are_pulled_and_their_workspaces_recreated() {
    let mut docker = platform();
    let report = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(report.targets.len(), 8);
    assert_eq!(report.targets[0].image, image("claude-code"));
    assert!(
        report
            .decisions
            .iter()
            .all(|d| d.verdict == Verdict::Recreate)
    );
    assert_eq!(docker.waves().len(), 1);
    assert_eq!(
        docker.container_named("ws-hermes").unwrap().image_id,
        fake::image_id("hermes v2")
    );

    let again = refresh(&mut docker, "{}", &fake::request());
    assert!(
        again
            .decisions
            .iter()
            .all(|d| d.verdict == Verdict::Current),
        "nothing is stale twice"
    );
    assert_eq!(docker.waves().len(), 1);
}

#[test]
fn an_unpublished_image_costs_only_its_own_workspaces() {
    let mut docker = platform().pull_fails(&image("openclaw"), PullError::NotFound);
    let report = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(
        verdict(&report, "ws-openclaw"),
        (Verdict::Unknown, rule::PULL_FAILED)
    );
    assert_eq!(report.targets.len(), 8, "it is still a target");
    let others = report
        .decisions
        .iter()
        .filter(|d| d.verdict == Verdict::Recreate);
    assert_eq!(others.count(), 7);
    assert_eq!(
        docker.container_named("ws-openclaw").unwrap().image_id,
        fake::image_id("openclaw v1")
    );
}

#[test]
fn neighbours_are_not_touched() {
    let mut docker = platform()
        .image(
            "ghcr.io/molecule-ai/workspace-template-hermes-x:latest",
            "x1",
            "x2",
        )
        .container(
            "ws-neighbour",
            "ghcr.io/molecule-ai/workspace-template-hermes-x:latest",
        )
        .container("my-ws-hermes", &image("hermes"))
        .container("ws", &image("hermes"))
        .container("ws-legacy", "workspace-template:hermes")
        .container(
            "ws-elsewhere",
            "docker.io/molecule-ai/workspace-template-hermes:latest",
        )
        .container("ws-by-id", &fake::image_id("hermes v1"));
    let report = refresh(&mut docker, "{}", &fake::request());
    let names: Vec<_> = report
        .decisions
        .iter()
        .map(|d| d.container.as_str())
        .collect();
    let mut expected: Vec<_> = Config::default()
        .runtimes
        .iter()
        .map(|r| format!("ws-{r}"))
        .collect();
    expected.sort();
    assert_eq!(names, expected);
    let asked = format!("{:?}", docker.calls());
    assert!(
        !asked.contains("my-ws-hermes"),
        "another name is not even inspected"
    );
}

#[test]
fn a_container_pinned_to_a_digest_follows_its_repository() {
    let pinned = format!(
        "ghcr.io/molecule-ai/workspace-template-hermes@{}",
        fake::image_id("pin")
    );
    let mut docker = platform().container("ws-pinned", &pinned).container(
        "ws-tagged",
        "ghcr.io/molecule-ai/workspace-template-hermes:v1",
    );
    let report = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(
        verdict(&report, "ws-pinned"),
        (Verdict::Recreate, rule::IMAGE_MOVED)
    );
    assert_eq!(
        verdict(&report, "ws-tagged"),
        (Verdict::Recreate, rule::IMAGE_MOVED)
    );
}

#[test]
fn what_stands_still_is_left_and_said_to_be_behind() {
    let stopped = |info: &mut ContainerInfo| info.state = ContainerState::Exited;
    let mut docker = platform().container_with("ws-stopped", &image("hermes"), stopped);
    let report = refresh(&mut docker, "{}", &fake::request());
    assert_eq!(
        verdict(&report, "ws-stopped"),
        (Verdict::Stale, rule::NOT_RUNNING)
    );
}

#[test]
fn force_and_recreate_are_obeyed() {
    let mut docker = platform();
    let report = refresh(
        &mut docker,
        "{}",
        &Request {
            recreate: false,
            ..fake::request()
        },
    );
    assert_eq!(
        verdict(&report, "ws-hermes"),
        (Verdict::Stale, rule::RECREATE_NOT_ASKED)
    );
    assert!(docker.waves().is_empty());

    refresh(&mut docker, "{}", &fake::request());
    let report = refresh(
        &mut docker,
        "{}",
        &Request {
            force: true,
            ..fake::request()
        },
    );
    assert!(report.decisions.iter().all(|d| d.rule == rule::FORCED));
    assert_eq!(docker.waves()[1].len(), 8);
}

#[test]
fn one_runtime_is_refreshed_alone_and_an_unknown_one_is_named() {
    let mut docker = platform();
    let request = |runtime: &str| Request {
        targets: vec![runtime.into()],
        ..fake::request()
    };
    let report = refresh(&mut docker, "{}", &request("hermes"));
    assert_eq!(report.decisions.len(), 1);
    assert_eq!(docker.waves(), [["ws-hermes"]]);

    let answer = fake::refresh::<Workspace>(
        &mut docker,
        &mut FakeHost::default(),
        "{}",
        &request("hermess"),
    );
    let Err(Failure::UnknownTargets(unknown)) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(unknown.asked, ["hermess"]);
    assert_eq!(unknown.known, Config::default().runtimes);
}

#[test]
fn a_webhook_names_an_image() {
    let mut docker = platform();
    let images = vec!["ghcr.io/molecule-ai/workspace-template-crewai:sha-1f2e".into()];
    refresh(
        &mut docker,
        "{}",
        &Request {
            images,
            ..fake::request()
        },
    );
    assert_eq!(docker.waves(), [["ws-crewai"]]);
}

#[test]
fn another_platform_is_only_another_configuration() {
    let config = r#"{"images": "localhost:5000/agents/{runtime}", "runtimes": ["x"], "containers": "agent-?", "strategy": "remove"}"#;
    let mut docker = FakeDocker::new()
        .image("localhost:5000/agents/x", "1", "2")
        .container("agent-1", "localhost:5000/agents/x:stable")
        .container("agent-10", "localhost:5000/agents/x")
        .container("ws-1", "localhost:5000/agents/x");
    refresh(&mut docker, config, &fake::request());
    assert_eq!(docker.waves(), [["agent-1"]]);
    assert!(
        docker.container_named("agent-1").is_none(),
        "removed, for the platform to make anew"
    );
}

#[test]
fn matching_is_exact() {
    let config = Config::default();
    let targets = Workspace::targets(&config);
    let hermes = targets
        .iter()
        .find(|target| target.name == "hermes")
        .unwrap();
    for (name, image, matches) in [
        (
            "ws-1",
            "ghcr.io/molecule-ai/workspace-template-hermes",
            true,
        ),
        (
            "ws-1",
            "ghcr.io/molecule-ai/workspace-template-hermes:v1",
            true,
        ),
        (
            "ws-",
            "ghcr.io/molecule-ai/workspace-template-hermes:latest",
            true,
        ),
        (
            "ws-1",
            "ghcr.io/molecule-ai/workspace-template-hermes-x",
            false,
        ),
        (
            "ws-1",
            "ghcr.io/molecule-ai/x/workspace-template-hermes",
            false,
        ),
        (
            "ws-1",
            "ghcr.io:443/molecule-ai/workspace-template-hermes",
            false,
        ),
        ("ws-1", "molecule-ai/workspace-template-hermes", false),
        ("ws-1", "workspace-template:hermes", false),
        ("ws-1", "", false),
        (
            "my-ws-x",
            "ghcr.io/molecule-ai/workspace-template-hermes",
            false,
        ),
        (
            "WS-1",
            "ghcr.io/molecule-ai/workspace-template-hermes",
            false,
        ),
    ] {
        let info = fake::container_info(name, image);
        assert_eq!(
            Workspace::matches(&config, &info, hermes),
            matches,
            "`{name}` on `{image}`"
        );
    }
    let info = fake::container_info("ws-1", "x");
    assert_eq!(Workspace::strategy(&config, &info), Strategy::Replace);
}
