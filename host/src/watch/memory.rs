//! What the watcher must know after a restart: since when each digest is known, what has failed, and whether it is paused.
//!
//! A small file of JSON that is written beside and moved into place. One that makes no sense is moved aside, told of, and begun
//! anew: lost are then a pause, what has failed, and how old images are, so that they wait for longer and not for less.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::adopt::Finding;
use crate::diagnostic::{Diagnostic, Hints};

/// Raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// Digests that are remembered: ten of each of two hundred images. Those that were not seen for longest go first.
const SEEN_MAX: usize = 2000;
/// Each is seen at every look; this often that is worth a write.
const SEEN_AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// 2000 of 500 bytes, and some.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Nothing is adopted until it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub since: Timestamp,
    /// Who paused, as they say of themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A digest that a registry has, or had, under a reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    image: String,
    digest: String,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Refreshes for it in a row that did not come to anything.
    #[serde(default, skip_serializing_if = "is_zero")]
    failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_at: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    format: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused: Option<Pause>,
    #[serde(default)]
    seen: Vec<Seen>,
}

#[derive(Debug, Default)]
pub struct Memory {
    pub paused: Option<Pause>,
    seen: BTreeMap<(String, String), Seen>,
    /// Whether the file is behind.
    pub is_changed: bool,
}

impl Memory {
    /// A registry has this now.
    pub fn sees(&mut self, image: &str, digest: &str, now: Timestamp) {
        let key = (image.to_owned(), digest.to_owned());
        if let Some(seen) = self.seen.get_mut(&key) {
            // By a clock that was set back since, it comes from the future.
            if seen.first_seen > now {
                seen.first_seen = now;
                self.is_changed = true;
            }
            if now.duration_since(seen.last_seen).abs() >= SEEN_AGAIN {
                seen.last_seen = now;
                self.is_changed = true;
            }
            return;
        }
        self.is_changed = true;
        let seen = Seen {
            image: key.0.clone(),
            digest: key.1.clone(),
            first_seen: now,
            last_seen: now,
            failures: 0,
            retry_at: None,
        };
        self.seen.insert(key, seen);
        while self.seen.len() > SEEN_MAX {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.last_seen);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.seen.remove(&key);
        }
    }

    pub fn first_seen(&self, finding: &Finding) -> Option<Timestamp> {
        Some(self.of(finding)?.first_seen)
    }

    /// Refreshes for it that failed in a row, and when the next may be.
    pub fn failures(&self, finding: &Finding) -> (u32, Option<Timestamp>) {
        match self.of(finding) {
            Some(seen) => (seen.failures, seen.retry_at),
            None => (0, None),
        }
    }

    pub fn failed(&mut self, finding: &Finding, retry_at: Timestamp) {
        if let Some(seen) = self.seen.get_mut(&key(finding)) {
            seen.failures = seen.failures.saturating_add(1);
            seen.retry_at = Some(retry_at);
            self.is_changed = true;
        }
    }

    /// It came to something, or a person wants it to be tried again.
    pub fn forgives(&mut self, finding: &Finding) {
        if let Some(seen) = self.seen.get_mut(&key(finding))
            && (seen.failures, seen.retry_at) != (0, None)
        {
            (seen.failures, seen.retry_at) = (0, None);
            self.is_changed = true;
        }
    }

    fn of(&self, finding: &Finding) -> Option<&Seen> {
        self.seen.get(&key(finding))
    }

    fn text(&self) -> Vec<u8> {
        let document = Document {
            format: FORMAT,
            paused: self.paused.clone(),
            seen: self.seen.values().cloned().collect(),
        };
        // Strings, numbers and times: it has no way to fail.
        serde_json::to_vec_pretty(&document).unwrap_or_default()
    }
}

fn key(finding: &Finding) -> (String, String) {
    (finding.image.to_string(), finding.digest.clone())
}

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot {act} `{}`", .path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("`{}` makes no sense", .path.display())]
    Senseless { path: PathBuf, problem: String },
}

