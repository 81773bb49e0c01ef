//! A test's own corner of the engine, after linkerd's `with_temp_ns`: a random prefix, labels, and nothing left at the end.
//!
//! `with_world` runs a test's body in one. Whatever the body does, panic included, its containers are shown if it failed, and
//! everything that carries the world's prefix or labels, or hangs on such a thing, is removed. `KEEP=1` leaves it for a look.
//! The parts: `publish` (images), `build` (those with a Dockerfile), `run` (containers, networks, volumes), `observe` (what is), `clean`.

mod build;
mod clean;
mod diagnose;
mod observe;
mod publish;
mod run;

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::anyhow;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use futures_util::FutureExt;

use crate::engine::{self, Engine, Tls};
use crate::registry::Registry;
use crate::report;

pub use observe::{Stamp, stamps};
pub use publish::Published;
pub use run::{Running, Subnet};

/// On everything the kit makes: the prefix of the world it belongs to.
pub const LABEL: &str = "refit.test";
/// Beside it: the name of the test, for a person who finds a leftover.
pub const LABEL_NAME: &str = "refit.test.name";
/// On images, where it is inherited by every container made from one, whoever makes it. Not [`LABEL`]: a container's own
/// label would then equal its image's, and could not be told from one.
pub const LABEL_IMAGE: &str = "refit.test.image";

/// The longest test replaces some forty containers and takes a minute on a busy two-core machine; past this it hangs.
const BODY: Duration = Duration::from_secs(300);

/// A test's own corner. Clones are the same corner.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

struct Shared {
    prefix: String,
    test: String,
    engine: &'static Engine,
    docker: Docker,
    builds: AtomicU32,
    records: Mutex<Records>,
}

/// What cannot be found again by prefix or label.
#[derive(Default)]
struct Records {
    /// The engine names these; they are found through the containers that mount them, which may be gone by then.
    anonymous_volumes: BTreeSet<String>,
    /// What each registry wants to hear from whoever pulls.
    credentials: HashMap<String, DockerCredentials>,
}

/// Runs `body` in a new world and cleans up after it. `test` appears in a label.
pub async fn with_world<F, Fut>(test: &str, body: F) -> anyhow::Result<()>
where
    F: FnOnce(World) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    with_world_for(BODY, test, body).await
}

/// The same, for a body that may take `limit`.
pub async fn with_world_for<F, Fut>(limit: Duration, test: &str, body: F) -> anyhow::Result<()>
where
    F: FnOnce(World) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let world = World::new(test).await?;
    let given = world.clone();
    let bounded = tokio::time::timeout(limit, async move { body(given).await });
    let outcome = AssertUnwindSafe(bounded).catch_unwind().await;

    if !matches!(outcome, Ok(Ok(Ok(())))) {
        report::diagnosis(&world.diagnosis().await);
    }
    let cleaned = if env::var("KEEP").is_ok_and(|keep| keep == "1") {
        report::progress(&format!(
            "KEEP=1: `{test}` leaves everything labelled {LABEL}={} on {} (a private engine still ends with this process)",
            world.prefix(),
            world.docker_host()
        ));
        Ok(())
    } else {
        world.clean().await
    };

    match outcome {
        Ok(Ok(result)) => result.and(cleaned),
        // The body's end is the news; what could not be cleaned up is only added to it.
        Ok(Err(_)) => Err(anyhow!(
            "`{test}` did not end within {limit:?}; cleaning up: {cleaned:?}"
        )),
        Err(panic) => {
            if let Err(error) = cleaned {
                report::diagnosis(&format!("{error:?}"));
            }
            resume_unwind(panic)
        }
    }
}

impl World {
    async fn new(test: &str) -> anyhow::Result<Self> {
        let engine = engine::shared().await?;
        let shared = Shared {
            // Hexadecimal, because it must not make a `ws-` of its own in a name like `<prefix>-net`.
            prefix: format!("t{:08x}", fastrand::u32(..)),
            test: test.to_owned(),
            engine,
            docker: engine
                .client()
                .await?
                .with_request_modifier(publish::url_safe_login),
            builds: AtomicU32::new(0),
            records: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// In every name of this world. Contains no `ws-`.
    pub fn prefix(&self) -> &str {
        &self.shared.prefix
    }

    /// The engine's API, for what the kit has no word for.
    pub fn docker(&self) -> &Docker {
        &self.shared.docker
    }

    /// What `DOCKER_HOST` must be for a program to use this world's engine.
    pub fn docker_host(&self) -> &str {
        self.shared.engine.docker_host()
    }

    /// Where the same engine speaks TLS; none if it was there before us.
    pub fn tls(&self) -> Option<&Tls> {
        self.shared.engine.tls()
    }

    /// The full name of a workspace: `ws-<prefix>-<suffix>`.
    pub fn name(&self, suffix: &str) -> String {
        format!("ws-{}-{suffix}", self.prefix())
    }

    /// Where this world publishes a runtime's image: `<registry>/<prefix>/workspace-template-<runtime>:latest`.
    pub fn reference(&self, registry: &Registry, runtime: &str) -> String {
        self.template(registry).replace("{runtime}", runtime)
    }

    /// The same with `{runtime}` in it, as the default policy's `images` wants it.
    pub fn template(&self, registry: &Registry) -> String {
        format!(
            "{}/{}/workspace-template-{{runtime}}:latest",
            registry.host(),
            self.prefix()
        )
    }

    /// The labels of everything this world makes.
    pub fn labels(&self) -> HashMap<String, String> {
        [
            (LABEL, self.prefix()),
            (LABEL_NAME, self.shared.test.as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// A number no other image of this world has.
    fn next_build(&self) -> u32 {
        self.shared.builds.fetch_add(1, Ordering::Relaxed)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // A panic while it was held cannot have left it half changed: each use is one insertion or one look.
        self.shared
            .records
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
