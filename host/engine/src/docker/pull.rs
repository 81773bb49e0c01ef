//! Reads the response to a pull: a stream of JSON lines that may start with "200 OK" and fail afterwards.

use bollard::errors::Error;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use refit_model::image::{ImageRef, Platform, is_digest};
use refit_model::pull::LayerProgress;
use serde::Deserialize;

use crate::refusal::is_about_platform;

/// The longest accepted line. Docker's are a few hundred bytes.
const LINE_BYTES_MAX: usize = 256 * 1024;

pub(super) enum Failure {
    /// The engine refused before the stream, or the connection broke within it.
    Call(Error),
    /// An error inside the stream.
    Refused(String),
    /// The stream ended, and no line had said that the pull was complete.
    Incomplete,
}

/// Builds `fromImage` and `tag`; a digest takes the place of the tag.
pub(super) fn build_query(
    image: &ImageRef,
    platform: Option<&Platform>,
) -> Vec<(&'static str, String)> {
    let pin = image.digest().or(image.tag()).unwrap_or("latest");
    let mut query = vec![("fromImage", image.repository()), ("tag", pin.to_owned())];
    query.extend(platform.map(|platform| ("platform", platform.to_string())));
    query
}

#[derive(Deserialize)]
struct Line {
    status: Option<String>,
    id: Option<String>,
    #[serde(rename = "progressDetail")]
    progress: Option<Progress>,
    /// Podman sends only this.
    error: Option<String>,
    /// Docker sends both.
    #[serde(rename = "errorDetail")]
    error_detail: Option<ErrorDetail>,
}

#[derive(Deserialize)]
struct Progress {
    current: Option<u64>,
    total: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: Option<String>,
}

/// The meaning of a line for the pull as a whole.
enum LineMeaning {
    /// Whether the whole pull is complete, if this is the last line.
    Complete(bool),
    /// The digest that the registry serves under the reference.
    Digest(String),
}

/// Reads the whole response. Returns the digest that the engine reported, if it did.
pub(super) async fn read_response(
    chunks: impl Stream<Item = Result<Bytes, Error>>,
    progress: &(dyn Fn(LayerProgress) + Send + Sync),
) -> Result<Option<String>, Failure> {
    let mut chunks = std::pin::pin!(chunks);
    let mut rest = BytesMut::new();
    let (mut complete, mut digest) = (false, None);
    let mut handle_line = |line: &[u8]| -> Result<(), Failure> {
        match parse_line(line, progress)? {
            Some(LineMeaning::Complete(is_complete)) => complete = is_complete,
            Some(LineMeaning::Digest(pulled)) => digest = Some(pulled),
            None => {}
        }
        Ok(())
    };
    while let Some(chunk) = chunks.next().await {
        rest.extend_from_slice(&chunk.map_err(Failure::Call)?);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            handle_line(&rest.split_to(end + 1))?;
        }
        if rest.len() > LINE_BYTES_MAX {
            return Err(Failure::Refused(format!(
                "a line of the engine's answer is longer than {LINE_BYTES_MAX} bytes"
            )));
        }
    }
    handle_line(&rest)?;
    match complete {
        true => Ok(digest),
        false => Err(Failure::Incomplete),
    }
}

