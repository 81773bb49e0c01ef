//! A sealed disk cache of compiled components: a policy that took seconds to compile loads in milliseconds the next time.
//!
//! Anybody who can change an entry could run code in this process, so file permissions are not enough: each entry ends in an
//! HMAC-SHA256 under a key of this installation, over all the bytes before it, and exactly the checked bytes are used. If the seal
//! of an entry does not match, Refit compiles the component again. Losing the folder costs only time, and no error of the cache
//! makes a load fail.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use refit_storage::atomic_file;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::compile::COMPILED_BYTES_MAX;

/// The number of entries: some versions of some policies, for more than one version of Refit.
const CACHE_ENTRIES_MAX: usize = 16;
const CACHE_BYTES_MAX: u64 = 512 << 20;

/// Identifies the file format, and changes with the layout.
const MAGIC: &[u8; 16] = b"refit compiled 1";
const KEY_BYTES: usize = 32;
const SEAL_BYTES: usize = 32;
const HEADER_BYTES: usize = MAGIC.len() + 32 + 32;
const KEY: &str = "key";
const EXTENSION: &str = "cwasm";

/// The age at which an unfinished file belongs to a process that died. No write takes that long.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// The key of an entry: the component's bytes and the compiler's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// SHA-256 of the component.
    pub(super) component: [u8; 32],
    /// SHA-256 of what wasmtime requires of usable code: its version, the machine, the settings.
    pub(super) compatibility: [u8; 32],
}

impl Name {
    fn file(&self) -> String {
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        format!(
            "{}-{}.{EXTENSION}",
            hex(&self.component),
            hex(&self.compatibility[..8])
        )
    }
}

pub(super) struct Cache {
    folder: PathBuf,
    /// Set once the log has a message about an unwritable folder, so that not every load repeats it.
    is_reported: AtomicBool,
}

/// Why an entry cannot be used.
#[derive(Debug, PartialEq)]
enum Unusable {
    Absent,
    /// The seal does not match, or the content is not what the name says.
    Broken,
}

