//! The container's own configuration: what a user set comes back, what the old image gave follows the new one.

use bollard::models::ContainerCreateBody;
use refit::model::image::ImageId;
use refit::model::recreation::Step;
use refit::recreate::RecreateError;
use refit_tests::{ContainerSpec, ImageSpec, with_world};
use serde_json::{Value, json};

use crate::bench::{Bench, object, told};
use crate::changes::changes;
use crate::engine_faults::Between;
use crate::fields;

/// Fields of the model that no container can be given, and why.
const NOT_SETTABLE: &[(&str, &str)] = &[
    ("Image", "it is what changes"),
    (
        "ArgsEscaped",
        "Windows; what the engine shows of it comes from the image",
    ),
    (
        "OnBuild",
        "a builder's business: an engine carries it and does nothing with it",
    ),
    ("HostConfig", "host_config.rs"),
    ("NetworkingConfig", "networks.rs"),
    (
        "NetworkDisabled",
        "it excludes the networks that the other fields are about; tested below",
    ),
];

pub(crate) fn everything() -> Value {
    json!({
        "Hostname": "box",
        "Domainname": "example.org",
        "User": "1000:1000",
        "AttachStdin": true,
        "AttachStdout": true,
        "AttachStderr": true,
        "ExposedPorts": {"9000/udp": {}},
        "Tty": true,
        "OpenStdin": true,
        "StdinOnce": true,
        "Env": ["KEY=mine", "EMPTY=", "WITH=a=b", "TEXT=ünï \"quoted\" $HOME"],
        "Cmd": ["an argument"],
        "Healthcheck": {"Test": ["CMD", "/stamp", "health"], "Interval": 100_000_000, "Timeout": 3_000_000_000_i64, "Retries": 4, "StartPeriod": 5_000_000_000_i64},
        "Volumes": {"/cache": {}},
        "WorkingDir": "/tmp",
        "Entrypoint": ["/stamp", "first"],
        "Labels": {"owner": "me", "empty": "", "molecule.platform.managed": "true"},
        "StopSignal": "SIGINT",
        "StopTimeout": 7,
        "Shell": ["/bin/mine", "-c"],
        // Not in the model, and shown by this engine.
        "MacAddress": "02:42:ac:11:aa:bb",
    })
}

/// 18, 20, 22-25, 33
#[tokio::test]
async fn everything_that_a_user_set_comes_back() -> anyhow::Result<()> {
    with_world("everything that a user set", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v1")).await?,
        );
        fields::all_known::<ContainerCreateBody>(
            &[&Value::Object(
                object(everything())
                    .into_iter()
                    .filter(|(key, _)| key != "MacAddress")
                    .collect(),
            )],
            NOT_SETTABLE,
        );
        let name = w.name("a");
        // SIGINT ends it, as nothing handles it and `init` is there to have no handler for it.
        let before = bench
            .run(&name, &old, everything(), json!({"Init": true}))
            .await?;
        let recreated = bench.refreshed(&name, &new).await?;
        let after = bench.inspect(&name).await?;
        assert_eq!(changes(&before, &after), Vec::<String>::new());
        assert_eq!(after.config["MacAddress"], everything()["MacAddress"]);
        assert_ne!(before.id, after.id);
        assert_eq!(recreated.id.as_ref(), Some(&after.id));
        assert_eq!(after.image_id, recreated.image_id);
        bench.only(&[&name]).await
    })
    .await
}

#[tokio::test]
async fn a_container_without_any_network_comes_back() -> anyhow::Result<()> {
    with_world("a container without any network", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let before = bench
            .run(
                &w.name("a"),
                &old,
                json!({"NetworkDisabled": true}),
                json!({}),
            )
            .await?;
        bench.refreshed(&w.name("a"), &new).await?;
        let after = bench.inspect(&w.name("a")).await?;
        assert_eq!(
            after.config["NetworkDisabled"],
            before.config["NetworkDisabled"]
        );
        Ok(())
    })
    .await
}