impl Hints for MemoryError {
    fn hints(&self) -> Vec<String> {
        vec!["what the watcher remembers is kept in `state_dir`".into()]
    }
}

/// Where it is kept. All of this blocks.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join("watch.json"),
        }
    }

    /// What was kept, or nothing, and what is to be told about that.
    pub fn load(&self) -> (Memory, Option<Diagnostic>) {
        match self.read() {
            Ok(memory) => (memory, None),
            Err(error) => {
                let aside = self.path.with_extension("damaged");
                let mut told = Diagnostic::of(&error);
                if let MemoryError::Senseless { problem, .. } = &error {
                    told = told.because(problem.clone());
                    if fs::rename(&self.path, &aside).is_ok() {
                        told = told.hint(format!("it is kept as `{}`", aside.display()));
                    }
                }
                (Memory::default(), Some(told))
            }
        }
    }

    fn read(&self) -> Result<Memory, MemoryError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
            Err(error) => return Err(self.failed("read")(error)),
        };
        let senseless = |problem: String| MemoryError::Senseless {
            path: self.path.clone(),
            problem,
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(self.failed("read"))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(senseless(format!(
                "it is longer than {FILE_BYTES_MAX} bytes"
            )));
        }
        let document: Document =
            serde_json::from_slice(&text).map_err(|error| senseless(error.to_string()))?;
        if document.format != FORMAT {
            return Err(senseless(format!("its format is {}", document.format)));
        }
        let seen = document.seen.into_iter().take(SEEN_MAX);
        Ok(Memory {
            paused: document.paused,
            seen: seen
                .map(|seen| ((seen.image.clone(), seen.digest.clone()), seen))
                .collect(),
            is_changed: false,
        })
    }

    /// A text of [`Memory::text`]. After a loss of power it is the old file or the new one.
    fn write(&self, text: &[u8]) -> Result<(), MemoryError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(self.failed("write"))?;
        let beside = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let put = options
            .open(&beside)
            .and_then(|mut file| {
                file.write_all(text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&beside, &self.path))
            .and_then(|()| File::open(folder)?.sync_all());
        put.inspect_err(|_| drop(fs::remove_file(&beside)))
            .map_err(self.failed("write"))
    }

    fn failed(&self, act: &'static str) -> impl FnOnce(io::Error) -> MemoryError {
        let path = self.path.clone();
        move |source| MemoryError::Io { act, path, source }
    }
}

/// The memory and its file, shared by the watcher and those who pause it.
#[derive(Debug)]
pub struct Kept {
    memory: std::sync::Mutex<Memory>,
    store: Store,
    /// Held while it is written: a later state is not overwritten by an earlier one.
    writing: tokio::sync::Mutex<()>,
    /// What is to be told: the file was damaged, or cannot be written.
    trouble: std::sync::Mutex<Option<Diagnostic>>,
}

impl Kept {
    pub fn load(store: Store) -> Self {
        let (memory, trouble) = store.load();
        if let Some(told) = &trouble {
            tracing::error!(hints = ?told.hints, "what the watcher knew is lost: {}", told.sentence());
        }
        Self {
            memory: std::sync::Mutex::new(memory),
            store,
            writing: tokio::sync::Mutex::new(()),
            trouble: std::sync::Mutex::new(trouble),
        }
    }

    pub fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    pub fn trouble(&self) -> Option<Diagnostic> {
        lock(&self.trouble).clone()
    }

    /// Writes it where it has changed. A failure is told of and kept; what is known holds until the process ends.
    pub async fn write(&self) -> Result<(), Diagnostic> {
        let _turn = self.writing.lock().await;
        let text = {
            let mut memory = self.memory();
            if !std::mem::take(&mut memory.is_changed) {
                return Ok(());
            }
            memory.text()
        };
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.write(&text)).await;
        let told = match written {
            Ok(Ok(())) => {
                *lock(&self.trouble) = None;
                return Ok(());
            }
            Ok(Err(error)) => Diagnostic::of(&error),
            Err(panicked) => {
                Diagnostic::new("cannot write what the watcher knows").because(panicked.to_string())
            }
        };
        self.memory().is_changed = true;
        let before = lock(&self.trouble).replace(told.clone());
        // Each look tries again; once is enough for the log.
        if before.as_ref() != Some(&told) {
            tracing::error!(hints = ?told.hints, "{}", told.sentence());
        }
        Err(told)
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn finding(digest: &str) -> Finding {
        Finding {
            image: "ghcr.io/acme/app:1".parse().unwrap(),
            digest: digest.to_owned(),
        }
    }

