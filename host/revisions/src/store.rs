//! Stores generations across restarts: the components of the last generations, by digest, and a file with their history, which
//! names the active one.
//!
//! Refit writes temporary files and renames them, components before the history that names them, so a process that dies at any
//! step leaves the old or the new state. Refit compares a component with its digest on each read. All functions here block.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use refit_model::diagnostic::Hints;
use refit_sandbox::{digest, limits};
use refit_storage::atomic_file;
use serde::{Deserialize, Serialize};

use super::PolicyRevision;
use super::version::is_older;
use crate::artifact::signature::Signer;

/// The version of the format. It rises when a field changes its meaning or is removed.
const FORMAT: u32 = 1;

/// The number of generations in the history: months, at a swap per day or two.
const RECORDS_MAX: usize = 50;
/// The number of stored components, including the active and the previous one: enough to go back several steps, in 400 MB at
/// most.
const COMPONENTS_MAX: usize = 8;
/// The maximum size of a history file that Refit reads. Its records contain configurations.
const HISTORY_BYTES_MAX: u64 = 16 << 20;
/// The maximum size of a policy's configuration. A configuration of a hundred lines has 4 KiB.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

/// How a generation came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum ActivationReason {
    /// The configuration named it at a start.
    Configured,
    /// The configuration or the watched file changed while the daemon ran.
    Reloaded,
    /// Somebody asked for it.
    Swapped,
    /// It was on trial, and agreed as often as it was told to.
    Promoted,
    RolledBack,
    /// The one that should have been active could not be loaded at a start.
    FellBack,
}

/// One generation, for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = GenerationRecord)]
pub struct Record {
    pub number: u64,
    pub at: jiff::Timestamp,
    pub how: ActivationReason,
    /// Who asked, as they say of themselves.
    pub by: String,
    pub name: String,
    pub version: String,
    pub digest: String,
    pub origin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// What the signer's name was found by. It is verified again whenever the component is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    pub config: serde_json::Value,
    /// The newest version of this signed policy that had been active. Only there if this one is older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
}

impl Record {
    pub(super) fn new(
        number: u64,
        content: &PolicyRevision,
        how: ActivationReason,
        by: &str,
    ) -> Self {
        let policy = &content.policy;
        Self {
            number,
            at: jiff::Timestamp::now(),
            how,
            by: by.to_owned(),
            name: policy.name.clone(),
            version: policy.version.clone(),
            digest: policy.digest.clone(),
            origin: content.origin.clone(),
            signer: content.signer.clone(),
            signature: content.signature.clone(),
            config: serde_json::from_str(&content.config).unwrap_or_default(),
            older_than: None,
        }
    }
}

/// The policy in the configuration, so that a later start sees whether an operator has changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// `None` if the component could not be read.
    pub digest: Option<String>,
    /// The signature of the component. A new signature, perhaps by another key, counts as a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// JSON.
    pub config: String,
}

impl Configured {
    /// Returns whether the configuration names a different policy than before. A component that cannot be read is no change.
    pub fn differs_from(&self, earlier: &Self) -> bool {
        let component = (&self.digest, &self.signature);
        self.config != earlier.config
            || (self.digest.is_some() && component != (&earlier.digest, &earlier.signature))
    }
}

/// The history of generations: the active one, the previous one, and the last ones before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionHistory {
    format: u32,
    /// The number of the next generation. No number is used twice.
    pub next: u64,
    pub configured: Configured,
    /// The generation that a rollback restores.
    pub previous: Option<u64>,
    /// The newest version of each signed policy that was ever active, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    newest: BTreeMap<String, String>,
    /// The records, the oldest first; the last one is active.
    records: Vec<Record>,
}

impl RevisionHistory {
    pub(super) fn new(record: Record, configured: Configured) -> Self {
        let mut newest = BTreeMap::new();
        remember_newest(&mut newest, &record);
        Self {
            format: FORMAT,
            next: record.number + 1,
            configured,
            previous: None,
            newest,
            records: vec![record],
        }
    }