/// 20-25, 49: by the image that it was made from, not by the tag, which means the new one already.
#[tokio::test]
async fn what_the_image_gave_follows_the_image_though_the_tag_moved() -> anyhow::Result<()> {
    with_world("what the image gave follows the image", |w| async move {
        let bench = Bench::new(&w);
        let image = |version: &str, working_dir: &str| {
            ImageSpec::new(version)
                .cmd(&[version])
                .user(if version == "v1" { "1001" } else { "1002" })
                .working_dir(working_dir)
                .label("of.image", version)
                .expose(if version == "v1" { 1001 } else { 1002 })
                .volume(if version == "v1" { "/data" } else { "/tmp" })
                .stop_signal(if version == "v1" { "SIGTERM" } else { "SIGINT" })
                .env(&format!("ONLY_IN_{version}"), "1")
                .healthcheck(
                    std::time::Duration::from_millis(if version == "v1" { 150 } else { 250 }),
                    3,
                )
        };
        let reference = w.load(image("v1", "/data")).await?;
        let spec = ContainerSpec::new("a", &reference)
            .env("KEY", "mine")
            .env("MODEL_DEFAULT", "my-model")
            .label("owner", "me");
        let before = w.run(spec).await?;
        let next = w.load(image("v2", "/tmp")).await?;
        w.tag(&next, &reference).await?;

        bench.refreshed(&before.name, &reference).await?;
        let after = bench.inspect(&before.name).await?;
        assert_eq!(
            Some(after.image_id.as_str().to_owned()),
            w.image_id(&next).await?
        );
        let mut environment: Vec<_> = after
            .environment()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        environment.sort();
        assert_eq!(
            environment,
            [
                "KEY=mine",
                "MODEL_DEFAULT=my-model",
                "ONLY_IN_v2=1",
                "PATH=/",
                "WS_VERSION=v2"
            ]
        );
        let config = |key: &str| after.config[key].clone();
        assert_eq!(config("Cmd"), json!(["v2"]));
        assert_eq!(config("User"), "1002");
        assert_eq!(config("WorkingDir"), "/tmp");
        assert_eq!(config("StopSignal"), "SIGINT");
        assert_eq!(
            config("ExposedPorts"),
            json!({"8000/tcp": {}, "1002/tcp": {}})
        );
        assert_eq!(config("Volumes"), json!({"/tmp": {}}));
        assert_eq!(config("Healthcheck")["Interval"], 250_000_000);
        assert_eq!(after.label("of.image"), Some("v2"));
        assert_eq!(after.label("org.opencontainers.image.version"), Some("v2"));
        assert_eq!(after.label("owner"), Some("me"));
        assert_eq!(w.read_line(&before.name).await?, "v2");
        Ok(())
    })
    .await
}

/// 22, on the engine: what it does with an entrypoint that is given again, or taken away.
#[tokio::test]
async fn commands_come_back_in_every_combination() -> anyhow::Result<()> {
    with_world("commands in every combination", |w| async move {
        let bench = Bench::new(&w);
        let old = w.load(ImageSpec::new("v1").cmd(&["old"])).await?;
        let new = w.load(ImageSpec::new("v2").cmd(&["new"])).await?;
        let cases = [
            (json!({}), json!(["/stamp"]), json!(["new"])),
            (json!({"Cmd": ["mine"]}), json!(["/stamp"]), json!(["mine"])),
            (
                json!({"Entrypoint": ["/stamp", "mine"]}),
                json!(["/stamp", "mine"]),
                Value::Null,
            ),
            (
                json!({"Entrypoint": ["/stamp"]}),
                json!(["/stamp"]),
                Value::Null,
            ),
            (
                json!({"Entrypoint": ["/stamp", "mine"], "Cmd": ["old"]}),
                json!(["/stamp", "mine"]),
                json!(["old"]),
            ),
            (
                json!({"Entrypoint": [""], "Cmd": ["/stamp", "x"]}),
                Value::Null,
                json!(["/stamp", "x"]),
            ),
        ];
        for (number, (config, entrypoint, cmd)) in cases.into_iter().enumerate() {
            let name = w.name(&format!("c{number}"));
            bench
                .run(&name, &old, config.clone(), json!({"NetworkMode": "none"}))
                .await?;
            bench.refreshed(&name, &new).await?;
            let after = bench.inspect(&name).await?;
            assert_eq!(
                (&after.config["Entrypoint"], &after.config["Cmd"]),
                (&entrypoint, &cmd),
                "{config}"
            );
        }
        Ok(())
    })
    .await
}

