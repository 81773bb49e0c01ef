//! The lines that ARCHITECTURE.md draws, held against manifests and source: which crate depends on which, and how a file opens. No
//! engine needed.
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

/// The crates under `host/`, the lowest first: a crate depends on those before it alone.
const CRATES: [&str; 14] = [
    "model",
    "storage",
    "registry",
    "engine",
    "recreate",
    "capabilities",
    "sandbox",
    "revisions",
    "history",
    "refresh",
    "service",
    "server",
    "author",
    "refit",
];
/// Each with its tests.
const CRATE_LINES_MAX: usize = 12_000;

/// Libraries that decide how their crate is written, each with the one crate that depends on it.
const LIBRARIES: [(&str, &str); 9] = [
    ("axum", "server"),
    ("bollard", "engine"),
    ("clap", "refit"),
    ("indicatif", "refit"),
    ("prometheus-client", "service"),
    ("rusqlite", "history"),
    ("wasmparser", "sandbox"),
    ("wasmtime", "sandbox"),
    ("wasmtime-wasi", "sandbox"),
];

/// What a crate under `host/` depends on, tests and build scripts left out.
fn dependencies(name: &str) -> anyhow::Result<Vec<String>> {
    let path = root().join("host").join(name).join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: toml::Table = text.parse()?;
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    Ok(table
        .into_iter()
        .flat_map(toml::Table::keys)
        .cloned()
        .collect())
}

#[test]
fn crates_depend_downward() -> anyhow::Result<()> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root().join("host"))? {
        folders.push(entry?.file_name().to_string_lossy().into_owned());
    }
    folders.sort();
    let mut known = CRATES.map(str::to_owned);
    known.sort();
    ensure!(
        folders == known,
        "host/ has {folders:?}, CRATES has {known:?}"
    );
    for (position, name) in CRATES.iter().enumerate() {
        for dependency in dependencies(name)? {
            let Some(other) = dependency.strip_prefix("refit-") else {
                continue;
            };
            ensure!(
                CRATES[..position].contains(&other),
                "host/{name} depends on host/{other}, which is not below it"
            );
        }
    }
    Ok(())
}

#[test]
fn each_library_has_one_crate() -> anyhow::Result<()> {
    for (library, owner) in LIBRARIES {
        for name in CRATES {
            let depends = dependencies(name)?.iter().any(|it| it == library);
            ensure!(
                depends == (name == owner),
                "`{library}` belongs to host/{owner}: put what needs it there, behind a function or a trait of ours (host/{name})"
            );
        }
    }
    Ok(())
}

#[test]
fn no_crate_is_too_large() -> anyhow::Result<()> {
    for name in CRATES {
        let lines: usize = sources(&format!("host/{name}"))?
            .iter()
            .map(|(_, text)| text.lines().count())
            .sum();
        ensure!(lines <= CRATE_LINES_MAX, "host/{name} has {lines} lines");
    }
    Ok(())
}

#[test]
fn only_one_function_is_unsafe() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for (path, text) in sources("host")? {
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
        found.len() == 1 && found[0].starts_with("host/sandbox/src/compile.rs"),
        "only `Compiled::adopt` may be unsafe, and says why: {found:#?}"
    );
    Ok(())
}

#[test]
fn what_is_pure_does_no_io_and_waits_for_nothing() -> anyhow::Result<()> {
    let mut pure = sources("host/model/src")?;
    let intent = sources("host/recreate/src")?;
    pure.extend(
        intent
            .into_iter()
            .filter(|(path, _)| path.ends_with("/intent.rs")),
    );
    for (path, text) in pure {
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
        let (below, parts) = match parts[0] {
            "e2e" | "faults" => ("tests/tests".to_owned(), &parts[..]),
            name @ ("recreate" | "engine") => (format!("host/{name}/src"), &parts[1..]),
            _ => ("tests/tests/fidelity".to_owned(), &parts[..]),
        };
        let path = |parts: &[&str]| root().join(&below).join(parts.join("/"));
        let module = |parts: &[&str]| {
            [path(parts).with_extension("rs"), path(parts).join("mod.rs")]
                .into_iter()
                .find_map(|file| fs::read_to_string(file).ok())
        };
        let (test, file) = parts.split_last().context("it has two parts")?;
        let there = module(parts).is_some()
            || module(file).is_some_and(|text| text.contains(&format!("fn {test}(")));
        if !there {
            missing.push(quoted);
        }
    }
    ensure!(seen > 40, "the table names only {seen} tests");
    ensure!(missing.is_empty(), "docs/recreate-cases.md: {missing:#?}");
    Ok(())
}
