//! What authors are promised of `wit/`: a version that was released never changes, components that were built against it keep
//! loading and deciding the same, and the version in work breaks none that it says it is compatible with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use refit::author::scenario::{Scenario, run};
use refit::sandbox::{CONTRACT, CONTRACT_VERSION, PolicyEngine, digest};
use wit_parser::{Resolve, WorldId};

const WORLD: &str = "refresh-policy";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of each version that was released, oldest first, with its name.
fn released() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("wit/released"))? {
        let path = entry?.path();
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.push((name.into_owned(), path.clone()));
        }
    }
    found.sort_by_key(|(version, _)| numbers(version));
    ensure!(!found.is_empty(), "no version was released");
    Ok(found)
}

fn numbers(version: &str) -> Vec<u32> {
    let parts = version.split('.');
    parts.map(|part| part.parse().unwrap_or(u32::MAX)).collect()
}

/// As semantic versioning has it: before 1.0 the second number breaks, after it the first.
fn is_compatible(old: &str, new: &str) -> bool {
    let (old, new) = (numbers(old), numbers(new));
    let breaking = if old[0] == 0 { 2 } else { 1 };
    old[..breaking] == new[..breaking]
}

fn contract(version: &str) -> String {
    format!("package {CONTRACT}@{version};")
}

/// Whether a component made for `old` works where `new` is spoken.
fn check(old: &str, new: &str) -> Result<()> {
    let mut resolve = Resolve::default();
    let old = world(
        &mut resolve,
        "old",
        &old.replace(&version_of(old)?, "0.0.1"),
    )?;
    let new = world(
        &mut resolve,
        "new",
        &new.replace(&version_of(new)?, "0.0.2"),
    )?;
    wit_component::semver_check(resolve, old, new)
}

/// Two versions of one package stand side by side under different numbers only.
fn version_of(text: &str) -> Result<String> {
    let line = text.lines().find(|line| line.starts_with("package "));
    let version = line.and_then(|line| line.split('@').nth(1));
    Ok(version
        .context("it has no package")?
        .trim_end_matches(';')
        .to_owned())
}

fn world(resolve: &mut Resolve, name: &str, text: &str) -> Result<WorldId> {
    let package = resolve.push_str(format!("{name}.wit"), text)?;
    resolve.select_world(&[package], Some(WORLD))
}

fn current() -> Result<String> {
    Ok(fs::read_to_string(root().join("wit/policy.wit"))?)
}

#[test]
fn what_was_released_never_changes() -> Result<()> {
    let folder = root().join("wit/released");
    let sums = fs::read_to_string(folder.join("SHA256SUMS"))?;
    let mut summed = Vec::new();
    for line in sums.lines() {
        let (sum, file) = line.split_once("  ").context("a sum and a file")?;
        let bytes = fs::read(folder.join(file)).with_context(|| format!("{file} is gone"))?;
        ensure!(
            digest(&bytes) == format!("sha256:{sum}"),
            "{file} was changed: a released version is frozen; make a new one"
        );
        summed.push(file.to_owned());
    }
    for (version, path) in released()? {
        for file in ["policy.wit", "policy.wasm", "scenario.toml"] {
            let name = format!("{version}/{file}");
            ensure!(summed.contains(&name), "SHA256SUMS does not have {name}");
        }
        let text = fs::read_to_string(path.join("policy.wit"))?;
        ensure!(
            text.contains(&contract(&version)),
            "{version} has another package"
        );
    }
    Ok(())
}

#[test]
fn the_version_in_work_is_a_new_one_or_is_what_was_released() -> Result<()> {
    let current = current()?;
    ensure!(current.contains(&contract(CONTRACT_VERSION)));
    for (version, path) in released()? {
        let old = fs::read_to_string(path.join("policy.wit"))?;
        if version == CONTRACT_VERSION {
            ensure!(
                old == current,
                "wit/policy.wit is not what was released as {version}: give it a new version"
            );
        } else if is_compatible(&version, CONTRACT_VERSION) {
            check(&old, &current).with_context(|| {
                format!("{CONTRACT_VERSION} breaks components that were built against {version}")
            })?;
        }
    }
    Ok(())
}

/// The guard itself: what it must let pass, and what it must not.
#[test]
fn additions_pass_and_changes_do_not() -> Result<()> {
    let text = current()?;
    let changed = |from: &str, to: &str| -> Result<String> {
        ensure!(
            text.contains(from),
            "wit/policy.wit has no `{from}` any more"
        );
        Ok(text.replacen(from, to, 1))
    };
    check(&text, &text).context("the same text")?;
    let more = changed(
        "    now: func() -> u64;",
        "    now: func() -> u64;\n    zone: func() -> string;",
    )?;
    check(&text, &more).context("one function more to call")?;
    check(&more, &text).expect_err("one function less to call");
    for (what, from, to) in [
        ("another type", "now: func() -> u64;", "now: func() -> u32;"),
        (
            "a field more",
            "name: string,\n",
            "name: string,\n        nick: string,\n",
        ),
        (
            "a case more",
            "        dead,\n",
            "        dead,\n        lost,\n",
        ),
        ("another name", "    state-get: func", "    get-state: func"),
        (
            "an export more",
            "    describe: func()",
            "    explain: func() -> string;\n    describe: func()",
        ),
    ] {
        let other = changed(from, to)?;
        if check(&text, &other).is_ok() {
            anyhow::bail!("{what} passes");
        }
    }
    Ok(())
}

#[tokio::test]
async fn components_of_released_versions_load_and_decide_as_they_did() -> Result<()> {
    let engine = PolicyEngine::new()?;
    for (version, path) in released()? {
        if !is_compatible(&version, CONTRACT_VERSION) {
            continue;
        }
        let bytes = fs::read(path.join("policy.wasm"))?;
        let policy = engine
            .load(bytes, &format!("the policy of {version}"))
            .await?;
        let scenario = Scenario::read(&path.join("scenario.toml"))?;
        let ran = run(&policy, &scenario).await?;
        ensure!(ran.passed(), "{version}: {ran:#?}");
    }
    Ok(())
}
