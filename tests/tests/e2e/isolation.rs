//! What others on the machine can put in Refit's way, or learn from it: files, folders and the environment of its children.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::without_engine;

/// Variables with secrets of Refit's own.
const SECRETS: [(&str, &str); 5] = [
    ("ADMIN_TOKEN", "canary-admin-token"),
    ("GHCR_USER", "canary-user"),
    ("GHCR_TOKEN", "canary-ghcr-token"),
    ("GITHUB_WEBHOOK_SECRET", "canary-github-secret"),
    ("REGISTRY_WEBHOOK_SECRET", "canary-registry-secret"),
];

#[tokio::test]
async fn children_inherit_no_secret() -> anyhow::Result<()> {
    let mut refit = without_engine()?
        .set("grants.images", json!(["registry.example/app"]))
        .docker_config(&json!({ "credsStore": "spy" }))?
        .program(
            "docker-credential-spy",
            "env > \"$HOME/helper-env\"; echo 'credentials not found in native keychain'; exit 1",
        )?
        .program("ssh", "env > \"$HOME/ssh-env\"; exit 255")?
        .env("AWS_PROFILE", "work")
        .env("SSH_AUTH_SOCK", "/run/agent");
    for (name, value) in SECRETS {
        refit = refit.env(name, value).secret(value);
    }
    refit
        .run(&["doctor", "--engine", "ssh://me@far.example"])
        .await?
        .expect(1);
    for (file, kept) in [
        ("helper-env", "AWS_PROFILE=work"),
        ("ssh-env", "SSH_AUTH_SOCK=/run/agent"),
    ] {
        let environment = fs::read_to_string(refit.home().join(file))?;
        assert!(!environment.contains("canary"), "{file}:\n{environment}");
        for needed in ["PATH=", "HOME=", kept] {
            assert!(
                environment.contains(needed),
                "{file} lacks {needed}:\n{environment}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn working_folder_has_no_configuration() -> anyhow::Result<()> {
    let refit = without_engine()?
        .file(
            "refit.toml",
            "engine = \"unix:///from/the/working/folder\"\n",
        )?
        .env("REFIT_CONFIG", "")
        .env("XDG_CONFIG_HOME", "");
    let output = refit.run(&["config", "show"]).await?.expect(0);
    assert!(!output.stdout.contains("working/folder"), "{output}");
    output.says("`refit.toml` in the working folder is not used");

    let refit = refit.file(
        ".config/refit/refit.toml",
        "engine = \"unix:///from/the/user\"\n",
    )?;
    let output = refit.run(&["config", "show"]).await?.expect(0);
    assert!(output.stdout.contains("unix:///from/the/user"), "{output}");
    let user = refit.home().join(".config/refit/refit.toml");
    output.says(&user.display().to_string());

    let output = refit
        .run(&["config", "show", "--config", "refit.toml"])
        .await?
        .expect(0);
    assert!(output.stdout.contains("working/folder"), "{output}");
    Ok(())
}

#[tokio::test]
async fn configuration_that_others_can_change_is_refused() -> anyhow::Result<()> {
    let refit = without_engine()?.set("state_dir", "state");
    refit.write_config()?;
    let file = refit.home().join("refit.toml");
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
    for (path, mode) in [(file.as_path(), 0o666), (refit.home(), 0o777)] {
        set(path, mode)?;
        let output = refit.run(&["config", "show"]).await?.expect(2);
        output.says("can be written to by everybody");
        set(path, 0o700)?;
    }
    refit.run(&["config", "show"]).await?.expect(0);
    Ok(())
}

#[tokio::test]
async fn state_folder_is_for_its_user_alone() -> anyhow::Result<()> {
    let refit = without_engine()?.set("state_dir", "state/refit");
    let state = refit.home().join("state/refit");
    fs::create_dir_all(&state)?;
    fs::set_permissions(&state, Permissions::from_mode(0o777))?;
    let daemon = refit.serve().await?;
    assert_eq!(fs::metadata(&state)?.permissions().mode() & 0o777, 0o700);
    drop(daemon);
    for entry in fs::read_dir(&state)? {
        let entry = entry?;
        let others = entry.metadata()?.permissions().mode() & 0o077;
        assert!(
            entry.file_type()?.is_file() || others == 0,
            "{:?} is open to others",
            entry.path()
        );
    }
    Ok(())
}