    pub(super) fn with_record(&self, mut record: Record, configured: Configured) -> Self {
        record.older_than =
            self.newer_version(&record.name, &record.version, record.signer.as_ref());
        let mut newest = self.newest_versions();
        remember_newest(&mut newest, &record);
        let mut records = self.records.clone();
        let previous = Some(self.active().number);
        let next = record.number.max(self.next) + 1;
        records.push(record);
        records.drain(..records.len().saturating_sub(RECORDS_MAX));
        Self {
            format: FORMAT,
            next,
            configured,
            previous,
            newest,
            records,
        }
    }

    /// Returns the newest version of a signed policy that was active, if it is newer than this one.
    pub(super) fn newer_version(
        &self,
        name: &str,
        version: &str,
        signer: Option<&Signer>,
    ) -> Option<String> {
        signer?;
        let newest = self.newest_versions().remove(name);
        newest.filter(|newest| is_older(version, newest))
    }

    /// Returns the newest versions. The file of an older Refit has only the records.
    fn newest_versions(&self) -> BTreeMap<String, String> {
        let mut newest = self.newest.clone();
        for record in &self.records {
            remember_newest(&mut newest, record);
        }
        newest
    }

    /// Returns the same history with all numbers below `next` reserved.
    pub(super) fn with_reserved_numbers(&self, next: u64) -> Self {
        Self {
            next: self.next.max(next),
            ..self.clone()
        }
    }

    pub fn active(&self) -> &Record {
        // The history starts with a record, records are only removed from the front, and `read` rejects a file without any.
        self.records.last().expect("a history has a record")
    }

    pub fn previous(&self) -> Option<&Record> {
        let number = self.previous?;
        self.records.iter().find(|record| record.number == number)
    }

    /// Returns the records, the newest first.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().rev()
    }

    /// Returns the digests of the components to keep.
    fn kept_digests(&self) -> BTreeSet<&str> {
        let required = [Some(self.active()), self.previous()].into_iter().flatten();
        let mut kept: BTreeSet<&str> = required.map(|record| record.digest.as_str()).collect();
        for record in self.records() {
            if kept.len() == COMPONENTS_MAX {
                break;
            }
            kept.insert(&record.digest);
        }
        kept
    }
}

fn remember_newest(newest: &mut BTreeMap<String, String>, record: &Record) {
    if record.signer.is_none() {
        return;
    }
    let version = newest.entry(record.name.clone()).or_default();
    if is_older(version, &record.version) {
        version.clone_from(&record.version);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {act} `{}`", .path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{}`, which says which policy is in use, cannot be read", .path.display())]
    Senseless {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("no component `{digest}` is kept")]
    Absent { digest: String },
    #[error("`{}` is not what its name says: its content is `{found}`", .path.display())]
    Damaged { path: PathBuf, found: String },
    #[error("another Refit that keeps its state in `{}` has swapped a policy meanwhile", .folder.display())]
    Overtaken { folder: PathBuf },
    #[error("another Refit is writing to `{}`", .folder.display())]
    Locked { folder: PathBuf },
    #[error("the store panicked, please report it: {0}")]
    Panicked(String),
}

impl StoreError {
    /// Returns whether there is a file in place of the folder.
    pub fn is_not_a_folder(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotADirectory)
    }
}

impl Hints for StoreError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Overtaken { .. } | Self::Locked { .. } => {
                vec!["give each daemon a `state_dir` of its own".into()]
            }
            Self::Io { .. } => {
                vec!["policies are kept below `state_dir`, see `refit config show`".into()]
            }
            Self::Senseless { path, .. } => vec![
                "a newer Refit may have written it: run that one; or put a copy of the file back"
                    .into(),
                format!(
                    "to begin again with the configured policy, and forget which one was swapped in: mv '{0}' '{0}.damaged'",
                    path.display()
                ),
            ],
            Self::Absent { .. } | Self::Damaged { .. } | Self::Panicked(_) => vec![],
        }
    }
}

pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens the store in the state folder. Refit creates no files before the first save.
    pub fn new(state: &Path) -> Self {
        Self {
            folder: state.join("policies"),
        }
    }

    fn history_path(&self) -> PathBuf {
        self.folder.join("generations.json")
    }

    fn component_path(&self, digest: &str) -> PathBuf {
        self.folder
            .join(format!("{}.wasm", digest.replace(':', "-")))
    }

    /// Reads the history. Returns `None` if nothing was ever saved.
    pub fn read(&self) -> Result<Option<RevisionHistory>, StoreError> {
        let path = self.history_path();
        let Some(text) = read_at_most(&path, HISTORY_BYTES_MAX)? else {
            return Ok(None);
        };
        let corrupt = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Senseless {
            path: path.clone(),
            source,
        };
        let history: RevisionHistory =
            serde_json::from_slice(&text).map_err(|error| corrupt(error.into()))?;
        if history.format != FORMAT || history.records.is_empty() {
            return Err(corrupt("it is of another format, or empty".into()));
        }
        Ok(Some(history))
    }

    /// Reads the component with this digest, and verifies the digest.
    pub fn read_component(&self, wanted: &str) -> Result<Bytes, StoreError> {
        let absent = || StoreError::Absent {
            digest: wanted.to_owned(),
        };
        // The digest becomes part of a path.
        let hex = wanted.strip_prefix("sha256:").ok_or_else(absent)?;
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(absent());
        }
        let path = self.component_path(wanted);
        let bytes_max = limits::COMPONENT_BYTES_MAX as u64;
        let bytes = read_at_most(&path, bytes_max)?.ok_or_else(absent)?;
        let found = digest(&bytes);
        if found != wanted {
            return Err(StoreError::Damaged { path, found });
        }
        Ok(Bytes::from(bytes))
    }

    /// Saves the history for the next start, if the history on the disk is still `expected`. It writes the components first,
    /// and deletes unused ones last.
    pub fn write(
        &self,
        expected: Option<&RevisionHistory>,
        history: &RevisionHistory,
        components: &[(String, Bytes)],
    ) -> Result<(), StoreError> {
        atomic_file::folder(&self.folder).map_err(io_error("make", &self.folder))?;
        let _lock = self.lock()?;
        // A file that cannot be read may belong to a newer Refit.
        if self.read()?.as_ref() != expected {
            return Err(StoreError::Overtaken {
                folder: self.folder.clone(),
            });
        }
        for (digest, bytes) in components {
            // Also if the file exists: it may be corrupt, and this is the time to find out.
            if !bytes.is_empty() && self.read_component(digest).is_err() {
                self.put(&self.component_path(digest), bytes)?;
            }
        }
        let text = serde_json::to_vec_pretty(history).map_err(|error| StoreError::Senseless {
            path: self.history_path(),
            source: error.into(),
        })?;
        self.put(&self.history_path(), &text)?;
        self.delete_unused(history);
        Ok(())
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        atomic_file::replace(path, bytes).map_err(io_error("write", path))
    }

    /// Locks the store against other processes. The system releases the lock when the file is closed, however the process ends.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked {
                folder: self.folder.clone(),
            }),
            Err(fs::TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
        }
    }

    /// Deletes unused components. If that fails, they only take up space, and the swap still succeeds.
    fn delete_unused(&self, history: &RevisionHistory) {
        let kept: BTreeSet<PathBuf> = history
            .kept_digests()
            .into_iter()
            .map(|digest| self.component_path(digest))
            .collect();
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let extension = path.extension().and_then(|extension| extension.to_str());
            // The lock excludes other writers, so a process that died left the temporary files.
            let is_unused = match extension {
                Some("wasm") => !kept.contains(&path),
                Some("new") => true,
                _ => false,
            };
            if is_unused && let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove component");
            }
        }
    }
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path, source }
}

