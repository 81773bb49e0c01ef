//! Builds a [`Refresher`] from a configuration. Only this module assembles the parts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use refit_capabilities::dependency_cache::DependencyCache;
use refit_capabilities::live::EngineContext;
use refit_capabilities::operation_permissions::OperationPermissions;
use refit_engine::address::{self, EngineAddress, EngineEnvironment};
use refit_engine::docker::DockerEngine;
use refit_history::History;
use refit_model::diagnostic::Diagnostic;
use refit_model::grants::Grants;
use refit_model::secret::SecretString;
use refit_recreate::concurrency::ConcurrencyLimits;
use refit_recreate::image_records::ImageRecords;
use refit_recreate::lease::Leases;
use refit_recreate::recover::{FirstSeen, RecoveryTimeouts};
use refit_recreate::self_protection::SelfProtection;
use refit_refresh::Refresher;
use refit_registry::budget::Rate;
use refit_registry::credentials::{Credentials, EnvironmentVariables};
use refit_registry::digests::Digests;
use refit_revisions::Generations;
use refit_revisions::artifact::registry::Registries;
use refit_revisions::artifact::signature::{SignatureError, Trust};
use refit_revisions::artifact::{self, Carrier};
use refit_revisions::load::Source;
use refit_revisions::start::{Persistence, TrustConfig};
use refit_revisions::swap::ConfiguredPolicy;
use refit_sandbox::{Isolation, PolicyEngine, PolicyError};
use refit_service::approvals::Terms as ApprovalTerms;
use refit_service::hooks::Hooks;
use refit_service::hooks::github::Github;
use refit_service::hooks::registry::RegistryHook;
use refit_service::hooks::secret::{self, SharedSecrets, SigningKeys};
use refit_service::notify::Notifier;
use refit_service::notify::delivered::Memory;
use refit_service::notify::sink::Sink;
use refit_service::watch::watcher::Watching;
use refit_storage::atomic_file;
use refit_storage::secret_file::{self, Found};

use crate::config::Config;
use crate::config::hooks::RegistryHookConfig;
use crate::config::notify::NotifyConfig;

pub fn engine_address(config: &Config) -> Result<EngineAddress, Diagnostic> {
    Ok(address::choose(
        config.engine.as_deref(),
        &EngineEnvironment::read(),
    )?)
}

pub fn credentials(config: &Config) -> Result<Credentials, Diagnostic> {
    let folder = EngineEnvironment::read().config_folder;
    Ok(Credentials::new(
        &EnvironmentVariables::read()?,
        &config.credentials.registry,
        &config.credentials.logins(),
        folder.as_deref(),
    )?)
}

pub fn grants(config: &Config) -> Result<Grants, Diagnostic> {
    Grants::new(&config.grants()).map_err(|error| {
        let cause = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        Diagnostic::new(error.to_string()).because(cause)
    })
}

/// The keys of trusted policy signers.
pub fn trust(config: &Config) -> Result<Trust, SignatureError> {
    Trust::new(&config.policy.keys)
}

/// The fetcher of policies from files and registries. `credentials` are those for pulling images.
pub fn carrier(config: &Config, credentials: Credentials) -> Carrier {
    Carrier {
        registries: Registries::new(config.registries.plain_http.clone()),
        credentials,
    }
}

/// The configured policy.
pub fn configured_policy(config: &Config) -> ConfiguredPolicy {
    let text = serde_json::Value::Object(config.policy.config.clone()).to_string();
    ConfiguredPolicy {
        source: match &config.policy.component {
            None => Source::BuiltIn,
            Some(artifact::Source::File(path)) => Source::File(path.clone()),
            Some(artifact::Source::Registry(reference)) => Source::Registry(reference.clone()),
        },
        config: text,
        allow_older: config.policy.allow_older,
    }
}

/// The policy engine. `isolation` applies to untrusted components: [`Isolation::this_program`] in `refit` itself.
pub fn policy_engine(config: &Config, isolation: Isolation) -> Result<PolicyEngine, PolicyError> {
    let engine = PolicyEngine::new()?;
    Ok(engine
        .with_isolation(isolation)
        .with_cache(config.state_folder().join("compiled")))
}

