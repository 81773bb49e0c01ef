//! What a refresh would do, as much of it as a person needs to say yes or no: kept with what is held, compared with what is so
//! when it is approved, and then the bounds of the refresh.

use std::collections::BTreeMap;

use refit_capabilities::approved_scope::{ApprovedContainer, ApprovedScope};
use refit_model::container::ContainerId;
use refit_model::image::{ImageId, ImageRef};
use refit_model::pull::ImageOutcome;
use refit_model::recreation::{RecreationOutcome, Strategy};
use refit_model::report::{PolicyReport, Report, Summary};
use serde::{Deserialize, Serialize};

use super::Id;
use crate::watch::update_sink::AvailableUpdate;

/// Containers that are described. Of more there is what the refresh is held to: with this bound the plan of 5,000 containers, as
/// many as a refresh recreates unless told otherwise, is about a megabyte.
const DESCRIBED_MAX: usize = 500;
/// The longest reason that is kept.
const REASON_CHARACTERS_MAX: usize = 300;

/// The JSON is documented in `docs/approvals.md` and stable.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ApprovalPlan)]
pub struct Plan {
    pub policy: PolicyReport,
    pub summary: Summary,
    pub images: Vec<PlannedImage>,
    /// Those that would be recreated, sorted by name.
    pub containers: Vec<PlannedContainer>,
    /// The names of the others that the policy decided about.
    pub others: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedImage {
    pub image: ImageRef,
    pub outcome: ImageOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Why nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedContainer {
    pub name: String,
    /// The id that it has. Absent in approvals of older versions, which must be asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ContainerId>,
    pub strategy: Strategy,
    /// What it would run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_image_id: Option<ImageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Containers that depend on it and would be replaced with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followed: Vec<String>,
    /// Their ids, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub follower_ids: Vec<ContainerId>,
}

impl PlannedContainer {
    fn followers(&self) -> BTreeMap<String, ContainerId> {
        let ids = self.follower_ids.iter().cloned();
        self.followed.iter().cloned().zip(ids).collect()
    }
}

impl Plan {
    pub fn of(report: &Report) -> Self {
        let images: Vec<PlannedImage> = report
            .images
            .iter()
            .map(|record| PlannedImage {
                image: record.image.clone(),
                outcome: record.outcome,
                digest: record.digest.clone(),
                problem: record
                    .failure
                    .as_ref()
                    .map(|told| shortened(&told.sentence())),
            })
            .collect();
        let (mut containers, mut others) = (Vec::new(), Vec::new());
        for container in &report.containers {
            let planned = container
                .recreation
                .as_ref()
                .filter(|planned| planned.outcome == RecreationOutcome::WouldRecreate);
            let Some(planned) = planned else {
                others.push(container.name.clone());
                continue;
            };
            let mut described = PlannedContainer {
                name: container.name.clone(),
                id: Some(planned.old_id.clone()),
                strategy: planned.strategy,
                image: planned.image.clone(),
                from_image_id: None,
                rule: None,
                reason: None,
                followed: planned.followed.clone(),
                follower_ids: planned.follower_ids.clone(),
            };
            if containers.len() < DESCRIBED_MAX {
                described.from_image_id = planned.from_image_id.clone();
                described.rule = container.rule.as_deref().map(shortened);
                described.reason = container.reason.as_deref().map(shortened);
            }
            containers.push(described);
        }
        Self {
            policy: report.policy.clone(),
            summary: report.summary,
            images,
            containers,
            others,
        }
    }

    pub fn has_work(&self) -> bool {
        self.summary.would_pull + self.summary.would_recreate > 0
    }

    /// The images that it is about.
    pub fn findings(&self) -> Vec<AvailableUpdate> {
        let found = self.images.iter().filter(|image| self.is_about(image));
        found
            .filter_map(|image| {
                Some(AvailableUpdate {
                    image: image.image.clone(),
                    digest: image.digest.clone()?,
                })
            })
            .collect()
    }

    /// Whether something is to be done with it: pulled, or given to a container.
    fn is_about(&self, image: &PlannedImage) -> bool {
        image.outcome == ImageOutcome::WouldPull
            || self
                .containers
                .iter()
                .any(|container| container.image.as_ref() == Some(&image.image))
    }

    fn image(&self, image: &ImageRef) -> Option<&PlannedImage> {
        self.images.iter().find(|planned| planned.image == *image)
    }

    fn container(&self, name: &str) -> Option<&PlannedContainer> {
        let by_name = |planned: &PlannedContainer| planned.name.as_str().cmp(name);
        let at = self.containers.binary_search_by(by_name).ok()?;
        self.containers.get(at)
    }

    /// Beside a plan of the same that is made now. A container that is gone, or was refreshed meanwhile, takes nothing from what
    /// was approved; one that came is left alone by the scope.
    pub(super) fn beside(&self, now: &Self) -> Since {
        let mut since = Since::default();
        for image in &now.images {
            let name = &image.image;
            let before = self.image(name);
            let digest = before.and_then(|before| before.digest.as_deref());
            match (digest, image.digest.as_deref()) {
                (Some(then), Some(is)) if then != is => since.moved.push(format!(
                    "`{name}` stood for `{then}`, and stands for `{is}` now"
                )),
                (None, Some(is)) if now.is_about(image) => since
                    .moved
                    .push(format!("`{name}` was not there, and stands for `{is}` now")),
                (Some(_), None) if before.is_some_and(|before| self.is_about(before)) => {
                    let problem = image.problem.clone();
                    let unknown = format!("what `{name}` stands for now is not known");
                    since.unknown.push(problem.unwrap_or(unknown));
                }
                (Some(_) | None, _) => {}
            }
        }
        for container in &now.containers {
            let name = &container.name;
            match self.container(name) {
                Some(before) => since.moved.extend(difference(before, container)),
                None if self.others.contains(name) => since
                    .moved
                    .push(format!("`{name}` would be recreated too now")),
                None => {}
            }
        }
        since
    }

    /// Whether all that would be done is to be done in another plan too, with the same images.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let pulled = self.images.iter().filter(|image| self.is_about(image));
        let same_images = pulled.map(|image| (&image.digest, other.image(&image.image)));
        let mut same_images =
            same_images.map(|(digest, there)| there.is_some_and(|there| there.digest == *digest));
        let mut same_containers = self.containers.iter().map(|container| {
            let there = other.container(&container.name);
            there.is_some_and(|there| difference(there, container).is_none())
        });
        same_images.all(|same| same) && same_containers.all(|same| same)
    }

    /// What was approved, and no more.
    pub(super) fn scope(&self, id: Id) -> ApprovedScope {
        let digests = self.images.iter().filter_map(|planned| {
            let digest = planned.digest.clone()?;
            Some((planned.image.clone(), digest))
        });
        let containers = self.containers.iter().filter_map(|planned| {
            let approved = ApprovedContainer {
                id: planned.id.clone()?,
                strategy: planned.strategy,
                image: planned.image.clone()?,
                followers: planned.followers(),
            };
            Some((planned.name.clone(), approved))
        });
        ApprovedScope::new(
            format!("approval {id}"),
            digests.collect(),
            containers.collect(),
            self.others.iter().cloned().collect(),
        )
    }
}

/// Why the one plan for a container is not the other, as a sentence. A follower that is gone takes nothing from what was planned.
fn difference(before: &PlannedContainer, now: &PlannedContainer) -> Option<String> {
    let name = &now.name;
    if before.id.is_none() || before.id != now.id {
        return Some(format!("`{name}` is another container now"));
    }
    if before.strategy != now.strategy {
        return Some(format!("`{name}` would be recreated in another way now"));
    }
    if before.image != now.image {
        return Some(format!("`{name}` would get another image now"));
    }
    let planned = before.followers();
    let followers = now.followers();
    let new = followers
        .iter()
        .find(|(follower, id)| planned.get(*follower) != Some(id))?;
    Some(format!("`{}` would be recreated with `{name}` now", new.0))
}

/// What has become of a plan since it was made.
#[derive(Debug, Default)]
pub(super) struct Since {
    /// What is otherwise now, each a sentence.
    pub(super) moved: Vec<String>,
    /// What could not be looked at, and why.
    pub(super) unknown: Vec<String>,
}

fn shortened(text: &str) -> String {
    let mut characters = text.chars();
    let mut short: String = characters.by_ref().take(REASON_CHARACTERS_MAX).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}
