//! Finds the login for a registry.
//!
//! `GHCR_USER` and `GHCR_TOKEN` come first, and only for their registry; then `[[credentials.login]]`; then the logins from
//! `docker login` (`docker_config`); then none, which means an anonymous pull. Refit looks up a login again for each pull, so
//! it uses a renewed file or token at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use refit_model::diagnostic::Hints;
use refit_model::secret::{ExposeSecret as _, Login};
use refit_storage::secret_file::{self, SecretFileError, SecretLocation};

use super::docker_config::{self, HELPER_SECONDS_MAX};

/// The registry that `GHCR_USER` and `GHCR_TOKEN` are for, unless the configuration names another.
pub const GHCR: &str = "ghcr.io";

/// The time limit for a file with a secret. Usually it is read at once; a file on a network drive that is gone would hang a
/// refresh.
const FILE_SECONDS_MAX: u64 = 10;

/// The source of a login, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `GHCR_USER` and `GHCR_TOKEN`
    Environment,
    /// `GHCR_USER` and `GHCR_TOKEN_FILE`
    EnvironmentFile(PathBuf),
    /// `[[credentials.login]]`
    Configured(PathBuf),
    DockerConfig(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Environment => f.write_str("`GHCR_USER` and `GHCR_TOKEN`"),
            Self::EnvironmentFile(path) => {
                write!(f, "`GHCR_USER` and `{}`", path.display())
            }
            Self::Configured(path) => {
                write!(f, "`[[credentials.login]]` and `{}`", path.display())
            }
            Self::DockerConfig(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// Why a login could not be read. No login was sent.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("{origin} contains {what}")]
    Malformed { origin: String, what: &'static str },
    #[error("the login for `{registry}` cannot be had")]
    File {
        registry: String,
        source: SecretFileError,
    },
    #[error("the login for `{registry}` cannot be had: `{}` did not open within {FILE_SECONDS_MAX} s", .path.display())]
    FileTimedOut { registry: String, path: PathBuf },
    #[error("cannot read `{}`: {problem}", .path.display())]
    Config { path: PathBuf, problem: String },
    #[error("the credential helper for `{registry}` did not answer within {HELPER_SECONDS_MAX} s")]
    HelperTimedOut { registry: String },
    #[error("the credential helper for `{registry}` failed: {problem}")]
    Helper { registry: String, problem: String },
}

impl Hints for CredentialError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Malformed { origin, .. } if origin.contains('/') => {
                vec![format!("{origin} must hold one line of visible characters")]
            }
            Self::Malformed { origin, .. } => {
                let variable = origin.trim_matches('`');
                vec![format!(
                    "{origin} must be one line of visible characters: check how it was copied, for example `export {variable}=\"$(cat FILE)\"`"
                )]
            }
            Self::File { source, .. } => source.hints(),
            Self::FileTimedOut { .. } => vec!["is it on a network drive?".into()],
            Self::Config { .. } => vec!["`docker login` writes it anew".into()],
            Self::HelperTimedOut { .. } | Self::Helper { .. } => {
                vec!["run `docker-credential-NAME list` by hand to see what it says".into()]
            }
        }
    }
}

/// All sources of logins.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The first login for a registry counts.
    named: Vec<Named>,
    /// `config.json` of the Docker CLI; it need not exist.
    docker_config: Option<PathBuf>,
}

/// A login for one registry. Refit sends it to no other.
#[derive(Clone, Debug)]
struct Named {
    registry: String,
    /// `None`: the secret is an identity token.
    username: Option<String>,
    secret: SecretLocation,
    source: Source,
}

/// A login of the configuration. Its secret is in a file, and never in the configuration itself.
#[derive(Clone, Debug)]
pub struct FileLogin {
    pub registry: String,
    /// `None`: the file holds an identity token.
    pub username: Option<String>,
    pub file: PathBuf,
}

/// `GHCR_USER` and `GHCR_TOKEN` as they are set.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentVariables {
    pub user: Option<String>,
    pub token: Option<SecretLocation>,
}

impl EnvironmentVariables {
    pub fn read() -> Result<Self, SecretFileError> {
        Ok(Self {
            user: std::env::var("GHCR_USER").ok(),
            token: secret_file::place("GHCR_TOKEN")?,
        })
    }
}

