//! Starting a container whose network was removed and created again.
//!
//! An engine starts a container in its networks by their ids. A network that was removed and created again has its old name and
//! another id, so the engine answers that there is no such network, for as long as nobody connects the container to the new one.
//! The container's own name says nothing of that: who looks at it sees one that exited.

use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, Network, Object};

use super::intent::endpoints_asked;
use super::retry::{again, ensure_running, look};

/// The container runs. If it does not start because a network is gone, it is connected to the one network that has the name now.
pub(super) async fn ensure_started(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<(), EngineError> {
    let error = match ensure_running(engine, container).await {
        Err(error) if !error.is_passing() => error,
        answer => return answer,
    };
    let missing = match missing_networks(engine, container).await {
        Ok(missing) if missing.is_empty() => return Err(error),
        Ok(missing) => missing,
        Err(problem) => {
            tracing::debug!(
                container = container.short(),
                "cannot compare its networks with the engine's: {problem}"
            );
            return Err(error);
        }
    };
    for endpoint in &missing {
        let Some(network) = &endpoint.present else {
            return Err(EngineError::NotFound {
                action: format!("start container `{}`", container.short()),
                source: format!(
                    "its network `{0}` was removed; create a network `{0}`, and recovery connects the container to it",
                    endpoint.name
                )
                .into(),
            });
        };
        // The engine replaces what it has under this name, so whoever dies here leaves the container in the old network or in
        // the new one.
        again(|| engine.connect(container, network, &endpoint.asked)).await?;
        tracing::warn!(
            container = container.short(),
            network = endpoint.name,
            "its network was removed and created again: connected to the new one"
        );
    }
    ensure_running(engine, container).await
}

/// An endpoint whose network is gone.
struct Missing {
    name: String,
    asked: Object,
    /// The id of the network that has the name now. `None` if there is none, or more than one.
    present: Option<String>,
}

async fn missing_networks(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<Vec<Missing>, EngineError> {
    let Some(container) = look(engine, container).await? else {
        return Ok(Vec::new());
    };
    let networks = again(|| engine.networks()).await?;
    Ok(compare(&container, &networks))
}

fn compare(container: &Container, networks: &[Network]) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (name, mut asked) in endpoints_asked(container) {
        let Some(id) = asked.remove("NetworkID") else {
            continue;
        };
        if networks.iter().any(|network| id == network.id.as_str()) {
            continue;
        }
        let mut present = networks.iter().filter(|network| network.name == name);
        let present = match (present.next(), present.next()) {
            (Some(network), None) => Some(network.id.clone()),
            _ => None,
        };
        missing.push(Missing {
            name,
            asked,
            present,
        });
    }
    missing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::intent::tests::container;

    fn network(id: &str, name: &str) -> Network {
        Network {
            id: id.into(),
            name: name.into(),
        }
    }

    /// A container in network `net` with the id `old`, and the engine's networks.
    #[track_caller]
    fn check(networks: &[Network], expected: &[Option<&str>]) {
        let mut container = container(json!({}), json!({"NetworkMode": "net"}));
        for (name, id) in [("net", "old"), ("bridge", "gone")] {
            let endpoint = json!({"NetworkID": id, "Aliases": ["web"], "IPAddress": ""});
            let endpoint = endpoint.as_object().cloned().unwrap();
            container.endpoints.insert(name.into(), endpoint);
        }
        let missing = compare(&container, networks);
        let present: Vec<_> = missing.iter().map(|it| it.present.as_deref()).collect();
        assert_eq!(present, expected);
        for endpoint in missing {
            assert_eq!(endpoint.name, "net");
            assert_eq!(json!(endpoint.asked), json!({"Aliases": ["web"]}));
        }
    }

    #[test]
    fn network_with_the_name_and_another_id_is_the_present_one() {
        let other = network("b", "net2");
        check(&[network("old", "net"), other.clone()], &[]);
        check(&[network("old", "renamed")], &[]);
        check(&[network("new", "net"), other.clone()], &[Some("new")]);
        check(&[other], &[None]);
        // A name is not a part of an id, and two networks of one name are nobody's choice.
        check(&[network("net4", "x")], &[None]);
        check(&[network("a", "net"), network("b", "net")], &[None]);
    }
}
