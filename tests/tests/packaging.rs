//! The files in `packaging/`, each held against what those say who wrote the format: the schemas of Compose and of GitHub's
//! workflows, systemd's own check, and ours for `refit.toml`. No engine, but PyPI once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, ensure};
use refit::config::{self, Config};
use serde_json::Value;
use tempfile::TempDir;

/// Brings the schemas of Compose and GitHub along, as they were at its release.
const CHECKER: &str = "check-jsonschema==0.39.0";

/// systemd's own measure of how much a service could do, times ten: 100 is everything. What is left to Refit is the network, the
/// socket of the engine, and memory that is made executable.
const EXPOSURE_MAX: u32 = 20;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging")
        .join(name)
}

/// What a program says, and whether it was content.
fn run(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    Ok((output.status.success(), told))
}

/// The checker, installed once into a folder of its own.
fn checker() -> anyhow::Result<PathBuf> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(CHECKER);
    let checker = folder.join("bin/check-jsonschema");
    if checker.is_file() {
        return Ok(checker);
    }
    let (made, told) = run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder))?;
    ensure!(made, "python3 with venv is needed: {told}");
    let (got, told) = run(Command::new(folder.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        CHECKER,
    ]))?;
    ensure!(got, "cannot get {CHECKER}: {told}");
    Ok(checker)
}

fn check(arguments: &[&str], file: &Path) -> anyhow::Result<(bool, String)> {
    run(Command::new(checker()?).args(arguments).arg(file))
}

struct Schema {
    _folder: TempDir,
    path: String,
}

fn schema() -> anyhow::Result<Schema> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("refit.schema.json");
    fs::write(&path, config::schema::text())?;
    let path = path.to_string_lossy().into_owned();
    Ok(Schema {
        _folder: folder,
        path,
    })
}

#[test]
fn the_compose_file_is_one() -> anyhow::Result<()> {
    let builtin = ["--builtin-schema", "vendor.compose-spec"];
    let (good, told) = check(&builtin, &packaging("compose.yaml"))?;
    ensure!(good, "{told}");
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("compose.yaml");
    let text = fs::read_to_string(packaging("compose.yaml"))?;
    fs::write(&wrong, text.replace("cap_drop:", "cap_dorp:"))?;
    let (good, told) = check(&builtin, &wrong)?;
    ensure!(
        !good && told.contains("cap_dorp"),
        "it finds nothing: {told}"
    );
    Ok(())
}

#[test]
fn the_workflow_is_one() -> anyhow::Result<()> {
    let builtin = ["--builtin-schema", "vendor.github-workflows"];
    let (good, told) = check(&builtin, &packaging("github-workflow.yaml"))?;
    ensure!(good, "{told}");
    Ok(())
}

#[test]
fn the_schema_is_one_and_the_example_and_the_defaults_keep_to_it() -> anyhow::Result<()> {
    let schema = schema()?;
    let (good, told) = check(&["--check-metaschema"], Path::new(&schema.path))?;
    ensure!(good, "{told}");
    let by_ours = ["--schemafile", &schema.path];
    let (good, told) = check(&by_ours, &packaging("refit.toml"))?;
    ensure!(good, "{told}");
    // As `refit config show` would print them, without what is unset.
    let folder = tempfile::tempdir()?;
    let defaults = folder.path().join("defaults.json");
    fs::write(
        &defaults,
        without_null(serde_json::to_value(Config::default())?).to_string(),
    )?;
    let (good, told) = check(&by_ours, &defaults)?;
    ensure!(good, "{told}");
    Ok(())
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(key, value)| (key, without_null(value)))
                .collect()
        }
        other => other,
    }
}

/// Both judges, over the same lines: what one refuses the other refuses.
#[test]
fn the_schema_refuses_what_the_program_refuses() -> anyhow::Result<()> {
    let schema = schema()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("refit.toml");
    for (text, right) in [
        ("engine = \"unix:///run/docker.sock\"", true),
        ("polcy = \"x\"", false),
        ("[limits]\npull_second = 5", false),
        ("[limits]\nengine_seconds = 0", false),
        ("[limits]\npull_seconds = 604801", false),
        ("[limits]\npull_seconds = \"long\"", false),
        ("[limits]\nrecreate_concurrency = 0", false),
        ("[limits]\ncompile_megabytes = 0", false),
        ("[proof]\ngrace_seconds = 604800", true),
        ("[proof]\nhealth_seconds = 604801", false),
        ("[history]\nkeep = 0", true),
        ("[history]\nkeep = 30001", false),
        ("[history]\nkeep_days = 0", false),
        ("[grants]\nverbs = [\"destroy\"]", false),
        ("[grants]\nlabels = { \"acme.refresh\" = \"yes\" }", true),
        ("[images]\nplatform = \"\"", true),
        ("[images]\nplatform = \"linux/arm64/v8\"", true),
        ("[images]\nplatform = \"amd64\"", false),
        ("[policy]\ncomponent = \"canary.wasm\"", true),
        (
            "[policy]\ncomponent = \"oci://ghcr.io/acme/canary:1.2.0\"",
            true,
        ),
        ("[policy]\ncomponent = \"oci://ghcr.io/acme/canary\"", false),
        ("[policy.config]\nanything = { at = [\"all\"] }", true),
        ("[[policy.keys]]\nname = \"release\"", false),
        ("[serve]\nlisten = \"[::1]:8787\"", true),
        ("[serve]\nlisten = \"localhost\"", false),
    ] {
        fs::write(&file, text)?;
        let (by_schema, told) = check(&["--schemafile", &schema.path], &file)?;
        let by_program = config::load(Some(&file), &config::Flags::default());
        ensure!(by_schema == right, "the schema, of `{text}`: {told}");
        let by_program = by_program.map(drop).map_err(|error| error.to_string());
        ensure!(
            by_program.is_ok() == right,
            "the program, of `{text}`: {by_program:?}"
        );
    }
    Ok(())
}

#[test]
fn the_unit_is_one_that_leaves_little_to_the_service() -> anyhow::Result<()> {
    refit_tests::install_systemd()?;
    let folder = tempfile::tempdir()?;
    let unit = folder.path().join("refit.service");
    let text = fs::read_to_string(packaging("refit.service"))?;
    // The program need not be installed here.
    let place = "/usr/local/bin/refit";
    ensure!(text.contains(place), "the program is elsewhere");
    fs::write(&unit, text.replace(place, "/bin/true"))?;
    let (good, told) = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit))?;
    ensure!(good && told.trim().is_empty(), "{told}");
    let (good, told) = run(Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={EXPOSURE_MAX}"))
        .arg(&unit))?;
    ensure!(good, "{told}");
    Ok(())
}
