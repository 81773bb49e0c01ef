//! Grants: what a policy may see and do. The host enforces them, and a policy cannot widen them.
//!
//! Pure: patterns and numbers in, yes or no out. For a no, the text names the grant that would have allowed it.

use std::collections::BTreeMap;

use globset::{Glob, GlobBuilder, GlobMatcher};

use crate::container::{Container, ContainerSummary};
use crate::image::ImageRef;

/// Something a policy may ask the host to do.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum Verb {
    /// Look at a container.
    Inspect,
    /// Pull an image.
    Pull,
    /// Recreate by strategy `replace`.
    Replace,
    /// Recreate by strategy `remove`.
    Remove,
    /// Recreate by strategy `overlap`.
    Overlap,
}

impl Verb {
    pub const ALL: &[Self] = &[
        Self::Inspect,
        Self::Pull,
        Self::Replace,
        Self::Remove,
        Self::Overlap,
    ];
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inspect => "inspect",
            Self::Pull => "pull",
            Self::Replace => "replace",
            Self::Remove => "remove",
            Self::Overlap => "overlap",
        })
    }
}

/// Why a pattern is invalid.
#[derive(Debug, thiserror::Error)]
#[error("`{pattern}` in `[grants] {key}` is not a pattern")]
pub struct PatternError {
    key: &'static str,
    pattern: String,
    source: globset::Error,
}

#[derive(Clone, Debug)]
pub struct Grants {
    images: Vec<GlobMatcher>,
    containers: Vec<GlobMatcher>,
    labels: BTreeMap<String, String>,
    environment: Vec<String>,
    verbs: Vec<Verb>,
    followers: bool,
    limit: Option<Limit>,
}

/// The key that a policy is signed with, which narrows the verbs further.
#[derive(Clone, Debug)]
struct Limit {
    key: String,
    verbs: Vec<Verb>,
}

/// Patterns as written in the configuration.
#[derive(Clone, Debug)]
pub struct GrantPatterns {
    /// Patterns for registry and repository, without tag: `ghcr.io/acme/app-*`. `*` does not cross a `/`, `**` does.
    pub images: Vec<String>,
    /// Patterns for container names: `ws-*`.
    pub containers: Vec<String>,
    /// Labels that a container must carry, all of them.
    pub labels: BTreeMap<String, String>,
    /// Names of environment variables that a policy may read.
    pub environment: Vec<String>,
    pub verbs: Vec<Verb>,
    /// Whether a container that these patterns do not cover may be recreated together with one that it depends on.
    pub followers: bool,
}

impl Grants {
    pub fn new(patterns: &GrantPatterns) -> Result<Self, PatternError> {
        Ok(Self {
            images: matchers("images", &patterns.images)?,
            containers: matchers("containers", &patterns.containers)?,
            labels: patterns.labels.clone(),
            environment: patterns.environment.clone(),
            verbs: patterns.verbs.clone(),
            followers: patterns.followers,
            limit: None,
        })
    }

    /// Returns the grants of a policy that is signed with `key`, which may do no more than `verbs`.
    #[must_use]
    pub fn limited_to(&self, key: &str, verbs: &[Verb]) -> Self {
        Self {
            limit: Some(Limit {
                key: key.to_owned(),
                verbs: verbs.to_vec(),
            }),
            ..self.clone()
        }
    }

    /// Reports whether a policy may know that this container exists.
    pub fn covers(&self, container: &ContainerSummary) -> bool {
        self.covers_names(&container.name, &container.labels)
    }

    /// Reports whether this container may be recreated together with one that it depends on.
    pub fn may_follow(&self, container: &Container) -> bool {
        self.followers || self.covers_names(&container.name, &container.labels())
    }

    fn covers_names(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.containers.iter().any(|pattern| pattern.is_match(name))
            && self
                .labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    }

    pub fn may(&self, verb: Verb) -> Result<(), String> {
        if !self.verbs.contains(&verb) {
            return Err(format!("`[grants] verbs` does not list `{verb}`"));
        }
        match &self.limit {
            Some(limit) if !limit.verbs.contains(&verb) => Err(format!(
                "the policy is signed with the key `{}`, whose `verbs` in `[[policy.keys]]` do not list `{verb}`",
                limit.key
            )),
            _ => Ok(()),
        }
    }

