//! Finds the configuration file, and accepts only files that no other user except root can change.
//!
//! The working folder is not searched: anybody who can put a `refit.toml` into a folder where a user runs Refit could send that
//! user's logins to another registry. This module reads the environment and file metadata; it parses nothing.

use std::path::{Path, PathBuf};

use super::ConfigError;

/// The machine's configuration.
const MACHINE: &str = "/etc/refit/refit.toml";
/// The path in the user's configuration folder.
const USER: &str = "refit/refit.toml";
/// The path in the working folder, where earlier versions looked first.
const HERE: &str = "refit.toml";

/// The default file: the user's, then the machine's.
pub(super) fn find() -> Option<PathBuf> {
    let places = user_folder().map(|folder| folder.join(USER)).into_iter();
    let mut places = places.chain([PathBuf::from(MACHINE)]);
    let found = places.find(|path| path.is_file());
    if Path::new(HERE).is_file() {
        let used = found.as_ref().map_or_else(
            || "the defaults are".to_owned(),
            |path| format!("`{}` is", path.display()),
        );
        tracing::warn!(
            "`{HERE}` in the working folder is not used, {used}: name it by `--config {HERE}`"
        );
    }
    if let Some(path) = &found {
        tracing::info!(file = %path.display(), "configuration");
    }
    found
}

fn user_folder() -> Option<PathBuf> {
    folder_from_variable("XDG_CONFIG_HOME").or_else(|| home().map(|home| home.join(".config")))
}

/// The default state folder: the user's folder, or the machine's for root.
pub(super) fn state_folder() -> PathBuf {
    let state = folder_from_variable("XDG_STATE_HOME").or_else(|| {
        let home = home().filter(|home| home != "/root");
        home.map(|home| home.join(".local/state"))
    });
    state.map_or_else(
        || PathBuf::from("/var/lib/refit"),
        |folder| folder.join("refit"),
    )
}

fn home() -> Option<PathBuf> {
    folder_from_variable("HOME")
}

/// The folder in a variable. An empty variable is unset, and so is a relative path, which would depend on the working folder. For
/// root, another user's folder (`sudo` with their `HOME`) does not count.
fn folder_from_variable(variable: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os(variable)?);
    (folder.is_absolute() && !is_strange_to_root(&folder)).then_some(folder)
}

#[cfg(unix)]
fn is_strange_to_root(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    // A missing folder belongs to the owner of its parent.
    let mut existing = folder
        .ancestors()
        .filter_map(|it| std::fs::metadata(it).ok());
    existing.next().is_some_and(|found| found.uid() != 0)
}

#[cfg(not(unix))]
fn is_strange_to_root(_: &Path) -> bool {
    false
}

/// Refuse a file that another user could change or replace.
#[cfg(unix)]
pub(super) fn check(path: &Path) -> Result<(), ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::canonicalize(path).map_err(unreadable)?;
    for part in file.ancestors() {
        let found = std::fs::metadata(part).map_err(unreadable)?;
        // A read-only mount, for example into a container: its owner cannot change the file from here.
        if is_read_only(part) {
            continue;
        }
        if let Some(problem) = who_can_change(&found) {
            return Err(ConfigError::Insecure {
                path: path.to_owned(),
                part: part.to_owned(),
                problem,
            });
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(super) fn check(_: &Path) -> Result<(), ConfigError> {
    Ok(())
}

#[cfg(unix)]
fn is_read_only(path: &Path) -> bool {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    statvfs(path).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The other users who can change a file, or the content of a folder.
#[cfg(unix)]
fn who_can_change(found: &std::fs::Metadata) -> Option<&'static str> {
    use std::os::unix::fs::MetadataExt as _;
    let user = rustix::process::geteuid().as_raw();
    problem(found.uid(), found.gid(), found.mode(), found.is_dir(), user)
}

#[cfg(unix)]
fn problem(owner: u32, group: u32, mode: u32, is_folder: bool, user: u32) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    if owner != 0 && owner != user {
        return Some("belongs to another user");
    }
    // In such a folder, users cannot move or remove the files of others.
    if is_folder && mode & STICKY != 0 {
        return None;
    }
    if mode & 0o002 != 0 {
        return Some("can be written to by everybody");
    }
    // Many systems give each user a group with the user's number.
    let private_group = group == owner || group == 0;
    (mode & 0o020 != 0 && !private_group).then_some("can be written to by its group")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_cannot_change_is_used() {
        const ME: u32 = 1000;
        for (owner, group, mode, is_folder, expected) in [
            (ME, ME, 0o644, false, true),
            (0, 0, 0o644, false, true),
            (ME, ME, 0o664, false, true),
            (0, 0, 0o775, true, true),
            (0, 0, 0o1777, true, true),
            (ME, 50, 0o664, false, false),
            (ME, ME, 0o666, false, false),
            (0, 0, 0o777, true, false),
            (1001, 1001, 0o644, false, false),
            (1001, 1001, 0o755, true, false),
            (1001, 1001, 0o1755, true, false),
            // The sticky bit of a file has no effect.
            (ME, ME, 0o1666, false, false),
        ] {
            let found = problem(owner, group, mode, is_folder, ME);
            assert_eq!(
                found.is_none(),
                expected,
                "{owner} {group} {mode:o}: {found:?}"
            );
        }
        assert_eq!(
            problem(ME, ME, 0o644, false, 0),
            Some("belongs to another user")
        );
    }

    /// Only root can give a folder to another user.
    #[test]
    fn folder_of_another_user_is_none_for_root() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("not/there/yet");
        assert!(!is_strange_to_root(&below));
        if std::os::unix::fs::chown(folder.path(), Some(12345), None).is_ok() {
            assert!(is_strange_to_root(folder.path()));
            assert!(is_strange_to_root(&below));
        }
    }

    #[test]
    fn file_of_a_writable_folder_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("refit.toml");
        std::fs::write(&file, "").unwrap();
        check(&file).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(folder.path(), 0o777);
        assert!(matches!(check(&file), Err(ConfigError::Insecure { .. })));
        set(folder.path(), 0o755);
        set(&file, 0o666);
        assert!(matches!(check(&file), Err(ConfigError::Insecure { .. })));
    }
}