/// 24, on the engine, which fills in what is left out.
#[tokio::test]
async fn health_checks_come_back_in_every_combination() -> anyhow::Result<()> {
    with_world("health checks in every combination", |w| async move {
        let bench = Bench::new(&w);
        let check = |interval: u64| ImageSpec::new("v").healthcheck(std::time::Duration::from_millis(interval), 3);
        let (old, new) = (w.load(check(150)).await?, w.load(check(250)).await?);
        let test = json!(["CMD", "/stamp", "health"]);
        let cases = [
            (json!({}), json!({"Test": test, "Interval": 250_000_000, "Retries": 3})),
            (json!({"Healthcheck": {"Interval": 99_000_000}}), json!({"Test": test, "Interval": 99_000_000, "Retries": 3})),
            (json!({"Healthcheck": {"Test": ["CMD", "/stamp", "health", "x"]}}), json!({"Test": ["CMD", "/stamp", "health", "x"], "Interval": 250_000_000, "Retries": 3})),
            (json!({"Healthcheck": {"Test": ["NONE"]}}), json!({"Test": ["NONE"], "Interval": 250_000_000, "Retries": 3})),
        ];
        for (number, (config, expected)) in cases.into_iter().enumerate() {
            let name = w.name(&format!("h{number}"));
            bench.run(&name, &old, config.clone(), json!({})).await?;
            bench.refreshed(&name, &new).await?;
            assert_eq!(bench.inspect(&name).await?.config["Healthcheck"], expected, "{config}");
        }
        Ok(())
    })
    .await
}

/// 20: the one thing that cannot be told apart, and what is done about it.
#[tokio::test]
async fn a_value_that_equals_the_old_images_default_follows_the_new_image() -> anyhow::Result<()> {
    with_world("a value that equals the default", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        w.run(ContainerSpec::new("a", &old).env("MODEL_DEFAULT", "model-v1"))
            .await?;
        bench.refreshed(&w.name("a"), &new).await?;
        let after = bench.inspect(&w.name("a")).await?;
        assert!(
            after
                .environment()
                .any(|variable| variable == ("MODEL_DEFAULT", "model-v2"))
        );
        Ok(())
    })
    .await
}

/// 26
#[tokio::test]
async fn without_its_old_image_a_container_is_left_alone() -> anyhow::Result<()> {
    with_world("without its old image", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let before = w.run(ContainerSpec::new("a", &old)).await?;
        let started = Bench::new(&w).started(&before.id).await?;
        let gone = format!("image {}", before.image_id);
        let between = Between::new(&w).refuses(move |call| {
            (call == gone).then(|| refit::engine::EngineError::NotFound {
                action: "inspect image".into(),
                source: "no such image".into(),
            })
        });
        let bench = Bench::new(&w).through(between);
        let error = bench.refused(&before.name, &new).await?;
        assert!(
            matches!(
                error,
                RecreateError::Aborted {
                    step: Step::Inspect,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(
            told(&error).contains("no longer on this machine"),
            "{}",
            told(&error)
        );
        assert_eq!(bench.started(&before.id).await?, started);
        bench.only(&[&before.name]).await
    })
    .await
}

/// 27
#[tokio::test]
async fn a_container_made_by_an_images_id_gets_the_reference_that_the_policy_gave()
-> anyhow::Result<()> {
    with_world("a container made by an image's id", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let id = w.image_id(&old).await?.unwrap();
        w.run(ContainerSpec::new("a", &id)).await?;
        bench.refreshed(&w.name("a"), &new).await?;
        let after = bench.inspect(&w.name("a")).await?;
        assert!(after.image().ends_with(&new), "{}", after.image());
        assert_eq!(w.read_line(&w.name("a")).await?, "v2");
        Ok(())
    })
    .await
}

/// 28: this engine has one platform, so what is asked of it is looked at.
#[tokio::test]
async fn the_platform_that_was_pulled_is_asked_for() -> anyhow::Result<()> {
    with_world("the platform that was pulled", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        w.run(ContainerSpec::new("a", &old)).await?;
        let platform = bench_platform();
        let between = Between::new(&w);
        let calls = between.calls.clone();
        Bench::new(&w)
            .platform(platform)
            .through(between)
            .refreshed(&w.name("a"), &new)
            .await?;
        let calls = calls.lock().unwrap();
        let create = calls
            .iter()
            .find(|call| call.starts_with("create "))
            .unwrap();
        assert!(create.ends_with(&format!(" for {platform}")), "{create}");
        Ok(())
    })
    .await
}

