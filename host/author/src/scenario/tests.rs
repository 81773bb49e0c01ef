//! Tests of scenarios with the built-in policy: passes, failures, and their messages.

use std::path::Path;

use refit_sandbox::{DEFAULT_POLICY, Policy, PolicyEngine};

use super::document::Scenario;
use super::run::{Ran, run};

const IMAGE: &str = "ghcr.io/molecule-ai/workspace-template-hermes:latest";

async fn policy() -> Policy {
    let engine = PolicyEngine::new().unwrap();
    engine.load(DEFAULT_POLICY, "built-in").await.unwrap()
}

fn scenario(text: &str) -> Scenario {
    let text = text.replace("IMAGE", IMAGE);
    Scenario::parse(&text, Path::new("folder/it.toml")).unwrap()
}

fn problem(text: &str) -> String {
    let parsed = Scenario::parse(text, Path::new("it.toml"));
    parsed.err().expect("it is wrong").to_string()
}

async fn ran(text: &str) -> Ran {
    run(&policy().await, &scenario(text)).await.unwrap()
}

fn told(ran: &Ran) -> Vec<String> {
    let all = ran.steps.iter().flat_map(|step| &step.mismatches);
    all.map(|it| format!("{}: {} / {}", it.what, it.expected, it.found))
        .collect()
}

/// Two outdated containers, one of them stopped, and two refreshes.
const TWO: &str = r#"
config = { runtimes = ["hermes"] }
[images]
"IMAGE" = "new"
[containers.ws-a]
image = "IMAGE"
[containers.ws-b]
image = "IMAGE"
state = "exited"
[expect]
pulls = ["IMAGE"]
waves = [["ws-a"]]
[expect.decisions]
ws-a = { verdict = "recreate", rule = "image-moved" }
ws-b = "stale"
[expect.outcomes]
ws-a = "recreated"
[expect.runs]
ws-a = "new"
ws-b = "old"
[[then]]
after = "1h"
containers = { ws-b = { state = "running" } }
recreations = { ws-b = "rolled-back" }
[then.expect]
waves = [["ws-b"]]
decisions = { ws-a = "current", ws-b = "recreate" }
outcomes = { ws-b = "rolled-back" }
runs = { ws-b = "old" }
"#;

#[tokio::test]
async fn expected_result_passes_and_steps_build_on_each_other() {
    let ran = ran(TWO).await;
    assert_eq!(told(&ran), Vec::<String>::new());
    assert!(ran.passed());
    let apart = ran.steps[1].at.duration_since(ran.steps[0].at);
    assert_eq!(apart.as_hours(), 1);
}

#[tokio::test]
async fn mismatch_is_reported_with_the_actual_result() {
    let text = TWO
        .replace("rule = \"image-moved\"", "rule = \"moved\"")
        .replace("ws-b = \"stale\"\n", "")
        .replace("waves = [[\"ws-a\"]]", "waves = []")
        .replace("ws-a = \"recreated\"", "ws-a = \"aborted\"")
        .replace("ws-a = \"new\"", "ws-a = \"other\"");
    let ran = ran(&text).await;
    assert!(!ran.passed());
    let found = told(&ran);
    let reason = "`IMAGE` stands for another image now".replace("IMAGE", IMAGE);
    let stopped = "it is behind `IMAGE`, but has exited".replace("IMAGE", IMAGE);
    assert_eq!(
        found,
        [
            format!("decision about `ws-a`: recreate  moved: … / recreate  image-moved: {reason}"),
            format!("decision about `ws-b`: none / stale  not-running: {stopped}"),
            "waves: [] / [[\"ws-a\"]]".to_owned(),
            "outcome of `ws-a`: aborted / recreated".to_owned(),
            format!("image of `ws-a`: other / what `{IMAGE}` stands for"),
        ]
    );
}

