//! Properties of the parsers of untrusted documents, as functions of arbitrary bytes. A function panics if its property is
//! violated.
//!
//! `fuzz/` runs them with libFuzzer. The test below runs them with the corpus in `fuzz/corpus`, which has a folder for each target.
//! Released programs do not contain this module.

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};
use oci_spec::distribution::Reference;
use refit_capabilities::Capabilities as _;
use refit_capabilities::snapshot::Snapshot;
use refit_capabilities::snapshot::replay::SnapshotCapabilities;
use refit_engine::docker::parse_container;
use refit_model::container::{ContainerId, Object};
use refit_model::grants::{GrantPatterns, Grants, Verb};
use refit_model::image;
use refit_model::image::{ImageId, ImageRef, is_digest, is_image_id};
use refit_model::secret::SecretString;
use refit_recreate::intent::Intent;
use refit_recreate::names::{BackupName, ParsedName};
use refit_registry::challenge::{self, Challenge};
use refit_sandbox::Examined;
use refit_service::hooks::github::{Delivery, Form, Github};
use refit_service::hooks::registry::RegistryHook;
use refit_service::hooks::secret::{SharedSecrets, SigningKeys};
use refit_service::hooks::{Published, Scoped};
use ring::hmac;
use serde_json::{Value, json};

use crate::{config, setup};

/// A property of arbitrary bytes.
pub type Property = fn(&[u8]);

/// The targets, by the names of their corpora.
pub const TARGETS: [(&str, Property); 8] = [
    ("challenge", challenge),
    ("component", component),
    ("config", config),
    ("container_name", container_name),
    ("image_reference", image_reference),
    ("intent", intent),
    ("snapshot", snapshot),
    ("webhook", webhook),
];

/// The longest message about a document that a person reads, a log stores and a response quotes.
const MESSAGE_BYTES_MAX: usize = 8 << 10;

const SECRET: &str = "correct-horse-battery";

/// Check that a message can be logged and shown on a terminal.
#[track_caller]
fn check_message(message: &dyn Display) {
    let text = message.to_string();
    let start: String = text.chars().take(200).collect();
    assert!(!text.is_empty(), "an error has a message");
    assert!(
        text.len() <= MESSAGE_BYTES_MAX,
        "a message of {} bytes: {start:?}",
        text.len()
    );
    assert!(
        !text.chars().any(|c| c.is_control() && c != '\n'),
        "a message with control characters: {start:?}"
    );
}

/// Reading the imports and exports of a component is deterministic, bounded, and printable.
pub fn component(data: &[u8]) {
    let read = || Examined::read(Bytes::copy_from_slice(data), "fuzz.wasm");
    match (read(), read()) {
        (Ok(examined), Ok(again)) => {
            assert_eq!(examined.digest, image::sha256(data));
            assert_eq!(examined.imports, again.imports);
            assert_eq!(examined.exports, again.exports);
            assert_eq!(examined.tools, again.tools);
            for tool in &examined.tools {
                check_message(&format!("{} {}", tool.name, tool.version));
            }
            if let Err(error) = examined.check_contract() {
                check_message(&error);
            }
        }
        (Err(error), Err(again)) => {
            assert_eq!(error.to_string(), again.to_string());
            check_message(&error);
        }
        (one, other) => panic!("read differently twice: {one:?} and {other:?}"),
    }
}