/// Reads a file of at most `bytes_max` bytes. Returns `None` if there is no such file.
fn read_at_most(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(StoreError::Senseless {
            path: path.to_owned(),
            source: format!("it is larger than {bytes_max} bytes").into(),
        });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured() -> Configured {
        Configured {
            digest: None,
            signature: None,
            config: "{}".into(),
        }
    }

    fn record(number: u64, component: &[u8]) -> Record {
        Record {
            number,
            at: jiff::Timestamp::now(),
            how: ActivationReason::Swapped,
            by: "somebody".into(),
            name: "p".into(),
            version: "1".into(),
            digest: digest(component),
            origin: "p.wasm".into(),
            signer: None,
            signature: None,
            config: serde_json::json!({ "n": number }),
            older_than: None,
        }
    }

    #[test]
    fn newest_signed_version_survives_its_record() {
        let signed = |number, version: &str| Record {
            version: version.into(),
            signer: Some(Signer {
                name: "release".into(),
                verbs: None,
            }),
            ..record(number, b"p")
        };
        let signer = signed(0, "0").signer;
        let mut history = RevisionHistory::new(signed(1, "1.9.0"), configured());
        history = history.with_record(signed(2, "1.10.0"), configured());
        for number in 3..60 {
            let other = Record {
                name: "another".into(),
                ..record(number, b"q")
            };
            history = history.with_record(other, configured());
        }
        assert!(history.records().all(|record| record.name == "another"));
        let newer_version = |version, signer| history.newer_version("p", version, signer);
        assert_eq!(
            newer_version("1.9.0", signer.as_ref()),
            Some("1.10.0".into())
        );
        assert_eq!(newer_version("1.10.0", signer.as_ref()), None);
        assert_eq!(newer_version("1.9.0", None), None, "nobody has to sign");
        let older = history.with_record(signed(60, "1.9.0"), configured());
        assert_eq!(older.active().older_than.as_deref(), Some("1.10.0"));
        let again = older.newer_version("p", "1.9.0", signer.as_ref());
        assert_eq!(again, Some("1.10.0".into()), "it is not forgotten");
    }

    fn component(text: &str) -> (String, Bytes) {
        (digest(text.as_bytes()), Bytes::from(text.to_owned()))
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        (folder, store)
    }

    #[test]
    fn store_is_empty_before_first_write() {
        let (folder, store) = store();
        assert_eq!(store.read().unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn next_process_reads_written_history() {
        let (_folder, store) = store();
        let first = RevisionHistory::new(record(1, b"one"), configured());
        let second = first.with_record(record(2, b"two"), configured());
        store
            .write(None, &second, &[component("one"), component("two")])
            .unwrap();
        let read = store.read().unwrap().unwrap();
        assert_eq!(read, second);
        assert_eq!((read.active().number, read.next), (2, 3));
        assert_eq!(read.previous().unwrap().number, 1);
        assert_eq!(store.read_component(&digest(b"one")).unwrap(), "one");
    }

    #[test]
    fn process_death_between_steps_changes_nothing() {
        let (_folder, store) = store();
        let history = RevisionHistory::new(record(1, b"one"), configured());
        store.write(None, &history, &[component("one")]).unwrap();
        // The component of the next generation exists already, and half of its history is in the temporary file.
        store
            .put(&store.component_path(&digest(b"two")), b"two")
            .unwrap();
        let temporary_path = store.history_path().with_extension("new");
        fs::write(&temporary_path, "{\"format\":1,").unwrap();
        assert_eq!(store.read().unwrap().unwrap(), history);
        let next = history.with_record(record(2, b"three"), configured());
        store
            .write(Some(&history), &next, &[component("three")])
            .unwrap();
        assert_eq!(store.read().unwrap().unwrap(), next);
        assert!(!temporary_path.exists());
        assert!(
            matches!(
                store.read_component(&digest(b"two")),
                Err(StoreError::Absent { .. })
            ),
            "nobody needs it"
        );
    }

    #[test]
    fn truncated_history_is_an_error_and_unchanged() {
        let (_folder, store) = store();
        let history = RevisionHistory::new(record(1, b"one"), configured());
        store.write(None, &history, &[component("one")]).unwrap();
        let text = fs::read(store.history_path()).unwrap();
        for cut in [0, 1, text.len() / 2] {
            fs::write(store.history_path(), &text[..cut]).unwrap();
            assert!(
                matches!(store.read(), Err(StoreError::Senseless { .. })),
                "{cut}"
            );
        }
        let left = fs::read(store.history_path()).unwrap();
        assert!(store.write(None, &history, &[]).is_err());
        assert_eq!(fs::read(store.history_path()).unwrap(), left);
    }

    #[test]
    fn modified_component_is_detected_and_rewritten() {
        let (_folder, store) = store();
        let history = RevisionHistory::new(record(1, b"one"), configured());
        store.write(None, &history, &[component("one")]).unwrap();
        fs::write(store.component_path(&digest(b"one")), "One").unwrap();
        let error = store.read_component(&digest(b"one")).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        store
            .write(Some(&history), &history, &[component("one")])
            .unwrap();
        assert_eq!(store.read_component(&digest(b"one")).unwrap(), "one");
    }

    #[test]
    fn digest_cannot_escape_the_folder() {
        let (folder, store) = store();
        fs::write(folder.path().join("secret.wasm"), "secret").unwrap();
        for digest in [
            "",
            "sha256:",
            "sha256:../secret",
            "../secret",
            &format!("sha256:{}", "/".repeat(64)),
        ] {
            let error = store.read_component(digest).unwrap_err();
            assert!(
                matches!(error, StoreError::Absent { .. }),
                "{digest}: {error}"
            );
        }
    }

    #[test]
    fn concurrent_processes_do_not_overwrite_each_other() {
        let (_folder, store) = store();
        let first = RevisionHistory::new(record(1, b"one"), configured());
        let mine = first.with_record(record(2, b"mine"), configured());
        let theirs = first.with_record(record(2, b"theirs"), configured());
        store.write(None, &theirs, &[]).unwrap();
        let error = store.write(None, &mine, &[]).unwrap_err();
        assert!(matches!(error, StoreError::Overtaken { .. }), "{error}");
        let _held = store.lock().unwrap();
        let error = store.write(Some(&theirs), &mine, &[]).unwrap_err();
        assert!(matches!(error, StoreError::Locked { .. }), "{error}");
        assert_eq!(store.read().unwrap().unwrap(), theirs);
    }

    #[test]
    fn history_and_components_are_bounded_and_rollback_works() {
        let (_folder, store) = store();
        let text = |n: u64| format!("component {n}");
        let mut history = RevisionHistory::new(record(1, text(1).as_bytes()), configured());
        store.write(None, &history, &[component(&text(1))]).unwrap();
        for n in 2..=RECORDS_MAX as u64 + 10 {
            let next = history.with_record(record(n, text(n).as_bytes()), configured());
            store
                .write(Some(&history), &next, &[component(&text(n))])
                .unwrap();
            history = next;
        }
        assert_eq!(history.records().count(), RECORDS_MAX);
        let components = fs::read_dir(&store.folder).unwrap().flatten();
        let components =
            components.filter(|entry| entry.path().extension().is_some_and(|it| it == "wasm"));
        assert_eq!(components.count(), COMPONENTS_MAX);
        for wanted in [history.active(), history.previous().unwrap()] {
            store.read_component(&wanted.digest).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, store) = store();
        let history = RevisionHistory::new(record(1, b"one"), configured());
        store.write(None, &history, &[component("one")]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.folder), 0o700);
        assert_eq!(mode(&store.history_path()), 0o600);
        assert_eq!(mode(&store.component_path(&digest(b"one"))), 0o600);
    }

    #[test]
    fn unreadable_component_is_no_change() {
        let with = |digest: Option<&str>| Configured {
            digest: digest.map(str::to_owned),
            signature: None,
            config: "{}".into(),
        };
        assert!(with(Some("b")).differs_from(&with(Some("a"))));
        assert!(!with(Some("a")).differs_from(&with(Some("a"))));
        assert!(!with(None).differs_from(&with(Some("a"))));
        let other = Configured {
            config: "{\"a\":1}".into(),
            ..with(None)
        };
        assert!(other.differs_from(&with(Some("a"))));
        let signed = |digest| Configured {
            signature: Some("by another".into()),
            ..with(digest)
        };
        assert!(signed(Some("a")).differs_from(&with(Some("a"))));
        assert!(!signed(None).differs_from(&with(Some("a"))));
    }
}
