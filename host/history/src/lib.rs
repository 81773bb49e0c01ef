//! The history of refreshes, for people: who requested each one, under which policy, what was decided and done, and why.
//!
//! Refit writes a row when a refresh starts and completes it when the refresh ends, so the row of a killed refresh shows that.
//! The history contains no plans: they change nothing, and a client can request one at any time. No code acts on the history:
//! the engine holds everything that is needed to finish or undo a replacement. If the history cannot be written, Refit reports
//! that, and refreshes continue.
//!
//! Only `file`, `rows` and `schema` use SQLite. `writer` is a separate thread that owns the file, and `writer_lock` shows which
//! writers are alive.

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

/// How long a refresh waits for its row, at its start and at its end. A write takes milliseconds. If it takes longer, another
/// process is writing or the disk hangs, and the refresh continues.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// The capacity of the queue to the writer. Each refresh sends two rows, and waits for each.
const QUEUE: usize = 64;

/// The maximum length of a client's name.
const BY_CHARACTERS_MAX: usize = 100;

/// The maximum number of entries in a page.
pub const LIMIT_MAX: u32 = 500;

/// How much history Refit keeps.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    pub refreshes: u32,
    pub days: u32,
}

/// The number of a refresh. It rises with each refresh, and is never used twice in a file.
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
        let outcome = Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text);
        outcome.ok_or_else(|| OutcomeError(text.chars().take(80).collect()))
    }
}

/// The data of a refresh at its start.
#[derive(Clone, Debug)]
pub struct RefreshStart {
    pub request: Request,
    /// Who asked, as they say of themselves.
    pub by: Option<String>,
    pub policy: PolicyReport,
}

/// The data of a refresh at its end.
#[derive(Clone, Debug)]
pub struct RefreshEnd {
    pub outcome: Outcome,
    /// Why it failed as a whole.
    pub failure: Option<Diagnostic>,
    /// The report, also of a failed refresh, as far as it got.
    pub report: Option<Report>,
}

/// The history, open for writing. A process that refreshes keeps it open.
pub struct History {
    archive: Archive,
    queue: mpsc::Sender<Message>,
    keys: AtomicU64,
    by: Option<String>,
    last_error: LastError,
}

/// The error of the last write, if it failed.
#[derive(Clone, Default)]
struct LastError(Arc<Mutex<Option<Diagnostic>>>);

impl LastError {
    /// Sets the error, and logs a change.
    fn set(&self, now: Option<Diagnostic>) {
        let mut last_error = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last_error == now {
            return;
        }
        match &now {
            Some(diagnostic) => {
                tracing::warn!(hints = ?diagnostic.hints, "refreshes are not written down: {}", diagnostic.sentence());
            }
            None => tracing::info!("refreshes are written down again"),
        }
        *last_error = now;
    }

    fn get(&self) -> Option<Diagnostic> {
        let last_error = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last_error.clone()
    }
}

