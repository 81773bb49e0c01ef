//! What a process holds that has a policy loaded, and how long it took to load, once for each guest. Each is a
//! process of its own, because what one has touched the next would have for nothing.

#![allow(clippy::print_stdout, reason = "a table is what this is for")]

mod guests;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use refit::sandbox::PolicyEngine;

/// Enough calls to touch all memory that a call touches.
const CALLS: usize = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [only, language, cache] if only == "only" => {
            one(language, Path::new(cache));
        }
        // `cargo bench` passes `--bench` and its own arguments.
        _ => all(),
    }
}

fn all() {
    println!(
        "{:<12} {:>9} {:>9} {:>9} {:>12}",
        "guest", "cold", "cached", "resident", "addresses"
    );
    let program = std::env::current_exe().expect("this program");
    for (language, _) in guests::all() {
        let cache = tempfile::tempdir().expect("a folder");
        let run = || {
            let mut command = Command::new(&program);
            command.args(["only", language]);
            let output = command.arg(cache.path()).output().expect("it runs");
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).expect("text");
            let words: Vec<u64> = text
                .split_whitespace()
                .map(|word| word.parse().expect("a number"))
                .collect();
            words
        };
        let cold = run()[0];
        let cached = run();
        println!(
            "{language:<12} {cold:>6} ms {:>6} ms {:>5.1} MiB {:>8.1} GiB",
            cached[0],
            cached[1] as f64 / 1024.0,
            cached[2] as f64 / 1024.0 / 1024.0
        );
    }
}

/// Milliseconds, and kilobytes resident and of addresses.
fn one(language: &str, cache: &Path) {
    let runtime = tokio::runtime::Runtime::new().expect("threads are to be had");
    let guests = guests::all();
    let (_, bytes) = guests
        .into_iter()
        .find(|(name, _)| *name == language)
        .expect("a guest of this name");
    let engine = PolicyEngine::new().expect("an engine");
    let engine = engine.with_cache(cache.to_owned());
    let began = Instant::now();
    let policy = runtime.block_on(engine.load(bytes, language));
    let policy = policy.expect("the guest loads");
    let took = began.elapsed().as_millis();
    for _ in 0..CALLS {
        runtime
            .block_on(policy.validate_config("{}"))
            .expect("it answers");
    }
    println!("{took} {} {}", of_status("VmRSS:"), of_status("VmSize:"));
}

fn of_status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.and_then(|number| number.trim().parse().ok());
    kilobytes.expect("a number of kB")
}
