//! A sink: its address, its payload format, and the delivery of a message.
//!
//! Addresses and tokens are secrets, so errors contain only the name of the sink. Refit follows no redirect: a redirect would
//! send the message, and perhaps the token, to another server.

use std::time::Duration;

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::secret::{ExposeSecret as _, SecretString};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::message::{Message, truncate};
use super::notification::{Kind, Urgency};

/// The limits of one attempt. Receivers normally answer within a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pauses before the second and the third attempt. Longer ones would delay later messages.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];
/// The longest `Retry-After` that Refit respects. If a sink wants a longer pause, the next notification tries again.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The maximum length of an error answer.
const ANSWER_BYTES_MAX: usize = 300;
/// ntfy turns a longer text into a file.
const NTFY_BYTES_MAX: usize = 4000;
/// Slack splits a longer text.
const SLACK_BYTES_MAX: usize = 3800;

/// How a sink wants to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PayloadFormat {
    /// JSON of our own.
    Webhook,
    /// `{"text": …}`, which Mattermost, Rocket.Chat and others take too.
    Slack,
    Ntfy,
}

/// A receiver of notifications. See the [module documentation](self).
#[derive(Debug)]
pub struct Sink {
    pub name: String,
    pub format: PayloadFormat,
    url: SecretString,
    token: Option<SecretString>,
    pub on: Vec<Kind>,
    pub batch: Duration,
}

/// An invalid configuration of a sink.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("the address of the sink `{sink}` is no URL of `https://` or `http://`")]
    Address { sink: String },
    #[error("the token of the sink `{sink}` does not fit into an HTTP header")]
    Token { sink: String },
}

impl Hints for SinkError {}

/// A message that the sink did not accept.
#[derive(Debug, thiserror::Error)]
pub enum Undelivered {
    #[error("`{sink}` could not be reached")]
    Unreachable {
        sink: String,
        source: reqwest::Error,
    },
    #[error("`{sink}` answered {status}{}", if .said.is_empty() { String::new() } else { format!(": {}", .said) })]
    Refused {
        sink: String,
        status: StatusCode,
        said: String,
        retry_after: Option<Duration>,
    },
}

impl Hints for Undelivered {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused { status, .. } if status.is_redirection() => {
                vec!["redirects are not followed: set the address that it leads to".into()]
            }
            Self::Refused { status, .. } if matches!(status.as_u16(), 401 | 403) => {
                vec!["its token is missing or wrong".into()]
            }
            Self::Refused { status, .. } if matches!(status.as_u16(), 404 | 410) => {
                vec!["its address is wrong, or no longer taken".into()]
            }
            Self::Refused { .. } | Self::Unreachable { .. } => vec![],
        }
    }
}

impl Undelivered {
    /// Returns whether another attempt may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
            }
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable { .. } => None,
        }
    }
}

/// Creates the HTTP client that all sinks share.
pub fn client() -> Result<Client, Diagnostic> {
    // If another call was first, it has installed the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(ATTEMPT_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| {
            let diagnostic = Diagnostic::new("cannot notify anybody");
            refit_model::diagnostic::causes(&error)
                .into_iter()
                .fold(diagnostic, Diagnostic::because)
        })
}

