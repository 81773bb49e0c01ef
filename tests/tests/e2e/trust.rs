//! Whose policies are taken: signed ones, from files, by HTTP, from registries, after a restart. Only the last test needs an
//! engine.

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine as _;
use minisign::KeyPair;
use refit::capabilities::guard::Guard;
use refit::capabilities::journal::{Journal, Record};
use refit::capabilities::scope::Scope;
use refit::capabilities::snapshot::Snapshot;
use refit::capabilities::snapshot::replay::SnapshotCapabilities;
use refit::config::Config;
use refit::model::event::no_events;
use refit::model::grants::Grants;
use refit::model::recreation::RecreationOutcome;
use refit::model::request::{Request, Trigger};
use refit::registry::credentials::Credentials;
use refit::revisions::Generations;
use refit::revisions::artifact::Carrier;
use refit::revisions::artifact::registry::Registries;
use refit::revisions::artifact::signature::{KeyConfig, Trust};
use refit::revisions::load::Source;
use refit::revisions::start::{Persistence, TrustConfig};
use refit::revisions::swap::ConfiguredPolicy;
use refit::sandbox::{Clock, PolicyEngine, Session};
use refit_tests::refit::{Daemon, Output};
use refit_tests::registry::{self, PASSWORD, Registry, USER};
use refit_tests::{Refit, with_world};
use serde_json::{Value, json};

use crate::snapshot::snapshot;
use crate::swap::{active, alone, guest, in_use};
use crate::{behind, container, refit, until, without_engine};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const WASM: (&str, &str) = ("Content-Type", "application/wasm");

/// Somebody who signs.
pub(crate) struct Signatory {
    name: &'static str,
    pair: KeyPair,
}

pub(crate) fn signatory(name: &'static str) -> anyhow::Result<Signatory> {
    let pair = KeyPair::generate_unencrypted_keypair()?;
    Ok(Signatory { name, pair })
}

impl Signatory {
    pub(crate) fn sign(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let signature = minisign::sign(Some(&self.pair.pk), &self.pair.sk, bytes, None, None)?;
        Ok(signature.into_string())
    }

    pub(crate) fn key(&self) -> Value {
        json!({ "name": self.name, "key": self.pair.pk.to_base64() })
    }

    /// One that may only ship policies which never do anything else.
    fn key_for(&self, verbs: &[&str]) -> Value {
        let mut key = self.key();
        key["verbs"] = json!(verbs);
        key
    }
}

pub(crate) fn trusting(refit: Refit, keys: &[Value]) -> Refit {
    refit.set("policy.keys", json!(keys))
}

/// The default policy with a section behind it that means nothing: it decides the same, and is not built in.
fn like_the_default(mark: u8) -> Vec<u8> {
    let mut bytes = refit::sandbox::DEFAULT_POLICY.to_vec();
    // A custom section of four bytes, called `m`.
    bytes.extend([0, 4, 1, b'm', mark, mark]);
    bytes
}

