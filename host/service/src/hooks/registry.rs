//! Notifications of a `docker-registry` (Distribution): an envelope of events.
//!
//! A registry repeats an event until the receiver accepts it, so Refit accepts events that it cannot use. A registry reports
//! each layer and each manifest; only a manifest with a tag is a published image.

use serde::Deserialize;

use super::secret::{SharedSecrets, Verified};
use super::{Published, Unreadable};

/// The configuration of a registry that may send notifications.
#[derive(Debug)]
pub struct RegistryHook {
    /// The name, for people.
    pub name: String,
    pub secrets: SharedSecrets,
    /// The host that its images are pulled from, if it differs from the host in the push.
    pub host: Option<String>,
}

/// The media types of manifests and of lists of manifests.
const MANIFESTS: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];

/// The content of an envelope.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notified {
    pub published: Vec<Published>,
    /// The number of events that publish nothing: pulls, layers, deletions.
    pub others: usize,
    /// Images with an invalid name, and why.
    pub wrong: Vec<String>,
}

#[derive(Deserialize)]
struct Envelope {
    events: Option<Vec<Event>>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    action: String,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    request: Request,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Target {
    #[serde(rename = "mediaType")]
    media_type: String,
    repository: String,
    tag: String,
    digest: String,
    url: String,
}

/// The request that caused the event: the push of a client.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    host: String,
}

impl RegistryHook {
    pub fn read(&self, body: Verified<'_>) -> Result<Notified, Unreadable> {
        let envelope: Envelope = serde_json::from_slice(body.bytes())?;
        let mut notified = Notified::default();
        for event in envelope.events.unwrap_or_default() {
            let manifest = MANIFESTS.contains(&event.target.media_type.as_str());
            if event.action != "push" || !manifest || event.target.tag.is_empty() {
                notified.others += 1;
                continue;
            }
            match self.published(&event) {
                Ok(published) => notified.published.push(published),
                Err(Unreadable(why)) => notified.wrong.push(why),
            }
        }
        Ok(notified)
    }

    fn published(&self, event: &Event) -> Result<Published, Unreadable> {
        let host = match &self.host {
            Some(host) => host.clone(),
            None => host_of(&event.target.url)
                .or_else(|| (!event.request.host.is_empty()).then(|| event.request.host.clone()))
                .ok_or_else(|| Unreadable("the event names no host".into()))?,
        };
        let (path, tag) = (&event.target.repository, &event.target.tag);
        let published = Published::new(&host, path, Some(tag))?;
        Ok(published.with_digest(Some(&event.target.digest)))
    }
}

/// Returns the host of a manifest's URL. An image name has no port if it is the default one.
fn host_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next().filter(|host| !host.is_empty())?;
    let default_port = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    Some(
        authority
            .strip_suffix(default_port)
            .unwrap_or(authority)
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::secret::SecretString;
    use serde_json::{Value, json};

    fn hook(host: Option<&str>) -> RegistryHook {
        RegistryHook {
            name: "local".into(),
            secrets: SharedSecrets::new(&[SecretString::from("correct-horse-battery")]),
            host: host.map(str::to_owned),
        }
    }

    /// An event as docker-registry 2.8 sends it.
    fn event(media_type: &str, tag: Option<&str>) -> Value {
        let mut event = json!({
            "id": "e1a", "timestamp": "2026-11-25T20:00:00Z", "action": "push",
            "target": {
                "mediaType": media_type, "size": 708, "length": 708,
                "digest": "sha256:0afb", "repository": "acme/workspace-template-hermes",
                "url": "http://127.0.0.1:5000/v2/acme/workspace-template-hermes/manifests/sha256:0afb"
            },
            "request": { "id": "r", "addr": "127.0.0.1:4711", "host": "127.0.0.1:5000", "method": "PUT", "useragent": "docker" },
            "actor": {}, "source": { "addr": "host:5000", "instanceID": "i" }
        });
        if let Some(tag) = tag {
            event["target"]["tag"] = json!(tag);
        }
        event
    }

    #[track_caller]
    fn read(hook: &RegistryHook, events: Value) -> Notified {
        let body = json!({ "events": events }).to_string();
        hook.read(Verified::for_test(body.as_bytes())).unwrap()
    }

    fn names(notified: &Notified) -> Vec<String> {
        notified.published.iter().map(Published::name).collect()
    }

    #[test]
    fn only_tagged_manifest_is_published() {
        let notified = read(
            &hook(None),
            json!([
                event("application/octet-stream", None),
                event(MANIFESTS[0], Some("latest")),
                event(MANIFESTS[2], None),
                event(MANIFESTS[3], Some("v2")),
            ]),
        );
        let name = "127.0.0.1:5000/acme/workspace-template-hermes";
        assert_eq!(
            names(&notified),
            [format!("{name}:latest"), format!("{name}:v2")]
        );
        assert_eq!(notified.others, 2);
        let mut pull = event(MANIFESTS[0], Some("latest"));
        pull["action"] = json!("pull");
        assert_eq!(read(&hook(None), json!([pull])).others, 1);
    }

    #[test]
    fn manifest_digest_is_announced() {
        let mut pushed = event(MANIFESTS[3], Some("v1"));
        let digest = |pushed: &Value| {
            let read = read(&hook(None), json!([pushed]));
            read.published[0].digest.clone()
        };
        assert_eq!(digest(&pushed), None, "a shortened one is none");
        let whole = format!("sha256:{}", "a".repeat(64));
        pushed["target"]["digest"] = json!(whole);
        assert_eq!(digest(&pushed), Some(whole));
    }

    #[test]
    fn image_name_has_the_pull_host() {
        let mut pushed = event(MANIFESTS[0], Some("v1"));
        assert_eq!(
            names(&read(&hook(Some("registry.example")), json!([pushed]))),
            ["registry.example/acme/workspace-template-hermes:v1"]
        );
        pushed["target"]["url"] = json!("https://registry.example:443/v2/acme/x/manifests/y");
        assert_eq!(
            names(&read(&hook(None), json!([pushed]))),
            ["registry.example/acme/workspace-template-hermes:v1"]
        );
        pushed["target"]["url"] = json!("");
        assert_eq!(
            names(&read(&hook(None), json!([pushed]))),
            ["127.0.0.1:5000/acme/workspace-template-hermes:v1"]
        );
        pushed["request"]["host"] = json!("");
        assert_eq!(
            read(&hook(None), json!([pushed])).wrong,
            ["the event names no host"]
        );
    }

    #[test]
    fn invalid_envelope_is_an_error_or_ignored() {
        for body in ["", "{", "[]", "{\"events\":7}", "{\"events\":[7]}"] {
            let read = hook(None).read(Verified::for_test(body.as_bytes()));
            assert!(read.is_err(), "{body} {read:?}");
        }
        for body in ["{}", "{\"events\":null}", "{\"events\":[]}"] {
            let read = hook(None)
                .read(Verified::for_test(body.as_bytes()))
                .unwrap();
            assert_eq!(read, Notified::default(), "{body}");
        }
        assert_eq!(
            read(&hook(None), json!([{}, { "action": "push" }])).others,
            2
        );
        let mut named = event(MANIFESTS[0], Some("v 1"));
        named["target"]["repository"] = json!("../x");
        assert_eq!(read(&hook(None), json!([named])).wrong.len(), 1);
    }
}
