//! Dependencies between containers: the resources that a container shares with another one, and would lose when that one is
//! replaced.
//!
//! The engine stores shared namespaces by the provider's id, volumes as the request named them, and links by the provider's
//! present name. Pure: the inputs are inspections.

use refit_model::container::{Container, ContainerId};

use crate::names::ParsedName;

/// A resource that a container shares with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// `NetworkMode: container:…`
    Network,
    /// `PidMode: container:…`
    Processes,
    /// `IpcMode: container:…`
    Memory,
    /// `Links`, on the default network: an entry in the container's hosts file and variables in its environment.
    Link,
    /// `VolumesFrom`
    Volumes,
}

impl Dependency {
    /// Returns a phrase that completes "`x` …".
    pub fn description(self) -> &'static str {
        match self {
            Self::Network => "shares its network",
            Self::Processes => "shares its processes",
            Self::Memory => "shares its memory",
            Self::Link => "links to it",
            Self::Volumes => "has its volumes",
        }
    }

    /// Reports whether the dependent breaks unless it is replaced together with its provider: its namespace ends, or its link
    /// is lost. Volumes survive the container that they were first mounted in.
    pub fn must_follow(self) -> bool {
        !matches!(self, Self::Volumes)
    }
}

/// All dependencies of one container.
#[derive(Clone, Debug, Default)]
pub struct Dependencies(Vec<(Dependency, String)>);

/// The shortest prefix that is treated as an id. People write twelve digits; fewer could be a name.
const ID_DIGITS_MIN: usize = 12;

impl Dependencies {
    pub fn from_container(container: &Container) -> Self {
        let mut dependencies = Vec::new();
        for (dependency, key) in [
            (Dependency::Network, "NetworkMode"),
            (Dependency::Processes, "PidMode"),
            (Dependency::Memory, "IpcMode"),
        ] {
            let mode = container
                .host_config
                .get(key)
                .and_then(|mode| mode.as_str());
            if let Some(id) = mode.and_then(|mode| mode.strip_prefix("container:")) {
                dependencies.push((dependency, id.to_owned()));
            }
        }
        for (dependency, key) in [
            (Dependency::Link, "Links"),
            (Dependency::Volumes, "VolumesFrom"),
        ] {
            let entries = container
                .host_config
                .get(key)
                .and_then(|list| list.as_array());
            let entries = entries.into_iter().flatten().filter_map(|it| it.as_str());
            dependencies
                .extend(entries.map(|entry| (dependency, parse_provider(entry).to_owned())));
        }
        Self(dependencies)
    }

    /// Returns the closest dependency on the container with this id and name.
    pub fn dependency_on(&self, id: &ContainerId, name: &str) -> Option<Dependency> {
        let mut dependencies = self.0.iter();
        let dependency = dependencies.find(|(_, provider)| refers_to(provider, id, name));
        dependency.map(|(dependency, _)| *dependency)
    }

    /// Reports whether the dependencies stay the same for as long as the container exists. A link does not: the engine shows it
    /// under the provider's present name.
    pub fn is_stable(&self) -> bool {
        self.0
            .iter()
            .all(|(dependency, _)| *dependency != Dependency::Link)
    }
}

/// Parses the provider: `db` from a link `/db:/app/database` or from `VolumesFrom: db:ro`; both without the slash.
pub(super) fn parse_provider(entry: &str) -> &str {
    let provider = entry
        .split_once(':')
        .map_or(entry, |(provider, _)| provider);
    provider.trim_start_matches('/')
}

/// Reports whether a written id or name refers to this container. During a replacement Refit's temporary and backup names refer
/// to it too.
pub(super) fn refers_to(written: &str, id: &ContainerId, name: &str) -> bool {
    let by_our_name =
        || ParsedName::parse(written).is_some_and(|parsed| parsed.old() == id.short());
    written == name
        || (written.len() >= ID_DIGITS_MIN && id.as_str().starts_with(written))
        || by_our_name()
}

/// A container and its dependencies.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: ContainerId,
    pub name: String,
    pub ties: Dependencies,
}

impl Node {
    fn dependency_on_any<'a>(&self, of: impl IntoIterator<Item = &'a Node>) -> Option<Dependency> {
        of.into_iter()
            .filter(|provider| provider.id != self.id)
            .find_map(|provider| self.ties.dependency_on(&provider.id, &provider.name))
    }
}

