//! From a configuration to a [`Refresher`]: the one place where the parts are put together.

use std::path::Path;
use std::sync::Arc;

use crate::capabilities::live::Workshop;
use crate::capabilities::ties::KnownTies;
use crate::config::Config;
use crate::diagnostic::Diagnostic;
use crate::engine::address::{self, EngineAddress, EngineEnvironment};
use crate::engine::docker::DockerEngine;
use crate::grants::Grants;
use crate::policy::{DEFAULT_POLICY, Policy, PolicyEngine, PolicyError, PolicyState};
use crate::recreate::guard;
use crate::recreate::lease::Leases;
use crate::recreate::recover::Patience;
use crate::refresh::{ActivePolicy, Refresher};
use crate::registry::credentials::{CredentialError, Credentials, EnvironmentVariables};

/// What the default policy is called where a file would be named.
pub const BUILT_IN: &str = "the built-in policy";

pub fn engine_address(config: &Config) -> Result<EngineAddress, Diagnostic> {
    Ok(address::choose(
        config.engine.as_deref(),
        &EngineEnvironment::read(),
    )?)
}

pub fn credentials(config: &Config) -> Result<Credentials, CredentialError> {
    let folder = EngineEnvironment::read().config_folder;
    Credentials::new(
        &EnvironmentVariables::read(),
        &config.credentials.registry,
        folder.as_deref(),
    )
}

pub fn grants(config: &Config) -> Result<Grants, Diagnostic> {
    Grants::new(&config.grants()).map_err(|error| {
        let cause = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        Diagnostic::new(error.to_string()).because(cause)
    })
}

/// The configured component, or the one that is built in, compiled and probed.
pub async fn policy(config: &Config, engine: &PolicyEngine) -> Result<Policy, PolicyError> {
    match &config.policy.component {
        None => engine.load(DEFAULT_POLICY, BUILT_IN).await,
        Some(path) => {
            let origin = path.display().to_string();
            let bytes = read_component(path).map_err(|source| PolicyError::Unreadable {
                origin: origin.clone(),
                source,
            })?;
            engine.load(&bytes, &origin).await
        }
    }
}

/// Not more than a component may have, so that `/dev/zero` is an error and not the end of the memory.
fn read_component(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let most = crate::policy::limits::COMPONENT_BYTES_MAX as u64 + 1;
    std::fs::File::open(path)?
        .take(most)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub async fn active_policy(
    config: &Config,
    engine: &PolicyEngine,
) -> Result<ActivePolicy, PolicyError> {
    let policy = policy(config, engine).await?;
    let state = PolicyState::open(&config.state_folder(), &policy.name);
    let text = serde_json::Value::Object(config.policy.config.clone()).to_string();
    ActivePolicy::new(policy, text, state).await
}

/// The engine, the logins and the state: all that does not depend on a policy.
pub fn workshop(config: &Config) -> Result<Workshop, Diagnostic> {
    Ok(Workshop {
        engine: Arc::new(DockerEngine::new(
            engine_address(config)?,
            config.call_limits(),
        )),
        credentials: credentials(config)?,
        platform: config.platform()?,
        patience: Patience {
            proof: config.proof(),
            call: config.call_limits().call,
        },
        leases: Leases::in_folder(config.state_folder()),
        ties: KnownTies::default(),
        own_id: guard::own_container_id(),
    })
}

/// Nothing is contacted yet: an engine that is down is found out by the first call.
pub async fn refresher(config: &Config) -> Result<Refresher, Diagnostic> {
    let workshop = Arc::new(workshop(config)?);
    let grants = Arc::new(grants(config)?);
    let active = active_policy(config, &PolicyEngine::new()?).await?;
    Ok(Refresher::new(workshop, active, grants, config.bounds()))
}
