//! The files of approvals, one for each approval. All functions here block.
//!
//! Refit writes a temporary file and renames it, so a process that dies leaves the old or the new file. Only the owner can read
//! them, since they name containers and people. Refit renames a file that it cannot read, and reports it.
//!
//! One process at a time may open the folder. A second daemon with the same state directory cannot create approvals, since two
//! daemons could approve the same one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use refit_model::diagnostic::Hints;
use refit_storage::atomic_file;
use serde::{Deserialize, Serialize};

use super::{Id, PendingApproval};

/// The version of the format. It rises when a field changes its meaning or is removed.
const FORMAT: u32 = 1;
/// The maximum size of a file that Refit reads: eight times the plan of 5,000 containers.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// The maximum number of files that Refit lists. Approvals never need that many.
const FILES_MAX: usize = 10_000;
/// The number of corrupt files that Refit keeps for inspection.
const DAMAGED_MAX: usize = 20;

#[derive(Serialize, Deserialize)]
struct Document<H> {
    format: u32,
    #[serde(flatten)]
    approval: H,
}

/// The part of a file that Refit parses first.
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

/// The open folder. It stays locked against other processes until this value is dropped.
pub(super) struct Store {
    folder: PathBuf,
    next: AtomicU64,
    _lock: File,
}

/// The approvals that Refit found when it opened the folder.
#[derive(Default)]
pub(super) struct StoreContents {
    pub(super) approvals: Vec<PendingApproval>,
    /// Corrupt files that were renamed now.
    pub(super) damaged: Vec<PathBuf>,
}

pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("approvals")
}

impl Store {
    /// Opens the folder, and creates it if necessary.
    pub(super) fn open(state: &Path) -> Result<(Self, StoreContents), StoreError> {
        let folder = folder(state);
        atomic_file::folder(&folder).map_err(io_error("make", &folder))?;
        let lock = lock(&folder)?;
        let mut contents = StoreContents::default();
        let mut last = 0;
        let entries = fs::read_dir(&folder).map_err(io_error("read", &folder))?;
        for entry in entries.take(FILES_MAX) {
            let path = entry.map_err(io_error("read", &folder))?.path();
            match file_kind(&path) {
                FileKind::Approval(id) => {
                    last = last.max(id);
                    match read(&path, id)? {
                        FileContent::Approval(approval) => contents.approvals.push(*approval),
                        FileContent::Newer => tracing::warn!(
                            path = %path.display(),
                            "approval was written by a newer Refit"
                        ),
                        FileContent::Damaged(problem) => {
                            contents.damaged.push(rename_damaged(&path, &problem)?);
                        }
                    }
                }
                FileKind::Damaged(id) => last = last.max(id),
                // No other process is writing, so a process that died left it.
                FileKind::Temporary => drop(fs::remove_file(&path)),
                FileKind::Other => {}
            }
        }
        sweep_damaged(&folder);
        let store = Self {
            folder,
            next: AtomicU64::new(last + 1),
            _lock: lock,
        };
        Ok((store, contents))
    }

    /// Returns a number that no other approval has or had.
    pub(super) fn next_id(&self) -> Id {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes the approval to the disk. After a power loss there is the old or the new file.
    pub(super) fn write(&self, approval: &PendingApproval) -> Result<(), StoreError> {
        let document = Document {
            format: FORMAT,
            approval,
        };
        let bytes = serde_json::to_vec_pretty(&document)
            .map_err(|source| StoreError::Senseless { source })?;
        let path = self.file(approval.id);
        atomic_file::replace(&path, &bytes).map_err(io_error("write", &path))
    }

    /// Removes the file of an approval. If that fails, the file only takes up space.
    pub(super) fn remove(&self, id: Id) {
        let path = self.file(id);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove approval");
        }
    }

    fn file(&self, id: Id) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

/// Returns the number of approvals and the corrupt files, the oldest first. For commands that only read the folder.
pub(super) fn inspect(state: &Path) -> Result<(usize, Vec<PathBuf>), StoreError> {
    let folder = folder(state);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, vec![])),
        Err(error) => return Err(io_error("read", &folder)(error)),
    };
    let paths = entries.flatten().take(FILES_MAX).map(|entry| entry.path());
    let approvals = paths.filter(|path| matches!(file_kind(path), FileKind::Approval(_)));
    Ok((approvals.count(), damaged(&folder)))
}

enum FileKind {
    Approval(Id),
    Damaged(Id),
    Temporary,
    Other,
}

fn file_kind(path: &Path) -> FileKind {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some((id, rest)) = name.and_then(|name| name.split_once('.')) else {
        return FileKind::Other;
    };
    match (id.parse(), rest) {
        (Ok(id), "json") => FileKind::Approval(id),
        (Ok(_), "new") => FileKind::Temporary,
        (Ok(id), rest) if rest.starts_with("json.damaged-") => FileKind::Damaged(id),
        _ => FileKind::Other,
    }
}

enum FileContent {
    Approval(Box<PendingApproval>),
    Newer,
    Damaged(String),
}

/// Reads a file. An error means that the disk failed; content that cannot be parsed is corrupt.
fn read(path: &Path, id: Id) -> Result<FileContent, StoreError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error("read", path))?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Ok(FileContent::Damaged(format!(
            "it has more than {FILE_BYTES_MAX} bytes"
        )));
    }
    match serde_json::from_slice::<Head>(&bytes) {
        Ok(head) if head.format > FORMAT => return Ok(FileContent::Newer),
        Ok(_) => {}
        Err(error) => return Ok(FileContent::Damaged(error.to_string())),
    }
    Ok(
        match serde_json::from_slice::<Document<PendingApproval>>(&bytes) {
            Ok(document) if document.approval.id == id => {
                FileContent::Approval(Box::new(document.approval))
            }
            Ok(document) => {
                FileContent::Damaged(format!("it says that it is {}", document.approval.id))
            }
            Err(error) => FileContent::Damaged(error.to_string()),
        },
    )
}

fn rename_damaged(path: &Path, problem: &str) -> Result<PathBuf, StoreError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%3fZ");
    let mut new_path = path.as_os_str().to_owned();
    new_path.push(format!(".damaged-{now}"));
    let new_path = PathBuf::from(new_path);
    fs::rename(path, &new_path).map_err(io_error("move aside", path))?;
    tracing::warn!(path = %new_path.display(), problem, "approval is corrupt");
    Ok(new_path)
}

/// Returns the corrupt files, the oldest first.
fn damaged(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.take(FILES_MAX).map(|entry| entry.path());
    let mut damaged: Vec<PathBuf> = paths
        .filter(|path| matches!(file_kind(path), FileKind::Damaged(_)))
        .collect();
    // The name ends with the time.
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

/// Locks the folder. The system releases the lock when the file is closed, however the process ends.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    let file = options.open(&path).map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            folder: folder.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
    }
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path, source }
}