impl Credentials {
    /// Creates the sources. `registry` is the registry of the variables. Both variables must be set, or neither; surrounding
    /// white space does not count. Files are read now, so that a missing file is detected at the start.
    pub fn new(
        variables: &EnvironmentVariables,
        registry: &str,
        logins: &[FileLogin],
        docker_config_folder: Option<&Path>,
    ) -> Result<Self, CredentialError> {
        let mut named: Vec<Named> = from_environment(variables, registry)?.into_iter().collect();
        named.extend(logins.iter().map(|login| Named {
            registry: login.registry.clone(),
            username: login.username.clone(),
            secret: SecretLocation::File(login.file.clone()),
            source: Source::Configured(login.file.clone()),
        }));
        for named in &named {
            if let SecretLocation::File(path) = &named.secret {
                secret_file::warn_of_readers(named.what(), path);
            }
            named.login()?;
        }
        Ok(Self {
            named,
            docker_config: docker_config_folder.map(|folder| folder.join("config.json")),
        })
    }

    /// Returns the login for a registry and its source. `None`: anonymous.
    pub async fn login(&self, registry: &str) -> Result<Option<(Login, Source)>, CredentialError> {
        if let Some(named) = self.named.iter().find(|named| named.registry == registry) {
            let source = named.source.clone();
            return Ok(Some((named.clone().login_in_time().await?, source)));
        }
        let Some(path) = self.docker_config.clone().filter(|path| path.is_file()) else {
            return Ok(None);
        };
        let registry = registry.to_owned();
        match docker_config::login(&path, &registry).await {
            Ok(login) => Ok(login.map(|login| (login, Source::DockerConfig(path)))),
            Err(docker_config::Problem::File(problem)) => {
                Err(CredentialError::Config { path, problem })
            }
            Err(docker_config::Problem::Helper(problem)) => {
                Err(CredentialError::Helper { registry, problem })
            }
            Err(docker_config::Problem::HelperTimedOut) => {
                Err(CredentialError::HelperTimedOut { registry })
            }
        }
    }
}

fn from_environment(
    variables: &EnvironmentVariables,
    registry: &str,
) -> Result<Option<Named>, CredentialError> {
    let user = variables.user.as_deref().map(str::trim);
    match (user.filter(|user| !user.is_empty()), &variables.token) {
        (Some(user), Some(token)) => {
            one_line("`GHCR_USER`", user)?;
            let (secret, source) = match token {
                SecretLocation::Variable(token) => (
                    SecretLocation::Variable(token.expose_secret().trim().into()),
                    Source::Environment,
                ),
                SecretLocation::File(path) => (
                    SecretLocation::File(path.clone()),
                    Source::EnvironmentFile(path.clone()),
                ),
            };
            Ok(Some(Named {
                registry: registry.to_owned(),
                username: Some(user.to_owned()),
                secret,
                source,
            }))
        }
        (None, None) => Ok(None),
        (user, token) => {
            let token = match token {
                Some(SecretLocation::File(_)) => "GHCR_TOKEN_FILE",
                Some(SecretLocation::Variable(_)) | None => "GHCR_TOKEN",
            };
            let (set, missing) = if user.is_some() {
                ("GHCR_USER", token)
            } else {
                (token, "GHCR_USER")
            };
            tracing::warn!("`{set}` is set without `{missing}`: neither is used");
            Ok(None)
        }
    }
}

impl Named {
    fn what(&self) -> &'static str {
        match self.username {
            Some(_) => "the password",
            None => "the identity token",
        }
    }

    /// Reads the present login.
    fn login(&self) -> Result<Login, CredentialError> {
        let secret = match &self.secret {
            SecretLocation::Variable(text) => text.clone(),
            SecretLocation::File(path) => {
                secret_file::read(self.what(), path).map_err(|source| {
                    let registry = self.registry.clone();
                    CredentialError::File { registry, source }
                })?
            }
        };
        match (&self.source, &self.username) {
            (Source::Configured(_), Some(username)) => Ok(Login::Password {
                username: username.clone(),
                // It may have several lines: Google's is a JSON file.
                password: secret,
            }),
            (Source::Configured(path), None) => {
                let token = secret.expose_secret().trim();
                one_line(&format!("`{}`", path.display()), token)?;
                Ok(Login::IdentityToken(token.into()))
            }
            (source, username) => {
                let origin = match source {
                    Source::EnvironmentFile(path) => format!("`{}`", path.display()),
                    _ => "`GHCR_TOKEN`".to_owned(),
                };
                let token = secret.expose_secret().trim();
                one_line(&origin, token)?;
                Ok(Login::Password {
                    username: username.clone().unwrap_or_default(),
                    password: token.into(),
                })
            }
        }
    }

    async fn login_in_time(self) -> Result<Login, CredentialError> {
        let SecretLocation::File(path) = self.secret.clone() else {
            return self.login();
        };
        let late = CredentialError::FileTimedOut {
            registry: self.registry.clone(),
            path,
        };
        let limit = Duration::from_secs(FILE_SECONDS_MAX);
        match tokio::time::timeout(limit, tokio::task::spawn_blocking(move || self.login())).await {
            Ok(Ok(login)) => login,
            Ok(Err(_)) | Err(_) => Err(late),
        }
    }
}