pub(crate) async fn send(
    daemon: &Daemon,
    body: Value,
) -> anyhow::Result<refit_tests::http::Answer> {
    let body = body.to_string();
    daemon.send("PUT", "/v1/policy", &[JSON], body).await
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A reference that no other test has.
fn reference(registry: &Registry, tag: &str) -> String {
    let repository = fastrand::u64(..);
    format!("oci://{}/policies/p{repository:x}:{tag}", registry.host())
}

/// What the daemon says of a swap that it refuses. What was in use still is.
pub(crate) async fn refused(
    daemon: &Daemon,
    body: Value,
    status: u16,
    stage: &str,
) -> anyhow::Result<Value> {
    let before = in_use(daemon).await?;
    let answer = send(daemon, body).await?;
    let problem = answer.json()?;
    assert_eq!(
        (answer.status, &problem["stage"]),
        (status, &json!(stage)),
        "{problem}"
    );
    assert_eq!(in_use(daemon).await?, before);
    Ok(problem)
}

fn against(daemon: &Daemon) -> String {
    format!("http://{}", daemon.address)
}

pub(crate) async fn policy(
    refit: &Refit,
    daemon: &Daemon,
    arguments: &[&str],
) -> anyhow::Result<Output> {
    let server = against(daemon);
    let arguments = [&["policy"], arguments, &["--server", &server]].concat();
    refit.run(&arguments).await
}

#[tokio::test]
async fn with_keys_only_what_they_signed_comes_in_over_http() -> anyhow::Result<()> {
    let (release, stranger) = (signatory("release")?, signatory("stranger")?);
    let refit = trusting(alone()?, &[release.key()]);
    // The built-in policy needs no signature.
    let daemon = refit.serve().await?;
    let (one, two) = (guest("one")?, guest("two")?);

    let answer = daemon
        .send("PUT", "/v1/policy?origin=one.wasm", &[WASM], one.clone())
        .await?;
    assert_eq!(answer.status, 422, "{}", answer.text);
    let problem = answer.json()?;
    assert_eq!(
        (&problem["stage"], &problem["code"]),
        (&json!("signature"), &json!("policy-untrusted"))
    );
    assert_eq!(
        problem["causes"],
        json!([
            "`one.wasm` is not trusted",
            "it is not signed, and `[[policy.keys]]` lists who must sign it"
        ])
    );
    let component = base64(&one);
    for (signature, words) in [
        (stranger.sign(&one)?, "by none of the keys"),
        (release.sign(&two)?, "or of other bytes than these"),
        ("junk".to_owned(), "is no minisign signature"),
    ] {
        let body = json!({ "component": component, "signature": signature });
        let problem = refused(&daemon, body, 422, "signature").await?;
        assert!(problem["causes"].to_string().contains(words), "{problem}");
    }
    // One byte after it was signed.
    let body = json!({ "component": base64(&like_the_default(2)), "signature": release.sign(&like_the_default(1))? });
    refused(&daemon, body, 422, "signature").await?;

    let signature = release.sign(&one)?;
    let answer = send(
        &daemon,
        json!({ "component": component, "signature": signature }),
    )
    .await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        answer.json()?["policy"]["signer"],
        json!({ "name": "release" })
    );
    // By its digest it keeps its signature; the built-in one by its bytes needs none.
    let answer = send(
        &daemon,
        json!({ "component": base64(refit::sandbox::DEFAULT_POLICY) }),
    )
    .await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(active(&daemon).await?["signer"], Value::Null);
    let digest = refit::sandbox::digest(&one);
    let answer = send(&daemon, json!({ "digest": digest })).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(active(&daemon).await?["signer"]["name"], "release");
    let answer = daemon.request("POST", "/v1/policy/rollback").await?;
    assert_eq!(answer.status, 200, "{}", answer.text);

    for wrong in [
        json!({ "signature": signature }),
        json!({ "signature": signature, "config": {} }),
        json!({ "reference": "oci://ghcr.io/acme/p:1", "signature": signature }),
        json!({ "reference": "oci://ghcr.io/acme/p:1", "digest": digest }),
        json!({ "reference": "oci://ghcr.io/acme/p" }),
        json!({ "reference": "/etc/passwd" }),
        json!({ "component": component, "signature": "x".repeat(9000) }),
    ] {
        let answer = send(&daemon, wrong.clone()).await?;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_file_comes_with_the_signature_beside_it() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let one = guest("one")?;
    let refit = trusting(alone()?, &[release.key()])
        .file("one.wasm", &one)?
        .file("two.wasm", guest("two")?)?;
    let daemon = refit.serve().await?;
    let output = policy(&refit, &daemon, &["swap", "one.wasm"])
        .await?
        .expect(1);
    snapshot!(output.stderr, @"
    error: cannot swap in `one.wasm`: it failed at `signature`; generation 1 (workspace 0.1.0) is still in use
      caused by: `one.wasm` is not trusted
      caused by: it is not signed, and `[[policy.keys]]` lists who must sign it

    hint: `minisign -Sm policy.wasm` writes `policy.wasm.minisig`; keep it beside the file, `refit policy push` takes it along
    ");
    let refit = refit.file("one.wasm.minisig", release.sign(&one)?)?;
    policy(&refit, &daemon, &["swap", "one.wasm"])
        .await?
        .expect(0);
    policy(
        &refit,
        &daemon,
        &["swap", "one.wasm", "--policy-config", r#"{"a":1}"#],
    )
    .await?
    .expect(0);
    assert_eq!(active(&daemon).await?["config"], json!({ "a": 1 }));
    let output = policy(&refit, &daemon, &["inspect"]).await?.expect(0);
    assert!(output.stdout.contains("signed by   release\n"), "{output}");
    let output = policy(&refit, &daemon, &["history"]).await?.expect(0);
    assert!(
        output
            .stdout
            .contains("from one.wasm, signed by release, by "),
        "{output}"
    );

    let output = refit
        .run(&["policy", "inspect", "one.wasm"])
        .await?
        .expect(0);
    assert!(output.stdout.contains("signed by   release\n"), "{output}");
    let output = refit
        .run(&["policy", "inspect", "two.wasm"])
        .await?
        .expect(0);
    assert!(
        output.stdout.contains("signature   it is not signed"),
        "{output}"
    );
    Ok(())
}

#[tokio::test]
async fn a_watched_file_is_swapped_in_when_its_signature_has_come() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let (one, two) = (guest("one")?, guest("two")?);
    let refit = trusting(alone()?, &[release.key()])
        .file("mine.wasm", &one)?
        .file("mine.wasm.minisig", release.sign(&one)?)?
        .set("policy.component", "mine.wasm")
        .set("policy.watch", true);
    let daemon = refit.serve().await?;
    let refit = refit.file("mine.wasm", &two)?;
    daemon
        .until_logged("it failed at `signature`; generation 1 (one 0.1.0) is still in use")
        .await?;
    let _refit = refit.file("mine.wasm.minisig", release.sign(&two)?)?;
    until("the second one", async || {
        Ok(in_use(&daemon).await? == ("two".to_owned(), 2))
    })
    .await
}

#[tokio::test]
async fn what_is_configured_must_be_signed_to_start_with() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let one = guest("one")?;
    let refit = trusting(alone()?, &[release.key()])
        .file("one.wasm", &one)?
        .set("policy.component", "one.wasm");
    for command in ["serve", "plan"] {
        let output = refit.run(&[command]).await?.expect(2);
        output.says("error: `one.wasm` is not trusted\n  caused by: it is not signed");
    }
    let output = refit.run(&["doctor"]).await?.expect(1);
    assert!(
        output
            .stdout
            .contains("ok    keys     policies must be signed by release\n")
            && output.stdout.contains("`one.wasm` is not trusted"),
        "{output}"
    );
    let refit = refit.file("one.wasm.minisig", release.sign(&one)?)?;
    let daemon = refit.serve().await?;
    assert_eq!(active(&daemon).await?["signer"]["name"], "release");
    let bad = json!({ "name": "release", "key": "RWnonsense" });
    let output = trusting(refit, &[bad]).run(&["plan"]).await?.expect(2);
    output.says("the key `release` in `[[policy.keys]]` is no minisign public key");
    Ok(())
}

pub(crate) async fn ended(daemon: Daemon) -> anyhow::Result<()> {
    daemon.terminate()?;
    daemon.ended().await?.expect(0);
    Ok(())
}

#[tokio::test]
async fn a_restart_trusts_whom_the_keys_name_then_and_falls_back_aloud() -> anyhow::Result<()> {
    let (old, new) = (signatory("old")?, signatory("new")?);
    let (one, two) = (guest("one")?, guest("two")?);
    let both = [old.key(), new.key()];
    let refit = trusting(alone()?, &both);
    let daemon = refit.serve().await?;
    for (bytes, by) in [(&one, &new), (&two, &old)] {
        let body = json!({ "component": base64(bytes), "signature": by.sign(bytes)? });
        let answer = send(&daemon, body).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    ended(daemon).await?;
    // As it was: the signature was kept with the component.
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("two".into(), 3));
    assert_eq!(active(&daemon).await?["signer"]["name"], "old");
    ended(daemon).await?;

    let refit = trusting(refit, &[new.key()]);
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("one".into(), 4));
    let now = active(&daemon).await?;
    assert_eq!(
        (&now["how"], &now["signer"]["name"]),
        (&json!("fell-back"), &json!("new"))
    );
    let problem = now["problem"].to_string();
    assert!(
        problem.contains("is not trusted") && problem.contains("by none of the keys"),
        "{problem}"
    );
    assert!(daemon.log().contains("\"ERROR\""), "{}", daemon.log());
    refit.run(&["doctor"]).await?.expect(1);
    ended(daemon).await?;

    // A restart later it may be trusted again; a rollback to one that is not is refused.
    let refit = trusting(refit, &both);
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("two".into(), 3));
    ended(daemon).await?;
    let refit = trusting(refit, &[old.key()]);
    let daemon = refit.serve().await?;
    let answer = daemon.request("POST", "/v1/policy/rollback").await?;
    let problem = answer.json()?;
    assert_eq!(
        (answer.status, &problem["stage"]),
        (422, &json!("signature")),
        "{problem}"
    );
    assert_eq!(in_use(&daemon).await?, ("two".into(), 3));
    Ok(())
}

