//! The capabilities for real: the engine does what is asked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use refit_engine::{Engine, EngineError, PullError};
use refit_model::container::{
    Container, ContainerId, ContainerSummary, Image, PlatformManifest, State,
};
use refit_model::diagnostic::{Diagnostic, Hints as _};
use refit_model::event::{Event, Events};
use refit_model::image::{ImageRef, Platform};
use refit_model::recreation::{Step, Strategy};
use refit_model::secret::Login;
use refit_model::unfinished::Unfinished;
use refit_recreate::concurrency::ConcurrencyLimits;
use refit_recreate::dependents::{Dependencies, Node, find_dependents};
use refit_recreate::image_records::ImageRecords;
use refit_recreate::lease::{Lease, Leases};
use refit_recreate::names::{ParsedName, stopping_name, temporary_name};
use refit_recreate::recover::{FirstSeen, Outcome, Recovered, RecoveryTimeouts, recover, survey};
use refit_recreate::replace::{
    NewContainer, NewImage, ReplaceOptions, Replaced, Target, describe_successor, replace,
};
use refit_recreate::self_protection::SelfProtection;
use refit_recreate::{RecreateError, guard, overlap, remove};
use refit_registry::credentials::Credentials;
use refit_registry::digests::Digests;
use tokio_util::sync::CancellationToken;

use super::dependency_cache::DependencyCache;
use super::digest_error::pull_error;
use super::disk_space;
use super::operation_permissions::OperationPermissions;
use super::prefetch::DigestPrefetch;
use super::scope::Scope;
use super::wave::{self, WaveGroups};
use super::{CallError, Capabilities, Follower, PulledImage, Recreated, Recreation, Transfer};

/// What every refresh on one engine shares.
pub struct EngineContext {
    pub engine: Arc<dyn Engine>,
    pub credentials: Credentials,
    /// Asked before a pull, and by the watcher.
    pub digests: Arc<Digests>,
    /// Asked for when pulling and when creating, see [`refit_model::image::image_platform`].
    pub platform: Option<Platform>,
    pub patience: RecoveryTimeouts,
    pub leases: Leases,
    pub lanes: ConcurrencyLimits,
    pub first_seen: FirstSeen,
    pub permitted: OperationPermissions,
    pub ties: DependencyCache,
    pub images: ImageRecords,
    /// What we run in and reach the engine through.
    pub protection: SelfProtection,
}

impl EngineContext {
    /// Finish or undo what somebody began and could not end. What came of it is logged.
    pub async fn recover(&self) -> Result<Vec<Recovered>, EngineError> {
        let recovered = recover(
            self.engine.as_ref(),
            &self.leases,
            &self.first_seen,
            self.patience,
        )
        .await?;
        for one in &recovered {
            let (container, outcome) = (one.container.as_str(), one.outcome);
            match outcome {
                Outcome::InProgress if one.is_attended => tracing::debug!(
                    container,
                    ?outcome,
                    "a replacement under way: {}",
                    one.detail
                ),
                Outcome::InProgress => tracing::info!(
                    container,
                    ?outcome,
                    "a replacement under way: {}",
                    one.detail
                ),
                Outcome::LeftOver => tracing::warn!(
                    container,
                    ?outcome,
                    "a container that is of no use any more could not be removed: {}",
                    one.detail
                ),
                Outcome::Stranded => tracing::error!(
                    container,
                    ?outcome,
                    "a half-done replacement could not be ended: {}",
                    one.detail
                ),
                Outcome::Finished | Outcome::Undone | Outcome::Superseded => {
                    tracing::warn!(
                        container,
                        ?outcome,
                        "a half-done replacement was ended: {}",
                        one.detail
                    );
                }
            }
        }
        Ok(recovered)
    }

    /// All containers but those that are half of a replacement, sorted by name.
    pub(super) async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        let mut containers = self.engine.containers().await?;
        containers.retain(|container| ParsedName::parse(&container.name).is_none());
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    pub(super) async fn login(&self, image: &ImageRef) -> Result<Option<Login>, PullError> {
        let found = self.credentials.login(image.registry()).await;
        let found = found.map_err(|source| PullError::Credentials {
            registry: image.registry().to_owned(),
            image: image.clone(),
            source: source.into(),
        })?;
        Ok(found.map(|(login, _)| login))
    }

