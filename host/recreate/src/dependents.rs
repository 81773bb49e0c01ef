//! Who depends on whom: what a container has of another one, and would lose or miss when that one is replaced.
//!
//! The engine writes down who shares whose name spaces by id, volumes as they were asked for, and links by the provider's
//! present name. Pure: inspections in, answers out.

use refit_model::container::{Container, ContainerId};

use crate::names::ParsedName;

/// What a container has of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// `NetworkMode: container:…`
    Network,
    /// `PidMode: container:…`
    Processes,
    /// `IpcMode: container:…`
    Memory,
    /// `Links`, on the default network: an entry in its hosts file and variables in its environment.
    Link,
    /// `VolumesFrom`
    Volumes,
}

impl Dependency {
    /// Completes "`x` …".
    pub fn said(self) -> &'static str {
        match self {
            Self::Network => "shares its network",
            Self::Processes => "shares its processes",
            Self::Memory => "shares its memory",
            Self::Link => "links to it",
            Self::Volumes => "has its volumes",
        }
    }

    /// Whether one that is not replaced along with its provider is broken by it: its name space ends, its link is forgotten.
    /// Volumes outlive the container that they were first mounted in.
    pub fn must_follow(self) -> bool {
        !matches!(self, Self::Volumes)
    }
}

/// Everything that one container has of others.
#[derive(Clone, Debug, Default)]
pub struct Dependencies(Vec<(Dependency, String)>);

/// The shortest beginning of an id that is taken for one. People write twelve digits; fewer could be a name.
const ID_DIGITS_MIN: usize = 12;

impl Dependencies {
    pub fn of(container: &Container) -> Self {
        let mut ties = Vec::new();
        for (tie, key) in [
            (Dependency::Network, "NetworkMode"),
            (Dependency::Processes, "PidMode"),
            (Dependency::Memory, "IpcMode"),
        ] {
            let mode = container
                .host_config
                .get(key)
                .and_then(|mode| mode.as_str());
            if let Some(id) = mode.and_then(|mode| mode.strip_prefix("container:")) {
                ties.push((tie, id.to_owned()));
            }
        }
        for (tie, key) in [
            (Dependency::Link, "Links"),
            (Dependency::Volumes, "VolumesFrom"),
        ] {
            let entries = container
                .host_config
                .get(key)
                .and_then(|list| list.as_array());
            let entries = entries.into_iter().flatten().filter_map(|it| it.as_str());
            ties.extend(entries.map(|entry| (tie, provider(entry).to_owned())));
        }
        Self(ties)
    }

    /// The closest tie to the container of this id and name.
    pub fn to(&self, id: &ContainerId, name: &str) -> Option<Dependency> {
        let mut ties = self.0.iter();
        let tie = ties.find(|(_, provider)| is_meant(provider, id, name));
        tie.map(|(tie, _)| *tie)
    }

    /// Whether it says the same for as long as the container exists: a link is shown under whatever its provider is called.
    pub fn last(&self) -> bool {
        self.0.iter().all(|(tie, _)| *tie != Dependency::Link)
    }
}

/// `/db` of a link `/db:/app/database`, `db` of a wish for volumes `db:ro`; both without the slash.
pub(super) fn provider(entry: &str) -> &str {
    let provider = entry
        .split_once(':')
        .map_or(entry, |(provider, _)| provider);
    provider.trim_start_matches('/')
}

/// Whether somebody who wrote this meant that container. One that is half of a replacement is meant by our names for it too.
pub(super) fn is_meant(written: &str, id: &ContainerId, name: &str) -> bool {
    let by_our_name =
        || ParsedName::parse(written).is_some_and(|parsed| parsed.old() == id.short());
    written == name
        || (written.len() >= ID_DIGITS_MIN && id.as_str().starts_with(written))
        || by_our_name()
}

/// A container as far as it matters here.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: ContainerId,
    pub name: String,
    pub ties: Dependencies,
}

impl Node {
    fn tie_to_any<'a>(&self, of: impl IntoIterator<Item = &'a Node>) -> Option<Dependency> {
        of.into_iter()
            .filter(|provider| provider.id != self.id)
            .find_map(|provider| self.ties.to(&provider.id, &provider.name))
    }
}

/// Those of `others` that depend on `first`, directly or through each other: each behind all that it depends on, and with the
/// first tie that was found.
pub fn dependents(first: &Node, others: Vec<Node>) -> Vec<(Node, Dependency)> {
    let (mut found, mut left) = (vec![first.clone()], others);
    let mut ties = Vec::new();
    loop {
        let (new, rest): (Vec<Node>, Vec<Node>) = left
            .into_iter()
            .filter(|node| node.id != first.id)
            .partition(|node| node.tie_to_any(&found).is_some());
        left = rest;
        if new.is_empty() {
            break;
        }
        ties.extend(
            new.iter()
                .filter_map(|node| Some((node.id.clone(), node.tie_to_any(&found)?))),
        );
        found.extend(new);
    }
    found.remove(0);
    in_order(found, |node, others| node.tie_to_any(others).is_some())
        .into_iter()
        .filter_map(|node| {
            let (_, tie) = ties.iter().find(|(id, _)| *id == node.id)?;
            Some((node, *tie))
        })
        .collect()
}

/// Providers first. Containers that depend on each other in a ring, which no engine makes, come as they are.
pub fn in_order<T>(mut left: Vec<T>, depends: impl Fn(&T, &[T]) -> bool) -> Vec<T> {
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let next = left.iter().position(|item| !depends(item, &left));
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
            ties: Dependencies::of(&container(json!({}), host_config)),
        }
    }

    #[test]
    fn each_kind_of_tie_is_seen() {
        let by_id = format!("container:{}", id('a'));
        for (host_config, tie) in [
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
            let ties = node('x', host_config.clone()).ties;
            assert_eq!(ties.to(&id('a'), "ws-a"), Some(tie), "{host_config}");
            assert_eq!(ties.to(&id('b'), "ws-b"), None, "{host_config}");
        }
        let none = json!({ "NetworkMode": "bridge", "PidMode": "host", "Links": null });
        assert_eq!(node('x', none).ties.to(&id('a'), "ws-a"), None);
    }

    #[test]
    fn a_provider_that_is_being_replaced_is_known_by_our_names_for_it() {
        let backup = BackupName::new(&id('a'), &id('b'), 1, true, "ws-a").to_name();
        for written in [backup, temporary_name(&id('a'))] {
            let ties = node('x', json!({ "Links": [format!("/{written}:/ws-x/db")] })).ties;
            assert_eq!(ties.to(&id('a'), "ws-a"), Some(Dependency::Link));
        }
    }

    #[test]
    fn dependents_of_dependents_come_behind_them() {
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
        let found = dependents(&node('a', json!({})), others);
        let found: Vec<(&str, Dependency)> = found
            .iter()
            .map(|(node, tie)| (node.name.as_str(), *tie))
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
    fn a_ring_ends() {
        let others = vec![
            node('b', json!({ "VolumesFrom": ["ws-a", "ws-c"] })),
            node('c', json!({ "VolumesFrom": ["ws-b"] })),
        ];
        assert_eq!(dependents(&node('a', json!({})), others).len(), 2);
    }
}
