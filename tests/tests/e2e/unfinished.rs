//! What was left half done is said by everything that looks, until it is mended; and the daemon mends it.

use refit_tests::registry::{self, Registry};
use refit_tests::{Proxy, Refit, World, with_world};
use serde_json::Value;

use crate::{behind, until};

/// With a state folder of its own. What is left half done here is another Refit's for the tests beside this one, and theirs is for
/// this one: nobody else mends it, or counts it.
fn refit(w: &World, registry: &Registry, proxy: &Proxy) -> anyhow::Result<Refit> {
    let refit = crate::refit(w, registry, &["hermes"])?;
    Ok(refit
        .set("state_dir", "state")
        .env("DOCKER_HOST", &proxy.docker_host()))
}

/// What a report, or an answer to `doctor`, says of it.
fn mentions(document: &Value, container: &str) -> bool {
    document.to_string().contains(container)
}

async fn runs(w: &World, container: &str) -> anyhow::Result<bool> {
    let state = w.inspect(container).await?.state.unwrap_or_default();
    Ok(state.running == Some(true))
}

/// Nothing can be started for a while, neither the new container nor the old one.
#[tokio::test]
async fn stranded_container_is_in_every_report_until_it_runs() -> anyhow::Result<()> {
    with_world("a stranded container", |w| async move {
        let registry = registry::open().await?;
        let (old, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        proxy.refuse("POST", "/start", 500, "nothing starts today");
        let refit = refit(&w, registry, &proxy)?;
        refit.run(&["refresh", "--json"]).await?.expect(1);
        for command in [
            ["plan", "--detailed-exitcode"].as_slice(),
            &["refresh"],
            &["recover"],
            &["doctor"],
        ] {
            let output = refit.run(&[command, &["--json"]].concat()).await?.expect(1);
            assert!(mentions(&output.json(), &old.name), "{command:?}: {output}");
        }
        let plan = refit.run(&["plan", "--json"]).await?.expect(1).json();
        assert_eq!(plan["summary"]["unfinished"], 1, "{plan:#}");
        assert_eq!(plan["summary"]["current"], 0, "nothing runs: {plan:#}");

        proxy.pass("POST", "/start");
        refit.run(&["recover"]).await?.expect(0);
        assert!(runs(&w, &old.id).await?);
        assert_eq!(w.containers().await?, [old.name.as_str()]);
        refit.run(&["doctor"]).await?.expect(0);
        Ok(())
    })
    .await
}

/// Nobody asks for anything: the daemon sees that it can be mended.
#[tokio::test]
async fn daemon_mends_a_stranded_container_by_itself() -> anyhow::Result<()> {
    with_world("the daemon mends", |w| async move {
        let registry = registry::open().await?;
        let (old, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let daemon = refit(&w, registry, &proxy)?.serve().await?;
        daemon.until_ready().await?;
        proxy.refuse("POST", "/start", 500, "nothing starts today");
        daemon.refresh("?runtime=hermes").await?;
        assert!(!runs(&w, &old.id).await?);
        until("the daemon say so", || async {
            let ready = daemon.request("GET", "/readyz").await?;
            let code = ready.json().unwrap_or_default()["code"].clone();
            Ok(ready.status == 503 && code == "unfinished-replacements")
        })
        .await?;
        let metrics = daemon.request("GET", "/metrics").await?.text;
        assert!(
            metrics.contains("refit_replacements_unfinished 1"),
            "{metrics}"
        );

        proxy.pass("POST", "/start");
        until("the old container run again", || runs(&w, &old.id)).await?;
        until("the daemon be ready", || async {
            Ok(daemon.request("GET", "/readyz").await?.status == 200)
        })
        .await?;
        assert_eq!(w.containers().await?, [old.name.as_str()]);
        Ok(())
    })
    .await
}
