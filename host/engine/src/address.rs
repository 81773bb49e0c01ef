//! Chooses the engine: from the flag or the configuration, `DOCKER_HOST`, the Docker CLI's context, or the default socket, in
//! this order.
//!
//! The Docker CLI uses the same order, so `refit` on a laptop talks to the engine that `docker` talks to. This module knows no
//! engine client.

use std::path::PathBuf;

use refit_model::diagnostic::Hints;
use sha2::{Digest as _, Sha256};

use super::ssh::Destination;
use super::tls::TlsFiles;

/// The address of an engine, how to reach it, and where the address comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineAddress {
    /// `unix:///var/run/docker.sock`, `tcp://host:2376`, `ssh://user@host`, …
    pub url: String,
    pub way: Way,
    /// For messages: `DOCKER_HOST`, `context \`desktop\``, …
    pub chosen_by: String,
}

/// How Refit reaches an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A socket or a named pipe on this machine.
    Local,
    /// Unencrypted TCP: Refit trusts everything on the route.
    Plain,
    Tls(TlsFiles),
    Ssh(Destination),
}

#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("cannot use `{url}` (from {chosen_by}) as an engine address")]
    Scheme { url: String, chosen_by: String },
    #[error("cannot use `{url}` (from {chosen_by}) as an engine address: {problem}")]
    Ssh {
        url: String,
        chosen_by: String,
        problem: &'static str,
    },
    #[error(
        "cannot use `{url}` (from {chosen_by}) as an engine address: it has a login in it, which no engine takes"
    )]
    Login { url: String, chosen_by: String },
    #[error("cannot find the Docker context `{name}` (from {chosen_by})")]
    Context {
        name: String,
        chosen_by: String,
        source: std::io::Error,
    },
    #[error("cannot read the Docker context `{name}` at `{}`", .path.display())]
    Malformed {
        name: String,
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Hints for AddressError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Scheme { .. } | Self::Login { .. } => vec!["use `unix:///path/to.sock`, `tcp://host:port` or `ssh://user@host`".into()],
            Self::Ssh { .. } => vec![
                "it looks like `ssh://user@host:22`, and may end in the path of the engine's socket over there; whatever else is to be said belongs into `~/.ssh/config`".into(),
            ],
            Self::Context { .. } | Self::Malformed { .. } => {
                vec!["`docker context ls` shows the contexts; `--engine` or `DOCKER_HOST` goes round them".into()]
            }
        }
    }
}

/// The environment that the choice depends on, read once.
#[derive(Clone, Debug, Default)]
pub struct EngineEnvironment {
    pub docker_host: Option<String>,
    pub docker_context: Option<String>,
    pub docker_tls_verify: bool,
    pub docker_cert_path: Option<PathBuf>,
    /// `DOCKER_CONFIG`, or `.docker` in the home folder.
    pub config_folder: Option<PathBuf>,
}

