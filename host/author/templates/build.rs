//! Lists the files of `policy/` and of the SDK, as the crate is built, so that none can be forgotten: a table of paths and texts
//! for each language, which `author::template` writes out.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

/// What trying a template in its place leaves behind.
const LEFT_BEHIND: &[&str] = &[
    "target",
    "node_modules",
    "__pycache__",
    "build",
    ".tools",
    ".refit",
];

pub(super) fn build(manifest: &Path, root: &Path, out: &Path) -> io::Result<()> {
    let mut text = String::new();
    let templates = manifest.join("templates/policy");
    println!("cargo::rerun-if-changed={}", templates.display());
    for language in ["rust", "python", "javascript"] {
        let files = below(&templates.join(language), "")?;
        table(&mut text, &language.to_uppercase(), &files);
    }
    let sdk = root.join("plugin/sdk");
    let mut files = below(&sdk.join("src"), "src/")?;
    files.push((
        "README.md".into(),
        sdk.join("README.md").display().to_string(),
    ));
    println!(
        "cargo::rerun-if-changed={}",
        sdk.join("README.md").display()
    );
    table(&mut text, "SDK", &files);
    fs::write(out.join("templates.rs"), text)
}

fn table(text: &mut String, name: &str, files: &[(String, String)]) {
    let _ = writeln!(text, "pub(super) static {name}: Files = &[");
    for (path, source) in files {
        let _ = writeln!(text, "    ({path:?}, include_str!({source:?})),");
    }
    let _ = writeln!(text, "];");
}

/// Path below the folder, and path on this machine, sorted.
fn below(folder: &Path, prefix: &str) -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !LEFT_BEHIND.contains(&name.as_str()) {
                files.extend(below(&path, &format!("{prefix}{name}/"))?);
            }
        } else {
            files.push((format!("{prefix}{name}"), path.display().to_string()));
        }
    }
    files.sort();
    Ok(files)
}
