//! Which digest a registry has behind a tag, without transferring anything: one HEAD an image, or a GET of its manifest where the
//! registry does not answer that.
//!
//! Images are asked for in batches. Of each registry the way to be let in is learned once, one token covers all repositories of a
//! batch and is kept for its lifetime, and what the registry says about its limits is obeyed ([`super::budget`]). A check that
//! fails is a reason why nothing is known, never an answer. Knows no engine and no policy.

mod access;
mod conversation;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use refit_model::diagnostic::{Diagnostic, Hints, causes};
use refit_model::image::ImageRef;
use refit_model::secret::Login;
use tokio::sync::Semaphore;

use self::access::Registry;
use self::conversation::Conversation;
use super::budget::Rate;
use super::counts::Counts;
use super::credentials::Credentials;
use super::token::Actions;
use super::{address, budget};

/// Requests under way at once, of all registries together. A hundred images take a second or two then.
const AT_ONCE: usize = 16;

/// One request. Registries answer in tenths of a second; one that takes longer than this is as good as gone.
const REQUEST: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(10);

/// One batch. What is not known by then is asked for by the next.
const BATCH: Duration = Duration::from_secs(180);

/// Registries whose access is remembered. Grants say which there can be.
const REGISTRIES_MAX: usize = 256;

/// Nothing is known of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot learn what registry `{registry}` has as `{image}`")]
pub struct DigestError {
    pub registry: String,
    pub image: ImageRef,
    #[source]
    pub reason: Reason,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("it refused{}", if *.credentials_sent { " the login" } else { "" })]
    Unauthorized { credentials_sent: bool },
    #[error("it has no such image")]
    NotFound,
    #[error("it asked to be left alone until {until}")]
    RateLimited { until: jiff::Timestamp },
    #[error("it was asked as often as `[registries] requests_max` lets, until {until}")]
    Budget { until: jiff::Timestamp },
    #[error("it cannot be reached: {problem}")]
    Unavailable { problem: String },
    #[error("its answer makes no sense: {problem}")]
    Nonsense { problem: String },
    #[error("its answer is not a manifest: {problem}")]
    NotAManifest { problem: String },
    #[error("{}", .0.error)]
    Credentials(Box<Diagnostic>),
}

impl Reason {
    /// Before when asking again is of no use.
    pub fn not_before(&self) -> Option<jiff::Timestamp> {
        match self {
            Self::RateLimited { until } | Self::Budget { until } => Some(*until),
            Self::Unauthorized { .. }
            | Self::NotFound
            | Self::Unavailable { .. }
            | Self::Nonsense { .. }
            | Self::NotAManifest { .. }
            | Self::Credentials(_) => None,
        }
    }
}

impl Hints for DigestError {
    fn hints(&self) -> Vec<String> {
        let registry = &self.registry;
        match &self.reason {
            Reason::Unauthorized {
                credentials_sent: false,
            } => vec![format!(
                "no credentials for `{registry}` were found: run `docker login {registry}`, or set `GHCR_USER` and `GHCR_TOKEN` for GHCR"
            )],
            Reason::Unauthorized {
                credentials_sent: true,
            } => vec![format!(
                "the login for `{registry}` was sent and refused: it may have expired, or lack `read:packages`"
            )],
            Reason::NotFound => {
                vec!["check the name and the tag: is the image published yet?".into()]
            }
            Reason::Unavailable { .. } => vec![
                "the watcher asks registries itself, not through the engine: a registry without TLS is listed in `[registries] plain_http`".into(),
            ],
            Reason::NotAManifest { .. } => vec![
                format!("a login page, a captive portal or a proxy may answer in the place of `{registry}`: open it in a browser on this machine, or look at `curl -i` of its `/v2/`"),
            ],
            Reason::Credentials(told) => told.hints.clone(),
            Reason::RateLimited { .. } | Reason::Budget { .. } | Reason::Nonsense { .. } => vec![],
        }
    }
}

/// What is asked of registries, and how.
#[derive(Debug)]
pub struct Digests {
    /// By the machine's proxy, where it has one.
    client: LateClient,
    /// For registries on this machine.
    direct: LateClient,
    credentials: Credentials,
    plain_http: Vec<String>,
    rate: Rate,
    counts: Counts,
    registries: Mutex<HashMap<String, Arc<Registry>>>,
    at_once: Semaphore,
    batches: AtomicU64,
}