    /// Nothing is stopped where a call that the way back needs is known to be refused.
    async fn may_recreate(&self, name: &str, strategy: Strategy) -> Result<(), RecreateError> {
        let engine = self.engine.as_ref();
        match self.permitted.objection(engine, strategy).await {
            None => Ok(()),
            Some(reason) => Err(RecreateError::Unsupported {
                name: name.to_owned(),
                reason,
            }),
        }
    }

    /// What is half done on this engine, and nobody on this machine is at work on. Changes nothing.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, EngineError> {
        Ok(survey(&self.engine.containers().await?, &self.leases))
    }

    /// Look again at a container that was listed: is it still that one, is it behind, may it be touched?
    pub(super) async fn examine(
        &self,
        wanted: &Recreation,
        force: bool,
    ) -> Result<Container, RecreateError> {
        let name = wanted.container.name.clone();
        let container = match self.engine.inspect(&wanted.container.id).await {
            Ok(container) => container,
            Err(error) if error.is_not_found() => {
                return Err(
                    describe_successor(self.engine.as_ref(), &name, &wanted.image.id).await,
                );
            }
            Err(error) => {
                return Err(RecreateError::Aborted {
                    name,
                    step: Step::Inspect,
                    source: error.into(),
                });
            }
        };
        let is_ours = ParsedName::parse(&container.name).is_some();
        let may_be_current = container.state == State::Running && !is_ours && !force;
        if may_be_current && self.runs_already(&container, &wanted.image).await {
            return Err(RecreateError::Current { name });
        }
        if container.name != name {
            if is_ours {
                return Err(RecreateError::Busy { name });
            }
            let reason = format!("it was renamed to `{}` since it was listed", container.name);
            return Err(RecreateError::Unsupported { name, reason });
        }
        let engine = self.engine.as_ref();
        let objection = guard::unsupported_reason(engine, &container, &self.protection).await;
        let objection = objection.map_err(|error| RecreateError::Aborted {
            name: name.clone(),
            step: Step::Inspect,
            source: error.into(),
        })?;
        if let Some(reason) = objection {
            // Another Refit stops it before it gives it another name; until then its replacement tells.
            let stopped_by_us =
                container.state != State::Running && self.has_replacement(&container).await;
            return Err(if stopped_by_us {
                RecreateError::Busy { name }
            } else {
                RecreateError::Unsupported { name, reason }
            });
        }
        Ok(container)
    }

    async fn has_replacement(&self, container: &Container) -> bool {
        for name in [temporary_name(&container.id), stopping_name(&container.id)] {
            if let Ok(Some(_)) = self.engine.find_by_name(&name).await {
                return true;
            }
        }
        false
    }

    /// Whether a replacement from this image would run what the container runs.
    ///
    /// With Docker's containerd image store an image is named by its index, so that its id changes with each attestation and with
    /// each other platform. What would run is compared there: the manifest, or all that the engine shows of the image.
    async fn runs_already(&self, container: &Container, image: &PulledImage) -> bool {
        if container.image_id == image.id {
            return true;
        }
        let Some(new) = image.local.as_ref().filter(|it| it.is_named_by_manifest()) else {
            return false;
        };
        if let Some(running) = &container.manifest_digest
            && let Ok(manifests) = self.engine.platform_manifests(&new.id).await
            && self.would_run(new, &manifests).as_deref() == Some(running)
        {
            return true;
        }
        // What is shown of an image is that of the platform which the engine prefers.
        let shown = format!("{}/{}", new.os, new.architecture);
        let is_shown = |platform: &String| {
            platform
                .strip_prefix(&shown)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let wanted = self.platform.as_ref().map(ToString::to_string);
        let platforms = [container.platform.as_ref(), wanted.as_ref()];
        if !platforms.into_iter().flatten().all(is_shown) {
            return false;
        }
        // Docker 26 forgets the old image when the tag moves: then only what was seen of it before the pull is left.
        let replaced = image.replaced.as_ref();
        let old = replaced.filter(|it| it.id == container.image_id).cloned();
        let old = match old {
            Some(old) => old,
            None => match self.engine.image(container.image_id.as_str()).await {
                Ok(old) => Arc::new(old),
                Err(_) => {
                    // Where nothing was written down of it either, it counts as another one.
                    let record = self.images.get(&container.image_id).await;
                    let content = record.and_then(|record| record.content);
                    return content.is_some() && content == new.content;
                }
            },
        };
        old.has_content_of(new)
    }

    /// The digest of the manifest that a container from this image would run, where it can be told.
    fn would_run(&self, image: &Image, manifests: &[PlatformManifest]) -> Option<String> {
        let wanted = |manifest: &&PlatformManifest| match &self.platform {
            Some(platform) => platform.is(&manifest.os, &manifest.architecture),
            None => manifest.os == image.os && manifest.architecture == image.architecture,
        };
        let mut of_platform = manifests.iter().filter(wanted);
        let first = of_platform.next()?;
        // Of several variants nobody knows which one the engine takes.
        of_platform.next().is_none().then(|| first.digest.clone())
    }

    /// The containers that depend on this one and are replaced with it, each behind all that it depends on. One that is stopped is
    /// among them where it could never be started again otherwise. An error where one of them could not be replaced.
    pub(super) async fn dependents(
        &self,
        container: &Container,
    ) -> Result<Vec<Container>, RecreateError> {
        let name = || container.name.clone();
        let failed = |error: EngineError| RecreateError::Aborted {
            name: name(),
            step: Step::Inspect,
            source: error.into(),
        };
        let listed = self.engine.containers().await.map_err(failed)?;
        let being_proven = |listed: &ContainerSummary| matches!(ParsedName::parse(&listed.name), Some(ParsedName::Backup(backup)) if backup.new == container.id.short());
        if listed.iter().any(being_proven) {
            return Err(RecreateError::Busy { name: name() });
        }
        let others = self.ties.of(self.engine.as_ref(), &listed).await;
        let first = Node {
            id: container.id.clone(),
            name: name(),
            ties: Dependencies::from_container(container),
        };
        let mut found = Vec::new();
        for (node, tie) in find_dependents(&first, others.map_err(failed)?) {
            let dependent = match self.engine.inspect(&node.id).await {
                Ok(dependent) => dependent,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(failed(error)),
            };
            let is_stopped = matches!(dependent.state, State::Created | State::Exited);
            if is_stopped && !tie.must_follow() {
                continue;
            }
            // One that is stopped is replaced without being started, so only its owner counts.
            let subject = match is_stopped {
                true => Container {
                    state: State::Running,
                    ..dependent.clone()
                },
                false => dependent.clone(),
            };
            let engine = self.engine.as_ref();
            let objection = guard::unsupported_reason(engine, &subject, &self.protection).await;
            match objection.map_err(failed)? {
                None => found.push(dependent),
                // It could never be started again: the engine knows its provider by id.
                Some(reason) if tie.must_follow() => {
                    let reason = format!(
                        "`{}` {} and cannot be recreated with it: {reason}",
                        dependent.name,
                        tie.description()
                    );
                    return Err(RecreateError::Unsupported {
                        name: name(),
                        reason,
                    });
                }
                Some(_) => {}
            }
        }
        Ok(found)
    }

    /// Whether two of it may run at once for a while.
    pub(super) async fn may_overlap(&self, container: &Container) -> Result<(), RecreateError> {
        let reason = match self.dependents(container).await?.first() {
            Some(dependent) => Some(format!("`{}` depends on it", dependent.name)),
            None => overlap::overlap_blocker(container),
        };
        match reason {
            None => Ok(()),
            Some(reason) => Err(RecreateError::Unsupported {
                name: container.name.clone(),
                reason: format!("not by the strategy `overlap`: {reason}; `replace` works"),
            }),
        }
    }

    fn manner<'a>(
        &'a self,
        ending: &'a CancellationToken,
        step: &'a (dyn Fn(Step) + Send + Sync),
    ) -> ReplaceOptions<'a> {
        ReplaceOptions {
            platform: self.platform.as_ref(),
            proof: self.patience.proof,
            lanes: &self.lanes,
            images: &self.images,
            ending,
            step,
        }
    }

    /// One on each; `None` where somebody is at work on one of them.
    fn leases<'a>(&self, ids: impl Iterator<Item = &'a ContainerId>) -> Option<Vec<Lease>> {
        ids.map(|id| self.leases.take(id)).collect()
    }
}

