//! The SQLite file: its location, opening it, and replacing a corrupt one. [`schema`] and [`rows`] define its content; no other
//! module uses SQLite.
//!
//! The file is in WAL mode, so that readers and the writer do not wait for each other. `synchronous = NORMAL` keeps all rows if
//! the process dies, however it dies. A power failure may lose the last rows, but never the file. Waiting for the disk at each
//! row (`FULL`) would protect these rows, on a machine whose disk is busy with image layers, although only people read them.

use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use refit_storage::atomic_file;
use rusqlite::{Connection, OpenFlags};

use super::rows::ClockConfirmation;
use super::writer::Row;
use super::writer_lock::{self, WriterLock};
use super::{Health, HistoryError, Id, Page, Query, Retention, Shown, rows, schema};

/// How long a statement waits for another process. Statements of Refit take milliseconds.
const BUSY: Duration = Duration::from_secs(2);
/// The pause between two attempts to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The number of corrupt files that Refit keeps for inspection.
const DAMAGED_MAX: usize = 3;
/// SQLite truncates its log to this size after a checkpoint.
const LOG_BYTES_MAX: u32 = 16 << 20;

/// The paths of the history.
#[derive(Clone, Debug)]
pub(super) struct Location {
    folder: PathBuf,
    path: PathBuf,
    writers: PathBuf,
}

impl Location {
    pub(super) fn new(state: &Path) -> Self {
        let folder = state.join("history");
        Self {
            path: folder.join("refreshes.db"),
            writers: folder.join("writers"),
            folder,
        }
    }

    /// Returns whether the file exists. An error on the way does not mean that there is none.
    fn has_file(&self) -> Result<bool, HistoryError> {
        match fs::metadata(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(HistoryError::Folder {
                act: "look for the history",
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn failed(&self, act: &'static str, source: rusqlite::Error) -> HistoryError {
        let path = self.path.clone();
        match kind(&source) {
            Kind::Damaged => HistoryError::Damaged {
                path,
                source: Damage(source.to_string()),
            },
            Kind::Full | Kind::Busy | Kind::Denied | Kind::Other => {
                HistoryError::Database { act, path, source }
            }
        }
    }
}

/// The error text of SQLite.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Damage(String);

pub(super) enum Kind {
    Damaged,
    Full,
    Busy,
    Denied,
    Other,
}

pub(super) fn kind(error: &rusqlite::Error) -> Kind {
    use rusqlite::ErrorCode as Code;
    match error.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => Kind::Damaged,
        Some(Code::DiskFull) => Kind::Full,
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Kind::Busy,
        Some(Code::PermissionDenied | Code::ReadOnly | Code::CannotOpen) => Kind::Denied,
        Some(_) | None => Kind::Other,
    }
}

/// A lock across all processes of this machine. Its holder may create, change or rename the file.
struct FileLock {
    _file: fs::File,
}

impl FileLock {
    fn take(location: &Location) -> Result<Self, HistoryError> {
        let path = location.folder.join("turn");
        let failed = |act, source| HistoryError::Folder {
            act,
            path: path.clone(),
            source,
        };
        atomic_file::folder(&location.folder)
            .map_err(|error| failed("make the folder of", error))?;
        let mut options = fs::File::options();
        options.create(true).truncate(false).write(true);
        let file = options.open(&path).map_err(|error| failed("open", error))?;
        let deadline = Instant::now() + BUSY;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    #[expect(clippy::disallowed_methods, reason = "the history's own thread")]
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => return Err(HistoryError::Held { path }),
                Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
            }
        }
    }
}

/// Identifies the file that has this name now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Some(Identity(metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        Some(Identity(0, 0))
    }
}

/// The file, open for writing.
pub(super) struct File {
    location: Location,
    db: Connection,
    identity: Option<Identity>,
    writer_lock: WriterLock,
}

/// How long a process has to run before Refit trusts its clock about the age of rows.
const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(12 * 60 * 60);

