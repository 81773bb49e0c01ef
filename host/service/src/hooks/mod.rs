//! Webhooks: a service reports that an image was published. This module verifies the sender, parses the delivery, and selects
//! the images that concern this daemon.
//!
//! Refit parses a delivery only after [`secret`] has verified that its sender has the secret; [`github`] and [`registry`] parse
//! the deliveries. A delivery only makes Refit check the registry, so a repeated, late or false one costs a check. This module
//! does not depend on HTTP and does not enqueue checks: the caller does.

pub mod github;
pub mod registry;
pub mod secret;

use std::collections::{BTreeMap, BTreeSet};

use refit_model::diagnostic::Hints;
use refit_model::grants::Grants;
use refit_model::image::{ImageRef, is_digest};
use refit_model::printable::printable;
use serde::Serialize;

use self::github::Github;
use self::registry::RegistryHook;

/// The maximum number of images in one delivery. GitHub names one, a registry a few.
const PUBLISHED_MAX: usize = 256;

/// The configured webhooks.
#[derive(Debug, Default)]
pub struct Hooks {
    pub github: Option<Github>,
    pub registries: Vec<RegistryHook>,
}

impl Hooks {
    /// Returns whether no webhook is configured.
    pub fn is_empty(&self) -> bool {
        self.github.is_none() && self.registries.is_empty()
    }
}

/// An image that a delivery reports as published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    repository: String,
    tag: Option<String>,
    /// The digest that the tag points to, as the delivery reports it. The registry may show it later.
    digest: Option<String>,
}

/// A delivery from a verified sender that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("the delivery cannot be read: {0}")]
pub struct Unreadable(String);

impl From<serde_json::Error> for Unreadable {
    /// Shortens the error, since it quotes the delivery.
    fn from(error: serde_json::Error) -> Self {
        const BYTES_MAX: usize = 300;
        Self(printable(&error.to_string(), BYTES_MAX))
    }
}

impl Hints for Unreadable {}

/// The sender does not have the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    #[error("the delivery carries no signature")]
    Missing,
    #[error("the delivery's signature or secret is wrong")]
    Wrong,
}

impl Hints for Unverified {}

/// Which of what was said concerns us. In the words that whoever sent it is answered with.
#[derive(Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = HookScope)]
pub struct Scoped {
    /// Images that are looked at.
    pub accepted: Vec<String>,
    pub ignored: Vec<Ignored>,
    #[serde(skip)]
    pub repositories: BTreeSet<String>,
    /// The digest that each image with a tag is said to have.
    #[serde(skip)]
    pub announced: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = HookIgnored)]
pub struct Ignored {
    pub what: String,
    pub why: String,
}

impl Published {
    /// Creates one with a lower-case path: registries accept no upper case, and some owner names on GitHub have some.
    fn new(registry: &str, path: &str, tag: Option<&str>) -> Result<Self, Unreadable> {
        let path = path.to_lowercase();
        let name = match tag {
            Some(tag) => format!("{registry}/{path}:{tag}"),
            None => format!("{registry}/{path}"),
        };
        let image: ImageRef = name
            .parse()
            .map_err(|error: refit_model::image::ImageRefError| Unreadable(error.to_string()))?;
        Ok(Self {
            repository: image.repository(),
            tag: tag.map(str::to_owned),
            digest: None,
        })
    }

    /// Adds the reported digest. An invalid one is ignored.
    fn with_digest(mut self, digest: Option<&str>) -> Self {
        self.digest = digest.filter(|digest| is_digest(digest)).map(str::to_owned);
        self
    }

    /// Returns the image as `repository:tag`, for people.
    pub fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.repository),
            None => self.repository.clone(),
        }
    }
}

