//! Replaces a container without downtime: the new container runs and is healthy before the old one stops.
//!
//! This is for containers that clients reach by name on user-defined networks. At first the new container has none of the old
//! one's aliases, so no client reaches it. Once it is healthy it gets the aliases and must become healthy again, and for at
//! least five seconds both containers answer to them; then it gets the name and passes a last check, and the old one stops.
//! Until the old container gives up its name a rollback costs nothing. During all this a client that resolves a name finds a
//! running container among the addresses. The engine publishes an address before it is attached and for some milliseconds after
//! it is gone, so a client must try all addresses, as the usual clients do.
//!
//! Two containers run at once, so nothing may prevent that which only one container can hold: see [`overlap_blocker`].

use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, Object, State};
use refit_model::recreation::Step;
use serde_json::{Value, json};

use super::health_gate::{
    Baseline, ReadinessCheck, ensure_still_running, wait_until_healthy, wait_until_healthy_again,
};
use super::intent::{Replacement, network_to_connect};
use super::prepare::{self, PrepareError, discard};
use super::replace::{
    Member, NewContainer, NewImage, ReplaceOptions, Replaced, ensure_unchanged, roll_back_group,
};
use super::retry::{ensure_removed, is_gone};
use super::stop::ensure_stopped;
use super::verify::find_differences;
use super::{RecreateError, StepError};

/// A container's label: the volumes, by name and separated by commas, that two containers must not have open at once. `*` for
/// all.
pub const LABEL_EXCLUSIVE_VOLUMES: &str = "io.refit.exclusive-volumes";

/// How long both containers answer to the aliases. The engine's resolver publishes a new address some 50 ms before the engine
/// has attached it. If a client calls in between, its kernel repeats the neighbor request only after a second, and until then
/// no program on that machine reaches the address; packets that were lost in that time are sent again one and three seconds
/// later. The old container must answer for all that time, to every client that tries it. From Docker 28 on, the engine
/// announces the address itself (moby/moby#48808), and few calls have to wait.
const OVERLAP_TIME: Duration = Duration::from_secs(5);

/// Returns why two instances of this container cannot run at once, as a sentence fragment; `None` if they can.
pub fn overlap_blocker(container: &Container) -> Option<String> {
    let mode = container.network_mode();
    if matches!(mode, "bridge" | "host" | "none") || mode.starts_with("container:") {
        return Some(format!(
            "its network is `{mode}`, where it is not reached by name"
        ));
    }
    let bindings = container
        .host_config
        .get("PortBindings")
        .and_then(Value::as_object);
    if let Some((port, _)) = bindings
        .into_iter()
        .flatten()
        .find(|(_, bound)| bound.as_array().is_some_and(|bound| !bound.is_empty()))
    {
        return Some(format!(
            "it publishes {port} on a port of the machine, which only one container can hold"
        ));
    }
    for (network, endpoint) in &container.endpoints {
        let fixed = endpoint.get("IPAMConfig").and_then(Value::as_object);
        let fixed = fixed
            .into_iter()
            .flatten()
            .any(|(_, address)| address.as_str().is_some_and(|address| !address.is_empty()));
        if fixed {
            return Some(format!("it has a static address on network `{network}`"));
        }
    }
    if container
        .config
        .get("MacAddress")
        .and_then(Value::as_str)
        .is_some_and(|mac| !mac.is_empty())
    {
        return Some("it has a fixed MAC address".into());
    }
    let exclusive = container.label(LABEL_EXCLUSIVE_VOLUMES)?;
    let exclusive: Vec<&str> = exclusive.split(',').map(str::trim).collect();
    let names = container
        .mounts
        .iter()
        .filter_map(|mount| mount.name.as_deref());
    let exclusive_volume = names
        .into_iter()
        .find(|name| exclusive.contains(name) || exclusive.contains(&"*"))?;
    Some(format!(
        "its volume `{exclusive_volume}` is marked exclusive by the label `{LABEL_EXCLUSIVE_VOLUMES}`"
    ))
}