/// Checks that a value has one line. `origin` is for messages.
fn one_line(origin: &str, value: &str) -> Result<(), CredentialError> {
    let malformed = |what| {
        let origin = origin.to_owned();
        Err(CredentialError::Malformed { origin, what })
    };
    if value.chars().any(|c| matches!(c, '\n' | '\r')) {
        return malformed("a line break");
    }
    if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return malformed("white space or control characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(user: &str, token: &str) -> EnvironmentVariables {
        EnvironmentVariables {
            user: Some(user.into()),
            token: (!token.is_empty()).then(|| SecretLocation::Variable(token.into())),
        }
    }

    fn password(login: &Login) -> (&str, &str) {
        match login {
            Login::Password { username, password } => (username, password.expose_secret()),
            Login::IdentityToken(token) => ("", token.expose_secret()),
        }
    }

    #[tokio::test]
    async fn the_variables_are_trimmed_and_only_for_their_registry() {
        let credentials = Credentials::new(&variables(" me ", "token\n"), GHCR, &[], None).unwrap();
        let (login, source) = credentials.login("ghcr.io").await.unwrap().unwrap();
        assert_eq!(password(&login), ("me", "token"));
        assert_eq!(source, Source::Environment);
        for other in [
            "docker.io",
            "ghcr.io.example.com",
            "127.0.0.1:5000",
            "ghcr.io:443",
        ] {
            assert!(
                credentials.login(other).await.unwrap().is_none(),
                "`{other}` must not see the token"
            );
        }
    }

    #[tokio::test]
    async fn one_variable_alone_is_none() {
        for (user, token) in [("me", ""), ("", "token"), (" ", "token")] {
            let credentials = Credentials::new(&variables(user, token), GHCR, &[], None).unwrap();
            assert!(credentials.login(GHCR).await.unwrap().is_none());
        }
    }

    #[test]
    fn a_token_with_a_line_break_is_refused_without_being_shown() {
        let error =
            Credentials::new(&variables("me", "ghp_secret\nmore"), GHCR, &[], None).unwrap_err();
        assert_eq!(error.to_string(), "`GHCR_TOKEN` contains a line break");
        assert!(!format!("{error:?}").contains("ghp_secret"));
    }

    #[test]
    fn a_token_is_not_printed_by_accident() {
        let credentials =
            Credentials::new(&variables("me", "ghp_secret"), GHCR, &[], None).unwrap();
        assert!(!format!("{credentials:?}").contains("ghp_secret"));
    }

    #[tokio::test]
    async fn what_docker_login_left_behind_is_found() {
        let folder = std::env::temp_dir().join(format!("refit-login-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // `me:secret` and an identity token
        let config = r#"{"auths":{"127.0.0.1:5000":{"auth":"bWU6c2VjcmV0"},"https://index.docker.io/v1/":{"auth":"bWU6","identitytoken":"refresh"},"broken.example":{"auth":"%%%"}}}"#;
        std::fs::write(folder.join("config.json"), config).unwrap();
        let credentials =
            Credentials::new(&EnvironmentVariables::default(), GHCR, &[], Some(&folder)).unwrap();

        let (login, _) = credentials.login("127.0.0.1:5000").await.unwrap().unwrap();
        assert_eq!(password(&login), ("me", "secret"));
        let (login, _) = credentials.login("docker.io").await.unwrap().unwrap();
        assert!(matches!(login, Login::IdentityToken(_)));
        assert!(credentials.login("ghcr.io").await.unwrap().is_none());
        assert!(matches!(
            credentials.login("broken.example").await,
            Err(CredentialError::Config { .. })
        ));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
