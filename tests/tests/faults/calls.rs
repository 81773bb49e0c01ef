//! The calls that operations make, as the proxy logs them, against the lists that `refit doctor` and docs/socket-proxies.md have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bollard::query_parameters::RenameContainerOptions;
use refit::engine::operations::{Operation, calls_of, patterns};
use refit::engine::permissions::EngineCall;
use refit::model::container::ContainerId;
use refit::recreate::names::BackupName;
use refit_tests::fault_proxy::{Call, Fault, Plan, Proxy, Setting};
use refit_tests::registry::{self, Registry};
use refit_tests::scenario::bench::Bench;
use refit_tests::scenario::{self, Scenario};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, with_world_for, world};
use serde_json::json;

use super::refit;

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// What was called by whom.
type Log = BTreeMap<Operation, Vec<Call>>;

#[tokio::test]
async fn logged_calls_are_those_of_the_lists() -> anyhow::Result<()> {
    with_world_for(LIMIT, "calls of operations", |w| async move {
        let mut log = Log::new();
        log_commands(&w, &mut log).await?;
        log_network_again(&w, &mut log).await?;
        log_scenarios(&w, &mut log).await?;
        let mut problems = Vec::new();
        for operation in Operation::ALL {
            let calls = log.get(&operation).context("nothing was logged")?;
            let labels: BTreeSet<String> = calls.iter().map(Call::label).collect();
            let listed = operation.calls().into_iter();
            let listed: BTreeSet<String> = listed.map(|(call, _)| call.to_string()).collect();
            let missing = labels.difference(&listed);
            problems.extend(
                missing.map(|call| format!("{operation} makes {call}, which is not listed")),
            );
            // If recovery runs late, the container has passed its checks already, and recovery follows no events.
            let follows = |call: &&String| {
                **call == EngineCall::Events.to_string()
                    && log.values().flatten().any(|made| made.label() == **call)
            };
            let unused = listed.difference(&labels).filter(|call| !follows(call));
            problems.extend(
                unused.map(|call| format!("{operation} does not make {call}, which is listed")),
            );
            for call in calls {
                if !is_let_through(operation, call)? {
                    problems.push(format!(
                        "{operation}: no pattern fits {} {}",
                        call.method, call.target
                    ));
                }
            }
        }
        ensure!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    })
    .await
}

