//! Writes the SBOM of a program: cargo-cyclonedx's SBOM of the workspace, reduced to the crates in the program. CycloneDX 1.5.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::{Failed, cargo, step, step_within, target_directory};
use crate::setup::{WASM, root};
use crate::tools;

/// The time limit of cargo-cyclonedx, which reads a lock file.
const CYCLONEDX_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The file extension of cargo-cyclonedx.
const SUFFIX: &str = ".cdx.json";

/// The SBOMs of the members: the host, and the policy that is embedded in it.
const PROGRAM: &str = "host/refit/refit_bin.cdx.json";
const POLICY: &str = "plugin/workspace/refit_policy_workspace_cdylib-rlib.cdx.json";

/// Write the SBOM of the program with these `features`, for the target `triple`.
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

/// Write the packages that are compiled into a program or component, one per line.
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

/// Write the SBOM of the whole workspace. cargo-cyclonedx writes a file next to each manifest.
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
    // With this variable the file has a fixed time and no random number, so that two builds of one commit are identical.
    if env::var_os("SOURCE_DATE_EPOCH").is_none() {
        command.env("SOURCE_DATE_EPOCH", commit_time());
    }
    step_within(
        "reading what the crates say of themselves",
        &mut command,
        CYCLONEDX_TIMEOUT,
    )
}

/// The time of the commit in seconds since the Unix epoch, or 0 outside of a repository.
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

/// Remove the files, which do not belong into the repository.
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
