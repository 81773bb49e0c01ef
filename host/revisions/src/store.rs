//! What outlives the process: the components of the last generations, by their digest, and a ledger that says which is active.
//!
//! Everything is written beside and moved into place, components before the ledger that names them, so a process that dies at
//! any step leaves the old state or the new one. A component is checked against its digest whenever it is read. All of this
//! blocks.

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

/// Raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;

/// Generations that the ledger remembers: months, at a swap a day or two.
const RECORDS_MAX: usize = 50;
/// Components that are kept, the active and the previous one among them: some steps back, in 400 MB at most.
const COMPONENTS_MAX: usize = 8;
/// The largest ledger that is read. Its records hold configurations.
const LEDGER_BYTES_MAX: u64 = 16 << 20;
/// The largest configuration of a policy. One of a hundred lines is 4 KiB.
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

/// What the configuration asked for, so that a later start sees whether an operator has changed it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// `None` where the component could not be read.
    pub digest: Option<String>,
    /// The one that came with it. Who signs anew, with another key perhaps, asks for something new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// JSON.
    pub config: String,
}

impl Configured {
    /// Whether it asks for something else than it did. A component that cannot be read asks for nothing.
    pub fn differs_from(&self, earlier: &Self) -> bool {
        let component = (&self.digest, &self.signature);
        self.config != earlier.config
            || (self.digest.is_some() && component != (&earlier.digest, &earlier.signature))
    }
}

/// Which generation is active, which was before it, and the last of all those that ever were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionHistory {
    format: u32,
    /// The number of the next generation. Numbers are not used twice.
    pub next: u64,
    pub configured: Configured,
    /// What a rollback goes back to.
    pub previous: Option<u64>,
    /// By the name of a signed policy: the newest version of it that was ever active.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    newest: BTreeMap<String, String>,
    /// The oldest first; the last one is active.
    records: Vec<Record>,
}

