//! The lines that ARCHITECTURE.md draws, held against the source: who may name whom, and how a file opens. No engine needed.
//!
//! cargo-deny holds dependencies against deny.toml: `cargo xtask lint` runs it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every `.rs` file below a folder, with its path below the workspace.
fn sources(folder: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                let built = path
                    .file_name()
                    .is_some_and(|name| name == "target" || name == "node_modules");
                if !built {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let name = path.strip_prefix(root())?.to_string_lossy().into_owned();
                found.push((name, text));
            }
        }
    }
    ensure!(!found.is_empty(), "there is no source below {folder}");
    found.sort();
    Ok(found)
}

/// Whether a line of code, comments aside, names a crate: in a `use`, or at the head of a path.
fn names(line: &str, name: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let whole = !before.is_some_and(is_word) && !after.starts_with(is_word);
        let head = after.starts_with("::") || after.starts_with(';') || after.starts_with(" as ");
        whole && head && !code[..at].ends_with("::")
    })
}

#[track_caller]
fn only(name: &str, place: &str) {
    let elsewhere: Vec<String> = sources("host/src")
        .unwrap()
        .iter()
        .filter(|(path, _)| !path.starts_with(place))
        .flat_map(|(path, text)| {
            let lines = text.lines().enumerate();
            let named = lines.filter(|(_, line)| names(line, name));
            named.map(move |(number, line)| format!("{path}:{}: {}", number + 1, line.trim()))
        })
        .collect();
    assert!(
        elsewhere.is_empty(),
        "only {place} may name `{name}`; put what needs it there, behind a function or a trait of ours:\n{}",
        elsewhere.join("\n")
    );
    let used = sources(place).unwrap();
    assert!(
        used.iter()
            .any(|(_, text)| text.lines().any(|line| names(line, name))),
        "nobody in {place} names `{name}`: this test guards nothing any more"
    );
}

#[test]
fn only_the_engine_names_bollard() {
    only("bollard", "host/src/engine/docker");
}

#[test]
fn only_the_policy_names_wasmtime() {
    only("wasmtime", "host/src/policy");
    only("wasmtime_wasi", "host/src/policy");
    only("wasmparser", "host/src/policy");
}

#[test]
fn only_the_server_names_axum() {
    only("axum", "host/src/server");
}

#[test]
fn only_the_command_line_names_clap() {
    only("clap", "host/src/cli");
    only("indicatif", "host/src/cli");
}

#[test]
fn only_the_history_names_sqlite() {
    only("rusqlite", "host/src/history");
}

#[test]
fn only_the_metrics_name_prometheus() {
    only("prometheus_client", "host/src/metrics");
}

#[test]
fn only_one_function_is_unsafe() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for (path, text) in sources("host/src")? {
        for line in text.lines() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("unsafe {")
                || code.contains("unsafe fn")
                || code.contains("unsafe impl")
            {
                found.push(format!("{path}: {}", line.trim()));
            }
        }
    }
    ensure!(
        found.len() == 1 && found[0].starts_with("host/src/policy/compile.rs"),
        "only `Compiled::adopt` may be unsafe, and says why: {found:#?}"
    );
    Ok(())
}

#[test]
fn nobody_inside_names_an_edge() -> anyhow::Result<()> {
    let edges = [
        "host/src/cli",
        "host/src/server",
        "host/src/daemon.rs",
        "host/src/main.rs",
        "host/src/lib.rs",
    ];
    for (path, text) in sources("host/src")? {
        if edges.iter().any(|edge| path.starts_with(edge)) {
            continue;
        }
        for edge in ["crate::cli", "crate::server", "crate::daemon"] {
            ensure!(
                !text.contains(edge),
                "{path} names {edge}: the edges know the inside, not the other way round"
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_pure_does_no_io_and_waits_for_nothing() -> anyhow::Result<()> {
    for path in [
        "host/src/image.rs",
        "host/src/container.rs",
        "host/src/grants.rs",
        "host/src/recreate/intent.rs",
    ] {
        let text =
            fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))?;
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        for forbidden in [
            "std::fs",
            "std::net",
            "std::process",
            "std::env::var",
            "tokio::",
            "async fn",
        ] {
            ensure!(
                !code.iter().any(|line| line.contains(forbidden)),
                "{path} is pure, and says `{forbidden}`"
            );
        }
    }
    Ok(())
}

#[test]
fn every_file_opens_with_what_it_is() -> anyhow::Result<()> {
    for folder in ["fuzz", "host", "plugin", "tests", "xtask"] {
        for (path, text) in sources(folder)? {
            ensure!(
                text.starts_with("//! "),
                "{path} does not open with `//! ` and a sentence of what it is and what it does not know"
            );
        }
    }
    Ok(())
}

#[test]
fn words_for_tests_do_not_hide_a_test() -> anyhow::Result<()> {
    // Put together, or this file would find itself.
    let forbidden = [["#[ig", "nore"].concat(), ["#[should_", "panic"].concat()];
    for folder in ["host", "plugin", "tests", "xtask"] {
        for (path, text) in sources(folder)? {
            for word in &forbidden {
                ensure!(
                    !text.contains(word),
                    "{path} says `{word}`: a test runs, and says what it expects"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_references_are_current() -> anyhow::Result<()> {
    for page in refit_tests::references::pages()? {
        ensure!(
            page.is_current(),
            "{} is not what the program says of itself; `cargo xtask references` writes it anew",
            page.name
        );
    }
    Ok(())
}

/// `proof::one_that_exits…` is a test of the fidelity suite, `e2e::refresh::…` of another; a last part may be left out, and then a
/// whole module is meant.
#[test]
fn the_table_of_cases_names_tests_that_are_there() -> anyhow::Result<()> {
    let table = fs::read_to_string(root().join("docs/recreate-cases.md"))?;
    let mut missing = Vec::new();
    let mut seen = 0;
    for quoted in table.split('`').skip(1).step_by(2) {
        let parts: Vec<&str> = quoted.split("::").collect();
        let snake = |part: &&str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        if parts.len() < 2 || !parts.iter().all(snake) {
            continue;
        }
        seen += 1;
        let below = match parts[0] {
            "e2e" | "faults" => "tests/tests".to_owned(),
            "recreate" | "engine" => "host/src".to_owned(),
            _ => "tests/tests/fidelity".to_owned(),
        };
        let path = |parts: &[&str]| root().join(&below).join(parts.join("/"));
        let module = |parts: &[&str]| {
            [path(parts).with_extension("rs"), path(parts).join("mod.rs")]
                .into_iter()
                .find_map(|file| fs::read_to_string(file).ok())
        };
        let (test, file) = parts.split_last().context("it has two parts")?;
        let there = module(&parts).is_some()
            || module(file).is_some_and(|text| text.contains(&format!("fn {test}(")));
        if !there {
            missing.push(quoted);
        }
    }
    ensure!(seen > 40, "the table names only {seen} tests");
    ensure!(missing.is_empty(), "docs/recreate-cases.md: {missing:#?}");
    Ok(())
}

#[test]
fn a_name_in_a_comment_or_within_another_is_no_name() {
    assert!(names("use axum::Router;", "axum"));
    assert!(names(
        "    let serving = axum::serve(listener, router);",
        "axum"
    ));
    assert!(!names("//! The only place that names axum.", "axum"));
    assert!(!names("use crate::axum::Router;", "axum"));
    assert!(!names("let taxum::x = 1;", "axum"));
    assert!(!names("use wasmtime_wasi::p2;", "wasmtime"));
}
