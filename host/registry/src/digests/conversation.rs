//! One batch with one registry: learns the authentication, gets a token for all images, and requests each.
//!
//! Refit repeats a refused request if there is another way: a kept token may have been revoked, a shared token may not cover
//! one repository, the authentication may have changed, and a registry may respond to a GET if it refuses a HEAD.

mod anonymous;
mod size;
mod upload;

use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use refit_model::image::ImageRef;
use refit_model::secret::{ExposeSecret as _, Login, SecretString};
use reqwest::Response;

use self::upload::Write;
use super::access::{Access, Registry};
use super::{Manifest, REQUEST, Reason};
use crate::address::is_same_server;
use crate::challenge::{self, Challenge, Realm};
use crate::counts::Counts;
use crate::manifest;
use crate::token::{self, Actions, Ask, Token};

/// Kept token, shared token, own token; or first another authentication; and a GET after a HEAD.
const ATTEMPTS_MAX: usize = 5;
/// The largest accepted manifest: the specification lets registries refuse larger ones.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// The largest accepted token response: tokens of clouds have up to 5 KiB.
const TOKEN_BYTES_MAX: usize = 256 << 10;
/// The largest accepted body of a refusal, which has a line or two.
const REFUSAL_BYTES_MAX: usize = 16 << 10;
const MESSAGE_CHARACTERS_MAX: usize = 200;

pub(super) struct Conversation<'a> {
    pub(super) client: &'a reqwest::Client,
    pub(super) counts: &'a Counts,
    pub(super) registry: &'a Registry,
    pub(super) login: Option<Login>,
    pub(super) batch: u64,
    /// All repositories that this batch requests.
    pub(super) repositories: Vec<String>,
    pub(super) actions: Actions,
}

/// The authorization of a request.
#[derive(Debug)]
pub(super) enum Authorization {
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
    pub(super) fn header(&self) -> Option<&HeaderValue> {
        match self {
            Self::None => None,
            Self::Basic(value) | Self::Token { value, .. } => Some(value),
        }
    }
}