impl Sink {
    pub fn new(
        name: &str,
        format: PayloadFormat,
        url: SecretString,
        token: Option<SecretString>,
    ) -> Result<Self, SinkError> {
        let trimmed = |secret: &SecretString| SecretString::from(secret.expose_secret().trim());
        let url = trimmed(&url);
        let parsed = Url::parse(url.expose_secret()).ok();
        let parsed =
            parsed.filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host());
        if parsed.is_none() {
            return Err(SinkError::Address { sink: name.into() });
        }
        let token = token.as_ref().map(trimmed);
        if let Some(token) = &token
            && (token.expose_secret().is_empty() || bearer(token).is_none())
        {
            return Err(SinkError::Token { sink: name.into() });
        }
        Ok(Self {
            name: name.to_owned(),
            format,
            url,
            token,
            on: vec![],
            batch: Duration::ZERO,
        })
    }

    /// Sets the kinds of notifications, and how long to collect them for one message.
    #[must_use]
    pub fn with_kinds(mut self, on: Vec<Kind>, batch: Duration) -> Self {
        self.on = on;
        self.batch = batch;
        self
    }

    /// Delivers a message with a few attempts. It ends within three minutes whatever the sink does. If `closing` is set, the
    /// current attempt is the last.
    pub async fn deliver(
        &self,
        client: &Client,
        message: &Message,
        closing: &CancellationToken,
    ) -> Result<StatusCode, Undelivered> {
        for pause in PAUSES {
            match self.post(client, message).await {
                Err(error) if error.is_transient() && !closing.is_cancelled() => {
                    let pause = error.retry_after().unwrap_or(pause).min(PAUSE_MAX);
                    tracing::debug!(
                        ?pause,
                        "notification failed, retrying: {}",
                        Diagnostic::of(&error).sentence()
                    );
                    let _ = tokio::time::timeout(pause, closing.cancelled()).await;
                }
                result => return result,
            }
        }
        self.post(client, message).await
    }

    /// Delivers a message with one attempt.
    pub async fn post(
        &self,
        client: &Client,
        message: &Message,
    ) -> Result<StatusCode, Undelivered> {
        let (headers, body) = self.build_request(message);
        let request = client
            .post(self.url.expose_secret())
            .headers(headers)
            .body(body);
        let unreachable = |source: reqwest::Error| Undelivered::Unreachable {
            sink: self.name.clone(),
            // The address may be a secret.
            source: source.without_url(),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(status);
        }
        let retry_after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(parse_retry_after);
        Err(Undelivered::Refused {
            sink: self.name.clone(),
            status,
            said: self.error_text(answer).await,
            retry_after,
        })
    }

    /// Returns the error text of the sink. It is empty if it might repeat a secret of ours.
    async fn error_text(&self, mut answer: Response) -> String {
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() >= ANSWER_BYTES_MAX {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let path = Url::parse(self.url.expose_secret()).map(|url| url.path().to_owned());
        let token = self.token.as_ref().map(|token| token.expose_secret());
        let secrets = [Some(self.url.expose_secret()), path.as_deref().ok(), token];
        // A part of a secret at the end of a truncated text could not be found.
        let repeats = secrets
            .into_iter()
            .flatten()
            .any(|secret| secret.len() > 1 && text.contains(secret));
        if repeats || bytes.len() > ANSWER_BYTES_MAX {
            return String::new();
        }
        let plain: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        plain.trim().to_owned()
    }

    fn build_request(&self, message: &Message) -> (HeaderMap, String) {
        let mut headers = HeaderMap::new();
        if let Some(value) = self.token.as_ref().and_then(bearer) {
            headers.insert(AUTHORIZATION, value);
        }
        let json = HeaderValue::from_static("application/json");
        match self.format {
            PayloadFormat::Webhook => {
                headers.insert(CONTENT_TYPE, json);
                (headers, json!(message).to_string())
            }
            PayloadFormat::Slack => {
                headers.insert(CONTENT_TYPE, json);
                let text = format!("*{}*\n{}", message.title, message.text);
                let text = escape_for_slack(truncate(&text, SLACK_BYTES_MAX));
                (headers, json!({ "text": text }).to_string())
            }
            PayloadFormat::Ntfy => {
                // Headers are ASCII.
                let title = message
                    .title
                    .replace(|c: char| !c.is_ascii() || c.is_ascii_control(), "?");
                let (priority, tags) = ntfy_priority_and_tags(message);
                for (name, value) in [
                    ("title", title.as_str()),
                    ("priority", priority),
                    ("tags", &tags),
                ] {
                    if let Ok(value) = HeaderValue::from_str(value) {
                        headers.insert(name, value);
                    }
                }
                headers.insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; charset=utf-8"),
                );
                (headers, truncate(&message.text, NTFY_BYTES_MAX).to_owned())
            }
        }
    }
}

