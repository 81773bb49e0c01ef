//! Secrets from outside: a variable, the file that the variable's `_FILE` names, or a file of the configuration.
//!
//! As Docker's images do it, `GHCR_TOKEN_FILE` names a file with what `GHCR_TOKEN` would hold. Files are read anew each time, so
//! that one that was renewed is used at once. Knows nothing of what the secrets are for.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use refit_model::diagnostic::Hints;
use refit_model::secret::{ExposeSecret as _, SecretString};

/// The longest secrets known are keys of Google's service accounts, of 3 KB, and tokens of a few KB. A file that is longer is
/// another one than was meant.
const BYTES_MAX: u64 = 64 * 1024;

/// Docker and Kubernetes put secrets there, readable by all in a container that has one user.
const MOUNTED: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

/// A secret, and what is said of where it came from.
#[derive(Clone, Debug)]
pub struct Found {
    pub text: SecretString,
    /// `` `GHCR_TOKEN` `` or a path, for people.
    pub origin: String,
}

/// Where the environment has a secret.
#[derive(Clone, Debug)]
pub enum SecretLocation {
    Variable(SecretString),
    File(PathBuf),
}

/// A secret that cannot be had. Says where it was looked for, and nothing of what was there.
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

/// Where a secret is that may be in a variable, or in a file that the variable with `_FILE` behind it names. Blank ones do not
/// count.
pub fn place(name: &'static str) -> Result<Option<SecretLocation>, SecretFileError> {
    let read = |name: &str| std::env::var(name).ok().filter(|it| !it.trim().is_empty());
    chosen(name, read(name), read(&format!("{name}_FILE")))
}

fn chosen(
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

/// The variable, the file that the variable with `_FILE` behind it names, then the file of the configuration. `what` is for
/// people: `the admin token`.
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

/// What is in a file, for a program that starts.
pub fn at(what: &str, path: &Path) -> Result<Found, SecretFileError> {
    warn_of_readers(what, path);
    let origin = format!("`{}`", path.display());
    read(what, path).map(|text| Found { text, origin })
}

/// What is in a file, without the end of its last line.
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
    // Before it is opened: to open a pipe may take for ever.
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

/// Once, where a program starts.
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
    fn one_of_the_two_variables_or_none() {
        let some = |text: &str| Some(text.to_owned());
        assert!(matches!(chosen("X", None, None), Ok(None)));
        assert!(matches!(
            chosen("X", some("secret"), None),
            Ok(Some(SecretLocation::Variable(_)))
        ));
        let Ok(Some(SecretLocation::File(path))) = chosen("X", None, some(" /run/secrets/x\n"))
        else {
            panic!("it is a file")
        };
        assert_eq!(path, Path::new("/run/secrets/x"));
        let error = chosen("X", some("secret"), some("/run/secrets/x")).unwrap_err();
        assert_eq!(error.to_string(), "`X` and `X_FILE` are both set");
        assert!(!format!("{error:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_without_being_shown() {
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
    fn the_end_of_the_line_is_no_part_of_it_and_what_is_within_is() {
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
    fn a_file_for_all_is_told_of_and_what_docker_mounts_is_not() {
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