/// Parses one line. `None` for a line without information.
fn parse_line(
    line: &[u8],
    progress: &(dyn Fn(LayerProgress) + Send + Sync),
) -> Result<Option<LineMeaning>, Failure> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let Ok(line) = serde_json::from_slice::<Line>(line) else {
        return Err(Failure::Refused(
            "a line of the engine's answer is no JSON".into(),
        ));
    };
    let in_stream = line
        .error_detail
        .and_then(|detail| detail.message)
        .or(line.error)
        .filter(|error| !error.is_empty());
    if let Some(error) = in_stream {
        return Err(Failure::Refused(error));
    }
    let Some(status) = line.status else {
        return Ok(None);
    };
    if line.id.is_none()
        && let Some(digest) = status.strip_prefix("Digest: ")
        && is_digest(digest)
    {
        return Ok(Some(LineMeaning::Digest(digest.to_owned())));
    }
    // Docker 20.10 warns so about an image without an index, after `Status: `, and has moved the tag by then.
    if let Some(warning) = status.strip_prefix("WARNING: ")
        && is_about_platform(warning)
    {
        return Err(Failure::Refused(warning.to_owned()));
    }
    // Docker ends with `Status: Downloaded newer image for …` or `Status: Image is up to date for …`. Podman ends with `Pull
    // complete` or `Already exists` for the image's id; Docker sends these for layers too, but never as its last line.
    let complete = status.starts_with("Status: ")
        || matches!(
            status.as_str(),
            "Pull complete" | "Already exists" | "Download complete"
        );
    if let Some(layer) = line.id {
        let (current_bytes, total_bytes) = line
            .progress
            .map_or((None, None), |it| (it.current, it.total));
        progress(LayerProgress {
            layer,
            status,
            current_bytes,
            total_bytes,
        });
    }
    Ok(Some(LineMeaning::Complete(complete)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pulled(chunks: &[&str]) -> Result<Option<String>, Failure> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok(Bytes::from((*chunk).to_owned())))
            .collect();
        read_response(futures_util::stream::iter(chunks), &|_| {}).await
    }

    #[tokio::test]
    async fn completion_in_split_chunks_is_recognized() {
        let chunks = [
            "{\"status\":\"Pulling from a/b\",\"id\":\"latest\"}\r\n{\"sta",
            "tus\":\"Status: Image is up to date for x\"}\r\n",
        ];
        assert!(pulled(&chunks).await.is_ok());
    }

    #[tokio::test]
    async fn warning_about_the_platform_is_a_refusal() {
        let lines = concat!(
            "{\"status\":\"Status: Image is up to date for a/b\"}\r\n",
            "{\"status\":\"WARNING: image with reference a/b was found but does not match the specified platform: ",
            "wanted linux/arm64, actual: linux/amd64\"}\r\n",
        );
        let Err(Failure::Refused(said)) = pulled(&[lines]).await else {
            panic!("it is no image for the platform that was asked for");
        };
        assert!(said.starts_with("image with reference"), "{said}");
    }

    #[tokio::test]
    async fn pull_reports_the_digest_that_it_brought() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pulled = async |digest: &str| {
            let lines = format!(
                "{{\"status\":\"Digest: {digest}\"}}\n{{\"status\":\"Status: Downloaded newer image for x\"}}\n"
            );
            pulled(&[&lines]).await.ok().flatten()
        };
        assert_eq!(pulled(&digest).await, Some(digest));
        assert_eq!(pulled("sha256:0").await, None);
        // Podman reports only that the pull is complete.
        let podman = "{\"status\":\"Already exists\",\"id\":\"abc\"}\n";
        assert!(matches!(super::tests::pulled(&[podman]).await, Ok(None)));
    }

    #[tokio::test]
    async fn error_after_200_is_a_failure() {
        let docker = r#"{"errorDetail":{"message":"no space left on device"},"error":"no space left on device"}"#;
        assert!(
            matches!(pulled(&[docker]).await, Err(Failure::Refused(message)) if message == "no space left on device")
        );
        let podman = r#"{"progressDetail":{},"error":"unauthorized: authentication required"}"#;
        assert!(
            matches!(pulled(&[podman]).await, Err(Failure::Refused(message)) if message.contains("unauthorized"))
        );
    }

    #[tokio::test]
    async fn truncated_stream_is_a_failure() {
        assert!(matches!(
            pulled(&["{\"status\":\"Downloading\",\"id\":\"abc\"}\n"]).await,
            Err(Failure::Incomplete)
        ));
        assert!(matches!(pulled(&[]).await, Err(Failure::Incomplete)));
    }
}
