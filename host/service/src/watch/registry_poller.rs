//! One check: the images to watch, their digests in the registries, and the containers that are outdated.
//!
//! The policy, not the watcher, knows which images there are. So a check is a plan through the policy, with digests that Refit
//! fetches in one batch. The previous plan shows which images to fetch. The first plan of a policy uses the images on this
//! machine, and asks no registry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use refit_capabilities::digest_error::pull_error;
use refit_capabilities::dry_run::RemoteDigests;
use refit_capabilities::live::EngineContext;
use refit_engine::PullError;
use refit_model::image::ImageRef;
use refit_model::report::Report;
use refit_model::request::{Request, Trigger};
use refit_refresh::{RefreshError, Refresher};
use refit_registry::digests::{DigestError, Digests, Found, Reason};
use tokio_util::sync::CancellationToken;

use super::schedule::{Backoff, chance};

/// The backoff after a registry refused a request: Refit rarely checks an image that is not published yet.
const REFUSED_BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(2 * 60),
    most: Duration::from_secs(15 * 60),
};
/// The backoff after a registry did not answer: it may be back in a moment.
const UNAVAILABLE_BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(5),
    most: Duration::from_secs(5 * 60),
};
/// How long a check counts as fresh. Refit checks an older one again before it applies an update. That only matters if a window
/// or an age ends between two checks.
const FRESH_FOR: SignedDuration = SignedDuration::from_mins(15);
/// The maximum number of concurrent lookups of images on this machine.
const LOCAL_AT_ONCE: usize = 8;

/// The maximum number of images in memory. Without a check of all images, those of removed containers would stay.
const IMAGES_MAX: usize = 2000;

/// The digest that a plan gets for an image that is not on this machine, while Refit only finds out which images there are.
const NOT_HERE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// The images of a check, by repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Only(BTreeSet<String>),
}

impl Scope {
    pub fn contains(&self, repository: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(repositories) => repositories.contains(repository),
        }
    }

    /// Returns a request for a refresh of these images.
    pub fn request(&self, trigger: Trigger) -> Request {
        Request {
            trigger,
            targets: vec![],
            images: match self {
                Self::All => vec![],
                Self::Only(repositories) => repositories.iter().cloned().collect(),
            },
            recreate: true,
            force: false,
        }
    }
}

/// The images of its scope whose digest a check requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// All images except those with a recent failure.
    Due,
    /// Images with a failed check whose retry is due.
    Retries,
    /// All images: a client requested the check.
    Forced,
    /// Images whose last check is too old to rely on.
    Stale,
}

/// The last check of an image.
#[derive(Clone, Debug)]
pub struct Check {
    pub at: Timestamp,
    pub found: Result<String, DigestError>,
    /// The number of consecutive failures.
    failures: u32,
    retry_at: Option<Timestamp>,
}

impl Check {
    fn new(
        found: Result<String, DigestError>,
        before: Option<&Self>,
        now: Timestamp,
        chance: f64,
    ) -> Self {
        let Err(error) = &found else {
            return Self {
                at: now,
                found,
                failures: 0,
                retry_at: None,
            };
        };
        // If Refit did not send a request, nothing new has failed.
        let failures = before.map_or(0, |before| before.failures);
        let failures = match error.reason.not_before() {
            Some(_) => failures,
            None => failures.saturating_add(1),
        };
        let backoff = match error.reason {
            Reason::Unavailable { .. } => UNAVAILABLE_BACKOFF,
            Reason::RateLimited { .. } | Reason::Budget { .. } => UNAVAILABLE_BACKOFF,
            Reason::Unauthorized { .. }
            | Reason::NotFound
            | Reason::Nonsense { .. }
            | Reason::NotAManifest { .. }
            | Reason::Credentials(_) => REFUSED_BACKOFF,
        };
        let wait = backoff.wait(failures.max(1), chance);
        let start = error.reason.not_before().unwrap_or(now).max(now);
        Self {
            at: now,
            retry_at: Some(start.checked_add(wait).unwrap_or(Timestamp::MAX)),
            found,
            failures,
        }
    }
}

/// Runs checks, and keeps their results.
pub struct RegistryPoller {
    refresher: Arc<Refresher>,
    digests: Arc<Digests>,
    /// The generation whose images are known. Another policy may use others.
    generation: Option<u64>,
    /// The images that the policy pulled in its last plan. `limits.pulls_max` bounds their number.
    checks: BTreeMap<String, (ImageRef, Option<Check>)>,
}

impl RegistryPoller {
    pub fn new(refresher: Arc<Refresher>, digests: Arc<Digests>) -> Self {
        Self {
            refresher,
            digests,
            generation: None,
            checks: BTreeMap::new(),
        }
    }

