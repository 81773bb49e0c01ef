//! Finds the digest that a registry serves under a tag, without transferring layers: one HEAD for each image, or a GET of its
//! manifest if the registry does not respond to HEAD.
//!
//! Refit requests images in batches. For each registry it learns the authentication once, uses one token for all repositories
//! of a batch and keeps it for its lifetime, and obeys the registry's limits ([`super::budget`]). A failed check is a reason
//! why nothing is known, never a result. This module knows no engine and no policy.

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

/// The number of concurrent requests to all registries together. A hundred images then take a second or two.
const AT_ONCE: usize = 16;

/// The time limit of a request. Registries respond in tenths of a second; a slower one is as good as gone.
const REQUEST: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(10);

/// The time limit of a batch. The next batch requests the rest.
const BATCH: Duration = Duration::from_secs(180);

/// The number of registries whose access state Refit keeps. Grants determine which registries there can be.
const REGISTRIES_MAX: usize = 256;

/// Nothing is known about an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot learn what registry `{registry}` has as `{image}`")]
pub struct DigestError {
    pub registry: String,
    pub image: ImageRef,
    #[source]
    pub reason: Reason,
}

/// Why nothing is known about an image.
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
    /// Returns the time before which a retry is useless.
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

/// Looks up digests in registries.
#[derive(Debug)]
pub struct Digests {
    /// Uses the machine's proxy, if it has one.
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

/// Created on first use: reading the machine's certificates takes as long as the rest of a start.
type LateClient = OnceLock<Result<reqwest::Client, String>>;

/// An unparsed manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Vec<u8>,
    pub digest: String,
}

/// The result for each requested image.
pub type Found = HashMap<ImageRef, Result<String, DigestError>>;

fn client(
    by: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> Result<reqwest::Client, String> {
    // The provider is global to the process; another part may have installed the same one first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        .pool_max_idle_per_host(AT_ONCE)
        // A login must not follow a redirect.
        .redirect(reqwest::redirect::Policy::none());
    by(builder).build().map_err(|error| {
        let causes = causes(&error).join(": ");
        format!("requests cannot be made ({error}: {causes}): are there certificates of authorities on this machine? `SSL_CERT_FILE` names a file of them")
    })
}

impl Digests {
    /// Creates the lookup. `plain_http` lists the registries, as `host:port`, that Refit contacts without TLS. Registries on
    /// this machine need not be listed.
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

    /// Looks up each image once; images of one registry share a token.
    pub async fn of(&self, images: impl IntoIterator<Item = ImageRef>) -> Found {
        let mut found = Found::new();
        let mut asked: BTreeMap<String, HashSet<ImageRef>> = BTreeMap::new();
        for image in images {
            match image.digest() {
                // A reference with a digest needs no request.
                Some(digest) => drop(found.insert(image.clone(), Ok(digest.to_owned()))),
                None => {
                    let registry = image.registry().to_owned();
                    asked.entry(registry).or_default().insert(image);
                }
            }
        }
        let mut registries: FuturesUnordered<_> = asked
            .into_iter()
            .map(|(registry, images)| self.look_up_registry(registry, images))
            .collect();
        while let Some(some) = registries.next().await {
            found.extend(some);
        }
        found
    }

    /// Fetches the manifest of a reference, with this login and no other. For artifacts: the engine fetches images.
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

    /// Fetches a blob of at most this size, within this time; `None` if it is larger.
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

    /// Pushes a manifest to the registry, after the blobs that it names, each by its digest. `limit` applies to one blob.
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

    async fn look_up_registry(&self, name: String, images: HashSet<ImageRef>) -> Found {
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
                // The semaphore is never closed.
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

    /// Reopens a registry that probably responds again; all registries if `registry` is `None`.
    pub fn reconsider(&self, registry: Option<&str>) {
        for (name, known) in self.registries().iter() {
            if registry.is_none_or(|registry| registry == name) {
                known.budget().reconsider();
            }
        }
    }

    /// Returns the requests so far: registry, status (0 if no response came), count. The length is bounded.
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

/// Converts a pause into the reason why Refit sends no request.
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

/// Returns the end of a pause for messages: whole seconds, rounded up.
fn clock_in(wait: Duration) -> jiff::Timestamp {
    let seconds = jiff::Timestamp::now().as_second() + wait.as_secs() as i64 + 1;
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX)
}