/// One refresh's hands.
pub struct LiveCapabilities {
    pub workshop: Arc<EngineContext>,
    /// Recreate also what is up to date.
    pub force: bool,
    pub events: Events,
    /// Set when the refresh is to end: what was stopped by then is finished, and nothing else is.
    pub ending: CancellationToken,
    pub foreseen: DigestPrefetch,
    scope: Arc<Scope>,
    waves: WaveGroups,
    /// What followed another container in this refresh: ids that a policy may still know it by, and the ids that it has now.
    followed: Mutex<HashMap<ContainerId, ContainerId>>,
    unfinished: Mutex<Option<Vec<Unfinished>>>,
}

type RecreateAnswer = Result<Recreated, CallError<RecreateError>>;

impl LiveCapabilities {
    pub fn new(
        workshop: Arc<EngineContext>,
        force: bool,
        events: Events,
        ending: CancellationToken,
        foreseen: DigestPrefetch,
        scope: Arc<Scope>,
    ) -> Self {
        Self {
            workshop,
            force,
            events,
            ending,
            foreseen,
            scope,
            waves: WaveGroups::default(),
            followed: Mutex::default(),
            unfinished: Mutex::default(),
        }
    }
}

#[async_trait]
impl Capabilities for LiveCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let mut containers = self.workshop.engine.containers().await?;
        let mut unfinished = Vec::new();
        if containers
            .iter()
            .any(|container| ParsedName::parse(&container.name).is_some())
        {
            // Somebody did not end what they began. A policy should see whole containers only.
            let recovered = self.workshop.recover().await?;
            unfinished.extend(recovered.iter().filter_map(Recovered::unfinished));
            containers = self.workshop.containers().await?;
        }
        *lock(&self.unfinished) = Some(unfinished);
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        Ok(self.workshop.engine.inspect(&container.id).await?)
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        self.foreseen.ask(images).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let engine = &self.workshop.engine;
        let failed = |source| PullError::Engine {
            image: image.clone(),
            source,
        };
        let before = match engine.image(&image.to_string()).await {
            Ok(image) => Some(image),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(failed(error).into()),
        };
        // The engine may forget about it when the tag moves.
        if let Some(here) = &before {
            self.workshop.images.record(image, here).await;
        }
        let platform = self.workshop.platform.as_ref();
        if let Some(here) = &before
            && let Some(digest) = self
                .foreseen
                .is_here(image, here, platform)
                .map_err(|error| pull_error(*error))?
        {
            return Ok(PulledImage {
                reference: image.clone(),
                id: here.id.clone(),
                digest: Some(digest),
                local: before.map(Arc::new),
                replaced: None,
                transfer: Transfer::UpToDate,
            });
        }
        disk_space::check(&self.workshop, image, before.as_ref()).await?;
        let reported = self.pull_from_registry(image).await?;
        let after = engine.image(&image.to_string()).await.map_err(failed)?;
        let records = &self.workshop.images;
        if let Some(before) = before.as_ref().filter(|before| before.id != after.id) {
            records.record_replaced(image, before).await;
        }
        records.record(image, &after).await;
        // Docker says which digest this pull brought. Podman does not, and lists that of the index beside that of the manifest.
        let expected = image.digest().map(str::to_owned);
        let expected = expected
            .or(reported)
            .or_else(|| self.foreseen.digest(image));
        Ok(PulledImage {
            reference: image.clone(),
            id: after.id.clone(),
            digest: after.digest_in(image, expected.as_deref()),
            transfer: match &before {
                Some(before) if before.id == after.id => Transfer::UpToDate,
                Some(_) | None => Transfer::Pulled,
            },
            replaced: before.filter(|before| before.id != after.id).map(Arc::new),
            local: Some(Arc::new(after)),
        })
    }

    async fn expect_recreations(&self, wave: &[Recreation]) {
        if let Err(error) = self.waves.expect(&self.workshop, wave).await {
            // Each is replaced by itself then, and takes along what depends on it.
            tracing::warn!(
                "cannot find out which containers of the wave depend on each other: {}",
                Diagnostic::of(&error).sentence()
            );
        }
    }

    async fn recreate(&self, mut wanted: Recreation) -> RecreateAnswer {
        let group = self.waves.group_of(&wanted.container.id);
        if let Some(new) = lock(&self.followed).get(&wanted.container.id) {
            wanted.container.id = new.clone();
        }
        let answer = match group {
            Some(group) => {
                let all = group.run(|wanted| recreate_group(self, wanted)).await;
                lock(all).remove(&wanted.container.name)
            }
            None if wanted.strategy == Strategy::Replace => {
                let name = wanted.container.name.clone();
                recreate_group(self, vec![wanted]).await.remove(&name)
            }
            None => Some(recreate_alone(self, wanted).await),
        };
        // Asked for twice in one wave: the first answer was the one.
        let answer = answer.unwrap_or(Err(CallError::Cancelled));
        // A policy compares ids, which may differ where nothing would: that is no failure.
        if let Err(CallError::Failed(error)) = &answer
            && !matches!(error, RecreateError::Current { .. })
        {
            tracing::warn!(hints = ?error.hints(), "{}", Diagnostic::of(error).sentence());
        }
        answer
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        let noted = lock(&self.unfinished).clone();
        match noted {
            Some(unfinished) => unfinished,
            None => self.workshop.unfinished().await.unwrap_or_default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As a policy sees it: one that was withdrawn was cancelled.
fn call_error(error: RecreateError) -> CallError<RecreateError> {
    match error {
        RecreateError::Withdrawn { .. } => CallError::Cancelled,
        error => CallError::Failed(error),
    }
}

/// By `remove` or `overlap`.
async fn recreate_alone(live: &LiveCapabilities, wanted: Recreation) -> RecreateAnswer {
    let Some(lease) = live.workshop.leases.take(&wanted.container.id) else {
        let name = wanted.container.name;
        return Err(RecreateError::Busy { name }.into());
    };
    let (outcome, settled) = recreate_one(live, wanted).await;
    let is_busy = matches!(&outcome, Err(RecreateError::Busy { .. }));
    end_leases(vec![lease], is_busy, settled);
    outcome.map_err(call_error)
}

fn end_leases(leases: Vec<Lease>, is_busy: bool, settled: bool) {
    match (is_busy, settled) {
        (true, _) => leases.into_iter().for_each(Lease::give_back),
        (false, true) => leases.into_iter().for_each(Lease::settle),
        // Kept, for whoever recovers.
        (false, false) => drop(leases),
    }
}

impl LiveCapabilities {
    /// The digest that it brought, where the engine says so.
    async fn pull_from_registry(&self, image: &ImageRef) -> Result<Option<String>, PullError> {
        let workshop = &self.workshop;
        let login = workshop.login(image).await?;
        let progress = |layer| {
            (self.events)(Event::Layer {
                image: image.clone(),
                layer,
            })
        };
        let platform = workshop.platform.as_ref();
        let engine = &workshop.engine;
        engine
            .pull(image, platform, login.as_ref(), &progress)
            .await
    }

    /// Of a group: those that get a new image need what is known of the old one, and those that only follow run it again.
    async fn restore_images(&self, group: &[Ready]) {
        for one in group {
            let pulled = &one.wanted.image;
            self.restore_image(&one.container, pulled, false).await;
            let is_target = |id: &ContainerId| group.iter().any(|it| it.container.id == *id);
            for dependent in one.dependents.iter().filter(|it| !is_target(&it.id)) {
                self.restore_image(dependent, pulled, true).await;
            }
        }
    }

    /// Bring back the image of a container, or its name, which an engine with the containerd image store may have dropped when
    /// the tag moved. The ids of such an engine are the registry's digests, so the registry can be asked for the image by its id.
    /// If this fails, whoever needs the image says so.
    ///
    /// `is_reused` says whether a container will be made from it; otherwise its configuration is enough, or a record of it.
    async fn restore_image(&self, container: &Container, pulled: &PulledImage, is_reused: bool) {
        let id = &container.image_id;
        let is_named_by_digest = match &pulled.local {
            Some(image) => image.is_named_by_manifest(),
            None => pulled.digest.as_deref() == Some(pulled.id.as_str()),
        };
        if !is_named_by_digest || *id == pulled.id {
            return;
        }
        let is_usable = match self.workshop.engine.image(id.as_str()).await {
            // Without a name a replacement would no longer tell which repository it came from.
            Ok(image) => !is_reused || !image.repo_digests.is_empty(),
            Err(error) if error.is_not_found() => {
                !is_reused && self.workshop.images.get(id).await.is_some()
            }
            Err(_) => true,
        };
        if is_usable {
            return;
        }
        let own = container.image().parse::<ImageRef>();
        let repository = own.map_or_else(|_| pulled.reference.repository(), |it| it.repository());
        let Ok(reference) = format!("{repository}@{id}").parse::<ImageRef>() else {
            return;
        };
        tracing::info!(
            container = container.name,
            image = %reference,
            "the engine no longer has the image of this container by name, so it is pulled again by its digest"
        );
        if let Err(error) = self.pull_from_registry(&reference).await {
            tracing::warn!(
                container = container.name,
                "cannot pull the image of this container again: {}",
                Diagnostic::of(&error).sentence()
            );
        }
    }
}

/// The flag says whether nothing is left to finish or undo.
async fn recreate_one(
    live: &LiveCapabilities,
    wanted: Recreation,
) -> (Result<Recreated, RecreateError>, bool) {
    let (workshop, events) = (&live.workshop, &live.events);
    let container = match workshop.examine(&wanted, live.force).await {
        Ok(container) => container,
        Err(error) => return (Err(error), true),
    };
    let name = container.name.clone();
    if let Err(error) = workshop.may_recreate(&name, wanted.strategy).await {
        return (Err(error), true);
    }
    let step = |step| {
        events(Event::Step {
            container: name.clone(),
            step,
        })
    };
    let engine = workshop.engine.as_ref();
    let mut recreated = Recreated {
        id: None,
        image_id: wanted.image.id.clone(),
        from_image_id: container.image_id.clone(),
        gap: None,
        followers: vec![],
        left_over: None,
    };
    if wanted.strategy == Strategy::Remove {
        step(Step::Remove);
        let removed = remove::remove(engine, &container).await;
        return (removed.map(|()| recreated), true);
    }
    if let Err(error) = workshop.may_overlap(&container).await {
        return (Err(error), true);
    }
    live.restore_image(&container, &wanted.image, false).await;
    let image = NewImage::pulled(&wanted.image.reference, wanted.image.id);
    let manner = workshop.manner(&live.ending, &step);
    let (replaced, settled) = overlap::overlap(engine, container, &image, &manner).await;
    let replaced = replaced.map(|replaced| {
        recreated.id = replaced.members.into_iter().next().map(|it| it.id);
        recreated.gap = Some(replaced.gap);
        recreated.left_over = joined(&replaced.left_over);
        recreated
    });
    (replaced, settled)
}

fn joined(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(", "))
}

/// Answers by name.
type Answers = HashMap<String, RecreateAnswer>;

/// A container that is to get a new image, and those that depend on it, each behind all that it depends on.
struct Ready {
    wanted: Recreation,
    container: Container,
    dependents: Vec<Container>,
}

/// One or several containers, by `replace`, and all that depend on them, as one replacement.
async fn recreate_group(live: &LiveCapabilities, wanted: Vec<Recreation>) -> Answers {
    let workshop = &live.workshop;
    let Some(mut leases) = workshop.leases(wanted.iter().map(|wanted| &wanted.container.id)) else {
        let busy = |name: String| (name.clone(), Err(RecreateError::Busy { name }.into()));
        return wanted
            .into_iter()
            .map(|it| busy(it.container.name))
            .collect();
    };
    let mut answers = Answers::new();
    let mut ready = Vec::new();
    for wanted in wanted {
        let name = wanted.container.name.clone();
        let examined = async {
            let container = workshop.examine(&wanted, live.force).await?;
            let dependents = workshop.dependents(&container).await?;
            workshop.may_recreate(&name, Strategy::Replace).await?;
            Ok(Ready {
                wanted,
                container,
                dependents,
            })
        };
        match examined.await {
            Ok(one) => ready.push(one),
            Err(error) => drop(answers.insert(name, Err(call_error(error)))),
        }
    }
    if ready.is_empty() {
        let is_busy = answers
            .values()
            .any(|it| matches!(it, Err(CallError::Failed(RecreateError::Busy { .. }))));
        end_leases(leases, is_busy, true);
        return answers;
    }
    let targets = targets(&ready);
    let followers = followers(&ready, &targets);
    let providers: Vec<&str> = ready.iter().map(|one| &*one.container.name).collect();
    if let Err(refusal) = live.scope.admit(&providers, &followers) {
        end_leases(leases, false, true);
        for one in &ready {
            answers.insert(
                one.container.name.clone(),
                Err(refusal.clone().into_call_error()),
            );
        }
        return answers;
    }
    // An examined one that is not ready may be a follower all the same: it holds its lease already.
    let held: HashSet<String> = leases.iter().map(|lease| lease.key().to_owned()).collect();
    let more = followers.iter().map(|follower| &follower.id);
    let more = more.filter(|id| !held.contains(id.short()));
    let (outcome, settled) = match workshop.leases(more) {
        None => {
            let name = ready[0].container.name.clone();
            (Err(RecreateError::Busy { name }), true)
        }
        Some(more) => {
            leases.extend(more);
            let names: Vec<String> = targets.iter().map(|it| it.container.name.clone()).collect();
            let step = |step| {
                for one in &ready {
                    (live.events)(Event::Step {
                        container: one.container.name.clone(),
                        step,
                    });
                }
            };
            live.restore_images(&ready).await;
            tracing::debug!(group = ?names, "replacing");
            let manner = workshop.manner(&live.ending, &step);
            replace(workshop.engine.as_ref(), targets.clone(), &manner).await
        }
    };
    let is_busy = matches!(&outcome, Err(RecreateError::Busy { .. }));
    end_leases(leases, is_busy, settled);
    match outcome {
        Ok(replaced) => {
            note_followers(live, &targets, &followers, &replaced);
            answers.extend(recreated(&ready, replaced));
        }
        Err(error) => {
            for one in &ready {
                let name = &one.container.name;
                answers.extend(
                    wave::error_for(&error, name).map(|it| (name.clone(), Err(call_error(it)))),
                );
            }
            // Whose error it is, if it was one of those asked for; a follower's is its first provider's.
            let named = error.name().to_owned();
            let owner = match ready.iter().any(|one| one.container.name == named) {
                true => named,
                false => ready[0].container.name.clone(),
            };
            answers.insert(owner, Err(call_error(error)));
        }
    }
    answers
}

/// Every container of the group once, each behind all that it depends on.
fn targets(ready: &[Ready]) -> Vec<Target> {
    let mut by_id: BTreeMap<ContainerId, Target> = BTreeMap::new();
    for one in ready {
        for container in &one.dependents {
            by_id.entry(container.id.clone()).or_insert_with(|| Target {
                container: container.clone(),
                image: None,
            });
        }
    }
    for one in ready {
        let image = &one.wanted.image;
        let target = Target {
            container: one.container.clone(),
            image: Some(NewImage::pulled(&image.reference, image.id.clone())),
        };
        by_id.insert(one.container.id.clone(), target);
    }
    wave::in_order(by_id.into_values().collect())
}

/// Those that only follow.
fn followers<'a>(ready: &[Ready], targets: &'a [Target]) -> Vec<&'a Container> {
    let containers = targets.iter().map(|target| &target.container);
    containers
        .filter(|container| ready.iter().all(|one| one.container.id != container.id))
        .collect()
}