    pub async fn check(
        &mut self,
        scope: &Scope,
        trigger: Trigger,
        mode: CheckMode,
        cancel: &CancellationToken,
    ) -> Result<Report, RefreshError> {
        if self.checks.len() > IMAGES_MAX {
            (self.generation, self.checks) = (None, BTreeMap::new());
        }
        let generation = self.refresher.active().number;
        if self.generation != Some(generation) {
            self.discover_images(cancel).await?;
            self.generation = Some(generation);
        }
        self.fetch_digests(scope, mode).await;
        let known = self.checks.values().filter_map(|(image, check)| {
            let check = check.as_ref()?;
            Some((image.clone(), check.found.clone()))
        });
        let table = Arc::new(DigestTable {
            digests: self.digests.clone(),
            known: known.collect(),
            requests: Mutex::default(),
        });
        let request = scope.request(trigger);
        let report = self
            .refresher
            .plan_with_digests(&request, table.clone(), cancel.clone())
            .await;
        self.record_plan(scope, table.take(), report.is_ok());
        report
    }

    /// Returns the last check of an image, if there is one.
    pub fn last_check(&self, image: &ImageRef) -> Option<&Check> {
        let (_, check) = self.checks.get(&image.to_string())?;
        check.as_ref()
    }

    /// Returns the repositories whose retry is due, and the time of the next retry after that.
    pub fn retries(&self, now: Timestamp) -> (BTreeSet<String>, Option<Timestamp>) {
        let all = self.checks.values();
        let retries = all.filter_map(|(image, check)| Some((image, check.as_ref()?.retry_at?)));
        let (due, later): (Vec<_>, Vec<_>) = retries.partition(|(_, at)| *at <= now);
        (
            due.into_iter()
                .map(|(image, _)| image.repository())
                .collect(),
            later.into_iter().map(|(_, at)| at).min(),
        )
    }

    /// Corrects all times after the clock was set back.
    pub fn correct(&mut self, correct_time: impl Fn(Timestamp) -> Timestamp) {
        for (_, check) in self.checks.values_mut() {
            if let Some(check) = check {
                check.at = correct_time(check.at);
                check.retry_at = check.retry_at.map(&correct_time);
            }
        }
    }

    /// Returns the digests of the images that are on this machine and came from their registry. If an image has several
    /// digests, it returns the registry's digest, which the caller passes if it is known, and otherwise the first.
    pub async fn local_digests(
        &self,
        images: Vec<(ImageRef, Option<String>)>,
    ) -> HashMap<ImageRef, String> {
        let context = self.refresher.engine_context();
        let (engine, records) = (&context.engine, &context.images);
        let lookups = images.into_iter().map(|(image, remote)| async move {
            // If the lookup fails, the image counts as absent: the result is only displayed.
            let local = engine.image(&image.to_string()).await.ok()?;
            records.record(&image, &local).await;
            let digest = local.digest_in(&image, remote.as_deref());
            let digest = digest.or_else(|| local.digests_in(&image).next().map(str::to_owned))?;
            Some((image, digest))
        });
        let digests = futures_util::stream::iter(lookups).buffer_unordered(LOCAL_AT_ONCE);
        digests.filter_map(async |entry| entry).collect().await
    }

    /// Finds out which images the policy uses.
    async fn discover_images(&mut self, cancel: &CancellationToken) -> Result<(), RefreshError> {
        let local_digests = Arc::new(LocalDigests {
            context: self.refresher.engine_context().clone(),
            requests: Mutex::default(),
        });
        let request = Scope::All.request(Trigger::Schedule);
        let plan = self
            .refresher
            .plan_with_digests(&request, local_digests.clone(), cancel.clone())
            .await;
        plan?;
        let requests = local_digests
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for image in requests.iter() {
            self.checks
                .entry(image.to_string())
                .or_insert_with(|| (image.clone(), None));
        }
        Ok(())
    }

    async fn fetch_digests(&mut self, scope: &Scope, mode: CheckMode) {
        let now = Timestamp::now();
        let in_scope = self
            .checks
            .values()
            .filter(|(image, _)| scope.contains(&image.repository()));
        let is_due = |check: &Option<Check>| {
            let Some(check) = check else { return true };
            let waits = check.retry_at.is_some_and(|at| at > now);
            let retries = check.retry_at.is_some_and(|at| at <= now);
            let is_stale = now.duration_since(check.at).abs() > FRESH_FOR;
            match mode {
                CheckMode::Due => !waits,
                CheckMode::Retries => retries,
                CheckMode::Forced => true,
                CheckMode::Stale => is_stale && !waits,
            }
        };
        let due: Vec<ImageRef> = in_scope
            .filter(|(_, check)| is_due(check))
            .map(|(image, _)| image.clone())
            .collect();
        if due.is_empty() {
            return;
        }
        if mode == CheckMode::Forced {
            let registries: BTreeSet<&str> = due.iter().map(ImageRef::registry).collect();
            for registry in registries {
                self.digests.reconsider(Some(registry));
            }
        }
        let digests = self.digests.of(due).await;
        self.record_digests(digests);
    }

