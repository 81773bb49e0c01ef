//! The policies of this repository: those in Python and JavaScript, whether they load, say who they are, check a configuration, and
//! decide rightly over a snapshot; all of them, whether they pass the scenarios beside them. `cargo xtask guests` builds them, with tools that it gets; where it cannot, these tests fail with its reason.
//! No engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use refit::author::scenario::{read_all, run};
use refit::capabilities::snapshot::Snapshot;
use refit::capabilities::snapshot::replay::SnapshotCapabilities;
use refit::capabilities::{CallError, Capabilities, PulledImage, Recreated, Recreation};
use refit::engine::{EngineError, PullError};
use refit::model::container::{Container, ContainerSummary};
use refit::model::decision::Verdict;
use refit::model::grants::{GrantPatterns, Grants, Verb};
use refit::model::image::ImageRef;
use refit::model::request::{Request, Trigger};
use refit::recreate::RecreateError;
use refit::sandbox::{
    Clock, Concurrency, DEFAULT_POLICY, Decisions, Failure, Policy, PolicyEngine, PolicyState,
    Session,
};
use serde_json::{Value, json};

/// Python is some seconds of compiling in a debug build, and this machine may be busy.
const CALL: Duration = Duration::from_secs(60);

/// Builds both, or says why not, and answers where they are.
fn components() -> anyhow::Result<Vec<PathBuf>> {
    let built = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--", "guests"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .context("cannot run cargo")?;
    ensure!(
        built.status.success(),
        "`cargo xtask guests` failed:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let paths = String::from_utf8(built.stdout)?;
    Ok(paths.lines().map(PathBuf::from).collect())
}

async fn load(language: &str) -> anyhow::Result<Policy> {
    let built = tokio::task::spawn_blocking(components).await??;
    let path = built
        .iter()
        .find(|path| path.file_stem().is_some_and(|stem| stem == language))
        .with_context(|| format!("there is no {language} policy among {built:?}"))?;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(PolicyEngine::new()?.load(bytes, language).await?)
}

fn image(runtime: &str) -> String {
    format!("ghcr.io/molecule-ai/workspace-template-{runtime}:latest")
}

fn id(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

/// `0` is the image that everybody should run.
fn container(name: &str, image: &str, runs: char, change: Value) -> Value {
    let mut facts = json!({
        "name": name, "id": format!("id-of-{name}"), "image": image, "image_id": id(runs),
        "state": "running", "created": 0,
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        facts[key] = value.clone();
    }
    facts
}

fn snapshot(containers: &[Value]) -> anyhow::Result<Snapshot> {
    let document = json!({
        "snapshot": 1,
        "taken": "2026-11-23T00:00:00Z",
        "containers": containers,
        "images": {
            image("hermes"): {"id": id('0')},
            image("crewai"): {"id": id('0')},
            image("openclaw"): {"failed": "not-found"},
        },
    });
    Ok(Snapshot::parse(document.to_string().as_bytes(), "a test")?)
}

/// One of each kind that a policy tells apart.
fn platform() -> anyhow::Result<Snapshot> {
    let pinned = format!(
        "ghcr.io/molecule-ai/workspace-template-hermes:v1@{}",
        id('7')
    );
    snapshot(&[
        container("db-1", &image("hermes"), '1', json!({})),
        container("ws-behind", &image("hermes"), '1', json!({})),
        container("ws-current", &image("hermes"), '0', json!({})),
        container(
            "ws-elsewhere",
            "ghcr.io/acme/workspace-template-hermes",
            '1',
            json!({}),
        ),
        container(
            "ws-held",
            &image("crewai"),
            '1',
            json!({"labels": {"refit.hold": ""}}),
        ),
        container(
            "ws-neighbour",
            "ghcr.io/molecule-ai/workspace-template-hermes-x",
            '1',
            json!({}),
        ),
        container("ws-pinned", &pinned, '1', json!({})),
        container(
            "ws-stopped",
            &image("hermes"),
            '1',
            json!({"state": "exited"}),
        ),
        container("ws-unpublished", &image("openclaw"), '1', json!({})),
    ])
}

fn request() -> Request {
    Request {
        trigger: Trigger::Operator,
        targets: vec![],
        images: vec![],
        recreate: true,
        force: false,
    }
}

async fn refresh(
    policy: &Policy,
    engine: Arc<dyn Capabilities>,
    request: &Request,
) -> anyhow::Result<Result<Decisions, Failure>> {
    let all = GrantPatterns {
        images: vec!["*".into()],
        containers: vec!["*".into()],
        labels: BTreeMap::new(),
        environment: vec![],
        verbs: vec![Verb::Inspect, Verb::Pull, Verb::Replace],
        followers: false,
    };
    let session = Session {
        capabilities: engine,
        grants: Arc::new(Grants::new(&all)?),
        concurrency: Concurrency {
            inspects: 8,
            pulls: 4,
            recreates: 4,
        },
        state: PolicyState::empty(),
        clock: Clock(jiff::Timestamp::now()),
    };
    Ok(policy.refresh(request, "{}", session, CALL).await?)
}

fn decided(decisions: &Decisions) -> Vec<(&str, Verdict, &str)> {
    let all = decisions.by_container.iter();
    all.map(|(name, it)| (name.as_str(), it.verdict, it.rule.as_str()))
        .collect()
}

/// Who runs the image that everybody should run, now.
async fn current(engine: &SnapshotCapabilities) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let listed = engine.containers().await;
    for listed in listed.map_err(|error| anyhow::anyhow!("{error:?}"))? {
        let container = engine.inspect(&listed).await;
        let container = container.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        if container.image_id.as_str() == id('0') {
            names.push(listed.name);
        }
    }
    Ok(names)
}

/// What both have in common. `held` is where they differ.
async fn decides_rightly(policy: &Policy, held: (Verdict, &str)) -> anyhow::Result<()> {
    let engine = Arc::new(SnapshotCapabilities::new(platform()?, false));
    let decisions = refresh(policy, engine.clone(), &request()).await?;
    let decisions = decisions.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!(
        decided(&decisions),
        [
            ("ws-behind", Verdict::Recreate, "image-moved"),
            ("ws-current", Verdict::Current, "up-to-date"),
            ("ws-held", held.0, held.1),
            ("ws-pinned", Verdict::Recreate, "image-moved"),
            ("ws-stopped", Verdict::Stale, "not-running"),
            ("ws-unpublished", Verdict::Unknown, "pull-failed"),
        ]
    );
    assert_eq!(decisions.targets.len(), 8);
    let reason = &decisions.by_container["ws-behind"].reason;
    assert_eq!(
        *reason,
        format!("`{}` stands for another image now", image("hermes"))
    );
    let mut expected = vec!["ws-behind", "ws-current"];
    expected.extend((held.0 == Verdict::Recreate).then_some("ws-held"));
    expected.push("ws-pinned");
    assert_eq!(current(&engine).await?, expected, "they were recreated");

    let again = refresh(policy, engine, &request()).await?;
    let again = again.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let still = again.by_container.values();
    assert_eq!(
        still.filter(|it| it.verdict == Verdict::Recreate).count(),
        0,
        "nothing is behind twice"
    );
    Ok(())
}

async fn obeys_the_request(policy: &Policy) -> anyhow::Result<()> {
    let engine = Arc::new(SnapshotCapabilities::new(platform()?, false));
    let look = Request {
        targets: vec!["hermes".into()],
        recreate: false,
        ..request()
    };
    let decisions = refresh(policy, engine.clone(), &look).await?;
    let decisions = decisions.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!(
        decisions.by_container["ws-behind"].rule,
        "recreate-not-asked"
    );
    assert!(!decisions.by_container.contains_key("ws-unpublished"));
    assert_eq!(
        current(&engine).await?,
        ["ws-current"],
        "nothing was recreated"
    );

    let force = Request {
        force: true,
        ..request()
    };
    let forced = Arc::new(SnapshotCapabilities::new(platform()?, true));
    let decisions = refresh(policy, forced, &force).await?;
    let decisions = decisions.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!(decisions.by_container["ws-current"].rule, "forced");

    let misspelt = Request {
        targets: vec!["hermess".into()],
        ..request()
    };
    match refresh(policy, engine, &misspelt).await? {
        Err(Failure::UnknownTargets { asked, known }) => {
            assert_eq!(asked, ["hermess"]);
            assert_eq!(known.len(), 8);
        }
        other => panic!("an unknown target was answered with {other:?}"),
    }
    Ok(())
}

/// An engine that cannot list its containers.
struct Unlisted(SnapshotCapabilities);

#[async_trait]
impl Capabilities for Unlisted {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        Err(CallError::Denied("it is not to be seen".into()))
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        self.0.inspect(container).await
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        self.0.pull(image).await
    }

    async fn recreate(&self, wanted: Recreation) -> Result<Recreated, CallError<RecreateError>> {
        self.0.recreate(wanted).await
    }
}

async fn says_what_cannot_be_listed(policy: &Policy) -> anyhow::Result<()> {
    let engine = Arc::new(Unlisted(SnapshotCapabilities::new(platform()?, false)));
    match refresh(policy, engine, &request()).await? {
        Err(Failure::Unlisted { cause, targets }) => {
            assert_eq!(cause, "it is not to be seen");
            assert_eq!(targets.len(), 8, "the images were pulled nevertheless");
        }
        other => panic!("a list that failed was answered with {other:?}"),
    }
    Ok(())
}

async fn checks_its_configuration(policy: &Policy) -> anyhow::Result<()> {
    let schema: Value = serde_json::from_str(&policy.config_schema)?;
    assert_eq!(schema["additionalProperties"], false);
    for good in ["", "{}", r#"{"runtimes": ["hermes"]}"#] {
        let problems = policy.validate_config(good).await?;
        assert_eq!(problems, [], "of `{good}`");
    }
    let wrong =
        r#"{"images": "ghcr.io/acme/app:{runtime}", "runtimes": ["a", "a"], "container": "ws-*"}"#;
    let problems = policy.validate_config(wrong).await?;
    let mut paths: Vec<&str> = problems.iter().map(|it| it.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["container", "images", "runtimes"], "all at once");
    for (wrong, path) in [("[]", ""), ("{", ""), (r#"{"runtimes": []}"#, "runtimes")] {
        let problems = policy.validate_config(wrong).await?;
        assert_eq!(problems.len(), 1, "of `{wrong}`: {problems:?}");
        assert_eq!(problems[0].path, path);
    }
    Ok(())
}

#[tokio::test]
async fn the_python_policy_does_what_its_page_says() -> anyhow::Result<()> {
    let policy = load("python").await?;
    assert_eq!(policy.title(), "canary-python 0.1.0");
    checks_its_configuration(&policy).await?;
    decides_rightly(&policy, (Verdict::Recreate, "image-moved")).await?;
    obeys_the_request(&policy).await?;
    says_what_cannot_be_listed(&policy).await?;

    let mut broken = platform()?;
    let fault = serde_json::from_value(json!("rolled-back"))?;
    broken.recreations.insert("ws-behind".into(), fault);
    let engine = Arc::new(SnapshotCapabilities::new(broken, false));
    let decisions = refresh(&policy, engine.clone(), &request()).await?;
    let decisions = decisions.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    assert_eq!(decisions.by_container["ws-pinned"].rule, "canary-failed");
    assert_eq!(
        current(&engine).await?,
        ["ws-current"],
        "the first one did not come up, so the others stay"
    );
    Ok(())
}

#[tokio::test]
async fn the_javascript_policy_does_what_its_page_says() -> anyhow::Result<()> {
    let policy = load("javascript").await?;
    assert_eq!(policy.title(), "hold-javascript 0.1.0");
    checks_its_configuration(&policy).await?;
    decides_rightly(&policy, (Verdict::Stale, "on-hold")).await?;
    obeys_the_request(&policy).await?;
    says_what_cannot_be_listed(&policy).await
}

/// The scenarios that lie beside each policy of this repository, over its component. `refit policy test` does the same.
async fn passes_its_scenarios(policy: &Policy, folder: &str) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../plugin")
        .join(folder);
    for scenario in read_all(&[folder.join("scenarios")])? {
        let ran = run(policy, &scenario).await?;
        ensure!(ran.passed(), "{}: {ran:#?}", scenario.path.display());
    }
    Ok(())
}

#[tokio::test]
async fn policies_in_rust_pass_their_scenarios() -> anyhow::Result<()> {
    let engine = PolicyEngine::new()?;
    let workspace = engine.load(DEFAULT_POLICY, "workspace").await?;
    passes_its_scenarios(&workspace, "workspace").await?;
    for (name, folder) in [
        ("watchtower", "watchtower"),
        ("canary", "examples/canary"),
        ("quiet-hours", "examples/quiet-hours"),
    ] {
        passes_its_scenarios(&load(name).await?, folder).await?;
    }
    Ok(())
}

#[tokio::test]
async fn policies_in_other_languages_pass_their_scenarios() -> anyhow::Result<()> {
    for name in ["python", "javascript"] {
        passes_its_scenarios(&load(name).await?, &format!("examples/{name}")).await?;
    }
    Ok(())
}