/// Replaces `old`, which runs and for which [`overlap_blocker`] returned `None`. The flag reports whether nothing is left to
/// finish or undo.
pub async fn overlap(
    engine: &dyn Engine,
    old: Container,
    image: &NewImage,
    options: &ReplaceOptions<'_>,
) -> (Result<Replaced, RecreateError>, bool) {
    let name = old.name.clone();
    // The old container keeps running and keeps its name; any failure before the rename leaves it as it is.
    let background_permit = options.lanes.background().await;
    let (member, replacement) = match create_unreachable(engine, old, image, options).await {
        Ok(made) => made,
        Err(prepare_error) => return (Err(prepare_error.error), prepare_error.settled),
    };
    drop(background_permit);
    if options.ending.is_cancelled() {
        let error = RecreateError::Withdrawn { name };
        return (Err(error), discard(engine, &member.new).await);
    }
    let started = match make_reachable(engine, &member, &replacement, options).await {
        Ok(started) => started,
        Err((step, source)) => {
            let error = RecreateError::Aborted { name, step, source };
            return (Err(error), discard(engine, &member.new).await);
        }
    };
    if let Err(error) = ensure_unchanged(engine, &member.old, image).await {
        return (Err(error), discard(engine, &member.new).await);
    }

    let _background_permit = options.lanes.background().await;
    if let Err((step, source)) = take_name(engine, &member, started, options).await {
        return roll_back_group(engine, &[member], step, source).await;
    }
    let Member { old, new, .. } = &member;
    (options.step)(Step::Stop);
    let gone = async {
        ensure_stopped(engine, old).await?;
        (options.step)(Step::Remove);
        ensure_removed(engine, &old.id, Removal::IfStopped).await
    };
    let left_over = match gone.await {
        Ok(()) => vec![],
        Err(error @ EngineError::NotFound { .. }) => match is_gone(engine, &old.id).await {
            Ok(true) => vec![],
            Ok(false) | Err(_) => report_not_removed(&member, &error),
        },
        Err(error) => report_not_removed(&member, &error),
    };
    let settled = left_over.is_empty();
    (
        Ok(Replaced {
            members: vec![NewContainer {
                name,
                id: new.clone(),
                image: member.image.reference.clone(),
            }],
            gap: Duration::ZERO,
            left_over,
        }),
        settled,
    )
}

fn report_not_removed(member: &Member, error: &EngineError) -> Vec<String> {
    tracing::warn!(
        container = member.old.name,
        old = member.old.id.as_str(),
        "cannot remove old container: {error}"
    );
    vec![member.backup_name().as_str().to_owned()]
}

/// Creates the new container, which no client reaches yet. Also returns its final configuration.
async fn create_unreachable(
    engine: &dyn Engine,
    old: Container,
    image: &NewImage,
    options: &ReplaceOptions<'_>,
) -> Result<(Member, Replacement), PrepareError> {
    let intent = prepare::load_intent(engine, &old, options).await?;
    let replacement = intent.to_replacement(&image.reference, &image.id);
    let unreached = without_aliases(&replacement);
    let at = Instant::now();
    let made = prepare::create(engine, &old, &unreached, image, options).await?;
    let member = Member::new(old, made, at, image.clone(), intent);
    Ok((member, replacement))
}

/// Makes the new container reachable while the old one has the name: starts it, waits until it is healthy, gives it the
/// aliases, waits until it is healthy again with them, and lets both containers answer for a while. An endpoint's aliases
/// cannot be changed, so Refit disconnects the container from each network and connects it again with them, and a program that
/// was bound to the old address may exit then. Returns when the new container was started.
async fn make_reachable(
    engine: &dyn Engine,
    member: &Member,
    replacement: &Replacement,
    options: &ReplaceOptions<'_>,
) -> Result<Option<jiff::Timestamp>, (Step, StepError)> {
    let Member { old, new, .. } = member;
    let at = |step| move |error: EngineError| (step, StepError::from(error));
    // A start is most of a downtime, so it takes turns with the downtimes of others.
    let downtime_permit = options.lanes.downtime().await;
    (options.step)(Step::Start);
    engine.start(new).await.map_err(at(Step::Start))?;
    drop(downtime_permit);
    (options.step)(Step::Prove);
    let started = wait_until_healthy(engine, new, options.proof)
        .await
        .map_err(|source| (Step::Prove, source))?;

    let background_permit = options.lanes.background().await;
    (options.step)(Step::Connect);
    for (network, endpoint) in replacement
        .request
        .endpoint
        .iter()
        .chain(&replacement.networks)
    {
        engine
            .disconnect(new, network_to_connect(network, endpoint))
            .await
            .map_err(at(Step::Connect))?;
        engine
            .connect(
                new,
                network_to_connect(network, endpoint),
                &with_alias(endpoint, &old.name),
            )
            .await
            .map_err(at(Step::Connect))?;
    }
    let now = engine.inspect(new).await.map_err(at(Step::Verify))?;
    drop(background_permit);
    let unfit = |problem: String| Err((Step::Verify, StepError::Unfit(problem)));
    if now.state != State::Running {
        return unfit("it stopped when it changed networks".into());
    }
    let differences = find_differences(replacement, &now);
    if !differences.is_empty() {
        return unfit(differences.join("; "));
    }
    (options.step)(Step::Prove);
    let baseline = Baseline {
        started,
        health_check: now.last_health_check,
    };
    let proof = ReadinessCheck {
        grace: options.proof.for_container(&now).grace.max(OVERLAP_TIME),
        ..options.proof
    };
    wait_until_healthy_again(engine, new, proof, baseline)
        .await
        .map_err(|source| (Step::Prove, source))
}