/// Made when it is first needed: reading the machine's certificates takes as long as all else that a start does.
type LateClient = OnceLock<Result<reqwest::Client, String>>;

/// A manifest as it came.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Vec<u8>,
    pub digest: String,
}

/// What was learned of each image that was asked for.
pub type Found = HashMap<ImageRef, Result<String, DigestError>>;

fn client(
    by: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, String> {
    // The one provider of the whole process; somebody may have been first, and it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        .pool_max_idle_per_host(AT_ONCE)
        // A login must not go where an answer points to.
        .redirect(reqwest::redirect::Policy::none());
    by(builder).build().map_err(|error| {
        let causes = causes(&error).join(": ");
        format!("requests cannot be made ({error}: {causes}): are there certificates of authorities on this machine? `SSL_CERT_FILE` names a file of them")
    })
}

impl Digests {
    /// `plain_http` are the registries, as `host:port`, that are spoken to without TLS. Those on this machine need not be listed.
    pub fn new(credentials: Credentials, plain_http: Vec<String>, rate: Rate) -> Self {
        Self {
            client: LateClient::new(),
            direct: LateClient::new(),
            credentials,
            plain_http,
            rate,
            counts: Counts::default(),
            registries: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
            batches: AtomicU64::new(1),
        }
    }

    fn client_for(&self, registry: &str) -> Result<&reqwest::Client, Reason> {
        let made = if address::is_loopback(registry) {
            self.direct.get_or_init(|| client(|it| it.no_proxy()))
        } else {
            self.client.get_or_init(|| client(|it| it))
        };
        made.as_ref().map_err(|problem| Reason::Unavailable {
            problem: problem.clone(),
        })
    }

    /// Asks for each once, those of one registry with one token.
    pub async fn of(&self, images: impl IntoIterator<Item = ImageRef>) -> Found {
        let mut found = Found::new();
        let mut asked: BTreeMap<String, HashSet<ImageRef>> = BTreeMap::new();
        for image in images {
            match image.digest() {
                // It says itself what it is.
                Some(digest) => drop(found.insert(image.clone(), Ok(digest.to_owned()))),
                None => {
                    let registry = image.registry().to_owned();
                    asked.entry(registry).or_default().insert(image);
                }
            }
        }
        let mut registries: FuturesUnordered<_> = asked
            .into_iter()
            .map(|(registry, images)| self.of_registry(registry, images))
            .collect();
        while let Some(some) = registries.next().await {
            found.extend(some);
        }
        found
    }

    /// The manifest behind a reference, with this login and no other. For artifacts: an image's is the engine's to get.
    pub async fn manifest(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
    ) -> Result<Manifest, DigestError> {
        let found = self.with_login(image, (login, Actions::Pull), async |it| {
            it.whole_manifest(image).await
        });
        found.await
    }

    /// A blob of at most so many bytes, within this time; `None` where it is larger.
    pub async fn blob(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
        digest: &str,
        (bytes_max, limit): (usize, Duration),
    ) -> Result<Option<Vec<u8>>, DigestError> {
        let found = self.with_login(image, (login, Actions::Pull), async |it| {
            it.blob(image, digest, bytes_max, limit).await
        });
        found.await
    }

    /// Puts a manifest into the registry, and before it the blobs that it names, each by its digest. `limit` is for one blob.
    pub async fn push(
        &self,
        image: &ImageRef,
        login: Option<&Login>,
        blobs: Vec<(String, Bytes)>,
        (media_type, manifest): (&str, Bytes),
        limit: Duration,
    ) -> Result<(), DigestError> {
        let pushing = self.with_login(image, (login, Actions::PullAndPush), async |it| {
            for (digest, bytes) in &blobs {
                it.push_blob(image, digest, bytes.clone(), limit).await?;
            }
            it.push_manifest(image, media_type, manifest.clone()).await
        });
        pushing.await
    }

    async fn with_login<T>(
        &self,
        image: &ImageRef,
        (login, actions): (Option<&Login>, Actions),
        ask: impl AsyncFnOnce(&Conversation<'_>) -> Result<T, Reason>,
    ) -> Result<T, DigestError> {
        let name = image.registry();
        let failed = |reason| DigestError {
            registry: name.to_owned(),
            image: image.clone(),
            reason,
        };
        let Some(registry) = self.registry(name) else {
            let problem = "its name is not that of a host".to_owned();
            return Err(failed(Reason::Unavailable { problem }));
        };
        let conversation = Conversation {
            client: self.client_for(name).map_err(failed)?,
            counts: &self.counts,
            registry: &registry,
            login: login.cloned(),
            batch: self.batches.fetch_add(1, Ordering::Relaxed),
            repositories: vec![image.path().to_owned()],
            actions,
        };
        ask(&conversation).await.map_err(failed)
    }

    async fn of_registry(&self, name: String, images: HashSet<ImageRef>) -> Found {
        let failed = |image: ImageRef, reason| {
            let error = DigestError {
                registry: name.clone(),
                image: image.clone(),
                reason,
            };
            (image, Err(error))
        };
        let all = |reason: Reason| -> Found {
            let failed = |image: &ImageRef| failed(image.clone(), reason.clone());
            images.iter().map(failed).collect()
        };
        let Some(registry) = self.registry(&name) else {
            let problem = "its name is not that of a host".to_owned();
            return all(Reason::Unavailable { problem });
        };
        if let Some(reason) = registry.closed() {
            return all(reason);
        }
        let login = match self.credentials.login(&name).await {
            Ok(login) => login.map(|(login, _)| login),
            Err(error) => return all(Reason::Credentials(Box::new(Diagnostic::of(&error)))),
        };
        let client = match self.client_for(&name) {
            Ok(client) => client,
            Err(reason) => return all(reason),
        };
        let conversation = Conversation {
            client,
            counts: &self.counts,
            registry: &registry,
            login,
            batch: self.batches.fetch_add(1, Ordering::Relaxed),
            repositories: images.iter().map(|image| image.path().to_owned()).collect(),
            actions: Actions::Pull,
        };
        let deadline = tokio::time::Instant::now() + BATCH;
        let mut asking: FuturesUnordered<_> = images
            .iter()
            .map(|image| async {
                // It is never closed.
                let _turn = self.at_once.acquire().await;
                (image.clone(), conversation.digest(image).await)
            })
            .collect();
        let mut found = Found::new();
        while let Ok(Some((image, answer))) = tokio::time::timeout_at(deadline, asking.next()).await
        {
            let (image, answer) = match answer {
                Ok(digest) => (image, Ok(digest)),
                Err(reason) => failed(image, reason),
            };
            found.insert(image, answer);
        }
        for image in &images {
            if !found.contains_key(image) {
                let problem = format!("its turn did not come within {} s", BATCH.as_secs());
                found.extend([failed(image.clone(), Reason::Unavailable { problem })]);
            }
        }
        found
    }

    /// Somebody has reason to think that a registry answers again; without a name, that all do.
    pub fn reconsider(&self, registry: Option<&str>) {
        for (name, known) in self.registries().iter() {
            if registry.is_none_or(|registry| registry == name) {
                known.budget().reconsider();
            }
        }
    }

    /// Requests so far: registry, status (0 where no answer came), number. Of bounded length.
    pub fn counts(&self) -> Vec<(String, u16, u64)> {
        self.counts.all()
    }

    fn registry(&self, name: &str) -> Option<Arc<Registry>> {
        let mut registries = self.registries();
        if let Some(registry) = registries.get(name) {
            return Some(registry.clone());
        }
        if registries.len() >= REGISTRIES_MAX {
            registries.retain(|_, registry| Arc::strong_count(registry) > 1);
        }
        let plain = address::is_plain(name, &self.plain_http);
        let root = address::root(name, plain)?;
        let registry = Arc::new(Registry::new(name.to_owned(), root, self.rate));
        registries.insert(name.to_owned(), registry.clone());
        Some(registry)
    }

    fn registries(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Registry>>> {
        self.registries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a registry that is closed is not asked.
fn closed(closed: budget::Closed) -> Reason {
    let wait = closed.until.saturating_duration_since(Instant::now());
    match closed.why {
        budget::Why::Asked => Reason::RateLimited {
            until: clock_in(wait),
        },
        budget::Why::Budget => Reason::Budget {
            until: clock_in(wait),
        },
        budget::Why::Unavailable => Reason::Unavailable {
            problem: format!(
                "it did not answer, and is asked again in {} s",
                wait.as_secs() + 1
            ),
        },
    }
}

/// A moment for people: whole seconds, and not too early.
fn clock_in(wait: Duration) -> jiff::Timestamp {
    let seconds = jiff::Timestamp::now().as_second() + wait.as_secs() as i64 + 1;
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX)
}
