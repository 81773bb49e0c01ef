//! The file: where it is, how it is opened, and what becomes of one that cannot be read. What is in it is in [`schema`] and
//! [`rows`]; nobody else knows SQLite.
//!
//! In WAL, so that those who look and the one that writes do not wait for each other, and with `synchronous = NORMAL`: what was
//! written outlives the process, however it dies. A power cut may take the last rows with it, but never the file. Waiting for the
//! disk at each row (`FULL`) would buy these rows, on a machine whose disk is busy with the layers of images, and nothing but
//! people reads them.

use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use refit_storage::atomic_file;
use rusqlite::{Connection, OpenFlags};

use super::rows::Confirmed;
use super::writer::Row;
use super::writer_lock::{self, WriterLock};
use super::{Health, HistoryError, Id, Page, Query, Retention, Shown, rows, schema};

/// How long a statement waits for another process's. One of ours takes milliseconds.
const BUSY: Duration = Duration::from_secs(2);
/// Between two looks at whether the turn is free.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Damaged files that are kept for whoever wants to look.
const DAMAGED_MAX: usize = 3;
/// Once it was that large, the log of SQLite is cut when it has been carried over.
const LOG_BYTES_MAX: u32 = 16 << 20;

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Location {
    folder: PathBuf,
    path: PathBuf,
    writers: PathBuf,
}

impl Location {
    pub(super) fn below(state: &Path) -> Self {
        let folder = state.join("history");
        Self {
            path: folder.join("refreshes.db"),
            writers: folder.join("writers"),
            folder,
        }
    }

    /// One that cannot be looked for is not one that was never written.
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

/// What SQLite found, in its words.
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

/// Held by the one that makes, changes or moves the file, of all processes of this machine.
struct Turn {
    _file: fs::File,
}

impl Turn {
    fn take(place: &Location) -> Result<Self, HistoryError> {
        let path = place.folder.join("turn");
        let failed = |act, source| HistoryError::Folder {
            act,
            path: path.clone(),
            source,
        };
        atomic_file::folder(&place.folder).map_err(|error| failed("make the folder of", error))?;
        let mut options = fs::File::options();
        options.create(true).truncate(false).write(true);
        let file = options.open(&path).map_err(|error| failed("open", error))?;
        let until = Instant::now() + BUSY;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    #[expect(clippy::disallowed_methods, reason = "the history's own thread")]
                    std::thread::sleep(LOOK_AGAIN);
                }
                Err(TryLockError::WouldBlock) => return Err(HistoryError::Held { path }),
                Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
            }
        }
    }
}

/// Which file it is that has this name now.
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

/// Open, for writing.
pub(super) struct File {
    place: Location,
    db: Connection,
    identity: Option<Identity>,
    presence: WriterLock,
}

/// How long a process has to run before its own clock is believed about what is old.
const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(12 * 60 * 60);

fn confirmed() -> Confirmed {
    static FIRST_ASKED: LazyLock<Instant> = LazyLock::new(Instant::now);
    match FIRST_ASKED.elapsed() >= CLOCK_BELIEVED_AFTER {
        true => Confirmed::ByThisProcess,
        false => Confirmed::ByOthers,
    }
}

/// Opens it, or makes it; one that is damaged is moved aside first.
pub(super) fn open(place: &Location, keep: Retention) -> Result<File, HistoryError> {
    let turn = Turn::take(place)?;
    let db = match prepared(place) {
        Err(HistoryError::Damaged { .. }) => {
            move_aside(place, &turn)?;
            prepared(place)?
        }
        prepared => prepared?,
    };
    let presence = WriterLock::announce(&place.writers).map_err(|source| HistoryError::Folder {
        act: "write to",
        path: place.writers.clone(),
        source,
    })?;
    let file = File {
        place: place.clone(),
        db,
        identity: identity(&place.path),
        presence,
    };
    rows::settle_the_dead(&file.db, &place.writers)
        .map_err(|error| place.failed("write to", error))?;
    writer_lock::sweep(&place.writers);
    rows::forget(&file.db, &file.presence.name, keep, confirmed())
        .map_err(|error| place.failed("write to", error))?;
    Ok(file)
}

/// A connection to a file with the schema of today. The caller holds the turn.
fn prepared(place: &Location) -> Result<Connection, HistoryError> {
    // Made by us, so that only its owner reads it: it has the names of containers and images. Never opened by us where it is
    // there, since closing it would take away SQLite's own locks.
    let made = atomic_file::new_file(&place.path);
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(HistoryError::Folder {
            act: "make",
            path: place.path.clone(),
            source: error,
        });
    }
    let mut db = connect(place)?;
    known(place, &db)?;
    let prepare = |db: &mut Connection| {
        let mode: String =
            db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        // Without WAL (a file system that shares no memory) `NORMAL` could cost the file in a power cut.
        let synchronous = if mode == "wal" { "normal" } else { "full" };
        db.pragma_update(None, "synchronous", synchronous)?;
        db.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_MAX, |_| Ok(()))?;
        schema::migrate(db)
    };
    prepare(&mut db).map_err(|error| place.failed("prepare", error))?;
    Ok(db)
}

