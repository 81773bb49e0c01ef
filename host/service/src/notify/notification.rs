//! Notifications: what was done, what is true now, and what to do next. Also the subjects that no longer need one.
//!
//! Pure functions from the result of a refresh or of a check to notifications.

use refit_history::Id;
use refit_model::decision::Verdict;
use refit_model::diagnostic::Diagnostic;
use refit_model::image::ImageRef;
use refit_model::pull::{ImageOutcome, ImageRecord};
use refit_model::recreation::{RecreationOutcome, RecreationRecord};
use refit_model::report::{ContainerReport, PolicyReport, Report};
use refit_model::request::{Request, Trigger};
use refit_model::unfinished::{Unfinished, UnfinishedState};
use refit_refresh::RefreshError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::approvals::PendingApproval;
use crate::watch::status::{self as watch, Snapshot, Watched};

/// What somebody can want to be told of.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something that was asked for did not come about.
    Failed,
    /// A container was given a new image, or removed for one.
    Recreated,
    /// There is a newer image, and it is not used.
    Behind,
    /// A refresh waits for a person's approval.
    Held,
    /// It could not be found out whether something is up to date.
    Unknown,
}

/// How soon a person should react.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    Normal,
    High,
    /// A container does not run.
    Urgent,
}

/// Identifies equal notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupKey {
    /// The subject: `failed container ws-ana`. Settling it removes the notification.
    pub about: String,
    /// The cause: the image, and why. If it changes, Refit sends the notification again.
    pub cause: String,
}

/// One notification. `docs/notifications.md` documents its JSON, which is stable.
#[derive(Clone, Debug, Serialize)]
pub struct Notification {
    pub kind: Kind,
    pub urgency: Urgency,
    /// A container's name, an image, or `refresh`.
    pub subject: String,
    /// One sentence: what was done, or what failed.
    pub what: String,
    /// One sentence: what is true now.
    pub now: String,
    /// What to do, if anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_image_id: Option<String>,
    /// The digest in the registry, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(flatten)]
    pub context: Context,
    /// `None`: Refit sends each.
    #[serde(skip)]
    pub dedup_key: Option<DedupKey>,
}

/// Who requested the refresh, and which policy decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Context {
    /// The number of the refresh in the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// The name that the client gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    pub name: String,
    pub version: String,
    pub generation: u64,
    pub digest: String,
}

/// The notifications that result from a refresh or a check.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub findings: Vec<Notification>,
    /// The subjects that no longer apply, as [`DedupKey::about`].
    pub settled: Vec<String>,
}

/// Returns the subject of a notification, as [`DedupKey::about`].
fn dedup_subject(kind: Kind, object: &str, name: &str) -> String {
    let kind = match kind {
        Kind::Failed => "failed",
        Kind::Recreated => "recreated",
        Kind::Behind => "behind",
        Kind::Held => "held",
        Kind::Unknown => "unknown",
    };
    format!("{kind} {object} {name}")
}

const REFRESH: &str = "refresh";

impl Outcome {
    /// Returns the notifications about a refresh: its `id` in the history, the request, and `by` whom.
    pub fn from_refresh(
        id: Id,
        request: &Request,
        by: Option<&str>,
        answer: &Result<Report, RefreshError>,
    ) -> Self {
        let report = match answer {
            Ok(report) => Some(report),
            Err(error) => error.partial(),
        };
        let context = Context {
            // A refresh that is not in the history has a negative number, which nobody can look up.
            refresh: (id > 0).then_some(id),
            trigger: Some(request.trigger),
            by: by.map(str::to_owned),
            policy: report.map(|report| Policy::from_report(&report.policy)),
        };
        let mut outcome = Self::default();
        for image in report.into_iter().flat_map(|report| &report.images) {
            outcome.add_image(image, &context);
        }
        for container in report.into_iter().flat_map(|report| &report.containers) {
            outcome.add_container(container, &context);
        }
        match answer {
            Ok(_) => outcome
                .settled
                .push(dedup_subject(Kind::Failed, "", REFRESH)),
            // The client has got this error, and nobody else needs it.
            Err(RefreshError::UnknownTargets { .. }) => {}
            Err(error) => outcome.findings.push(refresh_failed(error, &context)),
        }
        outcome
    }

