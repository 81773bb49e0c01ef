//! Encodes a registry login for the engine.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use http::HeaderValue;
use refit_model::secret::{ExposeSecret as _, Login};
use serde_json::json;

/// Builds `X-Registry-Auth`: JSON in URL-safe base64, padded. bollard 0.21 uses the standard alphabet, whose `+` and `/` the
/// engine cannot decode: it then pulls anonymously and reports that the image is missing.
pub(super) fn registry_auth(login: &Login) -> HeaderValue {
    let payload = match login {
        Login::Password { username, password } => {
            json!({ "username": username, "password": password.expose_secret() })
        }
        Login::IdentityToken(token) => json!({ "identitytoken": token.expose_secret() }),
    };
    let encoded = URL_SAFE.encode(payload.to_string());
    let mut value = HeaderValue::try_from(encoded).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn login_is_url_safe_base64() {
        let login = Login::Password {
            username: "me".into(),
            password: "ÿÿ>>??~~".to_owned().into(),
        };
        let header = registry_auth(&login);
        let text = header.to_str().unwrap();
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)),
            "{text}"
        );
        assert!(
            !format!("{header:?}").contains(text),
            "a login must not be printed"
        );
        let decoded = URL_SAFE.decode(text).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&decoded).unwrap(),
            json!({"username": "me", "password": "ÿÿ>>??~~"})
        );
    }
}
