//! `cargo xtask`: the tasks of this repository. Each installs its own requirements first, so that a machine with rustup is enough.
//!
//! It uses the standard library only, because a newcomer builds it first, in seconds. [`setup`] installs missing requirements,
//! [`tools`] installs cargo tools, [`engine`] installs other versions of the engine. [`guests`] builds the example policies,
//! [`docs`] the site and [`dist`] the distribution; [`sbom`] lists the parts of that, and [`reproducible`] builds it twice.
//! [`dependencies`] checks the crates, [`fuzz`] the parsers, [`prose`] the pages. [`run`] runs programs and prints the long steps.
//! The other tasks are here.

mod dependencies;
mod dist;
mod docs;
mod engine;
mod fuzz;
mod guests;
mod prose;
mod reproducible;
mod run;
mod sbom;
mod setup;
mod tools;

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

use crate::run::{Failed, cargo, step, target_directory};

const USAGE: &str = "\
usage: cargo xtask <chore>

  demo         start a registry, publish two versions of eight images, and let `refit` refresh running containers
  test [ARGS]  run all tests; ARGS go to `cargo test --workspace`
  test unit [ARGS]
               run the unit tests, which need no engine
  lint         check formatting, the prose of the pages, clippy, documentation, and the dependencies (cargo-deny)
  dependencies check licenses, bans, sources and advisories of the crates; `lint` does so too
  prose [PAGE...]
               count the idioms of xtask/prose.txt in the pages, as `lint` does, or show those of PAGEs
  guests       build the example policies in Python, JavaScript and Rust, and print where they are
  bench [ARGS] measure what policies cost; ARGS go to `cargo bench --package refit`
  dist [ARGS]  build what is handed out: static programs, completions, man pages, the context of the image;
               `--target T` for another machine than this one, `--profile P` for another profile than `dist`
  image [ARGS] the same, and the test that builds an image of it and has it refresh containers on a real engine
  bench engine [ARGS]
               measure what replacing containers costs, on a real engine and beside other updaters; ARGS go to `measure`
  engine RELEASE
               get the engine of another Debian release (`trixie`, say) and print its folder, for TEST_ENGINE_SYSTEM
  docs         build the site of docs/, where a dead link is an error
  references   write the pages of docs/ anew that are made of the program: commands, keys of the
               configuration, the HTTP interface
  fuzz [--seconds N] [TARGET...]
               run the fuzz targets for N seconds each, by default 60
  reproducible [--profile P] [PROGRAM...]
               build what is handed out twice, in two folders, and compare the bytes
  setup        get what building and testing takes: a C compiler, the wasm32-wasip2 target

Build output goes to CARGO_TARGET_DIR, by default `refit/target` in your cache folder, where it outlives a checkout.
Engine and registry come from DOCKER_HOST, a running Docker, or Debian's packages, which root has installed where missing; with
TEST_ENGINE_SYSTEM the engine is that of the Debian in this folder.
";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let chore = arguments.next();
    let rest: Vec<OsString> = arguments.collect();
    let done = match (chore.as_deref().and_then(|chore| chore.to_str()), &rest[..]) {
        (Some("demo"), []) => demo(),
        (Some("test"), arguments) => test(arguments),
        (Some("lint"), []) => lint(),
        (Some("fuzz"), arguments) => fuzz::run(arguments),
        (Some("reproducible"), arguments) => reproducible::check(arguments),
        (Some("dependencies"), []) => dependencies::check(),
        (Some("prose"), pages) => prose::report(pages),
        (Some("guests"), []) => {
            guests::build().map(|components| guests::print_components(&components))
        }
        (Some("bench"), [engine, arguments @ ..]) if engine == "engine" => bench_engine(arguments),
        (Some("bench"), arguments) => bench(arguments),
        (Some("dist"), arguments) => dist::build(arguments).map(|_| ()),
        (Some("image"), arguments) => image(arguments),
        (Some("engine"), [release]) => {
            engine::install(&release.to_string_lossy()).map(|system| engine::print_folder(&system))
        }
        (Some("engine"), _) => return unusable("`engine` takes the name of a Debian release"),
        (Some("docs"), []) => docs::build(),
        (Some("references"), []) => references(),
        (Some("setup"), []) => setup::all(),
        (Some("help" | "--help" | "-h"), _) => {
            run::say(USAGE.trim_end());
            return ExitCode::SUCCESS;
        }
        (
            Some(
                chore @ ("demo" | "dependencies" | "docs" | "guests" | "lint" | "references"
                | "setup"),
            ),
            _,
        ) => {
            return unusable(&format!("`{chore}` takes no arguments"));
        }
        (Some(other), _) => return unusable(&format!("there is no chore `{other}`")),
        (None, _) => return unusable("no chore is named"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            run::say(&failed.to_string());
            ExitCode::FAILURE
        }
    }
}

