//! Policies in registries and their signatures, against real registries and keys. No engine.

use minisign::KeyPair;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use refit::model::grants::Verb;
use refit::model::secret::{Login, SecretString};
use refit::revisions::artifact::registry::{Registries, Title};
use refit::revisions::artifact::signature::{KeyConfig, SignatureError, Trust};
use refit::revisions::artifact::{Artifact, ArtifactError, ArtifactRef};
use refit_tests::gateway::{Gateway, Tokens};
use refit_tests::registry::{self, PASSWORD, Registry, USER};

const BYTES_MAX: usize = 1 << 20;

fn artifact(bytes: &[u8]) -> Artifact {
    Artifact {
        bytes: bytes.to_vec(),
        origin: "policy.wasm".into(),
        signature: Some("four lines\nof text\n".into()),
    }
}

fn title() -> Title {
    Title {
        name: "canary".into(),
        version: "1.2.0".into(),
        summary: "One, then the rest.".into(),
    }
}

/// A reference that no other test has.
fn reference(registry: &Registry, tag: &str) -> anyhow::Result<ArtifactRef> {
    let repository = fastrand::u64(..);
    Ok(format!("{}/policies/p{repository:x}:{tag}", registry.host()).parse()?)
}

fn registries() -> Registries {
    Registries::new(vec![])
}

