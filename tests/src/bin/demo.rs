//! The whole job, once, before your eyes: eight images in a registry, running workspaces, a second version, `refit plan`,
//! `refit refresh`. Everything in it is real, and all of it is gone at the end.
//!
//! `demo REFIT` runs the program REFIT. `cargo xtask demo` builds both.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};
use refit_tests::registry::{self, Registry};
use refit_tests::world::{Running, Stamp};
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

const RUNTIMES: [&str; 8] = [
    "claude-code",
    "langgraph",
    "crewai",
    "autogen",
    "deepagents",
    "hermes",
    "gemini-cli",
    "openclaw",
];
/// Of this one no second version is published: its workspace is to be left alone.
const UNCHANGED: &str = "openclaw";
/// Of these somebody runs a workspace.
const USED: [&str; 4] = ["claude-code", "hermes", "langgraph", UNCHANGED];
/// Where each program writes down when it started and stopped, in its volume.
const STAMPS: &str = "stamps";
/// What a user set. It must be there before and after.
const USER_VARIABLE: (&str, &str) = ("OPERATOR", "ana");

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let refit = std::env::args_os().nth(1).map(PathBuf::from).context(
        "cannot tell which program to run: `demo REFIT`, or `cargo xtask demo`, which builds it",
    )?;
    with_world("demo", |world| async move {
        // Whoever gives up waiting must find nothing left over either, so a signal ends the body and not the process.
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = demo(&world, &refit) => done,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to stop"),
        }
    })
    .await?;
    say("\nCleaned up: containers, images, volumes, networks, registry.");
    Ok(())
}

async fn demo(world: &World, refit: &Path) -> anyhow::Result<()> {
    let engine = world.docker().version().await?;
    let registry = registry::open().await?;
    say(&format!(
        "Engine    Docker {}, API {}, at {}\nRegistry  {}",
        engine.version.unwrap_or_default(),
        engine.api_version.unwrap_or_default(),
        world.docker_host(),
        registry.host()
    ));

    title("1. A workflow publishes version v1 of eight workspace images");
    publish(world, registry, "v1", &RUNTIMES).await?;

    title("2. Somebody works in four of them");
    let network = world.network("platform").await?;
    let mut before = Vec::new();
    for runtime in USED {
        let workspace = start(world, registry, runtime, &network).await?;
        before.push(look(world, &workspace.name, runtime).await?);
    }
    table(&before);

    title(&format!(
        "3. The workflow publishes v2 of all but {UNCHANGED}"
    ));
    let renewed: Vec<&str> = RUNTIMES
        .into_iter()
        .filter(|runtime| *runtime != UNCHANGED)
        .collect();
    publish(world, registry, "v2", &renewed).await?;

    let folder = tempfile::tempdir().context("cannot create a directory for the demo")?;
    let config = configuration(world, registry);
    std::fs::write(folder.path().join("refit.toml"), &config)
        .context("cannot write the demo's refit.toml")?;
    title("4. What would a refresh do? With this refit.toml:");
    say(&indented(&config));
    run(world, refit, folder.path(), "plan", Progress::Hidden).await?;

    title("5. Do it");
    run(world, refit, folder.path(), "refresh", Progress::Shown).await?;

    title("6. The same four workspaces now");
    let mut after = Vec::new();
    for runtime in USED {
        after.push(look(world, &world.name(runtime), runtime).await?);
    }
    table(&after);

    title("7. Once more: nothing is left to do");
    run(world, refit, folder.path(), "refresh", Progress::Hidden).await?;
    judge(&before, &after)
}

