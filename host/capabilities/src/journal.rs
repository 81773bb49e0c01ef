//! The host's own record of a refresh: each call and its result. Policies cannot write to it.
//!
//! [`Journal`] wraps the capabilities of one refresh, records each call, and sends events to the observers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerId, ContainerSummary, State};
use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::event::{Event, Events};
use refit_model::image::{ImageId, ImageRef};
use refit_model::pull::{ImageOutcome, ImageRecord};
use refit_model::recreation::{RecreationOutcome, RecreationRecord};
use refit_model::unfinished::Unfinished;
use refit_recreate::RecreateError;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::{CallError, Capabilities, PulledImage, Recreated, Recreation, Transfer};

/// Everything that a [`Journal`] has recorded.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub images: Vec<ImageRecord>,
    pub recreations: Vec<RecreationRecord>,
    /// The containers that the policy inspected and that were not running, by name.
    pub stopped: HashMap<String, State>,
    /// The replacements that are still unfinished and that no Refit is working on.
    pub unfinished: Vec<Unfinished>,
    /// Why the containers could not be listed, if the last attempt failed. A policy gets a shorter text.
    pub unlisted: Option<Diagnostic>,
}

/// Records the calls of a policy. The counts of [`Guard`](crate::guard::Guard), which it wraps, limit its size.
pub struct Journal {
    inner: Arc<dyn Capabilities>,
    /// Whether this is a plan, in which no container was recreated.
    planning: bool,
    events: Events,
    record: Arc<Mutex<Record>>,
    /// The image that each container ran when the policy inspected it. The limit on inspections bounds their number.
    ran: Mutex<HashMap<ContainerId, ImageId>>,
    /// The state of the inspected containers that were not running, by name.
    stopped: Mutex<HashMap<String, State>>,
    under_way: TaskTracker,
}

impl Journal {
    pub fn new(inner: Arc<dyn Capabilities>, planning: bool, events: Events) -> Self {
        Self {
            inner,
            planning,
            events,
            record: Arc::default(),
            ran: Mutex::default(),
            stopped: Mutex::default(),
            under_way: TaskTracker::new(),
        }
    }

    /// Wait until every started recreation has ended, and return the record.
    pub async fn finish(&self) -> Record {
        self.under_way.close();
        self.under_way.wait().await;
        let unfinished = self.inner.unfinished().await;
        let mut record = self.lock().clone();
        record.unfinished = unfinished;
        record.stopped =
            std::mem::take(&mut *self.stopped.lock().unwrap_or_else(PoisonError::into_inner));
        record
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Capabilities for Journal {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let answer = self.inner.containers().await;
        if let Err(error) = &answer {
            self.lock().unlisted = Some(diagnose(error, "cannot list the containers"));
        }
        answer
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        let answer = self.inner.inspect(container).await;
        if let Ok(container) = &answer {
            let mut ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
            ran.insert(container.id.clone(), container.image_id.clone());
            drop(ran);
            let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
            match container.state {
                State::Running => stopped.remove(&container.name),
                state => stopped.insert(container.name.clone(), state),
            };
        }
        answer
    }

    async fn expect_pulls(&self, images: &[ImageRef]) {
        self.inner.expect_pulls(images).await;
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        (self.events)(Event::PullStarted {
            image: image.clone(),
        });
        let started = Instant::now();
        let answer = self.inner.pull(image).await;
        let record = image_record(image, &answer, started.elapsed());
        self.lock().images.push(record.clone());
        (self.events)(Event::PullEnded(record));
        answer
    }

    async fn expect_recreations(&self, wave: &[Recreation]) {
        self.inner.expect_recreations(wave).await;
    }

    async fn unfinished(&self) -> Vec<Unfinished> {
        self.inner.unfinished().await
    }

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        let (inner, events, records, planning) = (
            self.inner.clone(),
            self.events.clone(),
            self.record.clone(),
            self.planning,
        );
        let name = recreation.container.name.clone();
        let ran = {
            let ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
            ran.get(&recreation.container.id).cloned()
        };
        // A separate task: if a policy traps or times out, our future is dropped, but a started recreation must still be finished
        // or rolled back, and recorded.
        let recreating = async move {
            events(Event::RecreateStarted {
                container: recreation.container.name.clone(),
            });
            let started = Instant::now();
            let answer = inner.recreate(recreation.clone()).await;
            let mut record = recreation_record(&recreation, &answer, planning, started.elapsed());
            // A container that was not recreated has an old image in the report, too.
            record.from_image_id = record.from_image_id.or(ran);
            records
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recreations
                .push(record.clone());
            events(Event::RecreateEnded(record));
            answer
        };
        // Its log lines belong to the span of this refresh.
        let work = self.under_way.spawn(recreating.in_current_span());
        match work.await {
            Ok(answer) => answer,
            Err(panicked) => {
                let reason = format!("Refit itself failed, please report it: {panicked}");
                Err(RecreateError::Unsupported { name, reason }.into())
            }
        }
    }
}