    pub fn may_pull(&self, image: &ImageRef) -> Result<(), String> {
        self.may(Verb::Pull)?;
        let repository = image.repository();
        if self
            .images
            .iter()
            .any(|pattern| pattern.is_match(&repository))
        {
            return Ok(());
        }
        Err(format!(
            "no pattern of `[grants] images` covers `{repository}`"
        ))
    }

    pub fn may_read_variable(&self, name: &str) -> bool {
        self.environment.iter().any(|granted| granted == name)
    }
}

fn matchers(key: &'static str, patterns: &[String]) -> Result<Vec<GlobMatcher>, PatternError> {
    let matcher = |pattern: &String| {
        let glob: Result<Glob, _> = GlobBuilder::new(pattern).literal_separator(true).build();
        glob.map(|glob| glob.compile_matcher())
            .map_err(|source| PatternError {
                key,
                pattern: pattern.clone(),
                source,
            })
    };
    patterns.iter().map(matcher).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::ContainerId;

    fn grants() -> Grants {
        Grants::new(&GrantPatterns {
            images: vec!["ghcr.io/acme/workspace-template-*".into()],
            containers: vec!["ws-*".into()],
            labels: BTreeMap::from([("platform".into(), "mine".into())]),
            environment: vec!["WS_VERSION".into()],
            verbs: vec![Verb::Inspect, Verb::Pull],
            followers: false,
        })
        .unwrap()
    }

    fn listed(name: &str, labels: &[(&str, &str)]) -> ContainerSummary {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        ContainerSummary {
            id: ContainerId::new("a"),
            name: name.into(),
            labels,
            state: None,
            network_mode: String::new(),
        }
    }

    #[test]
    fn name_pattern_is_anchored_and_labels_must_match() {
        let mine = [("platform", "mine")];
        assert!(grants().covers(&listed("ws-a", &mine)));
        assert!(
            !grants().covers(&listed("my-ws-a", &mine)),
            "a prefix is no substring"
        );
        assert!(!grants().covers(&listed("ws-a", &[("platform", "other")])));
        assert!(!grants().covers(&listed("ws-a", &[])));
    }

    #[test]
    fn image_pattern_stays_within_registry_and_folder() {
        let may = |image: &str| grants().may_pull(&image.parse().unwrap());
        assert!(may("ghcr.io/acme/workspace-template-hermes:v9").is_ok());
        for other in [
            "ghcr.io/acme/other",
            "ghcr.io.evil.example/acme/workspace-template-x",
            "ghcr.io/acme/workspace-template-x/y",
        ] {
            assert!(
                may(other).unwrap_err().contains("[grants] images"),
                "`{other}` must be refused"
            );
        }
    }

    #[test]
    fn unlisted_verb_is_refused_by_name() {
        assert!(grants().may(Verb::Pull).is_ok());
        assert_eq!(
            grants().may(Verb::Remove).unwrap_err(),
            "`[grants] verbs` does not list `remove`"
        );
    }

    #[test]
    fn key_only_removes_verbs() {
        let limited = grants().limited_to("matchers", &[Verb::Inspect, Verb::Replace]);
        assert!(limited.may(Verb::Inspect).is_ok());
        assert_eq!(
            limited.may(Verb::Pull).unwrap_err(),
            "the policy is signed with the key `matchers`, whose `verbs` in `[[policy.keys]]` do not list `pull`"
        );
        assert_eq!(
            limited.may(Verb::Replace).unwrap_err(),
            "`[grants] verbs` does not list `replace`"
        );
        assert!(grants().limited_to("none", &[]).may(Verb::Inspect).is_err());
    }

    #[test]
    fn invalid_pattern_names_its_place() {
        let broken = GrantPatterns {
            images: vec!["a[".into()],
            containers: vec![],
            labels: BTreeMap::new(),
            environment: vec![],
            verbs: vec![],
            followers: false,
        };
        assert_eq!(
            Grants::new(&broken).unwrap_err().to_string(),
            "`a[` in `[grants] images` is not a pattern"
        );
    }
}