/// A policy engine that counts the instructions of each call.
pub fn metering_engine(config: &Config, isolation: Isolation) -> Result<PolicyEngine, PolicyError> {
    let engine = PolicyEngine::metering()?;
    Ok(engine
        .with_isolation(isolation)
        .with_cache(config.state_folder().join("compiled")))
}

/// The loaded policy that becomes active, and the means to swap it.
pub async fn generations(
    config: &Config,
    credentials: Credentials,
    isolation: Isolation,
    keep: Persistence,
) -> Result<Generations, Diagnostic> {
    let engine = policy_engine(config, isolation)?;
    let terms = TrustConfig {
        grants: Arc::new(grants(config)?),
        trust: trust(config)?,
        carrier: carrier(config, credentials),
    };
    Generations::start(
        engine,
        terms,
        &config.state_folder(),
        keep,
        configured_policy(config),
    )
    .await
}

/// Refuse a state folder that other users could access: they could hold the locks in it, read its token, or change a policy's
/// state.
pub fn check_state_folder(config: &Config) -> Result<(), Diagnostic> {
    let folder = config.state_folder();
    atomic_file::check_folder(&folder).map_err(|error| {
        Diagnostic::new(format!(
            "cannot use the state folder `{}`",
            folder.display()
        ))
        .because(error.to_string())
        .hint("it must belong to the user that Refit runs as; `state_dir` names another one")
    })
}

/// The engine, the logins and the state: everything that does not depend on a policy.
pub fn engine_context(config: &Config) -> Result<EngineContext, Diagnostic> {
    check_state_folder(config)?;
    let credentials = credentials(config)?;
    let digests = digests(config, credentials.clone());
    let address = engine_address(config)?;
    let protection = SelfProtection::new(&address);
    Ok(EngineContext {
        engine: Arc::new(DockerEngine::new(address, config.call_limits())),
        credentials,
        digests: Arc::new(digests),
        platform: config.platform()?,
        patience: RecoveryTimeouts {
            proof: config.proof(),
            call: config.call_limits().call,
        },
        leases: Leases::in_folder(config.state_folder()),
        lanes: ConcurrencyLimits::new(config.limits.recreate_concurrency),
        first_seen: FirstSeen::default(),
        permitted: OperationPermissions::default(),
        ties: DependencyCache::default(),
        protection,
        images: ImageRecords::in_folder(&config.state_folder()),
    })
}

/// The history that records refreshes, for [`Refresher::with_history`]. `None` if it is disabled. `by` is the requester of all
/// refreshes of this process.
pub fn history(config: &Config, by: Option<String>) -> Option<Arc<History>> {
    let keep = refit_history::Retention {
        refreshes: config.history.keep,
        days: config.history.keep_days,
    };
    (keep.refreshes > 0)
        .then(|| Arc::new(History::open(&config.state_folder(), keep).with_client(by)))
}

/// The accepted webhooks, with their secrets.
pub fn hooks(config: &Config) -> Result<Hooks, Diagnostic> {
    const GITHUB: &str = "GITHUB_WEBHOOK_SECRET";
    const REGISTRY: &str = "REGISTRY_WEBHOOK_SECRET";
    const WHAT: &str = "the secret of a webhook";
    let read = |found: Found| secret::read(&found.text, &found.origin);
    let github = &config.hooks.github;
    let found = secret_file::find(GITHUB, WHAT, github.secret_file.as_deref())?;
    let secrets = found.map(read).transpose()?;
    let github = secrets.map(|secrets| Github {
        keys: SigningKeys::new(&secrets),
        registry: github.registry.clone(),
    });
    let mut registries: Vec<RegistryHook> = Vec::new();
    let mut listed = config.hooks.registry.clone();
    if listed.iter().all(|registry| registry.secret_file.is_some()) {
        // The variable alone enables one.
        listed.push(RegistryHookConfig {
            name: "registry".into(),
            secret_file: None,
            host: None,
        });
    }
    for registry in listed {
        let spoken = config
            .hooks
            .registry
            .iter()
            .any(|it| it.name == registry.name);
        let found = match &registry.secret_file {
            Some(file) => Some(secret_file::at(WHAT, file)?),
            None => secret_file::find(REGISTRY, WHAT, None)?,
        };
        let secrets = found.map(read).transpose()?;
        let Some(secrets) = secrets else {
            if !spoken {
                continue;
            }
            let error = format!("`{}` in `[[hooks.registry]]` has no secret", registry.name);
            return Err(Diagnostic::new(error).hint(format!("set `secret_file`, or `{REGISTRY}`")));
        };
        let secrets = SharedSecrets::new(&secrets);
        if let Some(other) = registries.iter().find(|it| it.secrets.overlaps(&secrets)) {
            let error = format!(
                "`{}` and `{}` in `[[hooks.registry]]` have the same secret",
                other.name, registry.name
            );
            return Err(Diagnostic::new(error)
                .hint("who sends a notification is known by it: give each its own"));
        }
        registries.push(RegistryHook {
            name: registry.name,
            secrets,
            host: registry.host,
        });
    }
    Ok(Hooks { github, registries })
}

