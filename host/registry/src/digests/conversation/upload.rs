//! Pushes to a registry: blobs, then the manifest that names them.
//!
//! As elsewhere here, the login and its tokens go to the registry alone. The registry may redirect the upload of a blob to
//! separate storage; the authorization for that is in the URL.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use http::{Method, StatusCode};
use refit_model::image::ImageRef;
use reqwest::{Response, Url};

use super::{Authorization, Conversation, Question};
use crate::address::is_same_server;
use crate::digests::wire::resolve_redirect;
use crate::digests::{REQUEST, Reason};

const DIGEST_HEADER: &str = "docker-content-digest";

impl Conversation<'_> {
    /// Uploads a blob to the repository, unless it is there already.
    pub(in crate::digests) async fn push_blob(
        &self,
        image: &ImageRef,
        digest: &str,
        bytes: Bytes,
        limit: Duration,
    ) -> Result<(), Reason> {
        let path = format!("{}/blobs/{digest}", image.path());
        let question = Question::Look {
            method: Method::HEAD,
            path: &path,
            limit: REQUEST,
        };
        let there = self.send_authorized(image, &question).await?;
        match there.status() {
            StatusCode::OK => return Ok(()),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refusal(there).await),
        }
        let uploads = self.url(&format!("{}/blobs/uploads/", image.path()))?;
        let question = Question::Write(Write {
            method: Method::POST,
            url: &uploads,
            media_type: None,
            body: Bytes::new(),
            limit: REQUEST,
        });
        let begun = self.send_authorized(image, &question).await?;
        if begun.status() != StatusCode::ACCEPTED {
            return Err(self.refusal(begun).await);
        }
        let mut place =
            resolve_redirect(&uploads, begun.headers()).ok_or_else(|| nonsense(LOCATION))?;
        place.query_pairs_mut().append_pair("digest", digest);
        let question = Question::Write(Write {
            method: Method::PUT,
            url: &place,
            media_type: Some("application/octet-stream"),
            body: bytes,
            limit,
        });
        let sent = self.send_authorized(image, &question).await?;
        match sent.status() {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.refusal(sent).await),
        }
    }

    /// Uploads a manifest under this tag, or the version in the reference.
    pub(in crate::digests) async fn push_manifest(
        &self,
        image: &ImageRef,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<(), Reason> {
        let version = image.tag().or(image.digest()).unwrap_or("latest");
        let url = self.url(&format!("{}/manifests/{version}", image.path()))?;
        let digest = refit_model::image::sha256(&manifest);
        let question = Question::Write(Write {
            method: Method::PUT,
            url: &url,
            media_type: Some(media_type),
            body: manifest,
            limit: REQUEST,
        });
        let put = self.send_authorized(image, &question).await?;
        if put.status() != StatusCode::CREATED {
            return Err(self.refusal(put).await);
        }
        match put.headers().get(DIGEST_HEADER) {
            Some(said) if said.as_bytes() != digest.as_bytes() => Err(Reason::Nonsense {
                problem: "it has another digest for the manifest that it was sent".to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn url(&self, path: &str) -> Result<Url, Reason> {
        let url = self.registry.root.join(path);
        url.map_err(|_| nonsense("address"))
    }

    /// Sends a request without following redirects: data goes only to its intended server.
    pub(super) async fn write(
        &self,
        write: &Write<'_>,
        by: &Authorization,
    ) -> Result<Response, Reason> {
        let Write {
            method,
            url,
            media_type,
            body,
            limit,
        } = write;
        let mut request = self
            .client
            .request(method.clone(), (*url).clone())
            .timeout(*limit)
            .body(body.clone());
        if let Some(media_type) = media_type {
            request = request.header(CONTENT_TYPE, *media_type);
        }
        if let Some(value) = by.header()
            && is_same_server(url, &self.registry.root)
        {
            request = request.header(AUTHORIZATION, value.clone());
        }
        self.send(request).await
    }
}

/// A request that changes the registry.
pub(super) struct Write<'a> {
    method: Method,
    url: &'a Url,
    media_type: Option<&'a str>,
    body: Bytes,
    limit: Duration,
}

fn nonsense(what: impl std::fmt::Display) -> Reason {
    Reason::Nonsense {
        problem: format!("its {what} for an upload is none that can be used"),
    }
}
