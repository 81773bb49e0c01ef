//! Leases on containers: two processes never work on one container at once, and recovery can distinguish the leftovers of a
//! dead process from the work of a living one.
//!
//! Within a process a lease is an entry in a set; between processes of one machine it is a locked file in the state directory,
//! which the system unlocks when its owner dies, for any reason; between machines the engine decides, since the name of a
//! replacement can be used only once. The files are empty: the engine contains everything that is needed to finish or undo a
//! replacement.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use refit_model::container::ContainerId;
use refit_storage::atomic_file;

/// The set of leases. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    keys: Arc<Mutex<HashSet<String>>>,
    /// `None` if the directory cannot be written: then only this process knows its leases.
    folder: Option<PathBuf>,
}

/// Exclusive permission to work on a container.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    key: String,
    file: Option<(File, PathBuf)>,
    marker: LeaseMarker,
    settled: bool,
}

/// What the lease file shows about earlier work on a container that no process works on now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMarker {
    /// A process on this machine started a replacement and died.
    Abandoned,
    /// No process on this machine started one, as far as Refit can see. A process elsewhere may be working on it.
    None,
}

impl Leases {
    /// Creates leases in the state directory `state`. The directory is created when it is needed.
    pub fn in_folder(state: PathBuf) -> Self {
        Self {
            keys: Arc::default(),
            folder: Some(state.join("replacing")),
        }
    }

    /// Takes the lease of a container; `None` if this process or another one on this machine has it.
    pub fn take(&self, container: &ContainerId) -> Option<Lease> {
        self.take_key(container.short()).map(|(lease, _)| lease)
    }

    /// Takes a lease by the first twelve digits of the container's id, and returns the marker that it found.
    pub fn take_key(&self, key: &str) -> Option<(Lease, LeaseMarker)> {
        if !self.lock_keys().insert(key.to_owned()) {
            return None;
        }
        // From here on, dropping the lease releases it.
        let mut lease = Lease {
            leases: self.clone(),
            key: key.to_owned(),
            file: None,
            marker: LeaseMarker::None,
            settled: false,
        };
        let Some(folder) = &self.folder else {
            return Some((lease, LeaseMarker::None));
        };
        let path = folder.join(key);
        let marker = if path.exists() {
            LeaseMarker::Abandoned
        } else {
            LeaseMarker::None
        };
        match open_locked(&path) {
            Ok(file) => (lease.file, lease.marker) = (Some((file, path)), marker),
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Error(error)) => {
                tracing::debug!(path = %path.display(), "cannot write lease: {error}");
            }
        }
        Some((lease, marker))
    }

    fn lock_keys(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_locked(path: &std::path::Path) -> Result<File, TryLockError> {
    if let Some(folder) = path.parent() {
        atomic_file::folder(folder).map_err(TryLockError::Error)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

impl Lease {
    /// Returns the first digits of the container's id.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Releases the lease and its file: nothing is left to finish or undo. Without this call the file stays, for recovery.
    pub fn settle(mut self) {
        self.settled = true;
    }

    /// Releases the lease and leaves the file as it was before, since this process did nothing. Otherwise the next process
    /// would believe that a process on this machine died while it worked on the container, and would undo the work of a living
    /// Refit elsewhere.
    pub fn give_back(mut self) {
        self.settled = self.marker == LeaseMarker::None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((_file, path)) = &self.file
            && self.settled
        {
            // Remove the file while it is still locked: a process that has opened it in the meantime is refused, and creates a
            // new file next time.
            let _ = std::fs::remove_file(path);
        }
        self.leases.lock_keys().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId::new("0123456789ab".to_owned() + &"c".repeat(52))
    }

    #[test]
    fn lease_is_exclusive_and_released_on_drop() {
        let leases = Leases::default();
        let lease = leases.take(&id()).unwrap();
        assert!(leases.take(&id()).is_none());
        assert!(leases.take(&ContainerId::new("b".repeat(64))).is_some());
        drop(lease);
        assert!(leases.take(&id()).is_some());
    }

    #[test]
    fn lease_of_dead_process_leaves_marker() {
        let folder = std::env::temp_dir().join(format!("refit-lease-{}", std::process::id()));
        let (ours, theirs) = (
            Leases::in_folder(folder.clone()),
            Leases::in_folder(folder.clone()),
        );
        let (lease, marker) = ours.take_key(id().short()).unwrap();
        assert_eq!(marker, LeaseMarker::None);
        assert!(theirs.take(&id()).is_none(), "a lock on the file is held");

        drop(lease);
        let (lease, marker) = theirs.take_key(id().short()).unwrap();
        assert_eq!(
            marker,
            LeaseMarker::Abandoned,
            "it ended without being settled"
        );
        lease.settle();
        assert_eq!(ours.take_key(id().short()).unwrap().1, LeaseMarker::None);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn returned_lease_leaves_marker_unchanged() {
        let folder = std::env::temp_dir().join(format!("refit-lease-back-{}", std::process::id()));
        let leases = Leases::in_folder(folder.clone());
        leases.take(&id()).unwrap().give_back();
        assert_eq!(leases.take_key(id().short()).unwrap().1, LeaseMarker::None);
        leases.take(&id()).unwrap().give_back();
        assert_eq!(
            leases.take_key(id().short()).unwrap().1,
            LeaseMarker::Abandoned
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn unwritable_folder_still_gives_leases() {
        let leases = Leases::in_folder("/proc/nowhere".into());
        assert!(leases.take(&id()).is_some());
    }
}
