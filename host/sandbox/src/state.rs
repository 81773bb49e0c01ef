//! The state that a policy stores between refreshes: a few small texts under its name, in one file of the state directory.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use refit_storage::atomic_file;

use super::limits::{STATE_KEY_BYTES_MAX, STATE_KEYS_MAX, STATE_VALUE_BYTES_MAX};

#[derive(Debug, PartialEq)]
pub enum StateError {
    /// The text names the limit.
    TooLarge(String),
    Unavailable(String),
}

type Entries = BTreeMap<String, String>;

/// One policy's entries. All refreshes of this process share them, so that concurrent refreshes see each other's changes.
#[derive(Clone)]
pub struct PolicyState(Arc<Mutex<Store>>);

struct Store {
    entries: Entries,
    /// The file, or `None` for entries in memory only, as in a plan.
    file: Option<PathBuf>,
}

/// The states of all policies of this process. Generations of one policy share a state, so that the older does not overwrite the
/// changes of the newer.
pub struct PolicyStates {
    folder: PathBuf,
    open: Mutex<BTreeMap<String, Weak<Mutex<Store>>>>,
}

impl PolicyStates {
    pub fn in_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            open: Mutex::default(),
        }
    }

    pub fn of(&self, policy: &str) -> PolicyState {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, state| state.strong_count() > 0);
        if let Some(state) = open.get(policy).and_then(Weak::upgrade) {
            return PolicyState(state);
        }
        let state = PolicyState::open(&self.folder, policy);
        open.insert(policy.to_owned(), Arc::downgrade(&state.0));
        state
    }
}

impl PolicyState {
    /// Load the stored entries. An unreadable or corrupt file is logged, and the policy starts with none: its state is a
    /// convenience, and must not prevent the adoption of a release.
    pub fn open(folder: &Path, policy: &str) -> Self {
        let file = folder.join("policy-state").join(format!("{policy}.json"));
        let entries = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(
                    "`{}` is corrupt, policy `{policy}` starts without stored state: {error}",
                    file.display()
                );
                Entries::new()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(
                        "cannot read `{}`, policy `{policy}` starts without stored state: {error}",
                        file.display()
                    );
                }
                Entries::new()
            }
        };
        Self(Arc::new(Mutex::new(Store {
            entries,
            file: Some(file),
        })))
    }

    /// A copy in memory, whose changes are lost.
    pub fn scratch(&self) -> Self {
        Self::in_memory(self.lock().entries.clone())
    }

    pub fn empty() -> Self {
        Self::in_memory(Entries::new())
    }

    /// Entries in memory only.
    pub fn in_memory(entries: BTreeMap<String, String>) -> Self {
        Self(Arc::new(Mutex::new(Store {
            entries,
            file: None,
        })))
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.lock().entries.get(key).cloned()
    }

    pub fn set(&self, key: &str, value: Option<String>) -> Result<(), StateError> {
        let too_large = |what: &str, limit: usize| {
            Err(StateError::TooLarge(format!("{what} of at most {limit}")))
        };
        if key.len() > STATE_KEY_BYTES_MAX {
            return too_large("a key has a length in bytes", STATE_KEY_BYTES_MAX);
        }
        if value
            .as_ref()
            .is_some_and(|value| value.len() > STATE_VALUE_BYTES_MAX)
        {
            return too_large("a value has a length in bytes", STATE_VALUE_BYTES_MAX);
        }
        let mut store = self.lock();
        let mut entries = store.entries.clone();
        match value {
            Some(value) => entries.insert(key.to_owned(), value),
            None => entries.remove(key),
        };
        if entries.len() > STATE_KEYS_MAX {
            return too_large("a policy has a number of keys", STATE_KEYS_MAX);
        }
        if let Some(file) = &store.file {
            write(file, &entries).map_err(|error| {
                StateError::Unavailable(format!("cannot write `{}`: {error}", file.display()))
            })?;
        }
        store.entries = entries;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Write a temporary file, flush it, and move it into place: if the process dies, the old file or the new one is left.
fn write(file: &Path, entries: &Entries) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        atomic_file::folder(folder)?;
    }
    let temporary_file = file.with_extension(format!("{}.new", std::process::id()));
    // A process with the same number may have left this file.
    let _ = std::fs::remove_file(&temporary_file);
    let mut out = atomic_file::new_file(&temporary_file)?;
    out.write_all(&serde_json::to_vec(entries)?)?;
    out.sync_all()?;
    std::fs::rename(&temporary_file, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_the_process_and_a_plan_stores_none() {
        let folder = std::env::temp_dir().join(format!("refit-state-{}", std::process::id()));
        let state = PolicyState::open(&folder, "p");
        state.set("seen", Some("1".into())).unwrap();
        let plan = state.scratch();
        plan.set("seen", Some("2".into())).unwrap();
        assert_eq!(plan.get("seen").as_deref(), Some("2"));
        assert_eq!(
            PolicyState::open(&folder, "p").get("seen").as_deref(),
            Some("1")
        );
        state.set("seen", None).unwrap();
        assert_eq!(PolicyState::open(&folder, "p").get("seen"), None);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn generations_of_a_policy_share_their_state() {
        let folder = tempfile::tempdir().unwrap();
        let states = PolicyStates::in_folder(folder.path().to_owned());
        let (old, new) = (states.of("p"), states.of("p"));
        old.set("seen", Some("1".into())).unwrap();
        new.set("more", Some("2".into())).unwrap();
        assert_eq!(new.get("seen").as_deref(), Some("1"));
        drop((old, new));
        let read = states.of("p");
        assert_eq!(read.get("seen").as_deref(), Some("1"));
        assert_eq!(read.get("more").as_deref(), Some("2"));
        assert_eq!(states.of("q").get("seen"), None);
    }

    #[test]
    fn exceeded_limit_keeps_the_stored_state() {
        let state = PolicyState::empty();
        state.set("k", Some("v".into())).unwrap();
        assert!(matches!(
            state.set(&"k".repeat(STATE_KEY_BYTES_MAX + 1), Some(String::new())),
            Err(StateError::TooLarge(_))
        ));
        assert!(matches!(
            state.set("k", Some("v".repeat(STATE_VALUE_BYTES_MAX + 1))),
            Err(StateError::TooLarge(_))
        ));
        for n in 1..STATE_KEYS_MAX {
            state.set(&n.to_string(), Some(String::new())).unwrap();
        }
        assert!(matches!(
            state.set("one more", Some(String::new())),
            Err(StateError::TooLarge(_))
        ));
        assert_eq!(state.get("k").as_deref(), Some("v"));
    }
}
