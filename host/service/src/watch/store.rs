//! The file of what the watcher must know after a restart, and the watcher's memory beside it.
//!
//! A small file of JSON that is written beside and moved into place. One that makes no sense is moved aside, told of, and begun
//! anew: lost are then a pause, what has failed, and how old images are, so that they wait for longer and not for less.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_storage::atomic_file;

use super::memory::Memory;

/// 2000 of 500 bytes, and some.
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
        let memory = Memory::read(&text).map_err(|error| senseless(error.to_string()))?;
        memory.ok_or_else(|| senseless("it is of another format".to_owned()))
    }

    /// A text of [`Memory::text`]. After a loss of power it is the old file or the new one.
    fn write(&self, text: &[u8]) -> Result<(), MemoryError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        atomic_file::folder(folder)
            .and_then(|()| atomic_file::replace(&self.path, text))
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
    use jiff::Timestamp;

    use super::super::memory::Pause;
    use super::super::update_sink::AvailableUpdate;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn finding() -> AvailableUpdate {
        AvailableUpdate {
            image: "ghcr.io/acme/app:1".parse().unwrap(),
            digest: "a".to_owned(),
        }
    }

    #[tokio::test]
    async fn all_of_it_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(&folder.path().join("state"));
        let kept = Kept::load(store.clone());
        {
            let mut memory = kept.memory();
            memory.sees("ghcr.io/acme/app:1", "a", at(0));
            memory.failed(&finding(), at(60));
            memory.failed(&finding(), at(120));
            memory.paused = Some(Pause {
                since: at(1),
                by: None,
            });
        }
        kept.write().await.unwrap();
        let kept = Kept::load(store);
        assert_eq!(kept.trouble(), None);
        let mut memory = kept.memory();
        assert_eq!(memory.first_seen(&finding()), Some(at(0)));
        assert_eq!(memory.failures(&finding()), (2, Some(at(120))));
        assert_eq!(memory.paused.as_ref().map(|it| it.since), Some(at(1)));
        memory.forgives(&finding());
        assert_eq!(memory.failures(&finding()), (0, None));
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
