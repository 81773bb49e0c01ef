//! Recognizes the containers that Refit itself depends on: its own container, the containers whose namespaces it uses, and
//! those on its route to the engine.
//!
//! Stopping one of them ends Refit, or disconnects it from the engine, in the middle of a replacement. Several clues reveal
//! each of them (`process`, `route`), and one reliable clue is enough. If a clue leaves a doubt, the container counts as one of
//! them. If Refit runs directly on the machine and uses the engine's own socket, there is nothing to find, and Refit sends the
//! engine no request.

mod process;
mod route;

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _};
use refit_engine::address::EngineAddress;
use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, ContainerSummary, Mount, State};
use serde_json::Value;
use tokio::sync::OnceCell;

use self::process::ProcessFacts;
use self::route::EngineRoute;
use super::dependents::refers_to;

/// The number of concurrent inspections while Refit looks for its own container.
const INSPECTIONS_AT_ONCE: usize = 8;

/// The reason for Refit's own container, which has its own sentence in reports.
const OWN: &str = "it is Refit's own container, which cannot outlive its own stop";

/// The facts of this process about where it runs and how it reaches the engine.
#[derive(Debug, Default)]
pub struct SelfProtection {
    process: ProcessFacts,
    route: EngineRoute,
    /// Found on first use. It does not change while the process lives.
    own: OnceCell<OwnContainers>,
}

/// The engine's facts about the container of this process.
#[derive(Clone, Debug, Default)]
struct OwnContainers {
    container: Option<OwnContainer>,
    /// Containers that may be Refit's own, if none is known to be.
    possible: BTreeSet<ContainerId>,
}

#[derive(Clone, Debug)]
struct OwnContainer {
    id: ContainerId,
    /// The containers whose namespaces it uses, as written, with the kind of namespace: `("<id>", "network")`.
    providers: Vec<(String, &'static str)>,
    mounts: Vec<Mount>,
}

impl SelfProtection {
    /// Reads the kernel's facts about this process.
    pub fn new(address: &EngineAddress) -> Self {
        Self {
            process: ProcessFacts::read(),
            route: EngineRoute::new(address),
            own: OnceCell::new(),
        }
    }

    /// Creates the facts of a process that runs in the container with this id, on the same machine as its engine.
    pub fn in_container(id: &str) -> Self {
        let process = ProcessFacts {
            in_container: true,
            own_ids: BTreeSet::from([id.to_owned()]),
            ..ProcessFacts::default()
        };
        Self {
            process,
            ..Self::default()
        }
    }

    /// Returns why Refit depends on this container, as a sentence fragment; `None` if it does not.
    pub async fn dependency_reason(
        &self,
        engine: &dyn Engine,
        container: &Container,
    ) -> Result<Option<String>, EngineError> {
        if self.is_own(container) {
            return Ok(Some(OWN.to_owned()));
        }
        let own = self.load_own(engine).await?;
        if let Some(reason) = self.own_provider_reason(container, own) {
            return Ok(Some(reason));
        }
        Ok(self
            .route_reason(engine, container, own)
            .await?
            .map(|why| format!("Refit reaches the engine {why}; nothing could start it again")))
    }

    /// Checks whether this is Refit's own container, from the inspection alone.
    fn is_own(&self, container: &Container) -> bool {
        let id = container.id.as_str();
        let same_root = self.process.has_upper_dir(container.upper_dir.as_deref());
        if self.process.own_ids.contains(id) || same_root == Some(true) {
            return true;
        }
        // Both values belong to another container if Refit uses that container's network.
        let by_network =
            self.process.network_ids.contains(id) || self.process.hostname_is_short_id(id);
        by_network && same_root.is_none()
    }

    fn own_provider_reason(&self, container: &Container, own: &OwnContainers) -> Option<String> {
        let (id, name) = (&container.id, container.name.as_str());
        if self.process.network_ids.contains(id.as_str())
            || self.process.hostname_is_short_id(id.as_str())
        {
            return Some(provider_reason("network"));
        }
        if own.possible.contains(id) {
            return Some(
                "it may be Refit's own container: it has the mounts that this process sees"
                    .to_owned(),
            );
        }
        let container = own.container.as_ref()?;
        if container.id == *id {
            return Some(OWN.to_owned());
        }
        let provider = container
            .providers
            .iter()
            .find(|(written, _)| refers_to(written, id, name));
        provider.map(|(_, what)| provider_reason(what))
    }

    async fn route_reason(
        &self,
        engine: &dyn Engine,
        container: &Container,
        own: &OwnContainers,
    ) -> Result<Option<String>, EngineError> {
        if let Some(why) = self.route.passes_through(container, &self.process).await {
            return Ok(Some(why));
        }
        if let Some(own_container) = &own.container
            && let Some(why) = self
                .route
                .shares_socket_folder(container, &own_container.mounts)
        {
            return Ok(Some(why));
        }
        let Some(provider) = network_provider(container).filter(|_| self.route.is_network()) else {
            return Ok(None);
        };
        // The container has no address and no port of its own: the addresses and ports of its provider lead to it.
        let lives_with_us = self.process.in_container
            && (self.shares_own_network(provider, own) && self.route.is_loopback().await);
        if lives_with_us {
            return Ok(Some(
                "at an address of this network namespace, and this container may be the one that listens there"
                    .to_owned(),
            ));
        }
        let Some(provider) = find_container(engine, provider).await? else {
            return Ok(None);
        };
        let through = self.route.passes_through(&provider, &self.process).await;
        Ok(through.map(|_| {
            format!(
                "through the network of `{}`, which this container uses: it may be the one that listens there",
                provider.name
            )
        }))
    }

