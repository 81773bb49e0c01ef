//! Shows which writers are alive. Each holds a lock on its own file, and the system releases the lock when the process dies,
//! however it dies. Process ids would not work: they are reused, and differ between containers.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use refit_storage::atomic_file;

/// The maximum number of files that a cleanup lists. There is one for each process that refreshes.
const FILES_MAX: usize = 1000;

/// The lock of a writer, for its lifetime.
pub(super) struct WriterLock {
    _file: File,
    path: PathBuf,
    pub(super) name: String,
}

impl WriterLock {
    /// Creates the file of this writer and locks it. The caller holds the file lock, so no other process deletes the new file
    /// before it is locked.
    pub(super) fn acquire(folder: &Path) -> io::Result<Self> {
        atomic_file::folder(folder)?;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut nanoseconds = since_epoch.unwrap_or_default().as_nanos();
        // A clock that always starts at the same time, together with the process id of a container's first process, gives the
        // same name twice.
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

/// Returns whether a writer is alive. It tries a shared lock, so that two concurrent readers do not mistake each other for the
/// writer.
pub(super) fn is_alive(folder: &Path, name: &str) -> bool {
    let Ok(file) = File::open(folder.join(name)) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Deletes the files of dead writers. The caller holds the file lock.
pub(super) fn delete_dead(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten().take(FILES_MAX) {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| !is_alive(folder, name)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
