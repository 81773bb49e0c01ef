//! The capabilities of a real refresh: the engine executes each call.

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

/// The state that all refreshes on one engine share.
pub struct EngineContext {
    pub engine: Arc<dyn Engine>,
    pub credentials: Credentials,
    /// The digests in registries. Pulls and the watcher request them.
    pub digests: Arc<Digests>,
    /// The platform for pulls and new containers, see [`refit_model::image::image_platform`].
    pub platform: Option<Platform>,
    pub patience: RecoveryTimeouts,
    pub leases: Leases,
    pub lanes: ConcurrencyLimits,
    pub first_seen: FirstSeen,
    pub permitted: OperationPermissions,
    pub ties: DependencyCache,
    pub images: ImageRecords,
    /// The container that Refit runs in and the ones through which it reaches the engine.
    pub protection: SelfProtection,
}

impl EngineContext {
    /// Finish or undo the replacements that were interrupted, and log the results.
    pub async fn recover(&self) -> Result<Vec<Recovered>, EngineError> {
        let recovered = recover(
            self.engine.as_ref(),
            &self.leases,
            &self.first_seen,
            self.patience,
        )
        .await?;
        for recovery in &recovered {
            let (container, outcome) = (recovery.container.as_str(), recovery.outcome);
            match outcome {
                Outcome::InProgress if recovery.is_attended => tracing::debug!(
                    container,
                    ?outcome,
                    "replacement in progress: {}",
                    recovery.detail
                ),
                Outcome::InProgress => tracing::info!(
                    container,
                    ?outcome,
                    "replacement in progress: {}",
                    recovery.detail
                ),
                Outcome::LeftOver => tracing::warn!(
                    container,
                    ?outcome,
                    "cannot remove an unneeded container: {}",
                    recovery.detail
                ),
                Outcome::Stranded => tracing::error!(
                    container,
                    ?outcome,
                    "cannot finish an interrupted replacement: {}",
                    recovery.detail
                ),
                Outcome::Finished | Outcome::Undone | Outcome::Superseded => {
                    tracing::warn!(
                        container,
                        ?outcome,
                        "ended an interrupted replacement: {}",
                        recovery.detail
                    );
                }
            }
        }
        Ok(recovered)
    }

    /// List all containers except the halves of replacements, sorted by name.
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

    /// Return an error, before anything is stopped, if the engine is known to refuse a call that a rollback needs.
    async fn check_permissions(&self, name: &str, strategy: Strategy) -> Result<(), RecreateError> {
        let engine = self.engine.as_ref();
        match self.permitted.objection(engine, strategy).await {
            None => Ok(()),
            Some(reason) => Err(RecreateError::Unsupported {
                name: name.to_owned(),
                reason,
            }),
        }
    }