fn clock_confirmation() -> ClockConfirmation {
    static FIRST_ASKED: LazyLock<Instant> = LazyLock::new(Instant::now);
    match FIRST_ASKED.elapsed() >= CLOCK_BELIEVED_AFTER {
        true => ClockConfirmation::ByThisProcess,
        false => ClockConfirmation::ByOthers,
    }
}

/// Opens the file for writing, or creates it. It renames a corrupt file first.
pub(super) fn open(location: &Location, retention: Retention) -> Result<File, HistoryError> {
    let file_lock = FileLock::take(location)?;
    let db = match open_prepared(location) {
        Err(HistoryError::Damaged { .. }) => {
            rename_damaged(location, &file_lock)?;
            open_prepared(location)?
        }
        result => result?,
    };
    let writer_lock =
        WriterLock::acquire(&location.writers).map_err(|source| HistoryError::Folder {
            act: "write to",
            path: location.writers.clone(),
            source,
        })?;
    let file = File {
        location: location.clone(),
        db,
        identity: identity(&location.path),
        writer_lock,
    };
    rows::interrupt_dead(&file.db, &location.writers)
        .map_err(|error| location.failed("write to", error))?;
    writer_lock::delete_dead(&location.writers);
    rows::delete_old(
        &file.db,
        &file.writer_lock.name,
        retention,
        clock_confirmation(),
    )
    .map_err(|error| location.failed("write to", error))?;
    Ok(file)
}

/// Opens a connection to a file with the current schema. The caller holds the lock.
fn open_prepared(location: &Location) -> Result<Connection, HistoryError> {
    // Refit creates the file itself, so that only its owner can read it: it contains names of containers and images. Refit does
    // not open an existing file itself, since closing it would release SQLite's own locks.
    let created = atomic_file::new_file(&location.path);
    if let Err(error) = created
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(HistoryError::Folder {
            act: "make",
            path: location.path.clone(),
            source: error,
        });
    }
    let mut db = connect(location)?;
    check_version(location, &db)?;
    let prepare = |db: &mut Connection| {
        let mode: String =
            db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        // Without WAL (on a file system without shared memory), `NORMAL` could lose the file in a power failure.
        let synchronous = if mode == "wal" { "normal" } else { "full" };
        db.pragma_update(None, "synchronous", synchronous)?;
        db.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_MAX, |_| Ok(()))?;
        schema::migrate(db)
    };
    prepare(&mut db).map_err(|error| location.failed("prepare", error))?;
    Ok(db)
}

fn connect(location: &Location) -> Result<Connection, HistoryError> {
    // No mutex is necessary: a connection stays in one thread.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || {
        let db = Connection::open_with_flags(&location.path, flags)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "foreign_keys", true)?;
        // Anyone who can write to the file must not make Refit run what they put into its schema.
        db.pragma_update(None, "trusted_schema", false)?;
        db.pragma_update(None, "cell_size_check", true)?;
        Ok(db)
    };
    connect().map_err(|error| location.failed("open", error))
}

/// Returns the version of the file's schema. A newer version than ours is an error.
fn check_version(location: &Location, db: &Connection) -> Result<i64, HistoryError> {
    let found = schema::version(db).map_err(|error| location.failed("read", error))?;
    if found > schema::KNOWN {
        return Err(HistoryError::Newer {
            path: location.path.clone(),
            found,
            known: schema::KNOWN,
        });
    }
    Ok(found)
}