#[tokio::test]
async fn a_policy_is_pushed_and_swapped_in_by_tag_and_by_digest() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let reference = reference(registry::open().await?, "1.0.0");
    let one = guest("one")?;
    let refit = trusting(alone()?, &[release.key()])
        .file("one.wasm", &one)?
        .file("two.wasm", guest("two")?)?
        .file("bad.wasm", "no component")?
        .file("one.wasm.minisig", release.sign(&one)?)?;
    let output = refit
        .run(&["policy", "push", "bad.wasm", &reference])
        .await?
        .expect(2);
    output.says("`bad.wasm` is no WebAssembly component");
    let output = refit
        .run(&["policy", "push", "one.wasm", &reference, "--json"])
        .await?
        .expect(0);
    let pushed = output.json();
    assert_eq!(
        (&pushed["name"], &pushed["signer"]["name"]),
        (&json!("one"), &json!("release"))
    );
    let pinned = pushed["reference"]
        .as_str()
        .context("no reference")?
        .to_owned();
    assert!(
        pinned.starts_with(&format!("{reference}@sha256:")),
        "{pinned}"
    );

    let daemon = refit.serve().await?;
    policy(&refit, &daemon, &["swap", &reference])
        .await?
        .expect(0);
    let now = active(&daemon).await?;
    assert_eq!(
        (&now["name"], &now["signer"]["name"]),
        (&json!("one"), &json!("release"))
    );
    assert_eq!(now["origin"], json!(pinned), "by what the tag stood for");

    // The tag moves on, to one that nobody has signed.
    let output = refit
        .run(&["policy", "push", "two.wasm", &reference])
        .await?
        .expect(0);
    assert!(
        output.stdout.contains("signature         it is not signed"),
        "{output}"
    );
    let problem = refused(&daemon, json!({ "reference": reference }), 422, "signature").await?;
    assert!(
        problem["causes"].to_string().contains("it is not signed"),
        "{problem}"
    );
    // What was pinned is what it was.
    let answer = send(
        &daemon,
        json!({ "reference": pinned, "config": { "a": 1 } }),
    )
    .await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(in_use(&daemon).await?, ("one".into(), 3));
    let output = refit.run(&["policy", "inspect", &pinned]).await?.expect(0);
    assert!(output.stdout.contains("signed by   release\n"), "{output}");
    assert!(
        output.stdout.contains(&format!("from        {pinned}\n")),
        "{output}"
    );

    let (name, _) = pinned.split_once('@').context("no digest")?;
    let absent = format!("{name}@sha256:{}", "0".repeat(64));
    let problem = refused(&daemon, json!({ "reference": absent }), 422, "fetch").await?;
    assert!(
        problem["causes"].to_string().contains("has no `"),
        "{problem}"
    );
    let nobody = json!({ "reference": "oci://127.0.0.1:1/a/b:1" });
    let problem = refused(&daemon, nobody, 502, "fetch").await?;
    assert_eq!(problem["code"], "registry-failed");
    assert!(
        problem["causes"]
            .to_string()
            .contains("cannot fetch `127.0.0.1:1/a/b:1`"),
        "{problem}"
    );
    Ok(())
}

