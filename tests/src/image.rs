//! Images made from nothing: one static program, and a configuration that a test spells out.
//!
//! An image is written as the archive that `docker save` would write and loaded through the engine's API. That needs no
//! Dockerfile, no builder and no build cache, so tests in parallel share nothing, and every field of a configuration can be set.
//! Does not know registries: `world::publish` pushes.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// See `stamp/stamp.rs`; compiled by `build.rs`.
const STAMP: &[u8] = include_bytes!(env!("STAMP_PROGRAM"));
/// Where the program is in every image.
pub const PROGRAM: &str = "/stamp";
/// The port it listens on unless `PORT` says otherwise.
pub const PORT: u16 = 8000;

/// An image to be made. Starts as a workspace image of a version; each method changes one thing.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    version: String,
    /// The `config` object of the OCI image specification.
    config: Map<String, Value>,
    filling: usize,
}

impl ImageSpec {
    /// An image whose program answers `version`, with `WS_VERSION`, `MODEL_DEFAULT=model-<version>` and a version label.
    pub fn new(version: &str) -> Self {
        let config = json!({
            "Env": ["PATH=/", format!("WS_VERSION={version}"), format!("MODEL_DEFAULT=model-{version}")],
            "Entrypoint": [PROGRAM],
            "Labels": { "org.opencontainers.image.version": version },
            "ExposedPorts": { format!("{PORT}/tcp"): {} },
        });
        match config {
            Value::Object(config) => Self {
                version: version.to_owned(),
                config,
                filling: 0,
            },
            _ => unreachable!("the literal above is an object"),
        }
    }

    /// Sets a variable, or replaces it.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let variables = self.config.entry("Env").or_insert_with(|| json!([]));
        if let Value::Array(variables) = variables {
            let start = format!("{name}=");
            variables.retain(|variable| {
                !variable
                    .as_str()
                    .is_some_and(|variable| variable.starts_with(&start))
            });
            variables.push(json!(format!("{name}={value}")));
        }
        self
    }

    pub fn label(self, name: &str, value: &str) -> Self {
        self.entry("Labels", name, json!(value))
    }

    /// Declares an anonymous volume, as `VOLUME` does.
    pub fn volume(self, path: &str) -> Self {
        self.entry("Volumes", path, json!({}))
    }

    pub fn expose(self, port: u16) -> Self {
        self.entry("ExposedPorts", &format!("{port}/tcp"), json!({}))
    }

    /// Arguments of the program. `stamp` shows them in its start stamp.
    pub fn cmd(self, arguments: &[&str]) -> Self {
        self.config("Cmd", json!(arguments))
    }

    pub fn user(self, user: &str) -> Self {
        self.config("User", json!(user))
    }

    pub fn working_dir(self, path: &str) -> Self {
        self.config("WorkingDir", json!(path))
    }

    pub fn stop_signal(self, signal: &str) -> Self {
        self.config("StopSignal", json!(signal))
    }

    /// `stamp health` every `interval`; unhealthy after `retries` failures in a row.
    pub fn healthcheck(self, interval: Duration, retries: u32) -> Self {
        let nanoseconds = u64::try_from(interval.as_nanos())
            .expect("an interval in a test is shorter than 500 years");
        let check = json!({ "Test": ["CMD", PROGRAM, "health"], "Interval": nanoseconds, "Retries": retries });
        self.config("Healthcheck", check)
    }

    /// Sets or, with `Value::Null`, removes any field of the configuration, under the name the OCI image specification gives it.
    pub fn config(mut self, field: &str, value: Value) -> Self {
        match value {
            Value::Null => self.config.remove(field),
            value => self.config.insert(field.to_owned(), value),
        };
        self
    }

    /// Adds so many bytes that do not compress, for a pull that takes a while.
    pub fn filling(mut self, bytes: usize) -> Self {
        self.filling = bytes;
        self
    }

    fn entry(mut self, field: &str, key: &str, value: Value) -> Self {
        let map = self.config.entry(field).or_insert_with(|| json!({}));
        if let Value::Object(map) = map {
            map.insert(key.to_owned(), value);
        }
        self
    }

    /// The image as an archive for `POST /images/load`, tagged `tag`. `nonce` goes into a file of the image, so that no two
    /// images are the same one, however alike.
    pub fn archive(&self, tag: &str, nonce: &str) -> std::io::Result<Vec<u8>> {
        let program = layer(&[("stamp", 0o755, STAMP)], &["data", "tmp"])?;
        let mut filling = vec![0; self.filling];
        fastrand::fill(&mut filling);
        let about = format!("{} {nonce}\n", self.version);
        let content = layer(
            &[
                ("version", 0o644, about.as_bytes()),
                ("filling", 0o644, &filling),
            ],
            &[],
        )?;

        let layers = [("program.tar", program), ("content.tar", content)];
        let sums: Vec<_> = layers
            .iter()
            .map(|(_, tar)| format!("sha256:{}", hex(tar)))
            .collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": sums },
            "history": [{ "created_by": "refit-tests: program" }, { "created_by": "refit-tests: content" }],
        });
        let config = serde_json::to_vec(&config)?;
        let config_name = format!("{}.json", hex(&config));
        let names: Vec<_> = layers.iter().map(|(name, _)| *name).collect();
        let manifest = serde_json::to_vec(
            &json!([{ "Config": config_name, "RepoTags": [tag], "Layers": names }]),
        )?;

        let mut files = vec![
            (config_name.as_str(), 0o644, config.as_slice()),
            ("manifest.json", 0o644, &manifest),
        ];
        files.extend(
            layers
                .iter()
                .map(|(name, tar)| (*name, 0o644, tar.as_slice())),
        );
        layer(&files, &[])
    }
}

/// A tar of files (path, mode, content) and empty directories; equal input gives equal bytes.
pub(crate) fn layer(
    files: &[(&str, u32, &[u8])],
    directories: &[&str],
) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for path in directories {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        // Anybody may write: a test may run the program as any user.
        header.set_mode(0o1777);
        header.set_size(0);
        tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
    }
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, *content)?;
    }
    tar.into_inner()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Go's name for the machine this was compiled for; the program in the image was too.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
