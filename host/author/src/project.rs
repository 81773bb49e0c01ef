//! A policy's project: it reads `policy.toml` and builds the component.
//!
//! A build runs the commands of the project with the user's rights, like any build tool. Their output goes to stderr immediately.
//! This module reads the result, and never runs it.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};

use refit_model::diagnostic::Diagnostic;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::prerequisite::{Prerequisite, install_hint};

/// The name of the project file.
pub const FILE: &str = "policy.toml";

/// The time limit of one command. A first build in Rust took minutes on a small machine, and slow networks delay downloads; a
/// command that waits for input ends after it.
const COMMAND: Duration = Duration::from_secs(30 * 60);

/// Records which tools were installed, so that a change installs them again. It is below the project, and in its `.gitignore`.
const STAMP: &str = ".refit/tools";

/// A callback that receives each command as it starts.
pub type Tell<'a> = &'a (dyn Fn(&str) + Sync);

/// A policy's project. [`Project::find`] and [`Project::read`] load it.
#[derive(Clone, Debug)]
pub struct Project {
    root: PathBuf,
    document: Document,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    component: Inside,
    #[serde(default)]
    sources: Vec<Inside>,
    #[serde(default = "scenarios")]
    scenarios: Inside,
    #[serde(default)]
    tools: Tools,
    build: Build,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tools {
    needs: Vec<Prerequisite>,
    from: Vec<Inside>,
    run: Vec<Line>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    run: Vec<Line>,
    /// The path of the component after the build, if the commands cannot write it to its final path.
    made: Option<Inside>,
}

fn scenarios() -> Inside {
    Inside("scenarios".into())
}

/// A path below the project.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
struct Inside(PathBuf);

impl TryFrom<PathBuf> for Inside {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        let parts = || path.components();
        let stays = parts().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if stays && parts().any(|part| matches!(part, Component::Normal(_))) {
            return Ok(Self(path));
        }
        Err(format!(
            "`{}` is no path within the project: it is taken from the folder of `{FILE}`, and may not begin with `/` or hold `..`",
            path.display()
        ))
    }
}

/// A program and its arguments.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Line {
    program: String,
    arguments: Vec<String>,
}

impl TryFrom<Vec<String>> for Line {
    type Error = String;

    fn try_from(words: Vec<String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        match words.next() {
            Some(program) if !program.is_empty() => Ok(Self {
                program,
                arguments: words.collect(),
            }),
            _ => Err("a command is a program and its arguments: `[\"cargo\", \"build\"]`".into()),
        }
    }
}

impl Line {
    /// The command as a user would type it.
    fn words(&self) -> String {
        let mut text = self.program.clone();
        for argument in &self.arguments {
            text.push(' ');
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+".contains(c);
            if !argument.is_empty() && argument.chars().all(plain) {
                text += argument;
            } else {
                let _ = write!(text, "'{}'", argument.replace('\'', r"'\''"));
            }
        }
        text
    }

    /// The path of the program if it is a file of the project, because the tools installed it.
    fn project_program(&self, root: &Path) -> Option<PathBuf> {
        let path = Path::new(&self.program);
        (path.is_relative() && path.components().count() > 1).then(|| root.join(path))
    }

    async fn run(&self, root: &Path, tell: Tell<'_>) -> Result<(), Diagnostic> {
        tell(&self.words());
        let cannot = |what: String| {
            Diagnostic::new(format!("`{}` {what}", self.words()))
                .because(format!("it was run in `{}`", root.display()))
        };
        let program = self
            .project_program(root)
            .unwrap_or_else(|| (&self.program).into());
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .current_dir(root)
            .stdin(Stdio::null())
            // Stdout is reserved for the result of the build.
            .stdout(io::stderr())
            .kill_on_drop(true);
        let status = match tokio::time::timeout(COMMAND, command.status()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(cannot("could not be run".into())
                    .because(format!("there is no `{}`", self.program))
                    .hint(install_hint(&self.program)));
            }
            Ok(Err(error)) => {
                return Err(cannot("could not be run".into()).because(error.to_string()));
            }
            Err(_) => {
                let minutes = COMMAND.as_secs() / 60;
                return Err(cannot(format!("was stopped after {minutes} minutes")));
            }
        };
        if status.success() {
            return Ok(());
        }
        Err(cannot(format!("failed, {status}")).hint("what it said is above"))
    }
}

impl Project {
    /// Find the project of a folder: its own, or that of the nearest folder above.
    pub fn find(from: &Path) -> Result<Self, Diagnostic> {
        let start = fs::canonicalize(from).map_err(|error| {
            Diagnostic::new(format!("cannot look for a policy in `{}`", from.display()))
                .because(error.to_string())
        })?;
        match start.ancestors().find(|folder| folder.join(FILE).is_file()) {
            Some(root) => Self::read(root),
            None => Err(Diagnostic::new(format!(
                "there is no policy's project at `{}`: no `{FILE}`, here or above",
                start.display()
            ))
            .hint("`refit policy new --lang rust|python|javascript NAME` makes one")
            .hint("go to the folder of yours, or name it")),
        }
    }

