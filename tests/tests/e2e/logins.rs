//! Logins from files, of several registries, and by identity tokens, which the real registry takes by way of a server of tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use refit_tests::registry::{self, PASSWORD, Registry, USER};
use refit_tests::tokens::{By, TokenServer};
use refit_tests::{ContainerSpec, ImageSpec, Refit, World, with_world};
use serde_json::{Value, json};

use crate::{behind, container, image, refit, replaced, until, without_engine};

const WRONG: &str = "also-not-to-be-seen";
const IDENTITY: &str = "identity-token-not-to-be-seen/+=";

/// A file that only its owner can read, so that nothing is said about it.
fn secret_file(refit: Refit, name: &str, content: &str) -> anyhow::Result<Refit> {
    let refit = refit.file(name, content)?;
    let path = refit.home().join(name);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(refit)
}

fn login(registry: &Registry, file: &str) -> Value {
    json!({ "registry": registry.host(), "username": USER, "password_file": file })
}

#[tokio::test]
async fn a_token_in_a_file_is_read_anew_for_each_pull() -> anyhow::Result<()> {
    with_world("login from a file", |w| async move {
        let registry = registry::private().await?;
        let published = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let refit = refit(&w, registry, &["hermes"])?
            .set("credentials.registry", registry.host())
            .set("state_dir", "state")
            .env("GHCR_USER", USER)
            .env("GHCR_TOKEN_FILE", "token")
            .env("ADMIN_TOKEN_FILE", "admin")
            .secret(WRONG);
        let refit = secret_file(refit, "token", WRONG)?;
        let refit = secret_file(refit, "admin", "the-admins-not-to-be-seen\n")?
            .secret("the-admins-not-to-be-seen");
        let daemon = refit.serve().await?;
        let sent = [("Authorization", "Bearer the-admins-not-to-be-seen")];
        let path = "/admin/workspace-images/refresh?runtime=hermes";
        let answer = daemon.send("POST", path, &sent, "").await?;
        assert!(
            answer.text.contains("was sent and refused"),
            "{}",
            answer.text
        );
        // Whoever renews it writes a new one. No restart, no signal.
        fs::write(refit.home().join("token"), format!("{PASSWORD}\n"))?;
        let answer = daemon.send("POST", path, &sent, "").await?;
        assert_eq!(answer.json()?["pulled"], json!(["hermes"]), "{answer:?}");
        assert_eq!(w.image_id(&published.reference).await?, Some(published.id));
        let answer = daemon.request("POST", path).await?;
        assert_eq!(answer.status, 401, "without the token of the file");
        daemon.terminate()?;
        let log = daemon.ended().await?.expect(0).stderr;
        assert!(!log.contains("can be read by all"), "{log}");
        let output = refit.run(&["doctor"]).await?;
        let told = format!("`{}`: found in `GHCR_USER` and `token`", registry.host());
        assert!(output.stdout.contains(&told), "{output}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_is_told_before_anything_is_done() -> anyhow::Result<()> {
    let with = |name: &str, value: &str| {
        let refit = without_engine()?.secret(WRONG).env("GHCR_USER", USER);
        anyhow::Ok(refit.env(name, value))
    };
    let both = with("GHCR_TOKEN", WRONG)?.env("GHCR_TOKEN_FILE", "token");
    let output = both.run(&["refresh"]).await?.expect(2);
    crate::snapshot::snapshot!(output.stderr, @r"
    error: `GHCR_TOKEN` and `GHCR_TOKEN_FILE` are both set

    hint: unset `GHCR_TOKEN` where the file is to be used
    ");
    let output = with("GHCR_TOKEN_FILE", "absent")?
        .run(&["refresh"])
        .await?
        .expect(2);
    crate::snapshot::snapshot!(output.stderr, @r#"
    error: the login for `ghcr.io` cannot be had
      caused by: cannot read the password from `absent`
      caused by: No such file or directory (os error 2)

    hint: in a container it must be mounted; a path is seen from where Refit runs
    "#);
    let long = WRONG.repeat(10_000);
    for (content, said) in [
        ("", "it is empty"),
        (long.as_str(), "it is longer than 64 KiB"),
        (
            "also-not-to-be-seen\nsecond",
            "`token` contains a line break",
        ),
    ] {
        let refit = secret_file(with("GHCR_TOKEN_FILE", "token")?, "token", content)?;
        refit.run(&["refresh"]).await?.expect(2).says(said);
    }
    // The same for whatever else is secret, and for the commands that send it.
    for (variable, command) in [
        ("ADMIN_TOKEN", "serve"),
        ("GITHUB_WEBHOOK_SECRET", "serve"),
        ("REGISTRY_WEBHOOK_SECRET", "serve"),
        ("ADMIN_TOKEN", "watch"),
    ] {
        let arguments: &[&str] = match command {
            "watch" => &["watch", "status"],
            other => &[other],
        };
        let refit = without_engine()?.env(&format!("{variable}_FILE"), "absent");
        let output = refit.run(arguments).await?.expect(2);
        output.says("from `absent`").says("No such file");
        let refit = refit.env(variable, "correct-horse-battery-staple");
        let output = refit.run(arguments).await?.expect(2);
        output.says(&format!("`{variable}` and `{variable}_FILE` are both set"));
    }
    // One that all may read is used, and told of.
    let refit = with("GHCR_TOKEN_FILE", "token")?.file("token", WRONG)?;
    let path = refit.home().join("token");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    let output = refit.run(&["refresh"]).await?;
    output.says(
        "the password in `token` can be read by all users of this machine: `chmod 600 token`",
    );
    Ok(())
}

#[tokio::test]
async fn each_registry_has_its_own_login_and_the_nearest_word_wins() -> anyhow::Result<()> {
    with_world("several registries", |w| async move {
        let one = registry::private().await?;
        let (first, second) = ("pass-one-not-to-be-seen", "pass-two-not-to-be-seen");
        let two = Registry::start_with_password(first).await?;
        let three = Registry::start_with_password(second).await?;
        let logins = |refit: Refit| {
            let refit = secret_file(refit, "one", &format!("{PASSWORD}\n"))?;
            let refit = secret_file(refit, "two", first)?
                .secret(first)
                .secret(second);
            // For the third there is only what `docker login` left; its entry for the second is out of date.
            use base64::Engine as _;
            let auth = |password: &str| {
                let login = format!("{USER}:{password}");
                json!({ "auth": base64::engine::general_purpose::STANDARD.encode(login) })
            };
            refit
                .set(
                    "credentials.login",
                    json!([login(one, "one"), login(&two, "two")]),
                )
                .docker_config(
                    &json!({ "auths": { two.host(): auth(WRONG), three.host(): auth(second) } }),
                )
        };
        for registry in [one, &two, &three] {
            let published = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
            let refit = logins(refit(&w, registry, &["hermes"])?)?;
            refit.run(&["refresh"]).await?.expect(0);
            assert_eq!(w.image_id(&published.reference).await?, Some(published.id));
        }
        // Over both: the environment, where it is for that registry.
        let refit = logins(refit(&w, &two, &["hermes"])?)?
            .secret(WRONG)
            .set("credentials.registry", two.host())
            .set(
                "grants.images",
                json!([
                    format!("{}/*", one.host()),
                    format!("{}/*", two.host()),
                    format!("{}/*", three.host())
                ]),
            )
            .env("GHCR_USER", USER)
            .env("GHCR_TOKEN", WRONG);
        let output = refit.run(&["doctor"]).await?;
        for (registry, source) in [
            (one, "`[[credentials.login]]` and `one`".to_owned()),
            (&two, "`GHCR_USER` and `GHCR_TOKEN`".to_owned()),
            (
                &three,
                format!("`{}`", refit.home().join("docker/config.json").display()),
            ),
        ] {
            let told = format!("`{}`: found in {source}", registry.host());
            assert!(output.stdout.contains(&told), "`{told}` is not in {output}");
        }
        two.stop().await?;
        three.stop().await
    })
    .await
}

/// The ways to an identity token.
fn with_identity(way: &str, refit: Refit, registry: &Registry) -> anyhow::Result<Refit> {
    let host = registry.host();
    let refit = refit.secret(IDENTITY);
    match way {
        // As `docker login` writes it, with a user and no password.
        "config.json" => refit.docker_config(
            &json!({ "auths": { host: { "auth": "MDAwMDA6", "identitytoken": IDENTITY } } }),
        ),
        "helper" => refit
            .docker_config(&json!({ "credHelpers": { host: "refit-test" } }))?
            .program(
                "docker-credential-refit-test",
                &format!(r#"echo '{{"Username":"<token>","Secret":"{IDENTITY}"}}'"#),
            ),
        _ => secret_file(
            refit.set(
                "credentials.login",
                json!([{ "registry": host, "identity_token_file": "identity" }]),
            ),
            "identity",
            &format!("{IDENTITY}\n"),
        ),
    }
}

#[tokio::test]
async fn an_identity_token_lets_pulls_and_the_watcher_in() -> anyhow::Result<()> {
    with_world("identity tokens", |w| async move {
        let tokens = TokenServer::start(IDENTITY).await?;
        let registry = Registry::start_trusting(&tokens).await?;
        for way in ["config.json", "helper", "file"] {
            let (hermes, v2) = behind(&w, &registry, "hermes").await?;
            let refit = with_identity(way, refit(&w, &registry, &["hermes"])?, &registry)?
                .set("state_dir", "state")
                .set("watch.enabled", true)
                .set("watch.jitter_seconds", 0);
            tokens.forget();
            let daemon = refit.serve().await?;
            until("the container on the new image", || async {
                Ok(w.inspect(&hermes.name)
                    .await
                    .is_ok_and(|it| it.image.as_deref() == Some(v2.id.as_str()))
                    && !w.container_exists(&hermes.id).await?)
            })
            .await?;
            replaced(&w, &hermes, &v2).await?;
            let asked = tokens.asked();
            // The watcher by itself, the engine by what it was handed; nobody by anything else.
            for by_refit in [true, false] {
                assert!(
                    asked.iter().any(|it| it.by_refit == by_refit),
                    "{way}: {asked:#?}"
                );
            }
            assert!(
                asked
                    .iter()
                    .all(|it| it.by == By::IdentityToken && it.given),
                "{way}: {asked:#?}"
            );
            daemon.terminate()?;
            daemon.ended().await?.expect(0);
            w.remove_container(&hermes.name).await?;
        }
        registry.stop().await
    })
    .await
}

#[tokio::test]
async fn an_identity_token_that_is_over_is_told_as_a_login_that_was_refused() -> anyhow::Result<()>
{
    with_world("an identity token that is over", |w| async move {
        let tokens = TokenServer::start(IDENTITY).await?;
        let registry = Registry::start_trusting(&tokens).await?;
        let (hermes, _) = behind(&w, &registry, "hermes").await?;
        let refit = with_identity("config.json", refit(&w, &registry, &["hermes"])?, &registry)?
            .set("state_dir", "state")
            .set("watch.enabled", true)
            .set("watch.jitter_seconds", 0);
        tokens.withdraw();
        for command in ["refresh", "plan"] {
            let output = refit
                .run(&[command, "--json", "--log", "trace"])
                .await?
                .expect(1);
            let report = output.json();
            assert!(
                image(&report, "hermes")["hints"]
                    .to_string()
                    .contains("was sent and refused"),
                "{report:#}"
            );
            assert_eq!(container(&report, &hermes.name)["verdict"], "unknown");
        }
        let daemon = refit.serve().await?;
        until("the watcher's word", || async {
            let status = daemon.request("GET", "/v1/watch").await?.json()?;
            Ok(status["images"][0]["verdict"] == "unknown"
                && status["images"][0].to_string().contains("refused"))
        })
        .await?;
        let asked = tokens.asked();
        assert!(
            asked
                .iter()
                .any(|it| it.by_refit && it.by == By::IdentityToken && !it.given),
            "{asked:#?}"
        );
        registry.stop().await
    })
    .await
}

#[tokio::test]
async fn a_helper_that_hangs_is_ended() -> anyhow::Result<()> {
    with_world("a helper that hangs", |w| async move {
        let registry = registry::private().await?;
        let published = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        w.run(ContainerSpec::new("hermes", &published.reference))
            .await?;
        let refit = refit(&w, registry, &["hermes"])?
            .docker_config(&json!({ "credsStore": "refit-test" }))?
            .program(
                "docker-credential-refit-test",
                "echo $$ >\"$HOME/pid\"; exec sleep 1000",
            )?;
        let began = Instant::now();
        let output = refit.run(&["refresh", "--json"]).await?.expect(1);
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{:?}",
            began.elapsed()
        );
        assert!(
            output.stdout.contains("did not answer within 20 s"),
            "{output}"
        );
        let pid = fs::read_to_string(refit.home().join("pid"))?;
        let process = Path::new("/proc").join(pid.trim());
        until("the end of the helper", || async { Ok(!process.exists()) }).await
    })
    .await
}

/// What `docker login` keeps up to date goes over what it wrote before there was a store.
#[tokio::test]
async fn the_store_goes_over_what_the_file_still_has() -> anyhow::Result<()> {
    with_world("store and file", |w: World| async move {
        let registry = registry::private().await?;
        w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let answer = format!(r#"{{"ServerURL":"","Username":"{USER}","Secret":"{PASSWORD}"}}"#);
        let config = json!({
            // `refit:stale`
            "auths": { registry.host(): { "auth": "cmVmaXQ6c3RhbGU=" } }, "credsStore": "refit-test"
        });
        let refit = refit(&w, registry, &["hermes"])?
            .docker_config(&config)?
            .program(
                "docker-credential-refit-test",
                &format!("cat >/dev/null; echo '{answer}'"),
            )?;
        refit.run(&["refresh"]).await?.expect(0);
        // And where it has none, the file counts.
        let none = "cat >/dev/null; echo 'credentials not found in native keychain'; exit 1";
        let refit = refit.program("docker-credential-refit-test", none)?;
        let output = refit.run(&["refresh", "--json"]).await?.expect(1);
        assert!(output.stdout.contains("was sent and refused"), "{output}");
        Ok(())
    })
    .await
}