    /// List the unfinished replacements on this engine that no Refit on this machine is working on. Changes nothing.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, EngineError> {
        Ok(survey(&self.engine.containers().await?, &self.leases))
    }

    /// Inspect a listed container again and check that it is the same container, is outdated, and may be recreated.
    pub(super) async fn examine(
        &self,
        recreation: &Recreation,
        force: bool,
    ) -> Result<Container, RecreateError> {
        let name = recreation.container.name.clone();
        let container = match self.engine.inspect(&recreation.container.id).await {
            Ok(container) => container,
            Err(error) if error.is_not_found() => {
                return Err(
                    describe_successor(self.engine.as_ref(), &name, &recreation.image.id).await,
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
        if may_be_current && self.runs_already(&container, &recreation.image).await {
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
            // Another Refit stops a container before it renames it. Until then only the replacement's name shows that.
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

    /// Whether a replacement from this image would run what the container already runs.
    ///
    /// Docker's containerd image store names an image by its index, so its id changes with each attestation and each other
    /// platform. In that case the content is compared: the manifest, or everything that the engine shows of the image.
    async fn runs_already(&self, container: &Container, image: &PulledImage) -> bool {
        if container.image_id == image.id {
            return true;
        }
        let Some(new) = image.local.as_ref().filter(|it| it.is_named_by_manifest()) else {
            return false;
        };
        if let Some(running) = &container.manifest_digest
            && let Ok(manifests) = self.engine.platform_manifests(&new.id).await
            && self.manifest_to_run(new, &manifests).as_deref() == Some(running)
        {
            return true;
        }
        // The engine shows the image of the platform that it prefers.
        let shown = format!("{}/{}", new.os, new.architecture);
        let is_shown = |platform: &String| {
            platform
                .strip_prefix(&shown)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let configured = self.platform.as_ref().map(ToString::to_string);
        let platforms = [container.platform.as_ref(), configured.as_ref()];
        if !platforms.into_iter().flatten().all(is_shown) {
            return false;
        }
        // Docker 26 forgets the old image when the tag moves: then only the inspection from before the pull is left.
        let replaced = image.replaced.as_ref();
        let old = replaced.filter(|it| it.id == container.image_id).cloned();
        let old = match old {
            Some(old) => old,
            None => match self.engine.image(container.image_id.as_str()).await {
                Ok(old) => Arc::new(old),
                Err(_) => {
                    // If there is no record of it either, it counts as a different image.
                    let record = self.images.get(&container.image_id).await;
                    let content = record.and_then(|record| record.content);
                    return content.is_some() && content == new.content;
                }
            },
        };
        old.has_content_of(new)
    }

    /// The digest of the manifest that a container from this image would run, if it is known.
    fn manifest_to_run(&self, image: &Image, manifests: &[PlatformManifest]) -> Option<String> {
        let is_wanted = |manifest: &&PlatformManifest| match &self.platform {
            Some(platform) => platform.is(&manifest.os, &manifest.architecture),
            None => manifest.os == image.os && manifest.architecture == image.architecture,
        };
        let mut of_platform = manifests.iter().filter(is_wanted);
        let first = of_platform.next()?;
        // If there are several variants, it is unknown which one the engine takes.
        of_platform.next().is_none().then(|| first.digest.clone())
    }

    /// The containers that depend on this one and are replaced with it, each after all that it depends on. A stopped container is
    /// included if it could never be started again otherwise. Returns an error if one of them cannot be replaced.
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
        let is_unproven = |listed: &ContainerSummary| matches!(ParsedName::parse(&listed.name), Some(ParsedName::Backup(backup)) if backup.new == container.id.short());
        if listed.iter().any(is_unproven) {
            return Err(RecreateError::Busy { name: name() });
        }
        let others = self.ties.nodes(self.engine.as_ref(), &listed).await;
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
            // A stopped container is replaced without being started, so only its owner matters.
            let as_running = match is_stopped {
                true => Container {
                    state: State::Running,
                    ..dependent.clone()
                },
                false => dependent.clone(),
            };
            let engine = self.engine.as_ref();
            let objection = guard::unsupported_reason(engine, &as_running, &self.protection).await;
            match objection.map_err(failed)? {
                None => found.push(dependent),
                // The container could never be started again, because the engine knows its provider by id.
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

    /// Return an error if two instances of the container must not run at the same time.
    pub(super) async fn check_overlap(&self, container: &Container) -> Result<(), RecreateError> {
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

    fn replace_options<'a>(
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

    /// Take a lease on each container, or return `None` if a replacement of one of them is in progress.
    fn take_leases<'a>(&self, ids: impl Iterator<Item = &'a ContainerId>) -> Option<Vec<Lease>> {
        ids.map(|id| self.leases.take(id)).collect()
    }
}

/// The capabilities of one refresh that change the engine.
pub struct LiveCapabilities {
    pub context: Arc<EngineContext>,
    /// Recreate also containers that are up to date.
    pub force: bool,
    pub events: Events,
    /// Set when the refresh has to end: it still finishes containers that are stopped by then, and starts nothing else.
    pub ending: CancellationToken,
    pub prefetch: DigestPrefetch,
    scope: Arc<Scope>,
    waves: WaveGroups,
    /// The containers that were replaced as followers in this refresh: the id that a policy may still use, and the new id.
    replaced_followers: Mutex<HashMap<ContainerId, ContainerId>>,
    unfinished: Mutex<Option<Vec<Unfinished>>>,
}

type RecreateAnswer = Result<Recreated, CallError<RecreateError>>;

impl LiveCapabilities {
    pub fn new(
        context: Arc<EngineContext>,
        force: bool,
        events: Events,
        ending: CancellationToken,
        prefetch: DigestPrefetch,
        scope: Arc<Scope>,
    ) -> Self {
        Self {
            context,
            force,
            events,
            ending,
            prefetch,
            scope,
            waves: WaveGroups::default(),
            replaced_followers: Mutex::default(),
            unfinished: Mutex::default(),
        }
    }
}

#[async_trait]
impl Capabilities for LiveCapabilities {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let mut containers = self.context.engine.containers().await?;
        let mut unfinished = Vec::new();
        if containers
            .iter()
            .any(|container| ParsedName::parse(&container.name).is_some())
        {
            // A replacement was interrupted. A policy should see whole containers only, so recover first.
            let recovered = self.context.recover().await?;
            unfinished.extend(recovered.iter().filter_map(Recovered::unfinished));
            containers = self.context.containers().await?;
        }
        *lock(&self.unfinished) = Some(unfinished);
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        Ok(self.context.engine.inspect(&container.id).await?)
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        self.prefetch.request(images).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        let engine = &self.context.engine;
        let failed = |source| PullError::Engine {
            image: image.clone(),
            source,
        };
        let before = match engine.image(&image.to_string()).await {
            Ok(image) => Some(image),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(failed(error).into()),
        };
        // The engine may forget this image when the tag moves.
        if let Some(here) = &before {
            self.context.images.record(image, here).await;
        }
        let platform = self.context.platform.as_ref();
        if let Some(here) = &before
            && let Some(digest) = self
                .prefetch
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
        disk_space::check(&self.context, image, before.as_ref()).await?;
        let reported = self.pull_from_registry(image).await?;
        let after = engine.image(&image.to_string()).await.map_err(failed)?;
        let records = &self.context.images;
        if let Some(before) = before.as_ref().filter(|before| before.id != after.id) {
            records.record_replaced(image, before).await;
        }
        records.record(image, &after).await;
        // Docker reports the digest that this pull fetched. Podman does not, and lists the index digest next to the manifest
        // digest.
        let expected = image.digest().map(str::to_owned);
        let expected = expected
            .or(reported)
            .or_else(|| self.prefetch.digest(image));
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
        if let Err(error) = self.waves.expect(&self.context, wave).await {
            // Each is then replaced separately, together with its dependents.
            tracing::warn!(
                "cannot group the containers of the wave by dependency: {}",
                Diagnostic::of(&error).sentence()
            );
        }
    }

    async fn recreate(&self, mut recreation: Recreation) -> RecreateAnswer {
        let group = self.waves.find_group(&recreation.container.id);
        if let Some(new) = lock(&self.replaced_followers).get(&recreation.container.id) {
            recreation.container.id = new.clone();
        }
        let answer = match group {
            Some(group) => {
                let all = group
                    .run(|recreations| recreate_group(self, recreations))
                    .await;
                lock(all).remove(&recreation.container.name)
            }
            None if recreation.strategy == Strategy::Replace => {
                let name = recreation.container.name.clone();
                recreate_group(self, vec![recreation]).await.remove(&name)
            }
            None => Some(recreate_alone(self, recreation).await),
        };
        // If the policy requested it twice in one wave, the first call took the result.
        let answer = answer.unwrap_or(Err(CallError::Cancelled));
        // A policy compares ids, which may differ although the content is equal: that is no failure.
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
            None => self.context.unfinished().await.unwrap_or_default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Convert the error for the policy: a withdrawn recreation was cancelled.
fn to_call_error(error: RecreateError) -> CallError<RecreateError> {
    match error {
        RecreateError::Withdrawn { .. } => CallError::Cancelled,
        error => CallError::Failed(error),
    }
}

/// Recreate one container by `remove` or `overlap`.
async fn recreate_alone(live: &LiveCapabilities, recreation: Recreation) -> RecreateAnswer {
    let Some(lease) = live.context.leases.take(&recreation.container.id) else {
        let name = recreation.container.name;
        return Err(RecreateError::Busy { name }.into());
    };
    let (outcome, settled) = recreate_one(live, recreation).await;
    let is_busy = matches!(&outcome, Err(RecreateError::Busy { .. }));
    end_leases(vec![lease], is_busy, settled);
    outcome.map_err(to_call_error)
}

fn end_leases(leases: Vec<Lease>, is_busy: bool, settled: bool) {
    match (is_busy, settled) {
        (true, _) => leases.into_iter().for_each(Lease::give_back),
        (false, true) => leases.into_iter().for_each(Lease::settle),
        // Kept for the recovery.
        (false, false) => drop(leases),
    }
}

impl LiveCapabilities {
    /// Pull the image, and return its digest if the engine reports it.
    async fn pull_from_registry(&self, image: &ImageRef) -> Result<Option<String>, PullError> {
        let context = &self.context;
        let login = context.login(image).await?;
        let progress = |layer| {
            (self.events)(Event::Layer {
                image: image.clone(),
                layer,
            })
        };
        let platform = context.platform.as_ref();
        let engine = &context.engine;
        engine
            .pull(image, platform, login.as_ref(), &progress)
            .await
    }

    /// Restore the images of a group: a container that gets a new image needs its old image's configuration, a follower runs its
    /// image again.
    async fn restore_images(&self, group: &[Prepared]) {
        for prepared in group {
            let pulled = &prepared.recreation.image;
            self.restore_image(&prepared.container, pulled, false).await;
            let is_target = |id: &ContainerId| group.iter().any(|it| it.container.id == *id);
            for dependent in prepared.dependents.iter().filter(|it| !is_target(&it.id)) {
                self.restore_image(dependent, pulled, true).await;
            }
        }
    }

    /// Restore the image of a container, or its name, which an engine with the containerd image store may drop when the tag moves.
    /// The ids of such an engine are registry digests, so Refit can pull the image by its id. If this fails, the step that needs
    /// the image reports it.
    ///
    /// `is_reused` says whether a container will be created from the image. Otherwise its configuration is enough, or a record of
    /// it.
    async fn restore_image(&self, container: &Container, pulled: &PulledImage, is_reused: bool) {
        let id = &container.image_id;
        let is_named_by_digest = match &pulled.local {
            Some(image) => image.is_named_by_manifest(),
            None => pulled.digest.as_deref() == Some(pulled.id.as_str()),
        };
        if !is_named_by_digest || *id == pulled.id {
            return;
        }
        let is_usable = match self.context.engine.image(id.as_str()).await {
            // Without a name, a replacement would lose the repository that it came from.
            Ok(image) => !is_reused || !image.repo_digests.is_empty(),
            Err(error) if error.is_not_found() => {
                !is_reused && self.context.images.get(id).await.is_some()
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
            "image of the container has lost its name, pulling it again by its digest"
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

/// Recreate one container. The flag says whether nothing is left to finish or undo.
async fn recreate_one(
    live: &LiveCapabilities,
    recreation: Recreation,
) -> (Result<Recreated, RecreateError>, bool) {
    let (context, events) = (&live.context, &live.events);
    let container = match context.examine(&recreation, live.force).await {
        Ok(container) => container,
        Err(error) => return (Err(error), true),
    };
    let name = container.name.clone();
    if let Err(error) = context.check_permissions(&name, recreation.strategy).await {
        return (Err(error), true);
    }
    let step = |step| {
        events(Event::Step {
            container: name.clone(),
            step,
        })
    };
    let engine = context.engine.as_ref();
    let mut recreated = Recreated {
        id: None,
        image_id: recreation.image.id.clone(),
        from_image_id: container.image_id.clone(),
        gap: None,
        followers: vec![],
        left_over: None,
    };
    if recreation.strategy == Strategy::Remove {
        step(Step::Remove);
        let removed = remove::remove(engine, &container).await;
        return (removed.map(|()| recreated), true);
    }
    if let Err(error) = context.check_overlap(&container).await {
        return (Err(error), true);
    }
    live.restore_image(&container, &recreation.image, false)
        .await;
    let image = NewImage::pulled(&recreation.image.reference, recreation.image.id);
    let replace_options = context.replace_options(&live.ending, &step);
    let (replaced, settled) = overlap::overlap(engine, container, &image, &replace_options).await;
    let replaced = replaced.map(|replaced| {
        recreated.id = replaced.members.into_iter().next().map(|it| it.id);
        recreated.gap = Some(replaced.gap);
        recreated.left_over = join_names(&replaced.left_over);
        recreated
    });
    (replaced, settled)
}

fn join_names(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(", "))
}

/// The results by container name.
type Answers = HashMap<String, RecreateAnswer>;

/// A container that gets a new image, and the containers that depend on it, each after all that it depends on.
struct Prepared {
    recreation: Recreation,
    container: Container,
    dependents: Vec<Container>,
}

/// Recreate one or several containers by `replace`, with all that depend on them, as one replacement.
async fn recreate_group(live: &LiveCapabilities, recreations: Vec<Recreation>) -> Answers {
    let context = &live.context;
    let Some(mut leases) = context.take_leases(
        recreations
            .iter()
            .map(|recreation| &recreation.container.id),
    ) else {
        let busy = |name: String| (name.clone(), Err(RecreateError::Busy { name }.into()));
        return recreations
            .into_iter()
            .map(|it| busy(it.container.name))
            .collect();
    };
    let mut answers = Answers::new();
    let mut ready = Vec::new();
    for recreation in recreations {
        let name = recreation.container.name.clone();
        let examined = async {
            let container = context.examine(&recreation, live.force).await?;
            let dependents = context.dependents(&container).await?;
            context.check_permissions(&name, Strategy::Replace).await?;
            Ok(Prepared {
                recreation,
                container,
                dependents,
            })
        };
        match examined.await {
            Ok(prepared) => ready.push(prepared),
            Err(error) => drop(answers.insert(name, Err(to_call_error(error)))),
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
    let providers: Vec<&str> = ready
        .iter()
        .map(|prepared| &*prepared.container.name)
        .collect();
    if let Err(refusal) = live.scope.admit(&providers, &followers) {
        end_leases(leases, false, true);
        for prepared in &ready {
            answers.insert(
                prepared.container.name.clone(),
                Err(refusal.clone().into_call_error()),
            );
        }
        return answers;
    }
    // A container that was examined and is not ready may still be a follower: its lease is taken already.
    let held: HashSet<String> = leases.iter().map(|lease| lease.key().to_owned()).collect();
    let more = followers.iter().map(|follower| &follower.id);
    let more = more.filter(|id| !held.contains(id.short()));
    let (outcome, settled) = match context.take_leases(more) {
        None => {
            let name = ready[0].container.name.clone();
            (Err(RecreateError::Busy { name }), true)
        }
        Some(more) => {
            leases.extend(more);
            let names: Vec<String> = targets.iter().map(|it| it.container.name.clone()).collect();
            let step = |step| {
                for prepared in &ready {
                    (live.events)(Event::Step {
                        container: prepared.container.name.clone(),
                        step,
                    });
                }
            };
            live.restore_images(&ready).await;
            tracing::debug!(group = ?names, "replacing");
            let replace_options = context.replace_options(&live.ending, &step);
            replace(context.engine.as_ref(), targets.clone(), &replace_options).await
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
            for prepared in &ready {
                let name = &prepared.container.name;
                answers.extend(
                    wave::error_for_member(&error, name)
                        .map(|it| (name.clone(), Err(to_call_error(it)))),
                );
            }
            // The container that gets the error: the requested container that the error names; a follower's error goes to the first
            // container.
            let named = error.name().to_owned();
            let owner = match ready
                .iter()
                .any(|prepared| prepared.container.name == named)
            {
                true => named,
                false => ready[0].container.name.clone(),
            };
            answers.insert(owner, Err(to_call_error(error)));
        }
    }
    answers
}

/// Every container of the group once, each after all that it depends on.
fn targets(ready: &[Prepared]) -> Vec<Target> {
    let mut by_id: BTreeMap<ContainerId, Target> = BTreeMap::new();
    for prepared in ready {
        for container in &prepared.dependents {
            by_id.entry(container.id.clone()).or_insert_with(|| Target {
                container: container.clone(),
                image: None,
            });
        }
    }
    for prepared in ready {
        let image = &prepared.recreation.image;
        let target = Target {
            container: prepared.container.clone(),
            image: Some(NewImage::pulled(&image.reference, image.id.clone())),
        };
        by_id.insert(prepared.container.id.clone(), target);
    }
    wave::in_order(by_id.into_values().collect())
}

/// The containers that are replaced only as followers.
fn followers<'a>(ready: &[Prepared], targets: &'a [Target]) -> Vec<&'a Container> {
    let containers = targets.iter().map(|target| &target.container);
    containers
        .filter(|container| {
            ready
                .iter()
                .all(|prepared| prepared.container.id != container.id)
        })
        .collect()
}

fn note_followers(
    live: &LiveCapabilities,
    targets: &[Target],
    followers: &[&Container],
    replaced: &Replaced,
) {
    let mut replaced_followers = lock(&live.replaced_followers);
    for (target, new) in targets.iter().zip(&replaced.members) {
        let old = &target.container.id;
        if followers.iter().any(|follower| follower.id == *old) {
            replaced_followers.insert(old.clone(), new.id.clone());
        }
    }
}

fn recreated(ready: &[Prepared], replaced: Replaced) -> Answers {
    let is_ready = |name: &str| ready.iter().any(|prepared| prepared.container.name == name);
    let mut left_over = join_names(&replaced.left_over);
    let new: HashMap<&str, &NewContainer> =
        replaced.members.iter().map(|it| (&*it.name, it)).collect();
    let each = ready.iter().map(|prepared| {
        let name = &prepared.container.name;
        let followers = prepared.dependents.iter().filter_map(|it| {
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
            image_id: prepared.recreation.image.id.clone(),
            from_image_id: prepared.container.image_id.clone(),
            gap: Some(replaced.gap),
            followers: followers.filter(|it| !is_ready(&it.name)).collect(),
            left_over: left_over.take(),
        };
        (name.clone(), Ok(recreated))
    });
    each.collect()
}
