//! One look: which images there are, what registries have of them, and which containers that leaves behind.
//!
//! The watcher does not know which images there are; the policy does. So a look is a plan through the policy, answered from a
//! table of digests that were asked for in one batch. Which images that batch is for, the plan before it has shown; the first
//! plan of a policy is made over what is on this machine, and no registry is asked for it.

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

/// After a check that a registry answered with a no: an image that is not published yet is asked for seldom.
const ANSWERED: Backoff = Backoff {
    first: Duration::from_secs(2 * 60),
    most: Duration::from_secs(15 * 60),
};
/// After one that it did not answer: it may be back in a moment.
const SILENT: Backoff = Backoff {
    first: Duration::from_secs(5),
    most: Duration::from_secs(5 * 60),
};
/// What is adopted was checked this lately. Only a window or an age that ends between two looks makes it matter.
const FRESH: SignedDuration = SignedDuration::from_mins(15);
/// Images on this machine that are looked up at once.
const LOCAL_AT_ONCE: usize = 8;

/// Images that are remembered. Where nobody looks at all of them, those of containers that are gone would stay.
const IMAGES_MAX: usize = 2000;

/// What an image is answered with that is not here, while it is only found out which images there are.
const NOT_HERE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Which images a look is about, by repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Only(BTreeSet<String>),
}

impl Scope {
    pub fn has(&self, repository: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(repositories) => repositories.contains(repository),
        }
    }

    /// By a schedule, until somebody says otherwise.
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

/// Of which images of its scope a look asks the registries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// All but those whose last check failed not long ago.
    Due,
    /// Those whose last check failed and is to be tried again.
    Retries,
    /// All: somebody wants to know.
    Forced,
    /// Those that were checked so long ago that what was found may not be so any more.
    Stale,
}

/// The last check of an image.
#[derive(Clone, Debug)]
pub struct Check {
    pub at: Timestamp,
    pub found: Result<String, DigestError>,
    /// Those in a row that failed.
    failures: u32,
    retry_at: Option<Timestamp>,
}

impl Check {
    fn new(
        found: Result<String, DigestError>,
        before: Option<&Self>,
        now: Timestamp,
        by: f64,
    ) -> Self {
        let Err(error) = &found else {
            return Self {
                at: now,
                found,
                failures: 0,
                retry_at: None,
            };
        };
        // A registry that is left alone was not asked, so nothing new has failed.
        let failures = before.map_or(0, |before| before.failures);
        let failures = match error.reason.not_before() {
            Some(_) => failures,
            None => failures.saturating_add(1),
        };
        let backoff = match error.reason {
            Reason::Unavailable { .. } => SILENT,
            Reason::RateLimited { .. } | Reason::Budget { .. } => SILENT,
            Reason::Unauthorized { .. }
            | Reason::NotFound
            | Reason::Nonsense { .. }
            | Reason::NotAManifest { .. }
            | Reason::Credentials(_) => ANSWERED,
        };
        let wait = backoff.wait(failures.max(1), by);
        let from = error.reason.not_before().unwrap_or(now).max(now);
        Self {
            at: now,
            retry_at: Some(from.checked_add(wait).unwrap_or(Timestamp::MAX)),
            found,
            failures,
        }
    }
}

/// Makes looks, and remembers what they have shown.
pub struct RegistryPoller {
    refresher: Arc<Refresher>,
    digests: Arc<Digests>,
    /// Which policy was asked which images there are: another one may know others.
    generation: Option<u64>,
    /// What the policy asked for when it last planned. Bounded by `limits.pulls_max`.
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

    pub async fn look(
        &mut self,
        scope: &Scope,
        trigger: Trigger,
        checks: CheckMode,
        cancel: &CancellationToken,
    ) -> Result<Report, RefreshError> {
        if self.checks.len() > IMAGES_MAX {
            (self.generation, self.checks) = (None, BTreeMap::new());
        }
        let generation = self.refresher.active().number;
        if self.generation != Some(generation) {
            self.learn(cancel).await?;
            self.generation = Some(generation);
        }
        self.check(scope, checks).await;
        let known = self.checks.values().filter_map(|(image, check)| {
            let check = check.as_ref()?;
            Some((image.clone(), check.found.clone()))
        });
        let table = Arc::new(Table {
            digests: self.digests.clone(),
            known: known.collect(),
            asked: Mutex::default(),
        });
        let request = scope.request(trigger);
        let report = self
            .refresher
            .look(&request, table.clone(), cancel.clone())
            .await;
        self.keep(scope, table.take(), report.is_ok());
        report
    }

    /// What registries have, as far as it is known.
    pub fn checked(&self, image: &ImageRef) -> Option<&Check> {
        let (_, check) = self.checks.get(&image.to_string())?;
        check.as_ref()
    }

    /// Repositories whose check failed, and is to be tried again by now; and when the next are, otherwise.
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

    /// The clock was wrong.
    pub fn correct(&mut self, by: impl Fn(Timestamp) -> Timestamp) {
        for (_, check) in self.checks.values_mut() {
            if let Some(check) = check {
                check.at = by(check.at);
                check.retry_at = check.retry_at.map(&by);
            }
        }
    }