fn image_record(
    image: &ImageRef,
    answer: &Result<PulledImage, CallError<PullError>>,
    duration: Duration,
) -> ImageRecord {
    let (id, digest, outcome, failure) = match answer {
        Ok(pulled) => {
            let outcome = match pulled.transfer {
                Transfer::Pulled => ImageOutcome::Pulled,
                Transfer::UpToDate => ImageOutcome::UpToDate,
                Transfer::WouldPull => ImageOutcome::WouldPull,
            };
            // The id of an image that was not pulled is a placeholder, which is not reported.
            let id = (outcome != ImageOutcome::WouldPull).then(|| pulled.id.clone());
            (id, pulled.digest.clone(), outcome, None)
        }
        Err(error) => (
            None,
            None,
            ImageOutcome::Failed,
            Some(diagnose(error, &format!("cannot pull `{image}`"))),
        ),
    };
    ImageRecord {
        image: image.clone(),
        outcome,
        id,
        digest,
        failure,
        duration,
    }
}

fn recreation_record(
    recreation: &Recreation,
    answer: &Result<Recreated, CallError<RecreateError>>,
    planning: bool,
    duration: Duration,
) -> RecreationRecord {
    let name = &recreation.container.name;
    let (outcome, recreated) = match answer {
        Ok(recreated) if planning => (RecreationOutcome::WouldRecreate, Some(recreated)),
        Ok(recreated) if recreated.id.is_none() => (RecreationOutcome::Removed, Some(recreated)),
        Ok(recreated) => (RecreationOutcome::Recreated, Some(recreated)),
        Err(CallError::Failed(error)) => (outcome_of(error), None),
        Err(CallError::Denied(_) | CallError::QuotaExceeded(_) | CallError::Cancelled) => {
            (RecreationOutcome::Refused, None)
        }
    };
    let failure = match answer {
        Err(error) if outcome != RecreationOutcome::Current => {
            Some(diagnose(error, &format!("cannot recreate `{name}`")))
        }
        Ok(_) | Err(_) => None,
    };
    let followers = recreated.map_or(&[][..], |recreated| &recreated.followers);
    RecreationRecord {
        container: name.clone(),
        strategy: recreation.strategy,
        outcome,
        old_id: recreation.container.id.clone(),
        new_id: recreated
            .filter(|_| !planning)
            .and_then(|recreated| recreated.id.clone()),
        from_image_id: recreated.map(|recreated| recreated.from_image_id.clone()),
        to_image_id: recreation.image.id.clone(),
        image: Some(recreation.image.reference.clone()),
        gap: recreated
            .filter(|_| !planning)
            .and_then(|recreated| recreated.gap),
        followed: followers.iter().map(|it| it.name.clone()).collect(),
        follower_ids: followers.iter().map(|it| it.id.clone()).collect(),
        left_over: recreated.and_then(|recreated| recreated.left_over.clone()),
        failure,
        duration,
    }
}

fn outcome_of(error: &RecreateError) -> RecreationOutcome {
    match error {
        RecreateError::Current { .. } | RecreateError::ReplacedByOther { current: true, .. } => {
            RecreationOutcome::Current
        }
        RecreateError::Gone { .. } | RecreateError::ReplacedByOther { current: false, .. } => {
            RecreationOutcome::ReplacedByOther
        }
        RecreateError::Busy { .. } => RecreationOutcome::Busy,
        RecreateError::Unsupported { .. } | RecreateError::Withdrawn { .. } => {
            RecreationOutcome::Refused
        }
        RecreateError::Aborted { .. } => RecreationOutcome::Aborted,
        RecreateError::RolledBack { .. } => RecreationOutcome::RolledBack,
        RecreateError::Stranded { .. } | RecreateError::StillStopping { .. } => {
            RecreationOutcome::Stranded
        }
    }
}

/// Describe a call that was refused or failed, for a person.
pub fn diagnose<E: Hints>(error: &CallError<E>, what: &str) -> Diagnostic {
    match error {
        CallError::Failed(error) => Diagnostic::of(error),
        CallError::Denied(grant) => Diagnostic::new(what)
            .because("no grant covers it")
            .hint(grant.clone()),
        CallError::QuotaExceeded(limit) => Diagnostic::new(what).because(limit.clone()),
        CallError::Cancelled => Diagnostic::new(what).because("the refresh was being ended"),
    }
}
