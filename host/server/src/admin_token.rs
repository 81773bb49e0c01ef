//! The admin token that a daemon creates at its first start, and that commands on the same machine read without configuration.
//!
//! The file `token` of the state folder holds it, readable by the daemon's user only. Refit uses it if neither `ADMIN_TOKEN` nor
//! `[serve] token_file` gives a token. This module does not depend on the uses of the token.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use refit_model::diagnostic::Diagnostic;
use refit_model::secret::SecretString;
use refit_storage::atomic_file;
use refit_storage::secret_file::{self, Found, SecretFileError};
use ring::rand::{SecureRandom as _, SystemRandom};

const FILE: &str = "token";
const WHAT: &str = "the admin token";
/// The length of the token, which nobody can guess.
const RANDOM_BYTES: usize = 32;

/// The path of the token file in this state folder.
pub fn path(state_folder: &Path) -> PathBuf {
    state_folder.join(FILE)
}

/// Read the token from the environment or from the configured file.
pub fn load_configured(token_file: Option<&Path>) -> Result<Option<Found>, SecretFileError> {
    secret_file::find("ADMIN_TOKEN", WHAT, token_file)
}

/// Read the daemon's generated token, if there is one in this folder that this user may read.
pub fn load_generated(state_folder: &Path) -> Result<Option<Found>, SecretFileError> {
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

/// Read the generated token, or create one. A file that other users could read is replaced, because its token is not secret.
pub fn load_or_generate(state_folder: &Path) -> Result<Found, Diagnostic> {
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
        tracing::warn!(path = %path.display(), "admin token was readable by other users, generating a new one");
        std::fs::remove_file(&path).map_err(cannot)?;
    }
    if !path.exists() {
        match create(&path, &generate()?) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "generated an admin token, which commands of this user read automatically");
            }
            // Another daemon has created it first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot(error)),
        }
    }
    let found = load_generated(state_folder)?;
    found.ok_or_else(|| cannot(io::ErrorKind::NotFound.into()))
}

/// Create the file atomically: no reader sees half a token, and a second daemon uses the existing one.
fn create(path: &Path, token: &str) -> io::Result<()> {
    let temporary_file = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&temporary_file);
    let result = atomic_file::new_file(&temporary_file)
        .and_then(|mut file| {
            file.write_all(token.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::hard_link(&temporary_file, path));
    let _ = std::fs::remove_file(&temporary_file);
    result
}

fn generate() -> Result<String, Diagnostic> {
    let mut bytes = [0; RANDOM_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Diagnostic::new("the system gives no random bytes for an admin token"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The token for a command that calls a daemon: the configured one, or the token that this machine's daemon generated.
pub fn load_for_command(
    token_file: Option<&Path>,
    state_folder: Option<&Path>,
) -> Result<Option<SecretString>, SecretFileError> {
    if let Some(found) = load_configured(token_file)? {
        return Ok(Some(found.text));
    }
    let found = state_folder.map(load_generated).transpose()?.flatten();
    Ok(found.map(|found| found.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::secret::ExposeSecret as _;

    fn token(folder: &Path) -> String {
        load_or_generate(folder)
            .unwrap()
            .text
            .expose_secret()
            .to_owned()
    }

    #[test]
    fn token_is_generated_once() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("refit");
        let first = token(&folder);
        assert_eq!(first.len(), 64);
        assert_eq!(token(&folder), first);
        let read = load_for_command(None, Some(&folder)).unwrap().unwrap();
        assert_eq!(read.expose_secret(), first);
        assert!(load_generated(state.path()).unwrap().is_none());
        assert!(load_for_command(None, None).unwrap().is_none());
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
