//! `refit doctor`: check everything that a refresh needs, so that problems show before one fails.

use std::collections::BTreeSet;

use refit_engine::Engine as _;
use refit_engine::docker::DockerEngine;
use refit_engine::operations::Operation;
use refit_engine::permissions::{CallPermissions, EngineCall, Permission, probe_calls};
use refit_history::Archive;
use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::image::ImageRef;
use refit_model::unfinished::Unfinished;
use refit_recreate::lease::Leases;
use refit_recreate::recover::survey;
use refit_registry::credentials::Credentials;
use refit_revisions::artifact::Source;
use refit_revisions::start::Persistence;
use refit_revisions::store::Store;
use refit_service::approvals;
use serde::Serialize;

use super::super::arguments::DoctorArguments;
use super::super::{Status, print};
use super::Common;
use crate::config::{Config, Flags, PolicyFlags};
use crate::setup;

#[derive(Serialize)]
struct Check {
    subject: String,
    ok: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    found: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    failure: Option<Diagnostic>,
}

impl Check {
    fn passed(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            ok: true,
            found: found.into(),
            failure: None,
        }
    }

    fn failed(subject: impl Into<String>, failure: impl Into<Diagnostic>) -> Self {
        Self {
            subject: subject.into(),
            ok: false,
            found: String::new(),
            failure: Some(failure.into()),
        }
    }

    fn of<E: Hints>(subject: &str, result: Result<String, E>) -> Self {
        match result {
            Ok(found) => Self::passed(subject, found),
            Err(error) => Self::failed(subject, Diagnostic::of(&error)),
        }
    }
}

pub(in super::super) async fn doctor(
    common: Common,
    arguments: DoctorArguments,
) -> Result<Status, Diagnostic> {
    let flags = Flags {
        policy: arguments.policy.map(|component| PolicyFlags { component }),
        ..Flags::default()
    };
    let loaded = common.load(flags)?;
    let found = match &loaded.file {
        Some(file) => format!("`{}`", file.display()),
        None => "no file, the defaults hold".to_owned(),
    };
    let config = loaded.config;
    let mut checks = vec![Check::passed("config", found)];
    checks.extend(engine(&config).await);
    let credentials = setup::credentials(&config);
    // If the logins cannot be read, only their own check reports it.
    let at_hand = credentials.as_ref().ok().cloned().unwrap_or_default();
    checks.extend(policy(&config, at_hand).await);
    checks.extend(keys(&config));
    checks.extend(grants(&config));
    checks.extend(history(&config));
    checks.extend(approvals(&config));
    checks.extend(logins(&config, credentials).await);

    if arguments.json {
        print(&(serde_json::to_string_pretty(&checks).unwrap_or_default() + "\n"));
    } else {
        checks.iter().for_each(show);
    }
    Ok(if checks.iter().all(|check| check.ok) {
        Status::Done
    } else {
        Status::SomeFailed
    })
}

fn show(check: &Check) {
    print(&format!(
        "{:<5} {:<8} {}\n",
        if check.ok { "ok" } else { "FAIL" },
        check.subject,
        check.found
    ));
    if let Some(failure) = &check.failure {
        for line in failure.to_string().lines().filter(|line| !line.is_empty()) {
            print(&format!("      {line}\n"));
        }
    }
}

async fn engine(config: &Config) -> Vec<Check> {
    let address = match setup::engine_address(config) {
        Ok(address) => address,
        Err(error) => return vec![Check::failed("engine", error)],
    };
    let chosen = format!("`{}`, chosen by {}", address.url, address.chosen_by);
    let engine = DockerEngine::new(address, config.call_limits());
    let found = engine.version().await.map(|version| {
        let product = version.product.unwrap_or_else(|| "engine".into());
        format!(
            "{product} {} on {}, API {}, at {chosen}",
            version.engine, version.platform, version.api
        )
    });
    let reached = found.is_ok();
    let mut checks = vec![Check::of("engine", found)];
    if !reached {
        return checks;
    }
    match (setup::grants(config), engine.containers().await) {
        (Ok(grants), Ok(containers)) => {
            let covered = containers
                .iter()
                .filter(|container| grants.covers(container))
                .count();
            checks.push(Check::passed(
                "engine",
                format!(
                    "the grants cover {covered} of {} containers",
                    containers.len()
                ),
            ));
        }
        (_, Err(error)) => checks.push(Check::failed("engine", error)),
        (Err(_), Ok(_)) => {}
    }
    if let Ok(containers) = engine.containers().await {
        let unfinished = survey(&containers, &Leases::in_folder(config.state_folder()));
        checks.extend(
            unfinished
                .into_iter()
                .filter(Unfinished::is_abandoned)
                .map(|one| {
                    let error = format!("a replacement of `{}` is unfinished", one.container);
                    let failure = Diagnostic::new(error).because(one.detail);
                    Check::failed(
                        "engine",
                        failure.hint("`refit recover` finishes or undoes it"),
                    )
                }),
        );
    }
    checks.extend(engine_calls(&engine).await);
    checks
}

