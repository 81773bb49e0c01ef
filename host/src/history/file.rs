//! The file: SQLite, its schema, what is kept, and what becomes of a file that cannot be read. The only place with SQL.
//!
//! In WAL, so that those who look and the one that writes do not wait for each other, and with `synchronous = NORMAL`: what was
//! written outlives the process, however it dies. A power cut may take the last rows with it, but never the file. Waiting for the
//! disk at each row (`FULL`) would buy these rows, on a machine whose disk is busy with the layers of images, and nothing but
//! people reads them.

use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};

use super::presence::{self, Presence};
use super::writer::Row;
use super::{
    ContainerEntry, Entry, Health, HistoryError, Id, Keep, LIMIT_MAX, Outcome, Page, Query, Shown,
};
use crate::journal::RecreationOutcome;
use crate::policy::Verdict;
use crate::private;
use crate::refresh::{PolicyReport, Report};

/// How long a statement waits for another process's. One of ours takes milliseconds.
const BUSY: Duration = Duration::from_secs(2);
/// Between two looks at whether the turn is free.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The longest report that is kept: 20,000 containers, as many as a refresh inspects at most unless told otherwise. Of a
/// longer one the counts are.
const REPORT_BYTES_MAX: usize = 16 << 20;
/// Of all reports together, whatever `[history]` allows: 9,000 of them with 40 containers each.
const REPORTS_BYTES_MAX: usize = 256 << 20;
/// Damaged files that are kept for whoever wants to look.
const DAMAGED_MAX: usize = 3;
/// Once it was that large, the log of SQLite is cut when it has been carried over.
const LOG_BYTES_MAX: u32 = 16 << 20;

/// What leads from each schema to the next. Never changed once released; `user_version` is how many of them a file has seen.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE refreshes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        started TEXT NOT NULL,
        started_ms INTEGER NOT NULL,
        writer TEXT NOT NULL,
        asked_by TEXT,
        request TEXT NOT NULL,
        policy TEXT NOT NULL,
        -- NULL while it is under way.
        outcome TEXT,
        duration_ms INTEGER,
        summary TEXT,
        rolled_back INTEGER NOT NULL DEFAULT 0,
        stranded INTEGER NOT NULL DEFAULT 0,
        failure TEXT
    ) STRICT;
    CREATE INDEX under_way ON refreshes (writer) WHERE outcome IS NULL;
    CREATE TABLE reports (
        refresh INTEGER PRIMARY KEY REFERENCES refreshes (id) ON DELETE CASCADE,
        bytes INTEGER NOT NULL,
        report TEXT NOT NULL
    ) STRICT;
    CREATE TABLE images (
        image TEXT NOT NULL,
        refresh INTEGER NOT NULL REFERENCES refreshes (id) ON DELETE CASCADE,
        outcome TEXT NOT NULL,
        PRIMARY KEY (image, refresh)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX images_of ON images (refresh);
    CREATE TABLE containers (
        name TEXT NOT NULL,
        refresh INTEGER NOT NULL REFERENCES refreshes (id) ON DELETE CASCADE,
        outcome TEXT NOT NULL,
        gap_ms INTEGER,
        PRIMARY KEY (name, refresh)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX containers_of ON containers (refresh);
"];

const KNOWN: i64 = MIGRATIONS.len() as i64;

/// Where things are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    folder: PathBuf,
    path: PathBuf,
    writers: PathBuf,
}

impl Place {
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
    fn take(place: &Place) -> Result<Self, HistoryError> {
        let path = place.folder.join("turn");
        let failed = |act, source| HistoryError::Folder {
            act,
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&place.folder).map_err(|error| failed("make the folder of", error))?;
        let mut options = fs::File::options();
        options.create(true).truncate(false).write(true);
        let file = options.open(&path).map_err(|error| failed("open", error))?;
        let until = Instant::now() + BUSY;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOOK_AGAIN)
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
    place: Place,
    db: Connection,
    identity: Option<Identity>,
    presence: Presence,
}

/// Opens it, or makes it; one that is damaged is moved aside first.
pub(super) fn open(place: &Place, keep: Keep) -> Result<File, HistoryError> {
    let turn = Turn::take(place)?;
    let db = match prepared(place) {
        Err(HistoryError::Damaged { .. }) => {
            move_aside(place, &turn)?;
            prepared(place)?
        }
        prepared => prepared?,
    };
    let presence = Presence::announce(&place.writers).map_err(|source| HistoryError::Folder {
        act: "write to",
        path: place.writers.clone(),
        source,
    })?;
    let mut file = File {
        place: place.clone(),
        db,
        identity: identity(&place.path),
        presence,
    };
    file.settle_the_dead()
        .map_err(|error| place.failed("write to", error))?;
    presence::sweep(&place.writers);
    file.forget(keep)
        .map_err(|error| place.failed("write to", error))?;
    Ok(file)
}

/// A connection to a file with the schema of today. The caller holds the turn.
fn prepared(place: &Place) -> Result<Connection, HistoryError> {
    // Made by us, so that only its owner reads it: it has the names of containers and images. Never opened by us where it is
    // there, since closing it would take away SQLite's own locks.
    let made = private::new_file(&place.path);
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
        migrate(db)
    };
    prepare(&mut db).map_err(|error| place.failed("prepare", error))?;
    Ok(db)
}

