//! What became of each refresh, for people who look back: who asked, under which policy, what was decided and done, and why.
//!
//! A row is written when a refresh begins and completed when it ends, so that one which was killed is seen as such. Plans are
//! not kept: they change nothing, and are made as often as somebody looks. Nothing reads this to act on it: what is needed to
//! finish or undo a replacement is in the engine, and a history that cannot be written is told of and stops no refresh.
//!
//! `file` is the only place that knows of SQLite, `writer` a thread of its own before it, and `presence` says which writers live.

#![forbid(unsafe_code)]

mod file;
mod rows;
mod schema;
mod writer;
mod writer_lock;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::image::ImageRef;
use refit_model::report::{PolicyReport, Report, Summary};
use refit_model::request::Request;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use self::file::Location;
use self::writer::Message;

/// How long a refresh waits for its row at most, at its beginning and at its end. A write takes milliseconds; one that takes
/// longer is behind another process's, or the disk hangs, and then the refresh goes on.
const WRITTEN: Duration = Duration::from_secs(3);

/// Rows on their way to the file. Each refresh has two, and waits for each.
const QUEUE: usize = 64;

/// The longest name of whoever asked.
const BY_CHARACTERS_MAX: usize = 100;

/// Entries that one query answers with.
pub const LIMIT_MAX: u32 = 500;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    pub refreshes: u32,
    pub days: u32,
}

/// Rises with each refresh, and is not used twice in a file.
pub type Id = i64;

/// What a refresh came to, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
#[schema(as = RefreshOutcome)]
pub enum Outcome {
    Running,
    /// All that was asked for.
    Done,
    /// Some of what was asked for did not come about. The report says what.
    SomeFailed,
    /// It was told to end before it was through: what was begun was finished.
    Cancelled,
    /// It could not be made, or not to its end.
    Failed,
    /// Begun, and never ended: whoever made it was killed.
    Interrupted,
}

impl Outcome {
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Done,
        Self::SomeFailed,
        Self::Cancelled,
        Self::Failed,
        Self::Interrupted,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::SomeFailed => "some-failed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an outcome")]
pub struct OutcomeError(String);

impl FromStr for Outcome {
    type Err = OutcomeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| OutcomeError(text.chars().take(80).collect()))
    }
}

/// What is known when a refresh begins.
#[derive(Clone, Debug)]
pub struct RefreshStart {
    pub request: Request,
    /// Who asked, as they say of themselves.
    pub by: Option<String>,
    pub policy: PolicyReport,
}

/// What is known when it has ended.
#[derive(Clone, Debug)]
pub struct RefreshEnd {
    pub outcome: Outcome,
    /// Why it failed as a whole.
    pub failure: Option<Diagnostic>,
    /// Also of one that failed, as far as it came.
    pub report: Option<Report>,
}

/// The way into the file. Whoever writes holds one, for as long as it refreshes.
pub struct History {
    archive: Archive,
    queue: mpsc::Sender<Message>,
    keys: AtomicU64,
    by: Option<String>,
    trouble: Trouble,
}

/// Why the last write did not come about. Empty where it did.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<Option<Diagnostic>>>);

impl Trouble {
    /// Told once for as long as it stays the same.
    fn set(&self, now: Option<Diagnostic>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == now {
            return;
        }
        match &now {
            Some(told) => {
                tracing::warn!(hints = ?told.hints, "refreshes are not written down: {}", told.sentence());
            }
            None => tracing::info!("refreshes are written down again"),
        }
        *held = now;
    }

    fn get(&self) -> Option<Diagnostic> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }
}

