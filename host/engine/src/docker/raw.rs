//! Sends raw requests and reads raw responses over bollard's connection.
//!
//! bollard's typed calls drop fields that its model does not name: `Config.MacAddress` of Docker 20.10, any field of a newer
//! engine, and the `error` line in which Podman alone reports a failed pull. A replacement must lose nothing, so the
//! configuration that goes from an old container to a new one, and the response that decides whether a pull succeeded, go
//! through here.
//!
//! bollard 0.21 has no public raw call. It has a call that returns an unparsed body (`export_image`) and a hook that may
//! rewrite a request; Refit combines the two. Remove this when bollard offers a raw call.

use bollard::errors::Error;
use bollard::{BollardRequest, Docker, body_full};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use serde_json::Value;

/// The largest document that Refit accepts from an engine. An inspection of a container with everything set is some 20 kB.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A request to send.
pub(super) struct RawRequest {
    pub(super) method: Method,
    /// The path without the version: `/images/create`.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    /// The value of `X-Registry-Auth`.
    pub(super) registry_auth: Option<HeaderValue>,
    pub(super) body: Option<Value>,
}

impl RawRequest {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            query: Vec::new(),
            registry_auth: None,
            body: None,
        }
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            ..Self::get(path)
        }
    }
}

/// Streams the body of the response. An unsuccessful response is an error with the engine's message.
pub(super) fn stream(
    docker: &Docker,
    version: &str,
    raw: RawRequest,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
    let version = version.to_owned();
    let client = docker
        .clone()
        .with_request_modifier(move |request| rewrite(request, &version, &raw));
    client.export_image("refit")
}

/// Reads a whole response of limited size.
pub(super) async fn document(
    docker: &Docker,
    version: &str,
    raw: RawRequest,
) -> Result<Bytes, Error> {
    let mut stream = std::pin::pin!(stream(docker, version, raw));
    let mut document = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        document.extend_from_slice(&chunk?);
        if document.len() > DOCUMENT_BYTES_MAX {
            return Err(std::io::Error::other(format!(
                "the answer is larger than {DOCUMENT_BYTES_MAX} bytes"
            ))
            .into());
        }
    }
    Ok(document.freeze())
}

fn rewrite(request: BollardRequest, version: &str, raw: &RawRequest) -> BollardRequest {
    let (mut parts, _) = request.into_parts();
    parts.method = raw.method.clone();
    let mut target = format!("/v{version}{}", raw.path);
    if !raw.query.is_empty() {
        target.push('?');
        target.push_str(
            &form_urlencoded::Serializer::new(String::new())
                .extend_pairs(&raw.query)
                .finish(),
        );
    }
    parts.uri = replace_target(&parts.uri, &target);
    if let Some(value) = &raw.registry_auth {
        parts.headers.insert("X-Registry-Auth", value.clone());
    }
    let body = raw
        .body
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    BollardRequest::from_parts(parts, body_full(body.into()))
}

/// Puts the negotiated version before the path of a typed call. bollard 0.21 loses it (`Url::join` with an absolute path drops
/// it), and for an unversioned request the engine chooses a version itself.
pub(super) fn add_version(request: BollardRequest, version: &str) -> BollardRequest {
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !target.starts_with("/v1.") {
        parts.uri = replace_target(&parts.uri, &format!("/v{version}{target}"));
    }
    BollardRequest::from_parts(parts, body)
}

/// Replaces the path and query of a URI. An invalid target leaves the URI unchanged, and the engine returns 404.
fn replace_target(uri: &http::Uri, target: &str) -> http::Uri {
    let mut parts = uri.clone().into_parts();
    if let Ok(path_and_query) = target.parse() {
        parts.path_and_query = Some(path_and_query);
    }
    http::Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(uri: &str) -> BollardRequest {
        http::Request::builder()
            .uri(uri)
            .body(body_full(Bytes::new()))
            .unwrap()
    }

    #[test]
    fn typed_request_gets_negotiated_version() {
        let request = add_version(typed("unix://2f746d70/containers/json?all=true"), "1.41");
        assert_eq!(
            request.uri(),
            "unix://2f746d70/v1.41/containers/json?all=true"
        );
        assert_eq!(
            add_version(request, "1.41").uri(),
            "unix://2f746d70/v1.41/containers/json?all=true"
        );
    }

    #[test]
    fn raw_request_is_sent_unchanged() {
        let raw = RawRequest {
            query: vec![
                ("fromImage", "127.0.0.1:5000/a/b".into()),
                ("tag", "x y".into()),
            ],
            registry_auth: Some(HeaderValue::from_static("e30=")),
            body: Some(serde_json::json!({"MacAddress": "02:42:ac:11:00:02"})),
            ..RawRequest::post("/images/create")
        };
        let request = rewrite(typed("unix://2f746d70/images/refit/get"), "1.41", &raw);
        assert_eq!(request.method(), Method::POST);
        assert_eq!(
            request.uri(),
            "unix://2f746d70/v1.41/images/create?fromImage=127.0.0.1%3A5000%2Fa%2Fb&tag=x+y"
        );
        assert_eq!(request.headers()["X-Registry-Auth"], "e30=");
    }
}
