//! The contract that this host speaks, as names: to tell an author in words what a linker would say in types.

/// Its package, without a version.
pub const CONTRACT: &str = "refit:policy";
pub const CONTRACT_VERSION: &str = "0.1.0";

/// `wit/policy.wit`, for those who have no checkout.
pub const CONTRACT_TEXT: &str = include_str!("../../../wit/policy.wit");

/// What a policy may import of each interface, by the names that are in a component.
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

/// Whether this is the name of an interface of ours, of any version.
pub(super) fn is_ours(name: &str) -> bool {
    name.strip_prefix(CONTRACT)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// What a policy may call of this interface; `None` where the contract does not have it.
pub(super) fn functions_of(import: &str) -> Option<&'static [&'static str]> {
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
    fn the_names_are_those_of_the_text() {
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
        let mut ours: Vec<_> = IMPORTS.iter().flat_map(known).collect();
        ours.sort();
        assert_eq!(names, ours);
        assert!(CONTRACT_TEXT.contains(&format!("package {CONTRACT}@{CONTRACT_VERSION};")));
    }
}
