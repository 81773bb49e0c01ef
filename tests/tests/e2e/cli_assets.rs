//! What goes along with the program: completions, manual pages, the schema of its configuration, the check of its health, and
//! its words to a service manager.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use refit_tests::Refit;
use serde_json::Value;
use tokio::net::UnixDatagram;
use tokio::process::Command;

use crate::without_engine;

#[tokio::test]
async fn bash_completes_commands_flags_and_their_values() -> anyhow::Result<()> {
    let refit = without_engine()?;
    let script = refit.run(&["completions", "bash"]).await?.expect(0).stdout;
    fs::write(refit.home().join("refit.bash"), &script)?;
    for (typed, offered) in [
        (&["refit", "ref"][..], &["refresh"][..]),
        (&["refit", "policy", "sw"], &["swap"]),
        (&["refit", "refresh", "--no-"], &["--no-recreate"]),
        (&["refit", "completions", "zs"], &["zsh"]),
        (&["refit", "--log-format", ""], &["text", "json"]),
        // What is not for people is not offered.
        (&["refit", "compile"], &[]),
    ] {
        let last = typed.len() - 1;
        let asked = format!(
            "source ./refit.bash\nCOMP_WORDS=({})\nCOMP_CWORD={last}\n_refit refit '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            typed
                .iter()
                .map(|word| format!("'{word}' "))
                .collect::<String>(),
            typed[last],
            typed[last - 1],
        );
        let bash = Command::new("bash")
            .args(["--norc", "-c", &asked])
            .current_dir(refit.home())
            .output()
            .await?;
        let told = String::from_utf8(bash.stdout)?;
        let told: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
        let complaint = String::from_utf8_lossy(&bash.stderr).into_owned();
        assert_eq!(
            (told.as_slice(), complaint.as_str()),
            (offered, ""),
            "{typed:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn every_shell_gets_a_script_and_no_hidden_command() -> anyhow::Result<()> {
    let refit = without_engine()?;
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = refit.run(&["completions", shell]).await?.expect(0).stdout;
        assert!(script.contains("no-recreate"), "{shell}");
        assert!(!script.contains("policy-worker"), "{shell}");
    }
    let output = refit.run(&["completions", "tcsh"]).await?.expect(2);
    output.says("bash, elvish, fish, powershell, zsh");
    Ok(())
}

#[tokio::test]
async fn there_is_a_manual_page_for_each_command() -> anyhow::Result<()> {
    let refit = without_engine()?;
    let page = refit.run(&["man"]).await?.expect(0).stdout;
    assert!(page.contains(".TH refit 1"), "{page}");
    let folder = refit.home().join("man1");
    fs::create_dir(&folder)?;
    refit.run(&["man", "man1"]).await?.expect(0);
    let mut pages = BTreeSet::new();
    for entry in fs::read_dir(&folder)? {
        pages.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    for page in ["refit.1", "refit-refresh.1", "refit-policy-swap.1"] {
        assert!(pages.contains(page), "{pages:?}");
    }
    assert!(
        !pages.iter().any(|page| page.contains("compile")),
        "{pages:?}"
    );
    let refresh = fs::read_to_string(folder.join("refit-refresh.1"))?;
    assert!(
        refresh.contains("Only pull; recreate no container"),
        "{refresh}"
    );
    let output = refit.run(&["man", "nowhere"]).await?.expect(2);
    output.says("cannot write the manual").says("`nowhere`");
    Ok(())
}

#[tokio::test]
async fn the_schema_needs_no_configuration_and_knows_what_the_program_knows() -> anyhow::Result<()>
{
    // A configuration that is broken is a reason to look for the schema.
    let refit = without_engine()?.set("polcy", "x");
    let schema = refit.run(&["config", "schema"]).await?.expect(0).json();
    assert_eq!(schema["additionalProperties"], Value::Bool(false));
    let shown = without_engine()?.run(&["config", "show", "--json"]).await?;
    let shown = shown.expect(0).json();
    let mut seen = 0;
    for setting in shown.as_array().context("a list of settings")? {
        let key = setting["key"].as_str().context("a setting has a key")?;
        let mut place = &schema;
        for part in key.split('.') {
            place = &place["properties"][part];
        }
        let described = place["description"].as_str().unwrap_or_default();
        assert!(
            !described.is_empty(),
            "the schema does not say what `{key}` is"
        );
        if !setting["value"].is_null() {
            assert_eq!(place["default"], setting["value"], "default of `{key}`");
        }
        seen += 1;
    }
    assert!(seen > 25, "{seen} settings");
    Ok(())
}

#[tokio::test]
async fn a_daemon_is_well_until_it_is_gone() -> anyhow::Result<()> {
    let refit = without_engine()?.env("ADMIN_TOKEN", "a-token-that-nobody-needs-here");
    let daemon = refit.serve().await?;
    let address = format!("http://{}", daemon.address);
    let check = ["healthcheck", "--server", &address];
    let output = refit.run(&check).await?.expect(0);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    // As a health check in an image asks: by the configuration, which may say every address there is.
    let listen = format!("0.0.0.0:{}", daemon.address.port());
    let refit = refit.env("REFIT_SERVE__LISTEN", &listen);
    refit.run(&["healthcheck"]).await?.expect(0);
    // It lives, but has no engine.
    let output = refit.run(&["healthcheck", "--ready"]).await?.expect(1);
    output.says("the container engine does not answer");
    daemon.terminate()?;
    daemon.ended().await?.expect(0);
    let output = refit.run(&["healthcheck"]).await?.expect(1);
    output.says("is not well").says("refused");
    Ok(())
}

/// What the daemon tells next, within the time that a busy machine needs.
async fn told(socket: &UnixDatagram) -> anyhow::Result<String> {
    let mut word = [0; 256];
    let heard = tokio::time::timeout(Duration::from_secs(30), socket.recv(&mut word));
    let length = heard.await.context("the daemon tells nothing")??;
    Ok(String::from_utf8_lossy(&word[..length]).trim().to_owned())
}

#[tokio::test]
async fn a_service_manager_hears_that_it_serves_lives_and_stops() -> anyhow::Result<()> {
    let refit = without_engine()?;
    let path = refit.home().join("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    let notified = |refit: Refit| {
        refit
            .env("NOTIFY_SOCKET", &path.display().to_string())
            .env("WATCHDOG_USEC", "400000")
    };
    let refit = notified(refit);
    let daemon = refit.serve().await?;
    let mut words = BTreeSet::new();
    while words.len() < 2 {
        words.insert(told(&socket).await?);
    }
    assert_eq!(words, ["READY=1", "WATCHDOG=1"].map(str::to_owned).into());
    // It listens when it says so.
    assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
    let began = std::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(told(&socket).await?, "WATCHDOG=1");
    }
    assert!(
        began.elapsed() > Duration::from_millis(600),
        "it says that it lives no more often than half of the time asks for: {:?}",
        began.elapsed()
    );
    daemon.terminate()?;
    let stopping = async {
        while told(&socket).await? != "STOPPING=1" {}
        anyhow::Ok(())
    };
    stopping.await?;
    daemon.ended().await?.expect(0);
    Ok(())
}

#[tokio::test]
async fn a_service_manager_that_does_not_listen_stops_nothing() -> anyhow::Result<()> {
    let refit = without_engine()?;
    let path = refit.home().join("notify.sock");
    let _unread = UnixDatagram::bind(&path)?;
    let daemon = refit
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .env("WATCHDOG_USEC", "200000")
        .env("REFIT_LOG", "refit=debug")
        .serve()
        .await?;
    daemon
        .until_logged("the service manager does not listen")
        .await?;
    assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
    daemon.terminate()?;
    daemon.ended().await?.expect(0);
    Ok(())
}

#[tokio::test]
async fn a_service_manager_that_cannot_be_told_stops_nothing() -> anyhow::Result<()> {
    let refit = without_engine()?.env("NOTIFY_SOCKET", "/nowhere/notify.sock");
    let daemon = refit.serve().await?;
    daemon
        .until_logged("cannot tell the service manager")
        .await?;
    assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
    Ok(())
}
