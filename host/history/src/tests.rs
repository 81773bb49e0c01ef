//! Tests with real files: written refreshes are found again, and a bad file stops no refresh.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const KEEP: Retention = Retention {
    refreshes: 1000,
    days: 100,
};
const SOON: Duration = Duration::from_secs(30);

fn refresh_start() -> RefreshStart {
    let report: Report = serde_json::from_value(report()).unwrap();
    RefreshStart {
        by: None,
        request: report.request,
        policy: report.policy,
    }
}

/// A report with every possible field.
fn report() -> Value {
    let id = |digit: &str| digit.repeat(64);
    json!({
        "format": 1, "mode": "refresh", "started": "2026-11-23T17:37:15.299741651Z", "duration_ms": 13_207,
        "policy": {"name": "workspace", "version": "0.1.0", "digest": format!("sha256:{}", id("8")), "generation": 3},
        "request": {"trigger": "api", "targets": ["hermes"], "images": [], "recreate": true, "force": false},
        "summary": {
            "pulled": 1, "up_to_date": 0, "would_pull": 0, "pull_failed": 1, "recreated": 1, "removed": 0, "would_recreate": 0,
            "current": 1, "stale": 0, "unknown": 0, "recreate_failed": 1, "unfinished": 0,
        },
        "targets": [{"name": "hermes", "image": "ghcr.io/a/hermes:latest"}],
        "images": [
            {"image": "ghcr.io/a/crewai:latest", "outcome": "failed", "error": "no", "causes": ["x"], "hints": ["y"], "duration_ms": 5},
            {"image": "ghcr.io/a/hermes:latest", "outcome": "pulled", "id": format!("sha256:{}", id("1")), "digest": "sha256:2", "duration_ms": 45},
        ],
        "containers": [
            {"name": "ws-ana", "verdict": "recreate", "rule": "image-moved", "reason": "it moved", "recreation": {
                "container": "ws-ana", "strategy": "replace", "outcome": "recreated", "old_id": id("a"), "new_id": id("b"),
                "from_image_id": "sha256:1", "to_image_id": "sha256:2", "gap_ms": 856, "followed": ["ws-sidecar"],
                "left_over": "a volume", "duration_ms": 900,
            }},
            {"name": "ws-ben", "verdict": "recreate", "rule": "image-moved", "reason": "it moved", "recreation": {
                "container": "ws-ben", "strategy": "overlap", "outcome": "rolled-back", "old_id": id("c"),
                "to_image_id": "sha256:2", "error": "it did not come up", "duration_ms": 900,
            }},
            {"name": "ws-cem", "verdict": "current", "rule": "up-to-date", "reason": "it runs it"},
        ],
    })
}