#[tokio::test]
async fn printed_result_is_an_expectation_that_passes() {
    let bare = r#"
config = { runtimes = ["hermes"] }
images = { "IMAGE" = { failed = "rate-limited" } }
containers = { ws-a = { image = "IMAGE" }, other = { image = "IMAGE" } }
[expect]
"#;
    let first = ran(&format!("{bare}waves = [[\"x\"]]\n")).await;
    let met = ran(&format!("{bare}{}", first.steps[0].came_to)).await;
    assert_eq!(told(&met), Vec::<String>::new());
    assert!(first.steps[0].came_to.contains("rule = \"pull-failed\""));
}

#[tokio::test]
async fn refused_configuration_fails_unless_expected() {
    let text = "config = { runtime = 1 }\n[expect]\nwaves = []\n";
    let refused = ran(text).await;
    assert!(!refused.passed());
    assert!(refused.config_problems[0].contains("runtime"));
    let expected = ran("config = { runtime = 1 }\n[expect]\nfailure = \"invalid-config\"\n").await;
    assert_eq!(told(&expected), Vec::<String>::new());
}

#[tokio::test]
async fn unreachable_engine_is_a_valid_scenario() {
    let unlisted = ran("listing-fails = \"it is down\"\n[expect]\nfailure = \"unlisted\"\n").await;
    assert_eq!(told(&unlisted), Vec::<String>::new());
    let text = r#"
config = { runtimes = ["hermes"] }
images = { "IMAGE" = "new" }
containers = { ws-a = { image = "IMAGE", inspection-fails = "it hangs" } }
[expect.decisions]
ws-a = { verdict = "unknown", rule = "inspect-failed" }
"#;
    assert_eq!(told(&ran(text).await), Vec::<String>::new());
}

#[tokio::test]
async fn result_is_reproducible() {
    let policy = policy().await;
    let scenario = scenario(TWO);
    let mut texts = Vec::new();
    for _ in 0..3 {
        let ran = run(&policy, &scenario).await.unwrap();
        texts.push(serde_json::to_string(&ran).unwrap());
    }
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], texts[2]);
}

#[tokio::test]
async fn instructions_are_counted_by_a_metering_engine_and_the_same_each_time() {
    let engine = PolicyEngine::metering().unwrap();
    let policy = engine.load(DEFAULT_POLICY, "built-in").await.unwrap();
    let scenario = scenario(TWO);
    let counted = async || {
        let ran = run(&policy, &scenario).await.unwrap();
        ran.steps[0].cost
    };
    let (first, second) = (counted().await, counted().await);
    assert_eq!(first, second);
    assert!(first.instructions.unwrap() > 10_000, "{first:?}");
    assert!(
        first.memory_bytes >= 64 << 10 && first.host_calls > 5,
        "{first:?}"
    );
    let unmetered = ran(TWO).await.steps[0].cost;
    assert_eq!(unmetered.instructions, None);
}

#[test]
fn scenario_without_expectations_is_invalid() {
    assert_eq!(
        problem(""),
        "`[expect]` expects nothing, so it would pass whatever the policy does"
    );
    assert_eq!(
        problem("[expect]\nwaves = []\n[[then]]\nafter = \"1h\"\n"),
        "`[[then]] 1` expects nothing, so it would pass whatever the policy does"
    );
}

#[test]
fn misspelt_or_missing_key_is_reported() {
    assert!(problem("[expect]\nwave = []\n").contains("unknown field `wave`"));
    assert_eq!(
        problem("[containers.a]\nruns = \"new\"\n[expect]\nwaves = []\n"),
        "container `a` is not in the snapshot, so it needs an `image`"
    );
    assert!(problem("snapshot = \"none.json\"\n[expect]\nwaves = []\n").contains("none.json"));
}

#[test]
fn invalid_image_is_reported() {
    let text = "[images]\n\"a b\" = \"new\"\n[expect]\nwaves = []\n";
    assert!(problem(text).contains("a b"), "{}", problem(text));
}
