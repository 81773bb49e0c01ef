//! Watchtower's labels, read as Watchtower reads them. Pure: facts about one container, no decisions about it.

use refit_policy::ContainerInfo;

use crate::config::without_slash;

const PREFIX: &str = "com.centurylinklabs.watchtower";
const COMPOSE: &str = "com.docker.compose";

/// What the labels of a container say.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a>(pub &'a ContainerInfo);

impl<'a> Labels<'a> {
    fn get(self, key: &str) -> Option<&'a str> {
        self.0.label(&format!("{PREFIX}.{key}"))
    }

    /// One that is neither true nor false counts as absent, as it does in Watchtower.
    fn flag(self, key: &str) -> Option<bool> {
        parse_bool(self.get(key)?)
    }

    pub fn enable(self) -> Option<bool> {
        self.flag("enable")
    }

    /// Without a label, or with an empty one, it is `none`.
    pub fn scope(self) -> &'a str {
        self.get("scope")
            .filter(|scope| !scope.is_empty())
            .unwrap_or("none")
    }

    /// Watchtower's `getContainerOrGlobalBool`: either says yes, or the label alone speaks where it takes precedence.
    pub fn either(self, key: &str, global: bool, label_takes_precedence: bool) -> bool {
        match self.flag(key) {
            None => global,
            Some(label) if label_takes_precedence => label,
            Some(label) => label || global,
        }
    }

    /// Watchtower itself.
    pub fn is_watchtower(self) -> bool {
        self.0.label(PREFIX) == Some("true")
    }

    /// The keys of those labels that are there and that this policy cannot do anything about.
    pub fn unheeded(self) -> Vec<&'a str> {
        let is_unheeded = |key: &&str| {
            let rest = key.strip_prefix(PREFIX);
            rest.is_some_and(|rest| rest == ".stop-signal" || rest.starts_with(".lifecycle."))
        };
        let keys = self.0.labels.iter().map(|(key, _)| key.as_str());
        keys.filter(is_unheeded).collect()
    }

    /// The flags that are there and are neither true nor false.
    pub fn misspelt(self) -> Vec<(&'static str, &'a str)> {
        let flags = ["enable", "monitor-only", "no-pull"];
        let values = flags
            .into_iter()
            .filter_map(|key| Some((key, self.get(key)?)));
        values
            .filter(|(_, value)| parse_bool(value).is_none())
            .collect()
    }

    /// Names of containers that this one depends on: Watchtower's label, and without one Compose's.
    pub fn depends_on(self) -> DependsOn<'a> {
        match self.get("depends-on").filter(|list| !list.is_empty()) {
            Some(list) => DependsOn::Containers(
                list.split(',')
                    .map(|name| without_slash(name.trim()))
                    .filter(|name| !name.is_empty())
                    .collect(),
            ),
            None => {
                let list = self.0.label(&format!("{COMPOSE}.depends_on"));
                // `db:service_healthy:false,redis:service_started:true`
                let service = |entry: &'a str| entry.split(':').next().unwrap_or(entry).trim();
                DependsOn::Services(
                    list.unwrap_or_default()
                        .split(',')
                        .map(service)
                        .filter(|service| !service.is_empty())
                        .collect(),
                )
            }
        }
    }

    /// Compose's name for it.
    pub fn service(self) -> Option<&'a str> {
        self.0.label(&format!("{COMPOSE}.service"))
    }
}

/// What a container depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DependsOn<'a> {
    Containers(Vec<&'a str>),
    /// Of its own Compose project.
    Services(Vec<&'a str>),
}

/// The words that Go's `strconv.ParseBool` knows, since people have written all of them.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
