//! The SQL of rows: writes refreshes and reads them back. `writers` is the folder with the locks of the writers, see
//! [`writer_lock`].

use std::path::Path;
use std::time::Duration;

use refit_model::decision::Verdict;
use refit_model::recreation::RecreationOutcome;
use refit_model::report::{PolicyReport, Report};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::writer::Row;
use super::writer_lock;
use super::{ContainerEntry, Entry, Id, LIMIT_MAX, Outcome, Page, Query, Retention, Shown};

/// The maximum size of a stored report: 20,000 containers, the default maximum that a refresh inspects. Of a longer report,
/// only the counts are stored.
const REPORT_BYTES_MAX: usize = 16 << 20;
/// The maximum size of all reports, whatever `[history]` allows: 9,000 reports with 40 containers each.
const REPORTS_BYTES_MAX: usize = 256 << 20;

/// Writes or completes a row, and deletes old rows.
pub(super) fn put(
    db: &mut Connection,
    writer: &str,
    row: &mut Row,
    retention: Retention,
    clock: ClockConfirmation,
) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let id = match row.id {
        // Only if the row is ours: in a new file, another row may have this number.
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
                    to_json(&row.begun.request)?,
                    to_json(&row.begun.policy)?,
                ],
            )?;
            transaction.last_insert_rowid()
        }
    };
    if let Some((ended, duration)) = &row.ended {
        let count = |outcome: RecreationOutcome| match &ended.report {
            Some(report) => {
                let recreations = report
                    .containers
                    .iter()
                    .filter_map(|container| container.recreation.as_ref());
                recreations
                    .filter(|recreation| recreation.outcome == outcome)
                    .count() as u32
            }
            None => 0,
        };
        let is_interrupted = ended.outcome == Outcome::Interrupted;
        transaction.execute(
            "UPDATE refreshes SET outcome = ?2, duration_ms = ?3, summary = ?4, rolled_back = ?5, stranded = ?6, failure = ?7
             WHERE id = ?1",
            params![
                id,
                ended.outcome.as_str(),
                (!is_interrupted).then(|| milliseconds(*duration)),
                ended.report.as_ref().map(|report| to_json(&report.summary)).transpose()?,
                count(RecreationOutcome::RolledBack),
                count(RecreationOutcome::Stranded),
                ended.failure.as_ref().map(to_json).transpose()?,
            ],
        )?;
        if let Some(report) = &ended.report {
            insert_report(&transaction, id, report)?;
        }
        delete_old(&transaction, writer, retention, clock)?;
    }
    transaction.commit()?;
    row.id = Some(id);
    Ok(())
}

/// Marks the open refreshes of dead writers as interrupted.
pub(super) fn interrupt_dead(db: &Connection, writers: &Path) -> rusqlite::Result<()> {
    let dead_writers = dead_writers(db, writers)?;
    db.execute(
        "UPDATE refreshes SET outcome = 'interrupted'
         WHERE outcome IS NULL AND writer IN (SELECT value FROM json_each(?1))",
        [dead_writers],
    )?;
    Ok(())
}

fn insert_report(db: &Connection, id: Id, report: &Report) -> rusqlite::Result<()> {
    let text = to_json(report)?;
    if text.len() <= REPORT_BYTES_MAX {
        let bytes = i64::try_from(text.len()).unwrap_or(i64::MAX);
        let mut insert = db.prepare(
            "INSERT OR REPLACE INTO reports (refresh, bytes, report) VALUES (?1, ?2, ?3)",
        )?;
        insert.execute(params![id, bytes, text])?;
    }
    let mut insert =
        db.prepare("INSERT OR REPLACE INTO images (refresh, image, outcome) VALUES (?1, ?2, ?3)")?;
    for image in &report.images {
        insert.execute(params![
            id,
            image.image.to_string(),
            outcome_name(&image.outcome)
        ])?;
    }
    let mut insert = db.prepare("INSERT OR REPLACE INTO containers (refresh, name, outcome, gap_ms) VALUES (?1, ?2, ?3, ?4)")?;
    for container in &report.containers {
        let recreation = container.recreation.as_ref();
        let outcome = match recreation {
            Some(recreation) => outcome_name(&recreation.outcome),
            None => outcome_name(&container.verdict.unwrap_or(Verdict::Unknown)),
        };
        let gap = recreation
            .and_then(|recreation| recreation.gap)
            .map(milliseconds);
        insert.execute(params![id, container.name, outcome, gap])?;
    }
    Ok(())
}

/// Who confirms the clock when rows seem old. A machine may boot with a clock that is a year ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClockConfirmation {
    /// This process has run for long enough.
    ByThisProcess,
    /// Another process: Refit takes the earlier of now and the last refresh of another process, so two clocks have to agree.
    ByOthers,
}

