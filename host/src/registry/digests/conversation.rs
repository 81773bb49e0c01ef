//! One batch with one registry: learn how it wants to be asked, get a token for all, ask for each.
//!
//! What is refused is tried once more where there is another way: a token that was kept may have been withdrawn, a token of many
//! may not cover one of them, and the way to be let in may have changed.

use std::time::Instant;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{RequestBuilder, Response, Url};
use sha2::{Digest as _, Sha256};

use super::access::{Access, Registry};
use super::{Reason, closed};
use crate::image::ImageRef;
use crate::registry::address::is_same_server;
use crate::registry::challenge::{self, Challenge, Realm};
use crate::registry::counts::Counts;
use crate::registry::token::{self, Ask, Token};
use crate::secret::{ExposeSecret as _, Login, SecretString};

/// All kinds of manifests: whatever is behind the tag has one digest, and it is this one that the engine records.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
const DIGEST_HEADER: &str = "docker-content-digest";

/// Kept token, token of many, token of its own; or another way to be let in first.
const ATTEMPTS_MAX: usize = 4;
/// To a registry's own mirror and back.
const REDIRECTS_MAX: usize = 4;
/// The specification lets registries refuse larger ones.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Tokens of 5 KiB were seen, those of clouds.
const TOKEN_BYTES_MAX: usize = 256 << 10;

pub(super) struct Conversation<'a> {
    pub(super) client: &'a reqwest::Client,
    pub(super) counts: &'a Counts,
    pub(super) registry: &'a Registry,
    pub(super) login: Option<Login>,
    pub(super) batch: u64,
    /// All that this batch asks for.
    pub(super) repositories: Vec<String>,
}

/// What a request carries.
#[derive(Debug)]
enum Authorization {
    None,
    Basic(HeaderValue),
    Token {
        value: HeaderValue,
        number: u64,
        is_fresh: bool,
        is_of_many: bool,
    },
}

impl Authorization {
    fn header(&self) -> Option<&HeaderValue> {
        match self {
            Self::None => None,
            Self::Basic(value) | Self::Token { value, .. } => Some(value),
        }
    }
}

