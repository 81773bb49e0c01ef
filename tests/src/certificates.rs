//! Certificates for an engine that speaks TLS: an authority, the engine's own for `127.0.0.1` alone, a client's, and the same of a
//! stranger. Made by `openssl` when an engine starts, and gone with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::process::Command;

use crate::install;
use crate::tokens::run;

/// `openssl` would add extensions of its own, among them that each is an authority.
const CONFIG: &str = "[req]\ndistinguished_name = name\n[name]\n";

/// Folders with `ca.pem`, `cert.pem` and `key.pem`, as `DOCKER_CERT_PATH` wants them.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    pub(crate) async fn make(folder: PathBuf) -> anyhow::Result<Self> {
        tokio::task::spawn_blocking(|| install::ensure(&[("openssl", "openssl")])).await??;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(folder.join("config"), CONFIG)?;
        let certificates = Self { folder };
        for name in ["ours", "strangers"] {
            certificates.authority(name).await?;
            certificates
                .signed(name, name, "client", "extendedKeyUsage=clientAuth")
                .await?;
        }
        let engines = "subjectAltName=IP:127.0.0.1";
        certificates
            .signed("engine", "ours", "engine", engines)
            .await?;
        Ok(certificates)
    }

    /// What the engine takes.
    pub fn ours(&self) -> PathBuf {
        self.folder.join("ours")
    }

    /// Of an authority that the engine does not know.
    pub fn strangers(&self) -> PathBuf {
        self.folder.join("strangers")
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let (ours, engine) = (self.ours(), self.folder.join("engine"));
        let files = [
            ("--tlscacert", ours.join("ca.pem")),
            ("--tlscert", engine.join("cert.pem")),
            ("--tlskey", engine.join("key.pem")),
        ];
        let mut arguments = vec!["--tlsverify".to_owned()];
        for (option, path) in files {
            arguments.extend([option.to_owned(), path.display().to_string()]);
        }
        arguments
    }

    async fn authority(&self, name: &str) -> anyhow::Result<()> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        let mut openssl = self.request(&format!("authority: {name}"), &folder.join("ca-key.pem"));
        openssl
            .args(["-addext", "basicConstraints=critical,CA:TRUE", "-out"])
            .arg(folder.join("ca.pem"));
        run(&mut openssl, b"").await.map(drop)
    }

    /// `cert.pem` and `key.pem` in the folder `name`, by the authority in the folder `by`.
    async fn signed(&self, name: &str, by: &str, who: &str, extension: &str) -> anyhow::Result<()> {
        let (folder, by) = (self.folder.join(name), self.folder.join(by));
        fs::create_dir_all(&folder)?;
        let mut openssl = self.request(who, &folder.join("key.pem"));
        openssl
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", extension, "-CA"])
            .arg(by.join("ca.pem"))
            .arg("-CAkey")
            .arg(by.join("ca-key.pem"))
            .arg("-out")
            .arg(folder.join("cert.pem"));
        run(&mut openssl, b"").await.map(drop)
    }

    fn request(&self, who: &str, key: &Path) -> Command {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-config"])
            .arg(self.folder.join("config"))
            .args(["-subj", &format!("/CN={who}"), "-keyout"])
            .arg(key);
        openssl
    }
}
