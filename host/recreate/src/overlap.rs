//! A replacement without a gap: the new container runs and has proven itself before the old one stops.
//!
//! For containers that are reached by name on networks of their own. While it proves itself the new container bears none of the
//! old one's aliases, so nobody reaches it; then it gets them, proves itself again, and for five seconds at least both answer to them;
//! then it gets the name, is looked at once more, and the old one stops. Until the old one gives up its name the way back is free.
//! Whoever resolves a name meanwhile finds one that runs among its addresses. The engine knows an address before it is attached
//! and for some milliseconds after it is gone, so a caller must be one that tries all of them, as the usual ones do.
//!
//! Two containers run at once, so nothing that only one can hold may be in the way: see [`objection`].

use std::time::{Duration, Instant};

use refit_engine::{Engine, EngineError, Removal};
use refit_model::container::{Container, Object, State};
use refit_model::recreation::Step;
use serde_json::{Value, json};

use super::health_gate::{Before, ReadinessCheck, check_again, prove, prove_since};
use super::intent::{Replacement, network_to_connect};
use super::prepare::{self, PrepareError, discard};
use super::replace::{
    Member, NewContainer, NewImage, ReplaceOptions, Replaced, put_back, unchanged,
};
use super::retry::{ensure_removed, is_gone};
use super::stop::ensure_stopped;
use super::verify::differences;
use super::{RecreateError, StepError};

/// On a container: its volumes, by name and separated by commas, that two containers must not have open at once. `*` for all.
pub const LABEL_EXCLUSIVE_VOLUMES: &str = "io.refit.exclusive-volumes";

/// How long both answer to the aliases. The engine's resolver knows a new address some 50 ms before the engine has attached it.
/// Where somebody called in between, their kernel asks for the neighbour again after a second, and until then nobody on that machine
/// reaches it; what was lost meanwhile is sent again one and three seconds after it was. The old one must answer for all that time,
/// to whoever turns to it. From Docker 28 on, the engine announces the address itself (moby/moby#48808), and
/// few calls have to wait.
const BOTH_ANSWER: Duration = Duration::from_secs(5);

/// Why two of this container cannot run at once, as a sentence fragment; `None` where they can.
pub fn objection(container: &Container) -> Option<String> {
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
    let held = names
        .into_iter()
        .find(|name| exclusive.contains(name) || exclusive.contains(&"*"))?;
    Some(format!(
        "its volume `{held}` is marked exclusive by the label `{LABEL_EXCLUSIVE_VOLUMES}`"
    ))
}

