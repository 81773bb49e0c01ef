//! Reduces the SBOMs of cargo-cyclonedx to the components of one program, and merges them. `cargo xtask dist` runs it.
//!
//! cargo-cyclonedx reads `cargo metadata`, which unifies the features of a whole workspace and does not distinguish programs: its
//! SBOM has crates of the tests, of macros and of disabled features. `cargo tree` lists exactly the crates that are compiled into a
//! program.
//!
//! `refit-sbom ROOT SBOM TREE [SBOM TREE]…`: `TREE` is a file of lines `name vVERSION`. The first SBOM is the program's, the others
//! are those of embedded components. `ROOT` is the checkout, whose path the output must not contain.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, files @ ..] = &arguments[..] else {
        bail!("usage: refit-sbom ROOT SBOM TREE [SBOM TREE]…");
    };
    let mut merged: Option<Value> = None;
    for pair in files.chunks(2) {
        let [sbom, tree] = pair else {
            bail!("`{}` has no TREE", pair[0]);
        };
        let text = read(sbom)?.replace(&format!("path+file://{root}/"), "path:");
        let sbom = serde_json::from_str(&text).with_context(|| format!("cannot parse {sbom}"))?;
        let reduced = reduce(sbom, &read(tree)?)?;
        merged = Some(match merged {
            None => reduced,
            Some(program) => embed(program, reduced)?,
        });
    }
    let text = serde_json::to_string_pretty(&merged.context("no SBOM is named")?)?;
    writeln!(std::io::stdout(), "{text}").context("cannot write the SBOM")
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn string(value: &Value, key: &str) -> anyhow::Result<String> {
    let text = value[key].as_str();
    Ok(text
        .with_context(|| format!("no `{key}` in {value}"))?
        .to_owned())
}

/// The identity of a component: `tokio@1.54.1`.
fn identity(component: &Value) -> anyhow::Result<String> {
    Ok(format!(
        "{}@{}",
        string(component, "name")?,
        string(component, "version")?
    ))
}

/// Keep only the components of the SBOM that the tree lists.
fn reduce(mut sbom: Value, tree: &str) -> anyhow::Result<Value> {
    let mut listed = BTreeSet::new();
    for line in tree.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next(), words.next());
        let version = version.and_then(|version| version.strip_prefix('v'));
        let (name, version) = name
            .zip(version)
            .with_context(|| format!("`{line}` in the tree is no package"))?;
        listed.insert(format!("{name}@{version}"));
    }
    let main = &mut sbom["metadata"]["component"];
    // A library has the name of its target, which has no hyphens.
    let target = identity(main)?.replace('-', "_");
    let package = listed.iter().find(|it| it.replace('-', "_") == target);
    let package = package.with_context(|| format!("the tree is not that of {target}"))?;
    let package = package.clone();
    listed.remove(&package);
    main["name"] = json!(package.split('@').next());
    // The library and the binary of the package, listed like parts.
    if let Some(main) = main.as_object_mut() {
        main.remove("components");
    }
    let mut kept = BTreeSet::from([string(main, "bom-ref")?]);
    let mut components = Vec::new();
    for component in list(&mut sbom, "components")? {
        if listed.remove(&identity(&component)?) {
            kept.insert(string(&component, "bom-ref")?);
            components.push(component);
        }
    }
    ensure!(
        listed.is_empty(),
        "the SBOM lacks what the tree has: {listed:?}"
    );
    let mut dependencies = Vec::new();
    for mut dependency in list(&mut sbom, "dependencies")? {
        if kept.contains(&string(&dependency, "ref")?) {
            if let Some(needed) = dependency
                .get_mut("dependsOn")
                .and_then(Value::as_array_mut)
            {
                needed.retain(|it| it.as_str().is_some_and(|it| kept.contains(it)));
            }
            dependencies.push(dependency);
        }
    }
    sbom["components"] = Value::Array(components);
    sbom["dependencies"] = Value::Array(dependencies);
    // These describe the run of cargo-cyclonedx, which had all targets or another program's.
    if let Some(metadata) = sbom["metadata"].as_object_mut() {
        metadata.remove("properties");
    }
    Ok(sbom)
}

fn list(sbom: &mut Value, key: &str) -> anyhow::Result<Vec<Value>> {
    match sbom[key].take() {
        Value::Array(items) => Ok(items),
        other => bail!("`{key}` of the SBOM is no list: {other}"),
    }
}

