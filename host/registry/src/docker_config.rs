//! Reads logins from the Docker CLI's `config.json`, and from the helper programs that it names.
//!
//! The order is the CLI's: the registry's helper (`credHelpers`), the helper for all (`credsStore`), then the file itself
//! (`auths`). A helper's stdout is always secret, and Refit reports only the first line of its stderr.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use refit_model::secret::{Login, SecretString};
use refit_storage::child_environment::Child;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// The largest accepted file. With logins for a hundred registries it has 20 KB.
const BYTES_MAX: u64 = 4 << 20;
/// The largest accepted output of a helper: a login, or an error. The longest known logins hold a token of a few KB.
const HELPER_BYTES_MAX: u64 = 64 << 10;
/// The time limit of a helper. With a key chain it takes milliseconds, with a cloud a few seconds; a helper that waits for a
/// user to unlock it would hang a refresh.
pub(super) const HELPER_SECONDS_MAX: u64 = 20;
/// The longest quote of a helper's stderr.
const SAID_CHARACTERS_MAX: usize = 200;

/// The address under which the file stores Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";

/// The user name with which a helper marks an identity token.
const IDENTITY: &str = "<token>";

/// The encoding of `user:password` in the file. It is padded, but other programs omit the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why an expected login is missing.
#[derive(Debug)]
pub(super) enum Problem {
    File(String),
    Helper(String),
    HelperTimedOut,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    auths: Option<BTreeMap<String, Entry>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

/// `"ghcr.io": {}` means that a helper has the login.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<SecretText>,
    username: Option<String>,
    password: Option<SecretText>,
    identitytoken: Option<SecretText>,
}

/// A helper's response to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: SecretText,
}

/// It has no `Debug`, which could show the secret.
#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(String);

/// Returns the login for a registry from the present file. `None`: no login is stored.
pub(super) async fn login(path: &Path, registry: &str) -> Result<Option<Login>, Problem> {
    let server = match registry {
        "docker.io" => HUB,
        other => other,
    };
    let file = path.to_owned();
    let document = tokio::task::spawn_blocking(move || read(&file))
        .await
        .map_err(|error| Problem::File(error.to_string()))??;
    let helper = document
        .cred_helpers
        .as_ref()
        .and_then(|helpers| helpers.get(server))
        .filter(|helper| !helper.is_empty());
    if let Some(helper) = helper {
        return ask_helper(helper, server).await;
    }
    if let Some(store) = document.creds_store.as_deref().filter(|it| !it.is_empty())
        && let Some(login) = ask_helper(store, server).await?
    {
        return Ok(Some(login));
    }
    match document
        .auths
        .as_ref()
        .and_then(|auths| find_entry(auths, server))
    {
        Some(entry) => login_from_entry(entry)
            .map_err(|what| Problem::File(format!("the login for `{registry}` {what}"))),
        None => Ok(None),
    }
}

fn read(path: &Path) -> Result<Document, Problem> {
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut text))
        .map_err(|error| Problem::File(error.to_string()))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(Problem::File("it is longer than 4 MiB".into()));
    }
    // The parser's error would quote the content.
    serde_json::from_slice(&text).map_err(|_| Problem::File("it is not readable JSON".into()))
}

/// Finds an entry by the registry's name, or by another name for the same host, as older versions and users wrote it.
fn find_entry<'a>(auths: &'a BTreeMap<String, Entry>, server: &str) -> Option<&'a Entry> {
    auths.get(server).or_else(|| {
        let mut others = auths.iter();
        let (_, entry) = others.find(|(key, _)| host(key) == host(server))?;
        Some(entry)
    })
}

fn host(address: &str) -> &str {
    let rest = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    match rest.split('/').next().unwrap_or(rest) {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        other => other,
    }
}