#[tokio::test]
async fn what_was_pushed_comes_back_by_tag_and_by_digest() -> anyhow::Result<()> {
    let reference = reference(registry::open().await?, "1.2.0")?;
    let sent = artifact(b"\0asm and so on");
    let pinned = registries().push(&reference, None, &sent, &title()).await?;
    assert!(
        pinned
            .to_string()
            .starts_with(&format!("{reference}@sha256:")),
        "{pinned}"
    );
    for reference in [&reference, &pinned] {
        let came = registries().pull(reference, None, BYTES_MAX).await?;
        assert_eq!(
            (&came.bytes, &came.signature),
            (&sent.bytes, &sent.signature)
        );
        assert_eq!(came.origin, format!("oci://{pinned}"));
    }
    // The tag moves on, and the pinned reference does not.
    registries()
        .push(&reference, None, &artifact(b"another one"), &title())
        .await?;
    let came = registries().pull(&pinned, None, BYTES_MAX).await?;
    assert_eq!(came.bytes, sent.bytes);
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_not_found() -> anyhow::Result<()> {
    let registry = registry::open().await?;
    let absent = reference(registry, "1")?;
    let error = registries()
        .pull(&absent, None, BYTES_MAX)
        .await
        .unwrap_err();
    assert!(matches!(error, ArtifactError::NotFound { .. }), "{error:?}");

    let there = registries()
        .push(&absent, None, &artifact(b"x"), &title())
        .await?;
    let (name, _) = there
        .to_string()
        .split_once('@')
        .map(|(name, digest)| (name.to_owned(), digest.to_owned()))
        .unwrap_or_default();
    let wrong: ArtifactRef = format!("{name}@sha256:{}", "0".repeat(64)).parse()?;
    let error = registries()
        .pull(&wrong, None, BYTES_MAX)
        .await
        .unwrap_err();
    assert!(matches!(error, ArtifactError::NotFound { .. }), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_registry_that_wants_a_login_gets_it_and_no_other() -> anyhow::Result<()> {
    let reference = reference(registry::private().await?, "1")?;
    let login = |password: &str| Login::Password {
        username: USER.into(),
        password: SecretString::from(password.to_owned()),
    };
    for (login, sent) in [(None, false), (Some(login("wrong")), true)] {
        let error = registries()
            .push(&reference, login.as_ref(), &artifact(b"x"), &title())
            .await
            .unwrap_err();
        assert!(
            matches!(error, ArtifactError::Unauthorized { credentials_sent, .. } if credentials_sent == sent),
            "{error:?}"
        );
    }
    let right = login(PASSWORD);
    registries()
        .push(&reference, Some(&right), &artifact(b"x"), &title())
        .await?;
    let came = registries()
        .pull(&reference, Some(&right), BYTES_MAX)
        .await?;
    assert_eq!(came.bytes, b"x");
    let error = registries()
        .pull(&reference, None, BYTES_MAX)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ArtifactError::Unauthorized { .. }),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains(PASSWORD));
    Ok(())
}

#[tokio::test]
async fn what_is_no_component_is_refused_by_its_kind() -> anyhow::Result<()> {
    let reference = reference(registry::open().await?, "1")?;
    let client = oci_client::Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let layer = || ImageLayer::oci_v1(b"files".to_vec(), None);
    let config = || Config::oci_v1(b"{}".to_vec(), None);
    let parsed = reference.to_string().parse::<oci_client::Reference>()?;
    client
        .push(
            &parsed,
            &[layer()],
            config(),
            &RegistryAuth::Anonymous,
            None,
        )
        .await?;
    let error = registries()
        .pull(&reference, None, BYTES_MAX)
        .await
        .unwrap_err();
    let told = error.to_string();
    assert!(
        matches!(error, ArtifactError::NotAPolicy { .. })
            && told.contains("its configuration is `application/vnd.oci.image.config.v1+json`"),
        "{told}"
    );
    // The right configuration, and two layers.
    let config = Config::new("{}", "application/vnd.wasm.config.v0+json".to_owned(), None);
    client
        .push(
            &parsed,
            &[layer(), ImageLayer::oci_v1(b"more".to_vec(), None)],
            config,
            &RegistryAuth::Anonymous,
            None,
        )
        .await?;
    let error = registries()
        .pull(&reference, None, BYTES_MAX)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it has 2 layers"), "{error}");
    Ok(())
}

#[tokio::test]
async fn one_that_is_too_large_is_not_fetched() -> anyhow::Result<()> {
    let registry = registry::open().await?;
    let reference = reference(registry, "1")?;
    registries()
        .push(&reference, None, &artifact(&[7; 1001]), &title())
        .await?;
    let before = registry.requests()?.len();
    let error = registries().pull(&reference, None, 1000).await.unwrap_err();
    assert!(
        matches!(
            error,
            ArtifactError::TooLarge {
                bytes: Some(1001),
                limit: 1000,
                ..
            }
        ),
        "{error:?}"
    );
    let asked = registry.requests()?.split_off(before);
    let digest = refit::sandbox::digest(&[7; 1001]);
    assert!(
        asked.iter().all(|request| !request.path.contains(&digest)),
        "{asked:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() -> anyhow::Result<()> {
    let reference: ArtifactRef = "127.0.0.1:1/a/b:1".parse()?;
    let error = registries()
        .pull(&reference, None, BYTES_MAX)
        .await
        .unwrap_err();
    assert!(matches!(error, ArtifactError::Registry { .. }), "{error:?}");
    assert_eq!(error.to_string(), "cannot fetch `127.0.0.1:1/a/b:1`");
    Ok(())
}

/// A server to which a registry redirects is not the registry: what it asks for, it does not get.
#[tokio::test]
async fn login_for_a_policy_stays_with_its_registry() -> anyhow::Result<()> {
    let registry = registry::open().await?;
    let (own, other) = (
        Gateway::before(registry, Tokens::None).await?,
        Gateway::before(registry, Tokens::None).await?,
    );
    let realm = format!(
        r#"Bearer realm="http://{}/steal",service="x""#,
        other.host()
    );
    other.answer("GET", 401, &[("www-authenticate", &realm)]);
    let elsewhere = format!("http://{}/v2/", other.host());
    own.answer("GET", 307, &[("location", &elsewhere)]);
    let reference: ArtifactRef = format!("{}/policies/x:1", own.host()).parse()?;
    let login = Login::Password {
        username: USER.into(),
        password: SecretString::from(PASSWORD.to_owned()),
    };
    let pulled = registries().pull(&reference, Some(&login), BYTES_MAX).await;
    let error = pulled.unwrap_err();
    assert!(matches!(error, ArtifactError::Registry { .. }), "{error:?}");
    let asked = other.asked();
    assert!(
        asked.iter().all(|asked| asked.path != "/steal"),
        "{asked:?}"
    );
    Ok(())
}

#[tokio::test]
async fn web_page_is_no_policy() -> anyhow::Result<()> {
    let gateway = Gateway::before(registry::open().await?, Tokens::None).await?;
    gateway.answer("GET", 200, &[("content-type", "text/html")]);
    let reference: ArtifactRef = format!("{}/policies/x:1", gateway.host()).parse()?;
    let error = registries().pull(&reference, None, BYTES_MAX).await;
    let error = error.unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let cause = cause.unwrap_or_default();
    assert!(cause.contains("it is a web page"), "{error:?}");
    Ok(())
}

fn signed(pair: &KeyPair, bytes: &[u8]) -> anyhow::Result<String> {
    let signature = minisign::sign(Some(&pair.pk), &pair.sk, bytes, None, None)?;
    Ok(signature.into_string())
}

fn trusted(name: &str, pair: &KeyPair, verbs: Option<Vec<Verb>>) -> KeyConfig {
    KeyConfig {
        name: name.into(),
        key: pair.pk.to_base64(),
        verbs,
    }
}

#[test]
fn only_what_a_listed_key_signed_is_trusted() -> anyhow::Result<()> {
    let (release, matchers, stranger) = (
        KeyPair::generate_unencrypted_keypair()?,
        KeyPair::generate_unencrypted_keypair()?,
        KeyPair::generate_unencrypted_keypair()?,
    );
    let harmless = Some(vec![Verb::Inspect, Verb::Pull]);
    let trust = Trust::new(&[
        trusted("release", &release, None),
        trusted("matchers", &matchers, harmless.clone()),
    ])?;
    let bytes = b"component";
    let by = |pair: &KeyPair| trust.verify(bytes, signed(pair, bytes).ok().as_deref());
    let signer = by(&release)?.expect("keys are listed");
    assert_eq!((signer.name.as_str(), signer.verbs), ("release", None));
    let signer = by(&matchers)?.expect("keys are listed");
    assert_eq!((signer.name.as_str(), signer.verbs), ("matchers", harmless));

    assert_eq!(by(&stranger), Err(SignatureError::Untrusted));
    let signature = signed(&release, bytes)?;
    assert_eq!(
        trust.verify(b"componenT", Some(&signature)),
        Err(SignatureError::Untrusted)
    );
    assert_eq!(trust.verify(bytes, None), Err(SignatureError::Unsigned));
    assert_eq!(
        trust.verify(bytes, Some("junk")),
        Err(SignatureError::Malformed)
    );
    // The comment that minisign calls trusted is signed too.
    let altered = signature.replace("trusted comment: ", "trusted comment: x");
    assert!(trust.verify(bytes, Some(&altered)).is_err());
    Ok(())
}

#[test]
fn without_keys_nobody_needs_to_sign_and_a_bad_key_is_named() {
    assert_eq!(Trust::default().verify(b"x", None), Ok(None));
    let bad = KeyConfig {
        name: "release".into(),
        key: "RWnonsense".into(),
        verbs: None,
    };
    let error = Trust::new(&[bad]).err();
    assert_eq!(
        error,
        Some(SignatureError::BadKey {
            name: "release".into()
        })
    );
}