/// The recipients of notifications, with their addresses and tokens.
pub fn sinks(config: &Config) -> Result<Vec<Sink>, Diagnostic> {
    let read = |sink: &NotifyConfig, what: &str, file: &Path| {
        let what = format!("{what} of the sink `{}`", sink.name);
        secret_file::at(&what, file).map(|found| found.text)
    };
    let sink = |sink: &NotifyConfig| {
        let url = match (&sink.url, &sink.url_file) {
            (Some(url), _) => url.clone(),
            (None, Some(file)) => read(sink, "the address", file)?,
            // The configuration was checked; an empty address is reported as a missing one.
            (None, None) => SecretString::default(),
        };
        let token = sink.token_file.as_deref();
        let token = token
            .map(|file| read(sink, "the token", file))
            .transpose()?;
        let batch = Duration::from_secs(sink.batch_seconds);
        Ok(Sink::new(&sink.name, sink.kind, url, token)?.with_kinds(sink.on.clone(), batch))
    };
    config.notify.iter().map(sink).collect()
}

/// The task that sends notifications.
pub fn notifier(config: &Config) -> Result<Arc<Notifier>, Diagnostic> {
    let sinks = sinks(config)?;
    if sinks.is_empty() {
        return Ok(Notifier::silent());
    }
    Notifier::start(sinks, Memory::load(&config.state_folder()))
}

/// The terms for holding refreshes for approval.
pub fn approval(config: &Config) -> ApprovalTerms {
    ApprovalTerms {
        state: config.state_folder(),
        life: config.approval.life(),
        required_for: config.approval.required_for(),
    }
}

/// The client that requests digests from registries. `credentials` are those for pulling images.
pub fn digests(config: &Config, credentials: Credentials) -> Digests {
    let rate = Rate {
        requests: config.registries.requests_max,
        window: Duration::from_secs(config.registries.requests_window_seconds),
    };
    Digests::new(credentials, config.registries.plain_http.clone(), rate)
}

/// The parts of a daemon's watcher. `None` if there is nothing to watch: no schedule, and `rung` says that no webhook can request a
/// check.
pub fn watching(
    config: &Config,
    context: &EngineContext,
    rung: bool,
) -> Result<Option<Watching>, Diagnostic> {
    let settings = config.watch.settings()?;
    if settings.schedule.is_none() && !rung {
        return Ok(None);
    }
    Ok(Some(Watching {
        settings,
        digests: context.digests.clone(),
        check_queue: Arc::default(),
        state_folder: config.state_folder(),
    }))
}

/// Build the refresher. It contacts nothing yet: the first call finds out if the engine is down.
pub async fn refresher(
    config: &Config,
    isolation: Isolation,
    keep: Persistence,
) -> Result<Refresher, Diagnostic> {
    let context = Arc::new(engine_context(config)?);
    let credentials = context.credentials.clone();
    let generations = generations(config, credentials, isolation, keep).await?;
    Ok(Refresher::new(
        context,
        Arc::new(generations),
        config.bounds(),
    ))
}