fn note_followers(
    live: &LiveCapabilities,
    targets: &[Target],
    followers: &[&Container],
    replaced: &Replaced,
) {
    let mut followed = lock(&live.followed);
    for (target, new) in targets.iter().zip(&replaced.members) {
        let old = &target.container.id;
        if followers.iter().any(|follower| follower.id == *old) {
            followed.insert(old.clone(), new.id.clone());
        }
    }
}

fn recreated(ready: &[Ready], replaced: Replaced) -> Answers {
    let is_ready = |name: &str| ready.iter().any(|one| one.container.name == name);
    let mut left_over = joined(&replaced.left_over);
    let new: HashMap<&str, &NewContainer> =
        replaced.members.iter().map(|it| (&*it.name, it)).collect();
    let each = ready.iter().map(|one| {
        let name = &one.container.name;
        let followers = one.dependents.iter().filter_map(|it| {
            let new = new.get(it.name.as_str())?;
            Some(Follower {
                name: it.name.clone(),
                id: it.id.clone(),
                new_id: new.id.clone(),
                image: new.image.clone(),
            })
        });
        let recreated = Recreated {
            id: new.get(name.as_str()).map(|it| it.id.clone()),
            image_id: one.wanted.image.id.clone(),
            from_image_id: one.container.image_id.clone(),
            gap: Some(replaced.gap),
            followers: followers.filter(|it| !is_ready(&it.name)).collect(),
            left_over: left_over.take(),
        };
        (name.clone(), Ok(recreated))
    });
    each.collect()
}
