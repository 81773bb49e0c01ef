//! What is worth telling a person: what was done to what, what is true now, and what to do next. And what is no longer so.
//!
//! Pure: a refresh's outcome in, findings out.

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

/// How soon a person should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    Normal,
    High,
    /// Something does not run.
    Urgent,
}

/// What tells one finding from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupKey {
    /// About what: `failed container ws-ana`. What is no longer so is taken back by it.
    pub about: String,
    /// What it is about that: the image, and why. Told again when this changes.
    pub cause: String,
}

/// See the module. The JSON is documented in `docs/notifications.md` and stable.
#[derive(Clone, Debug, Serialize)]
pub struct Notification {
    pub kind: Kind,
    pub urgency: Urgency,
    /// A container's name, an image, or `refresh`.
    pub subject: String,
    /// One sentence: what was done, or could not be.
    pub what: String,
    /// One sentence: what is true now.
    pub now: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_image_id: Option<String>,
    /// What the registry has, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(flatten)]
    pub context: Context,
    /// `None`: each is told.
    #[serde(skip)]
    pub same: Option<DedupKey>,
}

/// Who asked, and who decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Context {
    /// In the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// As they say of themselves.
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

/// What a refresh came to, for those who are told.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub findings: Vec<Notification>,
    /// What is no longer so, as [`DedupKey::about`].
    pub settled: Vec<String>,
}

/// What is said of a thing until it is settled.
fn about(kind: Kind, of: &str, name: &str) -> String {
    let kind = match kind {
        Kind::Failed => "failed",
        Kind::Recreated => "recreated",
        Kind::Behind => "behind",
        Kind::Held => "held",
        Kind::Unknown => "unknown",
    };
    format!("{kind} {of} {name}")
}

const REFRESH: &str = "refresh";