impl History {
    /// `state` is the state directory. The file is opened, or made, by a thread of its own, and what is wrong with it is in
    /// the log and in [`Self::trouble`].
    pub fn open(state: &Path, keep: Retention) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        let trouble = Trouble::default();
        let archive = Archive::below(state);
        if let Err(error) = writer::start(archive.place.clone(), keep, messages, trouble.clone()) {
            let told = Diagnostic::new("cannot start a thread for the history");
            trouble.set(Some(told.because(error.to_string())));
        }
        Self {
            archive,
            queue,
            keys: AtomicU64::new(0),
            by: None,
            trouble,
        }
    }

    /// Who asks for refreshes of this process of which nobody says more, as they say of themselves.
    #[must_use]
    pub fn by(mut self, who: Option<String>) -> Self {
        self.by = who;
        self
    }

    /// To look things up. What was ended is there.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Why the last refresh was not written down.
    pub fn trouble(&self) -> Option<Diagnostic> {
        self.trouble.get()
    }

    /// Written when this returns, unless the disk hangs or refuses.
    pub async fn begin(&self, begun: RefreshStart) -> OpenEntry {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        let (written, told) = oneshot::channel();
        let by = begun.by.or_else(|| self.by.clone());
        let row = writer::Row::new(RefreshStart {
            by: by.map(|who| who.chars().take(BY_CHARACTERS_MAX).collect()),
            ..begun
        });
        let begin = Message::Begin {
            key,
            row: Box::new(row),
            written,
        };
        let id = self.send(begin, told).await.flatten();
        OpenEntry {
            id,
            key,
            began: Instant::now(),
            queue: Some(self.queue.clone()),
        }
    }

    /// The same of its end.
    pub async fn end(&self, mut under_way: OpenEntry, ended: RefreshEnd) {
        under_way.queue = None;
        let (written, told) = oneshot::channel();
        let end = Message::End {
            key: under_way.key,
            duration: under_way.began.elapsed(),
            ended: Box::new(ended),
            written,
        };
        self.send(end, told).await;
    }

    async fn send<T>(&self, message: Message, told: oneshot::Receiver<T>) -> Option<T> {
        let sending = async {
            // Refused only after the end of the thread, which has told of it.
            self.queue.send(message).await.ok()?;
            told.await.ok()
        };
        let sent = tokio::time::timeout(WRITTEN, sending).await;
        sent.unwrap_or_else(|_| {
            tracing::warn!(
                "the history is slow: a refresh goes on, and is perhaps not written down"
            );
            None
        })
    }

    /// Ends the thread when all that it was given is written, or after this time. What is begun later is not written down.
    pub async fn close(&self, within: Duration) {
        let (written, told) = oneshot::channel();
        let closing = async {
            if self.queue.send(Message::Close { written }).await.is_ok() {
                let _ = told.await;
            }
        };
        if tokio::time::timeout(within, closing).await.is_err() {
            tracing::warn!("gave up waiting for the history to be written");
        }
    }
}

/// A refresh whose beginning is written down. One that is dropped without an end (its task panicked, or was dropped) is
/// written down as interrupted.
#[must_use]
pub struct OpenEntry {
    /// `None` where it could not be written.
    id: Option<Id>,
    key: u64,
    began: Instant,
    queue: Option<mpsc::Sender<Message>>,
}

impl OpenEntry {
    pub fn id(&self) -> Option<Id> {
        self.id
    }
}

impl Drop for OpenEntry {
    fn drop(&mut self) {
        let Some(queue) = self.queue.take() else {
            return;
        };
        let interrupted = RefreshEnd {
            outcome: Outcome::Interrupted,
            failure: None,
            report: None,
        };
        let end = Message::End {
            key: self.key,
            duration: self.began.elapsed(),
            ended: Box::new(interrupted),
            written: oneshot::channel().0,
        };
        // Where the queue is full, it is seen as interrupted when this process has ended.
        let _ = queue.try_send(end);
    }
}

/// The file, for those who only look. All of it blocks.
#[derive(Clone, Debug)]
pub struct Archive {
    place: Location,
}

