//! The last look before anything stops: what another Refit, or a person, did since the first one.

use std::sync::Arc;
use std::time::Duration;

use refit::model::container::State;
use refit::model::image::{ImageId, ImageRef};
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit::recreate::concurrency::ConcurrencyLimits;
use refit::recreate::health_gate::ReadinessCheck;
use refit::recreate::image_records::ImageRecords;
use refit::recreate::lease::Leases;
use refit::recreate::replace::{NewImage, ReplaceOptions, Target, replace};
use refit_tests::{ContainerSpec, ImageSpec, with_world};
use tokio_util::sync::CancellationToken;

use crate::bench::Bench;
use crate::engine_faults::{Between, status};

/// Two that share the engine alone: the second looked before the first parked, and makes its own after the first took over.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_looked_early_and_acts_late_loses_nothing() -> anyhow::Result<()> {
    with_world("early and late", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2").env("EXIT_AFTER_MS", "1500"))
                .await?,
        );
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let late = Arc::new(Bench::new(&w));
        let seen = late.inspect(&a.id).await?;
        let image = NewImage::pulled(
            &new.parse::<ImageRef>()?,
            ImageId::new(w.image_id(&new).await?.unwrap()),
        );
        let first = {
            let (late, image) = (late.clone(), image.clone());
            Bench::new(&w)
                .grace(Duration::from_secs(4))
                .leases(Leases::default())
                .before(Step::Prove, move || {
                    let (late, image, seen) = (late.clone(), image.clone(), seen.clone());
                    async move {
                        let manner = ReplaceOptions {
                            platform: None,
                            lanes: &ConcurrencyLimits::default(),
                            images: &ImageRecords::default(),
                            ending: &CancellationToken::new(),
                            proof: ReadinessCheck {
                                grace: Duration::ZERO,
                                health: Duration::ZERO,
                            },
                            step: &|_| {},
                        };
                        let target = Target {
                            container: seen,
                            image: Some(image),
                        };
                        let (outcome, _) =
                            replace(late.engine.as_ref(), vec![target], &manner).await;
                        assert!(
                            matches!(outcome, Err(RecreateError::Busy { .. })),
                            "{outcome:?}"
                        );
                    }
                })
        };
        let error = first.refused(&a.name, &new).await?;
        assert!(
            matches!(error, RecreateError::RolledBack { .. }),
            "{error:?}"
        );
        assert_eq!(w.containers().await?, std::slice::from_ref(&a.name));
        Ok(())
    })
    .await
}

/// Somebody renames it, to keep it, and puts another in its place.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_somebody_set_aside_is_kept() -> anyhow::Result<()> {
    with_world("set aside", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = {
            let (w, new, name) = (w.clone(), new.clone(), a.name.clone());
            Bench::new(&w.clone()).before(Step::Create, move || {
                let (w, new, name) = (w.clone(), new.clone(), name.clone());
                async move {
                    let options = bollard::query_parameters::RenameContainerOptions {
                        name: format!("{name}.kept"),
                    };
                    w.docker().rename_container(&name, options).await.unwrap();
                    w.run(ContainerSpec::named(&name, &new)).await.unwrap();
                }
            })
        };
        let error = bench.refused(&a.name, &new).await?;
        assert!(
            matches!(error, RecreateError::Unsupported { .. }),
            "{error:?}"
        );
        assert!(
            w.container_exists(&a.id).await?,
            "the one that was set aside was removed"
        );
        assert_eq!(
            w.inspect(&a.id)
                .await?
                .state
                .and_then(|state| state.running),
            Some(true)
        );
        Ok(())
    })
    .await
}

/// It could never be started again otherwise: the engine has the owner of its network by id.
#[tokio::test]
async fn stopped_container_in_its_network_is_replaced_and_can_be_started() -> anyhow::Result<()> {
    with_world("stopped follower", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let provider = w.run(ContainerSpec::new("a", &old)).await?;
        let follower = w
            .run(
                ContainerSpec::new("f", &old)
                    .env("PORT", "8001")
                    .host(|host| host.network_mode = Some(format!("container:{}", provider.id))),
            )
            .await?;
        w.stop(&follower.name).await?;
        let bench = Bench::new(&w);
        bench.refreshed(&provider.name, &new).await?;
        assert_eq!(bench.inspect(&follower.name).await?.state, State::Created);
        w.start(&follower.name).await
    })
    .await
}

#[tokio::test]
async fn a_stop_that_is_refused_was_no_stop() -> anyhow::Result<()> {
    with_world("stop refused", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let before = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = Bench::new(&w).through(
            Between::new(&w).refuses(|call| call.starts_with("stop ").then(|| status(403))),
        );
        let error = bench.refused(&before.name, &new).await?;
        assert!(
            matches!(
                error,
                RecreateError::Aborted { .. } | RecreateError::RolledBack { .. }
            ),
            "{error:?}"
        );
        bench.only(&[&before.name]).await
    })
    .await
}
