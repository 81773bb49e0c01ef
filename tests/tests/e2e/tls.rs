//! The engine over TCP with TLS: a real `dockerd --tlsverify`, and everything that can be wrong with certificates.

use std::fs;
use std::path::Path;

use refit_tests::engine::Tls;
use refit_tests::{Refit, World, progress, registry, with_world};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::snapshot::snapshot;
use crate::{behind, refit, replaced};

/// Where the tests found an engine, it is not theirs to start with other flags.
fn tls(w: &World) -> Option<Tls> {
    let tls = w.tls().cloned();
    if tls.is_none() {
        progress("the engine was there before the tests: NOT TRIED over TLS");
    }
    tls
}

fn by_tls(refit: Refit, url: &str, folder: &Path) -> Refit {
    refit
        .env("DOCKER_HOST", url)
        .env("DOCKER_TLS_VERIFY", "1")
        .env("DOCKER_CERT_PATH", &folder.display().to_string())
}

/// What is said of it, without what differs from run to run.
async fn said(refit: &Refit, tls: &Tls) -> anyhow::Result<String> {
    let output = refit.run(&["plan", "--runtime", "hermes"]).await?.expect(2);
    let (_, error) = output.stderr.split_once("error: ").unwrap_or_default();
    let folder = tls.certificates.ours();
    let folder = folder.parent().unwrap_or(&folder).display().to_string();
    let (_, port) = tls.address.rsplit_once(':').unwrap_or_default();
    Ok(error
        .replace(&folder, "CERTS")
        .replace(&refit.home().display().to_string(), "HOME")
        .replace(port, "PORT")
        // Newer engines have an alert of its own for that.
        .replace("CertificateRequired", "BadCertificate"))
}

