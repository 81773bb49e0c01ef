//! Whose login is for which registry.
//!
//! `GHCR_USER` and `GHCR_TOKEN` come first, and only for the registry they are for; then what `docker login` left behind
//! (`config.json`: `auths`, `credHelpers`, `credsStore`); then nothing, which is an anonymous pull. A login is looked up anew
//! for each pull, so a token that was renewed is used at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::diagnostic::Hints;
use crate::secret::{ExposeSecret as _, Login, SecretString};

/// The registry that `GHCR_USER` and `GHCR_TOKEN` are for, unless the configuration names another.
pub const GHCR: &str = "ghcr.io";

/// How long a credential helper may take. One that asks a key chain takes milliseconds; one that waits for a person to unlock
/// it would hang a refresh.
const HELPER_SECONDS_MAX: u64 = 20;

/// Where a login was found, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `GHCR_USER` and `GHCR_TOKEN`
    Environment,
    DockerConfig(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Environment => f.write_str("`GHCR_USER` and `GHCR_TOKEN`"),
            Self::DockerConfig(path) => write!(f, "`{}`", path.display()),
        }
    }
}

/// A login could not be read. None was sent.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("`{variable}` contains {what}")]
    Malformed {
        variable: &'static str,
        what: &'static str,
    },
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
            Self::Malformed { variable, .. } => vec![format!(
                "`{variable}` must be one line of visible characters: check how it was copied, for example `export {variable}=\"$(cat FILE)\"`"
            )],
            Self::Config { .. } => vec!["`docker login` writes it anew".into()],
            Self::HelperTimedOut { .. } | Self::Helper { .. } => {
                vec!["run `docker-credential-NAME list` by hand to see what it says".into()]
            }
        }
    }
}

/// All that logins are taken from.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    environment: Option<EnvironmentLogin>,
    /// `config.json` of the Docker CLI; it need not exist.
    docker_config: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct EnvironmentLogin {
    registry: String,
    login: Login,
}

/// `GHCR_USER` and `GHCR_TOKEN` as they are set.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentVariables {
    pub user: Option<String>,
    pub token: Option<SecretString>,
}

impl EnvironmentVariables {
    pub fn read() -> Self {
        Self {
            user: std::env::var("GHCR_USER").ok(),
            token: std::env::var("GHCR_TOKEN").ok().map(SecretString::from),
        }
    }
}

impl Credentials {
    /// `registry` is the one that the variables are for. Both or none of them count; surrounding white space does not.
    pub fn new(
        variables: &EnvironmentVariables,
        registry: &str,
        docker_config_folder: Option<&Path>,
    ) -> Result<Self, CredentialError> {
        let user = variables
            .user
            .as_deref()
            .map(str::trim)
            .filter(|user| !user.is_empty());
        let token = variables
            .token
            .as_ref()
            .map(|token| token.expose_secret().trim())
            .filter(|token| !token.is_empty());
        let environment = match (user, token) {
            (Some(user), Some(token)) => {
                one_line("GHCR_USER", user)?;
                one_line("GHCR_TOKEN", token)?;
                let login = Login::Password {
                    username: user.to_owned(),
                    password: token.to_owned().into(),
                };
                Some(EnvironmentLogin {
                    registry: registry.to_owned(),
                    login,
                })
            }
            (None, None) => None,
            (user, _) => {
                let (set, missing) = if user.is_some() {
                    ("GHCR_USER", "GHCR_TOKEN")
                } else {
                    ("GHCR_TOKEN", "GHCR_USER")
                };
                tracing::warn!("`{set}` is set without `{missing}`: neither is used");
                None
            }
        };
        Ok(Self {
            environment,
            docker_config: docker_config_folder.map(|folder| folder.join("config.json")),
        })
    }