    #[test]
    fn the_first_sight_counts_also_of_one_that_comes_back() {
        let mut memory = Memory::default();
        for (digest, second) in [("a", 0), ("b", 10), ("a", 20)] {
            memory.sees("ghcr.io/acme/app:1", digest, at(second));
        }
        assert_eq!(memory.first_seen(&finding("a")), Some(at(0)));
        assert_eq!(memory.first_seen(&finding("b")), Some(at(10)));
        // The clock was set back by an hour.
        memory.sees("ghcr.io/acme/app:1", "b", at(-3600));
        assert_eq!(memory.first_seen(&finding("b")), Some(at(-3600)));
    }

    #[test]
    fn what_is_seen_at_each_look_is_not_written_each_time() {
        let mut memory = Memory::default();
        memory.sees("a", "b", at(0));
        assert!(std::mem::take(&mut memory.is_changed));
        memory.sees("a", "b", at(300));
        assert!(!memory.is_changed);
        memory.sees("a", "b", at(25 * 3600));
        assert!(memory.is_changed);
    }

    #[test]
    fn it_is_bounded_and_forgets_what_it_has_not_seen_for_longest() {
        let mut memory = Memory::default();
        for n in 0..SEEN_MAX + 10 {
            memory.sees(&format!("i{n}"), "d", at(n as i64));
        }
        assert_eq!(memory.seen.len(), SEEN_MAX);
        assert!(
            memory
                .seen
                .keys()
                .all(|(image, _)| image != "i0" && image != "i9")
        );
        assert!((memory.text().len() as u64) < FILE_BYTES_MAX);
    }

    #[tokio::test]
    async fn all_of_it_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(&folder.path().join("state"));
        let kept = Kept::load(store.clone());
        {
            let mut memory = kept.memory();
            memory.sees("ghcr.io/acme/app:1", "a", at(0));
            memory.failed(&finding("a"), at(60));
            memory.failed(&finding("a"), at(120));
            memory.paused = Some(Pause {
                since: at(1),
                by: None,
            });
        }
        kept.write().await.unwrap();
        let kept = Kept::load(store);
        assert_eq!(kept.trouble(), None);
        let mut memory = kept.memory();
        assert_eq!(memory.first_seen(&finding("a")), Some(at(0)));
        assert_eq!(memory.failures(&finding("a")), (2, Some(at(120))));
        assert_eq!(memory.paused.as_ref().map(|it| it.since), Some(at(1)));
        memory.forgives(&finding("a"));
        assert_eq!(memory.failures(&finding("a")), (0, None));
    }

    #[tokio::test]
    async fn a_file_that_makes_no_sense_is_told_of_and_kept_aside() {
        for text in ["{", "{\"format\":7}", ""] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("watch.json"), text).unwrap();
            let kept = Kept::load(Store::in_folder(folder.path()));
            let told = kept.trouble().expect("it is told of");
            assert!(told.error.contains("makes no sense"), "{told:?}");
            assert_eq!(
                fs::read_to_string(folder.path().join("watch.damaged")).unwrap(),
                text
            );
            kept.memory().sees("a", "b", at(0));
            kept.write().await.unwrap();
            assert!(folder.path().join("watch.json").is_file());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_told_of_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::write(&state, "a file where the folder should be").unwrap();
        let kept = Kept::load(Store::in_folder(&state));
        kept.memory().sees("a", "b", at(0));
        assert!(kept.write().await.is_err());
        fs::remove_file(&state).unwrap();
        kept.write().await.unwrap();
        assert!(state.join("watch.json").is_file());
        assert_eq!(kept.trouble(), None);
    }
}