impl Cache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            is_reported: AtomicBool::new(false),
        }
    }

    /// Return the code under this name if its seal matches. Blocks.
    pub(super) fn get(&self, name: &Name) -> Option<Bytes> {
        match self.read(name) {
            Ok(Ok(code)) => Some(code),
            Ok(Err(Unusable::Absent)) => None,
            Ok(Err(Unusable::Broken)) => {
                tracing::warn!(
                    "the seal of `{}` does not hold: it was damaged, or is not ours, and is not used",
                    self.folder.join(name.file()).display()
                );
                None
            }
            Err(error) => {
                self.report_once(&error);
                None
            }
        }
    }

    /// Store the code, and remove the least recently used entries. Blocks.
    pub(super) fn put(&self, name: &Name, code: &[u8]) {
        if let Err(error) = self.write(name, code).and_then(|()| self.sweep(name)) {
            self.report_once(&error);
        }
    }

    /// The entries for this component, however it was compiled, the last used first. [`Cache::get`] checks their seals. Blocks.
    pub(super) fn entry_names(&self, component: &[u8; 32]) -> Vec<Name> {
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.take(2 * CACHE_ENTRIES_MAX) {
            let mut header = [0; HEADER_BYTES];
            let read = File::open(entry.path()).and_then(|mut file| file.read_exact(&mut header));
            let used = entry.metadata().and_then(|metadata| metadata.modified());
            let (Ok(()), Ok(used)) = (read, used) else {
                continue;
            };
            let (component, compatibility) = (*component, header[48..].try_into());
            let name = compatibility.map(|compatibility| Name {
                component,
                compatibility,
            });
            if let Ok(name) = name
                && entry.file_name() == name.file().as_str()
            {
                found.push((used, name));
            }
        }
        found.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        found.into_iter().map(|(_, name)| name).collect()
    }

    fn report_once(&self, error: &io::Error) {
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "compiled policies cannot be kept in `{}`: {error}",
                self.folder.display()
            );
        }
    }

    fn read(&self, name: &Name) -> io::Result<Result<Bytes, Unusable>> {
        let path = self.folder.join(name.file());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(Unusable::Absent));
            }
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        let most = (HEADER_BYTES + COMPILED_BYTES_MAX + SEAL_BYTES) as u64;
        (&file).take(most).read_to_end(&mut bytes)?;
        let key = self.key()?;
        let Some(sealed) = bytes.len().checked_sub(SEAL_BYTES) else {
            return Ok(Err(Unusable::Broken));
        };
        let (content, seal) = bytes.split_at(sealed);
        if hmac::verify(&key, content, seal).is_err() || !content.starts_with(&header(name)) {
            return Ok(Err(Unusable::Broken));
        }
        // For the sweep, which removes the oldest. If this fails, the entry is removed earlier than necessary.
        let _ = file.set_modified(SystemTime::now());
        Ok(Ok(Bytes::from(bytes).slice(HEADER_BYTES..sealed)))
    }

    fn write(&self, name: &Name, code: &[u8]) -> io::Result<()> {
        let key = self.key()?;
        let header = header(name);
        let mut seal = hmac::Context::with_key(&key);
        seal.update(&header);
        seal.update(code);
        let seal = seal.sign();
        let temporary_path = self.temporary_path();
        let written = atomic_file::new_file(&temporary_path).and_then(|mut file| {
            file.write_all(&header)?;
            file.write_all(code)?;
            // Not flushed to the disk: an entry that a crash of the machine cuts short has no matching seal.
            file.write_all(seal.as_ref())
        });
        let moved =
            written.and_then(|()| fs::rename(&temporary_path, self.folder.join(name.file())));
        moved.inspect_err(|_| drop(fs::remove_file(&temporary_path)))
    }

    /// The key of this installation: 32 random bytes that only this user can read, created at the first use.
    fn key(&self) -> io::Result<hmac::Key> {
        atomic_file::folder(&self.folder)?;
        let path = self.folder.join(KEY);
        // Two attempts: at the first one the key may be missing or unusable.
        for _ in 0..2 {
            match read_key(&path) {
                Ok(Some(bytes)) => return Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
                Ok(None) => {
                    tracing::warn!(
                        "`{}` is not a key that only this user can read: creating a new key, which invalidates the cache",
                        path.display()
                    );
                    fs::remove_file(&path)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.make_key(&path)?;
        }
        Err(io::Error::other("somebody else keeps changing its key"))
    }

    /// Write a temporary file and link it into place, so that of two processes at their first start one creates the key and both
    /// use it.
    fn make_key(&self, path: &Path) -> io::Result<()> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        let temporary_path = self.temporary_path();
        let made = atomic_file::new_file(&temporary_path).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        let linked = made.and_then(|()| match fs::hard_link(&temporary_path, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        });
        let _ = fs::remove_file(&temporary_path);
        linked
    }

    fn temporary_path(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        self.folder
            .join(format!("{}-{count}.new", std::process::id()))
    }

    /// Remove the oldest entries beyond the limits, but never the newest.
    fn sweep(&self, newest: &Name) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let modified = metadata.modified()?;
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension == Some("new") {
                let age = SystemTime::now().duration_since(modified);
                if age.is_ok_and(|age| age > ABANDONED) {
                    fs::remove_file(path)?;
                }
            } else if extension == Some(EXTENSION) && !path.ends_with(newest.file()) {
                entries.push((modified, metadata.len(), path));
            }
        }
        entries.sort();
        entries.reverse();
        let mut bytes = 0;
        for (index, (_, length, path)) in entries.into_iter().enumerate() {
            bytes += length;
            if index + 1 >= CACHE_ENTRIES_MAX || bytes > CACHE_BYTES_MAX {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn header(name: &Name) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..16].copy_from_slice(MAGIC);
    header[16..48].copy_from_slice(&name.component);
    header[48..].copy_from_slice(&name.compatibility);
    header
}