    /// The login for a registry, and where it was found. `None`: anonymous.
    pub async fn login(&self, registry: &str) -> Result<Option<(Login, Source)>, CredentialError> {
        if let Some(environment) = self
            .environment
            .as_ref()
            .filter(|environment| environment.registry == registry)
        {
            return Ok(Some((environment.login.clone(), Source::Environment)));
        }
        let Some(path) = self.docker_config.clone().filter(|path| path.is_file()) else {
            return Ok(None);
        };

        let (asked_path, server) = (path.clone(), config_key(registry).to_owned());
        // Reads a file and may run a helper program: neither belongs on an async thread.
        let asked = tokio::task::spawn_blocking(move || ask_docker_config(&asked_path, &server));
        let answer = tokio::time::timeout(Duration::from_secs(HELPER_SECONDS_MAX), asked).await;
        let registry = registry.to_owned();
        match answer {
            Err(_) => Err(CredentialError::HelperTimedOut { registry }),
            Ok(Err(join)) => Err(CredentialError::Helper {
                registry,
                problem: join.to_string(),
            }),
            Ok(Ok(found)) => match found {
                Ok(DockerCredential::UsernamePassword(username, password)) => Ok(Some((
                    Login::Password {
                        username,
                        password: password.into(),
                    },
                    Source::DockerConfig(path),
                ))),
                Ok(DockerCredential::IdentityToken(token)) => Ok(Some((
                    Login::IdentityToken(token.into()),
                    Source::DockerConfig(path),
                ))),
                Err(error) => no_login(error, registry, path).map_or(Ok(None), Err),
            },
        }
    }
}

fn ask_docker_config(
    path: &Path,
    server: &str,
) -> Result<DockerCredential, CredentialRetrievalError> {
    let file = std::fs::File::open(path).map_err(|_| CredentialRetrievalError::ConfigReadError)?;
    docker_credential::get_credential_from_reader(std::io::BufReader::new(file), server)
}

/// Docker Hub is filed under an address of its own.
fn config_key(registry: &str) -> &str {
    match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

/// `None` where the error only says that nobody logged in.
fn no_login(
    error: CredentialRetrievalError,
    registry: String,
    path: PathBuf,
) -> Option<CredentialError> {
    use CredentialRetrievalError as E;
    match error {
        E::NoCredentialConfigured | E::ConfigNotFound => None,
        // What every helper says of a server it has no login for.
        E::HelperFailure {
            ref stdout,
            ref stderr,
            ..
        } if [stdout, stderr]
            .iter()
            .any(|said| said.contains("credentials not found")) =>
        {
            None
        }
        E::HelperFailure { helper, stderr, .. } => {
            // Of what a helper printed only the first line of stderr is shown: stdout is where secrets go.
            let said = stderr
                .lines()
                .next()
                .unwrap_or("no message")
                .chars()
                .take(200)
                .collect::<String>();
            Some(CredentialError::Helper {
                registry,
                problem: format!("`{helper}` said: {said}"),
            })
        }
        E::HelperCommunicationError => Some(CredentialError::Helper {
            registry,
            // The library does not say which.
            problem: "it could not be run, or ended before it had read what it was asked".into(),
        }),
        E::MalformedHelperResponse => Some(CredentialError::Helper {
            registry,
            problem: "its answer makes no sense".into(),
        }),
        // An entry without a login, `"ghcr.io": {}`, is what `docker login` leaves for a helper that is gone.
        E::CredentialDecodingError => Some(CredentialError::Config {
            path,
            problem: format!("the login for `{registry}` is malformed"),
        }),
        E::CredentialMismatchError => Some(CredentialError::Config {
            path,
            problem: format!("the login for `{registry}` contradicts itself"),
        }),
        E::ConfigReadError => Some(CredentialError::Config {
            path,
            problem: "it is not readable JSON".into(),
        }),
    }
}

fn one_line(variable: &'static str, value: &str) -> Result<(), CredentialError> {
    let malformed = |what| Err(CredentialError::Malformed { variable, what });
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
            token: Some(token.to_owned().into()),
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
        let credentials = Credentials::new(&variables(" me ", "token\n"), GHCR, None).unwrap();
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
            let credentials = Credentials::new(&variables(user, token), GHCR, None).unwrap();
            assert!(credentials.login(GHCR).await.unwrap().is_none());
        }
    }

    #[test]
    fn a_token_with_a_line_break_is_refused_without_being_shown() {
        let error = Credentials::new(&variables("me", "ghp_secret\nmore"), GHCR, None).unwrap_err();
        assert_eq!(error.to_string(), "`GHCR_TOKEN` contains a line break");
        assert!(!format!("{error:?}").contains("ghp_secret"));
    }

    #[test]
    fn a_token_is_not_printed_by_accident() {
        let credentials = Credentials::new(&variables("me", "ghp_secret"), GHCR, None).unwrap();
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
            Credentials::new(&EnvironmentVariables::default(), GHCR, Some(&folder)).unwrap();

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
