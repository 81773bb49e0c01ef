//! Checks the programs that a language needs on this machine: their presence, their versions and their parts.
//!
//! `[tools] needs` of a project lists them. A compiler that is too old reports that in its own words, if at all; these checks say
//! what to install.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use refit_model::diagnostic::Diagnostic;
use serde::Deserialize;
use tokio::process::Command;

/// The time limit for a version query, which takes milliseconds, or a second or two behind a version manager on a loaded machine.
const ANSWER: Duration = Duration::from_secs(30);

/// One line of `needs`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Prerequisite {
    /// A program and its minimum version: `node`, or `node >= 20`.
    Program {
        name: String,
        at_least: Option<Version>,
    },
    /// The standard library of rustc for this target: `target wasm32-wasip2`.
    Target(String),
    /// A Python module: `python3 module ensurepip`. Distributions ship Python without some modules.
    Module(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(Vec<u32>);

impl TryFrom<String> for Prerequisite {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let is_name = |word: &str| {
            word.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match words[..] {
            ["target", target] if is_name(target) => Ok(Self::Target(target.to_owned())),
            ["python3", "module", module] if is_name(module) => {
                Ok(Self::Module(module.to_owned()))
            }
            [name] if is_name(name) => Ok(Self::Program {
                name: name.to_owned(),
                at_least: None,
            }),
            [name, ">=", version] if is_name(name) => Ok(Self::Program {
                name: name.to_owned(),
                at_least: Some(Version::parse_exact(version).ok_or(format!(
                    "`{version}` of `{text}` is no version: numbers with dots between them are expected"
                ))?),
            }),
            _ => Err(format!(
                "`{text}` is nothing that can be looked for: `rustc`, `rustc >= 1.95`, `target wasm32-wasip2` and \
                 `python3 module ensurepip` are"
            )),
        }
    }
}

impl Prerequisite {
    pub(super) async fn check(&self, root: &Path) -> Result<(), Diagnostic> {
        match self {
            Self::Program { name, at_least } => {
                let said = self.run_query(root, name, &["--version"]).await?;
                let Some(wanted) = at_least else {
                    return Ok(());
                };
                match Version::find_in(&said) {
                    Some(found) if found < *wanted => Err(Diagnostic::new(format!(
                        "`{name}` is {found}, and this project needs {wanted} or newer"
                    ))
                    .hint(install_hint(name))),
                    // A program without a readable version is accepted. If it lacks something, it will report that itself.
                    _ => Ok(()),
                }
            }
            Self::Target(target) => {
                let arguments = ["--print", "target-libdir", "--target", target];
                let folder = self.run_query(root, "rustc", &arguments).await?;
                if Path::new(folder.trim()).is_dir() {
                    return Ok(());
                }
                Err(
                    Diagnostic::new(format!("rustc cannot build for `{target}` yet"))
                        .hint(format!("`rustup target add {target}`")),
                )
            }
            Self::Module(module) => self
                .run_query(root, "python3", &["-c", &format!("import {module}")])
                .await
                .map(drop),
        }
    }

    async fn run_query(
        &self,
        root: &Path,
        program: &str,
        arguments: &[&str],
    ) -> Result<String, Diagnostic> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            // Version managers choose the version by folder.
            .current_dir(root)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let asked = format!("{program} {}", arguments.join(" "));
        let output = match tokio::time::timeout(ANSWER, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(
                    Diagnostic::new(format!("there is no `{program}` on this machine"))
                        .hint(install_hint(program)),
                );
            }
            Ok(Err(error)) => {
                return Err(
                    Diagnostic::new(format!("cannot run `{asked}`")).because(error.to_string())
                );
            }
            Err(_) => {
                return Err(Diagnostic::new(format!(
                    "`{asked}` gave no answer within {} s",
                    ANSWER.as_secs()
                )));
            }
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        // A traceback or other long output has the reason in its last line.
        let last = said.trim().lines().last().unwrap_or_default().to_owned();
        let failed = Diagnostic::new(match self {
            Self::Module(module) => format!("this Python has no module `{module}`"),
            Self::Target(target) => format!("rustc does not know the target `{target}`"),
            Self::Program { .. } => format!("`{asked}` failed, {}", output.status),
        });
        let failed = if last.is_empty() {
            failed
        } else {
            failed.because(last)
        };
        Err(match self {
            Self::Module(_) => failed
                .hint("Debian and Ubuntu have `venv` and what it takes in `python3-venv`")
                .hint(install_hint("python3")),
            Self::Target(_) | Self::Program { .. } => failed.hint(install_hint(program)),
        })
    }
}

/// The advice if a program is missing or too old.
pub(super) fn install_hint(program: &str) -> String {
    match program {
        "rustc" | "cargo" => {
            "install Rust 1.95 or newer: https://rustup.rs, or `rustup update`".into()
        }
        "python3" => "install Python 3.10 or newer, with its module `venv`".into(),
        "node" | "npm" => "install Node.js 20 or newer, with npm".into(),
        other => format!("install `{other}`, and see that its folder is in `PATH`"),
    }
}

impl Version {
    fn parse_exact(text: &str) -> Option<Self> {
        let numbers = text.split('.').map(|part| part.parse().ok());
        numbers.collect::<Option<Vec<u32>>>().map(Self)
    }

    /// Find the first version in a text such as `rustc 1.95.0 (59807616e 2026-04-14)` or `v20.20.2`.
    fn find_in(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.')
            .find_map(|word| Self::parse_exact(word.trim_matches('.')))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(text: &str) -> Prerequisite {
        Prerequisite::try_from(text.to_owned()).unwrap()
    }

    async fn check(text: &str) -> Result<(), Diagnostic> {
        need(text).check(&std::env::temp_dir()).await
    }

    #[test]
    fn versions_are_parsed_and_compared_as_numbers() {
        for (said, version) in [
            ("rustc 1.95.0 (59807616e 2026-04-14)", "1.95.0"),
            ("Python 3.11.7", "3.11.7"),
            ("v20.20.2\n", "20.20.2"),
            ("11.19.1", "11.19.1"),
        ] {
            assert_eq!(
                Version::find_in(said),
                Version::parse_exact(version),
                "{said}"
            );
        }
        let version = |text| Version::parse_exact(text).unwrap();
        assert!(version("1.100") > version("1.95"));
        assert!(version("20.20.2") > version("20"));
        assert!(version("3.9.18") < version("3.10"));
        assert_eq!(Version::find_in("no numbers"), None);
    }

    #[test]
    fn invalid_need_is_an_error() {
        for wrong in ["", "rustc > 1", "rustc >= new", "a b", "sh;ls", "target"] {
            let made = Prerequisite::try_from(wrong.to_owned());
            // A program may have any name, even `target`.
            assert_eq!(made.is_ok(), wrong == "target", "{wrong}: {made:?}");
        }
    }

    #[tokio::test]
    async fn missing_or_old_program_has_an_install_hint() {
        check("rustc >= 1.85").await.unwrap();
        check("target wasm32-wasip2").await.unwrap();
        for (text, error, hint) in [
            (
                "rustc >= 999.1",
                "and this project needs 999.1 or newer",
                "rustup update",
            ),
            (
                "no-such-program-of-refit",
                "there is no `no-such-program-of-refit` on this machine",
                "see that its folder is in `PATH`",
            ),
            (
                "target wasm32-unheard-of",
                "rustc does not know the target `wasm32-unheard-of`",
                "rustup",
            ),
        ] {
            let said = check(text).await.unwrap_err();
            assert!(said.error.contains(error), "{said}");
            assert!(said.hints[0].contains(hint), "{said}");
        }
    }
}
