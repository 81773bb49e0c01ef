//! The cargo tools of the tasks. Each has a fixed version, and is built once into the user's cache. This module is independent of
//! the tasks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::{Failed, cache_directory, cargo, step_within};

/// A program from crates.io.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
}

/// Checks licenses, duplicates, sources and advisories of dependencies.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// Writes an SBOM.
pub(crate) const CYCLONEDX: Tool = Tool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
};

/// Builds and runs targets of libFuzzer.
pub(crate) const FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
};

/// The time limit of an installation. The largest, cargo-deny, took 5 minutes on two cores with other load (2026-11-29).
const INSTALL_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Optimizing the tools costs more than it saves: each runs for seconds.
const BUILD_SETTINGS: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

impl Tool {
    /// Install the tool if the cache lacks this version, and return its path.
    pub(crate) fn install(&self) -> Result<PathBuf, Failed> {
        let tools = cache_directory().join("tools");
        fs::create_dir_all(&tools).map_err(|error| cannot("create", &tools, &error))?;
        let folder = tools.join(format!("{}-{}", self.name, self.version));
        let program = folder.join("bin").join(self.name);
        // Two tasks may install the same tool at once.
        let lock = tools.join("lock");
        let file = File::create(&lock).map_err(|error| cannot("create", &lock, &error))?;
        file.lock().map_err(|error| cannot("lock", &lock, &error))?;
        if program.is_file() {
            return Ok(program);
        }
        let build = tools.join("build");
        let installed = step_within(
            &format!(
                "installing {} {} (this takes minutes, once)",
                self.name, self.version
            ),
            cargo()
                .args(["install", "--locked", "--quiet", "--no-track", self.name])
                .args(["--version", self.version, "--root"])
                .arg(&folder)
                .env("CARGO_TARGET_DIR", &build)
                .envs(BUILD_SETTINGS)
                // The installed program must not depend on the user's flags.
                .env_remove("RUSTFLAGS")
                .current_dir(&tools),
            INSTALL_TIMEOUT,
        );
        // A few hundred megabytes that are not needed again.
        let _ = fs::remove_dir_all(&build);
        installed.map_err(|failed| {
            failed.hint("cargo fetches it from crates.io: can this machine reach it?")
        })?;
        Ok(program)
    }

    /// The installed tool as a command, with the cargo that runs us.
    pub(crate) fn command(&self) -> Result<Command, Failed> {
        let cargo = cargo();
        let mut tool = Command::new(self.install()?);
        tool.env("CARGO", cargo.get_program());
        for (name, value) in cargo.get_envs() {
            match value {
                Some(value) => tool.env(name, value),
                None => tool.env_remove(name),
            };
        }
        Ok(tool)
    }
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {act} {}: {error}", path.display()))
}
