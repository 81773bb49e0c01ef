//! The promise, checked on the engine: what must be true whatever went wrong.
//!
//! Looks with the kit's own client, past every proxy, and compares whole documents of the engine. What Refit says of itself is
//! judged only where it says that all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bollard::query_parameters::InspectNetworkOptions;
use serde_json::{Value, json};

use super::Scenario;
use super::bench::{Behind, Bench};
use super::fixtures::{Before, FOLLOWER_PORT, Follower, MARKER, STAMPS, VOLUMES};
use super::program::{Ending, Run};
use crate::bounded::{self, CALL, within};
use crate::fault_proxy::{Call, Proxy, Refused};
use crate::world::World;

/// One way in which the promise was broken.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The same word for all cases that lose in the same way.
    pub cause: &'static str,
    pub detail: String,
}

fn problem(cause: &'static str, detail: impl Into<String>) -> Problem {
    Problem {
        cause,
        detail: detail.into(),
    }
}

/// What there is in the end under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The very container that was there before.
    Old,
    /// One on the new image.
    New,
    /// None.
    Gone,
    /// Something that should not be.
    Odd,
}

/// What a container is, without what no two containers share.
pub(super) type Facts = BTreeMap<String, Value>;

/// A program that was started a moment ago listens soon; a health check gives its verdict after an interval.
const SETTLING: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(30);

