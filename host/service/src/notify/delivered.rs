//! What each sink was told already, so that it is not told twice: kept in a file, since a daemon that starts again finds the same.
//!
//! For comfort alone. A file that cannot be read or written is told of in the log, and somebody is told something twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use refit_storage::atomic_file;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::notification::DedupKey;

/// Of one sink. Those that were told longest ago go first.
const KEPT_MAX: usize = 2000;
/// What is still so after a month is told again.
const AGE_SECONDS_MAX: i64 = 30 * 24 * 60 * 60;
/// A file that is larger is not ours.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// See the module.
#[derive(Debug)]
pub struct Memory {
    /// `None`: it ends with the process.
    file: Option<PathBuf>,
    told: Mutex<Delivery>,
}

/// By sink, and by what it is about.
type Delivery = BTreeMap<String, BTreeMap<String, DeliveredKeys>>;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct DeliveredKeys {
    /// A hash: what went wrong may name things that are nobody else's business.
    cause: String,
    at: jiff::Timestamp,
}

impl Memory {
    pub fn below(folder: &Path) -> Self {
        let file = folder.join("notified.json");
        let told = read(&file).unwrap_or_else(|why| {
            tracing::warn!(
                "cannot read what was told already from `{}`, and may tell it again: {why}",
                file.display()
            );
            Delivery::default()
        });
        Self {
            file: Some(file),
            told: Mutex::new(told),
        }
    }

    pub fn of_this_process() -> Self {
        Self {
            file: None,
            told: Mutex::default(),
        }
    }

    pub(super) fn knows(&self, sink: &str, same: &DedupKey) -> bool {
        let told = self.told();
        let once = told.get(sink).and_then(|told| told.get(&same.about));
        once.is_some_and(|once| {
            let age = jiff::Timestamp::now().duration_since(once.at).as_secs();
            once.cause == hash(&same.cause) && (0..AGE_SECONDS_MAX).contains(&age)
        })
    }

    pub(super) fn remember<'a>(&self, sink: &str, all: impl Iterator<Item = &'a DedupKey>) {
        let at = jiff::Timestamp::now();
        let mut told = self.told();
        let told = told.entry(sink.to_owned()).or_default();
        for same in all {
            let cause = hash(&same.cause);
            told.insert(same.about.clone(), DeliveredKeys { cause, at });
        }
        while told.len() > KEPT_MAX {
            let oldest = told.iter().min_by_key(|(_, once)| once.at);
            let Some(oldest) = oldest.map(|(about, _)| about.clone()) else {
                break;
            };
            told.remove(&oldest);
        }
    }

    /// Whether anything was.
    pub(super) fn forget(&self, sink: &str, settled: &[String]) -> bool {
        let mut told = self.told();
        let Some(told) = told.get_mut(sink) else {
            return false;
        };
        let before = told.len();
        told.retain(|about, _| !settled.contains(about));
        told.len() < before
    }

    /// Blocks, for some milliseconds.
    pub(super) fn write(&self) {
        let Some(file) = &self.file else { return };
        // Held meanwhile, so that of two who write the later one wins.
        let told = self.told();
        if let Err(why) = write(file, &told) {
            tracing::warn!(
                "cannot write down what was told, and may tell it again after a restart: {why}"
            );
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Delivery> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &Path) -> std::io::Result<Delivery> {
    match std::fs::metadata(file) {
        Ok(there) if there.len() > FILE_BYTES_MAX => {
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

fn write(file: &Path, told: &Delivery) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        atomic_file::folder(folder)?;
    }
    atomic_file::replace(file, &serde_json::to_vec(told)?)
}

fn hash(cause: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(cause.as_bytes()).into();
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(about: &str, cause: &str) -> DedupKey {
        DedupKey {
            about: about.into(),
            cause: cause.into(),
        }
    }

    #[test]
    fn it_is_told_again_when_it_changed_or_was_settled_and_not_for_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::below(folder.path());
        let first = same("failed container ws-ana", "port is taken");
        assert!(!memory.knows("ops", &first));
        memory.remember("ops", [&first].into_iter());
        memory.write();
        let memory = Memory::below(folder.path());
        assert!(memory.knows("ops", &first));
        assert!(!memory.knows("pager", &first), "another sink");
        assert!(!memory.knows("ops", &same(&first.about, "no space left")));
        let text = std::fs::read_to_string(folder.path().join("notified.json")).unwrap();
        assert!(!text.contains("port is taken"), "{text}");
        assert!(memory.forget("ops", std::slice::from_ref(&first.about)));
        assert!(!memory.knows("ops", &first));
        assert!(!memory.forget("ops", &[first.about]));
    }

    #[test]
    fn it_is_bounded_and_a_broken_file_costs_only_what_is_told_twice() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notified.json"), "{nonsense").unwrap();
        let memory = Memory::below(folder.path());
        for n in 0..KEPT_MAX + 5 {
            memory.remember("ops", [&same(&format!("{n}"), "")].into_iter());
        }
        assert_eq!(memory.told()["ops"].len(), KEPT_MAX);
        memory.write();
        assert!(Memory::below(folder.path()).knows("ops", &same(&format!("{}", KEPT_MAX + 4), "")));
    }
}
