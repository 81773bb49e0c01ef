//! Who is at work on a container: so that two never are, and so that what a dead process left can be told from what a living
//! one is doing.
//!
//! Within a process a set; between processes of one machine a locked file in the state directory, which the system lets go when
//! its owner dies, however it dies; between machines the engine, where the name of a replacement can be taken only once. The
//! files hold nothing: all that is needed to finish or undo a replacement is in the engine.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use refit_model::container::ContainerId;
use refit_storage::atomic_file;

/// Where leases are taken. Clones share one set.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    held: Arc<Mutex<HashSet<String>>>,
    /// `None` where nothing can be written: then a lease is known in this process alone.
    folder: Option<PathBuf>,
}

/// Held while a container is worked on.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    key: String,
    file: Option<(File, PathBuf)>,
    trace: LeaseMarker,
    settled: bool,
}

/// What the absence of a holder says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseMarker {
    /// Somebody on this machine began, and died.
    Abandoned,
    /// Nobody on this machine did, as far as we can see. Somebody elsewhere may be at work.
    None,
}

impl Leases {
    /// `state` is the state directory. It is made when it is needed.
    pub fn in_folder(state: PathBuf) -> Self {
        Self {
            held: Arc::default(),
            folder: Some(state.join("replacing")),
        }
    }

    /// `None` where somebody in this process or another one on this machine holds it.
    pub fn take(&self, container: &ContainerId) -> Option<Lease> {
        self.take_key(container.short()).map(|(lease, _)| lease)
    }

    /// The same by the first twelve digits of an id, and what was found.
    pub fn take_key(&self, key: &str) -> Option<(Lease, LeaseMarker)> {
        if !self.set().insert(key.to_owned()) {
            return None;
        }
        // From here on dropping it lets go.
        let mut lease = Lease {
            leases: self.clone(),
            key: key.to_owned(),
            file: None,
            trace: LeaseMarker::None,
            settled: false,
        };
        let Some(folder) = &self.folder else {
            return Some((lease, LeaseMarker::None));
        };
        let path = folder.join(key);
        let trace = if path.exists() {
            LeaseMarker::Abandoned
        } else {
            LeaseMarker::None
        };
        match open_locked(&path) {
            Ok(file) => (lease.file, lease.trace) = (Some((file, path)), trace),
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Error(error)) => {
                tracing::debug!("no lease can be written at `{}`: {error}", path.display());
            }
        }
        Some((lease, trace))
    }

    fn set(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// The first digits of the container's id.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Nothing is left to finish or undo. Without this the file stays, for whoever recovers.
    pub fn settle(mut self) {
        self.settled = true;
    }

    /// We did nothing: leave it as it was found. Otherwise the next one would believe that somebody here died at it, and undo
    /// what a living Refit elsewhere is doing.
    pub fn give_back(mut self) {
        self.settled = self.trace == LeaseMarker::None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((_file, path)) = &self.file
            && self.settled
        {
            // While it is still locked: whoever opened it meanwhile is refused, and makes a new one next time.
            let _ = std::fs::remove_file(path);
        }
        self.leases.set().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        ContainerId::new("0123456789ab".to_owned() + &"c".repeat(52))
    }

    #[test]
    fn a_container_is_held_once_and_let_go() {
        let leases = Leases::default();
        let held = leases.take(&id()).unwrap();
        assert!(leases.take(&id()).is_none());
        assert!(leases.take(&ContainerId::new("b".repeat(64))).is_some());
        drop(held);
        assert!(leases.take(&id()).is_some());
    }

    #[test]
    fn another_process_is_refused_and_a_dead_one_leaves_a_trace() {
        let folder = std::env::temp_dir().join(format!("refit-lease-{}", std::process::id()));
        let (ours, theirs) = (
            Leases::in_folder(folder.clone()),
            Leases::in_folder(folder.clone()),
        );
        let (held, trace) = ours.take_key(id().short()).unwrap();
        assert_eq!(trace, LeaseMarker::None);
        assert!(theirs.take(&id()).is_none(), "a lock on the file is held");

        drop(held);
        let (held, trace) = theirs.take_key(id().short()).unwrap();
        assert_eq!(
            trace,
            LeaseMarker::Abandoned,
            "it ended without being settled"
        );
        held.settle();
        assert_eq!(ours.take_key(id().short()).unwrap().1, LeaseMarker::None);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_given_back_is_as_it_was_found() {
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
    fn a_folder_that_cannot_be_written_is_no_obstacle() {
        let leases = Leases::in_folder("/proc/nowhere".into());
        assert!(leases.take(&id()).is_some());
    }
}
