//! Requests the digests of all images that a refresh is about to pull, in one batch: an up-to-date image costs one HEAD and no
//! pull.
//!
//! Refit sends the requests, not the engine. If a request fails, the image is pulled as usual. If the registry limits the rate,
//! Refit does not pull either.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use refit_model::container::Image;
use refit_model::image::{ImageRef, Platform};
use refit_registry::digests::{DigestError, Digests, Found, Reason};

/// The time limit for one batch, for a machine that cannot reach a registry which its engine reaches.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The digests that were requested for one refresh. By default none are requested, and none are known.
#[derive(Default)]
pub struct DigestPrefetch {
    digests: Option<Arc<Digests>>,
    found: Mutex<Found>,
}

impl DigestPrefetch {
    pub fn new(digests: Arc<Digests>) -> Self {
        Self {
            digests: Some(digests),
            found: Mutex::default(),
        }
    }

    /// Request the digests, as far as the registries return them in time.
    pub async fn request(&self, images: &[ImageRef]) {
        let Some(digests) = &self.digests else { return };
        let request = digests.of(images.iter().cloned());
        if let Ok(found) = tokio::time::timeout(BATCH_TIMEOUT, request).await {
            self.lock().extend(found);
        }
    }

    /// The digest, if a pull would fetch the image that is here already. Returns an error if the registry limits the rate.
    pub fn is_here(
        &self,
        image: &ImageRef,
        here: &Image,
        platform: Option<&Platform>,
    ) -> Result<Option<String>, Box<DigestError>> {
        let there = match self.lock().get(image).cloned() {
            Some(Ok(digest)) => digest,
            Some(Err(error)) if matches!(error.reason, Reason::RateLimited { .. }) => {
                return Err(Box::new(error));
            }
            Some(Err(_)) | None => return Ok(None),
        };
        let same = here.has_digest(image, &there);
        // A digest can name an index of several platforms, of which one is here.
        let fits = platform.is_none_or(|platform| platform.is(&here.os, &here.architecture));
        Ok((same && fits).then_some(there))
    }

    /// The digest that the registry served before the pull.
    pub fn digest(&self, image: &ImageRef) -> Option<String> {
        self.lock().get(image)?.clone().ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::image::ImageId;

    const HERE: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    /// The engine lists it first.
    const OLDER: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    const OTHER: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    fn image() -> ImageRef {
        "ghcr.io/acme/app:1".parse().unwrap()
    }

    fn here() -> Image {
        Image {
            id: ImageId::new("sha256:3"),
            repo_digests: vec![
                format!("ghcr.io/acme/app@{OLDER}"),
                format!("ghcr.io/acme/app@{HERE}"),
            ],
            os: "linux".into(),
            architecture: "amd64".into(),
            config: refit_model::container::Object::new(),
            content: None,
        }
    }

    fn prefetch(found: Result<&str, Reason>) -> DigestPrefetch {
        let found = found.map(str::to_owned).map_err(|reason| DigestError {
            registry: "ghcr.io".into(),
            image: image(),
            reason,
        });
        DigestPrefetch {
            digests: None,
            found: Mutex::new([(image(), found)].into()),
        }
    }

    fn is_here(prefetch: &DigestPrefetch, platform: Option<&str>) -> Option<String> {
        let platform = platform.map(|it| it.parse().unwrap());
        prefetch
            .is_here(&image(), &here(), platform.as_ref())
            .unwrap()
    }

    #[test]
    fn what_is_here_is_what_the_registry_has_for_this_platform() {
        let same = prefetch(Ok(HERE));
        assert_eq!(is_here(&same, None).as_deref(), Some(HERE));
        assert_eq!(is_here(&same, Some("linux/amd64")).as_deref(), Some(HERE));
        assert_eq!(is_here(&same, Some("linux/arm64")), None);
        assert_eq!(is_here(&prefetch(Ok(OLDER)), None).as_deref(), Some(OLDER));
        assert_eq!(is_here(&prefetch(Ok(OTHER)), None), None);
        assert_eq!(is_here(&DigestPrefetch::default(), None), None);
    }

    #[test]
    fn what_could_not_be_found_out_is_pulled_but_not_where_nobody_is_to_ask() {
        for reason in [
            Reason::NotFound,
            Reason::Unavailable {
                problem: "refused".into(),
            },
            Reason::Budget {
                until: jiff::Timestamp::MAX,
            },
        ] {
            assert_eq!(is_here(&prefetch(Err(reason)), None), None);
        }
        let limited = prefetch(Err(Reason::RateLimited {
            until: jiff::Timestamp::MAX,
        }));
        limited.is_here(&image(), &here(), None).unwrap_err();
    }
}
