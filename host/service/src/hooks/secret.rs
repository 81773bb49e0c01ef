//! The secrets of webhooks: HMAC signatures and shared secrets. Both comparisons take constant time.

use refit_model::diagnostic::Diagnostic;
use refit_model::secret::{ExposeSecret as _, SecretString};
use ring::hmac;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use super::Unverified;

/// The minimum length of a secret. Anyone with a signed delivery can try billions of shorter ones a second.
const LENGTH_MIN: usize = 16;
/// The maximum number of secrets: one in use, and one that replaces it.
const SECRETS_MAX: usize = 2;
/// The maximum size of a secret file. A larger file is probably the wrong one.
const FILE_BYTES_MAX: usize = 4096;

/// The keys that sign deliveries. `Debug` shows no key.
#[derive(Debug)]
pub struct SigningKeys(Vec<hmac::Key>);

/// The secrets that deliveries carry, stored as hashes: comparing hashes takes the same time for any input.
#[derive(Debug)]
pub struct SharedSecrets(Vec<[u8; 32]>);

/// A body from a sender that has the secret. Refit parses no other body.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a>(&'a [u8]);

impl<'a> Verified<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    #[cfg(test)]
    pub(super) fn for_test(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

/// Parses the content of a variable or a file: one secret per line, two during a rotation. `origin` names the source in errors.
pub fn read(text: &SecretString, origin: &str) -> Result<Vec<SecretString>, Diagnostic> {
    let wrong = |problem: &str| {
        Err(Diagnostic::new(format!(
            "the secret of a webhook from {origin} cannot be used: {problem}"
        ))
        .hint("`openssl rand -hex 32` makes one"))
    };
    let text = text.expose_secret();
    if text.len() > FILE_BYTES_MAX {
        return wrong("it is longer than a page");
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Vec<&str> = lines.collect();
    if secrets.is_empty() {
        return wrong("there is none in it");
    }
    if secrets.len() > SECRETS_MAX {
        return wrong("it has more than two lines");
    }
    if secrets.iter().any(|secret| secret.len() < LENGTH_MIN) {
        return wrong("one with fewer than 16 characters can be guessed");
    }
    if !secrets
        .iter()
        .all(|secret| secret.chars().all(|c| c.is_ascii_graphic()))
    {
        return wrong("it contains white space or characters that are not ASCII");
    }
    Ok(secrets.into_iter().map(SecretString::from).collect())
}

impl SigningKeys {
    pub fn new(secrets: &[SecretString]) -> Self {
        let key = |secret: &SecretString| {
            hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes())
        };
        Self(secrets.iter().map(key).collect())
    }

    /// Verifies the signature of the raw body: `sha256=` and 64 hexadecimal digits.
    pub fn verify<'a>(&self, signature: &str, body: &'a [u8]) -> Result<Verified<'a>, Unverified> {
        let digits = signature.strip_prefix("sha256=").ok_or(Unverified::Wrong)?;
        let tag = from_hex(digits).ok_or(Unverified::Wrong)?;
        // Tries all keys, so that the time does not reveal which one matched.
        let verified = |key: &&hmac::Key| hmac::verify(key, body, &tag).is_ok();
        match self.0.iter().filter(verified).count() {
            0 => Err(Unverified::Wrong),
            _ => Ok(Verified(body)),
        }
    }
}

impl SharedSecrets {
    pub fn new(secrets: &[SecretString]) -> Self {
        let hash = |secret: &SecretString| Sha256::digest(secret.expose_secret().as_bytes()).into();
        Self(secrets.iter().map(hash).collect())
    }

    pub fn contains(&self, sent: &str) -> bool {
        let sent: [u8; 32] = Sha256::digest(sent.as_bytes()).into();
        let none = Choice::from(0);
        let secrets = self.0.iter();
        secrets
            .fold(none, |found, secret| found | secret.ct_eq(&sent))
            .into()
    }

    /// Returns whether both lists have a secret in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|secret| other.0.contains(secret))
    }

    /// Verifies a body that came with this secret.
    pub fn verify<'a>(&self, sent: &str, body: &'a [u8]) -> Result<Verified<'a>, Unverified> {
        match self.contains(sent) {
            true => Ok(Verified(body)),
            false => Err(Unverified::Wrong),
        }
    }
}

/// Decodes the hexadecimal digits of a SHA-256 hash.
fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        let value = nibble(pair[0])? * 16 + nibble(pair[1])?;
        *byte = u8::try_from(value).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    /// The example in GitHub's documentation of signatures.
    const GITHUBS: (&str, &[u8], &str) = (
        "It's a Secret to Everybody",
        b"Hello, World!",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
    );

    #[test]
    fn github_example_is_verified_and_variants_are_not() {
        let (key, body, signature) = GITHUBS;
        let keys = SigningKeys::new(&[secret("another one that is in use"), secret(key)]);
        assert_eq!(keys.verify(signature, body).unwrap().bytes(), body);
        assert!(
            keys.verify(&signature.to_uppercase().replace("SHA256", "sha256"), body)
                .is_ok()
        );
        for wrong in [
            "",
            "sha256=",
            &signature[7..],
            &signature[..70],
            &signature.replace('7', "8"),
            &format!("{signature}00"),
            &signature.replace("sha256", "sha1"),
            &signature.replace("75", "+5"),
        ] {
            assert_eq!(
                keys.verify(wrong, body).unwrap_err(),
                Unverified::Wrong,
                "{wrong}"
            );
        }
        assert!(keys.verify(signature, b"Hello, World").is_err());
        assert!(
            SigningKeys::new(&[secret("it's a secret to everybody")])
                .verify(signature, body)
                .is_err()
        );
    }

    #[test]
    fn shared_secret_is_compared_completely() {
        let shared =
            SharedSecrets::new(&[secret("correct-horse-battery"), secret("the-one-after-it")]);
        assert!(shared.contains("correct-horse-battery") && shared.contains("the-one-after-it"));
        for wrong in [
            "",
            "correct-horse-batter",
            "correct-horse-battery ",
            "Correct-horse-battery",
        ] {
            assert!(!shared.contains(wrong), "{wrong:?}");
            assert!(shared.verify(wrong, b"").is_err());
        }
    }

    #[test]
    fn weak_secret_is_refused_and_not_shown() {
        for (text, problem) in [
            ("short-secret", "fewer than 16"),
            (
                "first-secret-of-all\nsecond-secret-of-all\nthird-secret-of-all",
                "two lines",
            ),
            ("a secret with spaces in it", "white space"),
        ] {
            let error = read(&secret(text), "`X`").unwrap_err();
            assert!(error.error.contains(problem), "{error}");
            assert!(
                !error.to_string().contains("secret-of") && !error.to_string().contains("short-"),
                "{error}"
            );
        }
        assert!(read(&secret(" \n"), "`X`").is_err());
        let two = read(
            &secret(" first-secret-of-all \n\nsecond-secret-of-all\n"),
            "`X`",
        );
        assert_eq!(two.unwrap().len(), 2);
        let debug = format!("{:?}", SigningKeys::new(&[secret("correct-horse-battery")]));
        assert!(!debug.contains("correct"), "{debug}");
    }
}