fn bench_platform() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "linux/arm64"
    } else {
        "linux/amd64"
    }
}

/// 4
#[tokio::test]
async fn an_image_that_went_away_before_it_was_used_stops_nothing() -> anyhow::Result<()> {
    with_world("an image that went away", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let before = w.run(ContainerSpec::new("a", &old)).await?;
        let started = bench.started(&before.id).await?;
        let wanted = bench.wanted(&before.name, &new).await?;
        w.untag(&new).await?;
        let error = bench.recreate(wanted).await.unwrap_err();
        assert!(
            matches!(
                error,
                RecreateError::Aborted {
                    step: Step::Create,
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(bench.started(&before.id).await?, started);
        bench.only(&[&before.name]).await
    })
    .await
}

/// 4: the tag moved on between the pull and the use of what was pulled.
#[tokio::test]
async fn a_tag_that_moved_after_the_pull_stops_nothing() -> anyhow::Result<()> {
    with_world("a tag that moved after the pull", |w| async move {
        let bench = Bench::new(&w);
        let (old, new) = (
            w.load(ImageSpec::new("v1")).await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let newer = w.load(ImageSpec::new("v3")).await?;
        let before = w.run(ContainerSpec::new("a", &old)).await?;
        let started = bench.started(&before.id).await?;
        let wanted = bench.wanted(&before.name, &new).await?;
        w.tag(&newer, &new).await?;
        let error = bench.recreate(wanted).await.unwrap_err();
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
        assert!(told(&error).contains("the tag moved"), "{}", told(&error));
        assert_eq!(bench.started(&before.id).await?, started);
        bench.only(&[&before.name]).await
    })
    .await
}

/// 3
#[tokio::test]
async fn what_is_current_is_left_alone_unless_forced() -> anyhow::Result<()> {
    with_world("what is current is left alone", |w| async move {
        let bench = Bench::new(&w);
        let image = w.load(ImageSpec::new("v1")).await?;
        let before = w.run(ContainerSpec::new("a", &image)).await?;
        let error = bench.refused(&before.name, &image).await?;
        assert!(matches!(error, RecreateError::Current { .. }), "{error:?}");
        assert_eq!(bench.inspect(&before.name).await?.id.as_str(), before.id);
        bench.forced().refreshed(&before.name, &image).await?;
        assert_ne!(w.inspect(&before.name).await?.id, Some(before.id));
        Ok(())
    })
    .await
}

/// 49: engines with containerd's store know an image by its manifest's digest, where others know it by its configuration's.
#[tokio::test]
async fn whatever_an_engine_knows_images_by_they_are_told_apart() -> anyhow::Result<()> {
    /// As if it were another digest: digits in reverse.
    fn other(id: &str) -> String {
        match id.strip_prefix("sha256:") {
            Some(digits) => format!("sha256:{}", digits.chars().rev().collect::<String>()),
            None => id.to_owned(),
        }
    }
    with_world("other ids of images", |w| async move {
        let (old, new) = (
            w.load(ImageSpec::new("v1").env("KEPT", "of the image"))
                .await?,
            w.load(ImageSpec::new("v2")).await?,
        );
        let a = w.run(ContainerSpec::new("a", &old)).await?;
        let bench = Bench::new(&w).through(Between::new(&w).knows_images_by(other));
        let mut wanted = bench.wanted(&a.name, &new).await?;
        wanted.image.id = ImageId::new(other(wanted.image.id.as_str()));
        bench.recreate(wanted.clone()).await?;
        let now = bench.inspect(&a.name).await?;
        assert!(
            !now.environment().any(|(name, _)| name == "KEPT"),
            "it follows the image"
        );
        // The same image again is current, by the id that this engine has for it.
        let mut again = bench.wanted(&a.name, &new).await?;
        again.image.id = wanted.image.id;
        let error = bench.recreate(again).await.unwrap_err();
        assert!(matches!(error, RecreateError::Current { .. }), "{error:?}");
        bench.only(&[&a.name]).await
    })
    .await
}