impl RevisionHistory {
    pub(super) fn beginning_with(record: Record, configured: Configured) -> Self {
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

    pub(super) fn followed_by(&self, mut record: Record, configured: Configured) -> Self {
        record.older_than = self.newer_than(&record.name, &record.version, record.signer.as_ref());
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

    /// The version that a signed policy is older than, if a newer one was active before.
    pub(super) fn newer_than(
        &self,
        name: &str,
        version: &str,
        signer: Option<&Signer>,
    ) -> Option<String> {
        signer?;
        let newest = self.newest_versions().remove(name);
        newest.filter(|newest| is_older(version, newest))
    }

    /// A ledger of an older Refit has records alone.
    fn newest_versions(&self) -> BTreeMap<String, String> {
        let mut newest = self.newest.clone();
        for record in &self.records {
            remember_newest(&mut newest, record);
        }
        newest
    }

    /// The same, with the numbers below `next` given away.
    pub(super) fn with_numbers_up_to(&self, next: u64) -> Self {
        Self {
            next: self.next.max(next),
            ..self.clone()
        }
    }

    pub fn active(&self) -> &Record {
        // It begins with one, none is taken but from the front, and `read` refuses a file without any.
        self.records.last().expect("a ledger has a record")
    }

    pub fn previous(&self) -> Option<&Record> {
        let number = self.previous?;
        self.records.iter().find(|record| record.number == number)
    }

    /// The newest first.
    pub fn history(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().rev()
    }

    /// The digests whose components are worth keeping.
    fn kept(&self) -> BTreeSet<&str> {
        let wanted = [Some(self.active()), self.previous()].into_iter().flatten();
        let mut kept: BTreeSet<&str> = wanted.map(|record| record.digest.as_str()).collect();
        for record in self.history() {
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
    /// Whether a file stands where a folder should.
    pub fn is_about_no_folder(&self) -> bool {
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
    /// Below the state folder. Nothing is made before something is to be kept.
    pub fn below(state: &Path) -> Self {
        Self {
            folder: state.join("policies"),
        }
    }

    fn ledger(&self) -> PathBuf {
        self.folder.join("generations.json")
    }

    fn component(&self, digest: &str) -> PathBuf {
        self.folder
            .join(format!("{}.wasm", digest.replace(':', "-")))
    }

    /// `None` where nothing was ever swapped.
    pub fn read(&self) -> Result<Option<RevisionHistory>, StoreError> {
        let path = self.ledger();
        let Some(text) = read_at_most(&path, LEDGER_BYTES_MAX)? else {
            return Ok(None);
        };
        let senseless = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Senseless {
            path: path.clone(),
            source,
        };
        let ledger: RevisionHistory =
            serde_json::from_slice(&text).map_err(|error| senseless(error.into()))?;
        if ledger.format != FORMAT || ledger.records.is_empty() {
            return Err(senseless("it is of another format, or empty".into()));
        }
        Ok(Some(ledger))
    }

    /// The component of this digest, as it was when it was stored.
    pub fn read_component(&self, wanted: &str) -> Result<Bytes, StoreError> {
        let absent = || StoreError::Absent {
            digest: wanted.to_owned(),
        };
        // It becomes part of a path.
        let hex = wanted.strip_prefix("sha256:").ok_or_else(absent)?;
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(absent());
        }
        let path = self.component(wanted);
        let most = limits::COMPONENT_BYTES_MAX as u64;
        let bytes = read_at_most(&path, most)?.ok_or_else(absent)?;
        let found = digest(&bytes);
        if found != wanted {
            return Err(StoreError::Damaged { path, found });
        }
        Ok(Bytes::from(bytes))
    }

    /// Makes `ledger` the one that the next start finds, if the one on disk is still `seen`. The components come first, and those
    /// that no kept generation needs go last.
    pub fn write(
        &self,
        seen: Option<&RevisionHistory>,
        ledger: &RevisionHistory,
        components: &[(String, Bytes)],
    ) -> Result<(), StoreError> {
        atomic_file::folder(&self.folder).map_err(failed("make", &self.folder))?;
        let _lock = self.lock()?;
        // One that cannot be read may be a newer Refit's.
        if self.read()?.as_ref() != seen {
            return Err(StoreError::Overtaken {
                folder: self.folder.clone(),
            });
        }
        for (digest, bytes) in components {
            // Also where a file is there already: it may be damaged, and this is the time to find out.
            if !bytes.is_empty() && self.read_component(digest).is_err() {
                self.put(&self.component(digest), bytes)?;
            }
        }
        let text = serde_json::to_vec_pretty(ledger).map_err(|error| StoreError::Senseless {
            path: self.ledger(),
            source: error.into(),
        })?;
        self.put(&self.ledger(), &text)?;
        self.sweep(ledger);
        Ok(())
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        atomic_file::replace(path, bytes).map_err(failed("write", path))
    }

    /// Between processes. The system lets go of it when the file is closed, however the process ends.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked {
                folder: self.folder.clone(),
            }),
            Err(fs::TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    /// What is left over costs room, and nothing else: a failure is no failure of the swap.
    fn sweep(&self, ledger: &RevisionHistory) {
        let kept: BTreeSet<PathBuf> = ledger
            .kept()
            .into_iter()
            .map(|digest| self.component(digest))
            .collect();
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let extension = path.extension().and_then(|extension| extension.to_str());
            // Under the lock nobody else is writing, so what lies beside was left by a process that died.
            let left_over = match extension {
                Some("wasm") => !kept.contains(&path),
                Some("new") => true,
                _ => false,
            };
            if left_over && let Err(error) = fs::remove_file(&path) {
                tracing::warn!("cannot remove `{}`: {error}", path.display());
            }
        }
    }
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path, source }
}

/// `None` where there is no such file.
fn read_at_most(path: &Path, most: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    if bytes.len() as u64 > most {
        return Err(StoreError::Senseless {
            path: path.to_owned(),
            source: format!("it is larger than {most} bytes").into(),
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
    fn newest_version_of_a_signed_policy_outlives_its_record() {
        let signed = |number, version: &str| Record {
            version: version.into(),
            signer: Some(Signer {
                name: "release".into(),
                verbs: None,
            }),
            ..record(number, b"p")
        };
        let signer = signed(0, "0").signer;
        let mut ledger = RevisionHistory::beginning_with(signed(1, "1.9.0"), configured());
        ledger = ledger.followed_by(signed(2, "1.10.0"), configured());
        for number in 3..60 {
            let other = Record {
                name: "another".into(),
                ..record(number, b"q")
            };
            ledger = ledger.followed_by(other, configured());
        }
        assert!(ledger.history().all(|record| record.name == "another"));
        let newer_than = |version, signer| ledger.newer_than("p", version, signer);
        assert_eq!(newer_than("1.9.0", signer.as_ref()), Some("1.10.0".into()));
        assert_eq!(newer_than("1.10.0", signer.as_ref()), None);
        assert_eq!(newer_than("1.9.0", None), None, "nobody has to sign");
        let older = ledger.followed_by(signed(60, "1.9.0"), configured());
        assert_eq!(older.active().older_than.as_deref(), Some("1.10.0"));
        let again = older.newer_than("p", "1.9.0", signer.as_ref());
        assert_eq!(again, Some("1.10.0".into()), "it is not forgotten");
    }

    fn component(text: &str) -> (String, Bytes) {
        (digest(text.as_bytes()), Bytes::from(text.to_owned()))
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::below(folder.path());
        (folder, store)
    }

    #[test]
    fn nothing_is_there_before_something_was_kept() {
        let (folder, store) = store();
        assert_eq!(store.read().unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_next_process_finds_what_was_written() {
        let (_folder, store) = store();
        let first = RevisionHistory::beginning_with(record(1, b"one"), configured());
        let second = first.followed_by(record(2, b"two"), configured());
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
    fn a_process_that_died_between_two_steps_changed_nothing() {
        let (_folder, store) = store();
        let ledger = RevisionHistory::beginning_with(record(1, b"one"), configured());
        store.write(None, &ledger, &[component("one")]).unwrap();
        // The component of the next one is there already, and half of its ledger lies beside.
        store
            .put(&store.component(&digest(b"two")), b"two")
            .unwrap();
        let beside = store.ledger().with_extension("new");
        fs::write(&beside, "{\"format\":1,").unwrap();
        assert_eq!(store.read().unwrap().unwrap(), ledger);
        let next = ledger.followed_by(record(2, b"three"), configured());
        store
            .write(Some(&ledger), &next, &[component("three")])
            .unwrap();
        assert_eq!(store.read().unwrap().unwrap(), next);
        assert!(!beside.exists());
        assert!(
            matches!(
                store.read_component(&digest(b"two")),
                Err(StoreError::Absent { .. })
            ),
            "nobody needs it"
        );
    }

    #[test]
    fn ledger_that_was_cut_short_is_an_error_and_is_left_as_it_is() {
        let (_folder, store) = store();
        let ledger = RevisionHistory::beginning_with(record(1, b"one"), configured());
        store.write(None, &ledger, &[component("one")]).unwrap();
        let text = fs::read(store.ledger()).unwrap();
        for cut in [0, 1, text.len() / 2] {
            fs::write(store.ledger(), &text[..cut]).unwrap();
            assert!(
                matches!(store.read(), Err(StoreError::Senseless { .. })),
                "{cut}"
            );
        }
        let left = fs::read(store.ledger()).unwrap();
        assert!(store.write(None, &ledger, &[]).is_err());
        assert_eq!(fs::read(store.ledger()).unwrap(), left);
    }

    #[test]
    fn a_component_that_was_changed_is_found_out_and_mended_by_the_next_write() {
        let (_folder, store) = store();
        let ledger = RevisionHistory::beginning_with(record(1, b"one"), configured());
        store.write(None, &ledger, &[component("one")]).unwrap();
        fs::write(store.component(&digest(b"one")), "One").unwrap();
        let error = store.read_component(&digest(b"one")).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        store
            .write(Some(&ledger), &ledger, &[component("one")])
            .unwrap();
        assert_eq!(store.read_component(&digest(b"one")).unwrap(), "one");
    }

    #[test]
    fn a_digest_is_no_way_out_of_the_folder() {
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
    fn two_processes_do_not_write_over_each_other() {
        let (_folder, store) = store();
        let first = RevisionHistory::beginning_with(record(1, b"one"), configured());
        let mine = first.followed_by(record(2, b"mine"), configured());
        let theirs = first.followed_by(record(2, b"theirs"), configured());
        store.write(None, &theirs, &[]).unwrap();
        let error = store.write(None, &mine, &[]).unwrap_err();
        assert!(matches!(error, StoreError::Overtaken { .. }), "{error}");
        let _held = store.lock().unwrap();
        let error = store.write(Some(&theirs), &mine, &[]).unwrap_err();
        assert!(matches!(error, StoreError::Locked { .. }), "{error}");
        assert_eq!(store.read().unwrap().unwrap(), theirs);
    }

    #[test]
    fn history_and_components_are_bounded_and_what_a_rollback_needs_stays() {
        let (_folder, store) = store();
        let text = |n: u64| format!("component {n}");
        let mut ledger =
            RevisionHistory::beginning_with(record(1, text(1).as_bytes()), configured());
        store.write(None, &ledger, &[component(&text(1))]).unwrap();
        for n in 2..=RECORDS_MAX as u64 + 10 {
            let next = ledger.followed_by(record(n, text(n).as_bytes()), configured());
            store
                .write(Some(&ledger), &next, &[component(&text(n))])
                .unwrap();
            ledger = next;
        }
        assert_eq!(ledger.history().count(), RECORDS_MAX);
        let components = fs::read_dir(&store.folder).unwrap().flatten();
        let components =
            components.filter(|entry| entry.path().extension().is_some_and(|it| it == "wasm"));
        assert_eq!(components.count(), COMPONENTS_MAX);
        for wanted in [ledger.active(), ledger.previous().unwrap()] {
            store.read_component(&wanted.digest).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, store) = store();
        let ledger = RevisionHistory::beginning_with(record(1, b"one"), configured());
        store.write(None, &ledger, &[component("one")]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.folder), 0o700);
        assert_eq!(mode(&store.ledger()), 0o600);
        assert_eq!(mode(&store.component(&digest(b"one"))), 0o600);
    }

    #[test]
    fn a_component_that_cannot_be_read_asks_for_nothing_new() {
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
