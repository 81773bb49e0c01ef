//! Whose login goes where: from the environment, from what `docker login` left behind, from helper programs, or none.

use refit_tests::registry::{self, PASSWORD, Registry, USER};
use refit_tests::{ImageSpec, Proxy, Refit, World, with_world};
use serde_json::{Value, json};

use crate::{image, refit, without_engine};

const WRONG: &str = "also-not-to-be-seen";

/// What a helper prints for whoever asks it.
fn helper(password: &str) -> String {
    format!(
        r#"read server; echo '{{"ServerURL":"'"$server"'","Username":"{USER}","Secret":"{password}"}}'"#
    )
}

fn auths(registry: &Registry, password: &str) -> Value {
    use base64::Engine as _;
    let basic = format!("{USER}:{password}");
    let basic = base64::engine::general_purpose::STANDARD.encode(basic);
    json!({ "auths": { registry.host(): { "auth": basic } } })
}

/// Publishes a private image, and pulls it in the way that `login` says. What is logged meanwhile is as much as there is.
async fn pulls(
    w: &World,
    registry: &Registry,
    login: impl FnOnce(Refit) -> anyhow::Result<Refit>,
) -> anyhow::Result<()> {
    let published = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
    let refit = login(refit(w, registry, &["hermes"])?)?;
    let output = refit
        .run(&["refresh", "--json", "--log", "trace"])
        .await?
        .expect(0);
    assert_eq!(image(&output.json(), "hermes")["outcome"], "pulled");
    assert_eq!(w.image_id(&published.reference).await?, Some(published.id));
    Ok(())
}

/// The same, refused. The report on the image, and all of stderr.
async fn is_refused(
    w: &World,
    login: impl FnOnce(Refit) -> anyhow::Result<Refit>,
) -> anyhow::Result<Value> {
    let registry = registry::private().await?;
    let published = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
    let refit = login(refit(w, registry, &["hermes"])?)?;
    let output = refit
        .run(&["refresh", "--json", "--log", "trace"])
        .await?
        .expect(1);
    let report = output.json();
    let record = image(&report, "hermes");
    assert_eq!(record["outcome"], "failed");
    assert_eq!(w.image_id(&published.reference).await?, None);
    Ok(record.clone())
}

#[track_caller]
fn hints(record: &Value) -> String {
    record["hints"].to_string()
}