/// Writing a reference and parsing it again gives the same reference, and the format's library agrees on its meaning.
pub fn image_reference(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let parsed = text.parse::<ImageRef>();
    // The library accepts upper-case names, tags of any script, image ids and registries with underscores; engines do not. It does
    // not accept IPv6 addresses.
    let by_library = Reference::try_from(text)
        .ok()
        .filter(|reference| !reference.repository().chars().any(char::is_uppercase))
        .filter(|reference| !reference.registry().contains('_'))
        .filter(|_| text.is_ascii() && !is_image_id(text) && text.len() <= ImageRef::LENGTH_MAX);
    match parsed {
        Ok(image) => {
            let written = image.to_string();
            assert_eq!(written.parse::<ImageRef>().ok().as_ref(), Some(&image));
            if !text.starts_with('[') {
                assert_eq!(by_library.map(|it| it.to_string()), Some(written));
            }
            assert!(image.tag().is_some() || image.digest().is_some());
            let repository = image.repository();
            let versionless: ImageRef = repository.parse().expect("a repository is a reference");
            assert_eq!(versionless.repository(), repository);
        }
        Err(error) => {
            assert_eq!(by_library, None, "only the library takes {text:?}");
            assert!(error.to_string().len() <= MESSAGE_BYTES_MAX);
        }
    }
}

/// A realm that would receive a login has TLS, unless the registry itself has none. Each line is a header; a first line `plain`
/// means that the registry has no TLS.
pub fn challenge(data: &[u8]) {
    let (plain, lines) = match data.strip_prefix(b"plain\n") {
        Some(rest) => (true, rest),
        None => (false, data),
    };
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let parsed = challenge::parse(&headers, plain);
    match &parsed {
        Ok(Some(Challenge::Bearer(realm))) => {
            let url = &realm.url;
            assert!(url.scheme() == "https" || (plain && url.scheme() == "http"));
            assert!(url.host_str().is_some_and(|host| !host.is_empty()));
            assert!(url.username().is_empty() && url.password().is_none());
            let service = realm.service.as_deref().unwrap_or_default();
            // Quotes within quotes need an escape, which this writer lacks.
            if service.contains(['"', '\\']) || url.as_str().contains(['"', '\\']) {
                return;
            }
            let written = format!(r#"Bearer realm="{url}",service="{service}""#);
            // An encoded address is longer, and a header beyond that length is not read.
            if written.len() > challenge::LENGTH_MAX {
                return;
            }
            if let Ok(value) = HeaderValue::from_str(&written) {
                let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]);
                assert_eq!(challenge::parse(&headers, plain), parsed, "{written}");
            }
        }
        Ok(Some(Challenge::Basic) | None) => {}
        Err(error) => check_message(error),
    }
}

/// The images of a delivery are valid references, and only granted ones are accepted. The first line is `github EVENT [form]`,
/// `registry` or `registry HOST`; the rest is the body.
pub fn webhook(data: &[u8]) {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (head, body) = (&data[..end], &data[end + 1..]);
    let head = String::from_utf8_lossy(head);
    let mut words = head.split(' ');
    let published = match words.next() {
        Some("github") => {
            let form = match words.clone().nth(1) {
                Some("form") => Form::Encoded,
                _ => Form::Json,
            };
            github(words.next().unwrap_or_default(), form, body)
        }
        Some("registry") => registry(words.next(), body),
        _ => return,
    };
    let grants = Grants::new(&GrantPatterns {
        images: vec!["ghcr.io/acme/*".into(), "*:5000/acme/**".into()],
        containers: vec![],
        labels: Default::default(),
        environment: vec![],
        followers: false,
        verbs: vec![Verb::Pull],
    })
    .expect("the patterns are valid");
    let named = published.len();
    let scoped = Scoped::new(published, &grants);
    assert!(scoped.accepted.len() + scoped.ignored.len() <= named);
    for name in &scoped.accepted {
        let image: ImageRef = name.parse().expect("what is accepted is a reference");
        assert!(grants.may_pull(&image).is_ok(), "{name} is not granted");
    }
    for (name, digest) in &scoped.announced {
        assert!(scoped.accepted.contains(name) && is_digest(digest));
    }
    for ignored in &scoped.ignored {
        check_message(&ignored.what);
        check_message(&ignored.why);
    }
}