/// Finds the containers among `others` that depend on `first`, directly or through each other: each after all that it depends
/// on, and with the first dependency that was found.
pub fn find_dependents(first: &Node, others: Vec<Node>) -> Vec<(Node, Dependency)> {
    let (mut found, mut left) = (vec![first.clone()], others);
    let mut dependencies = Vec::new();
    loop {
        let (new, rest): (Vec<Node>, Vec<Node>) = left
            .into_iter()
            .filter(|node| node.id != first.id)
            .partition(|node| node.dependency_on_any(&found).is_some());
        left = rest;
        if new.is_empty() {
            break;
        }
        dependencies.extend(
            new.iter()
                .filter_map(|node| Some((node.id.clone(), node.dependency_on_any(&found)?))),
        );
        found.extend(new);
    }
    found.remove(0);
    sort_providers_first(found, |node, others| {
        node.dependency_on_any(others).is_some()
    })
    .into_iter()
    .filter_map(|node| {
        let (_, dependency) = dependencies.iter().find(|(id, _)| *id == node.id)?;
        Some((node, *dependency))
    })
    .collect()
}

/// Sorts providers first. Containers that depend on each other in a cycle, which no engine creates, keep their order.
pub fn sort_providers_first<T>(
    mut left: Vec<T>,
    depends_on_any: impl Fn(&T, &[T]) -> bool,
) -> Vec<T> {
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let next = left.iter().position(|item| !depends_on_any(item, &left));
        ordered.push(left.remove(next.unwrap_or_default()));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::tests::container;
    use crate::names::{BackupName, temporary_name};
    use serde_json::{Value, json};

    fn id(digit: char) -> ContainerId {
        ContainerId::new(digit.to_string().repeat(64))
    }

    fn node(digit: char, host_config: Value) -> Node {
        Node {
            id: id(digit),
            name: format!("ws-{digit}"),
            ties: Dependencies::from_container(&container(json!({}), host_config)),
        }
    }

    #[test]
    fn each_kind_of_dependency_is_found() {
        let by_id = format!("container:{}", id('a'));
        for (host_config, dependency) in [
            (json!({ "NetworkMode": by_id }), Dependency::Network),
            (json!({ "PidMode": by_id }), Dependency::Processes),
            (json!({ "IpcMode": by_id }), Dependency::Memory),
            (json!({ "Links": ["/ws-a:/ws-x/db"] }), Dependency::Link),
            (json!({ "VolumesFrom": ["ws-a"] }), Dependency::Volumes),
            (
                json!({ "VolumesFrom": ["aaaaaaaaaaaa:ro"] }),
                Dependency::Volumes,
            ),
            (
                json!({ "VolumesFrom": ["ws-a"], "PidMode": by_id }),
                Dependency::Processes,
            ),
        ] {
            let dependencies = node('x', host_config.clone()).ties;
            assert_eq!(
                dependencies.dependency_on(&id('a'), "ws-a"),
                Some(dependency),
                "{host_config}"
            );
            assert_eq!(
                dependencies.dependency_on(&id('b'), "ws-b"),
                None,
                "{host_config}"
            );
        }
        let none = json!({ "NetworkMode": "bridge", "PidMode": "host", "Links": null });
        assert_eq!(node('x', none).ties.dependency_on(&id('a'), "ws-a"), None);
    }

    #[test]
    fn provider_is_recognized_by_temporary_and_backup_name() {
        let backup = BackupName::new(&id('a'), &id('b'), 1, true, "ws-a").to_name();
        for written in [backup, temporary_name(&id('a'))] {
            let dependencies = node('x', json!({ "Links": [format!("/{written}:/ws-x/db")] })).ties;
            assert_eq!(
                dependencies.dependency_on(&id('a'), "ws-a"),
                Some(Dependency::Link)
            );
        }
    }

    #[test]
    fn transitive_dependents_come_after_providers() {
        let link = |names: &[&str]| {
            let links: Vec<String> = names.iter().map(|name| format!("/{name}:/x/y")).collect();
            json!({ "Links": links })
        };
        let others = vec![
            node('d', link(&["ws-c", "ws-b"])),
            node('e', json!({})),
            node('a', json!({})),
            node('c', link(&["ws-b"])),
            node('b', json!({ "PidMode": format!("container:{}", id('a')) })),
        ];
        let found = find_dependents(&node('a', json!({})), others);
        let found: Vec<(&str, Dependency)> = found
            .iter()
            .map(|(node, dependency)| (node.name.as_str(), *dependency))
            .collect();
        assert_eq!(
            found,
            [
                ("ws-b", Dependency::Processes),
                ("ws-c", Dependency::Link),
                ("ws-d", Dependency::Link)
            ]
        );
    }

    #[test]
    fn dependency_cycle_terminates() {
        let others = vec![
            node('b', json!({ "VolumesFrom": ["ws-a", "ws-c"] })),
            node('c', json!({ "VolumesFrom": ["ws-b"] })),
        ];
        assert_eq!(find_dependents(&node('a', json!({})), others).len(), 2);
    }
}