    /// The digest of each image on this machine, where it is here and came from its registry. Of several digests that of the
    /// registry is taken, which comes with the image where it is known, and otherwise the first.
    pub async fn local(
        &self,
        images: Vec<(ImageRef, Option<String>)>,
    ) -> HashMap<ImageRef, String> {
        let workshop = self.refresher.workshop();
        let (engine, records) = (&workshop.engine, &workshop.images);
        let looks = images.into_iter().map(|(image, remote)| async move {
            // Where it cannot be looked up it is left out, as if it were not here: it is for people to read.
            let local = engine.image(&image.to_string()).await.ok()?;
            records.record(&image, &local).await;
            let digest = local.digest_in(&image, remote.as_deref());
            let digest = digest.or_else(|| local.digests_in(&image).next().map(str::to_owned))?;
            Some((image, digest))
        });
        let found = futures_util::stream::iter(looks).buffer_unordered(LOCAL_AT_ONCE);
        found.filter_map(async |it| it).collect().await
    }

    /// Which images there are.
    async fn learn(&mut self, cancel: &CancellationToken) -> Result<(), RefreshError> {
        let here = Arc::new(Here {
            workshop: self.refresher.workshop().clone(),
            asked: Mutex::default(),
        });
        let request = Scope::All.request(Trigger::Schedule);
        let learned = self
            .refresher
            .look(&request, here.clone(), cancel.clone())
            .await;
        learned?;
        let asked = here.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for image in asked.iter() {
            self.checks
                .entry(image.to_string())
                .or_insert_with(|| (image.clone(), None));
        }
        Ok(())
    }

    async fn check(&mut self, scope: &Scope, which: CheckMode) {
        let now = Timestamp::now();
        let in_scope = self
            .checks
            .values()
            .filter(|(image, _)| scope.has(&image.repository()));
        let is_due = |check: &Option<Check>| {
            let Some(check) = check else { return true };
            let waits = check.retry_at.is_some_and(|at| at > now);
            let retries = check.retry_at.is_some_and(|at| at <= now);
            let is_stale = now.duration_since(check.at).abs() > FRESH;
            match which {
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
        if which == CheckMode::Forced {
            let registries: BTreeSet<&str> = due.iter().map(ImageRef::registry).collect();
            for registry in registries {
                self.digests.reconsider(Some(registry));
            }
        }
        let found = self.digests.of(due).await;
        self.note(found);
    }

    /// Those that failed together are tried again together.
    fn note(&mut self, found: Found) {
        let (now, by) = (Timestamp::now(), chance());
        for (image, found) in found {
            let name = image.to_string();
            let before = self.checks.get(&name).and_then(|(_, check)| check.as_ref());
            let check = Check::new(found, before, now, by);
            self.checks.insert(name, (image, Some(check)));
        }
    }

    fn keep(&mut self, scope: &Scope, Asked { all, live }: Asked, planned: bool) {
        self.note(live);
        if planned && *scope == Scope::All {
            self.checks.retain(|_, (image, _)| all.contains(image));
        }
    }
}

/// Digests of one batch. What is not among them is asked for at once: a policy may know an image that it did not know before.
struct Table {
    digests: Arc<Digests>,
    known: Found,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    all: std::collections::HashSet<ImageRef>,
    live: Found,
}

impl Table {
    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Asked {
        std::mem::take(&mut self.asked())
    }
}

#[async_trait]
impl RemoteDigests for Table {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        self.asked().all.insert(image.clone());
        if let Some(known) = self.known.get(image) {
            return known.clone().map_err(pull_error);
        }
        let mut found = self.digests.of([image.clone()]).await;
        let answer = found.get(image).cloned();
        self.asked().live.extend(found.drain());
        match answer {
            Some(answer) => answer.map_err(pull_error),
            None => Err(PullError::Incomplete {
                image: image.clone(),
            }),
        }
    }
}

/// What is on this machine, as if registries had the same.
struct Here {
    workshop: Arc<EngineContext>,
    asked: Mutex<std::collections::HashSet<ImageRef>>,
}

#[async_trait]
impl RemoteDigests for Here {
    async fn digest(&self, image: &ImageRef) -> Result<String, PullError> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(image.clone());
        let here = match self.workshop.engine.image(&image.to_string()).await {
            Ok(local) => {
                // Before somebody else pulls.
                self.workshop.images.record(image, &local).await;
                // Whichever digest it is, the plan asks only whether the image has it.
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
        Ok(here.unwrap_or_else(|| NOT_HERE.to_owned()))
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
    fn a_check_that_fails_is_tried_again_later_each_time() {
        let now = Timestamp::now();
        let silent = || {
            error(Reason::Unavailable {
                problem: "it is down".into(),
            })
        };
        let mut check = None;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let next = Check::new(Err(silent()), check.as_ref(), now, 0.0);
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
    fn a_registry_that_is_left_alone_has_not_failed_again() {
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