fn connect(place: &Place) -> Result<Connection, HistoryError> {
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
fn known(place: &Place, db: &Connection) -> Result<i64, HistoryError> {
    let found = version(db).map_err(|error| place.failed("read", error))?;
    if found > KNOWN {
        return Err(HistoryError::Newer {
            path: place.path.clone(),
            found,
            known: KNOWN,
        });
    }
    Ok(found)
}

fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = usize::try_from(version(&transaction)?).unwrap_or_default();
    for (at, step) in MIGRATIONS.iter().enumerate().skip(found) {
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", at as i64 + 1)?;
    }
    transaction.commit()
}

/// Under a dated name, with SQLite's log, for whoever wants to look. Only the newest of such files are kept.
fn move_aside(place: &Place, _turn: &Turn) -> Result<(), HistoryError> {
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
fn damaged(place: &Place) -> Vec<PathBuf> {
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
    pub(super) fn move_aside(self, place: &Place) -> Result<(), HistoryError> {
        let turn = Turn::take(place)?;
        if !self.is_in_place() {
            return Ok(());
        }
        drop(self);
        move_aside(place, &turn)
    }

    /// Writes a row, or completes it, and lets go of what is too old.
    pub(super) fn put(&mut self, row: &mut Row, keep: Keep) -> Result<(), HistoryError> {
        self.try_put(row, keep)
            .map_err(|error| self.place.failed("write to", error))
    }

    fn try_put(&mut self, row: &mut Row, keep: Keep) -> rusqlite::Result<()> {
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let id = match row.id {
            // Only where it is ours: in a file that was begun anew the number is another's.
            Some(id) => transaction
                .query_row(
                    "SELECT id FROM refreshes WHERE id = ?1 AND started = ?2 AND outcome IS NULL",
                    params![id, row.started.to_string()],
                    |row| row.get(0),
                )
                .optional()?,
            None => None,
        };
        let id: Id = match id {
            Some(id) => id,
            None => {
                transaction.execute(
                    "INSERT INTO refreshes (started, started_ms, writer, asked_by, request, policy) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        row.started.to_string(),
                        row.started.as_millisecond(),
                        self.presence.name,
                        row.by,
                        json(&row.begun.request)?,
                        json(&row.begun.policy)?,
                    ],
                )?;
                transaction.last_insert_rowid()
            }
        };
        if let Some((ended, duration)) = &row.ended {
            let count = |outcome: RecreationOutcome| match &ended.report {
                Some(report) => {
                    let done = report
                        .containers
                        .iter()
                        .filter_map(|one| one.recreation.as_ref());
                    done.filter(|one| one.outcome == outcome).count() as u32
                }
                None => 0,
            };
            let interrupted = ended.outcome == Outcome::Interrupted;
            transaction.execute(
                "UPDATE refreshes SET outcome = ?2, duration_ms = ?3, summary = ?4, rolled_back = ?5, stranded = ?6, failure = ?7
                 WHERE id = ?1",
                params![
                    id,
                    ended.outcome.as_str(),
                    (!interrupted).then(|| milliseconds(*duration)),
                    ended.report.as_ref().map(|report| json(&report.summary)).transpose()?,
                    count(RecreationOutcome::RolledBack),
                    count(RecreationOutcome::Stranded),
                    ended.failure.as_ref().map(json).transpose()?,
                ],
            )?;
            if let Some(report) = &ended.report {
                put_report(&transaction, id, report)?;
            }
            forget(&transaction, keep)?;
        }
        transaction.commit()?;
        row.id = Some(id);
        Ok(())
    }

    /// Those that died in the middle of a refresh have left it open.
    fn settle_the_dead(&self) -> rusqlite::Result<()> {
        let dead = the_dead(&self.db, &self.place)?;
        self.db.execute(
            "UPDATE refreshes SET outcome = 'interrupted'
             WHERE outcome IS NULL AND writer IN (SELECT value FROM json_each(?1))",
            [dead],
        )?;
        Ok(())
    }

    fn forget(&mut self, keep: Keep) -> rusqlite::Result<()> {
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        forget(&transaction, keep)?;
        transaction.commit()
    }
}