    /// Read the project in exactly this folder.
    pub fn read(root: &Path) -> Result<Self, Diagnostic> {
        let path = root.join(FILE);
        let cannot = |cause: String| {
            Diagnostic::new(format!("cannot read `{}`", path.display())).because(cause)
        };
        let root = fs::canonicalize(root).map_err(|error| cannot(error.to_string()))?;
        let text = fs::read_to_string(&path).map_err(|error| cannot(error.to_string()))?;
        let document = toml::from_str(&text).map_err(|error| cannot(error.to_string()))?;
        Ok(Self { root, document })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of the component after a build.
    pub fn component_path(&self) -> PathBuf {
        self.root.join(&self.document.component.0)
    }

    /// The component's path relative to the project, for a person.
    pub fn component_name(&self) -> &Path {
        &self.document.component.0
    }

    /// The files and folders that the component is built from, and the project file.
    pub fn sources(&self) -> Vec<PathBuf> {
        let sources = self.document.sources.iter();
        let mut paths: Vec<PathBuf> = sources.map(|path| self.root.join(&path.0)).collect();
        paths.push(self.root.join(FILE));
        paths
    }

    /// The folder of the project's scenarios.
    pub fn scenarios(&self) -> PathBuf {
        self.root.join(&self.document.scenarios.0)
    }

    /// Check the programs that this machine must have, and install the other tools if they are outdated.
    pub async fn tools(&self, tell: Tell<'_>) -> Result<(), Diagnostic> {
        let tools = &self.document.tools;
        let wanted = self.tools_digest()?;
        let stamp = self.root.join(STAMP);
        let builders = self.document.build.run.iter();
        let missing = builders
            .filter_map(|line| line.project_program(&self.root))
            .any(|program| !program.exists());
        let fresh = !missing && fs::read_to_string(&stamp).is_ok_and(|last| last == wanted);
        if fresh && !tools.run.is_empty() {
            return Ok(());
        }
        for need in &tools.needs {
            need.check(&self.root).await?;
        }
        if tools.run.is_empty() {
            return Ok(());
        }
        // If this is interrupted before its end, the next run starts from the beginning.
        match fs::remove_file(&stamp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unwritable(&stamp, &error));
            }
            _ => {}
        }
        for line in &tools.run {
            line.run(&self.root, tell).await?;
        }
        write(&stamp, &wanted)
    }

    /// Build the component. Its [`tools`](Self::tools) must be installed.
    pub async fn build(&self, tell: Tell<'_>) -> Result<(), Diagnostic> {
        let component = self.component_path();
        make_parent(&component)?;
        for line in &self.document.build.run {
            line.run(&self.root, tell).await?;
        }
        if let Some(made) = &self.document.build.made {
            copy_component(&self.root.join(&made.0), &component)?;
        }
        if component.is_file() {
            return Ok(());
        }
        Err(Diagnostic::new(format!(
            "the build ended well and left no component at `{}`",
            component.display()
        ))
        .hint(format!(
            "`component` of `{FILE}` and the last command of `[build]` must name the same file, or `made` the command's"
        )))
    }

    /// The digest of everything that determines the tools.
    fn tools_digest(&self) -> Result<String, Diagnostic> {
        let tools = &self.document.tools;
        let mut hash = Sha256::new();
        for line in &tools.run {
            hash.update(line.words());
            hash.update("\n");
        }
        for from in &tools.from {
            let path = self.root.join(&from.0);
            let content = fs::read(&path).map_err(|error| {
                Diagnostic::new(format!("cannot read `{}`", path.display()))
                    .because(error.to_string())
                    .hint(format!("`[tools] from` of `{FILE}` names it"))
            })?;
            hash.update(content.len().to_le_bytes());
            hash.update(content);
        }
        let mut text = String::new();
        for byte in hash.finalize() {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }
}

/// Copy the component to its final path atomically, because another program may watch it.
fn copy_component(made: &Path, component: &Path) -> Result<(), Diagnostic> {
    let beside = component.with_extension("wasm.unfinished");
    fs::copy(made, &beside).map_err(|error| {
        Diagnostic::new(format!(
            "the build left no component at `{}`",
            made.display()
        ))
        .because(error.to_string())
        .hint(format!("`[build] made` of `{FILE}` says that it does"))
    })?;
    fs::rename(&beside, component).map_err(|error| unwritable(component, &error))
}

fn make_parent(path: &Path) -> Result<(), Diagnostic> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| unwritable(parent, &error))
}

