//! Polls a component file, and swaps it in when it has changed.
//!
//! It polls because change notifications do not work on all file systems and mounts, and a check costs a microsecond. It
//! ignores a file that is still being written until two checks see the same state. The signature file counts as part of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::Generations;
use super::load::Source;
use super::swap::ConfiguredPolicy;
use crate::artifact::file;

/// The interval between two checks. A person who has just copied a file does not wait long; the load is negligible.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The state of the component and of its signature, if they exist.
type FileStates = (Option<FileState>, Option<FileState>);

/// The state of a file at a check. Two equal states mean that no program wrote to the file in between, as far as the clock of
/// the file system shows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileState {
    path: PathBuf,
    length: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: u64,
}

impl FileState {
    fn read(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(&metadata),
        })
    }
}

/// Polls the file in `configured_policy` for as long as the process lives; a reload may name a different file, or none. A
/// failed swap is an error in the log, and is not retried before the file changes.
pub async fn follow(
    generations: Arc<Generations>,
    configured_policy: watch::Receiver<Option<ConfiguredPolicy>>,
) {
    // Nothing has settled yet: the first two checks notice changes since the start loaded the file.
    let (mut settled, mut last): (FileStates, FileStates) = Default::default();
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let Some(configured_policy) = configured_policy.borrow().clone() else {
            continue;
        };
        let Source::File(path) = &configured_policy.source else {
            continue;
        };
        let current = (
            FileState::read(path),
            FileState::read(&file::signature_of(path)),
        );
        let is_unchanged = current == last;
        last.clone_from(&current);
        if is_unchanged && current != settled && current.0.is_some() {
            settled = current;
            // `reload` logs the outcome.
            let _ = generations
                .reload(configured_policy, "the watched file")
                .await;
        }
    }
}