/// Deletes rows that exceed the limits on number, age or size. Running refreshes stay.
pub(super) fn delete_old(
    db: &Connection,
    writer: &str,
    retention: Retention,
    clock: ClockConfirmation,
) -> rusqlite::Result<()> {
    let age = Duration::from_secs(u64::from(retention.days) * 24 * 60 * 60);
    let now = jiff::Timestamp::now().as_millisecond();
    let now = match clock {
        ClockConfirmation::ByThisProcess => now,
        ClockConfirmation::ByOthers => {
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
        params![oldest, retention.refreshes, REPORTS_BYTES_MAX as i64],
    )?;
    Ok(())
}

/// Returns the writers with open rows that are not alive, as a JSON array.
fn dead_writers(db: &Connection, folder: &Path) -> rusqlite::Result<String> {
    let mut writers = db.prepare("SELECT DISTINCT writer FROM refreshes WHERE outcome IS NULL")?;
    let writers = writers.query_map([], |row| row.get::<_, String>(0))?;
    let mut dead_writers = Vec::new();
    for writer in writers {
        let writer = writer?;
        // Accept only our own names: the name becomes part of a path.
        let is_valid = writer
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
        if !is_valid || !writer_lock::is_alive(folder, &writer) {
            dead_writers.push(writer);
        }
    }
    to_json(&dead_writers)
}

/// The start of every query of entries: `?1` are the dead writers, `?2` is a container.
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
        dead_writers(db, writers)?,
        query.container,
        query.before,
        query.image.as_ref().map(ToString::to_string),
        query.outcome.map(Outcome::as_str),
        limit + 1,
    ];
    let rows = select.query_map(parameters, |row| {
        read_entry(row, query.container.as_deref())
    })?;
    let mut refreshes = rows.collect::<rusqlite::Result<Vec<Entry>>>()?;
    let has_more = refreshes.len() > limit as usize;
    refreshes.truncate(limit as usize);
    let next = refreshes.last().map(|last| last.id).filter(|_| has_more);
    Ok(Page { refreshes, next })
}

pub(super) fn show(db: &Connection, writers: &Path, id: Id) -> rusqlite::Result<Option<Shown>> {
    let dead_writers = dead_writers(db, writers)?;
    let mut select = db.prepare(&format!("{ENTRIES} WHERE id = ?3"))?;
    let parameters = params![dead_writers, None::<String>, id];
    let Some(entry) = select
        .query_row(parameters, |row| read_entry(row, None))
        .optional()?
    else {
        return Ok(None);
    };
    let report = "SELECT report FROM reports WHERE refresh = ?1";
    let report = db
        .query_row(report, [id], |row| read_json(row, 0))
        .optional()?;
    Ok(Some(Shown { entry, report }))
}

/// Returns the number of refreshes.
pub(super) fn count_all(db: &Connection) -> rusqlite::Result<u64> {
    let total = db.query_row("SELECT count(*) FROM refreshes", [], |row| {
        read_count(row, 0)
    })?;
    Ok(total.unwrap_or_default())
}

fn read_entry(row: &rusqlite::Row<'_>, container: Option<&str>) -> rusqlite::Result<Entry> {
    let started: String = row.get(1)?;
    let became: String = row.get(2)?;
    let outcome: Option<String> = row.get(11)?;
    let container = match (container, outcome) {
        (Some(name), Some(outcome)) => Some(ContainerEntry {
            name: name.to_owned(),
            outcome,
            gap_ms: read_count(row, 12)?,
        }),
        (Some(_) | None, _) => None,
    };
    Ok(Entry {
        id: row.get(0)?,
        started: started
            .parse()
            .map_err(|error| conversion_error(1, error))?,
        outcome: became.parse().map_err(|error| conversion_error(2, error))?,
        duration_ms: read_count(row, 3)?,
        by: row.get(4)?,
        request: read_json(row, 5)?,
        policy: read_json::<PolicyReport>(row, 6)?,
        summary: read_optional_json(row, 7)?,
        rolled_back: row.get(8)?,
        stranded: row.get(9)?,
        failure: read_optional_json(row, 10)?,
        container,
    })
}

/// Reads an unsigned number: SQLite's numbers have a sign.
fn read_count(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    let number: Option<i64> = row.get(column)?;
    Ok(number.and_then(|number| u64::try_from(number).ok()))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn read_json<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| conversion_error(column, error))
}

fn read_optional_json<T: serde::de::DeserializeOwned>(
    row: &rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    let text = text
        .map(|text| serde_json::from_str(&text).map_err(|error| conversion_error(column, error)));
    text.transpose()
}

fn conversion_error(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn to_json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Returns the name of an outcome as in a report.
fn outcome_name(outcome: &impl serde::Serialize) -> String {
    match serde_json::to_value(outcome) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(_) | Err(_) => String::new(),
    }
}