async fn publish(
    world: &World,
    registry: &Registry,
    version: &str,
    runtimes: &[&str],
) -> anyhow::Result<()> {
    let began = Instant::now();
    for runtime in runtimes {
        // A megabyte each, so that there is something to pull.
        world
            .publish(registry, runtime, ImageSpec::new(version).filling(1 << 20))
            .await?;
    }
    say(&format!(
        "   {} images, {:.1} s",
        runtimes.len(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// A workspace with what people give theirs: a volume, a name in a network, a variable.
async fn start(
    world: &World,
    registry: &Registry,
    runtime: &str,
    network: &str,
) -> anyhow::Result<Running> {
    let volume = world.volume(runtime).await?;
    let spec = ContainerSpec::new(runtime, &world.reference(registry, runtime))
        .network(network, &[runtime])
        .volume(&volume, "/data")
        .env("STAMP_FILE", &format!("/data/{STAMPS}"))
        .env(USER_VARIABLE.0, USER_VARIABLE.1);
    world.run(spec).await
}

/// The policy's own words and the host's grants, for this registry and these workspaces only: an engine may be shared.
fn configuration(world: &World, registry: &Registry) -> String {
    let images = world.template(registry);
    let granted = images.replace("{runtime}:latest", "*");
    let containers = world.name("*");
    format!(
        "[policy.config]\nimages = \"{images}\"\ncontainers = \"{containers}\"\n\n\
         [grants]\nimages = [\"{granted}\"]\ncontainers = [\"{containers}\"]\n"
    )
}

/// What `refit` writes to stderr while it works. The report on stdout says all of it again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Shown,
    Hidden,
}

/// Runs `refit` as a person would, on this engine and with nobody's settings but ours, and shows what it says.
async fn run(
    world: &World,
    refit: &Path,
    folder: &Path,
    command: &str,
    progress: Progress,
) -> anyhow::Result<()> {
    let hidden = progress == Progress::Hidden;
    say(&format!(
        "\n$ refit {command} --config refit.toml{}",
        if hidden { " 2>progress" } else { "" }
    ));
    let own = |name: &OsString| {
        let name = name.to_string_lossy();
        ["REFIT_", "GHCR_", "DOCKER_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            || name == "MOLECULE_IMAGE_PLATFORM"
    };
    let mut refit = Command::new(refit);
    for (name, _) in std::env::vars_os().filter(|(name, _)| own(name)) {
        refit.env_remove(name);
    }
    let kept = folder.join("progress");
    if hidden {
        let file = std::fs::File::create(&kept).context("cannot write the progress to a file")?;
        refit.stderr(file);
    }
    let status = refit
        // Refit does not take a configuration from the folder it is run in.
        .args([command, "--config", "refit.toml"])
        .current_dir(folder)
        .env("DOCKER_HOST", world.docker_host())
        .env("REFIT_STATE_DIR", folder.join("state"))
        .stdin(Stdio::null())
        // A demo that is interrupted takes its program along.
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot run refit")?;
    if !status.success() {
        let said = std::fs::read_to_string(&kept).unwrap_or_default();
        bail!("`refit {command}` did not do what it was to do ({status})\n{said}");
    }
    Ok(())
}

/// A workspace as its owner sees it.
struct Seen {
    name: String,
    id: String,
    /// What it says to whoever connects.
    version: String,
    /// Of the variables: the image's, which should follow the image, and the user's, which should stay.
    from_image: String,
    from_user: String,
    aliases: bool,
    stamps: Vec<Stamp>,
}

async fn look(world: &World, name: &str, runtime: &str) -> anyhow::Result<Seen> {
    world.until_listening(name).await?;
    let inspected = world.inspect(name).await?;
    let variables = inspected
        .config
        .and_then(|config| config.env)
        .unwrap_or_default();
    let variable = |name: &str| {
        let value = variables
            .iter()
            .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or("(unset)").to_owned()
    };
    let networks = inspected
        .network_settings
        .and_then(|settings| settings.networks);
    let aliases = networks.unwrap_or_default().into_values().any(|endpoint| {
        endpoint
            .aliases
            .unwrap_or_default()
            .iter()
            .any(|alias| alias == runtime)
    });
    let volume = format!("{}-{runtime}", world.prefix());
    Ok(Seen {
        name: name.to_owned(),
        id: inspected.id.unwrap_or_default().chars().take(12).collect(),
        version: world.read_line(name).await?,
        from_image: variable("MODEL_DEFAULT"),
        from_user: variable(USER_VARIABLE.0),
        aliases,
        stamps: world.volume_stamps(&volume, STAMPS).await?,
    })
}

impl Seen {
    /// From its last stop to its next listening, by the program's own clock. `None` where it never stopped.
    fn downtime_ms(&self) -> Option<u64> {
        let stop = self
            .stamps
            .iter()
            .rposition(|stamp| stamp.event == "stop")?;
        let listen = self.stamps[stop..]
            .iter()
            .find(|stamp| stamp.event == "listen")?;
        Some(listen.at_ms.saturating_sub(self.stamps[stop].at_ms))
    }

    /// The versions that wrote to the volume, in order: what an earlier one wrote is still there.
    fn history(&self) -> String {
        let starts = self.stamps.iter().filter(|stamp| stamp.event == "start");
        let versions: Vec<&str> = starts.map(|stamp| stamp.version.as_str()).collect();
        versions.join(", ")
    }
}

fn table(seen: &[Seen]) {
    let width = seen
        .iter()
        .map(|it| it.name.len())
        .max()
        .unwrap_or_default();
    say(&format!(
        "   {:<width$}  {:<12}  answers  MODEL_DEFAULT  {:<8}  alias  volume written by  down",
        "container", "id", USER_VARIABLE.0
    ));
    for it in seen {
        let down = it
            .downtime_ms()
            .map_or("never".to_owned(), |ms| format!("{ms} ms"));
        let alias = if it.aliases { "yes" } else { "NO" };
        say(&format!(
            "   {:<width$}  {:<12}  {:<7}  {:<13}  {:<8}  {alias:<5}  {:<17}  {down}",
            it.name,
            it.id,
            it.version,
            it.from_image,
            it.from_user,
            it.history()
        ));
    }
}

/// A demo that shows a failure as if it were none would be worse than none.
fn judge(before: &[Seen], after: &[Seen]) -> anyhow::Result<()> {
    for (before, after) in before.iter().zip(after) {
        let name = &after.name;
        let (version, history) = if name.ends_with(UNCHANGED) {
            if before.id != after.id {
                bail!("{name} was up to date, and was replaced all the same");
            }
            ("v1", "v1")
        } else {
            ("v2", "v1, v2")
        };
        let wanted = [
            version,
            &format!("model-{version}"),
            USER_VARIABLE.1,
            history,
        ];
        let got = [
            after.version.as_str(),
            &after.from_image,
            &after.from_user,
            &after.history(),
        ];
        if wanted != got || !after.aliases {
            bail!(
                "{name} is not as it should be: {got:?} instead of {wanted:?}, alias kept: {}",
                after.aliases
            );
        }
    }
    Ok(())
}

fn title(text: &str) {
    say(&format!("\n{text}"));
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("   {line}").trim_end().to_owned())
        .collect();
    lines.join("\n")
}

fn say(text: &str) {
    // A reader that went away is no reason to leave containers behind.
    let _ = writeln!(std::io::stdout(), "{text}");
    let _ = std::io::stdout().flush();
}