/// Whether something is to be recovered: not exactly one running container, under the name.
pub(super) async fn is_half_done(w: &World, before: &Before) -> anyhow::Result<bool> {
    let names = w.containers().await?;
    if names.is_empty() {
        return Ok(false);
    }
    if names != before.names() {
        return Ok(true);
    }
    for name in names {
        if w.inspect(&name).await?.state.unwrap_or_default().running != Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is there, and all that is wrong with it.
pub(super) async fn judge(
    w: &World,
    bench: &Bench,
    image: &Behind,
    scenario: Scenario,
    before: &Before,
    proxy: &Proxy,
) -> anyhow::Result<(End, Vec<Problem>)> {
    let mut problems = Vec::new();
    let names = w.containers().await?;
    let others: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !before.names().iter().any(|it| it == name))
        .collect();
    if !others.is_empty() {
        problems.push(problem("left-over container", others.join(", ")));
    }
    let under_the_name = names.iter().find(|name| **name == before.name).cloned();
    let Some(name) = under_the_name else {
        if scenario != Scenario::Remove {
            problems.push(problem(
                "lost container",
                format!("nothing is called {}", before.name),
            ));
        }
        problems.extend(volumes(w, before, proxy, &BTreeSet::new()).await?);
        problems.extend(containers(w, before, proxy, &[]).await?);
        return Ok((End::Gone, problems));
    };

    let document = serde_json::to_value(w.inspect(&name).await?)?;
    let id = document["Id"].as_str().unwrap_or_default().to_owned();
    let end = match document["Image"].as_str() {
        Some(found) if found == bench.old.id && id == before.id => End::Old,
        Some(found) if found == image.new.id && id != before.id => End::New,
        found => {
            let text = format!(
                "{name} is {id} on {found:?}; it was {} on {}",
                before.id, bench.old.id
            );
            problems.push(problem("wrong container", text));
            End::Odd
        }
    };
    let status = document["State"]["Status"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if status != "running" {
        problems.push(problem(
            "not running",
            format!("{name} is {status}: {}", document["State"]),
        ));
    } else {
        problems.extend(works(w, before, end).await?);
    }
    let expected = match end {
        End::New => expected_of_new(before, bench, image),
        End::Old | End::Gone | End::Odd => before.facts.clone(),
    };
    problems.extend(
        differences(&expected, &facts(&document)).map(|text| problem("changed setting", text)),
    );
    problems.extend(contents(w, before, &id).await?);
    problems.extend(networks(w, before, &id).await?);
    let mounted = document["Mounts"].as_array().into_iter().flatten();
    let mounted = mounted
        .filter_map(|mount| mount["Name"].as_str().map(str::to_owned))
        .collect();
    problems.extend(volumes(w, before, proxy, &mounted).await?);
    let mut left = vec![id.clone()];
    if let Some(follower) = &before.follower {
        let (follower_id, more) = follows(w, before, follower, &id, end).await?;
        left.extend(follower_id);
        problems.extend(more);
    }
    problems.extend(containers(w, before, proxy, &left).await?);
    Ok((end, problems))
}

/// It answers those who ask, with the version that it should be, and is healthy where it has a health check.
async fn works(w: &World, before: &Before, end: End) -> anyhow::Result<Option<Problem>> {
    let version = if end == End::New { "v2" } else { "v1" };
    let began = Instant::now();
    loop {
        let answer = match before.host_port {
            Some(port) => w.read_line_at(([127, 0, 0, 1], port).into()).await,
            None => w.read_line(&before.name).await,
        };
        let health = w
            .inspect(&before.name)
            .await?
            .state
            .and_then(|state| state.health);
        let health = health
            .and_then(|health| health.status)
            .map(|status| status.to_string())
            .unwrap_or_default();
        let answers = matches!(&answer, Ok(line) if line == version);
        if answers && matches!(health.as_str(), "" | "none" | "healthy") {
            return Ok(None);
        }
        if began.elapsed() > SETTLING {
            return Ok(Some(problem(
                "does not work",
                format!("it says {answer:?} and is {health:?}"),
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The follower is there, as it was, and depends on whoever has the name now.
async fn follows(
    w: &World,
    before: &Before,
    follower: &Follower,
    provider: &str,
    end: End,
) -> anyhow::Result<(Option<String>, Vec<Problem>)> {
    if !w.container_exists(&follower.name).await? {
        let text = format!("nothing is called {}", follower.name);
        return Ok((None, vec![problem("lost container", text)]));
    }
    let mut problems = Vec::new();
    let document = serde_json::to_value(w.inspect(&follower.name).await?)?;
    let id = document["Id"].as_str().unwrap_or_default().to_owned();
    if (end == End::Old) != (id == follower.id) {
        problems.push(problem(
            "wrong container",
            format!(
                "{} is {id}, it was {}, and its provider is {end:?}",
                follower.name, follower.id
            ),
        ));
    }
    let mut expected = follower.facts.clone();
    // What it had of the old container by its id it has of the one that is there now. A link goes by the name.
    let of_provider = |text: &str| text.starts_with("container:");
    for value in expected.values_mut() {
        if value.as_str().is_some_and(of_provider) {
            *value = json!(format!("container:{provider}"));
        }
    }
    // It has its provider's hostname, which is an id.
    expected.remove("Config.Hostname");
    let mut found = facts(&document);
    found.remove("Config.Hostname");
    problems.extend(
        differences(&expected, &found)
            .map(|text| problem("changed setting", format!("{}: {text}", follower.name))),
    );
    if document["State"]["Status"] != json!("running") {
        problems.push(problem(
            "not running",
            format!("{} is {}", follower.name, document["State"]),
        ));
    } else if let Ok(address) = w.address(lives_in(&document, before, follower)).await {
        let began = Instant::now();
        loop {
            let answer = w.read_line_at((address, FOLLOWER_PORT).into()).await;
            if matches!(&answer, Ok(line) if line == "v1") {
                break;
            }
            if began.elapsed() > SETTLING {
                problems.push(problem(
                    "does not work",
                    format!("{} is not reached: {answer:?}", follower.name),
                ));
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok((Some(id), problems))
}

/// Whose address a follower is reached at.
fn lives_in<'a>(document: &Value, before: &'a Before, follower: &'a Follower) -> &'a str {
    let mode = document["HostConfig"]["NetworkMode"].as_str();
    if mode.is_some_and(|mode| mode.starts_with("container:")) {
        &before.name
    } else {
        &follower.name
    }
}

/// The data in the volumes, as it was, and the old stamps before all others.
async fn contents(w: &World, before: &Before, id: &str) -> anyhow::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for volume in VOLUMES {
        let path = format!("{volume}/{MARKER}");
        match w.read_container_file(id, &path).await {
            Ok(text) if text == before.marker => {}
            other => problems.push(problem("lost data", format!("{path} is {other:?}"))),
        }
    }
    match w.read_container_file(id, STAMPS).await {
        Ok(text) if text.starts_with(&before.stamps) => {}
        other => problems.push(problem("lost data", format!("{STAMPS} is {other:?}"))),
    }
    Ok(problems)
}

/// Nobody else is in its networks: no endpoint, no alias of a container that is not there any more.
async fn networks(w: &World, before: &Before, id: &str) -> anyhow::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for network in &before.networks {
        let look = w
            .docker()
            .inspect_network(network, None::<InspectNetworkOptions>);
        let found = within(CALL, &format!("inspect network {network}"), look).await?;
        let inside: Vec<String> = found.containers.unwrap_or_default().into_keys().collect();
        if inside != [id] {
            problems.push(problem(
                "dangling endpoint",
                format!("in {network} are {inside:?}, not only {id}"),
            ));
        }
    }
    Ok(problems)
}

/// The volumes that were there still are, and of those that were made since only what is mounted.
async fn volumes(
    w: &World,
    before: &Before,
    proxy: &Proxy,
    mounted: &BTreeSet<String>,
) -> anyhow::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for volume in &before.volumes {
        if !volume_exists(w, volume).await? {
            problems.push(problem("lost volume", volume.clone()));
        }
    }
    let created = proxy.created();
    let made: BTreeSet<&String> = created
        .iter()
        .flat_map(|created| &created.volumes)
        .collect();
    for volume in made {
        if !before.volumes.contains(volume)
            && !mounted.contains(volume)
            && volume_exists(w, volume).await?
        {
            problems.push(problem("left-over volume", volume.clone()));
        }
    }
    Ok(problems)
}

async fn volume_exists(w: &World, volume: &str) -> anyhow::Result<bool> {
    let look = async {
        match w.docker().inspect_volume(volume).await {
            Err(error) if bounded::is_absent(&error) => Ok(false),
            other => other.map(|_| true),
        }
    };
    within(CALL, &format!("look for volume {volume}"), look).await
}

/// Of the old containers and all that were made since, only those are left. By id: labels and names may be what was lost.
async fn containers(
    w: &World,
    before: &Before,
    proxy: &Proxy,
    left: &[String],
) -> anyhow::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let created = proxy.created();
    let follower = before.follower.iter().map(|follower| &follower.id);
    for id in created
        .iter()
        .map(|created| &created.id)
        .chain([&before.id])
        .chain(follower)
    {
        if !left.contains(id) && w.container_exists(id).await? {
            let name = w.inspect(id).await?.name.unwrap_or_default();
            problems.push(problem(
                "left-over container",
                format!("{id} is still there, as {name}"),
            ));
        }
    }
    Ok(problems)
}

/// What a refresh said of itself must not be better than what came of it.
pub(super) fn judge_refresh(
    scenario: Scenario,
    end: End,
    refresh: &Run,
    kill_was_due: bool,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    match refresh.ending {
        Ending::Killed if kill_was_due => {}
        Ending::Status(0) if end != scenario.wanted() => problems.push(problem(
            "false success",
            format!("status 0, and the container is {end:?}"),
        )),
        Ending::Status(1 | 2) if scenario == Scenario::Remove && end == End::Gone => {
            problems.push(problem(
                "false failure",
                "it was removed, and the status says that it was not",
            ));
        }
        Ending::Status(0..=2) => {}
        other => problems.push(problem("bad end", format!("refresh ended with {other}"))),
    }
    if refresh.said.contains("panicked at") {
        problems.push(problem("panic", "see what it said"));
    }
    problems
}

/// Whatever is refused for good: the container serves, but where it was stopped and the start of any container is refused.
pub(super) async fn judge_service(
    w: &World,
    before: &Before,
    refused: Refused,
    after: &str,
) -> anyhow::Result<Vec<Problem>> {
    if refused.label == "POST /containers/{id}/start" && refused.only_what_exists {
        return Ok(Vec::new());
    }
    let running = async {
        if !w.container_exists(&before.name).await? {
            return Ok::<bool, anyhow::Error>(false);
        }
        let state = w.inspect(&before.name).await?.state.unwrap_or_default();
        Ok(state.running == Some(true))
    };
    if running.await? {
        return Ok(Vec::new());
    }
    let detail = format!("{} does not run after {after}", before.name);
    Ok(vec![problem("out of service", detail)])
}

/// A recovery that cannot know whether another Refit is at work leaves everything as it is, and says that something is under way.
pub(super) fn judge_early_recovery(half_done: bool, recover: &Run, calls: &[Call]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let writes: Vec<String> = calls
        .iter()
        .filter(|call| call.method != "GET")
        .map(Call::label)
        .collect();
    if !writes.is_empty() {
        let detail = format!("too early, it did {}", writes.join(", "));
        problems.push(problem("undid a living refresh", detail));
    }
    if half_done && !recover.said.contains("in-progress") {
        let detail = "something is half done, and it does not say so";
        problems.push(problem("silent recovery", detail));
    }
    problems
}

/// Recovery ends well, and has nothing to do when it is run again.
pub(super) fn judge_recovery(recover: &Run, again: &Run, calls_again: &[Call]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (title, run) in [("recover", recover), ("a second recover", again)] {
        if run.ending != Ending::Status(0) {
            problems.push(problem(
                "recovery failed",
                format!("{title} ended with {}", run.ending),
            ));
        }
    }
    let writes: Vec<String> = calls_again
        .iter()
        .filter(|call| call.method != "GET")
        .map(Call::label)
        .collect();
    if !writes.is_empty() {
        problems.push(problem(
            "recovery never ends",
            format!("run again it did {}", writes.join(", ")),
        ));
    }
    problems
}

/// The facts of a container, from its inspection. Left out is what the engine makes up anew for each, and what the image alone
/// decides; anonymous volumes count as mounts, however they were asked for.
pub(super) fn facts(document: &Value) -> Facts {
    let mut facts = Facts::new();
    let name = document["Name"]
        .as_str()
        .unwrap_or_default()
        .trim_start_matches('/');
    let short: String = document["Id"]
        .as_str()
        .unwrap_or_default()
        .chars()
        .take(12)
        .collect();
    for (key, value) in document["Config"].as_object().into_iter().flatten() {
        match key.as_str() {
            "Volumes" => {}
            "Hostname" if *value == json!(short) => {}
            "Env" => {
                facts.insert("Config.Env".to_owned(), sorted(value));
            }
            "Labels" => {
                for (label, value) in value.as_object().into_iter().flatten() {
                    facts.insert(format!("label {label}"), value.clone());
                }
            }
            _ => {
                facts.insert(format!("Config.{key}"), value.clone());
            }
        }
    }
    for (key, value) in document["HostConfig"].as_object().into_iter().flatten() {
        let value = if key == "Binds" {
            named_binds(value)
        } else {
            value.clone()
        };
        facts.insert(format!("HostConfig.{key}"), value);
    }
    for mount in document["Mounts"].as_array().into_iter().flatten() {
        let destination = mount["Destination"].as_str().unwrap_or_default();
        let what = json!([mount["Type"], mount["Name"], mount["RW"]]);
        facts.insert(format!("mount {destination}"), what);
    }
    for (network, endpoint) in document["NetworkSettings"]["Networks"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let asked = &endpoint["IPAMConfig"];
        let address = if asked["IPv4Address"].is_string() {
            endpoint["IPAddress"].clone()
        } else {
            Value::Null
        };
        // The engine gives its short id as an alias, and it answers to its name whether or not that is one.
        let given = [json!(short), json!(name)];
        let aliases = endpoint["Aliases"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|alias| !given.contains(alias));
        let aliases = sorted(&aliases.cloned().collect());
        facts.insert(
            format!("network {network}"),
            json!([aliases, asked, address, endpoint["Links"]]),
        );
    }
    facts.insert(
        "ports".to_owned(),
        document["NetworkSettings"]["Ports"].clone(),
    );
    facts.retain(|_, value| !value.is_null());
    facts
}

fn sorted(list: &Value) -> Value {
    let mut texts: Vec<&str> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    texts.sort_unstable();
    json!(texts)
}

/// Without those of volumes that nobody named.
fn named_binds(binds: &Value) -> Value {
    let is_anonymous = |bind: &str| {
        let source = bind.split(':').next().unwrap_or_default();
        source.len() == 64 && source.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let binds = binds
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    json!(binds.filter(|bind| !is_anonymous(bind)).collect::<Vec<_>>())
}

/// As it was, with the new image's defaults in the place of the old one's.
fn expected_of_new(before: &Before, bench: &Bench, image: &Behind) -> Facts {
    let mut facts = before.facts.clone();
    let set = facts
        .get("Config.Env")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let set = set
        .iter()
        .filter_map(Value::as_str)
        .filter(|variable| !bench.old.env.iter().any(|old| old == variable));
    let all: Vec<&str> = set
        .chain(image.new.env.iter().map(String::as_str))
        .collect();
    facts.insert("Config.Env".to_owned(), sorted(&json!(all)));
    for (labels, set) in [(&bench.old.labels, false), (&image.new.labels, true)] {
        for (label, value) in labels {
            let key = format!("label {label}");
            if set {
                facts.insert(key, json!(value));
            } else if facts.get(&key) == Some(&json!(value)) {
                facts.remove(&key);
            }
        }
    }
    facts
}

/// What differs, as sentences. What the new image alone brings (a volume that it declares) is no difference.
fn differences<'a>(
    expected: &'a Facts,
    found: &'a Facts,
) -> impl Iterator<Item = String> + use<'a> {
    let keys: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    keys.into_iter()
        .filter_map(|key| match (expected.get(key), found.get(key)) {
            (Some(expected), Some(found)) if expected == found => None,
            (None, Some(_)) if key.as_str() == "mount /fresh" => None,
            (expected, found) => {
                let text = |value: Option<&Value>| {
                    value.map_or_else(|| "absent".to_owned(), Value::to_string)
                };
                Some(format!("{key} was {}, is {}", text(expected), text(found)))
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(hostname: &str, id: &str) -> Value {
        json!({
            "Id": format!("{id}{}", "0".repeat(60)),
            "Config": { "Hostname": hostname, "Env": ["B=2", "A=1"], "Labels": { "mine": "yes" } },
            "HostConfig": { "Binds": ["data:/data", format!("{}:/cache", "a".repeat(64))] },
            "Mounts": [{ "Type": "volume", "Name": "data", "Destination": "/data", "RW": true }],
            "NetworkSettings": { "Networks": { "net": { "Aliases": [format!("{id}00000000"), "web"] } }, "Ports": {} },
        })
    }

    #[test]
    fn a_container_and_its_replacement_have_the_same_facts() {
        let (one, other) = (
            document("aaaa00000000", "aaaa"),
            document("bbbb00000000", "bbbb"),
        );
        assert_eq!(
            differences(&facts(&one), &facts(&other)).collect::<Vec<_>>(),
            Vec::<String>::new()
        );
        assert!(facts(&one).contains_key("network net"));
    }

    #[test]
    fn what_was_lost_is_named() {
        let (one, mut other) = (
            document("aaaa00000000", "aaaa"),
            document("aaaa00000000", "aaaa"),
        );
        other["Mounts"] = json!([]);
        other["Config"]["Labels"]["mine"] = json!("no");
        let found: Vec<String> = differences(&facts(&one), &facts(&other)).collect();
        assert_eq!(
            found,
            [
                r#"label mine was "yes", is "no""#,
                r#"mount /data was ["volume","data",true], is absent"#
            ]
        );
    }
}
