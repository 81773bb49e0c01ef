//! `[credentials]`: logins at registries. Types only; secrets are in separate files, which this section names.

use std::collections::BTreeSet;
use std::path::PathBuf;

use refit_registry::credentials::{FileLogin, GHCR};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::hooks::{is_registry, no_registry};

/// Each is a file that is read at the start. No platform pulls from more registries.
const LOGINS_MAX: usize = 64;

/// Logins at registries.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialsConfig {
    /// The registry that `GHCR_USER` and `GHCR_TOKEN` (or `GHCR_TOKEN_FILE`) are for. They are sent nowhere else.
    pub registry: String,
    /// Logins of files, one for each registry, 64 at most.
    #[schemars(length(max = LOGINS_MAX))]
    pub login: Vec<LoginConfig>,
}

/// A login at one registry, sent to no other. Goes over what `docker login` left behind.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginConfig {
    /// As images name it: `registry.example:5000`, `docker.io`.
    pub registry: String,
    /// Who logs in; not with `identity_token_file`.
    #[serde(default)]
    pub username: Option<String>,
    /// File with the password or access token. Read anew for each pull, so that one that was renewed is used at once.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// File with an identity token, as `docker login` gets them from some registries, in place of a password.
    #[serde(default)]
    pub identity_token_file: Option<PathBuf>,
}

impl Default for CredentialsConfig {
    fn default() -> Self {
        Self {
            registry: GHCR.to_owned(),
            login: vec![],
        }
    }
}

impl CredentialsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        if self.login.len() > LOGINS_MAX {
            let problem = format!(
                "{} times there, and may be {LOGINS_MAX} at most",
                self.login.len()
            );
            return wrong("credentials.login", problem);
        }
        let mut registries = BTreeSet::new();
        for login in &self.login {
            let registry = &login.registry;
            if !is_registry(registry) {
                return Err(no_registry("credentials.login.registry", registry));
            }
            if !registries.insert(registry) {
                return wrong("credentials.login.registry", format!("`{registry}` twice"));
            }
            let username = login.username.as_deref().unwrap_or_default();
            match (&login.password_file, &login.identity_token_file) {
                (None, None) => {
                    let problem = format!("missing for `{registry}`");
                    return wrong("credentials.login.password_file", problem);
                }
                (Some(_), Some(_)) => {
                    let problem = format!("set for `{registry}`, and `identity_token_file` too");
                    return wrong("credentials.login.password_file", problem);
                }
                (Some(_), None) if username.is_empty() => {
                    let problem = format!("missing for `{registry}`");
                    return wrong("credentials.login.username", problem);
                }
                // HTTP Basic separates the two by a colon.
                (Some(_), None) if username.contains(|c: char| c == ':' || c.is_control()) => {
                    let problem = format!("no name that could be sent, for `{registry}`");
                    return wrong("credentials.login.username", problem);
                }
                (None, Some(_)) if login.username.is_some() => {
                    let problem =
                        format!("set for `{registry}`, and an identity token says who it is");
                    return wrong("credentials.login.username", problem);
                }
                (Some(_), None) | (None, Some(_)) => {}
            }
        }
        Ok(())
    }

    /// The logins for [`refit_registry::credentials::Credentials::new`]. A checked login has exactly one file.
    pub fn logins(&self) -> Vec<FileLogin> {
        let login = |login: &LoginConfig| {
            let file = login.password_file.as_ref();
            Some(FileLogin {
                registry: login.registry.clone(),
                username: login.username.clone(),
                file: file.or(login.identity_token_file.as_ref())?.clone(),
            })
        };
        self.login.iter().filter_map(login).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(login: &str) -> Option<String> {
        let config: CredentialsConfig = figment::Figment::from(
            <figment::providers::Toml as figment::providers::Format>::string(login),
        )
        .extract()
        .unwrap();
        config.check().err().map(|error| error.to_string())
    }

    #[test]
    fn a_login_is_a_name_and_a_file_or_an_identity_token() {
        let good = r#"
            login = [
                { registry = "a.example", username = "me", password_file = "a" },
                { registry = "docker.io", identity_token_file = "b" },
            ]"#;
        assert_eq!(problem(good), None);
        for (login, said) in [
            (
                r#"registry = "a.example""#,
                "`credentials.login.password_file` in the configuration is missing",
            ),
            (
                r#"registry = "a.example", password_file = "a""#,
                "`credentials.login.username` in the configuration is missing",
            ),
            (
                r#"registry = "a.example", username = "", password_file = "a""#,
                "username` in the configuration is missing",
            ),
            (
                r#"registry = "a.example", username = "a:b", password_file = "a""#,
                "no name that could be sent",
            ),
            (
                r#"registry = "a.example", username = "me", identity_token_file = "a""#,
                "says who it is",
            ),
            (
                r#"registry = "a.example", username = "me", password_file = "a", identity_token_file = "a""#,
                "identity_token_file` too",
            ),
            (
                r#"registry = "https://a.example", username = "me", password_file = "a""#,
                "no registry",
            ),
            (
                r#"registry = "a.example", username = "me", password_file = "a" }, { registry = "a.example", identity_token_file = "b""#,
                "twice",
            ),
        ] {
            let told = problem(&format!("login = [{{ {login} }}]")).unwrap_or_default();
            assert!(told.contains(said), "{login}: {told}");
        }
    }
}
