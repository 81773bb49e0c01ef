//! A new author's first hour, in each language: a project, its own tests, a component, what it decides, and a swap into a daemon.
//! And the page that tells of it, `docs/authors.md`, run as it is written. No engine.
//!
//! Tools and crates are got once and kept between runs, below cargo's folder for tests; a run begins with a new project all the
//! same.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use refit_tests::Refit;
use serde_json::{Value, json};
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_refit-under-test");

/// A first build in Rust, with two others beside it on a loaded machine.
const STEP: Duration = Duration::from_secs(20 * 60);

/// What takes long to make, and is made of nothing that this repository has.
const KEPT: &[&str] = &["target", ".tools", "node_modules", ".refit"];

const IMAGE: &str = "ghcr.io/acme/app:latest";

/// A project that was made a moment ago, and nobody else's until this is dropped.
struct Project {
    folder: PathBuf,
    /// What `refit policy new` printed.
    made: String,
    _lock: File,
}

impl Project {
    async fn new(language: &str, name: &str) -> anyhow::Result<Self> {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authors");
        let kept = parent.join(format!("{name}.kept"));
        let folder = parent.join(name);
        fs::create_dir_all(&kept)?;
        let lock = File::create(parent.join(format!("{name}.lock")))?;
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
        if folder.exists() {
            move_kept(&folder, &kept)?;
            fs::remove_dir_all(&folder)?;
        }
        let arguments = ["policy", "new", "--lang", language, name];
        let made = run(&parent, PROGRAM, &arguments).await?;
        move_kept(&kept, &folder)?;
        Ok(Self {
            folder,
            made,
            _lock: lock,
        })
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        run(&self.folder, program, arguments).await
    }

    /// `refit policy build`, and where the component is.
    async fn build(&self, name: &str) -> anyhow::Result<PathBuf> {
        let built = self.run(PROGRAM, &["policy", "build"]).await?;
        let component = self.folder.join(format!("build/{name}.wasm"));
        let bytes = fs::read(&component)?;
        let digest = refit::sandbox::digest(&bytes);
        assert_eq!(
            built,
            format!(
                "component   build/{name}.wasm\nsize        {} bytes\ndigest      {digest}\n",
                bytes.len()
            )
        );
        Ok(component)
    }
}

fn move_kept(from: &Path, to: &Path) -> anyhow::Result<()> {
    for name in KEPT {
        let (from, to) = (from.join(name), to.join(name));
        if from.exists() {
            if to.exists() {
                fs::remove_dir_all(&to)?;
            }
            fs::rename(&from, &to)
                .with_context(|| format!("cannot move {} away", from.display()))?;
        }
    }
    Ok(())
}