fn put_report(db: &Connection, id: Id, report: &Report) -> rusqlite::Result<()> {
    let text = json(report)?;
    if text.len() <= REPORT_BYTES_MAX {
        let bytes = i64::try_from(text.len()).unwrap_or(i64::MAX);
        let mut put = db.prepare(
            "INSERT OR REPLACE INTO reports (refresh, bytes, report) VALUES (?1, ?2, ?3)",
        )?;
        put.execute(params![id, bytes, text])?;
    }
    let mut put =
        db.prepare("INSERT OR REPLACE INTO images (refresh, image, outcome) VALUES (?1, ?2, ?3)")?;
    for image in &report.images {
        put.execute(params![id, image.image.to_string(), word(&image.outcome)])?;
    }
    let mut put = db.prepare("INSERT OR REPLACE INTO containers (refresh, name, outcome, gap_ms) VALUES (?1, ?2, ?3, ?4)")?;
    for container in &report.containers {
        let recreation = container.recreation.as_ref();
        let outcome = match recreation {
            Some(recreation) => word(&recreation.outcome),
            None => word(&container.verdict.unwrap_or(Verdict::Unknown)),
        };
        let gap = recreation
            .and_then(|recreation| recreation.gap)
            .map(milliseconds);
        put.execute(params![id, container.name, outcome, gap])?;
    }
    Ok(())
}

/// What is beyond the count, the age or the room. What is under way stays.
fn forget(db: &Connection, keep: Keep) -> rusqlite::Result<()> {
    let age = Duration::from_secs(u64::from(keep.days) * 24 * 60 * 60);
    let oldest = jiff::Timestamp::now().as_millisecond() - milliseconds(age);
    db.execute(
        "DELETE FROM refreshes WHERE outcome IS NOT NULL AND (
             started_ms < ?1
             OR id <= (SELECT id FROM refreshes ORDER BY id DESC LIMIT 1 OFFSET ?2)
             OR id <= (SELECT refresh FROM (SELECT refresh, sum(bytes) OVER (ORDER BY refresh DESC) AS room FROM reports)
                       WHERE room > ?3 ORDER BY refresh DESC LIMIT 1)
         )",
        params![oldest, keep.refreshes, REPORTS_BYTES_MAX as i64],
    )?;
    Ok(())
}

/// The writers that have begun and do not live, as a JSON array.
fn the_dead(db: &Connection, place: &Place) -> rusqlite::Result<String> {
    let mut writers = db.prepare("SELECT DISTINCT writer FROM refreshes WHERE outcome IS NULL")?;
    let writers = writers.query_map([], |row| row.get::<_, String>(0))?;
    let mut dead = Vec::new();
    for writer in writers {
        let writer = writer?;
        // A name of ours, or it is nobody's: it becomes part of a path.
        let ours = writer
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
        if !ours || !presence::lives(&place.writers, &writer) {
            dead.push(writer);
        }
    }
    json(&dead)
}

/// Open, for reading.
pub(super) struct Reading {
    place: Place,
    db: Connection,
}