#[tokio::test]
async fn a_private_image_comes_with_the_login_from_the_environment() -> anyhow::Result<()> {
    with_world("login from the environment", |w| async move {
        let registry = registry::private().await?;
        pulls(&w, registry, |refit| {
            // As `$(cat FILE)` in a unit file leaves them.
            Ok(refit
                .set("credentials.registry", registry.host())
                .env("GHCR_USER", &format!(" {USER}"))
                .env("GHCR_TOKEN", &format!("{PASSWORD}\n")))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_private_image_comes_with_what_docker_login_left_behind() -> anyhow::Result<()> {
    with_world("login from auths", |w| async move {
        let registry = registry::private().await?;
        pulls(&w, registry, |refit| {
            refit.docker_config(&auths(registry, PASSWORD))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_private_image_comes_with_the_login_of_a_registrys_own_helper() -> anyhow::Result<()> {
    with_world("login from credHelpers", |w| async move {
        let registry = registry::private().await?;
        pulls(&w, registry, |refit| {
            refit
                .docker_config(&json!({ "credHelpers": { registry.host(): "refit-test" } }))?
                .program("docker-credential-refit-test", &helper(PASSWORD))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_private_image_comes_with_the_login_of_the_helper_for_all_registries()
-> anyhow::Result<()> {
    with_world("login from credsStore", |w| async move {
        let registry = registry::private().await?;
        pulls(&w, registry, |refit| {
            // `docker login` leaves an empty entry for what the store keeps.
            refit
                .docker_config(
                    &json!({ "auths": { registry.host(): {} }, "credsStore": "refit-test" }),
                )?
                .program("docker-credential-refit-test", &helper(PASSWORD))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_password_of_any_characters_arrives() -> anyhow::Result<()> {
    with_world("a password that base64 makes + and / of", |w| async move {
        // In the standard alphabet these become `+` and `/`, which an engine cannot read.
        let password = "~~>>??ÿÿ>>>~~~???";
        let registry = Registry::start_with_password(password).await?;
        pulls(&w, &registry, |refit| {
            Ok(refit
                .secret(password)
                .set("credentials.registry", registry.host())
                .env("GHCR_USER", USER)
                .env("GHCR_TOKEN", password))
        })
        .await?;
        registry.stop().await
    })
    .await
}

#[tokio::test]
async fn without_a_login_the_error_says_that_none_was_sent() -> anyhow::Result<()> {
    with_world("no login", |w| async move {
        let record = is_refused(&w, Ok).await?;
        let error = record["error"].as_str().unwrap_or_default();
        assert!(error.contains("refused"), "{record:#}");
        assert!(hints(&record).contains("no credentials for"), "{record:#}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn with_a_wrong_login_the_error_says_that_it_was_sent() -> anyhow::Result<()> {
    with_world("wrong login", |w| async move {
        let registry = registry::private().await?;
        let record = is_refused(&w, |refit| {
            Ok(refit
                .secret(WRONG)
                .set("credentials.registry", registry.host())
                .env("GHCR_USER", USER)
                .env("GHCR_TOKEN", WRONG))
        })
        .await?;
        let error = record["error"].as_str().unwrap_or_default();
        assert!(error.contains("refused"), "{record:#}");
        assert!(
            hints(&record).contains("was sent and refused"),
            "{record:#}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_helper_that_fails_is_told_of_and_nothing_is_sent() -> anyhow::Result<()> {
    with_world("a helper that fails", |w| async move {
        let registry = registry::private().await?;
        let record = is_refused(&w, |refit| {
            let script = format!(
                "cat >/dev/null; echo '{WRONG}'; echo 'the key chain is locked' >&2; exit 1"
            );
            refit
                .secret(WRONG)
                .docker_config(&json!({ "credHelpers": { registry.host(): "refit-test" } }))?
                .program("docker-credential-refit-test", &script)
        })
        .await?;
        let told = record.to_string();
        assert!(
            told.contains("cannot read the login for registry"),
            "{record:#}"
        );
        assert!(told.contains("the key chain is locked"), "{record:#}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_helper_that_is_not_there_is_told_of() -> anyhow::Result<()> {
    with_world("a helper that is missing", |w| async move {
        let registry = registry::private().await?;
        let record = is_refused(&w, |refit| {
            refit.docker_config(&json!({ "credHelpers": { registry.host(): "absent" } }))
        })
        .await?;
        let told = record.to_string();
        assert!(
            told.contains("`docker-credential-absent` could not be run"),
            "{record:#}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_login_is_sent_to_its_own_registry_and_to_no_other() -> anyhow::Result<()> {
    with_world("a login for another registry", |w| async move {
        let registry = registry::private().await?;
        w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let proxy = Proxy::before(&w).await?;
        // The default: they are for ghcr.io. Beside them a login for a registry of a similar name.
        let port = registry.host().replace("127.0.0.1:", "");
        let refit = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .env("GHCR_USER", USER)
            .env("GHCR_TOKEN", PASSWORD)
            .docker_config(
                &json!({ "auths": { format!("localhost:{port}"): { "auth": "cmVmaXQ6eA==" } } }),
            )?;
        for command in ["plan", "refresh"] {
            let output = refit.run(&[command, "--json"]).await?.expect(1);
            let report = output.json();
            assert!(
                hints(image(&report, "hermes")).contains("no credentials for"),
                "{output}"
            );
        }
        let asked = proxy.asked();
        assert!(asked.iter().any(|asked| asked.path == "/images/create"));
        assert!(
            asked.iter().all(|asked| asked.registry_auth.is_none()),
            "{asked:#?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_login_of_two_lines_is_refused_before_anything_is_done() -> anyhow::Result<()> {
    let output = without_engine()?
        .secret(WRONG)
        .env("GHCR_USER", USER)
        .env("GHCR_TOKEN", &format!("{WRONG}\nsecond line"))
        .run(&["refresh"])
        .await?
        .expect(2);
    assert_eq!(output.stdout, "");
    crate::snapshot::snapshot!(output.stderr, @r#"
    error: `GHCR_TOKEN` contains a line break

    hint: `GHCR_TOKEN` must be one line of visible characters: check how it was copied, for example `export GHCR_TOKEN="$(cat FILE)"`
    "#);
    Ok(())
}