/// Escapes the three characters that Slack interprets.
fn escape_for_slack(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn ntfy_priority_and_tags(message: &Message) -> (&'static str, String) {
    let priority = match message.urgency {
        Urgency::Normal => "default",
        Urgency::High => "high",
        Urgency::Urgent => "urgent",
    };
    let tag = |kind: Kind| match kind {
        Kind::Failed => "warning",
        Kind::Held => "raised_hand",
        Kind::Unknown => "grey_question",
        Kind::Behind => "arrow_up",
        Kind::Recreated => "white_check_mark",
    };
    let tags: Vec<&str> = message
        .kinds()
        .into_iter()
        .map(|(kind, _)| tag(kind))
        .collect();
    (priority, tags.join(","))
}

fn bearer(token: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Parses seconds or an HTTP date.
fn parse_retry_after(value: &HeaderValue) -> Option<Duration> {
    let value = value.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Duration::try_from(at.duration_since(jiff::Timestamp::now())).ok()
}

#[cfg(test)]
mod tests {
    use super::super::notification::{Context, Notification};
    use super::*;

    fn message() -> Message {
        let what = "<!channel> & `ws-ana` failed";
        let notification =
            Notification::new(Kind::Failed, "ws-ana", what, "it runs", &Context::default());
        Message::new("böx", vec![notification], 0)
    }

    fn sink(format: PayloadFormat) -> Sink {
        let url = SecretString::from("https://hooks.example/T/secret\n");
        Sink::new("ops", format, url, Some(SecretString::from("tk_secret\n"))).unwrap()
    }

    #[test]
    fn each_format_is_encoded_and_escaped() {
        let (headers, body) = sink(PayloadFormat::Slack).build_request(&message());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let text = body["text"].as_str().unwrap();
        assert!(
            text.contains("&lt;!channel&gt; &amp; `ws-ana` failed"),
            "{text}"
        );
        assert_eq!(headers[AUTHORIZATION], "Bearer tk_secret");
        assert!(!format!("{headers:?}").contains("tk_secret"));

        let (headers, body) = sink(PayloadFormat::Ntfy).build_request(&message());
        assert_eq!(headers["title"], "Refit on b?x: 1 failed");
        assert_eq!(
            (&headers["priority"], &headers["tags"]),
            (
                &HeaderValue::from_static("default"),
                &HeaderValue::from_static("warning")
            )
        );
        assert!(body.contains("<!channel>"), "plain text: {body}");

        let (_, body) = sink(PayloadFormat::Webhook).build_request(&message());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["format"], &body["host"]), (&json!(1), &json!("böx")));
        assert_eq!(body["findings"][0]["subject"], "ws-ana");
    }

    #[test]
    fn invalid_address_error_names_only_the_sink() {
        for url in [
            "",
            "hooks.example/T/secret",
            "ftp://hooks.example/secret",
            "https://",
        ] {
            let error =
                Sink::new("ops", PayloadFormat::Slack, SecretString::from(url), None).unwrap_err();
            assert!(
                error.to_string().contains("`ops`") && !format!("{error:?}").contains("secret"),
                "{error:?}"
            );
        }
        let token = Some(SecretString::from("se\ncret"));
        let error = Sink::new(
            "ops",
            PayloadFormat::Ntfy,
            SecretString::from("http://a.example"),
            token,
        )
        .unwrap_err();
        assert!(!format!("{error:?}").contains("cret\""), "{error:?}");
        assert!(!format!("{:?}", sink(PayloadFormat::Ntfy)).contains("secret"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |text: &str| parse_retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Thu, 01 Jan 1970 00:00:00 GMT"), None);
        let soon = read("Fri, 31 Dec 2100 23:59:59 GMT").unwrap();
        assert!(soon > Duration::from_secs(1_000_000));
        assert_eq!(read("soon"), None);
    }
}