/// By a proxy with the patterns of the page.
fn is_let_through(operation: Operation, call: &Call) -> anyhow::Result<bool> {
    let path = call
        .target
        .split_once('?')
        .map_or(call.target.as_str(), |(path, _)| path);
    for (method, pattern) in patterns(&[operation]) {
        let pattern = regex::Regex::new(&format!("^{pattern}$"))?;
        for path in [path.to_owned(), format!("/v1.41{path}")] {
            if method.as_str() == call.method && pattern.is_match(&path) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Refreshes without a fault, with a fault that is answered by the way back, and recoveries of those that were killed.
async fn log_scenarios(w: &World, log: &mut Log) -> anyhow::Result<()> {
    let bench = Bench::new(w).await?;
    let slot = bench.slot(0).await?;
    for scenario in Scenario::ALL {
        let operation = match scenario {
            Scenario::Remove => Operation::Remove,
            Scenario::Overlap => Operation::Overlap,
            _ => Operation::Replace,
        };
        let outcome = scenario::run(refit(), &bench, &slot, scenario, None).await?;
        let calls = outcome.calls.clone();
        log.entry(operation).or_default().extend(outcome.calls);
        log.entry(Operation::Recover)
            .or_default()
            .extend(outcome.recovery);
        let faults: &[Fault] = match scenario {
            Scenario::TwoNetworks => &[Fault::KillAfter, Fault::Refuse500],
            Scenario::Overlap | Scenario::Healthcheck => &[Fault::KillAfter],
            _ => &[],
        };
        // The first of each kind.
        let mut seen = BTreeSet::new();
        let steps = calls
            .iter()
            .filter(|call| call.method != "GET" && !call.is_probe());
        for call in steps {
            let Some(number) = call.number.filter(|_| seen.insert(call.label())) else {
                continue;
            };
            for fault in faults {
                let plan = Some(Plan {
                    number,
                    fault: *fault,
                });
                let outcome = scenario::run(refit(), &bench, &slot, scenario, plan).await?;
                log.entry(operation).or_default().extend(outcome.calls);
                log.entry(Operation::Recover)
                    .or_default()
                    .extend(outcome.recovery);
            }
        }
    }
    Ok(())
}

/// A Refit, and the proxy between it and the engine.
fn through(
    w: &World,
    registry: &Registry,
    folder: &Path,
    name: &str,
) -> anyhow::Result<(Proxy, Refit)> {
    // Replacements of tests beside this one would be recovered, which takes calls of its own.
    let setting = Setting {
        only_label: Some(format!("{}={}", world::LABEL, w.prefix())),
        ..Setting::default()
    };
    let proxy = Proxy::start(w.docker_host(), &folder.join(name), setting)?;
    let program = refit().to_str().context("no UTF-8")?;
    let containers = w.name("*");
    let images = format!("{}/{}/*", registry.host(), w.prefix());
    let refit = Refit::new(program, &proxy.docker_host())?
        .set("policy.config.images", w.template(registry))
        .set("policy.config.runtimes", json!(["hermes"]))
        .set("policy.config.containers", containers.as_str())
        .set("grants.images", json!([images]))
        .set("grants.containers", json!([containers]))
        .set("proof.grace_seconds", 1)
        .set("proof.health_seconds", 30);
    Ok((proxy, refit))
}

/// A Refit died in a gap, and the container's network was removed and created again: recovered by `refit recover`, and by a refresh.
async fn log_network_again(w: &World, log: &mut Log) -> anyhow::Result<()> {
    let registry = registry::open().await?;
    let folder = tempfile::tempdir()?;
    let image = w.load(ImageSpec::new("network")).await?;
    for (command, operation) in [
        ("recover", Operation::Recover),
        ("refresh", Operation::Replace),
    ] {
        let network = w.network(command).await?;
        let spec = ContainerSpec::new(command, &image).network(&network, &[command]);
        let old = w.run(spec).await?;
        let new = ContainerId::new("f".repeat(64));
        let id = ContainerId::new(&*old.id);
        let backup = BackupName::new(&id, &new, 1, true, &old.name).to_name();
        let renaming = RenameContainerOptions {
            name: backup.to_string(),
        };
        w.docker().rename_container(&old.id, renaming).await?;
        w.stop(&old.id).await?;
        w.docker().remove_network(&network).await?;
        w.network(command).await?;
        let (proxy, refit) = through(w, registry, folder.path(), command)?;
        refit.run(&[command]).await?.expect(0);
        let now = w.inspect(&old.id).await?;
        ensure!(
            now.state.and_then(|state| state.running) == Some(true),
            "{command} did not start it"
        );
        log.entry(operation).or_default().extend(proxy.calls());
    }
    Ok(())
}

/// Through a proxy that does nothing wrong: a plan, a daemon that watches, and a refresh that removes old images.
async fn log_commands(w: &World, log: &mut Log) -> anyhow::Result<()> {
    let registry = registry::open().await?;
    let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
    // Names are found in a network of one's own only, which `overlap` needs.
    let network = w.network("net").await?;
    let spec = ContainerSpec::new("hermes", &v1.reference).network(&network, &["hermes"]);
    w.run(spec).await?;
    w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
    let folder = tempfile::tempdir()?;
    let (proxy, refit) = through(w, registry, folder.path(), "plan")?;
    refit.run(&["plan"]).await?.expect(0);
    log.entry(Operation::Plan)
        .or_default()
        .extend(proxy.calls());

    let (proxy, refit) = through(w, registry, folder.path(), "watch")?;
    let refit = refit
        .set("watch.enabled", true)
        .set("approval.required_for", json!(["schedule"]));
    let daemon = refit.serve().await?;
    daemon.until_logged("approval").await?;
    daemon.until_ready().await?;
    log.entry(Operation::Watch)
        .or_default()
        .extend(proxy.calls());
    drop(daemon);

    for (strategy, operation) in [
        ("replace", Operation::Replace),
        ("overlap", Operation::Overlap),
    ] {
        w.publish(registry, "hermes", ImageSpec::new(strategy))
            .await?;
        let (proxy, refit) = through(w, registry, folder.path(), strategy)?;
        let refit = refit
            .set("images.keep_previous", 0)
            .set("policy.config.strategy", strategy);
        refit.run(&["refresh"]).await?.expect(0);
        log.entry(operation).or_default().extend(proxy.calls());
    }
    Ok(())
}

#[test]
fn every_call_is_needed_for_something() {
    assert_eq!(calls_of(&Operation::ALL), EngineCall::ALL.into());
}
