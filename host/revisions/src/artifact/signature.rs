//! Signatures of policies: detached minisign signatures over the bytes, by keys that the operator lists.
//!
//! A key may be limited to verbs: a policy signed with it may never do more, whatever the grants allow.

use minisign_verify::{PublicKey, Signature};
use refit_model::diagnostic::Hints;
use refit_model::grants::Verb;

/// The maximum size of a signature. It has four lines; its trusted comment may be long, but not that long.
pub const SIGNATURE_BYTES_MAX: usize = 8 << 10;

/// A key that the operator trusts.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Whose it is, for people.
    pub name: String,
    /// The public key as minisign prints it, the second line of its `.pub` file.
    #[schemars(regex(pattern = "^RW[A-Za-z0-9+/]{54}$"))]
    pub key: String,
    /// What a policy that is signed with it may do at most, of the words of `[grants] verbs`. Unset: all that the grants say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbs: Option<Vec<Verb>>,
}

/// The trusted keys. Without any, no signature is required.
#[derive(Clone, Default)]
pub struct Trust(Vec<(KeyConfig, PublicKey)>);

/// Who signed, and what that allows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Signer {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verbs: Option<Vec<Verb>>,
}

impl KeyConfig {
    /// Returns the signer of this key.
    pub fn signer(&self) -> Signer {
        Signer {
            name: self.name.clone(),
            verbs: self.verbs.clone(),
        }
    }
}

/// Writes `release (inspect, pull)`.
impl std::fmt::Display for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        let Some(verbs) = &self.verbs else {
            return Ok(());
        };
        let verbs: Vec<String> = verbs.iter().map(ToString::to_string).collect();
        match verbs.as_slice() {
            [] => f.write_str(" (nothing)"),
            verbs => write!(f, " ({})", verbs.join(", ")),
        }
    }
}

/// Why a policy is not trusted, or a key cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SignatureError {
    #[error("the key `{name}` in `[[policy.keys]]` is no minisign public key")]
    BadKey { name: String },
    #[error("it is not signed, and `[[policy.keys]]` lists who must sign it")]
    Unsigned,
    #[error("its signature is no minisign signature")]
    Malformed,
    #[error(
        "its signature is by none of the keys in `[[policy.keys]]`, or of other bytes than these"
    )]
    Untrusted,
}

impl Hints for SignatureError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::BadKey { .. } => vec!["it is the second line of minisign's `.pub` file".into()],
            Self::Unsigned => vec![
                "`minisign -Sm policy.wasm` writes `policy.wasm.minisig`; keep it beside the file, `refit policy push` takes it along".into(),
            ],
            Self::Malformed | Self::Untrusted => {
                vec!["sign the very bytes that are shipped, after the last build step".into()]
            }
        }
    }
}

impl Trust {
    pub fn new(keys: &[KeyConfig]) -> Result<Self, SignatureError> {
        let key = |config: &KeyConfig| match PublicKey::from_base64(config.key.trim()) {
            Ok(key) => Ok((config.clone(), key)),
            Err(_) => Err(SignatureError::BadKey {
                name: config.name.clone(),
            }),
        };
        Ok(Self(keys.iter().map(key).collect::<Result<_, _>>()?))
    }

    /// Verifies a signature, and returns the signer; `None` if no signature is required.
    pub fn verify(
        &self,
        bytes: &[u8],
        signature: Option<&str>,
    ) -> Result<Option<Signer>, SignatureError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let signature = signature.ok_or(SignatureError::Unsigned)?;
        if signature.len() > SIGNATURE_BYTES_MAX {
            return Err(SignatureError::Malformed);
        }
        let signature = Signature::decode(signature).map_err(|_| SignatureError::Malformed)?;
        // Minisign no longer makes legacy signatures, which cover the bytes themselves.
        let allow_legacy = false;
        let is_signer = |(_, key): &&(KeyConfig, PublicKey)| {
            key.verify(bytes, &signature, allow_legacy).is_ok()
        };
        let (config, _) = self
            .0
            .iter()
            .find(is_signer)
            .ok_or(SignatureError::Untrusted)?;
        Ok(Some(config.signer()))
    }
}