fn login_from_entry(entry: &Entry) -> Result<Option<Login>, &'static str> {
    let filled = |text: &Option<SecretText>| {
        let text = text.as_ref().map(|text| text.0.clone());
        text.filter(|text| !text.is_empty())
    };
    if let Some(token) = filled(&entry.identitytoken) {
        return Ok(Some(Login::IdentityToken(token.into())));
    }
    if let Some(auth) = filled(&entry.auth) {
        let text = BASE64.decode(auth.trim()).map_err(|_| "is no base64")?;
        let text = String::from_utf8(text).map_err(|_| "is not text")?;
        let (username, password) = text.split_once(':').ok_or("has no password")?;
        return Ok(Some(Login::Password {
            username: username.to_owned(),
            // Old versions of Docker padded it.
            password: password.trim_matches('\0').into(),
        }));
    }
    match (&entry.username, filled(&entry.password)) {
        (Some(username), Some(password)) if !username.is_empty() => Ok(Some(Login::Password {
            username: username.clone(),
            password: password.into(),
        })),
        _ => Ok(None),
    }
}

/// Runs a helper. It ends with this call: if it takes too long, it is killed.
async fn ask_helper(helper: &str, server: &str) -> Result<Option<Login>, Problem> {
    let program = format!("docker-credential-{helper}");
    let limit = Duration::from_secs(HELPER_SECONDS_MAX);
    match tokio::time::timeout(limit, run_helper(&program, server)).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::HelperTimedOut),
    }
}

async fn run_helper(program: &str, server: &str) -> Result<Option<Login>, Problem> {
    let cannot =
        |what: &str, error: std::io::Error| Problem::Helper(format!("`{program}` {what}: {error}"));
    let mut child = Command::new(program)
        .arg("get")
        .env_clear()
        .envs(Child::CredentialHelper.environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| cannot("could not be run", error))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // A helper with a single login need not read which one is requested.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.map_err(|error| cannot("could not be asked", error))?,
        }
    }
    let (mut answer, mut said) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reading = async {
        let answered = async {
            match stdout {
                Some(stdout) => stdout.take(HELPER_BYTES_MAX).read_to_end(&mut answer).await,
                None => Ok(0),
            }
        };
        let told = async {
            match stderr {
                Some(stderr) => stderr.take(HELPER_BYTES_MAX).read_to_end(&mut said).await,
                None => Ok(0),
            }
        };
        tokio::try_join!(answered, told)
    };
    reading
        .await
        .map_err(|error| cannot("could not be heard", error))?;
    let status = child
        .wait()
        .await
        .map_err(|error| cannot("could not be run", error))?;
    if status.success() {
        return parse_helper_answer(&answer)
            .ok_or_else(|| Problem::Helper("its answer makes no sense".into()));
    }
    let said = String::from_utf8_lossy(&said);
    // Every helper writes this if it has no login for the server, on stdout or stderr.
    let none = "credentials not found";
    if said.contains(none) || String::from_utf8_lossy(&answer).contains(none) {
        return Ok(None);
    }
    let said = said.lines().next().unwrap_or("no message");
    let said: String = said.chars().take(SAID_CHARACTERS_MAX).collect();
    Err(Problem::Helper(format!("`{program}` said: {said}")))
}

