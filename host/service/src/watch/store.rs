//! The file with the watcher's state, and the state in memory.
//!
//! A small JSON file. Refit writes a temporary file and renames it. Refit renames a corrupt file, reports it, and starts with
//! an empty one. That loses the pause, the failures, and the ages of images, so updates wait longer, not less.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_storage::atomic_file;

use super::memory::Memory;

/// 2000 digests of 500 bytes, and some more.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;

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

/// The file on the disk. All of its functions block.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("watch.json"),
        }
    }

    /// Loads the saved state, and returns a problem with the file, if any.
    pub fn load(&self) -> (Memory, Option<Diagnostic>) {
        match self.read() {
            Ok(memory) => (memory, None),
            Err(error) => {
                let damaged_path = self.path.with_extension("damaged");
                let mut diagnostic = Diagnostic::of(&error);
                if let MemoryError::Senseless { problem, .. } = &error {
                    diagnostic = diagnostic.because(problem.clone());
                    if fs::rename(&self.path, &damaged_path).is_ok() {
                        diagnostic =
                            diagnostic.hint(format!("it is kept as `{}`", damaged_path.display()));
                    }
                }
                (Memory::default(), Some(diagnostic))
            }
        }
    }

    fn read(&self) -> Result<Memory, MemoryError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
            Err(error) => return Err(self.io_error("read")(error)),
        };
        let corrupt = |problem: String| MemoryError::Senseless {
            path: self.path.clone(),
            problem,
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(self.io_error("read"))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(corrupt(format!("it is longer than {FILE_BYTES_MAX} bytes")));
        }
        let memory = Memory::from_json(&text).map_err(|error| corrupt(error.to_string()))?;
        memory.ok_or_else(|| corrupt("it is of another format".to_owned()))
    }

    /// Writes the output of [`Memory::to_json`]. After a power loss there is the old or the new file.
    fn write(&self, text: &[u8]) -> Result<(), MemoryError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        atomic_file::folder(folder)
            .and_then(|()| atomic_file::replace(&self.path, text))
            .map_err(self.io_error("write"))
    }

    fn io_error(&self, act: &'static str) -> impl FnOnce(io::Error) -> MemoryError {
        let path = self.path.clone();
        move |source| MemoryError::Io { act, path, source }
    }
}

/// The watcher's state with its file, shared by the watcher and the clients that pause it.
#[derive(Debug)]
pub struct Kept {
    memory: std::sync::Mutex<Memory>,
    store: Store,
    /// Held during a write, so that an earlier state cannot overwrite a later one.
    writing: tokio::sync::Mutex<()>,
    /// The last error: the file was corrupt, or cannot be written.
    last_error: std::sync::Mutex<Option<Diagnostic>>,
}

impl Kept {
    pub fn load(store: Store) -> Self {
        let (memory, last_error) = store.load();
        if let Some(diagnostic) = &last_error {
            tracing::error!(hints = ?diagnostic.hints, "what the watcher knew is lost: {}", diagnostic.sentence());
        }
        Self {
            memory: std::sync::Mutex::new(memory),
            store,
            writing: tokio::sync::Mutex::new(()),
            last_error: std::sync::Mutex::new(last_error),
        }
    }

    pub fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    pub fn last_error(&self) -> Option<Diagnostic> {
        lock(&self.last_error).clone()
    }

    /// Writes the state if it has changed. A failure is logged and kept; the state in memory stays valid until the process
    /// ends.
    pub async fn write(&self) -> Result<(), Diagnostic> {
        let _guard = self.writing.lock().await;
        let text = {
            let mut memory = self.memory();
            if !std::mem::take(&mut memory.is_changed) {
                return Ok(());
            }
            memory.to_json()
        };
        let store = self.store.clone();
        let result = tokio::task::spawn_blocking(move || store.write(&text)).await;
        let diagnostic = match result {
            Ok(Ok(())) => {
                *lock(&self.last_error) = None;
                return Ok(());
            }
            Ok(Err(error)) => Diagnostic::of(&error),
            Err(panicked) => {
                Diagnostic::new("cannot write what the watcher knows").because(panicked.to_string())
            }
        };
        self.memory().is_changed = true;
        let before = lock(&self.last_error).replace(diagnostic.clone());
        // Each check tries again; the log needs the error once.
        if before.as_ref() != Some(&diagnostic) {
            tracing::error!(hints = ?diagnostic.hints, "{}", diagnostic.sentence());
        }
        Err(diagnostic)
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::memory::Pause;
    use super::super::update_sink::AvailableUpdate;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn update() -> AvailableUpdate {
        AvailableUpdate {
            image: "ghcr.io/acme/app:1".parse().unwrap(),
            digest: "a".to_owned(),
        }
    }

    #[tokio::test]
    async fn state_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&folder.path().join("state"));
        let kept = Kept::load(store.clone());
        {
            let mut memory = kept.memory();
            memory.record_seen("ghcr.io/acme/app:1", "a", at(0));
            memory.record_failure(&update(), at(60));
            memory.record_failure(&update(), at(120));
            memory.paused = Some(Pause {
                since: at(1),
                by: None,
            });
        }
        kept.write().await.unwrap();
        let kept = Kept::load(store);
        assert_eq!(kept.last_error(), None);
        let mut memory = kept.memory();
        assert_eq!(memory.first_seen(&update()), Some(at(0)));
        assert_eq!(memory.failures(&update()), (2, Some(at(120))));
        assert_eq!(memory.paused.as_ref().map(|pause| pause.since), Some(at(1)));
        memory.clear_failures(&update());
        assert_eq!(memory.failures(&update()), (0, None));
    }

    #[tokio::test]
    async fn corrupt_file_is_reported_and_renamed() {
        for text in ["{", "{\"format\":7}", ""] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("watch.json"), text).unwrap();
            let kept = Kept::load(Store::new(folder.path()));
            let diagnostic = kept.last_error().expect("it is reported");
            assert!(
                diagnostic.error.contains("makes no sense"),
                "{diagnostic:?}"
            );
            assert_eq!(
                fs::read_to_string(folder.path().join("watch.damaged")).unwrap(),
                text
            );
            kept.memory().record_seen("a", "b", at(0));
            kept.write().await.unwrap();
            assert!(folder.path().join("watch.json").is_file());
        }
    }

    #[tokio::test]
    async fn failed_write_is_reported_and_retried() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::write(&state, "a file where the folder should be").unwrap();
        let kept = Kept::load(Store::new(&state));
        kept.memory().record_seen("a", "b", at(0));
        assert!(kept.write().await.is_err());
        fs::remove_file(&state).unwrap();
        kept.write().await.unwrap();
        assert!(state.join("watch.json").is_file());
        assert_eq!(kept.last_error(), None);
    }
}
