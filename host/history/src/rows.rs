//! What is written of a refresh and read again: all SQL about rows. `writers` is the folder where writers are present, see
//! [`presence`].

use std::path::Path;
use std::time::Duration;

use refit_model::decision::Verdict;
use refit_model::recreation::RecreationOutcome;
use refit_model::report::{PolicyReport, Report};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::writer::Row;
use super::writer_lock;
use super::{ContainerEntry, Entry, Id, LIMIT_MAX, Outcome, Page, Query, Retention, Shown};

/// The longest report that is kept: 20,000 containers, as many as a refresh inspects at most unless told otherwise. Of a
/// longer one the counts are.
const REPORT_BYTES_MAX: usize = 16 << 20;
/// Of all reports together, whatever `[history]` allows: 9,000 of them with 40 containers each.
const REPORTS_BYTES_MAX: usize = 256 << 20;

/// Writes a row, or completes it, and lets go of what is too old.
pub(super) fn put(
    db: &mut Connection,
    writer: &str,
    row: &mut Row,
    keep: Retention,
    clock: Confirmed,
) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
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
                    writer,
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
        forget(&transaction, writer, keep, clock)?;
    }
    transaction.commit()?;
    row.id = Some(id);
    Ok(())
}

/// Those that died in the middle of a refresh have left it open.
pub(super) fn settle_the_dead(db: &Connection, writers: &Path) -> rusqlite::Result<()> {
    let dead = the_dead(db, writers)?;
    db.execute(
        "UPDATE refreshes SET outcome = 'interrupted'
         WHERE outcome IS NULL AND writer IN (SELECT value FROM json_each(?1))",
        [dead],
    )?;
    Ok(())
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

/// Whether a clock is believed when it says that something is old. A machine may start with a clock that is a year ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// It has told the time for long.
    ByThisProcess,
    /// It is no later for this purpose than another process's last refresh: two clocks have to say so.
    ByOthers,
}

/// What is beyond the count, the age or the room. What is under way stays.
pub(super) fn forget(
    db: &Connection,
    writer: &str,
    keep: Retention,
    clock: Confirmed,
) -> rusqlite::Result<()> {
    let age = Duration::from_secs(u64::from(keep.days) * 24 * 60 * 60);
    let now = jiff::Timestamp::now().as_millisecond();
    let now = match clock {
        Confirmed::ByThisProcess => now,
        Confirmed::ByOthers => {
            let last =
                "SELECT started_ms FROM refreshes WHERE writer <> ?1 ORDER BY id DESC LIMIT 1";
            let last: Option<i64> = db.query_row(last, [writer], |row| row.get(0)).optional()?;
            last.unwrap_or(i64::MIN).min(now)
        }
    };
    let oldest = now.saturating_sub(milliseconds(age));
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
fn the_dead(db: &Connection, folder: &Path) -> rusqlite::Result<String> {
    let mut writers = db.prepare("SELECT DISTINCT writer FROM refreshes WHERE outcome IS NULL")?;
    let writers = writers.query_map([], |row| row.get::<_, String>(0))?;
    let mut dead = Vec::new();
    for writer in writers {
        let writer = writer?;
        // A name of ours, or it is nobody's: it becomes part of a path.
        let ours = writer
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
        if !ours || !writer_lock::lives(folder, &writer) {
            dead.push(writer);
        }
    }
    json(&dead)
}

/// What every query of entries begins with: `?1` are the writers that do not live, `?2` is a container.
const ENTRIES: &str = "
    SELECT id, started, coalesce(refreshes.outcome, iif(writer IN (SELECT value FROM json_each(?1)), 'interrupted', 'running'))
               AS became, duration_ms, asked_by, request, policy, summary, rolled_back, stranded, failure,
           containers.outcome, containers.gap_ms
    FROM refreshes LEFT JOIN containers ON containers.refresh = refreshes.id AND containers.name = ?2";

pub(super) fn list(db: &Connection, writers: &Path, query: &Query) -> rusqlite::Result<Page> {
    let limit = query.limit.clamp(1, LIMIT_MAX);
    let mut select = db.prepare(&format!(
        "{ENTRIES} WHERE (?3 IS NULL OR id < ?3) AND (?2 IS NULL OR containers.name IS NOT NULL)
         AND (?4 IS NULL OR id IN (SELECT refresh FROM images WHERE image = ?4)) AND (?5 IS NULL OR became = ?5)
         ORDER BY id DESC LIMIT ?6"
    ))?;
    let parameters = params![
        the_dead(db, writers)?,
        query.container,
        query.before,
        query.image.as_ref().map(ToString::to_string),
        query.outcome.map(Outcome::as_str),
        limit + 1,
    ];
    let rows = select.query_map(parameters, |row| entry(row, query.container.as_deref()))?;
    let mut refreshes = rows.collect::<rusqlite::Result<Vec<Entry>>>()?;
    let more = refreshes.len() > limit as usize;
    refreshes.truncate(limit as usize);
    let next = refreshes.last().map(|last| last.id).filter(|_| more);
    Ok(Page { refreshes, next })
}

pub(super) fn show(db: &Connection, writers: &Path, id: Id) -> rusqlite::Result<Option<Shown>> {
    let dead = the_dead(db, writers)?;
    let mut select = db.prepare(&format!("{ENTRIES} WHERE id = ?3"))?;
    let parameters = params![dead, None::<String>, id];
    let Some(entry) = select
        .query_row(parameters, |row| entry(row, None))
        .optional()?
    else {
        return Ok(None);
    };
    let report = "SELECT report FROM reports WHERE refresh = ?1";
    let report = db
        .query_row(report, [id], |row| parsed(row, 0))
        .optional()?;
    Ok(Some(Shown { entry, report }))
}

/// How many refreshes there are.
pub(super) fn count_all(db: &Connection) -> rusqlite::Result<u64> {
    let found = db.query_row("SELECT count(*) FROM refreshes", [], |row| count(row, 0))?;
    Ok(found.unwrap_or_default())
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
