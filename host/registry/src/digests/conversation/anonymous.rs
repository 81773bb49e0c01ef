//! Gets tokens for a server to which a registry redirects. A registry may be only a name in front of another one, which gives
//! anybody a token. The login belongs to the registry, so Refit never sends it to the other server or to any server that it
//! names.

use http::{HeaderMap, HeaderValue, StatusCode};
use refit_model::secret::ExposeSecret as _;
use reqwest::Url;

use super::{Conversation, TOKEN_BYTES_MAX, secret_header};
use crate::challenge::{self, Challenge};
use crate::token::{self, Actions, Ask};

impl Conversation<'_> {
    /// Returns an anonymous authorization for `url`, whose response had these headers. `None` if there is none.
    pub(in crate::digests) async fn anonymous_token(
        &self,
        url: &Url,
        headers: &HeaderMap,
    ) -> Option<HeaderValue> {
        let challenge = challenge::parse(headers, url.scheme() == "http");
        let Ok(Some(Challenge::Bearer(realm))) = challenge else {
            return None;
        };
        let repository = repository_in(url)?;
        let Ask::Get(address) =
            token::ask(&realm, None, &[repository.to_owned()].into(), Actions::Pull)
        else {
            return None;
        };
        let answer = self.send(self.client.get(address)).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let body = self.body(answer, TOKEN_BYTES_MAX).await.ok()?;
        let granted = token::parse_token(&body, jiff::Timestamp::now())?;
        secret_header(&format!("Bearer {}", granted.value.expose_secret()))
    }
}

/// The other server may use another name for the repository.
fn repository_in(url: &Url) -> Option<&str> {
    let path = url.path().strip_prefix("/v2/")?;
    let (repository, _) = path
        .rsplit_once("/manifests/")
        .or_else(|| path.rsplit_once("/blobs/"))?;
    (!repository.is_empty()).then_some(repository)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_is_the_path_before_the_manifest() {
        for (url, expected) in [
            ("https://b.test/v2/a/b/manifests/latest", Some("a/b")),
            ("https://b.test/v2/a/blobs/sha256:0", Some("a")),
            ("https://b.test/v2//manifests/latest", None),
            ("https://b.test/a/manifests/latest", None),
            ("https://b.test/v2/", None),
        ] {
            assert_eq!(repository_in(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
