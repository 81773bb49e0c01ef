//! Where a configuration is looked for, and which files may be one: those that nobody but this user and root can change.
//!
//! The working folder is not looked at: whoever can put a `refit.toml` into a folder in which somebody runs Refit could send that
//! person's logins to a registry of their own. Reads the environment and asks the file system; parses nothing.

use std::path::{Path, PathBuf};

use super::ConfigError;

/// The machine's configuration.
const MACHINE: &str = "/etc/refit/refit.toml";
/// In the folder of the user's configurations.
const USER: &str = "refit/refit.toml";
/// In a working folder, where earlier versions looked first.
const HERE: &str = "refit.toml";

/// The file that is used if nobody names one: the user's, then the machine's.
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
    folder_of("XDG_CONFIG_HOME").or_else(|| home().map(|home| home.join(".config")))
}

/// Where state is kept if the configuration does not say: the user's folder, or for root the machine's.
pub(super) fn state_folder() -> PathBuf {
    let state = folder_of("XDG_STATE_HOME").or_else(|| {
        let home = home().filter(|home| home != "/root");
        home.map(|home| home.join(".local/state"))
    });
    state.map_or_else(
        || PathBuf::from("/var/lib/refit"),
        |folder| folder.join("refit"),
    )
}

fn home() -> Option<PathBuf> {
    folder_of("HOME")
}

/// A folder that a variable names. Empty means unset, and so does a relative path, which would depend on the working folder. For
/// root, a folder of somebody else (`sudo` with their `HOME`) is none.
fn folder_of(variable: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os(variable)?);
    (folder.is_absolute() && !is_strange_to_root(&folder)).then_some(folder)
}

#[cfg(unix)]
fn is_strange_to_root(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    // What is not there yet belongs to the owner of the folder in which it is made.
    let mut existing = folder
        .ancestors()
        .filter_map(|it| std::fs::metadata(it).ok());
    existing.next().is_some_and(|found| found.uid() != 0)
}

#[cfg(not(unix))]
fn is_strange_to_root(_: &Path) -> bool {
    false
}

/// Refuses a file that somebody else could change, or put another one in the place of.
#[cfg(unix)]
pub(super) fn check(path: &Path) -> Result<(), ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::canonicalize(path).map_err(unreadable)?;
    for part in file.ancestors() {
        let found = std::fs::metadata(part).map_err(unreadable)?;
        // Mounted into a container, for example: whoever it belongs to cannot change it from here.
        if is_read_only(part) {
            continue;
        }
        if let Some(problem) = changed_by(&found) {
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

/// Who else can change a file, or what is in a folder.
#[cfg(unix)]
fn changed_by(found: &std::fs::Metadata) -> Option<&'static str> {
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
    // In such a folder nobody moves or removes what belongs to somebody else.
    if is_folder && mode & STICKY != 0 {
        return None;
    }
    if mode & 0o002 != 0 {
        return Some("can be written to by everybody");
    }
    // The group that many systems make for each user has the user's number.
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
            // The sticky bit of a file means nothing.
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

    /// Only root can give a folder away; for others nothing is strange.
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
