//! The admin token that a daemon makes at its first start, and that commands on the same machine read by themselves.
//!
//! It is in the file `token` of the state folder, for the user of the daemon alone. It is used if nothing else gives a token:
//! neither `ADMIN_TOKEN` nor `[serve] token_file`. Knows nothing of what the token is good for.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use refit_model::diagnostic::Diagnostic;
use refit_model::secret::SecretString;
use refit_storage::atomic_file;
use refit_storage::secret_file::{self, Found, SecretFileError};
use ring::rand::{SecureRandom as _, SystemRandom};

const FILE: &str = "token";
const WHAT: &str = "the admin token";
/// As many as nobody can guess.
const RANDOM_BYTES: usize = 32;

/// The file in this state folder.
pub fn path(state_folder: &Path) -> PathBuf {
    state_folder.join(FILE)
}

/// The token that the environment or the configuration gives.
pub fn configured(token_file: Option<&Path>) -> Result<Option<Found>, SecretFileError> {
    secret_file::find("ADMIN_TOKEN", WHAT, token_file)
}

/// The daemon's own token, if a daemon has made one here that this user may read.
pub fn made(state_folder: &Path) -> Result<Option<Found>, SecretFileError> {
    let path = path(state_folder);
    match secret_file::read(WHAT, &path) {
        Ok(text) => Ok(Some(Found {
            text,
            origin: format!("`{}`", path.display()),
        })),
        Err(SecretFileError::Unreadable { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The daemon's own token, made if there is none. A file that others could read is replaced: the token in it is no secret.
pub fn find_or_make(state_folder: &Path) -> Result<Found, Diagnostic> {
    let path = path(state_folder);
    let cannot = |error: io::Error| {
        Diagnostic::new(format!("cannot make the admin token `{}`", path.display()))
            .because(error.to_string())
            .hint(
                "set `ADMIN_TOKEN` or `[serve] token_file`, or let Refit write to its `state_dir`",
            )
    };
    atomic_file::folder(state_folder).map_err(cannot)?;
    if path.exists() && !atomic_file::is_private(&path).map_err(cannot)? {
        tracing::warn!(path = %path.display(), "the admin token could be read by others: a new one is made");
        std::fs::remove_file(&path).map_err(cannot)?;
    }
    if !path.exists() {
        match make(&path, &random()?) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "an admin token was made; commands of this user read it by themselves");
            }
            // Another daemon was sooner.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot(error)),
        }
    }
    let found = made(state_folder)?;
    found.ok_or_else(|| cannot(io::ErrorKind::NotFound.into()))
}

/// Nobody sees half a token, and whoever comes second takes what is there.
fn make(path: &Path, token: &str) -> io::Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&beside);
    let made = atomic_file::new_file(&beside)
        .and_then(|mut file| {
            file.write_all(token.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::hard_link(&beside, path));
    let _ = std::fs::remove_file(&beside);
    made
}

fn random() -> Result<String, Diagnostic> {
    let mut bytes = [0; RANDOM_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Diagnostic::new("the system gives no random bytes for an admin token"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// For a command that asks a daemon: the configured token, or the one that the daemon of this machine made.
pub fn for_command(
    token_file: Option<&Path>,
    state_folder: Option<&Path>,
) -> Result<Option<SecretString>, SecretFileError> {
    if let Some(found) = configured(token_file)? {
        return Ok(Some(found.text));
    }
    let made = state_folder.map(made).transpose()?.flatten();
    Ok(made.map(|found| found.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::secret::ExposeSecret as _;

    fn token(folder: &Path) -> String {
        find_or_make(folder)
            .unwrap()
            .text
            .expose_secret()
            .to_owned()
    }

    #[test]
    fn token_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("refit");
        let first = token(&folder);
        assert_eq!(first.len(), 64);
        assert_eq!(token(&folder), first);
        let read = for_command(None, Some(&folder)).unwrap().unwrap();
        assert_eq!(read.expose_secret(), first);
        assert!(made(state.path()).unwrap().is_none());
        assert!(for_command(None, None).unwrap().is_none());
    }

    #[cfg(unix)]
    #[test]
    fn token_that_others_can_read_is_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let first = token(state.path());
        let path = path(state.path());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(token(state.path()), first);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