fn unusable(problem: &str) -> ExitCode {
    run::say(&format!("error: {problem}\n\n{USAGE}"));
    ExitCode::from(2)
}

fn demo() -> Result<(), Failed> {
    setup::all()?;
    // Build the whole workspace like the tests: another selection would have other features, and build all dependencies again.
    step(
        "building refit and the demo (from nothing this takes minutes)",
        cargo().args(["build", "--workspace", "--exclude", "xtask", "--bins"]),
    )?;
    let binaries = target_directory().join("debug");
    step(
        "running the demo",
        Command::new(binaries.join("demo")).arg(binaries.join("refit")),
    )
}

fn image(arguments: &[OsString]) -> Result<(), Failed> {
    let built = dist::build(arguments)?;
    step(
        "testing the program and its image",
        cargo()
            .args(["test", "--workspace", "--test", "image", "--"])
            // One of these tests measures time.
            .arg("--test-threads=1")
            .env("REFIT_DIST", built.folder)
            .env("REFIT_DIST_PROFILE", built.profile),
    )
}

fn references() -> Result<(), Failed> {
    setup::all()?;
    step(
        "building refit and what writes the pages (from nothing this takes minutes)",
        cargo().args(["build", "--workspace", "--exclude", "xtask", "--bins"]),
    )?;
    let programs = target_directory().join("debug");
    step(
        "writing the pages",
        &mut Command::new(programs.join("references")),
    )?;
    step(
        "writing the page of the HTTP interface",
        Command::new("node")
            .arg("docs/.vitepress/scripts/http.mjs")
            .env("REFIT", programs.join("refit")),
    )
}

/// `unit [ARGS]` for those tests alone that take no engine and no registry.
fn test(arguments: &[OsString]) -> Result<(), Failed> {
    setup::all()?;
    if let [unit, arguments @ ..] = arguments
        && unit == "unit"
    {
        return step(
            "building and running the unit tests",
            cargo()
                .args(["test", "--workspace", "--lib", "--bins"])
                .args(arguments),
        );
    }
    step(
        "building and running all tests (from nothing this takes minutes)",
        cargo()
            .args(["test", "--workspace"])
            .args(arguments)
            .env("RUST_TEST_THREADS", test_threads()),
    )
}

/// Most tests wait for an engine, a grace time or a health check, so more of them than cores run at once. Twice as many halved the
/// longest suite on two cores.
fn test_threads() -> OsString {
    env::var_os("RUST_TEST_THREADS").unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * cores).to_string().into()
    })
}

fn bench(arguments: &[OsString]) -> Result<(), Failed> {
    setup::all()?;
    let components = guests::build()?;
    let folder = components[0].parent().unwrap_or(&components[0]);
    step(
        "measuring (from nothing, building takes minutes)",
        cargo()
            .args(["bench", "--package", "refit"])
            .args(["--bench", "policy", "--bench", "memory"])
            .args(arguments)
            .env("BENCH_GUESTS", folder),
    )
}

fn bench_engine(arguments: &[OsString]) -> Result<(), Failed> {
    setup::all()?;
    step(
        "building an optimised refit (from nothing this takes minutes)",
        cargo().args(["build", "--workspace", "--profile", "bench", "--bins"]),
    )?;
    let binaries = target_directory().join("release");
    step(
        "measuring",
        Command::new(binaries.join("measure"))
            .arg(binaries.join("refit"))
            .args(arguments),
    )
}

fn lint() -> Result<(), Failed> {
    setup::all()?;
    setup::component("rustfmt", "cargo-fmt")?;
    setup::component("clippy", "cargo-clippy")?;
    step(
        "checking formatting",
        cargo().args(["fmt", "--all", "--check"]),
    )?;
    prose::check()?;
    step(
        "clippy, on everything that runs here",
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    step(
        "clippy, on refit without a compiler",
        cargo().args([
            "clippy",
            "--package",
            "refit",
            "--no-default-features",
            "--lib",
            "--bins",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    // Separate from the above, since it requires `cargo xtask dist` to be built.
    step(
        "clippy, on the test of what is handed out",
        cargo().args([
            "clippy",
            "--workspace",
            "--test",
            "image",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    step(
        "clippy, on the policies as components",
        cargo()
            .args(["clippy", "--lib", "--package", "refit-policy-workspace"])
            .args(guests::rust_packages().flat_map(|package| ["--package".to_owned(), package]))
            .args(["--target", setup::WASM, "--", "-D", "warnings"]),
    )?;
    step(
        "building the documentation",
        cargo()
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    dependencies::check()
}