fn github(event: &str, form: Form, body: &[u8]) -> Vec<Published> {
    let github = Github {
        keys: SigningKeys::new(&[SecretString::from(SECRET)]),
        registry: "ghcr.io".into(),
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let mut signature = "sha256=".to_owned();
    for byte in hmac::sign(&key, body).as_ref() {
        let _ = write!(signature, "{byte:02x}");
    }
    let verified = github.keys.verify(&signature, body);
    match github.read(event, form, verified.expect("it is signed")) {
        Ok(Delivery::Published(published)) => {
            check_message(&published.name());
            let image: ImageRef = published.name().parse().expect("a name is a reference");
            assert_eq!(image.registry(), "ghcr.io");
            vec![published]
        }
        Ok(Delivery::Other(why)) => {
            check_message(&why);
            vec![]
        }
        Ok(Delivery::Ping) => vec![],
        Err(error) => {
            check_message(&error);
            vec![]
        }
    }
}

fn registry(host: Option<&str>, body: &[u8]) -> Vec<Published> {
    let hook = RegistryHook {
        name: "fuzz".into(),
        secrets: SharedSecrets::new(&[SecretString::from(SECRET)]),
        host: host.map(str::to_owned),
    };
    let verified = hook.secrets.verify(SECRET, body);
    match hook.read(verified.expect("it has the secret")) {
        Ok(notified) => {
            for published in &notified.published {
                let image = published.name().parse::<ImageRef>();
                let image = image.expect("a name is a reference");
                assert!(
                    host.is_none_or(|host| host == image.registry()),
                    "{host:?} became {}",
                    image.registry()
                );
            }
            for why in &notified.wrong {
                check_message(why);
            }
            notified.published
        }
        Err(error) => {
            check_message(&error);
            vec![]
        }
    }
}

/// A name survives parsing and formatting in both orders, and never looks like one of the platform's. The first line is any name; a
/// second and third line are the name and the time of a container that gets a backup name.
pub fn container_name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let any = lines.next().unwrap_or_default();
    if let Some(ParsedName::Backup(backup)) = ParsedName::parse(any) {
        assert_eq!(backup.to_name().as_str(), any);
    }
    if let Some(ParsedName::Temporary { old, stopping }) = ParsedName::parse(any) {
        let suffix = if stopping { ".stopping" } else { "" };
        assert_eq!(format!("refit-new.{old}{suffix}"), any);
    }
    let (Some(name), since) = (lines.next(), lines.next().unwrap_or_default()) else {
        return;
    };
    if name.is_empty() {
        return;
    }
    let (old, new) = (["a"; 64].concat(), ["b"; 64].concat());
    let since = since.parse().unwrap_or_default();
    for ran in [true, false] {
        let (old, new) = (ContainerId::new(&*old), ContainerId::new(&*new));
        let backup = BackupName::new(&old, &new, since, ran, name);
        let written = backup.to_name();
        assert!(!written.as_str().contains("ws-"), "{written:?}");
        let parsed = ParsedName::parse(written.as_str());
        assert_eq!(parsed, Some(ParsedName::Backup(backup)));
    }
}

/// A valid configuration survives writing and reading; an error names a problem.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let config = match config::parse(text, "refit.toml") {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let value = serde_json::to_value(&config).expect("a configuration is a document");
    // The program gets a value or an error.
    let _ = setup::grants(&config);
    let _ = (config.bounds(), config.call_limits(), config.proof());
    let _ = (config.worker_limits(), config.state_folder());
    // TOML has numbers that JSON lacks, and JSON's null is not a TOML value.
    if has_null(&value["policy"]["config"]) {
        return;
    }
    let written = toml::to_string(&config).expect("a configuration can be written");
    let again = config::parse(&written, "written.toml")
        .unwrap_or_else(|error| panic!("it is refused as it was written: {error}\n{written}"));
    let again = serde_json::to_value(&again).expect("a configuration is a document");
    assert_eq!(again, value);
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(entries) => entries.values().any(has_null),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A snapshot survives writing and reading, one redaction removes everything secret, and the replayed engine lists and inspects the
/// snapshot's containers.
pub fn snapshot(data: &[u8]) {
    let mut snapshot = match Snapshot::parse(data, "fuzz.json") {
        Ok(snapshot) => snapshot,
        Err(error) => return check_message(&error),
    };
    let again = Snapshot::parse(snapshot.to_text().as_bytes(), "written.json");
    assert_eq!(again.expect("it was written"), snapshot);
    let replay = SnapshotCapabilities::new(snapshot.clone(), false);
    match replay.containers().now_or_never() {
        Some(Ok(listed)) => {
            assert_eq!(listed.len(), snapshot.containers.len());
            for container in &listed {
                let inspected = replay.inspect(container).now_or_never();
                let inspected = inspected.expect("a snapshot waits for nothing");
                if let Ok(inspected) = inspected {
                    assert_eq!(inspected.id, container.id);
                }
            }
        }
        Some(Err(_)) => assert!(snapshot.listing_fails.is_some()),
        None => panic!("a snapshot waits for nothing"),
    }
    snapshot.redact();
    let redacted = snapshot.clone();
    snapshot.redact();
    assert_eq!(snapshot, redacted);
}

