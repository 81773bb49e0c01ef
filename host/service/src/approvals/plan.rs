//! The part of a refresh plan that a person needs to decide. Refit stores it with the approval, compares it with a new plan
//! when somebody approves, and then limits the refresh to it.

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

/// Containers with a full description. For any others the plan keeps only what limits the refresh: with this bound the plan of
/// 5,000 containers, the default maximum of a refresh, takes about a megabyte.
const DESCRIBED_MAX: usize = 500;
/// The maximum length of a stored reason.
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
    pub fn from_report(report: &Report) -> Self {
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
                    .map(|failure| shorten(&failure.sentence())),
            })
            .collect();
        let (mut containers, mut others) = (Vec::new(), Vec::new());
        for container in &report.containers {
            let recreation = container
                .recreation
                .as_ref()
                .filter(|recreation| recreation.outcome == RecreationOutcome::WouldRecreate);
            let Some(recreation) = recreation else {
                others.push(container.name.clone());
                continue;
            };
            let mut planned_container = PlannedContainer {
                name: container.name.clone(),
                id: Some(recreation.old_id.clone()),
                strategy: recreation.strategy,
                image: recreation.image.clone(),
                from_image_id: None,
                rule: None,
                reason: None,
                followed: recreation.followed.clone(),
                follower_ids: recreation.follower_ids.clone(),
            };
            if containers.len() < DESCRIBED_MAX {
                planned_container.from_image_id = recreation.from_image_id.clone();
                planned_container.rule = container.rule.as_deref().map(shorten);
                planned_container.reason = container.reason.as_deref().map(shorten);
            }
            containers.push(planned_container);
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

    /// Returns the updates that this plan would use.
    pub fn available_updates(&self) -> Vec<AvailableUpdate> {
        let used_images = self.images.iter().filter(|image| self.uses(image));
        used_images
            .filter_map(|image| {
                Some(AvailableUpdate {
                    image: image.image.clone(),
                    digest: image.digest.clone()?,
                })
            })
            .collect()
    }

    /// Returns whether the plan pulls this image or recreates a container with it.
    fn uses(&self, image: &PlannedImage) -> bool {
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
        let index = self.containers.binary_search_by(by_name).ok()?;
        self.containers.get(index)
    }

    /// Compares this plan with a new plan for the same request. A container that has disappeared or was refreshed since then
    /// does not count as a change. Neither does a new container: the scope excludes it.
    pub(super) fn compare(&self, now: &Self) -> PlanChanges {
        let mut changes = PlanChanges::default();
        for image in &now.images {
            let name = &image.image;
            let before = self.image(name);
            let digest = before.and_then(|before| before.digest.as_deref());
            match (digest, image.digest.as_deref()) {
                (Some(old_digest), Some(new_digest)) if old_digest != new_digest => {
                    changes.moved.push(format!(
                        "`{name}` stood for `{old_digest}`, and stands for `{new_digest}` now"
                    ))
                }
                (None, Some(new_digest)) if now.uses(image) => changes.moved.push(format!(
                    "`{name}` was not there, and stands for `{new_digest}` now"
                )),
                (Some(_), None) if before.is_some_and(|before| self.uses(before)) => {
                    let problem = image.problem.clone();
                    let unknown = format!("what `{name}` stands for now is not known");
                    changes.unknown.push(problem.unwrap_or(unknown));
                }
                (Some(_) | None, _) => {}
            }
        }
        for container in &now.containers {
            let name = &container.name;
            match self.container(name) {
                Some(before) => changes.moved.extend(difference(before, container)),
                None if self.others.contains(name) => changes
                    .moved
                    .push(format!("`{name}` would be recreated too now")),
                None => {}
            }
        }
        changes
    }

    /// Returns whether the other plan includes all work of this plan, with the same images.
    pub(super) fn is_covered_by(&self, other: &Self) -> bool {
        let used_images = self.images.iter().filter(|image| self.uses(image));
        let same_images = used_images.map(|image| (&image.digest, other.image(&image.image)));
        let mut same_images = same_images.map(|(digest, other_image)| {
            other_image.is_some_and(|other_image| other_image.digest == *digest)
        });
        let mut same_containers = self.containers.iter().map(|container| {
            let other_container = other.container(&container.name);
            other_container
                .is_some_and(|other_container| difference(other_container, container).is_none())
        });
        same_images.all(|same| same) && same_containers.all(|same| same)
    }

    /// Returns the scope that limits the refresh to this plan.
    pub(super) fn approved_scope(&self, id: Id) -> ApprovedScope {
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

/// Returns how two plans for a container differ, as a sentence. A follower that has disappeared is no difference.
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
    let planned_followers = before.followers();
    let followers = now.followers();
    let (new_follower, _) = followers
        .iter()
        .find(|(follower, id)| planned_followers.get(*follower) != Some(id))?;
    Some(format!(
        "`{}` would be recreated with `{name}` now",
        new_follower
    ))
}

/// The changes since a plan was made.
#[derive(Debug, Default)]
pub(super) struct PlanChanges {
    /// What has changed, a sentence each.
    pub(super) moved: Vec<String>,
    /// What Refit could not check, and why.
    pub(super) unknown: Vec<String>,
}

fn shorten(text: &str) -> String {
    let mut characters = text.chars();
    let mut short: String = characters.by_ref().take(REASON_CHARACTERS_MAX).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}
