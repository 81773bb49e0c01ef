//! What is typed and written wrongly: a sentence, a hint, status 2, and nothing changed. And what is in force when it is right.

use serde_json::json;

use crate::snapshot::snapshot;
use crate::without_engine;

#[tokio::test]
async fn an_unknown_flag_or_command() -> anyhow::Result<()> {
    let refit = without_engine()?;
    let output = refit
        .run(&["refresh", "--runtimes", "hermes"])
        .await?
        .expect(2);
    snapshot!(output.stderr, @r#"
    error: unexpected argument '--runtimes' found

      tip: a similar argument exists: '--runtime'

    Usage: refit refresh --runtime <RUNTIME>

    For more information, try '--help'.
    "#);
    let output = refit.run(&["refrehs"]).await?.expect(2);
    output.says("refresh");
    let output = refit
        .run(&["refresh", "--force", "--no-recreate"])
        .await?
        .expect(2);
    output.says("cannot be used with");
    Ok(())
}

#[tokio::test]
async fn an_unknown_runtime() -> anyhow::Result<()> {
    let refit = without_engine()?;
    for command in ["refresh", "plan"] {
        let arguments = [command, "--runtime", "hermez", "--runtime", "crewai"];
        let output = refit.run(&arguments).await?.expect(2);
        assert_eq!(output.stdout, "");
        output.says("unknown target: hermez");
    }
    let output = refit
        .run(&["refresh", "--runtime", "hermez", "--runtime", "x"])
        .await?;
    snapshot!(output.stderr, @r#"
    error: unknown targets: hermez, x

    hint: the policy knows claude-code, langgraph, crewai, autogen, deepagents, hermes, gemini-cli, openclaw
    "#);
    Ok(())
}

#[tokio::test]
async fn an_unknown_key() -> anyhow::Result<()> {
    let refit = without_engine()?.set("limits.pull_second", 5);
    for arguments in [
        &["refresh"][..],
        &["plan"],
        &["serve"],
        &["doctor"],
        &["config", "show"],
    ] {
        let output = refit.run(arguments).await?.expect(2);
        assert_eq!(output.stdout, "");
        output.says("unknown key `pull_second` in `[limits]` in refit.toml");
    }
    let output = refit.run(&["refresh"]).await?;
    snapshot!(output.stderr, @r#"
    error: the configuration cannot be used: unknown key `pull_second` in `[limits]` in refit.toml

    hint: the keys there are `engine_seconds`, `pull_seconds`, `refresh_seconds`, `pulls_max`, `inspects_max`, `recreates_max`, `pull_concurrency`, `inspect_concurrency`, `recreate_concurrency`, `recreate_pipeline`, `compile_seconds`, `compile_megabytes`
    "#);
    let output = refit
        .unset("limits.pull_second")
        .set("polcy", "x")
        .run(&["refresh"])
        .await?
        .expect(2);
    output.says("unknown key `polcy` at the top in refit.toml");
    let output = without_engine()?
        .env("REFIT_LIMITS__PULL_SECOND", "5")
        .run(&["refresh"])
        .await?
        .expect(2);
    output.says("unknown key `pull_second`").says("REFIT_");
    Ok(())
}

#[tokio::test]
async fn a_value_that_cannot_be() -> anyhow::Result<()> {
    for (key, value, told) in [
        (
            "limits.pull_seconds",
            json!("long"),
            "`limits.pull_seconds`",
        ),
        ("limits.pull_seconds", json!(-1), "`limits.pull_seconds`"),
        ("limits.engine_seconds", json!(0), "must be at least 1"),
        ("proof.grace_seconds", json!(999_999_999), "at most"),
        (
            "images.platform",
            json!("amd64"),
            "`amd64` is not a platform",
        ),
        ("serve.listen", json!("localhost"), "`serve.listen`"),
        ("grants.verbs", json!(["destroy"]), "`grants.verbs"),
        (
            "grants.images",
            json!(["ghcr.io/[a"]),
            "`ghcr.io/[a` in `[grants] images` is not a pattern",
        ),
        ("engine", json!("ftp://host"), "cannot use `ftp://host`"),
    ] {
        let output = without_engine()?
            .set(key, value.clone())
            .run(&["refresh"])
            .await?;
        let output = output.expect(2);
        assert_eq!(output.stdout, "", "{key} = {value}");
        output.says("error: ").says(told);
    }
    let output = without_engine()?
        .run(&["refresh", "--concurrency", "0"])
        .await?
        .expect(2);
    output.says("`limits.recreate_concurrency` in the configuration is 0");
    let output = without_engine()?
        .run(&["refresh", "--log", "lots=of=it"])
        .await?
        .expect(2);
    output.says("is no log level or filter");
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_read() -> anyhow::Result<()> {
    let output = without_engine()?
        .run(&["refresh", "--config", "absent.toml"])
        .await?
        .expect(2);
    snapshot!(output.stderr, @r#"
    error: cannot read the configuration `absent.toml`
      caused by: No such file or directory (os error 2)

    hint: `--config FILE` names another one
    "#);
    let output = without_engine()?
        .run(&["refresh", "--config", "."])
        .await?
        .expect(2);
    output.says("cannot read the configuration `.`");
    let refit = without_engine()?.file("refit.toml", "[limits\npull_seconds = 5\n")?;
    let output = refit.run(&["refresh"]).await?.expect(2);
    snapshot!(output.stderr, @r#"
    error: the configuration cannot be used: in refit.toml: TOML parse error at line 1, column 8
      |
    1 | [limits
      |        ^
    invalid table header
    expected `.`, `]`
    "#);
    let refit = without_engine()?.file("refit.toml", b"engine = \"\xff\"\n")?;
    refit.run(&["refresh"]).await?.expect(2).says("refit.toml");
    Ok(())
}

#[tokio::test]
async fn an_admin_token_of_two_lines() -> anyhow::Result<()> {
    let output = without_engine()?
        .secret("first-line")
        .env("ADMIN_TOKEN", "first-line\nsecond-line")
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2);
    snapshot!(output.stderr, @r#"
    error: the admin token from `ADMIN_TOKEN` contains white space or characters that are not ASCII

    hint: it must fit into an HTTP header: one line of visible ASCII characters
    "#);
    Ok(())
}

#[tokio::test]
async fn what_is_in_force_is_shown_with_where_it_came_from() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("policy.config.runtimes", json!(["hermes"]))
        .set("proof.grace_seconds", 1)
        .env("REFIT_LIMITS__PULL_SECONDS", "77")
        .env("MOLECULE_IMAGE_PLATFORM", "")
        .env("GHCR_USER", "me")
        .secret("never-shown")
        .env("GHCR_TOKEN", "never-shown")
        .env("ADMIN_TOKEN", "never-shown");
    let output = refit
        .run(&["config", "show", "--engine", "unix:///flag.sock"])
        .await?
        .expect(0);
    assert_eq!(output.stderr, "");
    snapshot!(output.stdout, @r#"
    approval.expires_seconds           = 86400  # default
    approval.required_for              = []  # default
    credentials.login                  = []  # default
    credentials.registry               = "ghcr.io"  # default
    engine                             = "unix:///flag.sock"  # a flag
    grants.containers                  = ["ws-*"]  # default
    grants.environment                 = []  # default
    grants.followers                   = false  # default
    grants.images                      = ["ghcr.io/molecule-ai/workspace-template-*"]  # default
    grants.labels                      = {}  # default
    grants.verbs                       = ["inspect","pull","replace","remove","overlap"]  # default
    history.keep                       = 1000  # default
    history.keep_days                  = 100  # default
    hooks.github.registry              = "ghcr.io"  # default
    hooks.github.secret_file           = (unset)  # default
    hooks.registry                     = []  # default
    images.keep_previous               = 2  # default
    images.platform                    = ""  # MOLECULE_IMAGE_PLATFORM
    limits.compile_megabytes           = 2048  # default
    limits.compile_seconds             = 120  # default
    limits.engine_seconds              = 60  # default
    limits.inspect_concurrency         = 8  # default
    limits.inspects_max                = 20000  # default
    limits.pull_concurrency            = 4  # default
    limits.pull_seconds                = 77  # REFIT_LIMITS__PULL_SECONDS
    limits.pulls_max                   = 200  # default
    limits.recreate_concurrency        = 2  # default
    limits.recreate_pipeline           = 32  # default
    limits.recreates_max               = 5000  # default
    limits.refresh_seconds             = 14400  # default
    metrics.token_file                 = (unset)  # default
    notify                             = []  # default
    policy.allow_older                 = false  # default
    policy.component                   = (unset)  # default
    policy.config.runtimes             = ["hermes"]  # refit.toml
    policy.keys                        = []  # default
    policy.watch                       = false  # default
    proof.grace_seconds                = 1  # refit.toml
    proof.health_seconds               = 120  # default
    registries.plain_http              = []  # default
    registries.requests_max            = 600  # default
    registries.requests_window_seconds = 60  # default
    serve.allow_no_token               = false  # default
    serve.hosts                        = []  # default
    serve.listen                       = "127.0.0.1:8787"  # default
    serve.token_file                   = (unset)  # default
    state_dir                          = (unset)  # default
    watch.cron                         = (unset)  # default
    watch.enabled                      = false  # default
    watch.interval_seconds             = 300  # default
    watch.jitter_seconds               = 30  # default
    watch.minimum_age_seconds          = 0  # default
    watch.retry_seconds                = 300  # default
    watch.time_zone                    = (unset)  # default
    watch.windows                      = []  # default
    "#);
    let output = refit.run(&["config", "show", "--json"]).await?.expect(0);
    let settings = output.json();
    let pull = settings.as_array().and_then(|settings| {
        settings
            .iter()
            .find(|setting| setting["key"] == "limits.pull_seconds")
    });
    assert_eq!(
        pull,
        Some(
            &json!({ "key": "limits.pull_seconds", "value": 77, "from": "REFIT_LIMITS__PULL_SECONDS" })
        )
    );
    Ok(())
}
