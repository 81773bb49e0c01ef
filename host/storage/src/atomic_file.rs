//! Private files and folders, and their atomic replacement: after a power loss a file has either its old or its new content.
//! All functions block. This module does not know the content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

/// Creates a private file to write into. Fails if the file exists.
pub fn new_file(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).create_new(true))
}

/// Creates a folder, and its missing parents, each for this user alone. If other users can read an existing folder, restricts
/// it; its parents stay as they are.
pub fn folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

/// Checks the owner and the permissions of a folder. If other users can read it, restricts it.
pub fn check_folder(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // A later write fails with a clear error; there is nothing to read.
        Ok(found) if !found.is_dir() => return Ok(()),
        #[cfg(unix)]
        Ok(found) => {
            use std::os::unix::fs::MetadataExt as _;
            let user = rustix::process::geteuid();
            // Root may read the folder of a service that runs as another user.
            if found.uid() != user.as_raw() && !user.is_root() {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "it belongs to another user",
                ));
            }
        }
        #[cfg(not(unix))]
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    folder(path)
}

/// Reports whether a file belongs to this user or to root, and no other user can read it.
pub fn is_private(path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::symlink_metadata(path)?;
        let user = rustix::process::geteuid().as_raw();
        let ours = found.uid() == user || found.uid() == 0;
        Ok(found.is_file() && ours && found.mode() & 0o077 == 0)
    }
    #[cfg(not(unix))]
    Ok(path.is_file())
}

/// Replaces a file atomically: writes `NAME.new` next to it, flushes it, renames it, and flushes the folder. Only one writer at
/// a time may use `NAME.new`.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // A file that a dead writer left is overwritten.
    let mut options = OpenOptions::new();
    let put = open(&beside, options.write(true).create(true).truncate(true))
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| File::open(folder)?.sync_all());
    put.inspect_err(|_| drop(fs::remove_file(&beside)))
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn created_files_are_private() {
        let state = tempfile::tempdir().unwrap();
        let made = state.path().join("a/b");
        folder(&made).unwrap();
        assert_eq!(mode(&made), 0o700);
        assert_eq!(
            mode(made.parent().unwrap()),
            0o700,
            "what was missing above it"
        );
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).unwrap();
        folder(&made).unwrap();
        assert_eq!(mode(&made), 0o700, "one that others could look into");
        let path = made.join("held.json");
        replace(&path, b"one").unwrap();
        assert_eq!(mode(&path), 0o600);
        new_file(&path).unwrap_err();
    }

    #[test]
    fn failed_replacement_leaves_no_temporary_file() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("held.json");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let taken = state.path().join("folder");
        fs::create_dir_all(taken.join("full")).unwrap();
        replace(&taken, b"three").unwrap_err();
        let names = fs::read_dir(state.path()).unwrap();
        let names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