/// Renames the file and SQLite's log to a name with the date, for inspection. Only the newest such files are kept.
fn rename_damaged(location: &Location, _lock: &FileLock) -> Result<(), HistoryError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%3fZ");
    let damaged_path = append_suffix(&location.path, &format!(".damaged-{now}"));
    fs::rename(&location.path, &damaged_path).map_err(|source| HistoryError::Folder {
        act: "move aside",
        path: location.path.clone(),
        source,
    })?;
    let _ = fs::rename(
        append_suffix(&location.path, "-wal"),
        append_suffix(&damaged_path, "-wal"),
    );
    let _ = fs::remove_file(append_suffix(&location.path, "-shm"));
    tracing::warn!(
        "the history was damaged, and is kept as `{}`; a new one is begun",
        damaged_path.display()
    );
    let damaged = damaged(location);
    for old in &damaged[..damaged.len().saturating_sub(DAMAGED_MAX)] {
        let _ = fs::remove_file(old);
        let _ = fs::remove_file(append_suffix(old, "-wal"));
    }
    Ok(())
}

fn append_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the corrupt files, the oldest first.
fn damaged(location: &Location) -> Vec<PathBuf> {
    let entries = fs::read_dir(&location.folder)
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.contains(".db.damaged-") && name.ends_with('Z'))
        })
        .collect();
    paths.sort();
    paths
}

impl File {
    /// Returns whether the open file still has its name.
    pub(super) fn is_in_place(&self) -> bool {
        self.identity.is_some() && self.identity == identity(&self.location.path)
    }

    /// Renames the file, unless another process has done so already.
    pub(super) fn rename_damaged(self, location: &Location) -> Result<(), HistoryError> {
        let file_lock = FileLock::take(location)?;
        if !self.is_in_place() {
            return Ok(());
        }
        drop(self);
        rename_damaged(location, &file_lock)
    }

    /// Writes or completes a row, and deletes old rows.
    pub(super) fn put(&mut self, row: &mut Row, retention: Retention) -> Result<(), HistoryError> {
        rows::put(
            &mut self.db,
            &self.writer_lock.name,
            row,
            retention,
            clock_confirmation(),
        )
        .map_err(|error| self.location.failed("write to", error))
    }
}

/// The file, open for reading.
pub(super) struct Reading {
    location: Location,
    db: Connection,
}

/// Opens the file for reading. Returns `None` if nothing has been written yet.
pub(super) fn open_for_reading(location: &Location) -> Result<Option<Reading>, HistoryError> {
    if !location.has_file()? {
        return Ok(None);
    }
    let db = connect(location)?;
    if check_version(location, &db)? == 0 {
        return Ok(None);
    }
    // A reader writes nothing, whatever the query.
    db.pragma_update(None, "query_only", true)
        .map_err(|error| location.failed("read", error))?;
    Ok(Some(Reading {
        location: location.clone(),
        db,
    }))
}

impl Reading {
    pub(super) fn list(&self, query: &Query) -> Result<Page, HistoryError> {
        rows::list(&self.db, &self.location.writers, query)
            .map_err(|error| self.location.failed("read", error))
    }

    pub(super) fn show(&self, id: Id) -> Result<Option<Shown>, HistoryError> {
        rows::show(&self.db, &self.location.writers, id)
            .map_err(|error| self.location.failed("read", error))
    }
}

/// Implements [`super::Archive::check`].
pub(super) fn check(location: &Location) -> Result<Option<Health>, HistoryError> {
    if !location.has_file()? {
        return Ok(None);
    }
    let db = connect(location)?;
    let found = check_version(location, &db)?;
    let check = || {
        let result: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if result != "ok" {
            return Ok(Err(result));
        }
        // This sets the current value, but it is a write, which a full disk refuses.
        db.pragma_update(None, "user_version", found)?;
        let refreshes = match found {
            0 => 0,
            _ => rows::count_all(&db)?,
        };
        Ok(Ok(refreshes))
    };
    match check().map_err(|error| location.failed("check", error))? {
        Ok(refreshes) => Ok(Some(Health {
            path: location.path.clone(),
            refreshes,
            bytes: fs::metadata(&location.path).map_or(0, |metadata| metadata.len()),
            damaged: damaged(location),
        })),
        Err(damage) => Err(HistoryError::Damaged {
            path: location.path.clone(),
            source: Damage(damage),
        }),
    }
}