/// In the environment of whoever runs the tests: tools come by the ways that this machine has. Answers stdout; must end well.
async fn run(folder: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        // The project's `target` is what is kept.
        .env_remove("CARGO_TARGET_DIR");
    let told = format!("`{program} {}`", arguments.join(" "));
    let output = tokio::time::timeout(STEP, command.output())
        .await
        .with_context(|| format!("{told} did not end"))?
        .with_context(|| format!("cannot run {told}"))?;
    let stdout = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{told} failed in {}, {}\n{stdout}{}",
        folder.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// One container for each thing that the policies tell apart.
fn snapshot(image: &Value) -> Value {
    let id = |digit: char| format!("sha256:{}", digit.to_string().repeat(64));
    let container = |name: &str, runs: char, started: &str, state: &str, label: bool| {
        let labels = match label {
            true => json!({"acme.follow": ""}),
            false => json!({}),
        };
        json!({
            "name": name, "id": format!("id-of-{name}"), "image": IMAGE, "image_id": id(runs), "state": state,
            "created": 0, "started": started, "labels": labels,
        })
    };
    let long_ago = "2026-11-20T00:00:00Z";
    let image = match image.as_str() {
        Some(digit) => json!({"id": id(digit.chars().next().unwrap_or('0'))}),
        None => image.clone(),
    };
    json!({
        "snapshot": 1,
        "taken": "2026-11-23T12:00:00Z",
        "containers": [
            container("behind", '1', long_ago, "running", true),
            container("current", '0', long_ago, "running", true),
            container("fresh", '1', "2026-11-23T11:48:00Z", "running", true),
            container("paused", '1', long_ago, "paused", true),
            container("stopped", '1', long_ago, "exited", true),
            container("without-the-label", '1', long_ago, "running", false),
        ],
        "images": {IMAGE: image},
    })
}

/// What a plan with this component says of each container: verdict, rule, reason.
async fn decided(
    component: &Path,
    image: Value,
    flags: &[&str],
) -> anyhow::Result<Vec<[String; 4]>> {
    let refit = Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")?
        .set("grants.images", json!(["ghcr.io/acme/*"]))
        .set("grants.containers", json!(["*"]))
        .file("engine.json", snapshot(&image).to_string())?;
    let component = component.display().to_string();
    let arguments = [
        "plan",
        "--json",
        "--snapshot",
        "engine.json",
        "--policy",
        &component,
    ];
    let report = refit.run(&[&arguments, flags].concat()).await?;
    let status = report.status;
    ensure!(status == 0 || status == 1, "{report}");
    let report = report.json();
    let containers = report["containers"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(containers
        .context("the report has no containers")?
        .iter()
        .map(|it| {
            [
                text(&it["name"]),
                text(&it["verdict"]),
                text(&it["rule"]),
                text(&it["reason"]),
            ]
        })
        .collect())
}

#[track_caller]
fn assert_decided(found: &[[String; 4]], expected: &[[&str; 4]]) {
    let found: Vec<[&str; 4]> = found
        .iter()
        .map(|line| line.each_ref().map(String::as_str))
        .collect();
    assert_eq!(
        found, expected,
        "every language decides the same, in the same words"
    );
}

/// The same for every language.
async fn decides_as_its_readme_says(component: &Path) -> anyhow::Result<()> {
    let moved = format!("`{IMAGE}` stands for another image now");
    let current = format!("it runs what `{IMAGE}` stands for now");
    let fresh = format!("it is behind `{IMAGE}`, but was started 12 min ago");
    let paused = format!("it is behind `{IMAGE}`, but is paused");
    let stopped = format!("it is behind `{IMAGE}`, but has exited");
    assert_decided(
        &decided(component, json!("0"), &[]).await?,
        &[
            ["behind", "recreate", "image-moved", &moved],
            ["current", "current", "up-to-date", &current],
            ["fresh", "stale", "just-started", &fresh],
            ["paused", "stale", "not-running", &paused],
            ["stopped", "stale", "not-running", &stopped],
        ],
    );

    let forced = format!("it already runs `{IMAGE}`, and the request asked to recreate it anyway");
    assert_decided(
        &decided(component, json!("0"), &["--force"]).await?,
        &[
            ["behind", "recreate", "image-moved", &moved],
            ["current", "recreate", "forced", &forced],
            ["fresh", "recreate", "image-moved", &moved],
            ["paused", "stale", "not-running", &paused],
            ["stopped", "stale", "not-running", &stopped],
        ],
    );

    let only = format!("it is behind `{IMAGE}`, and the request asked to recreate nothing");
    assert_decided(
        &decided(
            component,
            json!("0"),
            &["--no-recreate", "--runtime", "app"],
        )
        .await?,
        &[
            ["behind", "stale", "recreate-not-asked", &only],
            ["current", "current", "up-to-date", &current],
            ["fresh", "stale", "recreate-not-asked", &only],
            ["paused", "stale", "not-running", &paused],
            ["stopped", "stale", "not-running", &stopped],
        ],
    );

    for (fault, reason) in [
        (
            "not-found",
            format!("the registry has no `{IMAGE}`, as far as it tells"),
        ),
        (
            "rate-limited",
            format!("the registry limits the rate for `{IMAGE}`, and asks to wait 60 s"),
        ),
        (
            "unavailable",
            format!(
                "`{IMAGE}` could not be reached: cannot reach registry `ghcr.io` for `{IMAGE}`: why"
            ),
        ),
        (
            "no-space",
            format!(
                "this machine has no room for `{IMAGE}`: no space left on the engine's machine for `{IMAGE}`: why"
            ),
        ),
        (
            "other",
            format!("`{IMAGE}` could not be pulled: cannot pull `{IMAGE}`: why"),
        ),
    ] {
        let image = json!({"failed": fault, "message": "why"});
        let names = ["behind", "current", "fresh", "paused", "stopped"];
        let expected = names.map(|name| [name, "unknown", "pull-failed", &reason]);
        assert_decided(&decided(component, image, &[]).await?, &expected);
    }
    Ok(())
}

/// A daemon takes it, and says so.
async fn is_swapped_in(name: &str, component: &Path) -> anyhow::Result<()> {
    let refit = Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")?.set("state_dir", "state");
    let daemon = refit.serve().await?;
    let server = format!("http://{}", daemon.address);
    let component = component.display().to_string();
    let swap = ["policy", "swap", &component, "--server", &server];
    let swapped = refit.run(&swap).await?.expect(0);
    let first = swapped.stdout.lines().next().unwrap_or_default();
    assert_eq!(
        first,
        format!("in use            {name} 0.1.0, generation 2")
    );
    let config = [&swap[..], &["--policy-config", r#"{"image": "x"}"#]].concat();
    let refused = refit.run(&config).await?.expect(1);
    assert!(refused.stderr.contains("image"), "{refused}");
    Ok(())
}

async fn first_hour(language: &str, own_tests: &[&str]) -> anyhow::Result<Project> {
    let name = format!("first-{language}");
    let project = Project::new(language, &name).await?;
    assert!(
        project
            .made
            .contains(&format!("refit policy swap build/{name}.wasm")),
        "{}",
        project.made
    );
    project.run(own_tests[0], &own_tests[1..]).await?;
    let component = project.build(&name).await?;
    let tested = project.run(PROGRAM, &["policy", "test"]).await?;
    let came_to = format!("{name} 0.1.0: 4 passed, 0 failed");
    assert_eq!(tested.lines().last(), Some(came_to.as_str()), "{tested}");
    decides_as_its_readme_says(&component).await?;
    is_swapped_in(&name, &component).await?;
    let checked = project.run(PROGRAM, &["policy", "check"]).await?;
    assert_eq!(
        checked.lines().last(),
        Some("a swap would take it"),
        "{checked}"
    );
    let benched = project
        .run(PROGRAM, &["policy", "bench", "--runs", "1"])
        .await?;
    assert_eq!(benched.lines().count(), 5, "{benched}");
    Ok(project)
}

#[tokio::test]
async fn in_rust() -> anyhow::Result<()> {
    let project = first_hour("rust", &["cargo", "test", "--target-dir", "target"]).await?;
    decides_the_same_each_time(&project).await
}

/// A policy may ask the clock and the dice of its standard library. In a scenario both are the same each time. In Rust, since
/// the other two languages have neither.
async fn decides_the_same_each_time(project: &Project) -> anyhow::Result<()> {
    let source = project.folder.join("src/lib.rs");
    let text = fs::read_to_string(&source)?;
    let choice = "        let choice = candidate.by_default(Strategy::Replace);\n";
    ensure!(text.contains(choice), "the template has another `decide`");
    let by_chance = r#"        let mut choice = candidate.by_default(Strategy::Replace);
        use std::hash::{BuildHasher as _, RandomState};
        let dice = RandomState::new().hash_one(1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        if choice.rule == rule::IMAGE_MOVED {
            choice.reason = format!("at {}, by {dice:016x}", now.unwrap_or_default().as_secs());
        }
"#;
    fs::write(&source, text.replace(choice, by_chance))?;
    project.build("first-rust").await?;
    let test = ["policy", "test", "--json", "scenarios/settled.toml"];
    let first = project.run(PROGRAM, &test).await?;
    assert_eq!(first, project.run(PROGRAM, &test).await?);
    // A plan over a snapshot, likewise.
    let planned = decided(
        &project.folder.join("build/first-rust.wasm"),
        json!("0"),
        &[],
    )
    .await?;
    // 2026-11-23T12:00:00Z, when the snapshot was taken.
    let reason = &planned[0][3];
    assert!(reason.starts_with("at 1795435200, by "), "{reason}");
    assert_eq!(
        planned,
        decided(
            &project.folder.join("build/first-rust.wasm"),
            json!("0"),
            &[]
        )
        .await?
    );
    Ok(())
}

#[tokio::test]
async fn in_python() -> anyhow::Result<()> {
    let tests = ["python3", "-m", "unittest", "discover", "tests"];
    first_hour("python", &tests).await.map(drop)
}

#[tokio::test]
async fn in_javascript() -> anyhow::Result<()> {
    first_hour("javascript", &["npm", "test"]).await.map(drop)
}

/// Whoever writes a policy need not have a platform that is in order.
#[tokio::test]
async fn a_configuration_that_is_broken_is_not_in_the_way() -> anyhow::Result<()> {
    let refit = Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")?
        .file("refit.toml", "no such key = [")?;
    let new = ["policy", "new", "--lang", "javascript", "mine"];
    refit.run(&new).await?.expect(0);
    let again = refit.run(&new).await?.expect(2);
    assert!(
        again.stderr.contains("there is something already"),
        "{again}"
    );
    let built = refit.run(&["policy", "build", "docker"]).await?.expect(2);
    assert!(
        built.stderr.contains("no `policy.toml`, here or above"),
        "{built}"
    );
    refit.run(&["config", "show"]).await?.expect(2);
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_before_anything_is_made() -> anyhow::Result<()> {
    let refit = Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")?;
    let new = ["policy", "new", "--lang", "rust", "Night_Shift"];
    let refused = refit.run(&new).await?.expect(2);
    assert!(
        refused
            .stderr
            .contains("lower case letters, digits and hyphens"),
        "{refused}"
    );
    assert!(!refit.home().join("Night_Shift").exists());
    Ok(())
}

/// Blocks of the guide that begin so are run, from top to bottom, as one session.
const RUN: &str = "<!-- run -->\n```console\n";

/// The commands of a block, each with what it prints on stdout.
fn session(page: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for block in page.split(RUN).skip(1) {
        for line in block.lines().take_while(|line| *line != "```") {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => {}
            }
        }
    }
    commands
}

/// Without what differs from run to run and from machine to machine.
fn settled(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.trim_end().lines() {
        let line: Vec<String> = line.split(' ').map(settled_word).collect();
        words.push(line.join(" ").trim_end().to_owned());
    }
    let text = words.join("\n");
    // `1694938 bytes`, `3.2 s`
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let end = from
            .find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',')
            .unwrap_or(from.len());
        let (number, after) = from.split_at(end);
        let unit = [" bytes", " s", " ms"].iter().any(|unit| {
            after
                .strip_prefix(unit)
                .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
        });
        out += before;
        out += if unit { "N" } else { number };
        rest = after;
    }
    out + rest
}

fn settled_word(word: &str) -> String {
    match word.split_once("sha256:") {
        Some((before, _)) => format!("{before}sha256:…"),
        None => word.to_owned(),
    }
}

#[test]
fn what_differs_from_run_to_run_is_settled() {
    let said = format!(
        "size  1694938 bytes\ndigest sha256:{}\ngeneration 2, 3.25 s  \n",
        "a".repeat(64)
    );
    assert_eq!(
        settled(&said),
        "size  N bytes\ndigest sha256:…\ngeneration 2, N s"
    );
    assert_eq!(settled("started 12 min ago"), "started 12 min ago");
}

#[tokio::test]
async fn the_guide_says_what_happens() -> anyhow::Result<()> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/authors.md");
    let session = session(&fs::read_to_string(guide)?);
    ensure!(
        session.len() >= 5,
        "the guide runs only {} commands",
        session.len()
    );

    let home = tempfile::tempdir()?;
    let bin = home.path().join("bin");
    fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(PROGRAM, bin.join("refit"))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    // Commands read the token that the daemon made from its state folder.
    let state = home.path().join("state").display().to_string();
    let refit =
        Refit::new(PROGRAM, "unix:///nonexistent/docker.sock")?.set("state_dir", state.as_str());
    let daemon = refit.serve().await?;
    // The guide's daemon listens where `refit.toml` says, and so does this one.
    let config = home.path().join("refit.toml");
    fs::write(
        &config,
        format!(
            "state_dir = \"{state}\"\n[serve]\nlisten = \"{}\"\n",
            daemon.address
        ),
    )?;

    let mut folder = home.path().to_owned();
    for (command, expected) in session {
        if let Some(to) = command.strip_prefix("cd ") {
            folder = folder.join(to);
            continue;
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &command])
            .current_dir(&folder)
            .env("PATH", &path)
            .env("REFIT_CONFIG", &config)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(STEP, shell.output())
            .await
            .with_context(|| format!("`{command}` did not end"))??;
        let stdout = String::from_utf8(output.stdout)?;
        if settled(&stdout) != settled(&expected) {
            bail!(
                "docs/authors.md: `{command}` prints, {}\n{stdout}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(())
}