/// Which refreshes are looked for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// At most; [`LIMIT_MAX`] at most.
    pub limit: u32,
    /// Only older ones than this.
    pub before: Option<Id>,
    /// Only those whose report mentions this container. Each entry then says what became of it.
    pub container: Option<String>,
    /// Only those whose report mentions this image.
    pub image: Option<ImageRef>,
    pub outcome: Option<Outcome>,
}

/// One refresh, without its report.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = RefreshEntry)]
pub struct Entry {
    pub id: Id,
    pub started: jiff::Timestamp,
    pub outcome: Outcome,
    /// Not there while it runs, and where it was interrupted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Who asked, as they say of themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub request: Request,
    pub policy: PolicyReport,
    /// As in the report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Of `recreate_failed` in the summary.
    pub rolled_back: u32,
    /// Of `recreate_failed` in the summary.
    pub stranded: u32,
    /// Why it failed as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Diagnostic>,
    /// What became of the container that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ContainerEntry {
    pub name: String,
    /// The outcome of its recreation, or where there was none the policy's verdict. See `docs/report.md`.
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
}

/// What a query finds, the newest first.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[schema(as = RefreshPage)]
pub struct Page {
    pub refreshes: Vec<Entry>,
    /// `before` for the next page. Not there where this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Id>,
}

/// One refresh, with its report as it was written: by another version of Refit perhaps.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = RefreshShown)]
pub struct Shown {
    #[serde(flatten)]
    pub entry: Entry,
    /// Not there while it runs, where it was interrupted, or failed before there was anything to tell, and of one that was too
    /// long to be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Report>)]
    pub report: Option<serde_json::Value>,
}

/// What the file is like.
#[derive(Clone, Debug)]
pub struct Health {
    pub path: PathBuf,
    pub refreshes: u64,
    pub bytes: u64,
    /// Damaged ones that were moved aside.
    pub damaged: Vec<PathBuf>,
}

impl Archive {
    /// `state` is the state directory.
    pub fn below(state: &Path) -> Self {
        Self {
            place: Location::below(state),
        }
    }

    pub fn list(&self, query: &Query) -> Result<Page, HistoryError> {
        let Some(file) = file::look(&self.place)? else {
            return Ok(Page::default());
        };
        file.list(query)
    }

    pub fn show(&self, id: Id) -> Result<Option<Shown>, HistoryError> {
        let Some(file) = file::look(&self.place)? else {
            return Ok(None);
        };
        file.show(id)
    }

    /// Looks at every page, and sees whether something can be written. `None` where there is no file yet.
    pub fn check(&self) -> Result<Option<Health>, HistoryError> {
        file::check(&self.place)
    }
}

/// The history cannot be read or written. Refreshes go on.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("cannot {act} `{}`", .path.display())]
    Folder {
        act: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot {act} the history `{}`", .path.display())]
    Database {
        act: &'static str,
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("the history `{}` is damaged", .path.display())]
    Damaged { path: PathBuf, source: file::Damage },
    #[error("the history `{}` was written by a newer Refit: its schema is {found}, and {known} is known here", .path.display())]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("another process holds `{}`", .path.display())]
    Held { path: PathBuf },
}

impl Hints for HistoryError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Folder { .. } => {
                "`state_dir` names another folder; refreshes go on, and are not written down"
            }
            Self::Database { source, .. } => match file::kind(source) {
                file::Kind::Full => {
                    "free some space: refreshes go on, and are not written down until then"
                }
                file::Kind::Busy => "another process is writing, or was stopped while it did",
                file::Kind::Denied => "only who may write to the state directory can read it, too",
                file::Kind::Damaged | file::Kind::Other => return vec![],
            },
            Self::Damaged { .. } => {
                "the refresh that comes upon the damage moves it aside, under a dated name, and begins a new one"
            }
            Self::Newer { .. } => {
                "it is left alone: use the newer Refit, or move it away to begin a new one"
            }
            Self::Held { .. } => "refreshes go on, and are written down when it lets go",
        };
        vec![hint.to_owned()]
    }
}
