//! Files and folders that only this user can read, and the one way to change such a file so that a loss of power leaves the old or
//! the new one. All of this blocks. Knows nothing of what is in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

/// To write into. An error where one is there.
pub fn new_file(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).create_new(true))
}

/// Makes a folder, and those above it that are missing, each for this user alone. One that others can look into is made so that
/// they cannot; what is above it stays as it is.
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

/// Whose folder it is, and who can look into it. One that others can look into is made so that they cannot.
pub fn check_folder(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // What is to be written there says so; there is nothing to look into.
        Ok(found) if !found.is_dir() => return Ok(()),
        #[cfg(unix)]
        Ok(found) => {
            use std::os::unix::fs::MetadataExt as _;
            let user = rustix::process::geteuid();
            // Root sees what a service keeps that runs as a user of its own.
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

/// Whether a file belongs to this user, or to root, and nobody else can read it.
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

/// Written beside, flushed, and moved into place, the folder flushed too. What is beside, `NAME.new`, is one writer's at a time.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // One that a writer who died has left is written over.
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
    fn what_is_made_is_for_its_owner_alone() {
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
    fn what_cannot_be_put_in_place_leaves_nothing_beside_it() {
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
