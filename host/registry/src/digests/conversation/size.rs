//! Computes the size of a pull: the layers of an image as its manifest lists them, each with its size.
//!
//! Only for one image at a time, and only if disk space is short: registries count a fetched manifest as a pull.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use http::{Method, StatusCode};
use refit_model::diagnostic::Diagnostic;
use refit_model::image::{ImageRef, Platform};
use serde::Deserialize;

use super::{ATTEMPTS_MAX, Conversation, MANIFEST_BYTES_MAX};
use crate::digests::{Digests, Reason};
use crate::token::Actions;

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    /// The manifests of an index.
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Layer {
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<EntryPlatform>,
}

#[derive(Deserialize)]
struct EntryPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Digests {
    /// Returns the layers of an image for this platform: the compressed size of each, by digest. Fails if the registry does not
    /// report it.
    pub async fn layers(
        &self,
        image: &ImageRef,
        platform: &Platform,
    ) -> Result<BTreeMap<String, u64>, Reason> {
        let unavailable = |problem: &str| Reason::Unavailable {
            problem: problem.to_owned(),
        };
        let name = image.registry();
        let registry = self
            .registry(name)
            .ok_or_else(|| unavailable("its name is not that of a host"))?;
        if let Some(reason) = registry.closed() {
            return Err(reason);
        }
        let login = self.credentials.login(name).await;
        let login = login.map_err(|error| Reason::Credentials(Box::new(Diagnostic::of(&error))))?;
        let conversation = Conversation {
            client: self.client_for(name)?,
            counts: &self.counts,
            registry: &registry,
            login: login.map(|(login, _)| login),
            batch: self.batches.fetch_add(1, Ordering::Relaxed),
            repositories: vec![image.path().to_owned()],
            actions: Actions::Pull,
        };
        // The semaphore is never closed.
        let _turn = self.at_once.acquire().await;
        let manifest = conversation.fetch_manifest(image).await?;
        if manifest.manifests.is_empty() {
            return Ok(sizes(manifest));
        }
        let entry = choose(&manifest.manifests, platform);
        let digest = &entry.ok_or(Reason::NotFound)?.digest;
        let nonsense = |problem: String| Reason::Nonsense { problem };
        let chosen = format!("{}@{digest}", image.repository()).parse();
        let chosen = chosen.map_err(|_| nonsense(format!("`{digest}` is no digest")))?;
        let manifest = conversation.fetch_manifest(&chosen).await?;
        match manifest.manifests.is_empty() {
            true => Ok(sizes(manifest)),
            false => Err(nonsense("an index within an index".to_owned())),
        }
    }
}

impl Conversation<'_> {
    async fn fetch_manifest(&self, image: &ImageRef) -> Result<Manifest, Reason> {
        for _ in 0..ATTEMPTS_MAX {
            let authorization = self.authorization(image.path()).await?;
            let answer = self.manifest(&Method::GET, image, &authorization).await?;
            match answer.status() {
                StatusCode::OK => {
                    let body = self.body(answer, MANIFEST_BYTES_MAX).await?;
                    return serde_json::from_slice(&body).map_err(|error| Reason::Nonsense {
                        problem: format!("it is no manifest: {error}"),
                    });
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    if !self.prepare_retry(image, &authorization, &answer).await? {
                        break;
                    }
                }
                _ => return Err(self.refusal(answer).await),
            }
        }
        Err(self.unauthorized())
    }
}

fn sizes(manifest: Manifest) -> BTreeMap<String, u64> {
    let layers = manifest.layers.into_iter();
    layers.map(|layer| (layer.digest, layer.size)).collect()
}

/// Finds the manifest of an index that an engine of this platform pulls.
fn choose<'a>(entries: &'a [Entry], platform: &Platform) -> Option<&'a Entry> {
    let fits = |entry: &&Entry| {
        let of = entry.platform.as_ref();
        of.is_some_and(|of| platform.takes(&of.os, &of.architecture, of.variant.as_deref()))
    };
    entries.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_platforms_own_manifest_is_chosen_from_an_index() {
        let entry = |digest: &str, os: &str, architecture: &str, variant: Option<&str>| json!({"digest": digest, "size": 1, "platform": {"os": os, "architecture": architecture, "variant": variant}});
        let index = json!({"manifests": [
            entry("attestation", "unknown", "unknown", None),
            entry("v6", "linux", "arm", Some("v6")),
            entry("v7", "linux", "arm", Some("v7")),
            entry("amd64", "linux", "amd64", None),
            {"digest": "nobody says", "size": 1},
        ]});
        let index: Manifest = serde_json::from_value(index).unwrap();
        let chosen = |platform: &str| {
            let entry = choose(&index.manifests, &platform.parse().unwrap());
            entry.map(|entry| entry.digest.as_str())
        };
        assert_eq!(chosen("linux/amd64"), Some("amd64"));
        assert_eq!(chosen("linux/arm/v7"), Some("v7"));
        assert_eq!(chosen("linux/arm"), Some("v6"));
        assert_eq!(chosen("windows/amd64"), None);
    }

    #[test]
    fn what_is_no_manifest_has_no_size() {
        for text in [r#"{"layers":[{"digest":"a","size":-1}]}"#, "", "<html>"] {
            assert!(serde_json::from_str::<Manifest>(text).is_err(), "{text}");
        }
    }
}