    /// Returns the notifications about unfinished replacements: those of `now`, and those of `before` that are finished.
    pub fn from_unfinished(now: &[Unfinished], before: &[Unfinished]) -> Self {
        let mut outcome = Self::default();
        for unfinished in before {
            if now
                .iter()
                .all(|other| other.container != unfinished.container)
            {
                let about = dedup_subject(Kind::Failed, "container", &unfinished.container);
                outcome.settled.push(about);
            }
        }
        // A replacement that another Refit is working on may finish at any moment, and needs no notification.
        let needs_notification =
            |unfinished: &&Unfinished| unfinished.state != UnfinishedState::InProgress;
        for unfinished in now.iter().filter(needs_notification) {
            let name = &unfinished.container;
            let (urgency, what, now) = match unfinished.state {
                UnfinishedState::LeftOver => (
                    Urgency::Normal,
                    "left a container that could not be removed",
                    "the right container runs under its name",
                ),
                _ => (
                    Urgency::Urgent,
                    "was left half done and could be neither finished nor undone",
                    "it may be that nothing runs under its name; nothing was deleted",
                ),
            };
            outcome.findings.push(Notification {
                urgency,
                next: vec!["the daemon tries again; `refit recover` does at once".into()],
                dedup_key: Some(DedupKey {
                    about: dedup_subject(Kind::Failed, "container", name),
                    cause: format!("{:?}", unfinished.state),
                }),
                ..Notification::new(
                    Kind::Failed,
                    name,
                    format!("the replacement of `{name}` {what}: {}", unfinished.detail),
                    now,
                    &Context::default(),
                )
            });
        }
        outcome
    }

    /// Returns the notifications about a check of the watcher.
    pub fn from_check(snapshot: &Snapshot) -> Self {
        let mut outcome = Self::default();
        for image in &snapshot.images {
            add_watched_image(image, &mut outcome);
        }
        outcome
    }

    fn add_image(&mut self, record: &ImageRecord, context: &Context) {
        let name = record.image.to_string();
        match record.outcome {
            ImageOutcome::Pulled | ImageOutcome::UpToDate => {
                for kind in [Kind::Failed, Kind::Behind, Kind::Unknown] {
                    self.settled.push(dedup_subject(kind, "image", &name));
                }
            }
            ImageOutcome::Failed => {
                let failure = record.failure.clone();
                let failure = failure.unwrap_or_else(|| Diagnostic::new("cannot pull it"));
                self.findings.push(Notification {
                    urgency: Urgency::High,
                    next: next_steps(&failure, "the next refresh tries again"),
                    dedup_key: Some(DedupKey {
                        about: dedup_subject(Kind::Failed, "image", &name),
                        // The causes contain times, addresses and numbers.
                        cause: failure.error.clone(),
                    }),
                    ..Notification::new(
                        Kind::Failed,
                        &name,
                        failure.sentence(),
                        "what runs on it keeps the image that it has",
                        context,
                    )
                });
            }
            ImageOutcome::WouldPull => {}
        }
    }

    fn add_container(&mut self, container: &ContainerReport, context: &Context) {
        let name = &container.name;
        let reason = container.reason.as_deref().unwrap_or_default();
        match (&container.recreation, container.verdict) {
            (Some(recreation), _) => self.add_recreation(name, recreation, context),
            (None, Some(Verdict::Current)) => self.settle(name),
            (None, Some(Verdict::Stale)) => self.findings.push(Notification {
                dedup_key: Some(DedupKey {
                    about: dedup_subject(Kind::Behind, "container", name),
                    cause: container.rule.clone().unwrap_or_default(),
                }),
                ..Notification::new(
                    Kind::Behind,
                    name,
                    format!("`{name}` is behind, and was left as it is: {reason}"),
                    "it runs the image that it had",
                    context,
                )
            }),
            (None, Some(Verdict::Unknown)) => self.findings.push(Notification {
                dedup_key: Some(DedupKey {
                    about: dedup_subject(Kind::Unknown, "container", name),
                    cause: container.rule.clone().unwrap_or_default(),
                }),
                ..Notification::new(
                    Kind::Unknown,
                    name,
                    format!("it is not known whether `{name}` is up to date: {reason}"),
                    "it runs the image that it had",
                    context,
                )
            }),
            // The policy reports this and never requested it.
            (None, Some(Verdict::Recreate)) => self.findings.push(Notification {
                urgency: Urgency::High,
                dedup_key: Some(DedupKey {
                    about: dedup_subject(Kind::Failed, "container", name),
                    cause: "never asked for".into(),
                }),
                ..Notification::new(
                    Kind::Failed,
                    name,
                    format!("the policy says that it recreates `{name}`, and never asked for it"),
                    "it runs the image that it had",
                    context,
                )
            }),
            (None, Some(Verdict::Leave) | None) => {}
        }
    }