impl Conversation<'_> {
    pub(super) async fn digest(&self, image: &ImageRef) -> Result<String, Reason> {
        let starts_with_head = self.registry.is_asked_by_head(Instant::now());
        let mut method = match starts_with_head {
            true => Method::HEAD,
            false => Method::GET,
        };
        for _ in 0..ATTEMPTS_MAX {
            let authorization = self.authorization(image.path()).await?;
            let answer = self.manifest(&method, image, &authorization).await?;
            let is_head = method == Method::HEAD;
            let from_itself = is_same_server(answer.url(), &self.registry.root);
            match answer.status() {
                StatusCode::OK if is_head => match manifest::digest_of_head(answer.headers()) {
                    Some(digest) => {
                        self.registry.has_answered_head();
                        return Ok(digest);
                    }
                    None => method = Method::GET,
                },
                StatusCode::OK => {
                    let Manifest { digest, .. } = self.read_manifest(answer).await?;
                    if starts_with_head {
                        self.registry.has_answered_get_only(Instant::now());
                    }
                    return Ok(digest);
                }
                status if is_head && refuses_head(status, from_itself) => method = Method::GET,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if from_itself => {
                    let again = self.prepare_retry(image, &authorization, &answer).await?;
                    if !again {
                        break;
                    }
                }
                _ => return Err(self.refusal(answer).await),
            }
        }
        Err(self.unauthorized())
    }

    /// Fetches a manifest with its digest.
    pub(super) async fn whole_manifest(&self, image: &ImageRef) -> Result<Manifest, Reason> {
        let version = image.digest().or(image.tag()).unwrap_or("latest");
        let path = format!("{}/manifests/{version}", image.path());
        let answer = self.get(image, &path, REQUEST).await?;
        self.read_manifest(answer).await
    }

    /// Fetches a blob of at most this size; `None` if it is larger. Checks its digest.
    pub(super) async fn blob(
        &self,
        image: &ImageRef,
        digest: &str,
        bytes_max: usize,
        limit: Duration,
    ) -> Result<Option<Vec<u8>>, Reason> {
        let path = format!("{}/blobs/{digest}", image.path());
        let answer = self.get(image, &path, limit).await?;
        let Some(bytes) = self.body_within(answer, bytes_max).await? else {
            return Ok(None);
        };
        if manifest::is_digest_of(digest, &bytes) {
            return Ok(Some(bytes));
        }
        let problem = format!("what it sent as `{digest}` has another digest");
        Err(Reason::Nonsense { problem })
    }

    /// Sends a GET with each authentication until the response has status 200.
    async fn get(&self, image: &ImageRef, path: &str, limit: Duration) -> Result<Response, Reason> {
        let question = Question::Look {
            method: Method::GET,
            path,
            limit,
        };
        let answer = self.send_authorized(image, &question).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            _ => Err(self.refusal(answer).await),
        }
    }

    /// Sends a request with each authentication. Returns the last response, whatever it is.
    async fn send_authorized(
        &self,
        image: &ImageRef,
        question: &Question<'_>,
    ) -> Result<Response, Reason> {
        for _ in 0..ATTEMPTS_MAX {
            let authorization = self.authorization(image.path()).await?;
            let answer = match question {
                Question::Look {
                    method,
                    path,
                    limit,
                } => self.ask(method, path, &authorization, *limit).await?,
                Question::Write(write) => self.write(write, &authorization).await?,
            };
            let is_refused = matches!(
                answer.status(),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
            );
            if !is_refused || !is_same_server(answer.url(), &self.registry.root) {
                return Ok(answer);
            }
            if !self.prepare_retry(image, &authorization, &answer).await? {
                break;
            }
        }
        Err(self.unauthorized())
    }

    /// Reads the manifest from the response to a GET.
    async fn read_manifest(&self, answer: Response) -> Result<Manifest, Reason> {
        let (from, headers) = (answer.url().clone(), answer.headers().clone());
        let bytes = self.body(answer, MANIFEST_BYTES_MAX).await?;
        let digest = manifest::digest_of_body(&headers, &bytes);
        let digest = digest.map_err(|error| Reason::NotAManifest {
            problem: match is_same_server(&from, &self.registry.root) {
                true => error.to_string(),
                false => {
                    let host = from.host_str().unwrap_or_default();
                    format!("{error}, from `{host}`, to which it redirects")
                }
            },
        })?;
        Ok(Manifest { bytes, digest })
    }

    fn unauthorized(&self) -> Reason {
        Reason::Unauthorized {
            credentials_sent: self.login.is_some(),
        }
    }

    /// Explains a response without a manifest. Some registries send the wrong status with the right words.
    async fn refusal(&self, answer: Response) -> Reason {
        let status = answer.status();
        let from = answer.url().clone();
        if !is_same_server(&from, &self.registry.root) {
            // Another server's response about a login or an image is not the registry's.
            let host = from.host_str().unwrap_or_default();
            return Reason::Unavailable {
                problem: format!("it redirects to `{host}`, which answered {status}"),
            };
        }
        let problem = match status {
            StatusCode::NOT_FOUND => return Reason::NotFound,
            _ if status.is_server_error() => {
                return Reason::Unavailable {
                    problem: format!("it answered {status}"),
                };
            }
            _ => self.errors(answer).await,
        };
        let has = |codes: &[&str]| problem.iter().any(|it| codes.contains(&it.code.as_str()));
        if has(&["UNAUTHORIZED", "DENIED"]) {
            return self.unauthorized();
        }
        if has(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND"]) {
            return Reason::NotFound;
        }
        let said = problem.into_iter().next().map(|it| it.message);
        Reason::Nonsense {
            problem: match said.filter(|said| !said.is_empty()) {
                Some(said) => format!("it answered {status}: {said}"),
                None => format!("it answered {status}"),
            },
        }
    }

    /// Parses the errors in the body of a refusal, in the form of the OCI specification. Empty if it has another form.
    async fn errors(&self, answer: Response) -> Vec<RegistryError> {
        #[derive(serde::Deserialize)]
        struct Errors {
            errors: Vec<RegistryError>,
        }
        let body = self
            .body(answer, REFUSAL_BYTES_MAX)
            .await
            .unwrap_or_default();
        let said = serde_json::from_slice::<Errors>(&body);
        let mut errors = said.map(|it| it.errors).unwrap_or_default();
        for error in &mut errors {
            let shown = error.message.chars().filter(|it| !it.is_control());
            error.message = shown.take(MESSAGE_CHARACTERS_MAX).collect();
        }
        errors
    }

    /// Reports whether there is another way after a refusal.
    async fn prepare_retry(
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
                access.require_own_token(image.path());
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
        access.set_login(self.login.as_ref());
        if let Some(reason) = access.failed_in(self.batch) {
            return Err(reason);
        }
        if access.challenge.is_none() {
            let learned = self.ping().await;
            if let Err(reason) = &learned {
                access.record_failure(self.batch, reason);
            }
            access.challenge = Some(learned?);
        }
        match access.challenge.clone().flatten() {
            None => Ok(Authorization::None),
            Some(Challenge::Basic) => Ok(match &self.login {
                Some(Login::Password { username, password }) => {
                    basic(username, password).map_or(Authorization::None, Authorization::Basic)
                }
                // It is for token servers only.
                Some(Login::IdentityToken(_)) | None => Authorization::None,
            }),
            Some(Challenge::Bearer(realm)) => self.token(&mut access, &realm, repository).await,
        }
    }

    /// Learns how the registry wants requests to be authenticated.
    async fn ping(&self) -> Result<Option<Challenge>, Reason> {
        let answer = self
            .send(self.client.get(self.registry.root.clone()))
            .await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.learned(answer.headers()),
            // No authentication, or none yet: the refusal of a manifest contains it too.
            _ => Ok(None),
        }
    }

    fn learned(&self, headers: &HeaderMap) -> Result<Option<Challenge>, Reason> {
        let learned = challenge::parse(headers, self.registry.is_plain());
        learned.map_err(|error| Reason::Nonsense {
            problem: error.to_string(),
        })
    }

    /// Returns a kept token, or a new one, for as many repositories of this batch as possible.
    async fn token(
        &self,
        access: &mut Access,
        realm: &Realm,
        repository: &str,
    ) -> Result<Authorization, Reason> {
        if let Some(token) = access.token(repository, self.batch) {
            return self.by(token);
        }
        if !access.needs_own_token(repository, self.batch) {
            let mut others = Vec::new();
            for other in &self.repositories {
                let is_due = !access.needs_own_token(other, self.batch)
                    && access.token(other, self.batch).is_none();
                others.extend(is_due.then(|| other.clone()));
            }
            let together = token::select_repositories(repository, others);
            let is_of_many = together.len() > 1;
            match self.fetch(access, realm, together).await {
                Ok(token) => return self.by(access.keep(token)),
                Err(NoToken::Other(reason)) => {
                    access.record_failure(self.batch, &reason);
                    return Err(reason);
                }
                // A refused login fails for all repositories; a refused scope is about one of them.
                Err(NoToken::Refused(status))
                    if !is_of_many
                        || (status == StatusCode::UNAUTHORIZED && self.login.is_some()) =>
                {
                    let reason = self.unauthorized();
                    if is_of_many {
                        access.record_failure(self.batch, &reason);
                    }
                    return Err(reason);
                }
                Err(NoToken::Refused(_)) => access.record_split(self.batch),
            }
        }
        match self
            .fetch(access, realm, [repository.to_owned()].into())
            .await
        {
            Ok(token) => self.by(access.keep(token)),
            Err(NoToken::Other(reason)) => Err(reason),
            Err(NoToken::Refused(_)) => {
                // It must not break the next shared token.
                access.require_own_token(repository);
                Err(self.unauthorized())
            }
        }
    }

    fn by(&self, token: &Token) -> Result<Authorization, Reason> {
        let value = secret_header(&format!("Bearer {}", token.value.expose_secret()));
        Ok(Authorization::Token {
            // A kept token can be sent: it was checked on arrival.
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
        let request = match token::ask(realm, self.login.as_ref(), &repositories, self.actions) {
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
            // OAuth 2's refusal of an expired refresh token.
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
        let granted = token::parse_token(&body.map_err(NoToken::Other)?, jiff::Timestamp::now());
        let granted = granted.ok_or_else(|| NoToken::Other(senseless_token()))?;
        let number = access.number();
        Ok(Token::new(number, self.batch, repositories, granted, asked))
    }
}

/// A request that Refit repeats with another authorization if the registry requires one.
enum Question<'a> {
    Look {
        method: Method,
        path: &'a str,
        limit: Duration,
    },
    Write(Write<'a>),
}

/// An error in a refusal.
#[derive(serde::Deserialize)]
struct RegistryError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reports whether a GET may succeed although a HEAD failed. Nexus returns 404 to every HEAD, others 400, 405, 406, 500 or 501;
/// storage that a registry redirects to may allow GET alone.
fn refuses_head(status: StatusCode, from_itself: bool) -> bool {
    match status.as_u16() {
        400 | 404 | 405 | 406 | 500 | 501 => true,
        401 | 403 => !from_itself,
        _ => false,
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