impl Conversation<'_> {
    pub(super) async fn digest(&self, image: &ImageRef) -> Result<String, Reason> {
        for _ in 0..ATTEMPTS_MAX {
            let authorization = self.authorization(image.path()).await?;
            let answer = self.manifest(Method::HEAD, image, &authorization).await?;
            match answer.status() {
                StatusCode::OK => match digest(answer.headers()) {
                    Some(digest) => return Ok(digest),
                    None => return self.hashed(image, &authorization).await,
                },
                // Some have no HEAD.
                StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                    return self.hashed(image, &authorization).await;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let again = self.another_way(image, &authorization, &answer).await?;
                    if !again {
                        break;
                    }
                }
                status => return Err(self.strange(status)),
            }
        }
        Err(self.unauthorized())
    }

    /// The digest of what is there, for a registry that does not say it.
    async fn hashed(&self, image: &ImageRef, by: &Authorization) -> Result<String, Reason> {
        let answer = self.manifest(Method::GET, image, by).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.unauthorized()),
            status => return Err(self.strange(status)),
        }
        let body = self.body(answer, MANIFEST_BYTES_MAX).await?;
        let hex: String = Sha256::digest(&body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(format!("sha256:{hex}"))
    }

    fn unauthorized(&self) -> Reason {
        Reason::Unauthorized {
            credentials_sent: self.login.is_some(),
        }
    }

    fn strange(&self, status: StatusCode) -> Reason {
        match status.as_u16() {
            404 => Reason::NotFound,
            500.. => Reason::Unavailable {
                problem: format!("it answered {status}"),
            },
            _ => Reason::Nonsense {
                problem: format!("it answered {status}"),
            },
        }
    }

    /// After a refusal: whether there is another way to ask.
    async fn another_way(
        &self,
        image: &ImageRef,
        refused: &Authorization,
        answer: &Response,
    ) -> Result<bool, Reason> {
        let mut access = self.registry.access.lock().await;
        match refused {
            Authorization::Token {
                number,
                is_fresh: false,
                ..
            } => {
                access.forget(*number);
                Ok(true)
            }
            Authorization::Token {
                is_of_many: true, ..
            } => {
                access.set_apart(image.path());
                Ok(true)
            }
            Authorization::Token { .. } => Ok(false),
            Authorization::None | Authorization::Basic(_) => {
                let learned = self.learned(answer.headers())?;
                let is_news = learned.is_some() && access.challenge.as_ref() != Some(&learned);
                if is_news {
                    access.challenge = Some(learned);
                }
                Ok(is_news)
            }
        }
    }

    async fn authorization(&self, repository: &str) -> Result<Authorization, Reason> {
        let mut access = self.registry.access.lock().await;
        access.is_of(self.login.as_ref());
        if let Some(reason) = access.failed_in(self.batch) {
            return Err(reason);
        }
        if access.challenge.is_none() {
            let learned = self.ping().await;
            if let Err(reason) = &learned {
                access.fails(self.batch, reason);
            }
            access.challenge = Some(learned?);
        }
        match access.challenge.clone().flatten() {
            None => Ok(Authorization::None),
            Some(Challenge::Basic) => Ok(match &self.login {
                Some(Login::Password { username, password }) => {
                    basic(username, password).map_or(Authorization::None, Authorization::Basic)
                }
                // It is for servers of tokens only.
                Some(Login::IdentityToken(_)) | None => Authorization::None,
            }),
            Some(Challenge::Bearer(realm)) => self.token(&mut access, &realm, repository).await,
        }
    }

    /// How the registry wants to be asked.
    async fn ping(&self) -> Result<Option<Challenge>, Reason> {
        let answer = self
            .send(self.client.get(self.registry.root.clone()))
            .await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.learned(answer.headers()),
            // Nothing, or nothing yet: the refusal of a manifest says it too.
            _ => Ok(None),
        }
    }

    fn learned(&self, headers: &HeaderMap) -> Result<Option<Challenge>, Reason> {
        let learned = challenge::parse(headers, self.registry.is_plain());
        learned.map_err(|error| Reason::Nonsense {
            problem: error.to_string(),
        })
    }

    /// One that was kept, or a new one, for as many of this batch as it can be for.
    async fn token(
        &self,
        access: &mut Access,
        realm: &Realm,
        repository: &str,
    ) -> Result<Authorization, Reason> {
        if let Some(token) = access.token(repository, self.batch) {
            return self.by(token);
        }
        if !access.is_apart(repository, self.batch) {
            let mut others = Vec::new();
            for other in &self.repositories {
                let is_due = !access.is_apart(other, self.batch)
                    && access.token(other, self.batch).is_none();
                others.extend(is_due.then(|| other.clone()));
            }
            let together = token::together(repository, others);
            let is_of_many = together.len() > 1;
            match self.fetch(access, realm, together).await {
                Ok(token) => return self.by(access.keep(token)),
                Err(NoToken::Other(reason)) => {
                    access.fails(self.batch, &reason);
                    return Err(reason);
                }
                // A login that is refused is refused for each; a scope that is refused is that of one of them.
                Err(NoToken::Refused(status))
                    if !is_of_many
                        || (status == StatusCode::UNAUTHORIZED && self.login.is_some()) =>
                {
                    let reason = self.unauthorized();
                    if is_of_many {
                        access.fails(self.batch, &reason);
                    }
                    return Err(reason);
                }
                Err(NoToken::Refused(_)) => access.splits(self.batch),
            }
        }
        match self
            .fetch(access, realm, [repository.to_owned()].into())
            .await
        {
            Ok(token) => self.by(access.keep(token)),
            Err(NoToken::Other(reason)) => Err(reason),
            Err(NoToken::Refused(_)) => {
                // It must not spoil the next token of many.
                access.set_apart(repository);
                Err(self.unauthorized())
            }
        }
    }

    fn by(&self, token: &Token) -> Result<Authorization, Reason> {
        let value = secret_header(&format!("Bearer {}", token.value.expose_secret()));
        Ok(Authorization::Token {
            // What was kept can be sent: it was looked at when it came.
            value: value.ok_or_else(senseless_token)?,
            number: token.number,
            is_fresh: token.batch == self.batch,
            is_of_many: token.repositories.len() > 1,
        })
    }

    async fn fetch(
        &self,
        access: &mut Access,
        realm: &Realm,
        repositories: std::collections::BTreeSet<String>,
    ) -> Result<Token, NoToken> {
        let asked = Instant::now();
        let request = match token::ask(realm, self.login.as_ref(), &repositories) {
            Ask::Get(url) => {
                let request = self.client.get(url);
                let basic = match &self.login {
                    Some(Login::Password { username, password }) => basic(username, password),
                    Some(Login::IdentityToken(_)) | None => None,
                };
                match basic {
                    Some(value) => request.header(AUTHORIZATION, value),
                    None => request,
                }
            }
            Ask::Post(url, body) => self
                .client
                .post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(body.expose_secret().to_owned()),
        };
        let answer = self.send(request).await.map_err(NoToken::Other)?;
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(NoToken::Refused(status));
            }
            // As OAuth 2 refuses a refresh token that is over.
            StatusCode::BAD_REQUEST if matches!(self.login, Some(Login::IdentityToken(_))) => {
                return Err(NoToken::Refused(StatusCode::UNAUTHORIZED));
            }
            status => {
                let problem = format!("its server of tokens answered {status}");
                return Err(NoToken::Other(match status.is_server_error() {
                    true => Reason::Unavailable { problem },
                    false => Reason::Nonsense { problem },
                }));
            }
        }
        let body = self.body(answer, TOKEN_BYTES_MAX).await;
        let granted = token::granted(&body.map_err(NoToken::Other)?, jiff::Timestamp::now());
        let granted = granted.ok_or_else(|| NoToken::Other(senseless_token()))?;
        let number = access.number();
        Ok(Token::new(number, self.batch, repositories, granted, asked))
    }

    /// Follows redirects; what lets in goes to the registry itself alone.
    async fn manifest(
        &self,
        method: Method,
        image: &ImageRef,
        by: &Authorization,
    ) -> Result<Response, Reason> {
        let nonsense = |problem: &str| Reason::Nonsense {
            problem: problem.to_owned(),
        };
        let tag = image.tag().unwrap_or("latest");
        let path = format!("{}/manifests/{tag}", image.path());
        let mut url = self
            .registry
            .root
            .join(&path)
            .map_err(|_| nonsense("its address cannot be made"))?;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self
                .client
                .request(method.clone(), url.clone())
                .header(ACCEPT, MANIFESTS);
            if let Some(value) = by.header()
                && is_same_server(&url, &self.registry.root)
            {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let answer = self.send(request).await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            url = redirected(&url, answer.headers())
                .ok_or_else(|| nonsense("it redirects to where nobody may be sent"))?;
        }
        Err(nonsense("it redirects for ever"))
    }

    /// Every request goes through here: within the budget, and counted.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Reason> {
        let taken = self.registry.budget().take(Instant::now());
        taken.map_err(closed)?;
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                self.counts.add(&self.registry.name, None);
                self.registry.budget().silent(Instant::now());
                return Err(unreachable(error));
            }
        };
        let status = answer.status().as_u16();
        self.counts.add(&self.registry.name, Some(status));
        let mut budget = self.registry.budget();
        let now = Instant::now();
        budget.answered(status, answer.headers(), now, jiff::Timestamp::now());
        match (status, budget.closed(now)) {
            (429 | 503, Some(why)) => Err(closed(why)),
            _ => Ok(answer),
        }
    }

    async fn body(&self, mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, Reason> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > bytes_max {
                let problem = format!("it is longer than {bytes_max} bytes");
                return Err(Reason::Nonsense { problem });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

enum NoToken {
    Refused(StatusCode),
    Other(Reason),
}

fn senseless_token() -> Reason {
    Reason::Nonsense {
        problem: "its server of tokens gave none".to_owned(),
    }
}

/// Its address is left out: it may be long, and says nothing that is not known.
fn unreachable(error: reqwest::Error) -> Reason {
    let error = error.without_url();
    let mut problem = error.to_string();
    if let Some(cause) = crate::diagnostic::causes(&error).last() {
        problem = cause.clone();
    }
    Reason::Unavailable { problem }
}

fn basic(username: &str, password: &SecretString) -> Option<HeaderValue> {
    use base64::Engine as _;
    let login = format!("{username}:{}", password.expose_secret());
    let login = base64::engine::general_purpose::STANDARD.encode(login);
    secret_header(&format!("Basic {login}"))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// As a registry says it, where it is one.
fn digest(headers: &HeaderMap) -> Option<String> {
    let digest = headers.get(DIGEST_HEADER)?.to_str().ok()?.trim();
    let (algorithm, hex) = digest.split_once(':')?;
    let length = match algorithm {
        "sha256" => 64,
        "sha512" => 128,
        _ => return None,
    };
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (hex.len() == length && hex.bytes().all(is_hex)).then(|| digest.to_owned())
}

/// Never from TLS to none.
fn redirected(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let to = from.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let is_allowed = to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http");
    is_allowed.then_some(to)
}