impl EngineEnvironment {
    pub fn read() -> Self {
        let text = |name| {
            std::env::var(name)
                .ok()
                .map(|value: String| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let folder = |name| text(name).map(PathBuf::from);
        Self {
            docker_host: text("DOCKER_HOST"),
            docker_context: text("DOCKER_CONTEXT"),
            docker_tls_verify: text("DOCKER_TLS_VERIFY").is_some(),
            docker_cert_path: folder("DOCKER_CERT_PATH"),
            config_folder: folder("DOCKER_CONFIG")
                .or_else(|| folder("HOME").map(|home| home.join(".docker"))),
        }
    }
}

const DEFAULT_URL: &str = "unix:///var/run/docker.sock";

/// Chooses the engine. `configured` is `--engine` or `engine` of the configuration.
pub fn choose(
    configured: Option<&str>,
    environment: &EngineEnvironment,
) -> Result<EngineAddress, AddressError> {
    if let Some(url) = configured {
        return parse_address(url, "`engine`", environment);
    }
    if let Some(url) = &environment.docker_host {
        return parse_address(url, "`DOCKER_HOST`", environment);
    }
    let (name, chosen_by) = match &environment.docker_context {
        Some(name) => (Some(name.clone()), "`DOCKER_CONTEXT`"),
        None => (
            current_context(environment),
            "the Docker CLI's current context",
        ),
    };
    match name.as_deref() {
        None | Some("default") => parse_address(DEFAULT_URL, "the default", environment),
        Some(name) => from_context(name, chosen_by, environment),
    }
}

fn parse_address(
    url: &str,
    chosen_by: &str,
    environment: &EngineEnvironment,
) -> Result<EngineAddress, AddressError> {
    let chosen_by = chosen_by.to_owned();
    let tls_files = || {
        let folder = environment
            .docker_cert_path
            .clone()
            .or_else(|| environment.config_folder.clone())
            .unwrap_or_default();
        TlsFiles::in_folder(&folder)
    };
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    if matches!(scheme, "tcp" | "http" | "https") && rest.contains('@') {
        let url = hide_password(url);
        return Err(AddressError::Login { url, chosen_by });
    }
    // The Go client uses TLS if either variable is set, and skips verification if only the path is. Refit always verifies.
    let wants_tls = environment.docker_tls_verify || environment.docker_cert_path.is_some();
    let way = match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("unix" | "npipe") => Way::Local,
        Some("tcp") if wants_tls => Way::Tls(tls_files()),
        Some("tcp" | "http") => Way::Plain,
        Some("https") => Way::Tls(tls_files()),
        Some("ssh") => match Destination::parse(url) {
            Ok(destination) => Way::Ssh(destination),
            Err(problem) => {
                return Err(AddressError::Ssh {
                    url: hide_password(url),
                    chosen_by,
                    problem,
                });
            }
        },
        _ => {
            return Err(AddressError::Scheme {
                url: hide_password(url),
                chosen_by,
            });
        }
    };
    Ok(EngineAddress {
        url: url.to_owned(),
        way,
        chosen_by,
    })
}

/// Hides the password of an address, so that a message can show it. A password may be the reason for the refusal.
fn hide_password(url: &str) -> String {
    let shown = url.split_once("://").and_then(|(scheme, rest)| {
        let (login, rest) = rest.rsplit_once('@')?;
        let (user, _) = login.split_once(':')?;
        Some(format!("{scheme}://{user}:…@{rest}"))
    });
    shown.unwrap_or_else(|| url.to_owned())
}

fn current_context(environment: &EngineEnvironment) -> Option<String> {
    let path = environment.config_folder.as_ref()?.join("config.json");
    let text = std::fs::read_to_string(path).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(config.get("currentContext")?.as_str()?.to_owned()).filter(|name| !name.is_empty())
}

/// Loads a context. The CLI keeps a context's data in a folder named after the SHA-256 of its name.
fn from_context(
    name: &str,
    chosen_by: &str,
    environment: &EngineEnvironment,
) -> Result<EngineAddress, AddressError> {
    let contexts = environment
        .config_folder
        .clone()
        .unwrap_or_default()
        .join("contexts");
    let folder = Sha256::digest(name.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    let path = contexts.join("meta").join(&folder).join("meta.json");
    let text = std::fs::read_to_string(&path).map_err(|source| AddressError::Context {
        name: name.to_owned(),
        chosen_by: chosen_by.to_owned(),
        source,
    })?;

    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Meta {
        endpoints: Endpoints,
    }
    #[derive(serde::Deserialize)]
    struct Endpoints {
        docker: Endpoint,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Endpoint {
        host: String,
    }
    let meta: Meta = serde_json::from_str(&text).map_err(|source| AddressError::Malformed {
        name: name.to_owned(),
        path: path.clone(),
        source,
    })?;

    let url = meta.endpoints.docker.host;
    let mut address = parse_address(
        &url,
        &format!("context `{name}`"),
        &EngineEnvironment::default(),
    )?;
    let tls = contexts.join("tls").join(&folder).join("docker");
    if address.way == Way::Plain && tls.is_dir() {
        address.way = Way::Tls(TlsFiles::from_context(&tls));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn environment() -> EngineEnvironment {
        EngineEnvironment {
            config_folder: Some("/nonexistent".into()),
            ..EngineEnvironment::default()
        }
    }

    #[test]
    fn the_nearest_word_wins() {
        let mut environment = environment();
        assert_eq!(choose(None, &environment).unwrap().url, DEFAULT_URL);
        environment.docker_host = Some("unix:///from/env.sock".into());
        assert_eq!(
            choose(None, &environment).unwrap().url,
            "unix:///from/env.sock"
        );
        assert_eq!(
            choose(Some("unix:///from/flag.sock"), &environment)
                .unwrap()
                .url,
            "unix:///from/flag.sock"
        );
    }

    #[test]
    fn either_tls_variable_means_tls_and_a_socket_never_does() {
        let mut environment = environment();
        environment.docker_host = Some("tcp://engine:2376".into());
        assert_eq!(choose(None, &environment).unwrap().way, Way::Plain);
        environment.docker_cert_path = Some("/certs".into());
        assert_eq!(
            choose(None, &environment).unwrap().way,
            Way::Tls(TlsFiles::in_folder(Path::new("/certs")))
        );
        environment.docker_host = Some("unix:///run/docker.sock".into());
        assert_eq!(choose(None, &environment).unwrap().way, Way::Local);
    }

    #[test]
    fn the_current_context_of_the_docker_cli_is_honoured() {
        let folder = std::env::temp_dir().join(format!("refit-context-{}", std::process::id()));
        let id = Sha256::digest(b"remote")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        let meta = folder.join("contexts/meta").join(&id);
        let tls = folder.join("contexts/tls").join(&id).join("docker");
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::create_dir_all(&tls).unwrap();
        std::fs::write(
            folder.join("config.json"),
            r#"{"auths":{},"currentContext":"remote"}"#,
        )
        .unwrap();
        std::fs::write(meta.join("meta.json"), r#"{"Name":"remote","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://far:2376","SkipTLSVerify":false}}}"#).unwrap();
        let mut environment = EngineEnvironment {
            config_folder: Some(folder.clone()),
            ..EngineEnvironment::default()
        };

        let address = choose(None, &environment).unwrap();
        assert_eq!(
            (address.url.as_str(), address.chosen_by.as_str()),
            ("tcp://far:2376", "context `remote`")
        );
        assert_eq!(address.way, Way::Tls(TlsFiles::from_context(&tls)));

        environment.docker_context = Some("absent".into());
        assert!(matches!(
            choose(None, &environment),
            Err(AddressError::Context { .. })
        ));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_address_we_cannot_speak_to_says_so() {
        for url in [
            "/var/run/docker.sock",
            "ftp://host",
            "ssh://",
            "ssh://host:x",
        ] {
            let error = choose(Some(url), &environment()).unwrap_err();
            assert!(error.hints()[0].contains("ssh://user@host"), "{error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_shown() {
        for url in [
            "ssh://me:secret@host",
            "ftp://me:secret@host/x",
            "tcp://me:secret@host:2376",
        ] {
            let error = choose(Some(url), &environment()).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
