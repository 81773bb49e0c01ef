//! The strategy `overlap`, seen by somebody who calls the container by its alias throughout.

use std::collections::BTreeMap;

use anyhow::Context;
use refit::model::container::State;
use refit::model::recreation::Strategy;
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, World, progress, with_world};

use crate::bench::Bench;

/// What a caller said when it was told to stop.
async fn calls(w: &World, caller: &str) -> anyhow::Result<BTreeMap<String, String>> {
    w.stop(caller).await?;
    let said = w.logs(caller).await?;
    let line = said
        .lines()
        .find(|line| line.starts_with("called "))
        .with_context(|| format!("the caller said nothing of its calls: {said}"))?;
    let values = line.split(' ').filter_map(|word| word.split_once('='));
    Ok(values
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// 9 of the promise: no call of the alias fails, and from some moment on the new one answers.
#[tokio::test]
async fn a_client_that_calls_the_alias_throughout_sees_no_failure() -> anyhow::Result<()> {
    with_world("a client that calls throughout", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let network = w.network("net").await?;
        let a = w
            .run(ContainerSpec::new("a", &old).network(&network, &["hermes"]))
            .await?;
        w.until_listening(&a.name).await?;
        let caller = ContainerSpec::new("caller", &old)
            .network(&network, &[])
            .cmd(&["call", "hermes"])
            .without_waiting();
        let caller = w.run(caller).await?;
        w.until_stamped(&caller.name, "answered").await?;

        let mut wanted = bench.wanted(&a.name, &new).await?;
        wanted.strategy = Strategy::Overlap;
        bench.recreate(wanted).await?;
        let told = calls(&w, &caller.name).await?;
        progress(&format!("overlap, as a caller saw it: {told:?}"));
        assert_eq!(told["failed"], "0", "{told:?}");
        // Shorter than the gap of a replacement, whatever else this machine does. docs/benchmarks.md says what it is when it does nothing else.
        let silent: u64 = told["silent_us"].parse()?;
        assert!(silent < 500_000, "{told:?}");
        assert_eq!([&told["first"], &told["last"]], ["v1", "v2"], "{told:?}");
        Ok(())
    })
    .await
}

/// Proven before its networks were changed, gone after: the old container must stay.
#[tokio::test]
async fn program_that_ends_while_both_answer_keeps_the_old_container() -> anyhow::Result<()> {
    with_world("a program that ends while both answer", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2").env("EXIT_AFTER_MS", "3500"))
                .await?,
        );
        let network = w.network("net").await?;
        let a = w
            .run(ContainerSpec::new("a", &old).network(&network, &["hermes"]))
            .await?;
        let started = bench.started(&a.id).await?;
        let mut wanted = bench.wanted(&a.name, &new).await?;
        wanted.strategy = Strategy::Overlap;
        let error = bench.recreate(wanted).await.expect_err("it ended");
        assert!(matches!(error, RecreateError::Aborted { .. }), "{error:?}");
        assert_eq!(bench.inspect(&a.name).await?.id.as_str(), a.id);
        assert_eq!(bench.started(&a.id).await?, started, "it was never stopped");
        bench.only(&[&a.name]).await
    })
    .await
}

/// A program that ends when the address goes that it was bound to, as some do: after the change of networks nothing runs.
#[tokio::test]
async fn program_that_ends_with_its_address_keeps_the_old_container() -> anyhow::Result<()> {
    with_world("a program that ends with its address", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2").env("EXIT_WITH_ADDRESS", "1"))
                .await?,
        );
        let network = w.network("net").await?;
        let a = w
            .run(ContainerSpec::new("a", &old).network(&network, &["hermes"]))
            .await?;
        let mut wanted = bench.wanted(&a.name, &new).await?;
        wanted.strategy = Strategy::Overlap;
        let error = bench.recreate(wanted).await.expect_err("it ended");
        assert!(matches!(error, RecreateError::Aborted { .. }), "{error:?}");
        let now = bench.inspect(&a.name).await?;
        assert_eq!(
            (now.id.as_str(), now.state),
            (a.id.as_str(), State::Running)
        );
        bench.only(&[&a.name]).await
    })
    .await
}
