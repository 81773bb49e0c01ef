//! Reads secrets: from a variable, from the file that the variable's `_FILE` names, or from a file of the configuration.
//!
//! As in Docker's images, `GHCR_TOKEN_FILE` names a file with the value for `GHCR_TOKEN`. Refit reads files again each time, so
//! it uses a renewed file at once. This module does not know what the secrets are for.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use refit_model::diagnostic::Hints;
use refit_model::secret::{ExposeSecret as _, SecretString};

/// The largest accepted file. The longest known secrets are keys of Google service accounts, of 3 KB, and tokens of a few KB. A
/// longer file is the wrong one.
const BYTES_MAX: u64 = 64 * 1024;

/// The folder in which Docker and Kubernetes put secrets, readable by all in a container that has one user.
const MOUNTED: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

/// A secret and its origin.
#[derive(Clone, Debug)]
pub struct Found {
    pub text: SecretString,
    /// `` `GHCR_TOKEN` `` or a path, for messages.
    pub origin: String,
}

/// The place of a secret in the environment.
#[derive(Clone, Debug)]
pub enum SecretLocation {
    Variable(SecretString),
    File(PathBuf),
}

/// Why a secret is unavailable. Names the place, and never the content.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("`{name}` and `{name}_FILE` are both set")]
    Both { name: &'static str },
    #[error("cannot read {what} from `{}`", .path.display())]
    Unreadable {
        what: String,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot use {what} from `{}`: {problem}", .path.display())]
    Unusable {
        what: String,
        path: PathBuf,
        problem: &'static str,
    },
}

impl Hints for SecretFileError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Both { name } => vec![format!("unset `{name}` where the file is to be used")],
            Self::Unreadable { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    vec!["the user that Refit runs as must be able to read it".into()]
                }
                std::io::ErrorKind::NotFound => vec![
                    "in a container it must be mounted; a path is seen from where Refit runs"
                        .into(),
                ],
                _ => vec![],
            },
            Self::Unusable { .. } => vec!["it must hold the secret and nothing else".into()],
        }
    }
}

/// Finds a secret that may be in a variable, or in a file that the variable with `_FILE` after its name points to. Blank
/// variables do not count.
pub fn place(name: &'static str) -> Result<Option<SecretLocation>, SecretFileError> {
    let read = |name: &str| std::env::var(name).ok().filter(|it| !it.trim().is_empty());
    choose_location(name, read(name), read(&format!("{name}_FILE")))
}

fn choose_location(
    name: &'static str,
    variable: Option<String>,
    file: Option<String>,
) -> Result<Option<SecretLocation>, SecretFileError> {
    match (variable, file) {
        (Some(_), Some(_)) => Err(SecretFileError::Both { name }),
        (Some(text), None) => Ok(Some(SecretLocation::Variable(text.into()))),
        (None, Some(path)) => Ok(Some(SecretLocation::File(path.trim().into()))),
        (None, None) => Ok(None),
    }
}

/// Reads a secret from the variable, from the file that the variable with `_FILE` after its name points to, or from the file of
/// the configuration, in this order. `what` is for messages: `the admin token`.
pub fn find(
    name: &'static str,
    what: &str,
    configured: Option<&Path>,
) -> Result<Option<Found>, SecretFileError> {
    let file = match place(name)? {
        Some(SecretLocation::Variable(text)) => {
            let origin = format!("`{name}`");
            return Ok(Some(Found { text, origin }));
        }
        Some(SecretLocation::File(path)) => Some(path),
        None => configured.map(Path::to_owned),
    };
    file.map(|path| at(what, &path)).transpose()
}

/// Reads a secret file at the start of a program.
pub fn at(what: &str, path: &Path) -> Result<Found, SecretFileError> {
    warn_of_readers(what, path);
    let origin = format!("`{}`", path.display());
    read(what, path).map(|text| Found { text, origin })
}