/// Replace `old`, which runs and to which [`objection`] has none. The flag says whether nothing is left to finish or undo.
pub async fn overlap(
    engine: &dyn Engine,
    old: Container,
    image: &NewImage,
    manner: &ReplaceOptions<'_>,
) -> (Result<Replaced, RecreateError>, bool) {
    let name = old.name.clone();
    // The old container runs on and keeps its name; whatever fails up to the renaming leaves it as it is.
    let aside = manner.lanes.aside().await;
    let (member, wanted) = match make(engine, old, image, manner).await {
        Ok(made) => made,
        Err(unready) => return (Err(unready.error), unready.settled),
    };
    drop(aside);
    if manner.ending.is_cancelled() {
        let error = RecreateError::Withdrawn { name };
        return (Err(error), discard(engine, &member.new).await);
    }
    let started = match make_reachable(engine, &member, &wanted, manner).await {
        Ok(started) => started,
        Err((step, source)) => {
            let error = RecreateError::Aborted { name, step, source };
            return (Err(error), discard(engine, &member.new).await);
        }
    };
    if let Err(error) = unchanged(engine, &member.old, image).await {
        return (Err(error), discard(engine, &member.new).await);
    }

    let _aside = manner.lanes.aside().await;
    if let Err((step, source)) = take_name(engine, &member, started, manner).await {
        return put_back(engine, &[member], step, source).await;
    }
    let Member { old, new, .. } = &member;
    (manner.step)(Step::Stop);
    let gone = async {
        ensure_stopped(engine, old).await?;
        (manner.step)(Step::Remove);
        ensure_removed(engine, &old.id, Removal::IfStopped).await
    };
    let left_over = match gone.await {
        Ok(()) => vec![],
        Err(error @ EngineError::NotFound { .. }) => match is_gone(engine, &old.id).await {
            Ok(true) => vec![],
            Ok(false) | Err(_) => not_removed(&member, &error),
        },
        Err(error) => not_removed(&member, &error),
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

fn not_removed(member: &Member, error: &EngineError) -> Vec<String> {
    tracing::warn!(
        container = member.old.name,
        old = member.old.id.as_str(),
        "the old container could not be removed: {error}"
    );
    vec![member.backup_name().as_str().to_owned()]
}

/// The new container, which nobody reaches yet, and what it is to become.
async fn make(
    engine: &dyn Engine,
    old: Container,
    image: &NewImage,
    manner: &ReplaceOptions<'_>,
) -> Result<(Member, Replacement), PrepareError> {
    let intent = prepare::intent(engine, &old, manner).await?;
    let wanted = intent.on(&image.reference, &image.id);
    let unreached = without_aliases(&wanted);
    let at = Instant::now();
    let made = prepare::create(engine, &old, &unreached, image, manner).await?;
    let member = Member::new(old, made, at, image.clone(), intent);
    Ok((member, wanted))
}

/// Everything that happens while the old container has the name: the new one is started and proven, gets the aliases, proves itself
/// again as it is now, and both answer for a while. An endpoint's aliases cannot be changed, so it leaves each network and comes back
/// with them, and a program that was bound to the address it had may end then. Returns when it was started.
async fn make_reachable(
    engine: &dyn Engine,
    member: &Member,
    wanted: &Replacement,
    manner: &ReplaceOptions<'_>,
) -> Result<Option<jiff::Timestamp>, (Step, StepError)> {
    let Member { old, new, .. } = member;
    let at = |step| move |error: EngineError| (step, StepError::from(error));
    // A start is most of what a gap is, so it takes turns with the gaps of others.
    let lane = manner.lanes.gap().await;
    (manner.step)(Step::Start);
    engine.start(new).await.map_err(at(Step::Start))?;
    drop(lane);
    (manner.step)(Step::Prove);
    let started = prove(engine, new, manner.proof)
        .await
        .map_err(|source| (Step::Prove, source))?;

    let aside = manner.lanes.aside().await;
    (manner.step)(Step::Connect);
    for (network, endpoint) in wanted.request.endpoint.iter().chain(&wanted.networks) {
        engine
            .disconnect(new, network_to_connect(network, endpoint))
            .await
            .map_err(at(Step::Connect))?;
        engine
            .connect(
                new,
                network_to_connect(network, endpoint),
                &with_name(endpoint, &old.name),
            )
            .await
            .map_err(at(Step::Connect))?;
    }
    let now = engine.inspect(new).await.map_err(at(Step::Verify))?;
    drop(aside);
    let unfit = |problem: String| Err((Step::Verify, StepError::Unfit(problem)));
    if now.state != State::Running {
        return unfit("it stopped when it changed networks".into());
    }
    let found = differences(wanted, &now);
    if !found.is_empty() {
        return unfit(found.join("; "));
    }
    (manner.step)(Step::Prove);
    let before = Before {
        started,
        health_check: now.last_health_check,
    };
    let proof = ReadinessCheck {
        grace: manner.proof.for_container(&now).grace.max(BOTH_ANSWER),
        ..manner.proof
    };
    prove_since(engine, new, proof, before)
        .await
        .map_err(|source| (Step::Prove, source))
}

/// Both run. Between the two renames nobody has the name, and the new one answers to it as an alias. It is looked at once more
/// before the old one is stopped.
async fn take_name(
    engine: &dyn Engine,
    member: &Member,
    started: Option<jiff::Timestamp>,
    manner: &ReplaceOptions<'_>,
) -> Result<(), (Step, StepError)> {
    let Member { old, new, .. } = member;
    (manner.step)(Step::Park);
    engine
        .rename(&old.id, &member.backup_name())
        .await
        .map_err(|error| (Step::Park, error.into()))?;
    (manner.step)(Step::Rename);
    engine
        .rename(new, &member.name())
        .await
        .map_err(|error| (Step::Rename, error.into()))?;
    check_again(engine, new, started)
        .await
        .map_err(|source| (Step::Prove, source))
}

fn without_aliases(wanted: &Replacement) -> Replacement {
    let mut unreached = wanted.clone();
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

fn with_name(endpoint: &Object, name: &str) -> Object {
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
        let said = objection(&subject);
        match part {
            None => assert_eq!(said, None),
            Some(part) => assert!(
                said.as_ref().is_some_and(|said| said.contains(part)),
                "{said:?}"
            ),
        }
    }

    #[test]
    fn what_only_one_can_hold_forbids_it() {
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
