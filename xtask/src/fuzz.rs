//! Runs the targets of `fuzz/`, one after another, each for some time. Every run starts with the corpus in `fuzz/corpus` and with
//! the inputs that earlier runs found, which are stored next to cargo's output.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::run::{Failed, say, step_within, target_directory};
use crate::setup::{self, root};
use crate::tools;

const SECONDS: u64 = 60;

/// The time for building all targets from scratch, and for the overhead of a run.
const BUILD_TIMEOUT: Duration = Duration::from_secs(60 * 60);
const RUN_MARGIN: Duration = Duration::from_secs(120);

/// The time limit of one input. The largest of the corpus takes milliseconds.
const INPUT_SECONDS: u32 = 10;
const INPUT_BYTES_MAX: u32 = 64 << 10;
const MEMORY_MEGABYTES: u32 = 2048;

/// The arguments are `[--seconds N] [TARGET…]`; without targets all of them run.
pub(crate) fn run(arguments: &[OsString]) -> Result<(), Failed> {
    let known = targets()?;
    let (mut seconds, mut wanted) = (SECONDS, Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let argument = argument.to_string_lossy().into_owned();
        if argument == "--seconds" {
            let value = arguments
                .next()
                .and_then(|value| value.to_str()?.parse().ok());
            seconds = value.ok_or_else(|| Failed::new("`--seconds` takes a number"))?;
        } else if known.contains(&argument) {
            wanted.push(argument);
        } else {
            let known = known.join(", ");
            return Err(Failed::new(format!("there is no fuzz target `{argument}`"))
                .hint(format!("the targets are {known}")));
        }
    }
    if wanted.is_empty() {
        wanted = known;
    }
    setup::all()?;
    let output = target_directory().join("fuzz");
    step_within(
        "building the fuzz targets (from nothing this takes ten minutes and more)",
        // Coverage only: the fuzzed code is Rust without `unsafe`, and the address sanitizer needs a nightly toolchain.
        tools::FUZZ
            .command()?
            .args(["build", "--sanitizer", "none", "--target-dir"])
            .arg(&output)
            .current_dir(root()),
        BUILD_TIMEOUT,
    )?;
    for target in wanted {
        fuzz(&target, seconds, &output)?;
    }
    Ok(())
}

fn fuzz(target: &str, seconds: u64, output: &Path) -> Result<(), Failed> {
    let found = output.join("corpus").join(target);
    fs::create_dir_all(&found)
        .map_err(|error| Failed::new(format!("cannot create {}: {error}", found.display())))?;
    let fuzzed = step_within(
        &format!("fuzzing `{target}` ({seconds} s)"),
        tools::FUZZ
            .command()?
            .args(["run", "--sanitizer", "none", "--target-dir"])
            .arg(output)
            .arg(target)
            // libFuzzer writes new inputs to the first folder.
            .arg(&found)
            .arg(root().join("fuzz/corpus").join(target))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MEGABYTES}"))
            .arg("-print_final_stats=1")
            .current_dir(root()),
        Duration::from_secs(seconds) + RUN_MARGIN,
    );
    fuzzed.map_err(|failed| {
        failed.hint(format!(
            "the input is in fuzz/artifacts/{target}; put it into fuzz/corpus/{target}, where `cargo test -p refit fuzzing` tries it without libFuzzer"
        ))
    })
}

/// The targets, by the names of their files.
fn targets() -> Result<Vec<String>, Failed> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder)
        .map_err(|error| Failed::new(format!("cannot list {}: {error}", folder.display())))?;
    let mut targets: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    if targets.is_empty() {
        say("xtask: there are no fuzz targets");
    }
    Ok(targets)
}
