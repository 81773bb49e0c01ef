//! The proxy tested by itself: what it does to a call, and that it does nothing to the others.

use std::time::Duration;

use anyhow::Context;
use bollard::{API_DEFAULT_VERSION, Docker};
use refit_tests::fault_proxy::{Fault, Plan, Proxy, Setting};
use refit_tests::scenario::bench::Bench;
use refit_tests::scenario::{self, Scenario};
use refit_tests::{engine, with_world};
use tempfile::TempDir;

use super::refit;

/// How long a client waits for an answer that does not come. Longer than an engine takes to carry the call out: with the client the
/// call goes.
const PATIENCE: Duration = Duration::from_secs(3);
/// The engine has carried a call out by then.
const DUE: Duration = Duration::from_secs(30);

struct Client {
    docker: Docker,
    proxy: Proxy,
    _folder: TempDir,
}

/// A client whose second call goes wrong.
async fn client(fault: Fault) -> anyhow::Result<Client> {
    let folder = tempfile::tempdir()?;
    let setting = Setting {
        plan: Some(Plan { number: 2, fault }),
        refused: None,
        clock_ahead: Duration::ZERO,
        only_label: None,
    };
    let proxy = Proxy::start(
        engine::shared().await?.docker_host(),
        &folder.path().join("s"),
        setting,
    )?;
    let docker = Docker::connect_with_unix(&proxy.docker_host(), 60, API_DEFAULT_VERSION)?;
    docker.ping().await?;
    Ok(Client {
        docker,
        proxy,
        _folder: folder,
    })
}

impl Client {
    /// Makes the call, which must not succeed; then another one, which must.
    async fn fails(&self) -> anyhow::Result<String> {
        let failed = match tokio::time::timeout(PATIENCE, self.docker.version()).await {
            Ok(Ok(_)) => panic!("the call that should go wrong did not"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "silence".to_owned(),
        };
        self.docker.info().await?;
        Ok(failed)
    }

    fn log(&self) -> Vec<(u32, String, Option<u16>, bool)> {
        let line = |call: refit_tests::fault_proxy::Call| {
            (
                call.number.unwrap_or_default(),
                call.label(),
                call.status,
                call.reached,
            )
        };
        self.proxy.calls().into_iter().map(line).collect()
    }

    #[track_caller]
    fn check(&self, status: Option<u16>, reached: bool) {
        let ok = |number, label: &str| (number, label.to_owned(), Some(200), true);
        let wrong = (2, "GET /version".to_owned(), status, reached);
        assert_eq!(self.log(), [ok(1, "GET /_ping"), wrong, ok(3, "GET /info")]);
    }
}

#[tokio::test]
async fn a_refused_call_is_answered_and_does_not_reach_the_engine() -> anyhow::Result<()> {
    let client = client(Fault::Refuse500).await?;
    let said = client.fails().await?;
    assert!(
        said.contains("500") && said.contains("chosen to fail"),
        "{said}"
    );
    client.check(None, false);
    Ok(())
}

#[tokio::test]
async fn a_connection_cut_before_the_call_is_an_error_and_the_engine_hears_nothing()
-> anyhow::Result<()> {
    let client = client(Fault::CutBefore).await?;
    assert_ne!(client.fails().await?, "silence");
    client.check(None, false);
    Ok(())
}

#[tokio::test]
async fn a_connection_cut_after_the_call_is_an_error_and_the_engine_has_done_it()
-> anyhow::Result<()> {
    let client = client(Fault::CutAfter).await?;
    assert_ne!(client.fails().await?, "silence");
    client.check(Some(200), true);
    Ok(())
}

#[tokio::test]
async fn a_call_that_hangs_is_never_answered() -> anyhow::Result<()> {
    let client = client(Fault::Hang).await?;
    assert_eq!(client.fails().await?, "silence");
    client.check(None, false);
    Ok(())
}

#[tokio::test]
async fn a_call_may_hang_after_the_engine_has_done_it() -> anyhow::Result<()> {
    let client = client(Fault::HangAfter).await?;
    assert_eq!(client.fails().await?, "silence");
    client.check(Some(200), true);
    Ok(())
}

#[tokio::test]
async fn a_kill_is_due_before_the_call_or_after_it() -> anyhow::Result<()> {
    for (fault, status) in [(Fault::KillBefore, None), (Fault::KillAfter, Some(200))] {
        let client = client(fault).await?;
        let due = tokio::time::timeout(DUE, client.proxy.until_kill_is_due());
        let (failed, due) = tokio::join!(client.fails(), due);
        due.context("the kill was never due")?;
        assert_eq!(
            failed?, "silence",
            "whoever is to be killed must not hear anything before"
        );
        client.check(status, status.is_some());
    }
    Ok(())
}

#[tokio::test]
async fn who_looks_again_and_again_has_two_numbers() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let proxy = Proxy::start(
        engine::shared().await?.docker_host(),
        &folder.path().join("s"),
        Setting::default(),
    )?;
    let docker = Docker::connect_with_unix(&proxy.docker_host(), 60, API_DEFAULT_VERSION)?;
    for _ in 0..4 {
        docker.ping().await?;
    }
    docker.version().await?;
    let numbers: Vec<_> = proxy.calls().iter().map(|call| call.number).collect();
    assert_eq!(numbers, [Some(1), Some(2), None, None, Some(3)]);
    Ok(())
}

#[tokio::test]
async fn what_is_half_done_is_noticed() -> anyhow::Result<()> {
    with_world("what is half done is noticed", |w| async move {
        let bench = Bench::new(&w).await?;
        let slot = bench.slot(0).await?;
        let whole = scenario::run(refit(), &bench, &slot, Scenario::Replace, None).await?;
        let renaming = whole
            .calls
            .iter()
            // Not the one that asks beforehand whether such calls are let through.
            .filter(|call| !call.is_probe())
            .find(|call| call.label() == "POST /containers/{id}/rename");
        let number = renaming
            .and_then(|call| call.number)
            .context("nothing was renamed")?;
        let plan = Plan {
            number,
            fault: Fault::KillAfter,
        };
        let outcome =
            scenario::run_without_recovery(refit(), &bench, &slot, Scenario::Replace, plan).await?;
        assert!(outcome.was_half_done);
        let causes: Vec<_> = outcome.problems.iter().map(|it| it.cause).collect();
        for expected in ["lost container", "left-over container"] {
            assert!(causes.contains(&expected), "{}", outcome.story());
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_refresh_through_the_proxy_is_like_one_without() -> anyhow::Result<()> {
    with_world("a refresh through the proxy", |w| async move {
        let bench = Bench::new(&w).await?;
        let slot = bench.slot(0).await?;
        let through = scenario::run(refit(), &bench, &slot, Scenario::TwoNetworks, None).await?;
        let without =
            scenario::run_without_proxy(refit(), &bench, &slot, Scenario::TwoNetworks).await?;
        assert!(!through.is_lost(), "{}", through.story());
        assert!(!without.is_lost(), "{}", without.story());
        assert_eq!(
            (through.end, through.refresh.ending),
            (without.end, without.refresh.ending)
        );
        assert!(through.numbered > 0 && without.numbered == 0);
        Ok(())
    })
    .await
}
