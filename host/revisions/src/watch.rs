//! A component file that is looked at again and again, and swapped in when it has changed.
//!
//! By looking, not by being told: the system tells of changes on neither all file systems nor all kinds of mounts, and a look
//! costs a microsecond. What is still being written is let alone until it has been the same for two looks. The signature beside
//! it counts as part of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::Generations;
use super::load::Source;
use super::swap::ConfiguredPolicy;
use crate::artifact::file;

/// Between two looks. A person who has just copied a file does not wait for long; a machine does not notice.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A component and its signature, each where it is there.
type Both = (Option<Seen>, Option<Seen>);

/// What a look sees. Two that are equal mean that nobody has written in between, as far as the clock of the file system tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    length: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: u64,
}

impl Seen {
    fn at(path: &Path) -> Option<Self> {
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

/// Follows the file that `asked` names, for as long as the process lives; a reload may name another one, or none. A swap that
/// fails is an error in the log, and is not tried again before the file changes.
pub async fn follow(
    generations: Arc<Generations>,
    asked: watch::Receiver<Option<ConfiguredPolicy>>,
) {
    // Nothing has settled yet: what was written since the start has loaded it is found out by the first two looks.
    let (mut settled, mut last): (Both, Both) = Default::default();
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let Some(asked) = asked.borrow().clone() else {
            continue;
        };
        let Source::File(path) = &asked.source else {
            continue;
        };
        let now = (Seen::at(path), Seen::at(&file::signature_of(path)));
        let quiet = now == last;
        last.clone_from(&now);
        if quiet && now != settled && now.0.is_some() {
            settled = now;
            // It has told of its outcome itself.
            let _ = generations.reload(asked, "the watched file").await;
        }
    }
}
