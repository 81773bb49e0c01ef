//! A replacement that does not prove itself gives way to the old container, and one that does is not held up.

use std::time::{Duration, Instant};

use bollard::models::{HealthConfig, RestartPolicyNameEnum};
use refit::model::container::State;
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit::recreate::lease::Leases;
use refit::recreate::recover::Outcome;
use refit_tests::{ContainerSpec, ImageSpec, World, with_world};
use serde_json::json;

use crate::bench::{Bench, told};
use crate::engine_faults::{Between, status};

const SOON: Duration = Duration::from_millis(100);

/// The replacement from `new` fails with a sentence that says `because`, and the old container is back.
async fn gives_way(
    bench: Bench,
    spec: ContainerSpec,
    new: ImageSpec,
    because: &str,
) -> anyhow::Result<()> {
    let w = &bench.world;
    let network = w.network("net").await?;
    let before = w.run(spec.network(&network, &["web"])).await?;
    let inspected = bench.inspect(&before.id).await?;
    let new = w.load(new).await?;
    let error = bench.refused(&before.name, &new).await?;
    assert!(
        matches!(
            error,
            RecreateError::RolledBack {
                step: Step::Prove,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(told(&error).contains(because), "{}", told(&error));
    back(&bench, &before.name, &inspected).await
}

/// The same container, under its name, as it was, and working; nothing beside it.
pub(crate) async fn back(
    bench: &Bench,
    name: &str,
    before: &refit::model::container::Container,
) -> anyhow::Result<()> {
    let after = bench.inspect(name).await?;
    assert_eq!(after.id, before.id);
    assert_eq!(
        crate::changes::changes(before, &after),
        Vec::<String>::new()
    );
    bench.world.until_listening(name).await?;
    assert_eq!(bench.world.read_line(name).await?, "v1");
    bench.only(&[name]).await
}

async fn old(w: &World) -> anyhow::Result<ContainerSpec> {
    Ok(ContainerSpec::new(
        "a",
        &w.load(ImageSpec::new("v1").healthcheck(SOON, 2)).await?,
    ))
}

async fn unchecked(w: &World) -> anyhow::Result<ContainerSpec> {
    Ok(ContainerSpec::new(
        "a",
        &w.load(ImageSpec::new("v1")).await?,
    ))
}

/// 8
#[tokio::test]
async fn one_that_exits_within_its_grace_gives_way() -> anyhow::Result<()> {
    with_world("exits within its grace", |w| async move {
        let bench = Bench::new(&w).grace(Duration::from_secs(3));
        let new = ImageSpec::new("v2").env("EXIT_AFTER_MS", "600");
        gives_way(
            bench,
            unchecked(&w).await?,
            new,
            "it is exited with status 1",
        )
        .await
    })
    .await
}

/// What was asked about the replacement from when the engine was asked to tell of it, and what it told: verbs alone, up to the
/// first that is about anything else.
fn since_events(calls: &[String]) -> Vec<String> {
    let calls = calls.iter().filter_map(|call| call.split_once(' '));
    let mut since = calls.skip_while(|(verb, _)| *verb != "events").peekable();
    let Some((_, container)) = since.peek().copied() else {
        return Vec::new();
    };
    since
        .take_while(|(_, about)| *about == container)
        .map(|(verb, _)| verb.to_owned())
        .collect()
}

#[track_caller]
fn began_with(calls: &[String], expected: &[&str]) {
    let began = calls.iter().take(expected.len());
    assert!(began.eq(expected), "{calls:?}");
}

/// The same, where the replacement exits after more than a second and has four.
async fn of_one_that_exits(w: &World, engine: Between) -> anyhow::Result<Vec<String>> {
    let calls = engine.calls.clone();
    let bench = Bench::new(w).grace(Duration::from_secs(4)).through(engine);
    let new = ImageSpec::new("v2").env("EXIT_AFTER_MS", "1200");
    gives_way(bench, unchecked(w).await?, new, "it is exited").await?;
    let calls = calls.lock().unwrap();
    Ok(since_events(&calls))
}

/// Otherwise each replacement that waits makes the gaps of the others longer.
#[tokio::test]
async fn an_exit_is_noticed_by_what_the_engine_tells() -> anyhow::Result<()> {
    with_world("the engine tells", |w| async move {
        let calls = of_one_that_exits(&w, Between::new(&w)).await?;
        began_with(&calls, &["events", "told", "inspect"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn health_is_noticed_by_what_the_engine_tells() -> anyhow::Result<()> {
    with_world("the engine tells of health", |w| async move {
        let engine = Between::new(&w);
        let calls = engine.calls.clone();
        let new = ImageSpec::new("v2").healthcheck(Duration::from_secs(1), 1);
        let new = w.load(new).await?;
        let before = w.run(unchecked(&w).await?).await?;
        let bench = Bench::new(&w).through(engine);
        bench.refreshed(&before.name, &new).await?;
        let calls = since_events(&calls.lock().unwrap());
        began_with(&calls, &["events", "told", "inspect"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_exit_is_noticed_though_the_engine_tells_nothing() -> anyhow::Result<()> {
    with_world("the engine tells nothing", |w| async move {
        let calls = of_one_that_exits(&w, Between::new(&w).tells_nothing()).await?;
        // When its grace time was over.
        began_with(&calls, &["events", "inspect"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_exit_is_noticed_though_the_engine_refuses_to_tell() -> anyhow::Result<()> {
    with_world("the engine refuses to tell", |w| async move {
        let refused = |call: &str| call.starts_with("events ").then(|| status(403));
        let calls = of_one_that_exits(&w, Between::new(&w).refuses(refused)).await?;
        let looks = calls[1..].iter().take_while(|call| *call == "inspect");
        let looks = looks.count();
        assert!((3..10).contains(&looks), "{calls:?}");
        Ok(())
    })
    .await
}

/// 8: `restarting` is not running, and running again is not having stayed.
#[tokio::test]
async fn one_that_exits_and_is_restarted_gives_way() -> anyhow::Result<()> {
    with_world("exits and is restarted", |w| async move {
        let bench = Bench::new(&w).grace(Duration::from_secs(4));
        let new = ImageSpec::new("v2").env("EXIT_AFTER_MS", "500");
        gives_way(
            bench,
            unchecked(&w).await?.restart(RestartPolicyNameEnum::ALWAYS),
            new,
            "it ",
        )
        .await
    })
    .await
}

/// 9
#[tokio::test]
async fn one_that_becomes_unhealthy_gives_way() -> anyhow::Result<()> {
    with_world("becomes unhealthy", |w| async move {
        let new = ImageSpec::new("v2")
            .healthcheck(SOON, 1)
            .env("UNHEALTHY", "1");
        gives_way(Bench::new(&w), old(&w).await?, new, "it became unhealthy").await
    })
    .await
}

/// 9
#[tokio::test]
async fn one_that_never_becomes_healthy_gives_way() -> anyhow::Result<()> {
    with_world("never becomes healthy", |w| async move {
        // The first probe would be an hour away.
        let new = ImageSpec::new("v2").healthcheck(Duration::from_secs(3600), 1);
        let bench = Bench::new(&w).health(Duration::from_secs(1));
        gives_way(
            bench,
            unchecked(&w).await?,
            new,
            "it did not become healthy within 1 s",
        )
        .await
    })
    .await
}

/// 9: failures within its start period do not count, and the period is added to the time it has.
#[tokio::test]
async fn one_that_takes_its_start_period_is_waited_for() -> anyhow::Result<()> {
    with_world("takes its start period", |w| async move {
        let check = json!({"Test": ["CMD", "/stamp", "health"], "Interval": 200_000_000, "Retries": 1, "StartPeriod": 20_000_000_000_i64});
        let new = w.load(ImageSpec::new("v2").config("Healthcheck", check).env("LISTEN_AFTER_MS", "2500")).await?;
        let before = w.run(unchecked(&w).await?).await?;
        let began = Instant::now();
        Bench::new(&w).health(Duration::from_secs(1)).refreshed(&before.name, &new).await?;
        assert!(began.elapsed() > Duration::from_millis(2500), "{:?}", began.elapsed());
        assert_eq!(w.read_line(&before.name).await?, "v2");
        Ok(())
    })
    .await
}

/// 9
#[tokio::test]
async fn a_check_that_was_switched_off_is_not_waited_for() -> anyhow::Result<()> {
    with_world("switched off", |w| async move {
        let new = w
            .load(
                ImageSpec::new("v2")
                    .healthcheck(SOON, 1)
                    .env("UNHEALTHY", "1"),
            )
            .await?;
        let none = HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..HealthConfig::default()
        };
        let before = w.run(unchecked(&w).await?.healthcheck(none)).await?;
        Bench::new(&w).refreshed(&before.name, &new).await?;
        assert_eq!(w.read_line(&before.name).await?, "v2");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_label_says_how_long_one_container_has() -> anyhow::Result<()> {
    with_world("a label says how long", |w| async move {
        let new = ImageSpec::new("v2").env("EXIT_AFTER_MS", "1500");
        let spec = unchecked(&w).await?.label("io.refit.grace-seconds", "4");
        gives_way(Bench::new(&w), spec, new, "it is exited").await
    })
    .await
}

#[tokio::test]
async fn a_label_switches_the_wait_for_health_off() -> anyhow::Result<()> {
    with_world("a label switches health off", |w| async move {
        let new = w
            .load(ImageSpec::new("v2").healthcheck(Duration::from_secs(3600), 1))
            .await?;
        let before = w
            .run(unchecked(&w).await?.label("io.refit.health-seconds", "0"))
            .await?;
        Bench::new(&w).refreshed(&before.name, &new).await?;
        assert_eq!(w.read_line(&before.name).await?, "v2");
        Ok(())
    })
    .await
}

/// 7: three ways in which the engine cannot start it.
#[tokio::test]
async fn one_that_cannot_be_started_gives_way() -> anyhow::Result<()> {
    with_world("cannot be started", |w| async move {
        let bench = Bench::new(&w);
        let no_program = w
            .load(ImageSpec::new("v2").config("Entrypoint", json!(["/nowhere"])))
            .await?;
        let no_user = w.load(ImageSpec::new("v2").user("nobody-knows")).await?;
        let before = w.run(unchecked(&w).await?).await?;
        let inspected = bench.inspect(&before.id).await?;
        for new in [no_program, no_user] {
            let error = bench.refused(&before.name, &new).await?;
            assert!(
                matches!(
                    error,
                    RecreateError::RolledBack {
                        step: Step::Start,
                        ..
                    }
                ),
                "{error:?}"
            );
            back(&bench, &before.name, &inspected).await?;
        }
        Ok(())
    })
    .await
}

/// What somebody on this machine left who died at the container that was stranded.
fn abandoned(w: &World, error: &RecreateError) -> Leases {
    let leases = Leases::in_folder(std::env::temp_dir().join(format!("refit-{}", w.prefix())));
    if let RecreateError::Stranded { old, .. } = error {
        drop(leases.take(old));
    }
    leases
}

/// 7: the port goes to somebody else while nobody holds it.
#[tokio::test(flavor = "multi_thread")]
async fn one_whose_port_was_taken_meanwhile_is_not_the_end_of_the_old_one() -> anyhow::Result<()> {
    with_world("port taken meanwhile", |w| async move {
        let new = w.load(ImageSpec::new("v2")).await?;
        let before = w
            .run(
                unchecked(&w)
                    .await?
                    .publish_at(8000, crate::ports::free_port()?),
            )
            .await?;
        let ports = Bench::new(&w).inspect(&before.id).await?.published_ports;
        let thief = w
            .create(
                ContainerSpec::named(&format!("{}-thief", w.prefix()), &new)
                    .publish_at(8000, ports[0].host_port),
            )
            .await?;
        let (world, name) = (w.clone(), thief.name.clone());
        let bench = Bench::new(&w).before(Step::Start, move || {
            let (world, name) = (world.clone(), name.clone());
            async move { world.start(&name).await.unwrap() }
        });
        let error = bench.refused(&before.name, &new).await?;
        // Neither can run now: both are kept, and both are named.
        let RecreateError::Stranded {
            step: Step::Start,
            old,
            kept_as,
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!(old.as_str(), before.id);
        bench.only(&[kept_as, &thief.name, &before.name]).await?;
        // Its name says what is to become of it, once the port is free again.
        w.stop(&thief.name).await?;
        let recovered = Bench::new(&w)
            .leases(abandoned(&w, &error))
            .workshop()
            .recover()
            .await?;
        let ours = recovered.iter().find(|one| one.container == before.name);
        assert_eq!(
            ours.map(|one| one.outcome),
            Some(Outcome::Undone),
            "{recovered:?}"
        );
        let now = bench.inspect(&before.name).await?;
        assert_eq!(
            (now.id.as_str(), now.state),
            (before.id.as_str(), State::Running)
        );
        bench.only(&[&before.name, &thief.name]).await
    })
    .await
}
