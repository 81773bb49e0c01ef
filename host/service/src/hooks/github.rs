//! GitHub's webhooks: `package` and `registry_package`, signed with the webhook's secret.
//!
//! GitHub sends each delivery once and does not retry. An incomplete delivery (no tag, or one platform of several) still causes
//! a check: a check is one request to the registry.

use refit_model::printable::printable;
use serde::Deserialize;

use super::secret::{SigningKeys, Verified};
use super::{Published, Unreadable};

/// The maximum length of a word from GitHub in an answer.
const WORD_BYTES_MAX: usize = 80;

/// The configuration of the GitHub webhook.
#[derive(Debug)]
pub struct Github {
    pub keys: SigningKeys,
    /// The registry that the packages are pulled from.
    pub registry: String,
}

/// The format of the body. GitHub signs either as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    /// `payload=` and the JSON, GitHub's default.
    Encoded,
}

/// The content of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Somebody has created the webhook.
    Ping,
    Published(Published),
    /// The delivery is not about a published container image.
    Other(String),
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    action: String,
    package: Option<Package>,
    registry_package: Option<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    namespace: Option<String>,
    #[serde(default)]
    package_type: String,
    owner: Option<Owner>,
    package_version: Option<Version>,
}

#[derive(Deserialize)]
struct Owner {
    login: String,
}

#[derive(Deserialize)]
struct Version {
    /// For a container, its digest.
    version: Option<String>,
    container_metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    tag: Option<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: Option<String>,
    digest: Option<String>,
}

impl Github {
    /// Parses a delivery. `event` is the name in its header.
    pub fn read(
        &self,
        event: &str,
        form: Form,
        body: Verified<'_>,
    ) -> Result<Delivery, Unreadable> {
        match event {
            "ping" => return Ok(Delivery::Ping),
            "package" | "registry_package" => {}
            other => {
                let other = printable(other, WORD_BYTES_MAX);
                return Ok(Delivery::Other(format!(
                    "the event `{other}` is about no package"
                )));
            }
        }
        let payload = payload(form, body.bytes())?;
        // `package` comes with both actions, `registry_package` too.
        if !matches!(payload.action.as_str(), "published" | "updated") {
            let action = printable(&payload.action, WORD_BYTES_MAX);
            return Ok(Delivery::Other(format!(
                "the action `{action}` publishes nothing"
            )));
        }
        let package = match event {
            "package" => payload.package,
            _ => payload.registry_package,
        };
        let package = package.ok_or_else(|| Unreadable(format!("it has no `{event}`")))?;
        if !package.package_type.eq_ignore_ascii_case("container") {
            let kind = printable(&package.package_type, WORD_BYTES_MAX);
            return Ok(Delivery::Other(format!(
                "a package of type `{kind}` is no container image"
            )));
        }
        self.published(package).map(Delivery::Published)
    }

    fn published(&self, package: Package) -> Result<Published, Unreadable> {
        let namespace = package.namespace.filter(|namespace| !namespace.is_empty());
        let owner = namespace
            .or(package.owner.map(|owner| owner.login))
            .ok_or_else(|| Unreadable("the package has no namespace and no owner".into()))?;
        let (version, tag) = match package.package_version {
            Some(version) => (
                version.version,
                version.container_metadata.and_then(|metadata| metadata.tag),
            ),
            None => (None, None),
        };
        let (name, digest) = tag.map_or((None, None), |tag| (tag.name, tag.digest));
        let tag = name.filter(|tag| !tag.is_empty());
        let digest = digest.filter(|digest| !digest.is_empty()).or(version);
        Published::new(
            &self.registry,
            &format!("{owner}/{}", package.name),
            tag.as_deref(),
        )
        .map(|published| published.with_digest(digest.as_deref()))
    }
}