/// The operations that fail because a proxy in front of the engine refuses calls.
async fn engine_calls(engine: &DockerEngine) -> Vec<Check> {
    let permissions = probe_calls(engine, &EngineCall::ALL).await;
    let mut checks = Vec::new();
    let mut limits = BTreeSet::new();
    for operation in Operation::ALL {
        let blocking = operation.blocked_by(&permissions);
        limits.extend(operation.limited_by(&permissions));
        if blocking.is_empty() {
            continue;
        }
        let mut failure = Diagnostic::new(format!(
            "{operation} does not work through this engine address"
        ));
        for call in blocking {
            limits.remove(&call);
            failure = failure.because(refusal(call, &permissions));
        }
        let hint =
            "allow these calls in the socket proxy: docs/socket-proxies.md has lists to copy";
        checks.push(Check::failed("calls", failure.hint(hint)));
    }
    if checks.is_empty() {
        let found = match limits.first() {
            None => "every call that Refit makes is let through to the engine".to_owned(),
            Some(_) => {
                let refused: Vec<String> = limits
                    .iter()
                    .map(|call| refusal(*call, &permissions))
                    .collect();
                format!(
                    "every operation works, some with less: {}",
                    refused.join("; ")
                )
            }
        };
        checks.push(Check::passed("calls", found));
    }
    checks
}

fn refusal(call: EngineCall, permissions: &CallPermissions) -> String {
    match permissions.get(call) {
        Some(Permission::Refused(answer)) => format!("`{call}` is refused ({answer})"),
        _ => format!("`{call}`"),
    }
}

async fn policy(config: &Config, credentials: Credentials) -> Vec<Check> {
    let isolation = super::isolation(config);
    let loaded =
        setup::generations(config, credentials.clone(), isolation, Persistence::Nothing).await;
    let mut checks = vec![match loaded {
        Ok(generations) => {
            let active = generations.active();
            let origin = match &config.policy.component {
                Some(Source::File(path)) => format!("`{}`", path.display()),
                Some(Source::Registry(_)) | None => active.content.origin.clone(),
            };
            let signed = match &active.content.signer {
                None => String::new(),
                Some(signer) => format!(", signed by {signer}"),
            };
            Check::passed(
                "policy",
                format!(
                    "{} ({}) from {origin}{signed}, and it accepts its configuration",
                    active.policy().title(),
                    active.policy().digest
                ),
            )
        }
        Err(error) => Check::failed("policy", error),
    }];
    checks.extend(swapped_in(config, credentials).await);
    checks
}

/// The policy that a daemon would use if it started now. `refit refresh` and `refit plan` use the configured one.
async fn swapped_in(config: &Config, credentials: Credentials) -> Option<Check> {
    match Store::new(&config.state_folder()).read() {
        Ok(None) => return None,
        Ok(Some(_)) => {}
        Err(error) => return Some(Check::failed("policy", error)),
    }
    let isolation = super::isolation(config);
    let kept = setup::generations(config, credentials, isolation, Persistence::Generations).await;
    Some(match kept {
        Ok(generations) => {
            let active = generations.active();
            match &active.fallback {
                Some(problem) => Check::failed("policy", problem.clone()),
                None => Check::passed(
                    "policy",
                    format!(
                        "`refit serve` uses {} from {}",
                        active.title(),
                        active.content.origin
                    ),
                ),
            }
        }
        Err(error) => Check::failed("policy", error),
    })
}