#[tokio::test]
async fn a_policy_is_pulled_whole_and_over_nothing() -> anyhow::Result<()> {
    let release = signatory("release")?;
    let reference = reference(registry::open().await?, "1");
    let one = guest("one")?;
    let refit = trusting(alone()?, &[release.key()])
        .file("one.wasm", &one)?
        .file("one.wasm.minisig", release.sign(&one)?)?;
    refit
        .run(&["policy", "push", "one.wasm", &reference])
        .await?
        .expect(0);
    let pull = async |more: &[&str]| {
        refit
            .run(&[&["policy", "pull", &reference], more].concat())
            .await
    };
    let output = pull(&["-o", "new.wasm"]).await?.expect(0);
    assert!(
        output.stdout.contains("signed by         release"),
        "{output}"
    );
    let read = |name: &str| fs::read(refit.home().join(name));
    assert_eq!(read("new.wasm")?, one);
    assert_eq!(read("new.wasm.minisig")?, read("one.wasm.minisig")?);

    fs::write(refit.home().join("new.wasm"), "mine")?;
    let output = pull(&["-o", "new.wasm"]).await?.expect(2);
    output.says("`new.wasm` is there already");
    assert_eq!(read("new.wasm")?, b"mine");
    pull(&["-o", "new.wasm", "--force"]).await?.expect(0);
    assert_eq!(read("new.wasm")?, one);
    // One without a signature does not inherit another's.
    fs::remove_file(refit.home().join("one.wasm.minisig"))?;
    refit
        .run(&["policy", "push", "one.wasm", &reference])
        .await?
        .expect(0);
    pull(&["-o", "new.wasm", "--force"]).await?.expect(0);
    assert!(!refit.home().join("new.wasm.minisig").exists());
    // Called after its repository.
    let name = reference.rsplit(['/', ':']).nth(1).context("no name")?;
    let output = pull(&["--json"]).await?.expect(0);
    assert_eq!(output.json()["file"], json!(format!("{name}.wasm")));
    assert_eq!(read(&format!("{name}.wasm"))?, one);
    let output = refit.run(&["policy", "pull", "one.wasm"]).await?.expect(2);
    output.says("it does not begin with `oci://`");
    Ok(())
}