impl History {
    /// Opens the history in the state directory `state`. A separate thread opens or creates the file; its errors are in the log
    /// and in [`Self::last_error`].
    pub fn open(state: &Path, retention: Retention) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        let last_error = LastError::default();
        let archive = Archive::new(state);
        if let Err(error) = writer::start(
            archive.location.clone(),
            retention,
            messages,
            last_error.clone(),
        ) {
            let diagnostic = Diagnostic::new("cannot start a thread for the history");
            last_error.set(Some(diagnostic.because(error.to_string())));
        }
        Self {
            archive,
            queue,
            keys: AtomicU64::new(0),
            by: None,
            last_error,
        }
    }

    /// Sets the client's name for refreshes of this process that have none.
    #[must_use]
    pub fn with_client(mut self, client: Option<String>) -> Self {
        self.by = client;
        self
    }

    /// Returns the archive for queries. Ended refreshes are in it.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Returns why the last refresh could not be written.
    pub fn last_error(&self) -> Option<Diagnostic> {
        self.last_error.get()
    }

    /// Writes the row of a refresh that starts. It is written when this returns, unless the disk hangs or refuses.
    pub async fn begin(&self, refresh_start: RefreshStart) -> OpenEntry {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        let (written, reply) = oneshot::channel();
        let by = refresh_start.by.or_else(|| self.by.clone());
        let row = writer::Row::new(RefreshStart {
            by: by.map(|name| name.chars().take(BY_CHARACTERS_MAX).collect()),
            ..refresh_start
        });
        let begin = Message::Begin {
            key,
            row: Box::new(row),
            written,
        };
        let id = self.send(begin, reply).await.flatten();
        OpenEntry {
            id,
            key,
            began: Instant::now(),
            queue: Some(self.queue.clone()),
        }
    }

    /// Completes the row of a refresh that ends.
    pub async fn end(&self, mut open_entry: OpenEntry, refresh_end: RefreshEnd) {
        open_entry.queue = None;
        let (written, reply) = oneshot::channel();
        let end = Message::End {
            key: open_entry.key,
            duration: open_entry.began.elapsed(),
            ended: Box::new(refresh_end),
            written,
        };
        self.send(end, reply).await;
    }

    async fn send<T>(&self, message: Message, reply: oneshot::Receiver<T>) -> Option<T> {
        let sending = async {
            // This fails only after the end of the thread, which has reported its error.
            self.queue.send(message).await.ok()?;
            reply.await.ok()
        };
        let result = tokio::time::timeout(WRITE_TIMEOUT, sending).await;
        result.unwrap_or_else(|_| {
            tracing::warn!("history is slow, a refresh may be missing from it");
            None
        })
    }

    /// Ends the thread when it has written all rows, or after this time. Later refreshes are not written.
    pub async fn close(&self, timeout: Duration) {
        let (written, reply) = oneshot::channel();
        let closing = async {
            if self.queue.send(Message::Close { written }).await.is_ok() {
                let _ = reply.await;
            }
        };
        if tokio::time::timeout(timeout, closing).await.is_err() {
            tracing::warn!("gave up waiting for the history to be written");
        }
    }
}

/// The row of a running refresh. If it is dropped without an end (its task panicked or was dropped), the row says that the
/// refresh was interrupted.
#[must_use]
pub struct OpenEntry {
    /// `None` if the row could not be written.
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
        // If the queue is full, readers see the refresh as interrupted once this process has ended.
        let _ = queue.try_send(end);
    }
}

/// The history, open for reading. All functions block.
#[derive(Clone, Debug)]
pub struct Archive {
    location: Location,
}

/// Selects refreshes.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The maximum number of entries, up to [`LIMIT_MAX`].
    pub limit: u32,
    /// Only refreshes older than this.
    pub before: Option<Id>,
    /// Only refreshes whose report mentions this container. Each entry then contains its outcome for the container.
    pub container: Option<String>,
    /// Only refreshes whose report mentions this image.
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

/// The state of the file.
#[derive(Clone, Debug)]
pub struct Health {
    pub path: PathBuf,
    pub refreshes: u64,
    pub bytes: u64,
    /// Corrupt files that Refit has renamed.
    pub damaged: Vec<PathBuf>,
}

impl Archive {
    /// Opens the history in the state directory `state`.
    pub fn new(state: &Path) -> Self {
        Self {
            location: Location::new(state),
        }
    }

    pub fn list(&self, query: &Query) -> Result<Page, HistoryError> {
        let Some(file) = file::open_for_reading(&self.location)? else {
            return Ok(Page::default());
        };
        file.list(query)
    }

    pub fn show(&self, id: Id) -> Result<Option<Shown>, HistoryError> {
        let Some(file) = file::open_for_reading(&self.location)? else {
            return Ok(None);
        };
        file.show(id)
    }

    /// Checks every page, and whether the file can be written. Returns `None` if there is no file yet.
    pub fn check(&self) -> Result<Option<Health>, HistoryError> {
        file::check(&self.location)
    }
}

/// The history cannot be read or written. Refreshes continue.
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
