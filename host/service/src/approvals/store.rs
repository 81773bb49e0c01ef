//! The files: one for each approval, written beside and moved into place, so that a process that dies leaves the old or the new
//! one, for their owner alone: they name containers and people. What cannot be read is moved aside and told of. All of this blocks.
//!
//! One process at a time: another daemon with the same state directory cannot hold anything, since two could approve one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use refit_model::diagnostic::Hints;
use refit_storage::atomic_file;
use serde::{Deserialize, Serialize};

use super::{Id, PendingApproval};

/// Raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// The largest that is read: eight times what a plan of 5,000 containers takes.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Files that are looked at. There are never as many of ours.
const FILES_MAX: usize = 10_000;
/// Damaged ones that are kept for whoever wants to look.
const DAMAGED_MAX: usize = 20;

#[derive(Serialize, Deserialize)]
struct Document<H> {
    format: u32,
    #[serde(flatten)]
    held: H,
}

/// What is read before anything else of a file.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {act} `{}`", .path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another Refit holds `{}`", .folder.display())]
    Locked { folder: PathBuf },
    #[error("an approval cannot be written as JSON")]
    Senseless { source: serde_json::Error },
}

impl Hints for StoreError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Io { .. } => {
                vec!["approvals are kept below `state_dir`, see `refit config show`".into()]
            }
            Self::Locked { .. } => vec!["give each daemon a `state_dir` of its own".into()],
            Self::Senseless { .. } => vec![],
        }
    }
}

/// The folder, held against other processes for as long as this lives.
pub(super) struct Store {
    folder: PathBuf,
    next: AtomicU64,
    _lock: File,
}

/// What was there.
#[derive(Default)]
pub(super) struct Found {
    pub(super) held: Vec<PendingApproval>,
    /// Moved aside now.
    pub(super) damaged: Vec<PathBuf>,
}

pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("approvals")
}

impl Store {
    /// Makes the folder where it is not there.
    pub(super) fn open(state: &Path) -> Result<(Self, Found), StoreError> {
        let folder = folder(state);
        atomic_file::folder(&folder).map_err(failed("make", &folder))?;
        let lock = lock(&folder)?;
        let mut found = Found::default();
        let mut last = 0;
        let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
        for entry in entries.take(FILES_MAX) {
            let path = entry.map_err(failed("read", &folder))?.path();
            match named(&path) {
                Named::Approval(id) => {
                    last = last.max(id);
                    match read(&path, id)? {
                        Content::Held(held) => found.held.push(*held),
                        Content::Newer => tracing::warn!(
                            "`{}` was written by a newer Refit, and is left alone",
                            path.display()
                        ),
                        Content::Damaged(problem) => {
                            found.damaged.push(move_aside(&path, &problem)?);
                        }
                    }
                }
                Named::Damaged(id) => last = last.max(id),
                // Nobody else is writing, so this was left by a process that died.
                Named::Beside => drop(fs::remove_file(&path)),
                Named::Other => {}
            }
        }
        sweep_damaged(&folder);
        let store = Self {
            folder,
            next: AtomicU64::new(last + 1),
            _lock: lock,
        };
        Ok((store, found))
    }

    /// A number that no other approval has, or had.
    pub(super) fn number(&self) -> Id {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// On the disk when this returns: after a loss of power it is the old file or the new one.
    pub(super) fn put(&self, held: &PendingApproval) -> Result<(), StoreError> {
        let document = Document {
            format: FORMAT,
            held,
        };
        let bytes = serde_json::to_vec_pretty(&document)
            .map_err(|source| StoreError::Senseless { source })?;
        let path = self.file(held.id);
        atomic_file::replace(&path, &bytes).map_err(failed("write", &path))
    }

    /// One that stays costs room, and nothing else.
    pub(super) fn remove(&self, id: Id) {
        let path = self.file(id);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!("cannot remove `{}`: {error}", path.display());
        }
    }

    fn file(&self, id: Id) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

/// The damaged ones that are kept, the oldest first, and how many approvals there are. For those who only look.
pub(super) fn look(state: &Path) -> Result<(usize, Vec<PathBuf>), StoreError> {
    let folder = folder(state);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, vec![])),
        Err(error) => return Err(failed("read", &folder)(error)),
    };
    let paths = entries.flatten().take(FILES_MAX).map(|entry| entry.path());
    let of_approvals = paths.filter(|path| matches!(named(path), Named::Approval(_)));
    Ok((of_approvals.count(), damaged(&folder)))
}

enum Named {
    Approval(Id),
    Damaged(Id),
    Beside,
    Other,
}

fn named(path: &Path) -> Named {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some((id, rest)) = name.and_then(|name| name.split_once('.')) else {
        return Named::Other;
    };
    match (id.parse(), rest) {
        (Ok(id), "json") => Named::Approval(id),
        (Ok(_), "new") => Named::Beside,
        (Ok(id), rest) if rest.starts_with("json.damaged-") => Named::Damaged(id),
        _ => Named::Other,
    }
}

enum Content {
    Held(Box<PendingApproval>),
    Newer,
    Damaged(String),
}

/// An error where the disk does not give it; what it gives and nobody understands is damaged.
fn read(path: &Path, id: Id) -> Result<Content, StoreError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed("read", path))?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Ok(Content::Damaged(format!(
            "it has more than {FILE_BYTES_MAX} bytes"
        )));
    }
    match serde_json::from_slice::<Head>(&bytes) {
        Ok(head) if head.format > FORMAT => return Ok(Content::Newer),
        Ok(_) => {}
        Err(error) => return Ok(Content::Damaged(error.to_string())),
    }
    Ok(
        match serde_json::from_slice::<Document<PendingApproval>>(&bytes) {
            Ok(document) if document.held.id == id => Content::Held(Box::new(document.held)),
            Ok(document) => Content::Damaged(format!("it says that it is {}", document.held.id)),
            Err(error) => Content::Damaged(error.to_string()),
        },
    )
}

fn move_aside(path: &Path, problem: &str) -> Result<PathBuf, StoreError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%3fZ");
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".damaged-{now}"));
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside).map_err(failed("move aside", path))?;
    tracing::warn!(
        "an approval was damaged, and is kept as `{}`: {problem}",
        aside.display()
    );
    Ok(aside)
}

/// The oldest first.
fn damaged(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.take(FILES_MAX).map(|entry| entry.path());
    let mut damaged: Vec<PathBuf> = paths
        .filter(|path| matches!(named(path), Named::Damaged(_)))
        .collect();
    // By the time in the name.
    damaged.sort_by_key(|path| {
        let name = path.to_string_lossy();
        name.rsplit_once("damaged-")
            .map(|(_, time)| time.to_owned())
    });
    damaged
}

fn sweep_damaged(folder: &Path) {
    let damaged = damaged(folder);
    for old in &damaged[..damaged.len().saturating_sub(DAMAGED_MAX)] {
        let _ = fs::remove_file(old);
    }
}

/// The system lets go of it when the file is closed, however the process ends.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    let file = options.open(&path).map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            folder: folder.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path, source }
}