    fn add_recreation(&mut self, name: &str, record: &RecreationRecord, context: &Context) {
        let (urgency, now, default_step) = match record.outcome {
            RecreationOutcome::Recreated | RecreationOutcome::Removed => {
                self.settle(name);
                self.findings
                    .push(recreated_notification(name, record, context));
                return;
            }
            RecreationOutcome::Current => return self.settle(name),
            // The other refresh notifies; and a plan does nothing.
            RecreationOutcome::Busy | RecreationOutcome::WouldRecreate => return,
            RecreationOutcome::ReplacedByOther => (
                Urgency::Normal,
                "somebody else has replaced or removed it, and what runs now may be behind",
                "the next refresh looks again",
            ),
            RecreationOutcome::Refused => (
                Urgency::High,
                "it was left alone, and runs the image that it had",
                "",
            ),
            RecreationOutcome::Aborted => (
                Urgency::High,
                "it was never stopped, and runs the image that it had",
                "the next refresh tries again",
            ),
            RecreationOutcome::RolledBack => (
                Urgency::High,
                "the old container runs again, on the image that it had",
                "look why the new image does not come up: `docker logs` of the old container does not say, try the image by hand",
            ),
            RecreationOutcome::Stranded => (
                Urgency::Urgent,
                "nothing runs under its name; both containers are kept",
                "`refit recover` tries again",
            ),
        };
        let failure = record.failure.clone();
        let failure =
            failure.unwrap_or_else(|| Diagnostic::new(format!("cannot recreate `{name}`")));
        self.findings.push(Notification {
            urgency,
            next: next_steps(&failure, default_step),
            from_image_id: record.from_image_id.as_ref().map(ToString::to_string),
            to_image_id: Some(record.to_image_id.to_string()),
            dedup_key: Some(DedupKey {
                about: dedup_subject(Kind::Failed, "container", name),
                cause: format!(
                    "{:?} {} {}",
                    record.outcome, record.to_image_id, failure.error
                ),
            }),
            ..Notification::new(Kind::Failed, name, failure.sentence(), now, context)
        });
    }

    fn settle(&mut self, container: &str) {
        for kind in [Kind::Failed, Kind::Behind, Kind::Unknown] {
            self.settled
                .push(dedup_subject(kind, "container", container));
        }
    }
}

fn recreated_notification(
    name: &str,
    record: &RecreationRecord,
    context: &Context,
) -> Notification {
    let from = record
        .from_image_id
        .as_ref()
        .map(|id| id.short().to_owned());
    let to = record.to_image_id.short();
    let was = from
        .map(|from| format!(", and ran {from} before"))
        .unwrap_or_default();
    let (what, now) = match record.outcome {
        RecreationOutcome::Removed => (
            format!("`{name}` was removed, so that it comes back on image {to}"),
            "it is gone until the platform makes it anew".to_owned(),
        ),
        _ => {
            let gap = record
                .gap
                .map(|gap| format!(", after a gap of {:.1} s", gap.as_secs_f64()));
            let what = format!(
                "`{name}` runs image {to} now{was}{}",
                gap.unwrap_or_default()
            );
            (
                what,
                "it is proven and the old container is gone".to_owned(),
            )
        }
    };
    let followers = record.followed.join(", ");
    let left = record
        .left_over
        .as_ref()
        .map(|left| format!("a container was left over: {left}"));
    let notification = Notification::new(Kind::Recreated, name, what, now, context);
    Notification {
        next: left.into_iter().collect(),
        from_image_id: record.from_image_id.as_ref().map(ToString::to_string),
        to_image_id: Some(record.to_image_id.to_string()),
        now: match followers.is_empty() {
            true => notification.now,
            false => format!("{}; {followers} followed", notification.now),
        },
        ..notification
    }
}

fn refresh_failed(error: &RefreshError, context: &Context) -> Notification {
    let diagnostic = Diagnostic::of(error);
    Notification {
        urgency: Urgency::High,
        next: next_steps(&diagnostic, "`refit plan` says more"),
        dedup_key: Some(DedupKey {
            about: dedup_subject(Kind::Failed, "", REFRESH),
            cause: diagnostic.error.clone(),
        }),
        ..Notification::new(
            Kind::Failed,
            REFRESH,
            diagnostic.sentence(),
            "what was begun has been finished or put back",
            context,
        )
    }
}

/// Returns the hints, or the default step.
fn next_steps(diagnostic: &Diagnostic, default_step: &str) -> Vec<String> {
    match diagnostic.hints.is_empty() {
        true if default_step.is_empty() => vec![],
        true => vec![default_step.to_owned()],
        false => diagnostic.hints.clone(),
    }
}

impl Notification {
    pub fn new(
        kind: Kind,
        subject: &str,
        what: impl Into<String>,
        now: impl Into<String>,
        context: &Context,
    ) -> Self {
        Self {
            kind,
            urgency: Urgency::Normal,
            subject: subject.to_owned(),
            what: what.into(),
            now: now.into(),
            next: vec![],
            from_image_id: None,
            to_image_id: None,
            digest: None,
            context: context.clone(),
            dedup_key: None,
        }
    }

