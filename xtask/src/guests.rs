//! Builds the example policies as components. The tools for languages other than Rust go to the cache, once for each version, and
//! an up-to-date component is not built again. For Rust, cargo does both.

use std::fs::{self, File};
use std::io::{Write as _, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Failed, cache_directory, cargo, say, step, target_directory};
use crate::setup::{WASM, is_there, root, wasm_target};

const WORLD: &str = "refresh-policy";

/// The examples in Rust: `refit-policy-` and this name is the package and its component. The default policy is not among them,
/// since the host's build embeds it.
const RUST: &[&str] = &["canary", "quiet-hours", "watchtower"];

struct Language {
    name: &'static str,
    /// Files below the example that determine the tools and their versions.
    tools: &'static [&'static str],
    source: &'static str,
    install: fn(example: &Path, tools: &Path) -> Result<(), Failed>,
    build: fn(example: &Path, tools: &Path, out: &Path) -> Command,
}

const LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        tools: &["requirements.txt"],
        source: "policy.py",
        install: install_python,
        build: build_python,
    },
    Language {
        name: "javascript",
        tools: &["package.json"],
        source: "policy.js",
        install: install_javascript,
        build: build_javascript,
    },
];

/// Build the outdated components, and return the paths of all.
pub(crate) fn build() -> Result<Vec<PathBuf>, Failed> {
    let folder = target_directory().join("guests");
    fs::create_dir_all(&folder).map_err(|error| cannot("make", &folder, &error))?;
    let tools = cache_directory().join("guest-tools");
    fs::create_dir_all(&tools).map_err(|error| cannot("make", &tools, &error))?;
    // Two tests may build at the same time; the second one finds the components.
    let lock = tools.join("lock");
    let held = File::create(&lock).map_err(|error| cannot("make", &lock, &error))?;
    held.lock().map_err(|error| cannot("lock", &lock, &error))?;
    let mut components: Vec<PathBuf> = LANGUAGES
        .iter()
        .map(|language| language.component(&folder, &tools))
        .collect::<Result<_, _>>()?;
    components.extend(build_rust(&folder)?);
    Ok(components)
}

/// The Rust packages that are components.
pub(crate) fn rust_packages() -> impl Iterator<Item = String> {
    RUST.iter().map(|name| format!("refit-policy-{name}"))
}

/// Build all of them in one call, like host/sandbox/build.rs builds the default policy.
fn build_rust(folder: &Path) -> Result<Vec<PathBuf>, Failed> {
    wasm_target()?;
    let mut build = cargo();
    build.args(["build", "--lib", "--profile", "policy", "--target", WASM]);
    for package in rust_packages() {
        build.args(["--package", &package]);
    }
    // Stdout is reserved for the paths.
    step(
        "building the Rust policies (from nothing this takes minutes)",
        build.stdout(stderr()),
    )?;
    let built = target_directory().join(WASM).join("policy");
    RUST.iter()
        .map(|name| {
            let package = format!("refit_policy_{}.wasm", name.replace('-', "_"));
            let component = built.join(package);
            let bytes = fs::read(&component).map_err(|error| cannot("read", &component, &error))?;
            let out = folder.join(format!("{name}.wasm"));
            if fs::read(&out).is_ok_and(|last| last == bytes) {
                return Ok(out);
            }
            // It gets its name when it is complete, because another program may be reading the old one.
            let unfinished = folder.join(format!("{name}.unfinished"));
            fs::write(&unfinished, bytes).map_err(|error| cannot("write", &unfinished, &error))?;
            fs::rename(&unfinished, &out).map_err(|error| cannot("write", &out, &error))?;
            Ok(out)
        })
        .collect()
}

impl Language {
    fn component(&self, folder: &Path, tools: &Path) -> Result<PathBuf, Failed> {
        let example = root().join("plugin/examples").join(self.name);
        let out = folder.join(format!("{}.wasm", self.name));
        let made_of = self.read(
            &example,
            &[self.tools, &[self.source, "../../../wit/policy.wit"]].concat(),
        )?;
        let recipe = folder.join(format!("{}.made-of", self.name));
        if out.is_file() && fs::read(&recipe).is_ok_and(|last| last == made_of) {
            return Ok(out);
        }
        let tools = self.tools(&example, tools)?;
        let unfinished = folder.join(format!("{}.unfinished", self.name));
        step(
            &format!("building the {} policy (up to a minute)", self.name),
            // Stdout is reserved for the paths.
            (self.build)(&example, &tools, &unfinished).stdout(stderr()),
        )?;
        fs::rename(&unfinished, &out).map_err(|error| cannot("write", &out, &error))?;
        fs::write(&recipe, made_of).map_err(|error| cannot("write", &recipe, &error))?;
        Ok(out)
    }