fn connect(place: &Location) -> Result<Connection, HistoryError> {
    // The mutex is left out: a connection stays in one thread.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || {
        let db = Connection::open_with_flags(&place.path, flags)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "foreign_keys", true)?;
        // Whoever can write to the file must not make us run what they have put into its schema.
        db.pragma_update(None, "trusted_schema", false)?;
        db.pragma_update(None, "cell_size_check", true)?;
        Ok(db)
    };
    connect().map_err(|error| place.failed("open", error))
}

/// The file's schema; a newer one than ours is an error.
fn known(place: &Location, db: &Connection) -> Result<i64, HistoryError> {
    let found = schema::version(db).map_err(|error| place.failed("read", error))?;
    if found > schema::KNOWN {
        return Err(HistoryError::Newer {
            path: place.path.clone(),
            found,
            known: schema::KNOWN,
        });
    }
    Ok(found)
}

/// Under a dated name, with SQLite's log, for whoever wants to look. Only the newest of such files are kept.
fn move_aside(place: &Location, _turn: &Turn) -> Result<(), HistoryError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%3fZ");
    let aside = with_suffix(&place.path, &format!(".damaged-{now}"));
    fs::rename(&place.path, &aside).map_err(|source| HistoryError::Folder {
        act: "move aside",
        path: place.path.clone(),
        source,
    })?;
    let _ = fs::rename(
        with_suffix(&place.path, "-wal"),
        with_suffix(&aside, "-wal"),
    );
    let _ = fs::remove_file(with_suffix(&place.path, "-shm"));
    tracing::warn!(
        "the history was damaged, and is kept as `{}`; a new one is begun",
        aside.display()
    );
    let damaged = damaged(place);
    for old in &damaged[..damaged.len().saturating_sub(DAMAGED_MAX)] {
        let _ = fs::remove_file(old);
        let _ = fs::remove_file(with_suffix(old, "-wal"));
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Those that were moved aside, the oldest first.
fn damaged(place: &Location) -> Vec<PathBuf> {
    let entries = fs::read_dir(&place.folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.contains(".db.damaged-") && name.ends_with('Z'))
        })
        .collect();
    found.sort();
    found
}

impl File {
    /// Whether it still has its name.
    pub(super) fn is_in_place(&self) -> bool {
        self.identity.is_some() && self.identity == identity(&self.place.path)
    }

    /// Unless another process has done so meanwhile.
    pub(super) fn move_aside(self, place: &Location) -> Result<(), HistoryError> {
        let turn = Turn::take(place)?;
        if !self.is_in_place() {
            return Ok(());
        }
        drop(self);
        move_aside(place, &turn)
    }

    /// Writes a row, or completes it, and lets go of what is too old.
    pub(super) fn put(&mut self, row: &mut Row, keep: Retention) -> Result<(), HistoryError> {
        rows::put(&mut self.db, &self.presence.name, row, keep, confirmed())
            .map_err(|error| self.place.failed("write to", error))
    }
}

/// Open, for reading.
pub(super) struct Reading {
    place: Location,
    db: Connection,
}

/// `None` where nothing has been written yet.
pub(super) fn look(place: &Location) -> Result<Option<Reading>, HistoryError> {
    if !place.has_file()? {
        return Ok(None);
    }
    let db = connect(place)?;
    if known(place, &db)? == 0 {
        return Ok(None);
    }
    // Those who look write nothing, whatever they are asked.
    db.pragma_update(None, "query_only", true)
        .map_err(|error| place.failed("read", error))?;
    Ok(Some(Reading {
        place: place.clone(),
        db,
    }))
}

impl Reading {
    pub(super) fn list(&self, query: &Query) -> Result<Page, HistoryError> {
        rows::list(&self.db, &self.place.writers, query)
            .map_err(|error| self.place.failed("read", error))
    }

    pub(super) fn show(&self, id: Id) -> Result<Option<Shown>, HistoryError> {
        rows::show(&self.db, &self.place.writers, id)
            .map_err(|error| self.place.failed("read", error))
    }
}

/// As [`super::Archive::check`] says.
pub(super) fn check(place: &Location) -> Result<Option<Health>, HistoryError> {
    if !place.has_file()? {
        return Ok(None);
    }
    let db = connect(place)?;
    let found = known(place, &db)?;
    let check = || {
        let said: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if said != "ok" {
            return Ok(Err(said));
        }
        // What it says already: a write all the same, which a full disk refuses.
        db.pragma_update(None, "user_version", found)?;
        let refreshes = match found {
            0 => 0,
            _ => rows::count_all(&db)?,
        };
        Ok(Ok(refreshes))
    };
    match check().map_err(|error| place.failed("check", error))? {
        Ok(refreshes) => Ok(Some(Health {
            path: place.path.clone(),
            refreshes,
            bytes: fs::metadata(&place.path).map_or(0, |metadata| metadata.len()),
            damaged: damaged(place),
        })),
        Err(said) => Err(HistoryError::Damaged {
            path: place.path.clone(),
            source: Damage(said),
        }),
    }
}