    /// Records digests. Images that failed together are retried together.
    fn record_digests(&mut self, digests: Found) {
        let (now, chance) = (Timestamp::now(), chance());
        for (image, found) in digests {
            let name = image.to_string();
            let before = self.checks.get(&name).and_then(|(_, check)| check.as_ref());
            let check = Check::new(found, before, now, chance);
            self.checks.insert(name, (image, Some(check)));
        }
    }

    fn record_plan(
        &mut self,
        scope: &Scope,
        DigestRequests { all, live }: DigestRequests,
        is_complete: bool,
    ) {
        self.record_digests(live);
        if is_complete && *scope == Scope::All {
            self.checks.retain(|_, (image, _)| all.contains(image));
        }
    }
}

/// The digests of one batch. It fetches any other digest when the policy asks: a policy may use an image that it did not use
/// before.
struct DigestTable {
    digests: Arc<Digests>,
    known: Found,
    requests: Mutex<DigestRequests>,
}

#[derive(Default)]
struct DigestRequests {
    all: std::collections::HashSet<ImageRef>,
    live: Found,
}

impl DigestTable {
    fn requests(&self) -> std::sync::MutexGuard<'_, DigestRequests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> DigestRequests {
        std::mem::take(&mut self.requests())
    }
}

#[async_trait]
impl RemoteDigests for DigestTable {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        self.requests().all.insert(image.clone());
        if let Some(known) = self.known.get(image) {
            return known.clone().map_err(pull_error);
        }
        let mut digests = self.digests.of([image.clone()]).await;
        let answer = digests.get(image).cloned();
        self.requests().live.extend(digests.drain());
        match answer {
            Some(answer) => answer.map_err(pull_error),
            None => Err(PullError::Incomplete {
                image: image.clone(),
            }),
        }
    }
}

/// Answers with the digests on this machine, as if the registries had the same.
struct LocalDigests {
    context: Arc<EngineContext>,
    requests: Mutex<std::collections::HashSet<ImageRef>>,
}

#[async_trait]
impl RemoteDigests for LocalDigests {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(image.clone());
        let digest = match self.context.engine.image(&image.to_string()).await {
            Ok(local) => {
                // Record it before another program pulls.
                self.context.images.record(image, &local).await;
                // Any of its digests will do: the plan only asks whether the image has it.
                local.digests_in(image).next().map(str::to_owned)
            }
            Err(error) if error.is_not_found() => None,
            Err(source) => {
                return Err(PullError::Engine {
                    image: image.clone(),
                    source,
                });
            }
        };
        Ok(digest.unwrap_or_else(|| NOT_HERE.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reason: Reason) -> DigestError {
        DigestError {
            registry: "ghcr.io".into(),
            image: "ghcr.io/acme/app:1".parse().unwrap(),
            reason,
        }
    }

    fn wait(check: &Check, now: Timestamp) -> i64 {
        let retry = check.retry_at.expect("it failed");
        retry.duration_since(now).as_secs()
    }

    #[test]
    fn failed_check_backs_off() {
        let now = Timestamp::now();
        let unavailable = || {
            error(Reason::Unavailable {
                problem: "it is down".into(),
            })
        };
        let mut check = None;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let next = Check::new(Err(unavailable()), check.as_ref(), now, 0.0);
            waits.push(wait(&next, now));
            check = Some(next);
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        let missing = Check::new(Err(error(Reason::NotFound)), None, now, 0.0);
        assert_eq!(wait(&missing, now), 120);
        let found = Check::new(Ok("sha256:a".into()), check.as_ref(), now, 0.0);
        assert_eq!((found.failures, found.retry_at), (0, None));
    }

    #[test]
    fn skipped_request_is_no_failure() {
        let now = Timestamp::now();
        let until = now + SignedDuration::from_secs(600);
        let mut check = None;
        for _ in 0..3 {
            let limited = error(Reason::RateLimited { until });
            let next = Check::new(Err(limited), check.as_ref(), now, 0.0);
            assert_eq!((next.failures, wait(&next, now)), (0, 605));
            check = Some(next);
        }
    }
}
