//! Verified before anything stops: what an engine changes without a word is found while the old container still runs.

use refit::engine::Engine as _;
use refit::model::container::{ContainerName, Object};
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit::recreate::intent::Intent;
use refit::recreate::verify::find_differences;
use refit_tests::{ContainerSpec, ImageSpec, with_world};
use serde_json::{Value, json};

use crate::bench::{Bench, docker, told};
use crate::engine_faults::{Between, status};

/// `Aborted`, naming the field; the old container was never stopped and nothing is beside it.
async fn found(
    change: impl Fn(&mut refit::engine::CreateRequest) + Send + Sync + 'static,
    field: &str,
) -> anyhow::Result<()> {
    let field = field.to_owned();
    with_world("verified before anything stops", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let network = w.network("net").await?;
        let spec = ContainerSpec::new("a", &old)
            .network(&network, &["web"])
            .env("KEY", "mine")
            .volume(&w.volume("data").await?, "/data")
            .host(|host| {
                host.cap_add = Some(vec!["NET_ADMIN".into()]);
                host.memory = Some(64 << 20);
            });
        let before = w.run(spec).await?;
        let bench = Bench::new(&w).through(Between::new(&w).makes(change));
        let started = bench.started(&before.id).await?;
        let error = bench.refused(&before.name, &new).await?;
        assert!(
            matches!(
                error,
                RecreateError::Aborted {
                    step: Step::Verify,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(told(&error).contains(&field), "{}", told(&error));
        assert_eq!(bench.started(&before.id).await?, started, "it was stopped");
        bench.only(&[&before.name]).await
    })
    .await
}

#[tokio::test]
async fn a_capability_that_is_dropped_is_found() -> anyhow::Result<()> {
    found(
        |request| _ = request.host_config.remove("CapAdd"),
        "HostConfig.CapAdd",
    )
    .await
}

#[tokio::test]
async fn a_limit_that_is_changed_is_found() -> anyhow::Result<()> {
    found(
        |request| request.host_config["Memory"] = json!(128 << 20),
        "HostConfig.Memory: asked for 67108864, made 134217728",
    )
    .await
}

#[tokio::test]
async fn a_variable_that_is_dropped_is_found() -> anyhow::Result<()> {
    found(|request| _ = request.config.remove("Env"), "Config.Env").await
}

#[tokio::test]
async fn an_alias_that_is_dropped_is_found() -> anyhow::Result<()> {
    found(
        |request| {
            if let Some((_, endpoint)) = &mut request.endpoint {
                endpoint.clear()
            }
        },
        "Aliases",
    )
    .await
}

#[tokio::test]
async fn a_volume_that_is_dropped_is_found() -> anyhow::Result<()> {
    found(
        |request| _ = request.host_config.remove("Binds"),
        "HostConfig.Binds",
    )
    .await
}

/// Every single thing that can be asked for, left out one at a time, is found, unless it makes no difference.
#[tokio::test]
async fn nothing_can_be_left_out_unnoticed() -> anyhow::Result<()> {
    with_world("nothing can be left out", |w| async move {
        let bench = Bench::new(&w);
        let image = w.load(ImageSpec::new("v1")).await?;
        let engine = docker(&w);
        let volume = w.volume("data").await?;
        let id = bench
            .create(
                &w.name("a"),
                &image,
                crate::config::everything(),
                crate::host_config::most(&volume),
            )
            .await?;
        let before = engine.inspect(&id).await?;
        let of_image = engine.image(&image).await?;
        let wanted =
            Intent::from_container(&before, &of_image.config).to_replacement(&image, &of_image.id);
        let mut unnoticed = Vec::new();
        let parts = [
            ("Config", &wanted.request.config),
            ("HostConfig", &wanted.request.host_config),
        ];
        let keys = parts
            .into_iter()
            .flat_map(|(part, fields)| fields.keys().map(move |key| (part, key.clone())));
        for (part, key) in keys {
            // Its loss is found by the image's id; and a mount at a path that another one takes is no loss.
            if key == "Image" {
                continue;
            }
            let mut request = wanted.request.clone();
            let fields = if part == "Config" {
                &mut request.config
            } else {
                &mut request.host_config
            };
            fields.remove(&key);
            let Ok(made) = engine
                .create(&ContainerName::new(w.name("without")), &request, None)
                .await
            else {
                continue;
            };
            let made = engine.inspect(&made).await?;
            w.remove_container(made.id.as_str()).await?;
            let of = |object: &Object| object.get(&key).cloned().unwrap_or_default();
            let (before, after) = if part == "Config" {
                (of(&before.config), of(&made.config))
            } else {
                (of(&before.host_config), of(&made.host_config))
            };
            // The engine's default network, under its two names.
            let is_default = |mode: &Value| *mode == "bridge" || *mode == "default";
            let same_network = key == "NetworkMode" && is_default(&before) && is_default(&after);
            if before != after
                && !same_network
                && !is_nothing(&before)
                && !find_differences(&wanted, &made)
                    .iter()
                    .any(|found| found.starts_with(&format!("{part}.{key}:")))
            {
                unnoticed.push(format!("{part}.{key}: {before} became {after}"));
            }
        }
        assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
        Ok(())
    })
    .await
}

fn is_nothing(value: &Value) -> bool {
    [
        Value::Null,
        json!(""),
        json!(0),
        json!(false),
        json!([]),
        json!([0, 0]),
    ]
    .contains(value)
}

/// 5, 48: a refusal of the create, and by a proxy that lets it pass but not the stop.
#[tokio::test]
async fn a_call_that_is_refused_leaves_the_old_one_running() -> anyhow::Result<()> {
    with_world("a call that is refused", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let before = w.run(ContainerSpec::new("a", &old)).await?;
        let started = Bench::new(&w).started(&before.id).await?;
        for verb in ["list", "image ", "create ", "inspect "] {
            let seen = std::sync::atomic::AtomicUsize::new(0);
            let between = Between::new(&w).refuses(move |call| {
                let first = call.starts_with(verb)
                    && seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                first.then(|| status(403))
            });
            let bench = Bench::new(&w).through(between);
            let error = bench.refused(&before.name, &new).await?;
            assert!(
                matches!(error, RecreateError::Aborted { .. }),
                "{verb}: {error:?}"
            );
            assert_eq!(bench.started(&before.id).await?, started, "{verb}");
            bench.only(&[&before.name]).await?;
        }
        Ok(())
    })
    .await
}
