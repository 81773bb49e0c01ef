//! Requests and answers as they are, over bollard's connection.
//!
//! bollard's typed calls drop what its model does not name: `Config.MacAddress` of Docker 20.10, any field of a newer engine,
//! and the `error` line in which Podman alone reports a failed pull. A replacement must lose nothing, so what is carried from
//! an old container to a new one, and what decides whether a pull succeeded, goes through here.
//!
//! bollard 0.21 has no public raw call. It has one that hands out a body as it comes (`export_image`) and a hook that may
//! rewrite a request; together they are one. To go when bollard offers a raw call of its own.

use bollard::errors::Error;
use bollard::{BollardRequest, Docker, body_full};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use serde_json::Value;

/// The largest document we take from an engine. An inspection of a container with everything set is some 20 kB.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is sent.
pub(super) struct RawRequest {
    pub(super) method: Method,
    /// Without the version: `/images/create`.
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

/// The answer's body, as it comes. An answer that is no success is an error with the engine's message.
pub(super) fn stream(
    docker: &Docker,
    version: &str,
    raw: RawRequest,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
    let version = version.to_owned();
    let rewriting = docker
        .clone()
        .with_request_modifier(move |request| rewrite(request, &version, &raw));
    rewriting.export_image("refit")
}

/// A whole answer of limited size.
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
    parts.uri = with_target(&parts.uri, &target);
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

/// Put the negotiated version before the path of a typed call. bollard 0.21 loses it on the way (`Url::join` with an absolute
/// path drops it), and an unversioned request means whatever version the engine likes best.
pub(super) fn versioned(request: BollardRequest, version: &str) -> BollardRequest {
    let (mut parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !target.starts_with("/v1.") {
        parts.uri = with_target(&parts.uri, &format!("/v{version}{target}"));
    }
    BollardRequest::from_parts(parts, body)
}

/// The same URI with another path and query. A target that is no URI leaves it as it was, and the engine answers 404.
fn with_target(uri: &http::Uri, target: &str) -> http::Uri {
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
    fn every_request_carries_the_negotiated_version() {
        let request = versioned(typed("unix://2f746d70/containers/json?all=true"), "1.41");
        assert_eq!(
            request.uri(),
            "unix://2f746d70/v1.41/containers/json?all=true"
        );
        assert_eq!(
            versioned(request, "1.41").uri(),
            "unix://2f746d70/v1.41/containers/json?all=true"
        );
    }

    #[test]
    fn a_raw_request_is_sent_as_written() {
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
