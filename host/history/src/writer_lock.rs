//! Which of those who wrote "begun" still live: each holds a lock on a file of its own, which the system lets go when it dies,
//! however it dies. Process ids would not do: they are used again, and mean something else in each container.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use refit_storage::atomic_file;

/// Files that are looked at when those of the dead are removed. There is one for each process that refreshes.
const FILES_MAX: usize = 1000;

/// Held by a writer for as long as it lives.
pub(super) struct WriterLock {
    _file: File,
    path: PathBuf,
    pub(super) name: String,
}

impl WriterLock {
    /// The caller holds the turn, so nobody takes the file for a dead one's before it is locked.
    pub(super) fn announce(folder: &Path) -> io::Result<Self> {
        atomic_file::folder(folder)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut nanoseconds = since.unwrap_or_default().as_nanos();
        // A clock that starts at the same time each time, and the process id of a container's first process, make one name twice.
        let (name, path, file) = loop {
            let name = format!("{}-{nanoseconds}", std::process::id());
            let path = folder.join(&name);
            match File::create_new(&path) {
                Ok(file) => break (name, path, file),
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && nanoseconds < u128::MAX =>
                {
                    nanoseconds += 1
                }
                Err(error) => return Err(error),
            }
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(Self {
            _file: file,
            path,
            name,
        })
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Shared, so that two who look at once do not take each other for the writer.
pub(super) fn lives(folder: &Path, name: &str) -> bool {
    let Ok(file) = File::open(folder.join(name)) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The caller holds the turn.
pub(super) fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten().take(FILES_MAX) {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| !lives(folder, name)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
