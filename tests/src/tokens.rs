//! A server of tokens, as clouds have one beside their registries, which the real `docker-registry` trusts: its tokens are signed
//! (JWT, RS256), and the registry checks signature, audience and scope by itself.
//!
//! It lets in [`USER`] with [`PASSWORD`] by HTTP Basic, and whoever has an identity token by OAuth 2's grant of a refresh token,
//! and writes down who asked and how. Knows nothing of images.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::AbortHandle;

use crate::bounded::within;
use crate::install;
use crate::registry::{PASSWORD, USER};
use crate::serve::{lock, serve};

/// A key of 2048 bits takes a second or two on a loaded machine, a signature milliseconds.
const OPENSSL: Duration = Duration::from_secs(30);
/// Of a request's body: a form with an identity token and scopes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// For how long a token is good.
const LIFETIME: u64 = 300;

/// What the registry expects to be called.
const SERVICE: &str = "refit-tests";
const ISSUER: &str = "refit-tests-tokens";

/// Ends, with all its connections, when it is dropped.
pub struct TokenServer {
    host: String,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    folder: TempDir,
    /// In every token, so that the registry can check it.
    certificate: String,
    identity: Mutex<Option<String>>,
    asked: Mutex<Vec<Grant>>,
    issued: Mutex<Vec<String>>,
}

/// Somebody asked for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub by: By,
    /// Asked by Refit itself, and not by an engine.
    pub by_refit: bool,
    pub scope: String,
    pub given: bool,
}

/// How a client said who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Nothing,
    Password,
    IdentityToken,
}

impl TokenServer {
    /// `identity` is the identity token that it takes.
    pub async fn start(identity: &str) -> anyhow::Result<Self> {
        tokio::task::spawn_blocking(|| install::ensure(&[("openssl", "openssl")])).await??;
        let folder = tempfile::Builder::new()
            .prefix("refit-tokens-")
            .tempdir()
            .context("cannot create a folder for the server of tokens")?;
        let (key, certificate) = (
            folder.path().join("key.pem"),
            folder.path().join("cert.pem"),
        );
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            ])
            .args(["-subj", "/CN=refit-tests", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        run(&mut openssl, b"").await?;
        let pem = fs::read_to_string(&certificate)?;
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        let shared = Arc::new(Shared {
            certificate: lines.collect(),
            folder,
            identity: Mutex::new(Some(identity.to_owned())),
            asked: Mutex::default(),
            issued: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot listen on 127.0.0.1")?;
        let host = listener.local_addr()?.to_string();
        let answering = shared.clone();
        let service = service_fn(move |request| respond_to(request, answering.clone()));
        let serving = serve(move |cx| listener.poll_accept(cx), service);
        let accepting = tokio::spawn(serving).abort_handle();
        Ok(Self {
            host,
            shared,
            accepting,
        })
    }

    /// For the registry's configuration.
    pub(crate) fn auth(&self) -> String {
        format!(
            "auth:\n  token:\n    realm: http://{}/token\n    service: {SERVICE}\n    issuer: {ISSUER}\n    rootcertbundle: {}\n",
            self.host,
            self.file("cert.pem").display()
        )
    }

    /// No identity token is taken any more.
    pub fn withdraw(&self) {
        *lock(&self.shared.identity) = None;
    }

    /// Who asked so far.
    pub fn asked(&self) -> Vec<Grant> {
        lock(&self.shared.asked).clone()
    }

    /// The tokens that were given.
    pub fn issued(&self) -> Vec<String> {
        lock(&self.shared.issued).clone()
    }

    pub fn forget(&self) {
        lock(&self.shared.asked).clear();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.shared.folder.path().join(name)
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn respond_to(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match respond(request, &shared).await {
        Ok(answer) => answer,
        Err(error) => (500, json!({ "error": format!("{error:#}") })),
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())));
    Ok(response.expect("a status and a header"))
}

async fn respond(request: Request<Incoming>, shared: &Shared) -> anyhow::Result<(u16, Value)> {
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let by_refit = header("user-agent").is_some_and(|agent| agent.starts_with("refit/"));
    let authorization = header("authorization");
    let posted = request.method() == "POST";
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    let form = match posted {
        true => String::from_utf8(body.to_vec())?,
        false => query,
    };
    let values = |name: &str| -> Vec<String> {
        let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| decoded(value))
            .collect()
    };
    let scope = values("scope").join(" ");
    let login = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let (by, given) = match (&authorization, posted) {
        (_, true) => {
            let sent = values("refresh_token");
            let grant = values("grant_type");
            let taken = lock(&shared.identity).clone();
            let good = grant == ["refresh_token"]
                && taken.is_some_and(|taken| sent == [taken])
                && values("service") == [SERVICE];
            (By::IdentityToken, good)
        }
        (Some(sent), false) => (By::Password, *sent == login),
        (None, false) => (By::Nothing, false),
    };
    lock(&shared.asked).push(Grant {
        by,
        by_refit,
        scope: scope.clone(),
        given,
    });
    if !given {
        let errors = json!([{ "code": "UNAUTHORIZED", "message": "authentication required" }]);
        return Ok((401, json!({ "errors": errors })));
    }
    let token = signed(shared, &scope).await?;
    lock(&shared.issued).push(token.clone());
    Ok((
        200,
        json!({ "token": token, "access_token": token, "expires_in": LIFETIME, "scope": scope }),
    ))
}

/// A token for whatever was asked for.
async fn signed(shared: &Shared, scope: &str) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let access: Vec<Value> = scope
        .split(' ')
        .filter_map(|scope| {
            // A name may have a port, and so colons of its own.
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let actions: Vec<&str> = actions.split(',').collect();
            Some(json!({ "type": kind, "name": name, "actions": actions }))
        })
        .collect();
    let head = json!({ "typ": "JWT", "alg": "RS256", "x5c": [shared.certificate] });
    let claims = json!({
        "iss": ISSUER, "sub": USER, "aud": SERVICE, "iat": now, "nbf": now - 10, "exp": now + LIFETIME,
        "jti": format!("{:016x}", fastrand::u64(..)), "access": access,
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(head), part(claims));
    let key = shared.folder.path().join("key.pem");
    let signature = sign(&key, text.as_bytes()).await?;
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

async fn sign(key: &Path, text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key);
    run(&mut openssl, text).await
}

/// What `openssl` prints, given this.
pub(crate) async fn run(openssl: &mut Command, input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let running = async {
        let mut child = openssl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input).await?;
        }
        child.wait_with_output().await
    };
    let output = within(OPENSSL, "run openssl", running).await?;
    ensure!(
        output.status.success(),
        "openssl failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Of a form or a query.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                &after[2..]
            }
            (b'+', _) => {
                bytes.push(b' ');
                after
            }
            (other, _) => {
                bytes.push(*other);
                after
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
