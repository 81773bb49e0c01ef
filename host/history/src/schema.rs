//! The schema, and the migration of a file to the current version.

use rusqlite::{Connection, TransactionBehavior};

/// The migrations from each version of the schema to the next. A released one never changes; `user_version` is the number that
/// a file has applied.
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

/// The current version of the schema.
pub(super) const KNOWN: i64 = MIGRATIONS.len() as i64;

pub(super) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

pub(super) fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = usize::try_from(version(&transaction)?).unwrap_or_default();
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(found) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
    }
    transaction.commit()
}
