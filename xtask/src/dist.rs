//! What is handed out: a program that needs nothing of the machine it runs on, what goes along with it, and the context of its
//! image. All of it in one folder, with SBOMs and checksums. Knows how the program is asked for its completions, and nothing else of it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Failed, cargo, say, step, target_directory};
use crate::sbom;
use crate::setup::{self, root};

/// The roots of TLS, as Debian's `ca-certificates` puts them together. In the image they are at the same place.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

/// Below `packaging/`, copied as they are.
const FILES: [&str; 5] = [
    "Dockerfile",
    "compose.yaml",
    "github-workflow.yaml",
    "refit.service",
    "refit.toml",
];

pub(crate) struct Program {
    pub(crate) name: &'static str,
    what: &'static str,
    /// What cargo has to be told.
    features: &'static [&'static str],
    /// Where `dist` was asked for. Any other profile is that of both.
    profile: &'static str,
}

pub(crate) const PROGRAMS: [Program; 2] = [
    Program {
        name: "refit",
        what: "refit",
        features: &[],
        profile: "dist",
    },
    Program {
        name: "refit-runtime",
        what: "refit without a compiler",
        features: &[
            "--no-default-features",
            // Leaves out what is logged at `trace`, which is the libraries' in all but one place.
            "--features",
            "tracing/release_max_level_debug",
        ],
        profile: "dist-runtime",
    },
];

/// What was built.
pub(crate) struct Built {
    pub(crate) folder: PathBuf,
    pub(crate) profile: String,
}

/// Builds all of it.
pub(crate) fn build(arguments: &[OsString]) -> Result<Built, Failed> {
    let usual = usual_target();
    let (mut triple, mut profile) = (usual.clone(), "dist".to_owned());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .and_then(|value| value.to_str())
            .map(str::to_owned);
        match (argument.to_str(), value) {
            (Some("--target"), Some(value)) => triple = value,
            (Some("--profile"), Some(value)) => profile = value,
            _ => {
                return Err(Failed::new(
                    "`dist` takes `--target T` and `--profile P`, and nothing else",
                )
                .hint(format!("a target is, for example, {usual}")));
            }
        }
    }
    setup::all()?;
    setup::musl(&triple)?;
    // Not `dist`: there cargo puts what is built with that profile for no target.
    let folder = target_directory().join("distribution");
    let ours = folder.join(format!("linux-{}", architecture(&triple)));
    for program in PROGRAMS {
        let profile = match profile.as_str() {
            "dist" => program.profile,
            other => other,
        };
        let built = compile(&program, &triple, profile, root(), &target_directory())?;
        // Both may be called so there, and the next one takes its place.
        copy(&built, &ours.join(program.name), 0o755)?;
        let sbom = format!("{}-linux-{}.cdx.json", program.name, architecture(&triple));
        sbom::write(&triple, program.features, &folder.join(sbom))?;
    }
    for name in FILES {
        let from = root().join("packaging").join(name);
        copy(&from, &folder.join(name), 0o644)?;
    }
    image(&folder)?;
    if triple == usual {
        companions(&ours.join("refit"), &folder)?;
    } else {
        say(
            "xtask: LEFT OUT: completions, man pages and schema, which are made by a program that runs here; `cargo xtask dist` without a target makes them",
        );
    }
    checksums(&folder)?;
    say(&format!("xtask: it is in {}", folder.display()));
    Ok(Built { folder, profile })
}

/// Of this machine.
pub(crate) fn usual_target() -> String {
    format!("{}-unknown-linux-musl", env::consts::ARCH)
}

/// Compiles a program in a checkout, and returns where it is.
pub(crate) fn compile(
    program: &Program,
    triple: &str,
    profile: &str,
    checkout: &Path,
    target: &Path,
) -> Result<PathBuf, Failed> {
    step(
        &format!(
            "building {} for {triple} (from nothing this takes a quarter of an hour and more)",
            program.what
        ),
        cargo()
            .args(["build", "--locked", "--package", "refit", "--bin", "refit"])
            .args(program.features)
            .args(["--target", triple, "--profile", profile])
            .current_dir(checkout)
            .env("CARGO_TARGET_DIR", target)
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", without_paths(checkout, target)?),
    )?;
    Ok(target.join(triple).join(profile).join("refit"))
}

/// Flags by which a program names no path of the machine that it was built on, so that another machine builds the same one. Of
/// several prefixes that fit rustc takes the last.
fn without_paths(checkout: &Path, target: &Path) -> Result<String, Failed> {
    let whole = |path: &Path| fs::canonicalize(path).map_err(|error| cannot("find", path, &error));
    folder_at(target)?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut prefixes = Vec::new();
    if let Some(home) = home.filter(|home| home.is_dir()) {
        prefixes.push((whole(&home)?, "/cargo"));
    }
    prefixes.push((whole(checkout)?, "/refit"));
    prefixes.push((whole(target)?, "/target"));
    let flags = prefixes
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    Ok(flags.collect::<Vec<_>>().join("\u{1f}"))
}

/// As the engine and BuildKit call it.
fn architecture(triple: &str) -> &str {
    match triple.split('-').next().unwrap_or(triple) {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the image has beside the program.
fn image(folder: &Path) -> Result<(), Failed> {
    let roots = Path::new("/").join(ROOTS);
    if !roots.is_file() {
        setup::apt("ca-certificates", "the roots that TLS is checked by")?;
    }
    copy(&roots, &folder.join("image").join(ROOTS), 0o644)?;
    // Empty: it is there for its owner.
    folder_at(&folder.join("image/state"))
}

/// What the program says of itself.
fn companions(program: &Path, folder: &Path) -> Result<(), Failed> {
    for (shell, name) in [
        ("bash", "refit.bash"),
        ("fish", "refit.fish"),
        ("zsh", "_refit"),
    ] {
        let file = folder.join("completions").join(name);
        said(program, &["completions", shell], &file)?;
    }
    said(
        program,
        &["config", "schema"],
        &folder.join("refit.schema.json"),
    )?;
    // One of a command that is no more must not stay.
    let pages = folder.join("man/man1");
    let _ = fs::remove_dir_all(&pages);
    folder_at(&pages)?;
    step(
        "writing the man pages",
        Command::new(program).arg("man").arg(&pages),
    )
}

fn said(program: &Path, arguments: &[&str], file: &Path) -> Result<(), Failed> {
    let asked = format!("{} {}", program.display(), arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| Failed::new(format!("cannot run `{asked}`: {error}")))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failed::new(format!("`{asked}` ended with {}", output.status)).hint(told));
    }
    if let Some(above) = file.parent() {
        folder_at(above)?;
    }
    fs::write(file, output.stdout).map_err(|error| cannot("write", file, &error))
}

/// Of every file, in the form that `sha256sum --check` reads.
fn checksums(folder: &Path) -> Result<(), Failed> {
    let script =
        "find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d '\\n' sha256sum > SHA256SUMS";
    step(
        "counting checksums",
        Command::new("sh").args(["-c", script]).current_dir(folder),
    )
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), Failed> {
    if let Some(above) = to.parent() {
        folder_at(above)?;
    }
    // Away with it first: a program that runs cannot be written over.
    let _ = fs::remove_file(to);
    fs::copy(from, to).map_err(|error| cannot("copy", from, &error))?;
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(to, mode).map_err(|error| cannot("set the mode of", to, &error))
}

fn folder_at(path: &Path) -> Result<(), Failed> {
    fs::create_dir_all(path).map_err(|error| cannot("make", path, &error))
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {act} {}: {error}", path.display()))
}