/// Gives the name to the new container while both run. Between the two renames no container has the name, and the new one
/// answers to it as an alias. Verifies the new container once again before the caller stops the old one.
async fn take_name(
    engine: &dyn Engine,
    member: &Member,
    started: Option<jiff::Timestamp>,
    options: &ReplaceOptions<'_>,
) -> Result<(), (Step, StepError)> {
    let Member { old, new, .. } = member;
    (options.step)(Step::Park);
    engine
        .rename(&old.id, &member.backup_name())
        .await
        .map_err(|error| (Step::Park, error.into()))?;
    (options.step)(Step::Rename);
    engine
        .rename(new, &member.name())
        .await
        .map_err(|error| (Step::Rename, error.into()))?;
    ensure_still_running(engine, new, started)
        .await
        .map_err(|source| (Step::Prove, source))
}

fn without_aliases(replacement: &Replacement) -> Replacement {
    let mut unreached = replacement.clone();
    let endpoints = unreached
        .request
        .endpoint
        .iter_mut()
        .map(|(_, endpoint)| endpoint);
    for endpoint in endpoints.chain(unreached.networks.iter_mut().map(|(_, endpoint)| endpoint)) {
        endpoint.remove("Aliases");
    }
    unreached
}

fn with_alias(endpoint: &Object, name: &str) -> Object {
    let mut endpoint = endpoint.clone();
    let aliases = endpoint.entry("Aliases").or_insert_with(|| json!([]));
    if let Some(aliases) = aliases.as_array_mut() {
        aliases.push(json!(name));
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::tests::container;
    use refit_model::container::Mount;

    #[track_caller]
    fn check(config: Value, host_config: Value, endpoint: Value, part: Option<&str>) {
        let mut subject = container(config, host_config);
        subject
            .endpoints
            .insert("net".into(), endpoint.as_object().cloned().unwrap());
        subject.mounts = vec![Mount {
            kind: "volume".into(),
            name: Some("db".into()),
            source: None,
            destination: "/d".into(),
            read_write: true,
        }];
        let blocker = overlap_blocker(&subject);
        match part {
            None => assert_eq!(blocker, None),
            Some(part) => assert!(
                blocker
                    .as_ref()
                    .is_some_and(|blocker| blocker.contains(part)),
                "{blocker:?}"
            ),
        }
    }

    #[test]
    fn exclusive_resource_blocks_overlap() {
        let net = || json!({"NetworkMode": "net"});
        check(json!({}), net(), json!({"IPAMConfig": null}), None);
        check(json!({}), net(), json!({"IPAMConfig": {}}), None);
        check(json!({}), json!({}), json!({}), Some("`bridge`"));
        check(
            json!({}),
            json!({"NetworkMode": "host"}),
            json!({}),
            Some("`host`"),
        );
        let ports =
            json!({"NetworkMode": "net", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}});
        check(json!({}), ports, json!({}), Some("80/tcp"));
        check(
            json!({}),
            net(),
            json!({"IPAMConfig": {"IPv4Address": "10.0.0.2"}}),
            Some("static address"),
        );
        check(
            json!({"MacAddress": "02:42:ac:11:00:09"}),
            net(),
            json!({}),
            Some("MAC"),
        );
        check(
            json!({"Labels": {LABEL_EXCLUSIVE_VOLUMES: "cache, db"}}),
            net(),
            json!({}),
            Some("`db`"),
        );
        check(
            json!({"Labels": {LABEL_EXCLUSIVE_VOLUMES: "cache"}}),
            net(),
            json!({}),
            None,
        );
    }
}
