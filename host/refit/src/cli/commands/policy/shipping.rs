//! Inspects components, pushes them to a registry, and pulls them. These commands change no active policy.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use refit_model::diagnostic::Diagnostic;
use refit_revisions::artifact::registry::Title;
use refit_revisions::artifact::signature::Signer;
use refit_revisions::artifact::{Artifact, ArtifactRef, Carrier, Source, file};
use refit_revisions::permissions::Permissions;
use refit_sandbox::{DEFAULT_POLICY, Examined, Policy, limits};
use serde_json::{Value, json};

use super::super::super::{Status, print};
use super::super::isolation;
use super::print_json;
use crate::config::Config;
use crate::setup;

fn carrier(config: &Config) -> Result<Carrier, Diagnostic> {
    Ok(setup::carrier(config, setup::credentials(config)?))
}

/// Load the component like a swap, including its description, without swapping.
pub(super) async fn inspect(config: &Config, source: &Source) -> Result<Value, Diagnostic> {
    let carrier = carrier(config)?;
    let artifact = carrier.fetch(source, limits::COMPONENT_BYTES_MAX).await?;
    let signature_check = SignatureCheck::new(config, &artifact)?;
    let (origin, length) = (artifact.origin.clone(), artifact.bytes.len());
    let (examined, policy) = load(config, artifact).await?;
    let schema: Value = serde_json::from_str(&policy.config_schema).unwrap_or_default();
    let (signer, signature) = signature_check.into_parts();
    Ok(json!({
        "name": policy.name,
        "version": policy.version,
        "summary": policy.summary,
        "digest": policy.digest,
        "origin": origin,
        "signer": signer,
        "signature": signature,
        "bytes": length,
        "asks": Permissions::from_imports(&policy.imports),
        "imports": examined.imports,
        "exports": examined.exports,
        "config_schema": schema,
    }))
}

async fn load(config: &Config, artifact: Artifact) -> Result<(Examined, Policy), Diagnostic> {
    let engine = setup::policy_engine(config, isolation(config))?;
    let Artifact { bytes, origin, .. } = artifact;
    let examined = engine.examine(bytes.into(), &origin).await?;
    engine.check_contract(&examined)?;
    let compiled = engine.compile(examined.clone()).await?;
    let policy = engine.introduce(engine.link(compiled)?).await?;
    Ok((examined, policy))
}

/// The result of checking a signature on this machine. Inspecting or shipping a policy requires no trust.
enum SignatureCheck {
    By(Signer),
    /// Why no trusted key has signed it.
    Not(String),
}

impl SignatureCheck {
    fn new(config: &Config, artifact: &Artifact) -> Result<Self, Diagnostic> {
        let trust = setup::trust(config)?;
        let signature = artifact.signature.as_deref();
        Ok(match trust.verify(&artifact.bytes, signature) {
            Ok(Some(signer)) => Self::By(signer),
            Ok(None) => Self::Not(match signature {
                Some(_) => {
                    "there is one, and it was not checked: `[[policy.keys]]` lists nobody".into()
                }
                None => "there is none, and `[[policy.keys]]` asks for none".into(),
            }),
            Err(_) if artifact.bytes == DEFAULT_POLICY => {
                Self::Not("the built-in policy needs none".into())
            }
            Err(error) => Self::Not(error.to_string()),
        })
    }

    fn into_parts(self) -> (Option<Signer>, Option<String>) {
        match self {
            Self::By(signer) => (Some(signer), None),
            Self::Not(why) => (None, Some(why)),
        }
    }

    fn line(&self) -> String {
        match self {
            Self::By(signer) => format!("signed by         {signer}\n"),
            Self::Not(why) => format!("signature         {why}\n"),
        }
    }
}

pub(super) async fn push(
    config: &Config,
    file: PathBuf,
    reference: &ArtifactRef,
    json: bool,
) -> Result<Status, Diagnostic> {
    let carrier = carrier(config)?;
    let source = Source::File(file);
    let artifact = carrier.fetch(&source, limits::COMPONENT_BYTES_MAX).await?;
    let signature_check = SignatureCheck::new(config, &artifact)?;
    // A file that is not a policy here would not be one after a pull either.
    let (_, policy) = load(config, artifact.clone()).await?;
    let title = Title {
        name: policy.name.clone(),
        version: policy.version.clone(),
        summary: policy.summary.clone(),
    };
    let pinned = carrier.push(reference, &artifact, &title).await?;
    let pinned = Source::Registry(pinned);
    if !json {
        let title = policy.title();
        let line = signature_check.line();
        print(&format!("pushed            {title} to {pinned}\n{line}"));
        return Ok(Status::Done);
    }
    let (signer, signature) = signature_check.into_parts();
    print_json(&json!({
        "reference": pinned,
        "name": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "signer": signer,
        "signature": signature,
    }));
    Ok(Status::Done)
}

pub(super) async fn pull(
    config: &Config,
    reference: ArtifactRef,
    output: Option<PathBuf>,
    force: bool,
    json: bool,
) -> Result<Status, Diagnostic> {
    let path = output.unwrap_or_else(|| format!("{}.wasm", reference.name()).into());
    let signature_path = file::signature_of(&path);
    let taken = [&path, &signature_path]
        .into_iter()
        .find(|it| it.symlink_metadata().is_ok());
    if let Some(taken) = taken
        && !force
    {
        let error = Diagnostic::new(format!("`{}` is there already", taken.display()));
        return Err(error.hint("`--force` writes over it, `-o FILE` names another one"));
    }
    let carrier = carrier(config)?;
    let source = Source::Registry(reference);
    let artifact = carrier.fetch(&source, limits::COMPONENT_BYTES_MAX).await?;
    let signature_check = SignatureCheck::new(config, &artifact)?;
    let cannot = |error: io::Error| {
        Diagnostic::new(format!("cannot write `{}`", path.display())).because(error.to_string())
    };
    // An old signature must never be next to new bytes.
    match fs::remove_file(&signature_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    put(&path, &artifact.bytes).map_err(cannot)?;
    if let Some(signature) = &artifact.signature {
        put(&signature_path, signature.as_bytes()).map_err(cannot)?;
    }
    if !json {
        let line = signature_check.line();
        let (path, origin) = (path.display(), &artifact.origin);
        print(&format!("pulled            {origin} to {path}\n{line}"));
        return Ok(Status::Done);
    }
    let (signer, signature) = signature_check.into_parts();
    print_json(&json!({
        "file": path.display().to_string(),
        "reference": artifact.origin,
        "digest": refit_sandbox::digest(&artifact.bytes),
        "signer": signer,
        "signature": signature,
    }));
    Ok(Status::Done)
}

/// Write atomically: a reader finds the whole file or none.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary_file = path.as_os_str().to_owned();
    temporary_file.push(".new");
    let temporary_file = PathBuf::from(temporary_file);
    let written = File::create(&temporary_file)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary_file, path));
    written.inspect_err(|_| drop(fs::remove_file(&temporary_file)))
}
