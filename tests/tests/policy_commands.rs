//! `refit policy test | check | bench | wit` as a person or a CI meets them: exit statuses, what is printed, and bad input. The
//! policy is the built-in one, or bytes that are none. No engine and no daemon.

use std::fs;

use anyhow::Context as _;
use refit::sandbox::DEFAULT_POLICY;
use refit_tests::Refit;
use refit_tests::refit::Output;

const PROGRAM: &str = env!("CARGO_BIN_EXE_refit-under-test");

/// Passes.
const GOOD: &str = r#"
about = "what is behind is recreated"
config = { runtimes = ["hermes"] }
images = { "ghcr.io/molecule-ai/workspace-template-hermes:latest" = "new" }
containers = { ws-a = { image = "ghcr.io/molecule-ai/workspace-template-hermes:latest" } }
[expect]
waves = [["ws-a"]]
decisions = { ws-a = "recreate" }
"#;

fn refit() -> anyhow::Result<Refit> {
    // Nobody listens there: whatever asked an engine would fail.
    Refit::new(PROGRAM, "unix:///nowhere/docker.sock")
}

async fn run(refit: &Refit, arguments: &[&str]) -> anyhow::Result<Output> {
    refit.run(&[&["policy"], arguments].concat()).await
}

#[tokio::test]
async fn scenarios_that_pass_and_fail_are_told_and_counted() -> anyhow::Result<()> {
    let bad = GOOD.replace("ws-a = \"recreate\"", "ws-a = \"stale\"");
    let refit = refit()?
        .file("scenarios/good.toml", GOOD)?
        .file("scenarios/bad.toml", bad)?;
    let arguments = [
        "test",
        "--policy",
        "built-in",
        "scenarios",
        "--junit",
        "report.xml",
    ];
    let told = run(&refit, &arguments).await?.expect(1).stdout;
    assert_eq!(
        told,
        "FAIL  bad  scenarios/bad.toml
  the refresh at 2026-01-01T00:00:00Z
    decision about `ws-a`
      expected  stale
      found     recreate  image-moved: `ghcr.io/molecule-ai/workspace-template-hermes:latest` stands for another image now
    all of it, as it would be expected:
      pulls = [\"ghcr.io/molecule-ai/workspace-template-hermes:latest\"]
      waves = [[\"ws-a\"]]
      [expect.decisions]
      ws-a = { verdict = \"recreate\", rule = \"image-moved\" }
pass  good  what is behind is recreated
workspace 0.1.0: 1 passed, 1 failed
"
    );
    let report = fs::read_to_string(refit.home().join("report.xml"))?;
    let begins = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="2" failures="1" time=""#;
    assert!(report.starts_with(begins), "{report}");
    for part in [
        r#"<testsuite name="workspace 0.1.0" tests="2" failures="1""#,
        r#"<testcase name="bad" classname="scenarios/bad.toml""#,
        r#"<failure message="decision about `ws-a`">"#,
        "found     recreate  image-moved",
        r#"<testcase name="good" classname="scenarios/good.toml""#,
    ] {
        assert!(report.contains(part), "no {part} in\n{report}");
    }
    // One alone, and as JSON.
    let arguments = [
        "test",
        "--policy",
        "built-in",
        "scenarios/good.toml",
        "--json",
    ];
    let json = run(&refit, &arguments).await?.expect(0).json();
    assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &0.into()));
    assert_eq!(
        json["scenarios"][0]["ran"]["steps"][0]["mismatches"],
        serde_json::json!([])
    );
    Ok(())
}

#[tokio::test]
async fn what_is_no_scenario_ends_it_before_anything_runs() -> anyhow::Result<()> {
    let refit = refit()?
        .file("scenarios/a-good.toml", GOOD)?
        .file("scenarios/b-wrong.toml", "[expect]\nwave = []\n")?
        .file("empty/readme.md", "")?;
    let test = async |path| run(&refit, &["test", "--policy", "built-in", path]).await;
    let wrong = test("scenarios").await?.expect(2);
    assert_eq!(wrong.stdout, "");
    wrong.says("error: `scenarios/b-wrong.toml` is no scenario");
    wrong.says("unknown field `wave`");
    test("empty")
        .await?
        .expect(2)
        .says("there is no scenario in `empty`");
    test("nowhere.toml")
        .await?
        .expect(2)
        .says("cannot read the scenario `nowhere.toml`");
    let nowhere = run(&refit, &["test"]).await?.expect(2);
    nowhere.says("policy.toml");
    Ok(())
}

#[tokio::test]
async fn a_check_says_of_each_stage_what_a_swap_would() -> anyhow::Result<()> {
    let refit = refit()?
        .set("grants.verbs", serde_json::json!(["inspect", "pull"]))
        .file("cut.wasm", &DEFAULT_POLICY[..1_000])?;
    let good = run(&refit, &["check", "built-in"]).await?.expect(0).stdout;
    let outcomes: Vec<&str> = good
        .lines()
        .filter_map(|line| line.get(..17))
        .map(str::trim)
        .collect();
    assert_eq!(
        outcomes,
        [
            "pass  fetch",
            "pass  size",
            "pass  signature",
            "pass  parse",
            "pass  imports",
            "pass  compile",
            "pass  link",
            "pass  describe",
            "pass  config",
            "warn  grants",
            "a swap would take"
        ],
        "{good}"
    );
    assert!(
        good.contains("no grant covers that it can recreate containers"),
        "{good}"
    );

    let wrong = r#"{"runtime": "hermes"}"#;
    let refused = run(&refit, &["check", "built-in", "--policy-config", wrong])
        .await?
        .expect(1);
    assert!(
        refused.stdout.contains(
            "FAIL  config     policy `workspace 0.1.0` does not accept its configuration\n"
        ),
        "{refused}"
    );
    assert!(
        refused.stdout.contains("hint: `runtime`: unknown field"),
        "{refused}"
    );

    let cut = run(&refit, &["check", "cut.wasm", "--json"])
        .await?
        .expect(1)
        .json();
    let checks = cut["checks"].as_array().context("a list")?;
    let outcome = |check: &str| {
        let found = checks.iter().find(|line| line["check"] == check);
        found.map(|line| line["outcome"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(cut["passes"], false);
    assert_eq!(outcome("parse").as_deref(), Some("fail"));
    assert_eq!(outcome("config").as_deref(), Some("skipped"));
    run(&refit, &["check", "nowhere.wasm"]).await?.expect(1);
    Ok(())
}

/// The name of an interface, in the import of a component that is otherwise in order.
fn importing(import: &str, function: &str) -> anyhow::Result<Vec<u8>> {
    let text = format!(
        r#"(component (import "{import}" (instance (export "{function}" (func (result u64))))))"#
    );
    Ok(wat::parse_str(text)?)
}

#[tokio::test]
async fn what_a_linker_would_say_is_told_in_words() -> anyhow::Result<()> {
    let refit = refit()?
        .file(
            "newer.wasm",
            importing("refit:policy/docker@0.2.0", "containers")?,
        )?
        .file("more.wasm", importing("refit:policy/host@0.1.0", "zone")?)?
        .file(
            "net.wasm",
            importing("wasi:http/outgoing-handler@0.2.0", "handle")?,
        )?
        .file(
            "other.wasm",
            importing("refit:policy/secrets@0.1.0", "all")?,
        )?;
    for (file, problem, hint) in [
        (
            "newer.wasm",
            "`newer.wasm` speaks `refit:policy/docker@0.2.0`, this host speaks `refit:policy@0.1.0`",
            "with `refit-policy` 0.1.0",
        ),
        (
            "more.wasm",
            "`more.wasm` wants `zone` of `refit:policy/host@0.1.0`, which this host does not have there",
            "take the one that `refit policy wit` prints",
        ),
        (
            "net.wasm",
            "`net.wasm` wants `wasi:http/outgoing-handler@0.2.0`, which this host does not offer",
            "a policy has no network",
        ),
        (
            "other.wasm",
            "`other.wasm` wants `refit:policy/secrets@0.1.0`, which this host does not offer",
            "a policy may import",
        ),
    ] {
        let told = run(&refit, &["check", file]).await?.expect(1).stdout;
        assert!(
            told.contains(&format!("FAIL  imports    {problem}\n")),
            "{told}"
        );
        assert!(told.contains(hint), "{told}");
    }
    let wit = run(&refit, &["wit"]).await?.expect(0).stdout;
    assert!(wit.contains("\npackage refit:policy@0.1.0;\n"));
    Ok(())
}

#[tokio::test]
async fn a_bench_counts_the_same_each_time_and_sees_what_grew() -> anyhow::Result<()> {
    let more = GOOD.replace(
        "containers = {",
        r#"containers = { ws-b = { image = "ghcr.io/molecule-ai/workspace-template-hermes:latest" },"#,
    );
    let refit = refit()?
        .file("one.toml", GOOD)?
        .file("more/one.toml", more)?;
    let bench = async |arguments: &[&str]| {
        let common = ["bench", "--policy", "built-in", "--runs", "2"];
        run(&refit, &[&common, arguments].concat()).await
    };
    let saved = bench(&["one.toml", "--save", "baseline.json"])
        .await?
        .expect(0);
    assert!(saved.stdout.contains("instructions"), "{saved}");
    let same = bench(&[
        "one.toml",
        "--baseline",
        "baseline.json",
        "--threshold",
        "0",
    ])
    .await?;
    assert!(!same.expect(0).stdout.contains("GREW"));
    let grown = bench(&["more/one.toml", "--baseline", "baseline.json"])
        .await?
        .expect(1);
    assert!(grown.stdout.contains("GREW  one: "), "{grown}");
    assert!(grown.stdout.contains("% more instructions"), "{grown}");
    let json = bench(&["one.toml", "--json"]).await?.expect(0).json();
    let one = &json["scenarios"]["one"];
    let baseline: serde_json::Value =
        serde_json::from_slice(&fs::read(refit.home().join("baseline.json"))?)?;
    assert_eq!(
        one["instructions"],
        baseline["scenarios"]["one"]["instructions"]
    );
    assert_eq!(one["decisions"], 1);
    bench(&["one.toml", "--baseline", "none.json"])
        .await?
        .expect(2)
        .says("cannot read the baseline `none.json`");
    Ok(())
}