#[tokio::test]
async fn a_private_registry_gets_the_login_that_images_are_pulled_with() -> anyhow::Result<()> {
    let registry = registry::private().await?;
    let reference = reference(registry, "1");
    let basic = base64(format!("{USER}:{PASSWORD}").as_bytes());
    let login = json!({ "auths": { registry.host(): { "auth": basic } } });
    let stranger = alone()?.file("one.wasm", guest("one")?)?;
    let output = stranger
        .run(&["policy", "push", "one.wasm", &reference])
        .await?
        .expect(2);
    output.says("wants a login, or refused the one that it was given");
    output.says(&format!("run `docker login {}`", registry.host()));

    let refit = alone()?
        .file("one.wasm", guest("one")?)?
        .docker_config(&login)?;
    let push = ["--log", "trace", "policy", "push", "one.wasm", &reference];
    refit.run(&push).await?.expect(0);
    let output = stranger
        .run(&["policy", "pull", &reference])
        .await?
        .expect(2);
    output.says("wants a login");
    let daemon = stranger.serve().await?;
    let problem = refused(&daemon, json!({ "reference": reference }), 422, "fetch").await?;
    assert!(
        problem["hints"].to_string().contains("docker login"),
        "{problem}"
    );

    // All that this one prints is searched for the password, and here all that it answers.
    let refit = refit.env("REFIT_LOG", "trace");
    let daemon = refit.serve().await?;
    let answer = send(&daemon, json!({ "reference": reference })).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let history = daemon.request("GET", "/v1/policy/history").await?;
    let kept = fs::read_to_string(refit.home().join("state/policies/generations.json"))?;
    for text in [&answer.text, &history.text, &kept] {
        assert!(!text.contains(PASSWORD) && !text.contains(&basic), "{text}");
        assert!(text.contains(&reference), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_configured_policy_in_a_registry_outlives_the_registry() -> anyhow::Result<()> {
    let registry = Registry::start(registry::Access::Anybody).await?;
    let reference = reference(&registry, "1");
    let refit = alone()?
        .file("one.wasm", guest("one")?)?
        .file("two.wasm", guest("two")?)?;
    refit
        .run(&["policy", "push", "one.wasm", &reference])
        .await?
        .expect(0);
    let refit = refit.set("policy.component", reference.as_str());
    let daemon = refit.serve().await?;
    assert_eq!(in_use(&daemon).await?, ("one".into(), 1));
    // The tag is asked again when somebody says so.
    refit
        .run(&["policy", "push", "two.wasm", &reference])
        .await?
        .expect(0);
    daemon.hang_up()?;
    until("the second one", async || {
        Ok(in_use(&daemon).await? == ("two".to_owned(), 2))
    })
    .await?;
    ended(daemon).await?;
    // A daemon that never swapped anything remembers too what it fetched.
    let fresh = alone()?.set("policy.component", reference.as_str());
    ended(fresh.serve().await?).await?;
    registry.stop().await?;
    for (refit, number) in [(refit, 2), (fresh, 1)] {
        let daemon = refit.serve().await?;
        assert_eq!(in_use(&daemon).await?, ("two".into(), number));
        assert_eq!(active(&daemon).await?["problem"], Value::Null);
        ended(daemon).await?;
        // Without a daemon's memory there is nothing.
        let output = refit.run(&["plan"]).await?.expect(2);
        output.says("cannot fetch `");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_that_is_wanted_from_a_registry_cannot_be_watched() -> anyhow::Result<()> {
    let output = without_engine()?
        .set("policy.component", "oci://ghcr.io/acme/p:1")
        .set("policy.watch", true)
        .run(&["plan"])
        .await?
        .expect(2);
    output.says("`policy.watch` in the configuration is true");
    let output = without_engine()?
        .run(&["plan", "--policy", "oci://ghcr.io/acme/p"])
        .await?
        .expect(2);
    output.says("it names no tag and no digest");
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_limited_to_verbs_limits_what_it_signs() -> anyhow::Result<()> {
    let (release, matchers) = (signatory("release")?, signatory("matchers")?);
    let keys = [release.key(), matchers.key_for(&["inspect", "pull"])];
    let refit = trusting(alone()?, &keys);
    let daemon = refit.serve().await?;
    let bytes = like_the_default(1);
    let signed = async |by: &Signatory| {
        let body = json!({ "component": base64(&bytes), "signature": by.sign(&bytes)? });
        let answer = send(&daemon, body).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    };
    let change = signed(&matchers).await?;
    assert_eq!(
        (&change["gained"], &change["lost"]),
        (&json!([]), &json!(["recreate"]))
    );
    assert_eq!(
        change["policy"]["signer"],
        json!({ "name": "matchers", "verbs": ["inspect", "pull"] })
    );
    assert!(change["policy"]["asks"].to_string().contains("recreate"));
    assert!(!change["policy"]["granted"].to_string().contains("recreate"));
    // The same bytes under another key are another generation.
    let change = signed(&release).await?;
    assert_eq!(change["changed"], true);
    assert_eq!(change["gained"], json!(["recreate"]));
    let answer = daemon.request("POST", "/v1/policy/rollback").await?;
    assert_eq!(
        answer.json()?["lost"],
        json!(["recreate"]),
        "{}",
        answer.text
    );
    let output = refit.run(&["doctor"]).await?;
    assert!(
        output
            .stdout
            .contains("policies must be signed by release or matchers (inspect, pull)"),
        "{output}"
    );
    Ok(())
}

#[tokio::test]
async fn what_a_limited_key_signed_recreates_nothing() -> anyhow::Result<()> {
    with_world("a limited key", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let (release, matchers) = (signatory("release")?, signatory("matchers")?);
        let keys = [release.key(), matchers.key_for(&["inspect", "pull"])];
        let bytes = like_the_default(1);
        let refit = trusting(refit(&w, registry, &["hermes"])?, &keys)
            .file("mine.wasm", &bytes)?
            .file("mine.wasm.minisig", matchers.sign(&bytes)?)?
            .set("policy.component", "mine.wasm");
        for command in ["plan", "refresh"] {
            let report = refit.run(&[command, "--json"]).await?.expect(1).json();
            let recreation = &container(&report, &hermes.name)["recreation"];
            assert!(
                recreation
                    .to_string()
                    .contains("signed with the key `matchers`"),
                "{report:#}"
            );
        }
        crate::untouched(&w, &hermes).await?;
        // The same bytes by another key.
        let refit = refit.file("mine.wasm.minisig", release.sign(&bytes)?)?;
        let report = refit.run(&["plan", "--json"]).await?.expect(0).json();
        let recreation = &container(&report, &hermes.name)["recreation"];
        assert_eq!(recreation["outcome"], "would-recreate", "{report:#}");
        Ok(())
    })
    .await
}

/// What becomes of a container that is behind, by a policy from this file: over a replay, behind the grants of its generation.
async fn recreation(path: &std::path::Path, keys: &[KeyConfig]) -> anyhow::Result<Record> {
    let patterns = Config::default().grants();
    let terms = TrustConfig {
        grants: Arc::new(Grants::new(&patterns)?),
        trust: Trust::new(keys)?,
        carrier: Carrier {
            registries: Registries::default(),
            credentials: Credentials::default(),
        },
    };
    let asked = ConfiguredPolicy {
        source: Source::File(path.to_owned()),
        config: "{}".into(),
        allow_older: false,
    };
    let state = path.with_extension("state");
    let engine = PolicyEngine::new()?;
    let started = Generations::start(engine, terms, &state, Persistence::Nothing, asked);
    let generations = started
        .await
        .map_err(|error| anyhow::anyhow!(error.sentence()))?;
    let active = generations.active();

    let snapshot = json!({
        "snapshot": 1,
        "taken": "2026-11-23T10:00:00Z",
        "containers": [{
            "name": "ws-a",
            "id": "a".repeat(64),
            "image": HERMES,
            "image_id": "sha256:old",
            "state": "running",
            "created": 1_795_428_000,
        }],
        "images": { HERMES: { "id": "sha256:new" } },
    });
    let snapshot = Snapshot::parse(snapshot.to_string().as_bytes(), "a test")?;
    let bounds = Config::default().bounds();
    let grants = active.content.grants.clone();
    let replay = Arc::new(SnapshotCapabilities::new(snapshot, false));
    let scope = Arc::new(Scope::new(grants.clone(), bounds.counts.recreates));
    let guard = Guard::new(replay, scope, bounds.counts, Default::default());
    let journal = Arc::new(Journal::new(Arc::new(guard), true, no_events()));
    let session = Session {
        capabilities: journal.clone(),
        grants,
        concurrency: bounds.concurrency,
        state: active.content.state.scratch(),
        clock: Clock(jiff::Timestamp::now()),
    };
    let request = Request {
        trigger: Trigger::Operator,
        targets: vec!["hermes".into()],
        images: vec![],
        recreate: true,
        force: false,
    };
    let config = &active.content.config;
    let answer = active
        .policy()
        .refresh(&request, config, session, bounds.whole);
    let decided = answer.await?;
    anyhow::ensure!(decided.is_ok(), "{decided:?}");
    Ok(journal.finish().await)
}

const HERMES: &str = "ghcr.io/molecule-ai/workspace-template-hermes:latest";

#[tokio::test]
async fn the_same_bytes_recreate_by_one_key_and_not_by_another() -> anyhow::Result<()> {
    let (release, matchers) = (signatory("release")?, signatory("matchers")?);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("mine.wasm");
    let bytes = like_the_default(1);
    fs::write(&path, &bytes)?;
    let keys: Vec<KeyConfig> = serde_json::from_value(json!([
        release.key(),
        matchers.key_for(&["inspect", "pull"])
    ]))?;
    let by = async |who: &Signatory| {
        fs::write(folder.path().join("mine.wasm.minisig"), who.sign(&bytes)?)?;
        let record = recreation(&path, &keys).await?;
        anyhow::ensure!(record.recreations.len() == 1, "{record:?}");
        Ok(record.recreations[0].clone())
    };
    let limited = by(&matchers).await?;
    assert!(limited.outcome.is_failure(), "{limited:?}");
    let told = serde_json::to_string(&limited)?;
    assert!(told.contains("signed with the key `matchers`"), "{told}");
    let free = by(&release).await?;
    assert_eq!(free.outcome, RecreationOutcome::WouldRecreate, "{free:?}");
    Ok(())
}