/// Add the embedded component to the program's SBOM, with its own parts that the program lacks.
fn embed(mut program: Value, mut embedded: Value) -> anyhow::Result<Value> {
    let mut component = embedded["metadata"]["component"].take();
    component["type"] = json!("library");
    let part = string(&component, "bom-ref")?;
    let main = string(&program["metadata"]["component"], "bom-ref")?;
    let mut components = list(&mut program, "components")?;
    let mut dependencies = list(&mut program, "dependencies")?;
    components.push(component);
    for dependency in &mut dependencies {
        if dependency["ref"] == main.as_str()
            && let Some(needed) = dependency["dependsOn"].as_array_mut()
        {
            needed.push(json!(part));
        }
    }
    let known = names(&components, "bom-ref")?;
    for component in list(&mut embedded, "components")? {
        if !known.contains(&string(&component, "bom-ref")?) {
            components.push(component);
        }
    }
    for dependency in list(&mut embedded, "dependencies")? {
        let name = string(&dependency, "ref")?;
        let same = dependencies
            .iter_mut()
            .find(|it| it["ref"] == name.as_str());
        match same {
            Some(same) => add_needed(same, &dependency),
            None => dependencies.push(dependency),
        }
    }
    program["components"] = Value::Array(components);
    program["dependencies"] = Value::Array(dependencies);
    Ok(program)
}

fn names(list: &[Value], key: &str) -> anyhow::Result<BTreeSet<String>> {
    list.iter().map(|item| string(item, key)).collect()
}

/// A crate may have more dependencies in one of the two, which was compiled with other features.
fn add_needed(dependency: &mut Value, other: &Value) {
    let mut needed: BTreeSet<String> = BTreeSet::new();
    for list in [&dependency["dependsOn"], &other["dependsOn"]] {
        let list = list.as_array().into_iter().flatten();
        needed.extend(list.filter_map(Value::as_str).map(str::to_owned));
    }
    if let Some(dependency) = dependency.as_object_mut() {
        let needed: Vec<Value> = needed.into_iter().map(Value::String).collect();
        if !needed.is_empty() {
            dependency.insert("dependsOn".into(), Value::Array(needed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(name: &str) -> Value {
        json!({ "type": "library", "bom-ref": name, "name": name, "version": "1.0.0" })
    }

    fn sbom(main: &str, parts: &[(&str, &[&str])]) -> Value {
        let components: Vec<Value> = parts.iter().map(|(name, _)| component(name)).collect();
        let mut dependencies: Vec<Value> = parts
            .iter()
            .map(|(name, needed)| json!({ "ref": name, "dependsOn": needed }))
            .collect();
        let all: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
        dependencies.push(json!({ "ref": main, "dependsOn": all }));
        let metadata = json!({ "component": component(main) });
        json!({ "metadata": metadata, "components": components, "dependencies": dependencies })
    }

    #[test]
    fn component_outside_the_tree_is_left_out() -> anyhow::Result<()> {
        let whole = sbom("refit", &[("a", &["b", "c"]), ("b", &[]), ("c", &[])]);
        let reduced = reduce(whole, "refit v1.0.0 (/x)\na v1.0.0\nb v1.0.0 (*)\n")?;
        let components = reduced["components"].as_array().context("a list")?;
        assert_eq!(
            names(components, "name")?,
            ["a", "b"].map(str::to_owned).into()
        );
        assert_eq!(reduced["dependencies"][0]["dependsOn"], json!(["b"]));
        assert!(!reduced.to_string().contains("\"c\""), "{reduced}");
        Ok(())
    }

    #[test]
    fn library_is_called_by_its_package() -> anyhow::Result<()> {
        let reduced = reduce(sbom("a_policy", &[]), "a-policy v1.0.0 (/x)\n")?;
        assert_eq!(reduced["metadata"]["component"]["name"], "a-policy");
        assert!(reduce(sbom("a_policy", &[]), "another v1.0.0\n").is_err());
        Ok(())
    }

    #[test]
    fn package_that_the_sbom_lacks_is_an_error() {
        let error = reduce(sbom("refit", &[("a", &[])]), "refit v1.0.0\na v2.0.0\n");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a@2.0.0"), "{error}");
    }

    #[test]
    fn embedded_component_is_a_dependency_of_the_program() -> anyhow::Result<()> {
        let program = sbom("refit", &[("a", &[])]);
        let policy = sbom("policy", &[("a", &["b"]), ("b", &[])]);
        let merged = embed(program, policy)?;
        let components = merged["components"].as_array().context("a list")?;
        let expected = ["a", "b", "policy"].map(str::to_owned);
        assert_eq!(names(components, "name")?, expected.into());
        assert_eq!(components.len(), 3);
        let dependencies = merged["dependencies"].as_array().context("a list")?;
        assert_eq!(dependencies.len(), 4, "{dependencies:?}");
        let needed = dependencies.iter().find(|it| it["ref"] == "refit");
        assert_eq!(
            needed.context("refit")?["dependsOn"],
            json!(["a", "policy"])
        );
        let needed = dependencies.iter().find(|it| it["ref"] == "a");
        assert_eq!(needed.context("a")?["dependsOn"], json!(["b"]));
        Ok(())
    }
}