/// Parses a helper's response. Some helpers return an empty login if they have none.
fn parse_helper_answer(answer: &[u8]) -> Option<Option<Login>> {
    let Answer { username, secret } = serde_json::from_slice(answer).ok()?;
    let secret = SecretString::from(secret.0);
    Some(match username.as_str() {
        _ if refit_model::secret::ExposeSecret::expose_secret(&secret).is_empty() => None,
        IDENTITY => Some(Login::IdentityToken(secret)),
        _ => Some(Login::Password {
            username,
            password: secret,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::secret::ExposeSecret as _;

    fn found(config: &str, server: &str) -> Result<Option<(String, String)>, &'static str> {
        let document: Document = serde_json::from_str(config).unwrap();
        let auths = document.auths.unwrap_or_default();
        let login = find_entry(&auths, server).map_or(Ok(None), login_from_entry)?;
        Ok(login.map(shown))
    }

    fn shown(login: Login) -> (String, String) {
        match login {
            Login::Password { username, password } => {
                (username, password.expose_secret().to_owned())
            }
            Login::IdentityToken(token) => (IDENTITY.into(), token.expose_secret().to_owned()),
        }
    }

    fn is(username: &str, secret: &str) -> Result<Option<(String, String)>, &'static str> {
        Ok(Some((username.into(), secret.into())))
    }

    #[test]
    fn every_way_in_which_a_login_was_ever_written_is_read() {
        // `me:secret`, with padding, without it, and from an old Docker that padded it with zeros.
        for auth in ["bWU6c2VjcmV0", "bWU6c2VjcmV0Cg==", "bWU6c2VjcmV0AAA="] {
            let config = format!(r#"{{"auths":{{"a.example":{{"auth":"{auth}"}}}}}}"#);
            let (user, secret) = found(&config, "a.example").unwrap().unwrap();
            assert_eq!((user.as_str(), secret.trim_end()), ("me", "secret"));
        }
        let identity = r#"{"auths":{"a.example":{"auth":"bWU6","identitytoken":"refresh"}}}"#;
        assert_eq!(found(identity, "a.example"), is(IDENTITY, "refresh"));
        // An empty login is no login.
        let password = r#"{"auths":{"a.example":{"auth":"bWU6eA==","identitytoken":""}}}"#;
        assert_eq!(found(password, "a.example"), is("me", "x"));
        let plain = r#"{"auths":{"a.example":{"username":"me","password":"x:y"}}}"#;
        assert_eq!(found(plain, "a.example"), is("me", "x:y"));
        let colons = r#"{"auths":{"a.example":{"auth":"bWU6eDp5"}}}"#;
        assert_eq!(found(colons, "a.example"), is("me", "x:y"));
        for none in [
            "{}",
            r#"{"auths":null}"#,
            r#"{"auths":{"a.example":{}}}"#,
            r#"{"auths":{"a.example":{"auth":""}},"HttpHeaders":{"x":"y"}}"#,
        ] {
            assert_eq!(found(none, "a.example"), Ok(None), "{none}");
        }
        for broken in ["%%%", "bWU=", "/////w=="] {
            let config = format!(r#"{{"auths":{{"a.example":{{"auth":"{broken}"}}}}}}"#);
            assert!(found(&config, "a.example").is_err(), "{broken}");
        }
    }

    #[test]
    fn a_host_has_many_names_and_another_port_is_another_host() {
        let config = |key: &str| format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6eA=="}}}}}}"#);
        for key in [
            "a.example",
            "https://a.example",
            "https://a.example/v2/",
            "http://a.example/v1/",
        ] {
            assert_eq!(found(&config(key), "a.example"), is("me", "x"), "{key}");
        }
        for key in [
            HUB,
            "docker.io",
            "index.docker.io",
            "https://index.docker.io/v2/",
        ] {
            assert_eq!(found(&config(key), HUB), is("me", "x"), "{key}");
        }
        for key in ["a.example:443", "b.a.example", "a.example.evil"] {
            assert_eq!(found(&config(key), "a.example"), Ok(None), "{key}");
        }
    }

    #[test]
    fn a_helpers_answer_is_a_password_an_identity_token_or_none() {
        let answer =
            |text: &str| parse_helper_answer(text.as_bytes()).map(|login| login.map(shown));
        assert_eq!(
            answer(r#"{"ServerURL":"a","Username":"me","Secret":"x"}"#),
            Some(Some(("me".into(), "x".into())))
        );
        assert_eq!(
            answer(r#"{"Username":"<token>","Secret":"refresh"}"#),
            Some(Some((IDENTITY.into(), "refresh".into())))
        );
        assert_eq!(answer(r#"{"Username":"","Secret":""}"#), Some(None));
        assert_eq!(answer("nothing"), None);
    }
}
