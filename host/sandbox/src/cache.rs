//! Compiled components, kept on disk under a seal, so that a policy which took seconds to compile is there in milliseconds the
//! next time.
//!
//! Whoever can change an entry could run code in this process, so permissions of files are not all there is: each entry ends in
//! an HMAC-SHA256 under a key of this installation, over all the bytes before it, and it is the bytes so checked that are used. An
//! entry that does not hold is compiled anew. Losing the folder costs time, nothing else, and no error of the cache is an error
//! of a load.

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

/// Compiled components that are kept: some versions of some policies, for more than one version of Refit.
const CACHE_ENTRIES_MAX: usize = 16;
const CACHE_BYTES_MAX: u64 = 512 << 20;

/// Says what the file is, and changes with its layout.
const MAGIC: &[u8; 16] = b"refit compiled 1";
const KEY_BYTES: usize = 32;
const SEAL_BYTES: usize = 32;
const HEADER_BYTES: usize = MAGIC.len() + 32 + 32;
const KEY: &str = "key";
const EXTENSION: &str = "cwasm";

/// A file that was begun and not moved into place belongs to a process that died. No write takes that long.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// What an entry is for: which bytes, compiled how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// SHA-256 of the component.
    pub(super) component: [u8; 32],
    /// SHA-256 of what wasmtime says makes compiled code usable: its version, the machine, the settings.
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
    /// A folder that cannot be written is told of once, not at each load.
    told: AtomicBool,
}

/// Why there is no entry to use.
#[derive(Debug, PartialEq)]
enum Unusable {
    Absent,
    /// Its seal does not hold, or it is not what its name says.
    Broken,
}

impl Cache {
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self {
            folder,
            told: AtomicBool::new(false),
        }
    }

    /// The code under this name, if its seal holds. Blocks.
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
                self.tell(&error);
                None
            }
        }
    }

    /// Keeps the code, and removes what has not been used for longest. Blocks.
    pub(super) fn put(&self, name: &Name, code: &[u8]) {
        if let Err(error) = self.write(name, code).and_then(|()| self.sweep(name)) {
            self.tell(&error);
        }
    }

    /// What is kept for these bytes, however it was compiled, the last used first. Whether it holds, [`Cache::get`] says. Blocks.
    pub(super) fn names_of(&self, component: &[u8; 32]) -> Vec<Name> {
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

    fn tell(&self, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
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
        // For the sweep: what is used is young. Where that fails it is swept earlier than need be.
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
        let beside = self.beside();
        let written = atomic_file::new_file(&beside).and_then(|mut file| {
            file.write_all(&header)?;
            file.write_all(code)?;
            // Not flushed to the disk: what a crash of the machine cuts short has no seal that holds.
            file.write_all(seal.as_ref())
        });
        let moved = written.and_then(|()| fs::rename(&beside, self.folder.join(name.file())));
        moved.inspect_err(|_| drop(fs::remove_file(&beside)))
    }

    /// Of this installation: 32 random bytes that only this user can read, made at the first use.
    fn key(&self) -> io::Result<hmac::Key> {
        atomic_file::folder(&self.folder)?;
        let path = self.folder.join(KEY);
        // Twice: the first time it may not be there yet, or not be fit to be a key.
        for _ in 0..2 {
            match read_key(&path) {
                Ok(Some(bytes)) => return Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
                Ok(None) => {
                    tracing::warn!(
                        "`{}` is not a key that only this user can read; a new one is made, and nothing is used that was compiled before",
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

    /// Written beside and linked into place, so that of two processes at their first start one makes the key and both use it.
    fn make_key(&self, path: &Path) -> io::Result<()> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        let beside = self.beside();
        let made = atomic_file::new_file(&beside).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        let linked = made.and_then(|()| match fs::hard_link(&beside, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        });
        let _ = fs::remove_file(&beside);
        linked
    }

    fn beside(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        self.folder
            .join(format!("{}-{count}.new", std::process::id()))
    }

    /// Keeps within the bounds; the entry that was just written stays.
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

/// `None`: it is there, and is not 32 bytes that only their owner can read.
fn read_key(path: &Path) -> io::Result<Option<[u8; KEY_BYTES]>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        // Whoever owns it could have written it, whatever its mode says now.
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
        let cache = Cache::in_folder(folder.path().join("compiled"));
        (folder, cache)
    }

    #[test]
    fn what_was_put_in_comes_out_also_for_the_next_process() {
        let (folder, cache) = cache();
        assert_eq!(cache.get(&name(1)), None);
        cache.put(&name(1), b"code");
        assert_eq!(cache.get(&name(1)).as_deref(), Some(&b"code"[..]));
        let next = Cache::in_folder(folder.path().join("compiled"));
        assert_eq!(next.get(&name(1)).as_deref(), Some(&b"code"[..]));
        assert_eq!(next.get(&name(2)), None);
    }

    #[test]
    fn what_was_compiled_otherwise_is_found_the_last_used_first() {
        let (folder, cache) = cache();
        assert_eq!(cache.names_of(&[1; 32]), []);
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
        assert_eq!(cache.names_of(&[1; 32]), [name(1), otherwise]);
        assert!(cache.get(&otherwise).is_some());
        assert_eq!(cache.names_of(&[1; 32]), [otherwise, name(1)]);
    }

    #[test]
    fn no_byte_of_an_entry_can_be_changed() {
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
    fn an_entry_under_another_name_or_another_key_does_not_count() {
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
    fn nobody_else_can_read_the_key_and_one_that_others_could_read_is_given_up() {
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
    fn the_oldest_go_first_and_so_does_what_a_dead_process_left() {
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
    fn a_folder_that_cannot_be_made_costs_nothing_but_time() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let cache = Cache::in_folder(folder.path().join("file/compiled"));
        cache.put(&name(1), b"code");
        assert_eq!(cache.get(&name(1)), None);
    }
}