/// `None` where nothing has been written yet.
pub(super) fn look(place: &Place) -> Result<Option<Reading>, HistoryError> {
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

/// What every query of entries begins with: `?1` are the writers that do not live, `?2` is a container.
const ENTRIES: &str = "
    SELECT id, started, coalesce(refreshes.outcome, iif(writer IN (SELECT value FROM json_each(?1)), 'interrupted', 'running'))
               AS became, duration_ms, asked_by, request, policy, summary, rolled_back, stranded, failure,
           containers.outcome, containers.gap_ms
    FROM refreshes LEFT JOIN containers ON containers.refresh = refreshes.id AND containers.name = ?2";

impl Reading {
    pub(super) fn list(&self, query: &Query) -> Result<Page, HistoryError> {
        let list = || {
            let limit = query.limit.clamp(1, LIMIT_MAX);
            let mut select = self.db.prepare(&format!(
                "{ENTRIES} WHERE (?3 IS NULL OR id < ?3) AND (?2 IS NULL OR containers.name IS NOT NULL)
                 AND (?4 IS NULL OR id IN (SELECT refresh FROM images WHERE image = ?4)) AND (?5 IS NULL OR became = ?5)
                 ORDER BY id DESC LIMIT ?6"
            ))?;
            let parameters = params![
                the_dead(&self.db, &self.place)?,
                query.container,
                query.before,
                query.image.as_ref().map(ToString::to_string),
                query.outcome.map(Outcome::as_str),
                limit + 1,
            ];
            let rows =
                select.query_map(parameters, |row| entry(row, query.container.as_deref()))?;
            let mut refreshes = rows.collect::<rusqlite::Result<Vec<Entry>>>()?;
            let more = refreshes.len() > limit as usize;
            refreshes.truncate(limit as usize);
            let next = refreshes.last().map(|last| last.id).filter(|_| more);
            Ok(Page { refreshes, next })
        };
        list().map_err(|error| self.place.failed("read", error))
    }

    pub(super) fn show(&self, id: Id) -> Result<Option<Shown>, HistoryError> {
        let show = || {
            let dead = the_dead(&self.db, &self.place)?;
            let mut select = self.db.prepare(&format!("{ENTRIES} WHERE id = ?3"))?;
            let parameters = params![dead, None::<String>, id];
            let Some(entry) = select
                .query_row(parameters, |row| entry(row, None))
                .optional()?
            else {
                return Ok(None);
            };
            let report = "SELECT report FROM reports WHERE refresh = ?1";
            let report = self
                .db
                .query_row(report, [id], |row| parsed(row, 0))
                .optional()?;
            Ok(Some(Shown { entry, report }))
        };
        show().map_err(|error| self.place.failed("read", error))
    }
}

fn entry(row: &rusqlite::Row<'_>, container: Option<&str>) -> rusqlite::Result<Entry> {
    let started: String = row.get(1)?;
    let became: String = row.get(2)?;
    let outcome: Option<String> = row.get(11)?;
    let container = match (container, outcome) {
        (Some(name), Some(outcome)) => Some(ContainerEntry {
            name: name.to_owned(),
            outcome,
            gap_ms: count(row, 12)?,
        }),
        (Some(_) | None, _) => None,
    };
    Ok(Entry {
        id: row.get(0)?,
        started: started.parse().map_err(|error| unreadable(1, error))?,
        outcome: became.parse().map_err(|error| unreadable(2, error))?,
        duration_ms: count(row, 3)?,
        by: row.get(4)?,
        request: parsed(row, 5)?,
        policy: parsed::<PolicyReport>(row, 6)?,
        summary: optional(row, 7)?,
        rolled_back: row.get(8)?,
        stranded: row.get(9)?,
        failure: optional(row, 10)?,
        container,
    })
}

/// SQLite's numbers have a sign.
fn count(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    let number: Option<i64> = row.get(column)?;
    Ok(number.and_then(|number| u64::try_from(number).ok()))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn parsed<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, error))
}

fn optional<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    let text =
        text.map(|text| serde_json::from_str(&text).map_err(|error| unreadable(column, error)));
    text.transpose()
}

fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// As it is called in a report.
fn word(outcome: &impl serde::Serialize) -> String {
    match serde_json::to_value(outcome) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(_) | Err(_) => String::new(),
    }
}

/// As [`super::Archive::check`] says.
pub(super) fn check(place: &Place) -> Result<Option<Health>, HistoryError> {
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
            0 => Some(0),
            _ => db.query_row("SELECT count(*) FROM refreshes", [], |row| count(row, 0))?,
        };
        Ok(Ok(refreshes.unwrap_or_default()))
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