#[tokio::test]
async fn a_refresh_over_tls_replaces_a_container() -> anyhow::Result<()> {
    with_world("over tls", |w| async move {
        let Some(tls) = tls(&w) else { return Ok(()) };
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let url = format!("tcp://{}", tls.address);
        let ours = tls.certificates.ours();
        let plain = refit(&w, registry, &["hermes"])?;
        let refit = by_tls(plain, &url, &ours);
        refit.run(&["plan", "--detailed-exitcode"]).await?.expect(3);
        refit.run(&["refresh", "--log", "trace"]).await?.expect(0);
        replaced(&w, &hermes, &v2).await?;
        let output = refit.run(&["doctor"]).await?;
        assert!(output.stdout.contains(&format!("at `{url}`")), "{output}");

        // The same by a context of the Docker CLI, which has a folder for the certificates.
        let id: String = Sha256::digest(b"far")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let meta = json!({ "Name": "far", "Metadata": {}, "Endpoints": { "docker": { "Host": url, "SkipTLSVerify": false } } });
        let mut refit = refit
            .without_env("DOCKER_HOST")
            .without_env("DOCKER_TLS_VERIFY")
            .without_env("DOCKER_CERT_PATH")
            .docker_config(&json!({ "currentContext": "far" }))?
            .file(&format!("docker/contexts/meta/{id}/meta.json"), meta.to_string())?;
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            let content = fs::read(ours.join(name))?;
            refit = refit.file(&format!("docker/contexts/tls/{id}/docker/{name}"), content)?;
        }
        refit.run(&["plan", "--detailed-exitcode"]).await?.expect(0);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_wrong_with_certificates_is_told_apart() -> anyhow::Result<()> {
    with_world("wrong certificates", |w| async move {
        let Some(tls) = tls(&w) else { return Ok(()) };
        let registry = registry::open().await?;
        let url = format!("tcp://{}", tls.address);
        let (ours, strangers) = (tls.certificates.ours(), tls.certificates.strangers());
        let new = || refit(&w, registry, &["hermes"]);
        let copied = |refit: Refit, files: &[(&str, &Path)]| {
            files.iter().try_fold(refit, |refit, (name, from)| {
                refit.file(&format!("certs/{name}"), fs::read(from.join(name))?)
            })
        };

        // Of another authority.
        let refit = copied(
            new()?,
            &[
                ("ca.pem", &strangers),
                ("cert.pem", &ours),
                ("key.pem", &ours),
            ],
        )?;
        let refit = by_tls(refit, &url, Path::new("certs"));
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://127.0.0.1:PORT`
      caused by: its certificate is not from the authority in `certs/ca.pem`
      caused by: invalid peer certificate: UnknownIssuer

    hint: `certs/ca.pem` must hold the certificate of the authority that signed the engine's (`--tlscacert`, or `--tlscert` where it signed itself)
    ");

        // Known by another name.
        let (_, port) = tls.address.rsplit_once(':').unwrap_or_default();
        let refit = by_tls(new()?, &format!("tcp://localhost:{port}"), &ours);
        snapshot!(said(&refit, &tls).await?, @r#"
    cannot reach the container engine at `tcp://localhost:PORT`
      caused by: its certificate is not for `localhost`
      caused by: invalid peer certificate: certificate not valid for name "localhost"; certificate is only valid for IpAddress(127.0.0.1)

    hint: call the engine by a name that its certificate has, or give it one that has this name
    "#);

        // Without the client's certificate, in the environment and in a context, where it may be missing.
        let refit = copied(new()?, &[("ca.pem", &ours)])?;
        let refit = by_tls(refit, &url, Path::new("certs"));
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://127.0.0.1:PORT`
      caused by: cannot read the client certificate `certs/cert.pem`
      caused by: No such file or directory (os error 2)

    hint: `ca.pem`, `cert.pem` and `key.pem` are looked for in `DOCKER_CERT_PATH`, in the Docker CLI's folder, or in that of its context
    ");
        let id: String = Sha256::digest(b"far")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let meta =
            json!({ "Name": "far", "Metadata": {}, "Endpoints": { "docker": { "Host": url } } });
        let refit = new()?
            .without_env("DOCKER_HOST")
            .docker_config(&json!({ "currentContext": "far" }))?
            .file(
                &format!("docker/contexts/meta/{id}/meta.json"),
                meta.to_string(),
            )?
            .file(
                &format!("docker/contexts/tls/{id}/docker/ca.pem"),
                fs::read(ours.join("ca.pem"))?,
            )?;
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://127.0.0.1:PORT`
      caused by: it wants a client certificate, and there is none
      caused by: received fatal alert: BadCertificate

    hint: the engine takes certificates for clients from its own authority, `--tlscacert`
    ");

        // With a stranger's.
        let refit = copied(
            new()?,
            &[
                ("ca.pem", &ours),
                ("cert.pem", &strangers),
                ("key.pem", &strangers),
            ],
        )?;
        let refit = by_tls(refit, &url, Path::new("certs"));
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://127.0.0.1:PORT`
      caused by: it refused the certificate in `certs/cert.pem`
      caused by: received fatal alert: BadCertificate

    hint: the engine takes certificates for clients from its own authority, `--tlscacert`
    ");

        // With another one's key.
        let refit = copied(
            new()?,
            &[
                ("ca.pem", &ours),
                ("cert.pem", &ours),
                ("key.pem", &strangers),
            ],
        )?;
        let refit = by_tls(refit, &url, Path::new("certs"));
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://127.0.0.1:PORT`
      caused by: the key in `certs/key.pem` is not that of the certificate in `certs/cert.pem`

    hint: `ca.pem`, `cert.pem` and `key.pem` are looked for in `DOCKER_CERT_PATH`, in the Docker CLI's folder, or in that of its context
    ");

        // Without TLS where there is, and with it where there is none.
        let refit = new()?.env("DOCKER_HOST", &url);
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://127.0.0.1:PORT`
      caused by: it speaks TLS only

    hint: set `DOCKER_TLS_VERIFY=1`, and `DOCKER_CERT_PATH` to the folder with `ca.pem`, `cert.pem` and `key.pem`
    ");
        let refit = by_tls(new()?, &format!("tcp://{}", registry.host()), &ours);
        snapshot!(said(&refit, &tls).await?, @r"
    cannot reach the container engine at `tcp://REGISTRY`
      caused by: what answers there does not speak TLS
      caused by: received corrupt message of type InvalidContentType

    hint: unset `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` where the way to it is safe, or start it with `--tlsverify`
    ");
        Ok(())
    })
    .await
}
