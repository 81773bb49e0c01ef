//! The permissions of a component, read from its imports. It can never call a function that it does not import, whatever its
//! code does.

use std::collections::BTreeSet;

use refit_model::grants::{Grants, Verb};
use refit_sandbox::{CONTRACT, Imports};
use serde::Serialize;

/// Something that a component asks to be able to do. In the order in which people care about it least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum Permission {
    Log,
    Time,
    ReadState,
    WriteState,
    List,
    Inspect,
    Pull,
    Recreate,
}

impl Permission {
    fn from_import(interface: &str, function: &str) -> Option<Self> {
        Some(match (interface, function) {
            ("docker", "containers") => Self::List,
            ("docker", "inspect") => Self::Inspect,
            ("docker", "pull") => Self::Pull,
            ("docker", "recreate") => Self::Recreate,
            ("host", "log") => Self::Log,
            ("host", "now") => Self::Time,
            ("host", "state-get") => Self::ReadState,
            ("host", "state-set") => Self::WriteState,
            // Methods of handles, which only return data of a list, an inspection or a pull.
            _ => return None,
        })
    }

    /// Returns whether any grant covers it. The patterns of `[grants]` narrow it further.
    fn is_granted(self, grants: &Grants) -> bool {
        let any = |verbs: &[Verb]| verbs.iter().any(|verb| grants.may(*verb).is_ok());
        match self {
            Self::Inspect => any(&[Verb::Inspect]),
            Self::Pull => any(&[Verb::Pull]),
            Self::Recreate => any(&[Verb::Replace, Verb::Remove, Verb::Overlap]),
            Self::Log | Self::Time | Self::ReadState | Self::WriteState | Self::List => true,
        }
    }
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Log => "write to the log",
            Self::Time => "read the clock",
            Self::ReadState => "read what it kept",
            Self::WriteState => "keep something between refreshes",
            Self::List => "list containers",
            Self::Inspect => "inspect containers",
            Self::Pull => "pull images",
            Self::Recreate => "recreate containers",
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
#[derive(utoipa::ToSchema)]
pub struct Permissions(BTreeSet<Permission>);

impl Permissions {
    pub fn from_imports(imports: &Imports) -> Self {
        let permissions = imports.iter().flat_map(|(name, functions)| {
            let name = name.strip_prefix(CONTRACT).unwrap_or_default();
            let interface = name.trim_start_matches('/').split('@').next();
            let interface = interface.unwrap_or_default();
            functions
                .iter()
                .filter_map(move |function| Permission::from_import(interface, function))
        });
        Self(permissions.collect())
    }

    /// Returns the permissions that the grants allow.
    #[must_use]
    pub fn limited_to(&self, grants: &Grants) -> Self {
        let granted = self
            .0
            .iter()
            .filter(|permission| permission.is_granted(grants));
        Self(granted.copied().collect())
    }

    /// Returns the permissions that the other set does not have.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes `inspect containers, pull images`.
impl std::fmt::Display for Permissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

/// What a swap changes in what a policy may do, within what each is granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = PermissionsChange)]
pub struct Difference {
    pub gained: Permissions,
    pub lost: Permissions,
}

impl Difference {
    /// Returns the change from the old to the new permissions, both as of [`Permissions::limited_to`].
    pub fn between(old: &Permissions, new: &Permissions) -> Self {
        Self {
            gained: new.difference(old),
            lost: old.difference(new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::grants::GrantPatterns;

    fn imports(functions: &[(&str, &str)]) -> Imports {
        let mut imports = Imports::new();
        for (interface, function) in functions {
            let name = format!("refit:policy/{interface}@0.1.0");
            imports.entry(name).or_default().insert((*function).into());
        }
        imports
    }

    fn grants(verbs: &[Verb]) -> Grants {
        let patterns = GrantPatterns {
            images: vec![],
            containers: vec![],
            labels: Default::default(),
            environment: vec![],
            verbs: verbs.to_vec(),
            followers: false,
        };
        Grants::new(&patterns).unwrap()
    }

    #[test]
    fn candidate_that_also_recreates_gains_a_permission() {
        let old = Permissions::from_imports(&imports(&[("docker", "pull"), ("host", "log")]));
        let new =
            Permissions::from_imports(&imports(&[("docker", "pull"), ("docker", "recreate")]));
        let all = grants(&[Verb::Pull, Verb::Replace]);
        let difference = Difference::between(&old.limited_to(&all), &new.limited_to(&all));
        assert_eq!(difference.gained.to_string(), "recreate containers");
        assert_eq!(difference.lost.to_string(), "write to the log");
    }

    #[test]
    fn permission_without_grant_is_not_gained() {
        let old = Permissions::default();
        let new =
            Permissions::from_imports(&imports(&[("docker", "recreate"), ("docker", "inspect")]));
        let few = grants(&[Verb::Inspect]);
        let difference = Difference::between(&old.limited_to(&few), &new.limited_to(&few));
        assert_eq!(difference.gained.to_string(), "inspect containers");
    }

    #[test]
    fn same_component_gains_what_its_key_newly_allows() {
        let same =
            Permissions::from_imports(&imports(&[("docker", "recreate"), ("docker", "pull")]));
        let all = grants(&[Verb::Pull, Verb::Replace]);
        let limited = all.limited_to("matchers", &[Verb::Pull]);
        let difference = Difference::between(&same.limited_to(&limited), &same.limited_to(&all));
        assert_eq!(difference.gained.to_string(), "recreate containers");
        assert!(difference.lost.is_empty());
    }

    #[test]
    fn import_outside_the_contract_is_no_permission() {
        let mut wanted = imports(&[("docker", "[method]container.name")]);
        wanted.insert("wasi:cli/stdout@0.2.6".into(), ["pull".to_owned()].into());
        wanted.insert(
            "acme:docker/docker@1.0.0".into(),
            ["pull".to_owned()].into(),
        );
        assert!(Permissions::from_imports(&wanted).is_empty());
    }
}
