//! The state of each watched image: whether it is outdated, and what defers its update. Pure functions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use refit_model::diagnostic::Diagnostic;
use refit_model::image::ImageRef;
use refit_model::pull::{ImageOutcome, ImageRecord};
use refit_model::recreation::RecreationOutcome;
use refit_model::report::Report;
use refit_model::request::Trigger;
use refit_refresh::RefreshError;
use serde::Serialize;

use super::memory::{Memory, Pause};
use super::update_sink::AvailableUpdate;
use super::windows::Windows;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[derive(utoipa::ToSchema)]
#[schema(as = WatchVerdict)]
pub enum Verdict {
    /// What its registry has is here, and no container that follows it is to be recreated.
    Current,
    Behind,
    /// It could not be found out.
    Unknown,
}

/// What keeps a finding from being adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[derive(utoipa::ToSchema)]
#[schema(as = WatchHeldBy)]
pub enum DeferReason {
    Pause,
    /// A refresh for it is under way.
    Refresh,
    Window,
    Age,
    /// The last refresh for it failed, or none could be begun.
    Backoff,
    Approval,
    Rejected,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = WatchHeld)]
pub struct Deferral {
    pub by: DeferReason,
    /// `None`: until somebody does something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The number of the approval that it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<u64>,
}

impl Deferral {
    pub fn new(by: DeferReason, until: Option<Timestamp>) -> Self {
        Self {
            by,
            until,
            approval: None,
        }
    }
}

/// An image that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = WatchedImage)]
pub struct Watched {
    pub image: ImageRef,
    pub verdict: Verdict,
    /// Since when the verdict is this one.
    pub since: Timestamp,
    /// The digest of the one on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    /// The digest of the one in the registry, as of the last check that said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// When we saw that one there first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Timestamp>,
    /// When its registry was asked last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<Timestamp>,
    /// Why it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Diagnostic>,
    /// Containers that would be recreated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Deferral>,
}

impl Watched {
    pub fn available_update(&self) -> Option<AvailableUpdate> {
        let digest = match self.verdict {
            Verdict::Behind => self.remote.clone()?,
            Verdict::Current | Verdict::Unknown => return None,
        };
        Some(AvailableUpdate {
            image: self.image.clone(),
            digest,
        })
    }
}

/// The result of a check for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub image: ImageRef,
    pub verdict: Verdict,
    pub remote: Option<String>,
    pub reason: Option<Diagnostic>,
    pub containers: Vec<String>,
}

/// Returns the state of each image in a plan. An image is outdated if the plan pulls it or recreates a container with it. This
/// also finds an image that another program pulled and no container uses yet.
pub fn image_states(report: &Report) -> Vec<Seen> {
    let mut last: BTreeMap<String, &ImageRecord> = BTreeMap::new();
    last.extend(
        report
            .images
            .iter()
            .map(|record| (record.image.to_string(), record)),
    );
    let state = |record: &ImageRecord| {
        let containers = to_recreate(report, record);
        let verdict = match record.outcome {
            ImageOutcome::Failed => Verdict::Unknown,
            ImageOutcome::WouldPull | ImageOutcome::Pulled => Verdict::Behind,
            ImageOutcome::UpToDate if containers.is_empty() => Verdict::Current,
            ImageOutcome::UpToDate => Verdict::Behind,
        };
        Seen {
            image: record.image.clone(),
            verdict,
            remote: record.digest.clone(),
            reason: record.failure.clone(),
            containers,
        }
    };
    last.into_values().map(state).collect()
}

/// Returns the containers that the plan recreates with this image.
fn to_recreate(report: &Report, record: &ImageRecord) -> Vec<String> {
    let recreations = report
        .containers
        .iter()
        .filter_map(|container| container.recreation.as_ref());
    let planned =
        recreations.filter(|recreation| recreation.outcome == RecreationOutcome::WouldRecreate);
    let same_image =
        planned.filter(|recreation| is_same_image(recreation.to_image_id.as_str(), record));
    same_image
        .map(|recreation| recreation.container.clone())
        .collect()
}

/// Returns whether the id is the image's. For an image that a plan would pull, it knows only the digest, and uses it as the id.
fn is_same_image(image_id: &str, record: &ImageRecord) -> bool {
    match &record.id {
        Some(id) => id.as_str() == image_id,
        None => record.digest.as_deref() == Some(image_id),
    }
}

/// The result of a refresh for one update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// The refresh did something, and nothing failed.
    Progress,
    /// The refresh did nothing, or something failed: an immediate retry would have the same result.
    Nothing,
}

