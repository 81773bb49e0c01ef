//! Starts a container whose network was removed and created again.
//!
//! An engine starts a container in its networks by their ids. A network that was removed and created again has its old name and
//! another id, so the engine answers that there is no such network until somebody connects the container to the new one. The
//! container does not show this problem: it only looks exited.

use refit_engine::{Engine, EngineError};
use refit_model::container::{Container, ContainerId, Network, Object};

use super::intent::requested_endpoints;
use super::retry::{ensure_running, inspect_opt, retry};

/// Starts the container if it does not run. If a missing network prevents the start, connects the container to the only network
/// that now has that name.
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
                "cannot compare networks: {problem}"
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
        // The engine replaces its entry for this name, so a process that dies here leaves the container either in the old
        // network or in the new one.
        retry(|| engine.connect(container, network, &endpoint.settings)).await?;
        tracing::warn!(
            container = container.short(),
            network = endpoint.name,
            "its network was removed and created again: connected to the new one"
        );
    }
    ensure_running(engine, container).await
}

/// An endpoint whose network is gone.
struct MissingNetwork {
    name: String,
    settings: Object,
    /// The id of the network that has the name now. `None` if there is none, or more than one.
    present: Option<String>,
}

async fn missing_networks(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<Vec<MissingNetwork>, EngineError> {
    let Some(container) = inspect_opt(engine, container).await? else {
        return Ok(Vec::new());
    };
    let networks = retry(|| engine.networks()).await?;
    Ok(find_missing(&container, &networks))
}

fn find_missing(container: &Container, networks: &[Network]) -> Vec<MissingNetwork> {
    let mut missing = Vec::new();
    for (name, mut settings) in requested_endpoints(container) {
        let Some(id) = settings.remove("NetworkID") else {
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
        missing.push(MissingNetwork {
            name,
            settings,
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

    /// Compares a container in network `net` with the id `old` with the engine's networks.
    #[track_caller]
    fn check(networks: &[Network], expected: &[Option<&str>]) {
        let mut container = container(json!({}), json!({"NetworkMode": "net"}));
        for (name, id) in [("net", "old"), ("bridge", "gone")] {
            let endpoint = json!({"NetworkID": id, "Aliases": ["web"], "IPAddress": ""});
            let endpoint = endpoint.as_object().cloned().unwrap();
            container.endpoints.insert(name.into(), endpoint);
        }
        let missing = find_missing(&container, networks);
        let present: Vec<_> = missing.iter().map(|it| it.present.as_deref()).collect();
        assert_eq!(present, expected);
        for endpoint in missing {
            assert_eq!(endpoint.name, "net");
            assert_eq!(json!(endpoint.settings), json!({"Aliases": ["web"]}));
        }
    }

    #[test]
    fn recreated_network_is_found_by_name() {
        let other = network("b", "net2");
        check(&[network("old", "net"), other.clone()], &[]);
        check(&[network("old", "renamed")], &[]);
        check(&[network("new", "net"), other.clone()], &[Some("new")]);
        check(&[other], &[None]);
        // A name is not a part of an id, and if two networks share one name, neither is chosen.
        check(&[network("net4", "x")], &[None]);
        check(&[network("a", "net"), network("b", "net")], &[None]);
    }
}
