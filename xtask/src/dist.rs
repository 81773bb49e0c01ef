//! Builds a distribution: a static program, its companion files, and the context of its image. All of it is in one folder, with
//! SBOMs and checksums. Of the program, this module only knows how it prints its completions.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Failed, cargo, say, step, target_directory};
use crate::sbom;
use crate::setup::{self, root};

/// The root certificates for TLS, as Debian's `ca-certificates` collects them. The image has the same path.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

/// Files below `packaging/` that are copied unchanged.
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
    /// The features for cargo.
    features: &'static [&'static str],
    /// The profile for the request `dist`. Any other profile applies to both programs.
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
            // Disables logs at `trace`, which come from libraries, with one exception.
            "--features",
            "tracing/release_max_level_debug",
        ],
        profile: "dist-runtime",
    },
];

/// The result of a build.
pub(crate) struct Built {
    pub(crate) folder: PathBuf,
    pub(crate) profile: String,
}

/// Build the whole distribution.
pub(crate) fn build(arguments: &[OsString]) -> Result<Built, Failed> {
    let usual = host_target();
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
    // Not `dist`: cargo uses that folder for builds with that profile and without a target.
    let folder = target_directory().join("distribution");
    let ours = folder.join(format!("linux-{}", architecture(&triple)));
    for program in PROGRAMS {
        let profile = match profile.as_str() {
            "dist" => program.profile,
            other => other,
        };
        let built = compile(&program, &triple, profile, root(), &target_directory())?;
        // Both may have this name in the folder, and the next one replaces it.
        copy(&built, &ours.join(program.name), 0o755)?;
        let sbom = format!("{}-linux-{}.cdx.json", program.name, architecture(&triple));
        sbom::write(&triple, program.features, &folder.join(sbom))?;
    }
    for name in FILES {
        let from = root().join("packaging").join(name);
        copy(&from, &folder.join(name), 0o644)?;
    }
    write_image_files(&folder)?;
    if triple == usual {
        write_companions(&ours.join("refit"), &folder)?;
    } else {
        say(
            "xtask: LEFT OUT: completions, man pages and schema, which are made by a program that runs here; `cargo xtask dist` without a target makes them",
        );
    }
    write_checksums(&folder)?;
    say(&format!("xtask: it is in {}", folder.display()));
    Ok(Built { folder, profile })
}

/// The target of this machine.
pub(crate) fn host_target() -> String {
    format!("{}-unknown-linux-musl", env::consts::ARCH)
}

/// Compile a program in a checkout, and return its path.
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

/// The flags that replace the paths of this machine in a program, so that another machine builds the same bytes. If several
/// prefixes fit, rustc takes the last one.
fn without_paths(checkout: &Path, target: &Path) -> Result<String, Failed> {
    let whole = |path: &Path| fs::canonicalize(path).map_err(|error| cannot("find", path, &error));
    create_folder(target)?;
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

/// The architecture's name for the engine and BuildKit.
fn architecture(triple: &str) -> &str {
    match triple.split('-').next().unwrap_or(triple) {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Copy the image's other files.
fn write_image_files(folder: &Path) -> Result<(), Failed> {
    let roots = Path::new("/").join(ROOTS);
    if !roots.is_file() {
        setup::apt("ca-certificates", "the roots that TLS is checked by")?;
    }
    copy(&roots, &folder.join("image").join(ROOTS), 0o644)?;
    // An empty folder that has the image's user as owner.
    create_folder(&folder.join("image/state"))
}

/// Write the files that the program generates about itself.
fn write_companions(program: &Path, folder: &Path) -> Result<(), Failed> {
    for (shell, name) in [
        ("bash", "refit.bash"),
        ("fish", "refit.fish"),
        ("zsh", "_refit"),
    ] {
        let file = folder.join("completions").join(name);
        write_output(program, &["completions", shell], &file)?;
    }
    write_output(
        program,
        &["config", "schema"],
        &folder.join("refit.schema.json"),
    )?;
    // Remove the pages of deleted commands.
    let pages = folder.join("man/man1");
    let _ = fs::remove_dir_all(&pages);
    create_folder(&pages)?;
    step(
        "writing the man pages",
        Command::new(program).arg("man").arg(&pages),
    )
}

fn write_output(program: &Path, arguments: &[&str], file: &Path) -> Result<(), Failed> {
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
        create_folder(above)?;
    }
    fs::write(file, output.stdout).map_err(|error| cannot("write", file, &error))
}

/// Write the checksum of every file, in the format of `sha256sum --check`.
fn write_checksums(folder: &Path) -> Result<(), Failed> {
    let script =
        "find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d '\\n' sha256sum > SHA256SUMS";
    step(
        "counting checksums",
        Command::new("sh").args(["-c", script]).current_dir(folder),
    )
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), Failed> {
    if let Some(above) = to.parent() {
        create_folder(above)?;
    }
    // Remove it first: a running program cannot be overwritten.
    let _ = fs::remove_file(to);
    fs::copy(from, to).map_err(|error| cannot("copy", from, &error))?;
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(to, mode).map_err(|error| cannot("set the mode of", to, &error))
}

fn create_folder(path: &Path) -> Result<(), Failed> {
    fs::create_dir_all(path).map_err(|error| cannot("make", path, &error))
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {act} {}: {error}", path.display()))
}