    /// Reports whether this container provides Refit's own network.
    fn shares_own_network(&self, provider: &str, own: &OwnContainers) -> bool {
        let ids = self.process.network_ids.iter().chain(&self.process.own_ids);
        let mut ids = ids.map(String::as_str);
        if ids.any(|id| !provider.is_empty() && id.starts_with(provider)) {
            return true;
        }
        own.container.as_ref().is_some_and(|container| {
            let is_provider = container.providers.iter().any(|(written, what)| {
                *what == "network"
                    && (written == provider || provider.starts_with(written.as_str()))
            });
            is_provider || container.id.as_str().starts_with(provider)
        })
    }

    async fn load_own(&self, engine: &dyn Engine) -> Result<&OwnContainers, EngineError> {
        self.own
            .get_or_try_init(|| async {
                if self.process.in_container {
                    self.find_own(engine).await
                } else {
                    Ok(OwnContainers::default())
                }
            })
            .await
    }

    /// Finds Refit's own container: first among those that a clue names, then among all that run.
    async fn find_own(&self, engine: &dyn Engine) -> Result<OwnContainers, EngineError> {
        let ids = self.process.own_ids.iter().chain(&self.process.network_ids);
        for id in ids {
            // There is none if the id belongs to a container of another engine.
            if let Some(container) = find_container(engine, id).await?
                && self.is_own(&container)
            {
                return Ok(OwnContainers::from_container(&container));
            }
        }
        let listed = engine.containers().await?;
        let running = listed
            .into_iter()
            .filter(|listed| listed.state == Some(State::Running));
        let inspections = running.map(|listed| async move {
            match engine.inspect(&listed.id).await {
                Ok(container) => Ok(Some(container)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        });
        let containers: Vec<Option<Container>> = futures_util::stream::iter(inspections)
            .buffered(INSPECTIONS_AT_ONCE)
            .try_collect()
            .await?;
        let containers: Vec<Container> = containers.into_iter().flatten().collect();
        if let Some(own) = containers.iter().find(|container| self.is_own(container)) {
            return Ok(OwnContainers::from_container(own));
        }
        let possible = containers
            .iter()
            .filter(|container| self.may_be_own(container));
        Ok(OwnContainers {
            container: None,
            possible: possible.map(|container| container.id.clone()).collect(),
        })
    }

    /// Compares mounts and host name, for an engine that does not report where its containers' file systems are.
    fn may_be_own(&self, container: &Container) -> bool {
        let visible = |mount: &Mount| {
            self.process.mounts.iter().any(|ours| {
                let source = mount.source.as_deref().unwrap_or_default();
                // The kernel writes the source path relative to its own file system.
                ours.path == mount.destination.trim_end_matches('/') && source.ends_with(&ours.root)
            })
        };
        let host_mode =
            container.host_config.get("UTSMode").and_then(Value::as_str) == Some("host");
        let hostname = container.config.get("Hostname").and_then(Value::as_str);
        self.process
            .has_upper_dir(container.upper_dir.as_deref())
            .is_none()
            && !container.mounts.is_empty()
            && container.mounts.iter().all(visible)
            && (host_mode || hostname == self.process.hostname.as_deref())
    }
}

impl OwnContainers {
    fn from_container(container: &Container) -> Self {
        let modes = [
            ("NetworkMode", "network"),
            ("PidMode", "process namespace"),
            ("IpcMode", "shared memory"),
            // Podman has these too.
            ("UTSMode", "host name"),
            ("UsernsMode", "user namespace"),
        ];
        let providers = modes.into_iter().filter_map(|(key, what)| {
            let mode = container.host_config.get(key)?.as_str()?;
            Some((mode.strip_prefix("container:")?.to_owned(), what))
        });
        Self {
            container: Some(OwnContainer {
                id: container.id.clone(),
                providers: providers.collect(),
                mounts: container.mounts.clone(),
            }),
            possible: BTreeSet::new(),
        }
    }
}

fn network_provider(container: &Container) -> Option<&str> {
    container.network_mode().strip_prefix("container:")
}

fn provider_reason(what: &str) -> String {
    format!("Refit's own container uses its {what}, and would lose it")
}

/// The number of digits that distinguish an id from a name: the length of a default hostname.
const ID_DIGITS_MIN: usize = 12;

/// Finds a container by its id, the first twelve digits of its id or more, or its name.
async fn find_container(
    engine: &dyn Engine,
    written: &str,
) -> Result<Option<Container>, EngineError> {
    let listed = engine.containers().await?;
    let refers_to = |listed: &&ContainerSummary| {
        listed.name == written
            || (written.len() >= ID_DIGITS_MIN && listed.id.as_str().starts_with(written))
    };
    let Some(listed) = listed.iter().find(refers_to) else {
        return Ok(None);
    };
    match engine.inspect(&listed.id).await {
        Ok(container) => Ok(Some(container)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
