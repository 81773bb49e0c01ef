//! One who is told: where, in which dialect, and what becomes of a message on its way.
//!
//! Addresses and tokens are secrets, so whatever is said of a sink says its name. No redirect is followed: it would carry the
//! message, and perhaps the token, to somebody else.

use std::time::Duration;

use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::secret::{ExposeSecret as _, SecretString};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::message::{Message, cut};
use super::notification::{Kind, Urgency};

/// For one attempt. Those who take messages answer within a second.
const ATTEMPT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// Pauses before the second and the third attempt. Longer ones keep what comes after waiting.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];
/// Of `Retry-After`. Who wants more has it told with the next finding.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Of an answer that says why not.
const ANSWER_BYTES_MAX: usize = 300;
/// ntfy makes a file of a longer text.
const NTFY_BYTES_MAX: usize = 4000;
/// Slack shows a longer text in parts.
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

/// See the module.
#[derive(Debug)]
pub struct Sink {
    pub name: String,
    pub dialect: PayloadFormat,
    url: SecretString,
    token: Option<SecretString>,
    pub on: Vec<Kind>,
    pub batch: Duration,
}

/// A sink that cannot be told anything.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("the address of the sink `{sink}` is no URL of `https://` or `http://`")]
    Address { sink: String },
    #[error("the token of the sink `{sink}` does not fit into an HTTP header")]
    Token { sink: String },
}

impl Hints for SinkError {}

/// A message that did not arrive.
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
        again: Option<Duration>,
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
    /// Whether another attempt may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
            }
        }
    }

    fn again(&self) -> Option<Duration> {
        match self {
            Self::Refused { again, .. } => *again,
            Self::Unreachable { .. } => None,
        }
    }
}

/// What carries messages, for all sinks.
pub fn client() -> Result<Client, Diagnostic> {
    // Whoever was first has set the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(ATTEMPT)
        .connect_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| {
            let cannot = Diagnostic::new("cannot notify anybody");
            refit_model::diagnostic::causes(&error)
                .into_iter()
                .fold(cannot, Diagnostic::because)
        })
}

impl Sink {
    pub fn new(
        name: &str,
        dialect: PayloadFormat,
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
            dialect,
            url,
            token,
            on: vec![],
            batch: Duration::ZERO,
        })
    }

    /// What it is told, and what is gathered for how long.
    #[must_use]
    pub fn told_of(mut self, on: Vec<Kind>, batch: Duration) -> Self {
        self.on = on;
        self.batch = batch;
        self
    }

    /// Tries a few times, and ends within three minutes whatever the sink does. Once `closing` is set, one attempt is the last.
    pub async fn deliver(
        &self,
        client: &Client,
        message: &Message,
        closing: &CancellationToken,
    ) -> Result<StatusCode, Undelivered> {
        for pause in PAUSES {
            match self.post(client, message).await {
                Err(error) if error.is_passing() && !closing.is_cancelled() => {
                    let pause = error.again().unwrap_or(pause).min(PAUSE_MAX);
                    tracing::debug!(
                        "{}, and is tried again in {pause:?}",
                        Diagnostic::of(&error).sentence()
                    );
                    let _ = tokio::time::timeout(pause, closing.cancelled()).await;
                }
                ended => return ended,
            }
        }
        self.post(client, message).await
    }

    /// Once.
    pub async fn post(
        &self,
        client: &Client,
        message: &Message,
    ) -> Result<StatusCode, Undelivered> {
        let (headers, body) = self.put(message);
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
        let again = answer.headers().get(RETRY_AFTER).and_then(retry_after);
        Err(Undelivered::Refused {
            sink: self.name.clone(),
            status,
            said: self.said(answer).await,
            again,
        })
    }

    /// Why not, in its own words, without what it might repeat of ours.
    async fn said(&self, mut answer: Response) -> String {
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
        // A part of a secret at the cut could not be found.
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

    fn put(&self, message: &Message) -> (HeaderMap, String) {
        let mut headers = HeaderMap::new();
        if let Some(value) = self.token.as_ref().and_then(bearer) {
            headers.insert(AUTHORIZATION, value);
        }
        let json = HeaderValue::from_static("application/json");
        match self.dialect {
            PayloadFormat::Webhook => {
                headers.insert(CONTENT_TYPE, json);
                (headers, json!(message).to_string())
            }
            PayloadFormat::Slack => {
                headers.insert(CONTENT_TYPE, json);
                let text = format!("*{}*\n{}", message.title, message.text);
                let text = for_slack(cut(&text, SLACK_BYTES_MAX));
                (headers, json!({ "text": text }).to_string())
            }
            PayloadFormat::Ntfy => {
                // Headers are ASCII.
                let title = message
                    .title
                    .replace(|c: char| !c.is_ascii() || c.is_ascii_control(), "?");
                let (priority, tags) = ntfy(message);
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
                (headers, cut(&message.text, NTFY_BYTES_MAX).to_owned())
            }
        }
    }
}

/// These three have a meaning there; nothing else is needed.
fn for_slack(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn ntfy(message: &Message) -> (&'static str, String) {
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

/// Seconds, or a time of HTTP.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
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
        let finding =
            Notification::new(Kind::Failed, "ws-ana", what, "it runs", &Context::default());
        Message::new("böx", vec![finding], 0)
    }

    fn sink(dialect: PayloadFormat) -> Sink {
        let url = SecretString::from("https://hooks.example/T/secret\n");
        Sink::new("ops", dialect, url, Some(SecretString::from("tk_secret\n"))).unwrap()
    }

    #[test]
    fn each_dialect_is_spoken_and_nothing_is_said_by_somebody_else() {
        let (headers, body) = sink(PayloadFormat::Slack).put(&message());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let text = body["text"].as_str().unwrap();
        assert!(
            text.contains("&lt;!channel&gt; &amp; `ws-ana` failed"),
            "{text}"
        );
        assert_eq!(headers[AUTHORIZATION], "Bearer tk_secret");
        assert!(!format!("{headers:?}").contains("tk_secret"));

        let (headers, body) = sink(PayloadFormat::Ntfy).put(&message());
        assert_eq!(headers["title"], "Refit on b?x: 1 failed");
        assert_eq!(
            (&headers["priority"], &headers["tags"]),
            (
                &HeaderValue::from_static("default"),
                &HeaderValue::from_static("warning")
            )
        );
        assert!(body.contains("<!channel>"), "plain text: {body}");

        let (_, body) = sink(PayloadFormat::Webhook).put(&message());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["format"], &body["host"]), (&json!(1), &json!("böx")));
        assert_eq!(body["findings"][0]["subject"], "ws-ana");
    }

    #[test]
    fn an_address_that_is_none_is_told_by_the_sinks_name() {
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
    fn a_wait_is_seconds_or_a_time() {
        let read = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Thu, 01 Jan 1970 00:00:00 GMT"), None);
        let soon = read("Fri, 31 Dec 2100 23:59:59 GMT").unwrap();
        assert!(soon > Duration::from_secs(1_000_000));
        assert_eq!(read("soon"), None);
    }
}