/// Reads a secret file, without its last line break.
pub fn read(what: &str, path: &Path) -> Result<SecretString, SecretFileError> {
    let unreadable = |source| SecretFileError::Unreadable {
        what: what.to_owned(),
        path: path.to_owned(),
        source,
    };
    let unusable = |problem| {
        Err(SecretFileError::Unusable {
            what: what.to_owned(),
            path: path.to_owned(),
            problem,
        })
    };
    // Check this before the open: opening a pipe may block forever.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return unusable("it is no file");
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return unusable("it is longer than 64 KiB");
    }
    let Ok(text) = String::from_utf8(bytes).map(SecretString::from) else {
        return unusable("it is not text");
    };
    let trimmed = text.expose_secret().trim_end_matches(['\r', '\n']);
    if trimmed.trim().is_empty() {
        return unusable("it is empty");
    }
    Ok(SecretString::from(trimmed))
}

/// Warns if other users can read the file. Call it once, at the start of a program.
pub fn warn_of_readers(what: &str, path: &Path) {
    if others_may_read(path) {
        let file = path.display();
        tracing::warn!(
            "{what} in `{file}` can be read by all users of this machine: `chmod 600 {file}`"
        );
    }
}

#[cfg(unix)]
fn others_may_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    const BY_OTHERS: u32 = 0o004;
    !MOUNTED.iter().any(|folder| path.starts_with(folder))
        && std::fs::metadata(path).is_ok_and(|it| it.permissions().mode() & BY_OTHERS != 0)
}

#[cfg(not(unix))]
fn others_may_read(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("refit-secret-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn only_one_of_two_variables_may_be_set() {
        let some = |text: &str| Some(text.to_owned());
        assert!(matches!(choose_location("X", None, None), Ok(None)));
        assert!(matches!(
            choose_location("X", some("secret"), None),
            Ok(Some(SecretLocation::Variable(_)))
        ));
        let Ok(Some(SecretLocation::File(path))) =
            choose_location("X", None, some(" /run/secrets/x\n"))
        else {
            panic!("it is a file")
        };
        assert_eq!(path, Path::new("/run/secrets/x"));
        let error = choose_location("X", some("secret"), some("/run/secrets/x")).unwrap_err();
        assert_eq!(error.to_string(), "`X` and `X_FILE` are both set");
        assert!(!format!("{error:?}").contains("secret"));
    }

    #[test]
    fn invalid_secret_is_refused_and_not_shown() {
        let folder = folder("refused");
        let file = |name: &str, content: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let long = "canary ".repeat(10_000);
        for (path, problem) in [
            (file("empty", b""), "it is empty"),
            (file("blank", b" \n\t\n"), "it is empty"),
            (file("long", long.as_bytes()), "it is longer than 64 KiB"),
            (file("bytes", b"canary\xff\xfe"), "it is not text"),
            (folder.clone(), "it is no file"),
        ] {
            let error = read("the token", &path).unwrap_err();
            let path = path.display();
            assert_eq!(
                error.to_string(),
                format!("cannot use the token from `{path}`: {problem}")
            );
            assert!(!format!("{error:?}").contains("canary"));
        }
        let error = read("the token", &folder.join("absent")).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the token from"));
        assert!(error.hints()[0].contains("mounted"), "{error:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_final_line_break_is_removed() {
        let folder = folder("taken");
        for (content, secret) in [("secret\r\n", "secret"), (" a b \nc\n\n", " a b \nc")] {
            let path = folder.join("secret");
            std::fs::write(&path, content).unwrap();
            assert_eq!(read("it", &path).unwrap().expose_secret(), secret);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn readable_file_is_reported_except_docker_mounts() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = folder("readers");
        let path = folder.join("secret");
        std::fs::write(&path, "secret").unwrap();
        for (mode, told) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(others_may_read(&path), told, "{mode:o}");
        }
        assert!(!others_may_read(Path::new("/run/secrets/absent")));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
