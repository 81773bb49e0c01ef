//! Creates a new policy project in the author's language from embedded files, with the policy's name in them.
//!
//! The files are `host/author/templates/policy`; contract and SDK come from the source of this program, so they have its version.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};

use refit_model::diagnostic::Diagnostic;

/// The paths below a folder, with the content of each file.
type Files = &'static [(&'static str, &'static str)];

mod tables {
    use super::Files;
    include!(concat!(env!("OUT_DIR"), "/templates.rs"));
}

const CONTRACT: &str = include_str!("../../../wit/policy.wit");
/// The placeholder of the name, in any file.
const NAME: &str = "{{name}}";
/// The contract's limit on a policy's name.
const NAME_CHARS_MAX: usize = 64;
/// The crate that a Rust project depends on. cargo cannot have two with one name and version.
const SDK_NAME: &str = "refit-policy";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Rust,
    Python,
    JavaScript,
}

impl Language {
    pub const ALL: [Self; 3] = [Self::Rust, Self::Python, Self::JavaScript];
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rust => "Rust",
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
        })
    }
}

/// A policy's name: lower case letters, digits and hyphens, at most 64, a letter first. It is also a valid file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !text.starts_with(|c: char| c.is_ascii_lowercase())
            || !text.chars().all(is_allowed)
            || text.len() > NAME_CHARS_MAX
        {
            return Err(format!(
                "a policy's name is at most {NAME_CHARS_MAX} lower case letters, digits and hyphens, and begins with a letter"
            ));
        }
        if text == SDK_NAME {
            return Err(format!(
                "`{SDK_NAME}` is the name of the crate that policies are written with"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All files of a project with this name.
fn files(language: Language, name: &Name) -> Vec<(String, String)> {
    let (template, sdk): (Files, Files) = match language {
        Language::Rust => (tables::RUST, tables::SDK),
        Language::Python => (tables::PYTHON, &[]),
        Language::JavaScript => (tables::JAVASCRIPT, &[]),
    };
    let template = template
        .iter()
        .map(|(path, text)| ((*path).to_owned(), text.replace(NAME, &name.0)));
    let sdk = sdk
        .iter()
        .map(|(path, text)| (format!("vendor/{SDK_NAME}/{path}"), (*text).to_owned()));
    let contract = [("wit/policy.wit".to_owned(), CONTRACT.to_owned())];
    template.chain(sdk).chain(contract).collect()
}

/// Create the project. The folder must be empty or missing; after an error it is unchanged.
pub fn make(language: Language, name: &Name, folder: &Path) -> Result<(), Diagnostic> {
    let cannot = |path: &Path, error: &io::Error| {
        Diagnostic::new(format!("cannot make the project `{}`", folder.display()))
            .because(format!("`{}`: {error}", path.display()))
    };
    let is_there = match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => true,
        Ok(false) => {
            return Err(Diagnostic::new(format!(
                "cannot make the project `{}`: there is something already",
                folder.display()
            ))
            .hint("nothing was changed: choose another name, or another folder with `--path`"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(cannot(folder, &error)),
    };
    // Write to a temporary folder until all files are there: inside the folder if it exists, because it may be a user's current
    // one, or next to it.
    let (parent, inside) = match (is_there, folder.parent()) {
        (true, _) => (folder, true),
        (false, Some(parent)) if !parent.as_os_str().is_empty() => (parent, false),
        (false, _) => (Path::new("."), false),
    };
    fs::create_dir_all(parent).map_err(|error| cannot(parent, &error))?;
    let unfinished = Unfinished(parent.join(format!(".refit-new-{}", std::process::id())));
    for (path, text) in files(language, name) {
        let path = unfinished.0.join(path);
        let below = path.parent().unwrap_or(&path);
        fs::create_dir_all(below)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| cannot(&path, &error))?;
    }
    if inside {
        return move_all(&unfinished.0, folder).map_err(|error| cannot(folder, &error));
    }
    fs::rename(&unfinished.0, folder).map_err(|error| cannot(folder, &error))
}

/// Move all entries, or none.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    let mut moved: Vec<(PathBuf, PathBuf)> = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        if let Err(error) = fs::rename(&old, &new) {
            for (old, new) in moved {
                // If this fails too, nothing else can be done; the caller reports the first error.
                let _ = fs::rename(new, old);
            }
            return Err(error);
        }
        moved.push((old, new));
    }
    Ok(())
}

/// A folder that is deleted on drop, unless it was moved to its final name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::project::Project;
    use super::*;

    fn name() -> Name {
        "night-shift".parse().unwrap()
    }

    #[test]
    fn names_are_valid_for_files_packages_and_the_contract() {
        for good in ["a", "night-shift", "x2", &"a".repeat(64)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for wrong in [
            "",
            "-a",
            "2x",
            "Night",
            "a_b",
            "a b",
            "a/b",
            "..",
            "ä",
            "refit-policy",
            &long,
        ] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn project_in_each_language_is_complete() {
        for language in Language::ALL {
            let parent = tempfile::tempdir().unwrap();
            let folder = parent.path().join("not/there/yet");
            make(language, &name(), &folder).unwrap();
            for path in [
                "README.md",
                ".gitignore",
                ".github/workflows/policy.yml",
                "wit/policy.wit",
            ] {
                assert!(folder.join(path).is_file(), "{language} has no {path}");
            }
            for (path, text) in files(language, &name()) {
                let (path, text) = (folder.join(path), text);
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
                assert!(!text.contains(NAME), "{} lacks its name", path.display());
            }
            let project = Project::find(&folder).unwrap();
            assert!(project.component_path().ends_with("build/night-shift.wasm"));
            for source in project.sources() {
                assert!(source.exists(), "{language} has no {}", source.display());
            }
            let scenarios = fs::read_dir(project.scenarios()).unwrap().count();
            assert!(scenarios >= 3, "{language} has {scenarios} scenarios");
            let left = fs::read_dir(folder.parent().unwrap()).unwrap().count();
            assert_eq!(left, 1, "nothing unfinished is left behind");
        }
    }

    #[test]
    fn all_languages_have_the_same_scenarios() {
        let of = |files: Files| -> BTreeMap<&str, &str> {
            let scenarios = files
                .iter()
                .filter(|(path, _)| path.starts_with("scenarios/"));
            scenarios.copied().collect()
        };
        assert_eq!(of(tables::RUST), of(tables::PYTHON));
        assert_eq!(of(tables::RUST), of(tables::JAVASCRIPT));
    }

    #[test]
    fn empty_folder_is_used_and_a_full_one_is_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        make(Language::Python, &name(), folder.path()).unwrap();
        assert!(folder.path().join("policy.py").is_file());
        assert!(!fs::read_dir(folder.path()).unwrap().any(|entry| {
            let name = entry.unwrap().file_name();
            name.to_string_lossy().starts_with(".refit-new")
        }));
        let said = make(Language::Rust, &name(), folder.path()).unwrap_err();
        assert!(said.error.contains("there is something already"), "{said}");
        assert!(!folder.path().join("Cargo.toml").exists());
    }

    #[test]
    fn failed_write_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        make(Language::Rust, &name(), &file).unwrap_err();
        make(Language::Rust, &name(), &file.join("below")).unwrap_err();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    /// The SDK inherits versions from its workspace; in a project it stands alone, with the same versions.
    #[test]
    fn sdk_of_a_project_has_the_workspace_dependencies() {
        let read = |text: &str| text.parse::<toml::Table>().unwrap();
        let workspace = read(include_str!("../../../Cargo.toml"));
        let sdk = read(include_str!("../../../plugin/sdk/Cargo.toml"));
        let alone = read(include_str!(
            "../templates/policy/rust/vendor/refit-policy/Cargo.toml"
        ));
        let versions = &workspace["workspace"]["dependencies"];
        let mut expected = toml::Table::new();
        for (name, dependency) in sdk["dependencies"].as_table().unwrap() {
            assert_eq!(
                dependency.as_table().map(toml::Table::len),
                Some(1),
                "`{name}` is more than `workspace = true`: teach this test"
            );
            expected.insert(name.clone(), versions[name].clone());
        }
        assert_eq!(
            alone["dependencies"].as_table(),
            Some(&expected),
            "host/author/templates/policy/rust/vendor/refit-policy/Cargo.toml"
        );
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let shared = &workspace["workspace"]["package"][key];
            assert_eq!(alone["package"][key], *shared, "{key}");
        }
        assert_eq!(
            alone["package"]["description"],
            sdk["package"]["description"]
        );
    }
}