impl Scoped {
    /// Selects the images that the active policy may pull, according to its `grants`. The others need no check.
    pub fn new(published: Vec<Published>, grants: &Grants) -> Self {
        let mut scoped = Self::default();
        // If an image has several digests, the last one counts.
        let distinct = published.into_iter().map(|image| (image.name(), image));
        let distinct: BTreeMap<String, Published> = distinct.collect();
        for (index, published) in distinct.into_values().enumerate() {
            if index == PUBLISHED_MAX {
                scoped.ignored.push(Ignored {
                    what: "the rest".into(),
                    why: format!("a delivery may name {PUBLISHED_MAX} images"),
                });
                break;
            }
            let allowed = published
                .repository
                .parse()
                .map_err(|error: refit_model::image::ImageRefError| error.to_string())
                .and_then(|image| grants.may_pull(&image));
            match allowed {
                Ok(()) => {
                    scoped.accepted.push(published.name());
                    if published.tag.is_some()
                        && let Some(digest) = &published.digest
                    {
                        scoped.announced.insert(published.name(), digest.clone());
                    }
                    scoped.repositories.insert(published.repository);
                }
                Err(why) => scoped.ignored.push(Ignored {
                    what: published.name(),
                    why,
                }),
            }
        }
        scoped
    }

    /// Returns a result that ignores the whole delivery.
    pub fn ignoring(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            ignored: vec![Ignored {
                what: what.into(),
                why: why.into(),
            }],
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::grants::{GrantPatterns, Verb};

    fn grants(verbs: &[Verb]) -> Grants {
        Grants::new(&GrantPatterns {
            images: vec!["ghcr.io/acme/*".into()],
            containers: vec![],
            labels: Default::default(),
            environment: vec![],
            verbs: verbs.to_vec(),
            followers: false,
        })
        .unwrap()
    }

    fn published(path: &str, tag: Option<&str>) -> Published {
        Published::new("ghcr.io", path, tag).unwrap()
    }

    #[test]
    fn image_without_grant_is_ignored_with_reason() {
        let delivery = vec![
            published("Acme/App", Some("v2")),
            published("acme/app", Some("v2")),
            published("acme/app", None),
            published("other/app", Some("v1")),
        ];
        let scoped = Scoped::new(delivery.clone(), &grants(&[Verb::Pull]));
        assert_eq!(scoped.accepted, ["ghcr.io/acme/app", "ghcr.io/acme/app:v2"]);
        assert_eq!(scoped.repositories, ["ghcr.io/acme/app".to_owned()].into());
        assert_eq!(
            scoped.ignored,
            [Ignored {
                what: "ghcr.io/other/app:v1".into(),
                why: "no pattern of `[grants] images` covers `ghcr.io/other/app`".into()
            }]
        );
        let scoped = Scoped::new(delivery, &grants(&[Verb::Inspect]));
        assert!(scoped.accepted.is_empty(), "a policy that may not pull");
    }

    #[test]
    fn last_digest_of_tag_is_announced() {
        let (a, b) = (["a"; 64].concat(), ["b"; 64].concat());
        let (a, b) = (format!("sha256:{a}"), format!("sha256:{b}"));
        let announced = |tag, digest: &str| published("acme/app", tag).with_digest(Some(digest));
        let all = vec![
            announced(Some("v1"), &b),
            announced(Some("v1"), &a),
            announced(Some("v2"), "sha256:0afb"),
            announced(None, &b),
        ];
        let scoped = Scoped::new(all, &grants(&[Verb::Pull]));
        let expected = [("ghcr.io/acme/app:v1".to_owned(), a)];
        assert_eq!(scoped.announced, expected.into());
        assert_eq!(scoped.accepted.len(), 3);
    }

    #[test]
    fn invalid_name_is_rejected() {
        for (path, tag) in [
            ("acme/../app", None),
            ("", None),
            ("acme/app", Some("a b")),
            ("acme/app", Some("")),
            ("acme/app@sha256:ab", None),
        ] {
            let published = Published::new("ghcr.io", path, tag);
            assert!(published.is_err(), "{path:?} {tag:?}: {published:?}");
        }
    }

    #[test]
    fn delivery_with_thousands_of_images_is_truncated() {
        let delivery = (0..1000).map(|n| published(&format!("acme/a{n}"), None));
        let scoped = Scoped::new(delivery.collect(), &grants(&[Verb::Pull]));
        assert_eq!(scoped.accepted.len(), PUBLISHED_MAX);
        assert_eq!(scoped.ignored[0].what, "the rest");
    }
}