fn refresh_end(outcome: Outcome) -> RefreshEnd {
    RefreshEnd {
        outcome,
        failure: None,
        report: Some(serde_json::from_value(report()).unwrap()),
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn all() -> Query {
    Query {
        limit: LIMIT_MAX,
        ..Query::default()
    }
}

async fn write(history: &History, outcome: Outcome) {
    let open_entry = history.begin(refresh_start()).await;
    history.end(open_entry, refresh_end(outcome)).await;
}

fn outcomes(archive: &Archive) -> Vec<(Id, Outcome)> {
    let page = archive.list(&all()).unwrap();
    let entries = page.refreshes.iter();
    entries.map(|entry| (entry.id, entry.outcome)).collect()
}

fn file(state: &TempDir) -> std::path::PathBuf {
    state.path().join("history/refreshes.db")
}

#[test]
fn report_round_trips() {
    let read: Report = serde_json::from_value(report()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), report());
}

#[tokio::test]
async fn written_refreshes_are_found() {
    let state = folder();
    let history = History::open(state.path(), KEEP).with_client(Some("ana".into()));
    let open_entry = history.begin(refresh_start()).await;
    assert_eq!(outcomes(history.archive()), [(1, Outcome::Running)]);
    assert_eq!(history.archive().show(1).unwrap().unwrap().report, None);
    history
        .end(open_entry, refresh_end(Outcome::SomeFailed))
        .await;
    let failed = RefreshEnd {
        outcome: Outcome::Failed,
        failure: Some(Diagnostic::new("no engine").because("no socket")),
        report: None,
    };
    let open_entry = history.begin(refresh_start()).await;
    history.end(open_entry, failed).await;
    assert_eq!(history.last_error(), None);

    let shown = history.archive().show(1).unwrap().unwrap();
    assert_eq!(shown.report, Some(report()));
    assert_eq!((shown.entry.rolled_back, shown.entry.stranded), (1, 0));
    assert_eq!(shown.entry.by.as_deref(), Some("ana"));
    assert_eq!(shown.entry.policy.generation, 3);
    assert!(shown.entry.duration_ms.is_some());
    let shown = history.archive().show(2).unwrap().unwrap();
    assert_eq!(shown.report, None);
    assert_eq!(shown.entry.failure.unwrap().causes, ["no socket"]);
    assert!(history.archive().show(3).unwrap().is_none());
    history.close(SOON).await;
    assert_eq!(
        fs::read_dir(state.path().join("history/writers"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn query_filters_and_pages() {
    let state = folder();
    let history = History::open(state.path(), KEEP);
    for outcome in [Outcome::Done, Outcome::SomeFailed, Outcome::Done] {
        write(&history, outcome).await;
    }
    let found = |query: Query| {
        let page = history.archive().list(&query).unwrap();
        let ids: Vec<Id> = page.refreshes.iter().map(|entry| entry.id).collect();
        (ids, page.next)
    };
    let two = |before| Query {
        limit: 2,
        before,
        ..Query::default()
    };
    assert_eq!(found(two(None)), (vec![3, 2], Some(2)));
    assert_eq!(found(two(Some(2))), (vec![1], None));
    assert_eq!(
        found(Query {
            outcome: Some(Outcome::SomeFailed),
            ..all()
        })
        .0,
        [2]
    );
    assert_eq!(
        found(Query {
            outcome: Some(Outcome::Interrupted),
            ..all()
        })
        .0,
        [0; 0]
    );
    let image = |image: &str| Query {
        image: Some(image.parse().unwrap()),
        ..all()
    };
    assert_eq!(
        found(image("ghcr.io/a/hermes")).0,
        [3, 2, 1],
        "`latest` is meant"
    );
    assert_eq!(found(image("ghcr.io/a/hermes:v1")).0, [0; 0]);
    let container = |name: &str| Query {
        container: Some(name.into()),
        ..all()
    };
    assert_eq!(found(container("ws-an")).0, [0; 0]);
    let page = history.archive().list(&container("ws-ana")).unwrap();
    let container_entry = page.refreshes[0].container.clone().unwrap();
    assert_eq!(
        (container_entry.outcome.as_str(), container_entry.gap_ms),
        ("recreated", Some(856))
    );
    let page = history.archive().list(&container("ws-cem")).unwrap();
    assert_eq!(
        page.refreshes[0].container.clone().unwrap().outcome,
        "current"
    );
}

#[tokio::test]
async fn newest_are_kept_and_no_id_is_reused() {
    let state = folder();
    let history = History::open(
        state.path(),
        Retention {
            refreshes: 2,
            days: 1,
        },
    );
    for _ in 0..5 {
        write(&history, Outcome::Done).await;
    }
    let ids = |archive: &Archive| {
        outcomes(archive)
            .into_iter()
            .map(|(id, _)| id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(history.archive()), [5, 4]);
    history.close(SOON).await;

    let db = rusqlite::Connection::open(file(&state)).unwrap();
    let yesterday = jiff::Timestamp::now().as_millisecond() - 25 * 60 * 60 * 1000;
    db.execute("UPDATE refreshes SET started_ms = ?1", [yesterday])
        .unwrap();
    drop(db);
    // Refit does not trust a single clock.
    for expected in [[6, 5].as_slice(), &[7, 6]] {
        let keep = Retention {
            refreshes: 2,
            days: 1,
        };
        let history = History::open(state.path(), keep);
        write(&history, Outcome::Done).await;
        assert_eq!(ids(history.archive()), expected);
        history.close(SOON).await;
    }
    let db = rusqlite::Connection::open(file(&state)).unwrap();
    for table in ["reports", "images", "containers"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE refresh < 6");
        let left: i64 = db.query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(
            left, 0,
            "{table} keeps what belongs to a refresh that is gone"
        );
    }
}

#[tokio::test]
async fn killed_refresh_is_interrupted_and_running_is_not() {
    let state = folder();
    let killed = History::open(state.path(), KEEP);
    let living = History::open(state.path(), KEEP);
    std::mem::forget(killed.begin(refresh_start()).await);
    let open_entry = living.begin(refresh_start()).await;
    assert_eq!(
        outcomes(living.archive()),
        [(2, Outcome::Running), (1, Outcome::Running)]
    );
    // Its lock is released, as when its process dies; it writes nothing.
    killed.close(SOON).await;
    let seen = [(2, Outcome::Running), (1, Outcome::Interrupted)];
    assert_eq!(outcomes(living.archive()), seen, "whoever looks sees it");
    let third = History::open(state.path(), KEEP);
    write(&third, Outcome::Done).await;
    assert_eq!(
        outcomes(living.archive())[1..],
        seen,
        "and so it is written down by the next one"
    );
    living.end(open_entry, refresh_end(Outcome::Done)).await;
    assert_eq!(outcomes(living.archive())[1], (2, Outcome::Done));
    let interrupted = Query {
        outcome: Some(Outcome::Interrupted),
        ..all()
    };
    assert_eq!(
        living.archive().list(&interrupted).unwrap().refreshes.len(),
        1
    );
}

#[tokio::test]
async fn dropped_refresh_is_interrupted() {
    let state = folder();
    let history = History::open(state.path(), KEEP);
    drop(history.begin(refresh_start()).await);
    write(&history, Outcome::Done).await;
    assert_eq!(
        outcomes(history.archive()),
        [(2, Outcome::Done), (1, Outcome::Interrupted)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_writers_write_concurrently() {
    let state = folder();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let path = state.path().to_owned();
            tokio::spawn(async move {
                let history = History::open(&path, KEEP);
                for _ in 0..10 {
                    write(&history, Outcome::Done).await;
                }
                assert_eq!(history.last_error(), None);
                history.close(SOON).await;
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut seen = outcomes(&Archive::new(state.path()));
    seen.reverse();
    let expected: Vec<_> = (1..=40).map(|id| (id, Outcome::Done)).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn corrupt_file_is_renamed_and_replaced() {
    let header_alone = [b"SQLite format 3\0".as_slice(), &[0xa5; 5000]].concat();
    for damage in [b"no database at all".repeat(1000), header_alone] {
        let state = folder();
        fs::create_dir_all(state.path().join("history")).unwrap();
        fs::write(file(&state), &damage).unwrap();
        let archive = Archive::new(state.path());
        let error = archive.list(&all()).unwrap_err();
        assert!(matches!(error, HistoryError::Damaged { .. }), "{error:?}");
        assert!(archive.check().is_err());
        let history = History::open(state.path(), KEEP);
        write(&history, Outcome::Done).await;
        assert_eq!(outcomes(&archive), [(1, Outcome::Done)]);
        assert_eq!(history.last_error(), None);
        let health = archive.check().unwrap().unwrap();
        assert_eq!(health.refreshes, 1);
        let [damaged_path] = health.damaged.as_slice() else {
            panic!("it is kept: {health:?}");
        };
        assert_eq!(fs::read(damaged_path).unwrap(), damage);
    }
}

#[tokio::test]
async fn damage_while_open_loses_no_later_refresh() {
    let state = folder();
    let history = History::open(state.path(), KEEP);
    write(&history, Outcome::Done).await;
    let open_entry = history.begin(refresh_start()).await;
    // A failing disk might leave this.
    for name in ["refreshes.db", "refreshes.db-wal"] {
        let path = state.path().join("history").join(name);
        let bytes = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
        fs::write(&path, vec![0xa5; bytes]).unwrap();
    }
    // SQLite has pages in memory, and notices sooner or later.
    history.end(open_entry, refresh_end(Outcome::Done)).await;
    history.close(SOON).await;
    let history = History::open(state.path(), KEEP);
    write(&history, Outcome::SomeFailed).await;
    let seen = outcomes(history.archive());
    assert_eq!(seen[0].1, Outcome::SomeFailed, "{seen:?}");
    assert_eq!(history.last_error(), None);
    assert_eq!(history.archive().check().unwrap().unwrap().damaged.len(), 1);
}

#[tokio::test]
async fn removed_file_is_created_again() {
    let state = folder();
    let history = History::open(state.path(), KEEP);
    write(&history, Outcome::Done).await;
    let open_entry = history.begin(refresh_start()).await;
    for name in ["refreshes.db", "refreshes.db-wal", "refreshes.db-shm"] {
        fs::remove_file(state.path().join("history").join(name)).unwrap();
    }
    history
        .end(open_entry, refresh_end(Outcome::SomeFailed))
        .await;
    let whole = outcomes(history.archive());
    assert_eq!(
        whole,
        [(1, Outcome::SomeFailed)],
        "the one that was under way is there, whole"
    );
}

#[tokio::test]
async fn newer_schema_is_left_unchanged_and_reported() {
    let state = folder();
    fs::create_dir_all(state.path().join("history")).unwrap();
    let db = rusqlite::Connection::open(file(&state)).unwrap();
    db.execute_batch("CREATE TABLE from_the_future (id); PRAGMA user_version = 99")
        .unwrap();
    drop(db);
    let before = fs::read(file(&state)).unwrap();
    let history = History::open(state.path(), KEEP);
    write(&history, Outcome::Done).await;
    let last_error = history.last_error().unwrap();
    assert!(
        last_error.error.contains("its schema is 99"),
        "{last_error}"
    );
    let error = history.archive().list(&all()).unwrap_err();
    assert!(
        matches!(error, HistoryError::Newer { found: 99, .. }),
        "{error:?}"
    );
    history.close(SOON).await;
    assert_eq!(fs::read(file(&state)).unwrap(), before);
}

#[tokio::test]
async fn unwritable_history_is_written_later() {
    let state = folder();
    // A file blocks the path of the folder: root could write anywhere else.
    fs::write(state.path().join("history"), "").unwrap();
    let history = History::open(state.path(), KEEP);
    write(&history, Outcome::SomeFailed).await;
    assert!(history.last_error().unwrap().error.contains("history"));
    fs::remove_file(state.path().join("history")).unwrap();
    write(&history, Outcome::Done).await;
    assert_eq!(history.last_error(), None);
    let seen = outcomes(history.archive());
    assert_eq!(seen, [(2, Outcome::Done), (1, Outcome::SomeFailed)]);
}

#[tokio::test]
async fn history_is_empty_before_first_refresh() {
    let state = folder();
    let archive = Archive::new(state.path());
    assert!(archive.list(&all()).unwrap().refreshes.is_empty());
    assert!(archive.show(1).unwrap().is_none());
    assert!(archive.check().unwrap().is_none());
    assert_eq!(
        fs::read_dir(state.path()).unwrap().count(),
        0,
        "who looks makes nothing"
    );
}

/// A machine boots with a clock that is a year ahead, and corrects it later.
#[tokio::test]
async fn clock_ahead_for_one_start_deletes_nothing() {
    let state = folder();
    let keep = Retention {
        refreshes: 100,
        days: 100,
    };
    for _ in 0..3 {
        let history = History::open(state.path(), keep);
        write(&history, Outcome::Done).await;
        history.close(SOON).await;
    }
    // This process sees all rows of other processes as a year old.
    let db = rusqlite::Connection::open(file(&state)).unwrap();
    let year: i64 = 365 * 24 * 60 * 60 * 1000;
    db.execute("UPDATE refreshes SET started_ms = started_ms - ?1", [year])
        .unwrap();
    let history = History::open(state.path(), keep);
    for _ in 0..3 {
        write(&history, Outcome::Done).await;
    }
    assert_eq!(outcomes(history.archive()).len(), 6);
    history.close(SOON).await;
    // Two clocks agree on the time: old rows are deleted.
    let history = History::open(state.path(), keep);
    write(&history, Outcome::Done).await;
    assert_eq!(outcomes(history.archive()).len(), 4);
    history.close(SOON).await;
}
