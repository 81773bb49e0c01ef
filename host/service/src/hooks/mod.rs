//! Webhooks: somebody says that an image was published. Who may say so, what they said, and which of it concerns us.
//!
//! Nothing is parsed before it is known to come from somebody who has the secret: [`secret`] says who, [`github`] and
//! [`registry`] read what they send. What is said is a reason to look and never a reason to do, so saying it twice, late or
//! falsely costs a look. Knows nothing of HTTP, and does not ring: who calls does.

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

/// Images that one delivery may name. GitHub names one, a registry a few.
const PUBLISHED_MAX: usize = 256;

/// The webhooks that are taken.
#[derive(Debug, Default)]
pub struct Hooks {
    pub github: Option<Github>,
    pub registries: Vec<RegistryHook>,
}

impl Hooks {
    /// Whether none is taken.
    pub fn is_empty(&self) -> bool {
        self.github.is_none() && self.registries.is_empty()
    }
}

/// An image of which somebody says that it was published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    repository: String,
    tag: Option<String>,
    /// What the tag means from now on, as it is said. The registry may show it later.
    digest: Option<String>,
}

/// What cannot be read although it comes from somebody who has the secret.
#[derive(Debug, thiserror::Error)]
#[error("the delivery cannot be read: {0}")]
pub struct Unreadable(String);

impl From<serde_json::Error> for Unreadable {
    /// The error quotes what was sent.
    fn from(error: serde_json::Error) -> Self {
        const BYTES_MAX: usize = 300;
        Self(printable(&error.to_string(), BYTES_MAX))
    }
}

impl Hints for Unreadable {}

/// It does not come from somebody who has the secret.
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
    /// Registries take no upper case, and GitHub's names of owners have some.
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

    /// With the digest that is said of it. What is none is left out.
    fn with_digest(mut self, digest: Option<&str>) -> Self {
        self.digest = digest.filter(|it| is_digest(it)).map(str::to_owned);
        self
    }

    /// For people.
    pub fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", self.repository),
            None => self.repository.clone(),
        }
    }
}

impl Scoped {
    /// `grants` are those of the policy that is active: what it may not pull, nobody needs to look at.
    pub fn new(published: Vec<Published>, grants: &Grants) -> Self {
        let mut scoped = Self::default();
        // Of several digests of one image the last one counts.
        let distinct = published.into_iter().map(|one| (one.name(), one));
        let distinct: BTreeMap<String, Published> = distinct.collect();
        for (index, one) in distinct.into_values().enumerate() {
            if index == PUBLISHED_MAX {
                scoped.ignored.push(Ignored {
                    what: "the rest".into(),
                    why: format!("a delivery may name {PUBLISHED_MAX} images"),
                });
                break;
            }
            let may = one
                .repository
                .parse()
                .map_err(|error: refit_model::image::ImageRefError| error.to_string())
                .and_then(|image| grants.may_pull(&image));
            match may {
                Ok(()) => {
                    scoped.accepted.push(one.name());
                    if one.tag.is_some()
                        && let Some(digest) = &one.digest
                    {
                        scoped.announced.insert(one.name(), digest.clone());
                    }
                    scoped.repositories.insert(one.repository);
                }
                Err(why) => scoped.ignored.push(Ignored {
                    what: one.name(),
                    why,
                }),
            }
        }
        scoped
    }

    /// All of it is nothing for us.
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
    fn what_no_grant_covers_is_ignored_and_the_reason_names_the_grant() {
        let said = vec![
            published("Acme/App", Some("v2")),
            published("acme/app", Some("v2")),
            published("acme/app", None),
            published("other/app", Some("v1")),
        ];
        let scoped = Scoped::new(said.clone(), &grants(&[Verb::Pull]));
        assert_eq!(scoped.accepted, ["ghcr.io/acme/app", "ghcr.io/acme/app:v2"]);
        assert_eq!(scoped.repositories, ["ghcr.io/acme/app".to_owned()].into());
        assert_eq!(
            scoped.ignored,
            [Ignored {
                what: "ghcr.io/other/app:v1".into(),
                why: "no pattern of `[grants] images` covers `ghcr.io/other/app`".into()
            }]
        );
        let scoped = Scoped::new(said, &grants(&[Verb::Inspect]));
        assert!(scoped.accepted.is_empty(), "a policy that may not pull");
    }

    #[test]
    fn last_digest_of_a_tag_is_announced() {
        let (a, b) = (["a"; 64].concat(), ["b"; 64].concat());
        let (a, b) = (format!("sha256:{a}"), format!("sha256:{b}"));
        let said = |tag, digest: &str| published("acme/app", tag).with_digest(Some(digest));
        let all = vec![
            said(Some("v1"), &b),
            said(Some("v1"), &a),
            said(Some("v2"), "sha256:0afb"),
            said(None, &b),
        ];
        let scoped = Scoped::new(all, &grants(&[Verb::Pull]));
        let expected = [("ghcr.io/acme/app:v1".to_owned(), a)];
        assert_eq!(scoped.announced, expected.into());
        assert_eq!(scoped.accepted.len(), 3);
    }

    #[test]
    fn a_name_that_is_none_is_not_taken() {
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
    fn a_delivery_that_names_thousands_is_cut_off() {
        let said = (0..1000).map(|n| published(&format!("acme/a{n}"), None));
        let scoped = Scoped::new(said.collect(), &grants(&[Verb::Pull]));
        assert_eq!(scoped.accepted.len(), PUBLISHED_MAX);
        assert_eq!(scoped.ignored[0].what, "the rest");
    }
}