/// The keys of trusted signers, if signatures are required.
fn keys(config: &Config) -> Option<Check> {
    if config.policy.keys.is_empty() {
        return None;
    }
    let found = setup::trust(config).map(|_| {
        let keys = config.policy.keys.iter();
        let keys: Vec<String> = keys.map(|key| key.signer().to_string()).collect();
        format!("policies must be signed by {}", keys.join(" or "))
    });
    Some(Check::of("keys", found))
}

fn grants(config: &Config) -> Vec<Check> {
    if let Err(error) = setup::grants(config) {
        return vec![Check::failed("grants", error)];
    }
    let grants = &config.grants;
    let list = |patterns: &[String]| {
        if patterns.is_empty() {
            "none".to_owned()
        } else {
            patterns.join(", ")
        }
    };
    let verbs: Vec<String> = grants.verbs.iter().map(ToString::to_string).collect();
    let mut found = vec![
        format!("images {}", list(&grants.images)),
        format!("containers {}", list(&grants.containers)),
        format!("verbs {}", list(&verbs)),
    ];
    if !grants.labels.is_empty() {
        found.push(format!(
            "labels {}",
            grants
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(", ")
        ));
    }
    if !grants.environment.is_empty() {
        found.push(format!("environment {}", list(&grants.environment)));
    }
    vec![Check::passed("grants", found.join("; "))]
}

/// Whether refreshes can be recorded. A refresh works without a record, too.
fn history(config: &Config) -> Option<Check> {
    if config.history.keep == 0 {
        return None;
    }
    let found = Archive::new(&config.state_folder()).check();
    let found = found.map(|health| match health {
        None => "nothing yet".to_owned(),
        Some(health) => {
            let aside = match health.damaged.as_slice() {
                [] => String::new(),
                [.., newest] => format!("; a damaged one was kept as `{}`", newest.display()),
            };
            format!(
                "{} refreshes in `{}`, {} KiB{aside}",
                health.refreshes,
                health.path.display(),
                health.bytes.div_ceil(1024)
            )
        }
    });
    Some(Check::of("history", found))
}

/// The stored approvals of a daemon, if it has any. The pending ones are in its memory.
fn approvals(config: &Config) -> Option<Check> {
    let found = approvals::health(&config.state_folder());
    let found = found.map(|health| {
        let aside = match health.damaged.as_slice() {
            [] => String::new(),
            [.., newest] => format!("; a damaged one was kept as `{}`", newest.display()),
        };
        (health.kept, aside)
    });
    match found {
        Ok((0, aside)) if aside.is_empty() && config.approval.required_for.is_empty() => None,
        found => {
            let found = found.map(|(kept, aside)| format!("{kept} are kept{aside}"));
            Some(Check::of("approvals", found))
        }
    }
}

/// One line for each registry of the policy or of a granted image.
async fn logins(config: &Config, credentials: Result<Credentials, Diagnostic>) -> Vec<Check> {
    let credentials = match credentials {
        Ok(credentials) => credentials,
        Err(error) => return vec![Check::failed("login", error)],
    };
    let mut registries: Vec<String> = config
        .grants
        .images
        .iter()
        .filter_map(|pattern| registry_of(pattern))
        .collect();
    if let Some(Source::Registry(reference)) = &config.policy.component {
        registries.push(reference.registry().to_owned());
    }
    registries.sort();
    registries.dedup();
    let mut checks = Vec::new();
    for registry in registries {
        checks.push(match credentials.login(&registry).await {
            Ok(Some((_, source))) => {
                Check::passed("login", format!("`{registry}`: found in {source}"))
            }
            Ok(None) => Check::passed(
                "login",
                format!("`{registry}`: none found, images are pulled anonymously"),
            ),
            Err(error) => Check::failed("login", error),
        });
    }
    checks
}

/// The registry that an image pattern names, if any.
fn registry_of(pattern: &str) -> Option<String> {
    let literal = pattern.replace(['*', '?'], "x");
    let registry = literal.parse::<ImageRef>().ok()?.registry().to_owned();
    pattern.starts_with(&registry).then_some(registry)
}