/// The request for a replacement keeps every network, is not larger than the inspection, and does not change when the replacement
/// is replaced. The document has the inspection of a `container` and the configuration of its `image`.
pub fn intent(data: &[u8]) {
    let Ok(Value::Object(mut document)) = serde_json::from_slice(data) else {
        return;
    };
    let inspection = document.remove("container").unwrap_or_default().to_string();
    let Ok(mut container) = parse_container(inspection.as_bytes()) else {
        return;
    };
    let image = document.get("image").and_then(Value::as_object);
    let image = image.cloned().unwrap_or_default();
    let id = ImageId::new("sha256:new");
    let first = Intent::from_container(&container, &image).to_replacement("app:2", &id);
    let request = &first.request;
    assert_eq!(request.config.get("Image"), Some(&json!("app:2")));
    assert!(!request.host_config.values().any(Value::is_null));
    let mode = container.network_mode();
    if !matches!(mode, "host" | "none") && !mode.starts_with("container:") {
        let asked = first.networks.len() + usize::from(request.endpoint.is_some());
        assert_eq!(asked, container.endpoints.len(), "a network is lost");
    }
    let written = json!([request.config, request.host_config]).to_string();
    assert!(written.len() <= 4 * inspection.len() + 1024);

    // An engine shows what was requested; the image of the replacement has no defaults.
    container.config = request.config.clone();
    container.host_config = request.host_config.clone();
    let networks = first.networks.iter().cloned();
    container.endpoints = networks.chain(request.endpoint.clone()).collect();
    let second = Intent::from_container(&container, &Object::new()).to_replacement("app:2", &id);
    assert_eq!(second.request, first.request);
    assert_eq!(second.networks, first.networks);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn each_property_has_a_fuzz_target() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("there is a manifest");
        for (name, _) in TARGETS {
            let target = folder.join(format!("fuzz_targets/{name}.rs"));
            let text = fs::read_to_string(target).expect("there is a target");
            assert!(
                text.contains(&format!("refit::fuzzing::{name}(data)")),
                "{text}"
            );
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
        let targets = fs::read_dir(folder.join("fuzz_targets")).expect("it can be listed");
        assert_eq!(targets.count(), TARGETS.len());
    }

    #[test]
    fn properties_hold_for_the_whole_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        let mut failed = Vec::new();
        for (name, property) in TARGETS {
            let folder = corpus.join(name);
            let mut count = 0;
            for entry in fs::read_dir(&folder).expect("each target has a corpus") {
                let path = entry.expect("it can be listed").path();
                let data = fs::read(&path).expect("it can be read");
                count += 1;
                if std::panic::catch_unwind(|| property(&data)).is_err() {
                    failed.push(path);
                }
            }
            assert!(count >= 3, "{} has {count} files", folder.display());
        }
        assert!(
            failed.is_empty(),
            "a property does not hold for {failed:#?}"
        );
    }
}