fn payload(form: Form, body: &[u8]) -> Result<Payload, Unreadable> {
    match form {
        Form::Json => Ok(serde_json::from_slice(body)?),
        Form::Encoded => {
            let mut fields = form_urlencoded::parse(body);
            let (_, json) = fields
                .find(|(name, _)| name == "payload")
                .ok_or_else(|| Unreadable("the form has no `payload`".into()))?;
            Ok(serde_json::from_str(&json)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::secret::SecretString;
    use serde_json::{Value, json};

    fn github() -> Github {
        Github {
            keys: SigningKeys::new(&[SecretString::from("correct-horse-battery")]),
            registry: "ghcr.io".into(),
        }
    }

    /// A delivery as GitHub sends it, without the fields that Refit ignores.
    fn delivery(event: &str) -> Value {
        json!({
            "action": "published",
            event: {
                "id": 9056324, "name": "workspace-template-hermes", "namespace": "Molecule-AI", "ecosystem": "CONTAINER",
                "package_type": "CONTAINER", "owner": { "login": "Molecule-AI", "id": 1 },
                "package_version": {
                    "id": 564296960,
                    "version": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8",
                    "container_metadata": {
                        "tag": { "name": "latest", "digest": "sha256:89160c587d0c36bf54090497a465445c14980ba48efbcf3b0d03c49b76f3feb8" },
                        "manifest": { "media_type": "application/vnd.oci.image.index.v1+json", "layers": [] }
                    },
                    "package_url": "ghcr.io/molecule-ai/workspace-template-hermes:latest"
                },
                "registry": { "name": "GitHub CONTAINER registry", "type": "CONTAINER" }
            },
            "repository": { "full_name": "Molecule-AI/workspaces" },
            "sender": { "login": "ana" }
        })
    }

    #[track_caller]
    fn read(event: &str, body: &Value) -> Delivery {
        let body = body.to_string();
        github()
            .read(event, Form::Json, Verified::for_test(body.as_bytes()))
            .unwrap()
    }

    fn name(delivery: Delivery) -> String {
        match delivery {
            Delivery::Published(published) => published.name(),
            other => panic!("it was published: {other:?}"),
        }
    }

    #[test]
    fn both_events_and_both_actions_name_an_image_in_lower_case() {
        for event in ["package", "registry_package"] {
            let mut body = delivery(event);
            for action in ["published", "updated"] {
                body["action"] = json!(action);
                assert_eq!(
                    name(read(event, &body)),
                    "ghcr.io/molecule-ai/workspace-template-hermes:latest"
                );
            }
        }
    }

    #[test]
    fn digest_comes_from_tag_or_version() {
        let digest = |body: &Value| match read("package", body) {
            Delivery::Published(published) => published.digest,
            other => panic!("it was published: {other:?}"),
        };
        let mut body = delivery("package");
        let tag_digest = format!("sha256:{}", "a".repeat(64));
        body["package"]["package_version"]["container_metadata"]["tag"]["digest"] =
            json!(tag_digest);
        assert_eq!(digest(&body), Some(tag_digest));
        let version_digest = body["package"]["package_version"]["version"].clone();
        for none in [Value::Null, json!("")] {
            body["package"]["package_version"]["container_metadata"]["tag"]["digest"] = none;
            assert_eq!(
                digest(&body).map(Value::String),
                Some(version_digest.clone())
            );
        }
        body["package"]["package_version"]["version"] = json!("1.2.0");
        assert_eq!(digest(&body), None);
        body["package"]["package_version"]["container_metadata"]["tag"] = Value::Null;
        assert_eq!(digest(&body), None);
    }

    #[test]
    fn form_is_parsed_as_its_json() {
        let json = delivery("package").to_string();
        let form: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("payload", &json)
            .finish();
        let read = github()
            .read(
                "package",
                Form::Encoded,
                Verified::for_test(form.as_bytes()),
            )
            .unwrap();
        assert_eq!(
            name(read),
            "ghcr.io/molecule-ai/workspace-template-hermes:latest"
        );
        let read = github().read(
            "package",
            Form::Encoded,
            Verified::for_test(json.as_bytes()),
        );
        assert!(read.is_err(), "{read:?}");
    }

    #[test]
    fn incomplete_delivery_still_causes_check() {
        let mut body = delivery("package");
        body["package"]["package_version"]["container_metadata"]["tag"]["name"] = json!("");
        assert_eq!(
            name(read("package", &body)),
            "ghcr.io/molecule-ai/workspace-template-hermes"
        );
        body["package"]["package_version"] = Value::Null;
        body["package"]["namespace"] = Value::Null;
        assert_eq!(
            name(read("package", &body)),
            "ghcr.io/molecule-ai/workspace-template-hermes"
        );
        body["package"]["owner"] = Value::Null;
        let body = body.to_string();
        assert!(
            github()
                .read("package", Form::Json, Verified::for_test(body.as_bytes()))
                .is_err()
        );
    }

    #[test]
    fn delivery_without_published_image_is_ignored() {
        assert_eq!(
            read("ping", &json!({ "zen": "Keep it logically awesome." })),
            Delivery::Ping
        );
        assert!(matches!(read("push", &json!([])), Delivery::Other(why) if why.contains("`push`")));
        let mut body = delivery("package");
        body["action"] = json!("deleted");
        assert!(
            matches!(read("package", &body), Delivery::Other(why) if why.contains("`deleted`"))
        );
        body["action"] = json!("published");
        body["package"]["package_type"] = json!("npm");
        assert!(matches!(read("package", &body), Delivery::Other(why) if why.contains("`npm`")));
    }

    #[test]
    fn invalid_delivery_is_an_error() {
        for body in [
            "",
            "{",
            "[]",
            "{\"action\":\"published\"}",
            "{\"action\":7}",
            &"[".repeat(100_000),
        ] {
            let read = github().read("package", Form::Json, Verified::for_test(body.as_bytes()));
            assert!(read.is_err(), "{read:?}");
        }
        let mut body = delivery("package");
        body["package"]["name"] = json!("../../etc/passwd");
        let body = body.to_string();
        assert!(
            github()
                .read("package", Form::Json, Verified::for_test(body.as_bytes()))
                .is_err()
        );
    }
}