fn write(path: &Path, text: &str) -> Result<(), Diagnostic> {
    make_parent(path)?;
    fs::write(path, text).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Diagnostic {
    Diagnostic::new(format!("cannot write `{}`", path.display())).because(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const QUIET: Tell<'static> = &|_| {};

    fn project(text: &str) -> (tempfile::TempDir, Result<Project, Diagnostic>) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        let project = Project::read(folder.path());
        (folder, project)
    }

    #[track_caller]
    fn refused(text: &str, because: &str) {
        let said = project(text).1.unwrap_err().sentence();
        assert!(said.contains(because), "{text}\n{said}");
    }

    #[test]
    fn unknown_key_and_path_outside_are_errors() {
        refused(
            "component = \"a.wasm\"\nbuilds = 1",
            "unknown field `builds`",
        );
        refused("component = \"a.wasm\"", "missing field `build`");
        for out in ["/etc/a.wasm", "../a.wasm", "a/../../b.wasm", "", "."] {
            let text = format!("component = \"{out}\"\n[build]\nrun = []");
            refused(&text, "is no path within the project");
        }
        let empty = "component = \"a.wasm\"\n[build]\nrun = [[]]";
        refused(empty, "a command is a program and its arguments");
        let need = "component = \"a.wasm\"\n[tools]\nneeds = [\"rustc > 1\"]\n[build]\nrun = []";
        refused(need, "nothing that can be looked for");
    }

    #[test]
    fn project_is_found_from_a_subfolder() {
        let (folder, project) = project("component = \"a.wasm\"\n[build]\nrun = []");
        let below = folder.path().join("src/deep");
        fs::create_dir_all(&below).unwrap();
        let found = Project::find(&below).unwrap();
        assert_eq!(found.root(), project.unwrap().root());
        assert_eq!(found.scenarios(), found.root().join("scenarios"));
        let elsewhere = tempfile::tempdir().unwrap();
        let said = Project::find(elsewhere.path()).unwrap_err();
        assert!(said.hints[0].contains("refit policy new"), "{said}");
    }

    #[tokio::test]
    async fn tools_are_installed_once_and_again_after_a_change() {
        let (folder, project) = project(
            r#"
            component = "build/a.wasm"
            [tools]
            from = ["versions"]
            run = [["mkdir", "-p", "bin"], ["cp", "/bin/true", "bin/maker"]]
            [build]
            run = [["bin/maker"], ["touch", "build/a.wasm"]]
            "#,
        );
        let project = project.unwrap();
        let ran = Mutex::new(0);
        let count: Tell<'_> = &|_| *ran.lock().unwrap() += 1;
        let said = project.tools(count).await.unwrap_err();
        assert!(said.error.contains("versions"), "{said}");

        let versions = folder.path().join("versions");
        fs::write(&versions, "1").unwrap();
        for (commands, why) in [(2, "there are none"), (0, "they are up to date")] {
            project.tools(count).await.unwrap();
            assert_eq!(std::mem::take(&mut *ran.lock().unwrap()), commands, "{why}");
        }
        fs::write(&versions, "2").unwrap();
        project.tools(count).await.unwrap();
        assert_eq!(
            std::mem::take(&mut *ran.lock().unwrap()),
            2,
            "others are wanted"
        );
        fs::remove_dir_all(folder.path().join("bin")).unwrap();
        project.tools(count).await.unwrap();
        assert_eq!(
            std::mem::take(&mut *ran.lock().unwrap()),
            2,
            "somebody removed them"
        );
        project.build(QUIET).await.unwrap();
        assert!(project.component_path().is_file());
    }

    #[tokio::test]
    async fn failed_command_is_reported_with_folder_and_status() {
        let text = "component = \"a.wasm\"\n[build]\nrun = [[\"sh\", \"-c\", \"exit 7\"]]";
        let (_folder, project) = project(text);
        let said = project.unwrap().build(QUIET).await.unwrap_err().to_string();
        assert!(
            said.contains("`sh -c 'exit 7'` failed, exit status: 7"),
            "{said}"
        );
        assert!(said.contains("it was run in `"), "{said}");
    }

    #[tokio::test]
    async fn missing_program_has_an_install_hint() {
        let text = "component = \"a.wasm\"\n[build]\nrun = [[\"no-such-program-of-refit\"]]";
        let (_folder, project) = project(text);
        let said = project.unwrap().build(QUIET).await.unwrap_err();
        assert!(
            said.hints[0].contains("install `no-such-program-of-refit`"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn build_without_a_component_fails() {
        let (_folder, nothing) = project("component = \"b/a.wasm\"\n[build]\nrun = [[\"true\"]]");
        let said = nothing.unwrap().build(QUIET).await.unwrap_err();
        assert!(said.error.contains("left no component"), "{said}");
        let made =
            "component = \"b/a.wasm\"\n[build]\nrun = [[\"touch\", \"t.wasm\"]]\nmade = \"t.wasm\"";
        let (_folder, made) = project(made);
        let made = made.unwrap();
        made.build(QUIET).await.unwrap();
        assert!(made.component_path().is_file());
    }
}
