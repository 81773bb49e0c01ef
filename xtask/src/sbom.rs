//! The SBOM of a program: what cargo-cyclonedx says of the workspace, reduced to what is compiled into the program. CycloneDX 1.5.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::{Failed, cargo, step, step_within, target_directory};
use crate::setup::{WASM, root};
use crate::tools;

/// It reads a lock file.
const CYCLONEDX_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How cargo-cyclonedx calls its files.
const SUFFIX: &str = ".cdx.json";

/// The members that it is read of, with the names of its files: the host, and the policy that is embedded in it.
const PROGRAM: &str = "host/refit/refit_bin.cdx.json";
const POLICY: &str = "plugin/workspace/refit_policy_workspace_cdylib-rlib.cdx.json";

/// Writes the SBOM of the program that has these `features` and was built for `triple`.
pub(crate) fn write(triple: &str, features: &[&str], file: &Path) -> Result<(), Failed> {
    let work = target_directory().join("sbom");
    fs::create_dir_all(&work).map_err(|error| cannot("create", &work, &error))?;
    let trees = [work.join("program.tree"), work.join("policy.tree")];
    list(triple, "refit", features, &trees[0])?;
    list(WASM, "refit-policy-workspace", &[], &trees[1])?;
    let written = whole();
    let reduced = written.and_then(|()| reduce(&trees, file));
    remove_written();
    reduced
}

/// The packages that are compiled into a program or component, a line for each.
fn list(triple: &str, package: &str, features: &[&str], file: &Path) -> Result<(), Failed> {
    let output = fs::File::create(file).map_err(|error| cannot("create", file, &error))?;
    step(
        &format!("listing what is compiled into {package}"),
        cargo()
            .args(["tree", "--locked", "--package", package])
            .args(features)
            .args(["--target", triple, "--edges", "normal,no-proc-macro"])
            .args(["--prefix", "none", "--format", "{p}"])
            .current_dir(root())
            .stdout(output),
    )
}

/// Of the whole workspace. cargo-cyclonedx writes a file beside each manifest.
fn whole() -> Result<(), Failed> {
    let mut command = tools::CYCLONEDX.command()?;
    command
        .args(["cyclonedx", "--quiet", "--format", "json"])
        .args(["--describe", "binaries", "--target", "all"])
        .args([
            "--no-build-deps",
            "--spec-version",
            "1.5",
            "--manifest-path",
        ])
        .arg(root().join("host/refit/Cargo.toml"))
        .current_dir(root());
    // With it the file has this time and no random number, so that two builds of one commit have the same.
    if env::var_os("SOURCE_DATE_EPOCH").is_none() {
        command.env("SOURCE_DATE_EPOCH", commit_time());
    }
    step_within(
        "reading what the crates say of themselves",
        &mut command,
        CYCLONEDX_TIMEOUT,
    )
}

/// In seconds since the Unix epoch, and the epoch itself outside of a repository.
fn commit_time() -> String {
    let output = Command::new("git")
        .args(["log", "-1", "--format=%ct"])
        .current_dir(root())
        .output();
    let output = output.ok().filter(|output| output.status.success());
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok());
    let text = text.map(|text| text.trim().to_owned());
    text.filter(|text| !text.is_empty())
        .unwrap_or_else(|| "0".to_owned())
}

fn reduce(trees: &[PathBuf; 2], file: &Path) -> Result<(), Failed> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(|error| cannot("create", folder, &error))?;
    }
    let output = fs::File::create(file).map_err(|error| cannot("create", file, &error))?;
    let checkout = fs::canonicalize(root()).map_err(|error| cannot("find", root(), &error))?;
    step(
        "writing the SBOM",
        cargo()
            .args([
                "run",
                "--quiet",
                "--locked",
                "--package",
                "refit-sbom",
                "--",
            ])
            .arg(&checkout)
            .arg(root().join(PROGRAM))
            .arg(&trees[0])
            .arg(root().join(POLICY))
            .arg(&trees[1])
            .current_dir(root())
            .stdout(output),
    )
}

/// Nothing of it is for the repository.
fn remove_written() {
    for depth in ["", "*/", "*/*/", "*/*/*/"] {
        let script = format!("rm -f -- {depth}*{SUFFIX}");
        let _ = Command::new("sh")
            .args(["-c", &script])
            .current_dir(root())
            .status();
    }
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {act} {}: {error}", path.display()))
}