impl Outcome {
    /// `id` as in the history, `request` what was asked for and `by` whom.
    pub fn of(
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
            // One that is not written down has a number below zero, which nobody could look up.
            refresh: (id > 0).then_some(id),
            trigger: Some(request.trigger),
            by: by.map(str::to_owned),
            policy: report.map(|report| Policy::of(&report.policy)),
        };
        let mut outcome = Self::default();
        for image in report.into_iter().flat_map(|report| &report.images) {
            outcome.image(image, &context);
        }
        for container in report.into_iter().flat_map(|report| &report.containers) {
            outcome.container(container, &context);
        }
        match answer {
            Ok(_) => outcome.settled.push(about(Kind::Failed, "", REFRESH)),
            // Whoever asked for what there is not has been told, and nobody else needs to be.
            Err(RefreshError::UnknownTargets { .. }) => {}
            Err(error) => outcome.findings.push(whole(error, &context)),
        }
        outcome
    }

    /// Replacements that are half done `now`, and those that were `before`.
    pub fn of_unfinished(now: &[Unfinished], before: &[Unfinished]) -> Self {
        let mut outcome = Self::default();
        for one in before {
            if now.iter().all(|it| it.container != one.container) {
                let about = about(Kind::Failed, "container", &one.container);
                outcome.settled.push(about);
            }
        }
        // Another Refit's may end any moment, and need not be told.
        let settled = |one: &&Unfinished| one.state != UnfinishedState::InProgress;
        for one in now.iter().filter(settled) {
            let name = &one.container;
            let (urgency, what, now) = match one.state {
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
                same: Some(DedupKey {
                    about: about(Kind::Failed, "container", name),
                    cause: format!("{:?}", one.state),
                }),
                ..Notification::new(
                    Kind::Failed,
                    name,
                    format!("the replacement of `{name}` {what}: {}", one.detail),
                    now,
                    &Context::default(),
                )
            });
        }
        outcome
    }

    /// Of a look of the watcher.
    pub fn of_look(snapshot: &Snapshot) -> Self {
        let mut outcome = Self::default();
        for image in &snapshot.images {
            watched(image, &mut outcome);
        }
        outcome
    }

    fn image(&mut self, record: &ImageRecord, context: &Context) {
        let name = record.image.to_string();
        match record.outcome {
            ImageOutcome::Pulled | ImageOutcome::UpToDate => {
                for kind in [Kind::Failed, Kind::Behind, Kind::Unknown] {
                    self.settled.push(about(kind, "image", &name));
                }
            }
            ImageOutcome::Failed => {
                let failure = record.failure.clone();
                let failure = failure.unwrap_or_else(|| Diagnostic::new("cannot pull it"));
                self.findings.push(Notification {
                    urgency: Urgency::High,
                    next: next(&failure, "the next refresh tries again"),
                    same: Some(DedupKey {
                        about: about(Kind::Failed, "image", &name),
                        // Causes have times, addresses and numbers in them.
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

    fn container(&mut self, container: &ContainerReport, context: &Context) {
        let name = &container.name;
        let reason = container.reason.as_deref().unwrap_or_default();
        match (&container.recreation, container.verdict) {
            (Some(recreation), _) => self.recreation(name, recreation, context),
            (None, Some(Verdict::Current)) => self.settle(name),
            (None, Some(Verdict::Stale)) => self.findings.push(Notification {
                same: Some(DedupKey {
                    about: about(Kind::Behind, "container", name),
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
                same: Some(DedupKey {
                    about: about(Kind::Unknown, "container", name),
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
            // It says so and never asked for it.
            (None, Some(Verdict::Recreate)) => self.findings.push(Notification {
                urgency: Urgency::High,
                same: Some(DedupKey {
                    about: about(Kind::Failed, "container", name),
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

    fn recreation(&mut self, name: &str, record: &RecreationRecord, context: &Context) {
        let (urgency, now, usual) = match record.outcome {
            RecreationOutcome::Recreated | RecreationOutcome::Removed => {
                self.settle(name);
                self.findings.push(recreated(name, record, context));
                return;
            }
            RecreationOutcome::Current => return self.settle(name),
            // The other one tells; and a plan does nothing.
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
            next: next(&failure, usual),
            from_image_id: record.from_image_id.as_ref().map(ToString::to_string),
            to_image_id: Some(record.to_image_id.to_string()),
            same: Some(DedupKey {
                about: about(Kind::Failed, "container", name),
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
            self.settled.push(about(kind, "container", container));
        }
    }
}

fn recreated(name: &str, record: &RecreationRecord, context: &Context) -> Notification {
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
    let followed = record.followed.join(", ");
    let left = record
        .left_over
        .as_ref()
        .map(|left| format!("a container was left over: {left}"));
    let finding = Notification::new(Kind::Recreated, name, what, now, context);
    Notification {
        next: left.into_iter().collect(),
        from_image_id: record.from_image_id.as_ref().map(ToString::to_string),
        to_image_id: Some(record.to_image_id.to_string()),
        now: match followed.is_empty() {
            true => finding.now,
            false => format!("{}; {followed} followed", finding.now),
        },
        ..finding
    }
}

fn whole(error: &RefreshError, context: &Context) -> Notification {
    let told = Diagnostic::of(error);
    Notification {
        urgency: Urgency::High,
        next: next(&told, "`refit plan` says more"),
        same: Some(DedupKey {
            about: about(Kind::Failed, "", REFRESH),
            cause: told.error.clone(),
        }),
        ..Notification::new(
            Kind::Failed,
            REFRESH,
            told.sentence(),
            "what was begun has been finished or put back",
            context,
        )
    }
}

/// The hints, or what usually helps.
fn next(told: &Diagnostic, usual: &str) -> Vec<String> {
    match told.hints.is_empty() {
        true if usual.is_empty() => vec![],
        true => vec![usual.to_owned()],
        false => told.hints.clone(),
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
            same: None,
        }
    }

    /// A registry has an image that is not used yet.
    pub fn behind(image: &ImageRef, digest: &str, why: &str) -> Self {
        let name = image.to_string();
        Self {
            digest: Some(digest.to_owned()),
            same: Some(DedupKey {
                about: about(Kind::Behind, "image", &name),
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

    /// A registry could not be asked.
    pub fn unknown(image: &ImageRef, told: &Diagnostic) -> Self {
        let name = image.to_string();
        Self {
            next: next(told, "the next look tries again"),
            same: Some(DedupKey {
                about: about(Kind::Unknown, "image", &name),
                cause: told.error.clone(),
            }),
            ..Self::new(
                Kind::Unknown,
                &name,
                format!(
                    "it is not known whether `{name}` is up to date: {}",
                    told.sentence()
                ),
                "what runs on it keeps the image that it has",
                &Context::default(),
            )
        }
    }

    /// A refresh waits for a person.
    pub fn held(held: &PendingApproval) -> Self {
        let number = held.id;
        let names = held
            .findings
            .iter()
            .map(|finding| finding.image.to_string());
        let names: Vec<String> = names.collect();
        let context = Context {
            trigger: Some(held.request.trigger),
            by: held.by.clone(),
            ..Context::default()
        };
        let summary = &held.plan.summary;
        Self {
            urgency: Urgency::High,
            next: vec![format!(
                "`refit approvals show {number}` says what it would do, `refit approvals approve {number}` begins it"
            )],
            same: Some(DedupKey {
                about: about(Kind::Held, "approval", &number.to_string()),
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
                    counted(summary.would_pull, "image"),
                    counted(summary.would_recreate, "container")
                ),
                format!(
                    "nothing is done until somebody approves it; it expires at {:.0}",
                    held.expires
                ),
                &context,
            )
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// What a look of the watcher has shown of an image.
fn watched(image: &Watched, outcome: &mut Outcome) {
    let name = image.image.to_string();
    match image.verdict {
        watch::Verdict::Current => {
            for kind in [Kind::Behind, Kind::Unknown] {
                outcome.settled.push(about(kind, "image", &name));
            }
        }
        watch::Verdict::Unknown => {
            let told = image.reason.clone();
            let told = told.unwrap_or_else(|| Diagnostic::new("its registry did not say"));
            outcome
                .findings
                .push(Notification::unknown(&image.image, &told));
        }
        watch::Verdict::Behind => {
            outcome.settled.push(about(Kind::Unknown, "image", &name));
            let until = image.held.as_ref().and_then(|held| held.until);
            let until = until
                .map(|until| format!(" until {until:.0}"))
                .unwrap_or_default();
            let why = match image.held.as_ref().map(|held| held.by) {
                Some(watch::DeferReason::Pause) => "the watcher is paused".to_owned(),
                Some(watch::DeferReason::Window) => format!("no window for updates is open{until}"),
                Some(watch::DeferReason::Age) => format!("it is too young{until}"),
                Some(watch::DeferReason::Backoff) => {
                    format!("the last refresh for it failed, and none is tried{until}")
                }
                Some(watch::DeferReason::Rejected) => "somebody has rejected it".to_owned(),
                // These are told of by themselves, or done in a moment.
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
    fn of(report: &PolicyReport) -> Self {
        Self {
            name: report.name.clone(),
            version: report.version.clone(),
            generation: report.generation,
            digest: report.digest.clone(),
        }
    }
}