    /// Creates a notification about an update that is not applied yet.
    pub fn behind(image: &ImageRef, digest: &str, why: &str) -> Self {
        let name = image.to_string();
        Self {
            digest: Some(digest.to_owned()),
            dedup_key: Some(DedupKey {
                about: dedup_subject(Kind::Behind, "image", &name),
                cause: digest.to_owned(),
            }),
            ..Self::new(
                Kind::Behind,
                &name,
                format!("`{name}` was published anew"),
                format!("it is not used yet: {why}"),
                &Context::default(),
            )
        }
    }

    /// Creates a notification about a registry that could not be checked.
    pub fn unknown(image: &ImageRef, diagnostic: &Diagnostic) -> Self {
        let name = image.to_string();
        Self {
            next: next_steps(diagnostic, "the next look tries again"),
            dedup_key: Some(DedupKey {
                about: dedup_subject(Kind::Unknown, "image", &name),
                cause: diagnostic.error.clone(),
            }),
            ..Self::new(
                Kind::Unknown,
                &name,
                format!(
                    "it is not known whether `{name}` is up to date: {}",
                    diagnostic.sentence()
                ),
                "what runs on it keeps the image that it has",
                &Context::default(),
            )
        }
    }

    /// Creates a notification about a new approval.
    pub fn approval_needed(approval: &PendingApproval) -> Self {
        let number = approval.id;
        let names = approval
            .findings
            .iter()
            .map(|update| update.image.to_string());
        let names: Vec<String> = names.collect();
        let context = Context {
            trigger: Some(approval.request.trigger),
            by: approval.by.clone(),
            ..Context::default()
        };
        let summary = &approval.plan.summary;
        Self {
            urgency: Urgency::High,
            next: vec![format!(
                "`refit approvals show {number}` says what it would do, `refit approvals approve {number}` begins it"
            )],
            dedup_key: Some(DedupKey {
                about: dedup_subject(Kind::Held, "approval", &number.to_string()),
                cause: String::new(),
            }),
            ..Self::new(
                Kind::Held,
                &match names.is_empty() {
                    true => REFRESH.to_owned(),
                    false => names.join(", "),
                },
                format!(
                    "a refresh waits for approval, to pull {} and recreate {}",
                    pluralize(summary.would_pull, "image"),
                    pluralize(summary.would_recreate, "container")
                ),
                format!(
                    "nothing is done until somebody approves it; it expires at {:.0}",
                    approval.expires
                ),
                &context,
            )
        }
    }
}

fn pluralize(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Adds the notification about a watched image to the outcome.
fn add_watched_image(image: &Watched, outcome: &mut Outcome) {
    let name = image.image.to_string();
    match image.verdict {
        watch::Verdict::Current => {
            for kind in [Kind::Behind, Kind::Unknown] {
                outcome.settled.push(dedup_subject(kind, "image", &name));
            }
        }
        watch::Verdict::Unknown => {
            let diagnostic = image.reason.clone();
            let diagnostic =
                diagnostic.unwrap_or_else(|| Diagnostic::new("its registry did not say"));
            outcome
                .findings
                .push(Notification::unknown(&image.image, &diagnostic));
        }
        watch::Verdict::Behind => {
            outcome
                .settled
                .push(dedup_subject(Kind::Unknown, "image", &name));
            let until = image.held.as_ref().and_then(|deferral| deferral.until);
            let until = until
                .map(|until| format!(" until {until:.0}"))
                .unwrap_or_default();
            let why = match image.held.as_ref().map(|deferral| deferral.by) {
                Some(watch::DeferReason::Pause) => "the watcher is paused".to_owned(),
                Some(watch::DeferReason::Window) => format!("no window for updates is open{until}"),
                Some(watch::DeferReason::Age) => format!("it is too young{until}"),
                Some(watch::DeferReason::Backoff) => {
                    format!("the last refresh for it failed, and none is tried{until}")
                }
                Some(watch::DeferReason::Rejected) => "somebody has rejected it".to_owned(),
                // These have their own notification, or end in a moment.
                Some(watch::DeferReason::Approval | watch::DeferReason::Refresh) | None => return,
            };
            if let Some(digest) = &image.remote {
                outcome
                    .findings
                    .push(Notification::behind(&image.image, digest, &why));
            }
        }
    }
}

impl Policy {
    fn from_report(report: &PolicyReport) -> Self {
        Self {
            name: report.name.clone(),
            version: report.version.clone(),
            generation: report.generation,
            digest: report.digest.clone(),
        }
    }
}
