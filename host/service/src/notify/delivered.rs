//! The notifications that each sink has received, so that it gets none twice. They are stored in a file, since a restarted
//! daemon finds the same problems again.
//!
//! This only avoids repetition. If the file cannot be read or written, Refit logs that, and a sink may get a notification
//! twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use refit_storage::atomic_file;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::notification::DedupKey;

/// The maximum number of entries of a sink. The oldest are removed first.
const KEPT_MAX: usize = 2000;
/// After a month Refit repeats a notification that still applies.
const AGE_SECONDS_MAX: i64 = 30 * 24 * 60 * 60;
/// A larger file was not written by Refit.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The notifications that each sink has received. See the [module documentation](self).
#[derive(Debug)]
pub struct Memory {
    /// `None`: only in memory.
    file: Option<PathBuf>,
    delivered: Mutex<Delivery>,
}

/// The delivered notifications, by sink and by subject.
type Delivery = BTreeMap<String, BTreeMap<String, DeliveredKeys>>;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DeliveredKeys {
    /// A hash: the cause may contain confidential names.
    cause: String,
    at: jiff::Timestamp,
}

impl Memory {
    pub fn load(folder: &Path) -> Self {
        let file = folder.join("notified.json");
        let delivered = read(&file).unwrap_or_else(|error| {
            tracing::warn!(
                path = %file.display(),
                %error,
                "cannot read delivered notifications, some may be repeated"
            );
            Delivery::default()
        });
        Self {
            file: Some(file),
            delivered: Mutex::new(delivered),
        }
    }

    pub fn in_memory() -> Self {
        Self {
            file: None,
            delivered: Mutex::default(),
        }
    }

    pub(super) fn has_delivered(&self, sink: &str, dedup_key: &DedupKey) -> bool {
        let delivered = self.delivered();
        let entry = delivered
            .get(sink)
            .and_then(|delivered| delivered.get(&dedup_key.about));
        entry.is_some_and(|entry| {
            let age = jiff::Timestamp::now().duration_since(entry.at).as_secs();
            entry.cause == hash(&dedup_key.cause) && (0..AGE_SECONDS_MAX).contains(&age)
        })
    }

    pub(super) fn remember<'a>(&self, sink: &str, dedup_keys: impl Iterator<Item = &'a DedupKey>) {
        let at = jiff::Timestamp::now();
        let mut delivered = self.delivered();
        let delivered = delivered.entry(sink.to_owned()).or_default();
        for dedup_key in dedup_keys {
            let cause = hash(&dedup_key.cause);
            delivered.insert(dedup_key.about.clone(), DeliveredKeys { cause, at });
        }
        while delivered.len() > KEPT_MAX {
            let oldest = delivered.iter().min_by_key(|(_, entry)| entry.at);
            let Some(oldest) = oldest.map(|(about, _)| about.clone()) else {
                break;
            };
            delivered.remove(&oldest);
        }
    }

    /// Removes subjects that no longer apply. Returns whether there were any.
    pub(super) fn forget(&self, sink: &str, settled: &[String]) -> bool {
        let mut delivered = self.delivered();
        let Some(delivered) = delivered.get_mut(sink) else {
            return false;
        };
        let before = delivered.len();
        delivered.retain(|about, _| !settled.contains(about));
        delivered.len() < before
    }

    /// Writes the file. This blocks for some milliseconds.
    pub(super) fn write(&self) {
        let Some(file) = &self.file else { return };
        // The lock stays held during the write, so that of two concurrent writes the later one wins.
        let delivered = self.delivered();
        if let Err(error) = write(file, &delivered) {
            tracing::warn!(
                %error,
                "cannot save delivered notifications, some may be repeated after a restart"
            );
        }
    }

    fn delivered(&self) -> std::sync::MutexGuard<'_, Delivery> {
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> std::io::Result<Delivery> {
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Delivery::default());
        }
        Err(error) => return Err(error),
    }
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}

fn write(file: &Path, delivered: &Delivery) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        atomic_file::folder(folder)?;
    }
    atomic_file::replace(file, &serde_json::to_vec(delivered)?)
}

fn hash(cause: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(cause.as_bytes()).into();
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dedup_key(about: &str, cause: &str) -> DedupKey {
        DedupKey {
            about: about.into(),
            cause: cause.into(),
        }
    }

    #[test]
    fn notification_repeats_after_change_or_settling_not_restart() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::load(folder.path());
        let first = dedup_key("failed container ws-ana", "port is taken");
        assert!(!memory.has_delivered("ops", &first));
        memory.remember("ops", [&first].into_iter());
        memory.write();
        let memory = Memory::load(folder.path());
        assert!(memory.has_delivered("ops", &first));
        assert!(!memory.has_delivered("pager", &first), "another sink");
        assert!(!memory.has_delivered("ops", &dedup_key(&first.about, "no space left")));
        let text = std::fs::read_to_string(folder.path().join("notified.json")).unwrap();
        assert!(!text.contains("port is taken"), "{text}");
        assert!(memory.forget("ops", std::slice::from_ref(&first.about)));
        assert!(!memory.has_delivered("ops", &first));
        assert!(!memory.forget("ops", &[first.about]));
    }

    #[test]
    fn entries_are_bounded_and_corrupt_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notified.json"), "{nonsense").unwrap();
        let memory = Memory::load(folder.path());
        for n in 0..KEPT_MAX + 5 {
            memory.remember("ops", [&dedup_key(&format!("{n}"), "")].into_iter());
        }
        assert_eq!(memory.delivered()["ops"].len(), KEPT_MAX);
        memory.write();
        assert!(
            Memory::load(folder.path())
                .has_delivered("ops", &dedup_key(&format!("{}", KEPT_MAX + 4), ""))
        );
    }
}
