//! What engines have had only since Docker 20.10: carried by those that have it, dropped by the others when a container is made.

use refit::engine::Engine as _;
use refit_tests::{ImageSpec, with_world};
use serde_json::json;

use crate::bench::{Bench, docker, object};
use crate::changes::changes;

/// 24, 30: as the engine's interface description says since when there is what.
#[tokio::test]
async fn what_only_newer_engines_have_comes_back_where_they_have_it() -> anyhow::Result<()> {
    with_world("what only newer engines have", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let (first, second) = (w.network("first").await?, w.network("second").await?);
        let name = w.name("a");
        let check = json!({
            "Test": ["CMD", "/stamp", "health"], "Interval": 1_000_000_000,
            "StartPeriod": 10_000_000_000_u64, "StartInterval": 200_000_000,
        });
        let host = json!({"NetworkMode": first, "Annotations": {"io.example": "1"}});
        let id = bench
            .create(&name, &old, json!({"Healthcheck": check}), host)
            .await?;
        let engine = docker(&w);
        let wish = object(json!({"Aliases": ["web"], "GwPriority": 7}));
        engine.connect(&id, &second, &wish).await?;
        engine.start(&id).await?;

        let before = bench.inspect(&name).await?;
        let api = bench.api().await?;
        let has = [
            (
                (1, 43),
                before.host_config.get("Annotations") == Some(&json!({"io.example": "1"})),
            ),
            (
                (1, 44),
                before.config["Healthcheck"]["StartInterval"] == 200_000_000,
            ),
            (
                (1, 48),
                before.endpoints[&second].get("GwPriority") == Some(&json!(7)),
            ),
        ];
        for (since, has) in has {
            assert_eq!(
                has,
                api >= since,
                "of {since:?} on an engine of {api:?}: {before:#?}"
            );
        }
        bench.refreshed(&name, &new).await?;
        assert_eq!(
            changes(&before, &bench.inspect(&name).await?),
            Vec::<String>::new()
        );
        Ok(())
    })
    .await
}