pub fn update_result(update: &AvailableUpdate, answer: Result<&Report, &RefreshError>) -> Came {
    let Ok(report) = answer else {
        return Came::Nothing;
    };
    let mut records = report.images.iter().rev();
    let Some(record) = records.find(|record| record.image == update.image) else {
        return Came::Nothing;
    };
    let recreations = report
        .containers
        .iter()
        .filter_map(|container| container.recreation.as_ref());
    let mut image_recreations =
        recreations.filter(|recreation| is_same_image(recreation.to_image_id.as_str(), record));
    let has_failed = record.outcome == ImageOutcome::Failed
        || image_recreations
            .clone()
            .any(|recreation| recreation.outcome.is_failure());
    let is_done = record.outcome == ImageOutcome::Pulled
        || image_recreations.any(|recreation| {
            matches!(
                recreation.outcome,
                RecreationOutcome::Recreated | RecreationOutcome::Removed
            )
        });
    match is_done && !has_failed {
        true => Came::Progress,
        false => Came::Nothing,
    }
}

/// The rules that decide when an update may be applied.
pub struct RolloutRules<'a> {
    pub windows: &'a Windows,
    pub minimum_age: SignedDuration,
    pub paused: Option<&'a Pause>,
    /// Repositories with a running refresh.
    pub under_way: &'a BTreeSet<String>,
}

impl RolloutRules<'_> {
    /// Returns what defers an update. Of several reasons, it returns the one that lasts longest.
    pub fn deferral(
        &self,
        update: &AvailableUpdate,
        memory: &Memory,
        now: Timestamp,
    ) -> Option<Deferral> {
        if self.paused.is_some() {
            return Some(Deferral::new(DeferReason::Pause, None));
        }
        if self.under_way.contains(&update.image.repository()) {
            return Some(Deferral::new(DeferReason::Refresh, None));
        }
        let future = |at: Option<Timestamp>| at.filter(|at| *at > now);
        let first_seen = memory.first_seen(update).unwrap_or(now);
        let old_enough = first_seen
            .checked_add(self.minimum_age)
            .unwrap_or(Timestamp::MAX);
        let (_, retry_at) = memory.failures(update);
        let reasons = [
            (DeferReason::Window, self.windows.next_opening(now)),
            (DeferReason::Age, future(Some(old_enough))),
            (DeferReason::Backoff, future(retry_at)),
        ];
        let active = reasons
            .into_iter()
            .filter_map(|(by, until)| Some((by, until?)));
        let (by, until) = active.max_by_key(|(_, until)| *until)?;
        Some(Deferral::new(by, Some(until)))
    }
}

/// Defers all updates of a repository if one is deferred: a refresh takes whole repositories.
pub fn defer_whole_repositories(images: &mut BTreeMap<String, Watched>) {
    let mut deferrals: HashMap<String, Deferral> = HashMap::new();
    for watched in images.values() {
        if let Some(deferral) = &watched.held {
            let other = deferrals.entry(watched.image.repository());
            let other = other.or_insert_with(|| deferral.clone());
            // `None` lasts longest.
            if other.until.is_some() && deferral.until.is_none_or(|until| Some(until) > other.until)
            {
                *other = deferral.clone();
            }
        }
    }
    for watched in images.values_mut() {
        if watched.verdict == Verdict::Behind && watched.held.is_none() {
            watched.held = deferrals.get(&watched.image.repository()).cloned();
        }
    }
}

/// How many images are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = WatchSummary)]
pub struct Summary {
    pub current: usize,
    pub behind: usize,
    pub unknown: usize,
}

/// The last look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = WatchLook)]
pub struct CheckSummary {
    pub started: Timestamp,
    pub duration_ms: u64,
    pub trigger: Trigger,
    /// Of how many images.
    pub images: usize,
    /// Why nothing is known: the engine or the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Diagnostic>,
}

/// All that is known at one moment.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Watch)]
pub struct Snapshot {
    pub enabled: bool,
    /// Whether it looks by itself. Otherwise it looks when somebody says that an image may have changed.
    pub scheduled: bool,
    pub paused: Option<Pause>,
    pub next_look: Option<Timestamp>,
    pub last_look: Option<CheckSummary>,
    /// Rises with each look.
    pub looks: u64,
    pub summary: Summary,
    pub images: Vec<Watched>,
    /// What it knew could not be read, or cannot be kept over a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Diagnostic>,
}

impl Snapshot {
    /// Returns the snapshot of a daemon without a watcher.
    pub fn disabled() -> Self {
        Self {
            enabled: false,
            scheduled: false,
            paused: None,
            next_look: None,
            last_look: None,
            looks: 0,
            summary: Summary::default(),
            images: vec![],
            problem: None,
        }
    }
}

pub fn summarize<'a>(images: impl Iterator<Item = &'a Watched>) -> Summary {
    let mut summary = Summary::default();
    for watched in images {
        match watched.verdict {
            Verdict::Current => summary.current += 1,
            Verdict::Behind => summary.behind += 1,
            Verdict::Unknown => summary.unknown += 1,
        }
    }
    summary
}

#[cfg(test)]
mod tests;
