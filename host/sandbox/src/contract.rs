//! The names of the contract that this host implements, for error messages that an author understands better than a linker's types.

/// The contract's package, without a version.
pub const CONTRACT: &str = "refit:policy";
pub const CONTRACT_VERSION: &str = "0.1.0";

/// The text of `wit/policy.wit`, for authors without a checkout.
pub const CONTRACT_TEXT: &str = include_str!("../../../wit/policy.wit");

/// The functions of each interface that a policy may import, by their names in a component.
const IMPORTS: &[(&str, &[&str])] = &[
    (
        "docker",
        &[
            "containers",
            "inspect",
            "pull",
            "recreate",
            "[method]container.name",
            "[method]pulled-image.reference",
            "[method]pulled-image.id",
            "[method]pulled-image.digest",
        ],
    ),
    ("host", &["log", "now", "state-get", "state-set"]),
    ("types", &[]),
];

/// Whether this is the name of a contract interface, of any version.
pub(super) fn is_ours(name: &str) -> bool {
    name.strip_prefix(CONTRACT)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// The functions of an interface that a policy may call, or `None` if the contract does not have the interface.
pub(super) fn find_functions(import: &str) -> Option<&'static [&'static str]> {
    let (interface, version) = import
        .strip_prefix(CONTRACT)?
        .strip_prefix('/')?
        .split_once('@')?;
    let known = IMPORTS.iter().find(|(name, _)| *name == interface)?;
    (version == CONTRACT_VERSION).then_some(known.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_match_the_contract_text() {
        let mut names = Vec::new();
        let mut interface = "";
        let mut resource = "";
        for line in CONTRACT_TEXT.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("interface ") {
                interface = rest.trim_end_matches(" {");
            } else if let Some(rest) = line.strip_prefix("resource ") {
                resource = rest.trim_end_matches(" {");
            } else if line == "}" {
                resource = "";
            } else if let Some((name, _)) = line.split_once(": func(") {
                let name = match resource {
                    "" => name.to_owned(),
                    resource => format!("[method]{resource}.{name}"),
                };
                names.push((interface, name));
            }
        }
        names.retain(|(interface, _)| *interface != "policy");
        names.sort();
        let known = |(interface, names): &(&'static str, &[&'static str])| {
            let interface = *interface;
            let names: Vec<_> = names
                .iter()
                .map(|name| (interface, (*name).to_owned()))
                .collect();
            names
        };
        let mut known_functions: Vec<_> = IMPORTS.iter().flat_map(known).collect();
        known_functions.sort();
        assert_eq!(names, known_functions);
        assert!(CONTRACT_TEXT.contains(&format!("package {CONTRACT}@{CONTRACT_VERSION};")));
    }
}
