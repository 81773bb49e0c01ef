//! Builds the programs twice, from two copies of the commit in folders of different names, and compares their bytes.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dist::{self, PROGRAMS, Program};
use crate::run::{Failed, say, step, target_directory};
use crate::setup::{self, root};

/// This profile builds in a few minutes; `dist` takes a quarter of an hour for each of four programs.
const PROFILE: &str = "dist-quick";

/// Two paths of different lengths, so that a path in a program shifts the bytes after it.
const COPIES: [&str; 2] = ["one", "another/checkout"];

/// The arguments are `[--profile P] [PROGRAM…]`; without programs all of them.
pub(crate) fn check(arguments: &[OsString]) -> Result<(), Failed> {
    let (mut profile, mut wanted) = (PROFILE.to_owned(), Vec::new());
    let mut arguments = arguments.iter().map(|it| it.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        match (
            argument.as_str(),
            PROGRAMS.iter().find(|it| it.name == argument),
        ) {
            ("--profile", _) => {
                let value = arguments.next();
                profile = value.ok_or_else(|| Failed::new("`--profile` takes a name"))?;
            }
            (_, Some(program)) => wanted.push(program),
            (_, None) => {
                return Err(Failed::new(format!("there is no program `{argument}`"))
                    .hint("the programs are `refit` and `refit-runtime`"));
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(&PROGRAMS);
    }
    setup::all()?;
    let triple = dist::host_target();
    setup::musl(&triple)?;
    let folder = target_directory().join("reproducible");
    let _ = fs::remove_dir_all(&folder);
    let copies = COPIES.map(|name| folder.join(name));
    for copy in &copies {
        copy_commit(copy)?;
    }
    let mut differ = Vec::new();
    for program in wanted {
        if !is_same(program, &triple, &profile, &copies)? {
            differ.push(program.name);
        }
    }
    if differ.is_empty() {
        let _ = fs::remove_dir_all(&folder);
        return Ok(());
    }
    Err(Failed::new(format!(
        "two builds of one commit differ: {}",
        differ.join(", ")
    ))
    .hint(format!(
        "both are in {}; `diffoscope` says where",
        folder.display()
    )))
}

/// Copy the committed files, like a clone of another user.
fn copy_commit(to: &Path) -> Result<(), Failed> {
    fs::create_dir_all(to)
        .map_err(|error| Failed::new(format!("cannot create {}: {error}", to.display())))?;
    let script = "git archive HEAD | tar -x -C \"$0\"";
    step(
        &format!("copying the commit to {}", to.display()),
        Command::new("bash")
            .args(["-o", "pipefail", "-c", script])
            .arg(to)
            .current_dir(root()),
    )
}

fn is_same(
    program: &Program,
    triple: &str,
    profile: &str,
    copies: &[PathBuf; 2],
) -> Result<bool, Failed> {
    let mut built = Vec::new();
    for copy in copies {
        let target = copy.join("target");
        let path = dist::compile(program, triple, profile, copy, &target)?;
        let bytes = fs::read(&path);
        built
            .push(bytes.map_err(|error| {
                Failed::new(format!("cannot read {}: {error}", path.display()))
            })?);
    }
    let (one, other) = (&built[0], &built[1]);
    if one == other {
        say(&format!(
            "xtask: `{}`: both builds have the same {} bytes ({profile}, {triple})",
            program.name,
            one.len()
        ));
        return Ok(true);
    }
    let differing = one.iter().zip(other).filter(|(a, b)| a != b).count();
    let first = one.iter().zip(other).position(|(a, b)| a != b);
    say(&format!(
        "xtask: `{}`: {} and {} bytes, {differing} of those that both have differ, the first at {first:?}",
        program.name,
        one.len(),
        other.len()
    ));
    Ok(false)
}