/// Read the key, or return `None` if the file is not 32 bytes that only its owner can read.
fn read_key(path: &Path) -> io::Result<Option<[u8; KEY_BYTES]>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        // Another owner could have written the file, whatever its mode is now.
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user || metadata.mode() & 0o077 != 0 {
            return Ok(None);
        }
    }
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes.try_into().ok().filter(|_| metadata.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(component: u8) -> Name {
        Name {
            component: [component; 32],
            compatibility: [7; 32],
        }
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("compiled"));
        (folder, cache)
    }

    #[test]
    fn stored_code_is_found_by_the_next_process() {
        let (folder, cache) = cache();
        assert_eq!(cache.get(&name(1)), None);
        cache.put(&name(1), b"code");
        assert_eq!(cache.get(&name(1)).as_deref(), Some(&b"code"[..]));
        let next = Cache::new(folder.path().join("compiled"));
        assert_eq!(next.get(&name(1)).as_deref(), Some(&b"code"[..]));
        assert_eq!(next.get(&name(2)), None);
    }

    #[test]
    fn entries_of_other_settings_are_found_newest_first() {
        let (folder, cache) = cache();
        assert_eq!(cache.entry_names(&[1; 32]), []);
        let otherwise = Name {
            compatibility: [8; 32],
            ..name(1)
        };
        for name in [otherwise, name(2), name(1)] {
            cache.put(&name, b"code");
        }
        let path = folder.path().join("compiled").join(otherwise.file());
        let file = File::options().write(true).open(path).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        file.set_modified(long_ago).unwrap();
        assert_eq!(cache.entry_names(&[1; 32]), [name(1), otherwise]);
        assert!(cache.get(&otherwise).is_some());
        assert_eq!(cache.entry_names(&[1; 32]), [otherwise, name(1)]);
    }

    #[test]
    fn changed_entry_is_not_used() {
        let (_folder, cache) = cache();
        cache.put(&name(1), b"code");
        let path = cache.folder.join(name(1).file());
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert_eq!(
                cache.read(&name(1)).unwrap(),
                Err(Unusable::Broken),
                "byte {at}"
            );
        }
        for length in [0, 1, SEAL_BYTES, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(
                cache.read(&name(1)).unwrap(),
                Err(Unusable::Broken),
                "{length} bytes"
            );
        }
        cache.put(&name(1), b"code");
        assert_eq!(
            cache.get(&name(1)).as_deref(),
            Some(&b"code"[..]),
            "it is written over"
        );
    }

    #[test]
    fn entry_with_another_name_or_key_is_not_used() {
        let (_folder, cache) = cache();
        cache.put(&name(1), b"code");
        let path = |n| cache.folder.join(name(n).file());
        fs::copy(path(1), path(2)).unwrap();
        assert_eq!(cache.read(&name(2)).unwrap(), Err(Unusable::Broken));
        let (_other, other) = self::cache();
        other.put(&name(1), b"theirs");
        fs::copy(other.folder.join(name(1).file()), path(1)).unwrap();
        assert_eq!(cache.read(&name(1)).unwrap(), Err(Unusable::Broken));
    }

    #[cfg(unix)]
    #[test]
    fn key_that_others_can_read_is_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_folder, cache) = cache();
        cache.put(&name(1), b"code");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let key = cache.folder.join(KEY);
        assert_eq!(mode(&cache.folder), 0o700);
        assert_eq!(mode(&key), 0o600);
        assert_eq!(mode(&cache.folder.join(name(1).file())), 0o600);
        let before = fs::read(&key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            cache.get(&name(1)),
            None,
            "sealed under a key that others may know"
        );
        assert_ne!(fs::read(&key).unwrap(), before);
        assert_eq!(mode(&key), 0o600);
    }

    #[test]
    fn sweep_removes_oldest_entries_and_abandoned_files() {
        let (_folder, cache) = cache();
        let count = u8::try_from(CACHE_ENTRIES_MAX).unwrap();
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        for n in 0..count {
            cache.put(&name(n), b"code");
            let file = File::options()
                .write(true)
                .open(cache.folder.join(name(n).file()))
                .unwrap();
            file.set_modified(long_ago + Duration::from_secs(u64::from(n)))
                .unwrap();
        }
        let left = cache.folder.join("1-1.new");
        fs::write(&left, "half").unwrap();
        File::options()
            .write(true)
            .open(&left)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        cache.put(&name(count), b"code");
        assert_eq!(cache.get(&name(0)), None, "the oldest");
        assert!(cache.get(&name(1)).is_some());
        assert!(cache.get(&name(count)).is_some(), "the newest");
        assert!(!left.exists());
    }

    #[test]
    fn unwritable_folder_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let cache = Cache::new(folder.path().join("file/compiled"));
        cache.put(&name(1), b"code");
        assert_eq!(cache.get(&name(1)), None);
    }
}