    /// The folder of the tools, which gets its name when all of them are installed.
    fn tools(&self, example: &Path, all: &Path) -> Result<PathBuf, Failed> {
        let wanted = self.read(example, self.tools)?;
        let folder = all.join(self.name);
        let recipe = folder.join("made-of");
        if fs::read(&recipe).is_ok_and(|last| last == wanted) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| cannot("remove", &folder, &error))?;
        }
        fs::create_dir_all(&folder).map_err(|error| cannot("make", &folder, &error))?;
        (self.install)(example, &folder)?;
        fs::write(&recipe, wanted).map_err(|error| cannot("write", &recipe, &error))?;
        Ok(folder)
    }

    fn read(&self, example: &Path, names: &[&str]) -> Result<Vec<u8>, Failed> {
        let mut all = Vec::new();
        for name in names {
            let path = example.join(name);
            all.extend(fs::read(&path).map_err(|error| cannot("read", &path, &error))?);
        }
        Ok(all)
    }
}

fn install_python(example: &Path, tools: &Path) -> Result<(), Failed> {
    wanted("python3", "Python 3.10 or newer, with its module `venv`")?;
    step(
        "making a Python environment",
        Command::new("python3")
            .args(["-m", "venv"])
            .arg(tools)
            .stdout(stderr()),
    )
    .map_err(|failed| failed.hint("Debian and Ubuntu have its module `venv` in `python3-venv`"))?;
    step(
        "getting componentize-py (50 MB)",
        Command::new(tools.join("bin/pip"))
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--requirement",
            ])
            .arg(example.join("requirements.txt"))
            .stdout(stderr()),
    )
    .map_err(|failed| failed.hint("pip fetches it from the network: can this machine reach it?"))
}

fn build_python(example: &Path, tools: &Path, out: &Path) -> Command {
    let mut command = Command::new(tools.join("bin/componentize-py"));
    command
        .arg("--quiet")
        .args(["--world", WORLD, "--wit-path"])
        .arg(root().join("wit"))
        // Without it CPython imports sockets, which no policy gets.
        .args(["componentize", "--stub-wasi", "--python-path"])
        .arg(example)
        .arg("--output")
        .arg(out)
        .arg("policy");
    command
}

fn install_javascript(example: &Path, tools: &Path) -> Result<(), Failed> {
    wanted("npm", "Node.js 20 or newer, with npm")?;
    let to = tools.join("package.json");
    fs::copy(example.join("package.json"), &to).map_err(|error| cannot("write", &to, &error))?;
    step(
        "getting componentize-qjs (40 MB)",
        Command::new("npm")
            .args(["install", "--no-package-lock", "--no-audit", "--no-fund"])
            .args(["--loglevel", "error"])
            .current_dir(tools)
            .stdout(stderr()),
    )
    .map_err(|failed| failed.hint("npm fetches it from the network: can this machine reach it?"))
}

fn build_javascript(example: &Path, tools: &Path, out: &Path) -> Command {
    let mut command = Command::new(tools.join("node_modules/.bin/componentize-qjs"));
    command
        .args(["--world", WORLD, "--stub-wasi", "--sync", "--wit"])
        .arg(root().join("wit"))
        .arg("--js")
        .arg(example.join("policy.js"))
        .arg("--output")
        .arg(out);
    command
}

pub(crate) fn wanted(program: &str, what: &str) -> Result<(), Failed> {
    if is_there(program) {
        return Ok(());
    }
    Err(
        Failed::new(format!("there is no `{program}` on this machine"))
            .hint(format!("install {what}")),
    )
}

fn cannot(act: &str, path: &Path, error: &std::io::Error) -> Failed {
    Failed::new(format!("cannot {act} {}: {error}", path.display()))
}

/// Print a line for each component for a person, and on stdout for a program.
pub(crate) fn print_components(components: &[PathBuf]) {
    for component in components {
        let line = writeln!(stdout(), "{}", component.display());
        if let Err(error) = line {
            say(&format!("xtask: nobody hears where they are: {error}"));
        }
    }
}
