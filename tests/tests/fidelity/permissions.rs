//! What a probe of calls finds out, at the engine itself and through a proxy that refuses some of them.

use refit::engine::permissions::{EngineCall, Permission, probe_calls};
use refit_tests::{ContainerSpec, ImageSpec, Proxy, with_world};

use crate::bench::{docker, docker_at};

#[tokio::test]
async fn engine_allows_every_call_and_nothing_changes() -> anyhow::Result<()> {
    with_world("probe the engine", |w| async move {
        let old = w.load(ImageSpec::new("v1")).await?;
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let before = w.inspect(&a.name).await?;
        let found = probe_calls(&docker(&w), &EngineCall::ALL).await;
        let others: Vec<_> = found
            .iter()
            .filter(|(_, permission)| **permission != Permission::Allowed)
            .collect();
        assert!(others.is_empty(), "{others:?}");
        assert_eq!(found.iter().count(), EngineCall::ALL.len());
        let after = w.inspect(&a.name).await?;
        assert_eq!(before.state, after.state);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn proxy_refusal_is_found_for_each_call() -> anyhow::Result<()> {
    with_world("probe through a proxy", |w| async move {
        for call in EngineCall::ALL {
            let proxy = Proxy::before(&w).await?;
            let end = call.template().rsplit('}').next().unwrap_or_default();
            proxy.refuse(call.method().as_str(), end, 403, "Forbidden");
            let found = probe_calls(&docker_at(&proxy.docker_host()), &[call]).await;
            let refused: Vec<EngineCall> = found.refused().map(|(call, _)| call).collect();
            // Without a version no other call can be made.
            if call == EngineCall::Version {
                assert!(
                    matches!(found.get(call), Some(Permission::Unknown(_))),
                    "{found:?}"
                );
            } else {
                assert_eq!(refused, [call], "{found:?}");
            }
        }
        Ok(())
    })
    .await
}
