//! Finds out which calls reach the engine. A socket proxy answers some calls itself, with a refusal.
//!
//! [`probe_calls`] sends each call in a harmless form: for a container, image or network that cannot exist, or with a reference
//! that no engine accepts. The engine responds with its own error, which names the requested object; any other response comes
//! from a program in between. Start with [`EngineCall`]. This module does not know what a call is needed for.

use std::collections::BTreeMap;
use std::fmt;

use http::Method;
use refit_model::diagnostic::Diagnostic;
use serde_json::{Value, json};

use super::{Engine, EngineError};

/// The SHA-256 of `refit-probe`. No container, image or network has this id, and a user who finds it in a proxy's log can look
/// it up.
pub const ABSENT_ID: &str = "d13fda0a0ed34541a57d007d6016fed6a63e6cb46895812eb0781fb42fabe226";

/// The longest quote of a proxy's message: one readable line.
const QUOTED_CHARS_MAX: usize = 120;

/// Every call that Refit sends to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineCall {
    Ping,
    Version,
    Info,
    Events,
    ListContainers,
    InspectContainer,
    CreateContainer,
    StartContainer,
    StopContainer,
    RenameContainer,
    RemoveContainer,
    ListImages,
    InspectImage,
    PullImage,
    RemoveImage,
    InspectDistribution,
    ListNetworks,
    ConnectNetwork,
    DisconnectNetwork,
}

impl EngineCall {
    pub const ALL: [Self; 19] = [
        Self::Ping,
        Self::Version,
        Self::Info,
        Self::Events,
        Self::ListContainers,
        Self::InspectContainer,
        Self::CreateContainer,
        Self::StartContainer,
        Self::StopContainer,
        Self::RenameContainer,
        Self::RemoveContainer,
        Self::ListImages,
        Self::InspectImage,
        Self::PullImage,
        Self::RemoveImage,
        Self::InspectDistribution,
        Self::ListNetworks,
        Self::ConnectNetwork,
        Self::DisconnectNetwork,
    ];

    pub fn method(self) -> Method {
        match self {
            Self::Ping
            | Self::Version
            | Self::Info
            | Self::Events
            | Self::ListContainers
            | Self::InspectContainer
            | Self::ListImages
            | Self::InspectImage
            | Self::InspectDistribution
            | Self::ListNetworks => Method::GET,
            Self::CreateContainer
            | Self::StartContainer
            | Self::StopContainer
            | Self::RenameContainer
            | Self::PullImage
            | Self::ConnectNetwork
            | Self::DisconnectNetwork => Method::POST,
            Self::RemoveContainer | Self::RemoveImage => Method::DELETE,
        }
    }

    /// Returns the path without the API version, with `{id}` for an id or a name: `/containers/{id}/stop`.
    pub fn template(self) -> &'static str {
        match self {
            Self::Ping => "/_ping",
            Self::Version => "/version",
            Self::Info => "/info",
            Self::Events => "/events",
            Self::ListContainers => "/containers/json",
            Self::InspectContainer => "/containers/{id}/json",
            Self::CreateContainer => "/containers/create",
            Self::StartContainer => "/containers/{id}/start",
            Self::StopContainer => "/containers/{id}/stop",
            Self::RenameContainer => "/containers/{id}/rename",
            Self::RemoveContainer => "/containers/{id}",
            Self::ListImages => "/images/json",
            Self::InspectImage => "/images/{id}/json",
            Self::PullImage => "/images/create",
            Self::RemoveImage => "/images/{id}",
            Self::InspectDistribution => "/distribution/{id}/json",
            Self::ListNetworks => "/networks",
            Self::ConnectNetwork => "/networks/{id}/connect",
            Self::DisconnectNetwork => "/networks/{id}/disconnect",
        }
    }

    /// Finds the call with this label, as [`EngineCall`] prints it: `POST /containers/{id}/stop`.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.to_string() == label)
    }

    /// Builds the call in a form that changes nothing. `absent_id` is 64 hexadecimal digits that nothing on the engine has.
    fn harmless(self, absent_id: &str) -> RawCall {
        let absent_image = format!("sha256:{absent_id}");
        let id = match self {
            Self::InspectImage | Self::RemoveImage => absent_image.as_str(),
            Self::InspectDistribution => INVALID_REFERENCE,
            _ => absent_id,
        };
        let query = match self {
            Self::ListContainers => vec![("limit", "1".to_owned())],
            // A time range in the past: the engine responds and closes.
            Self::Events => vec![("since", "1".to_owned()), ("until", "2".to_owned())],
            Self::ListImages => vec![(
                "filters",
                json!({ "reference": ["refit-probe"] }).to_string(),
            )],
            Self::ListNetworks => vec![("filters", json!({ "id": [absent_id] }).to_string())],
            Self::CreateContainer | Self::RenameContainer => {
                vec![("name", "refit-probe".to_owned())]
            }
            Self::PullImage => vec![("fromImage", INVALID_REFERENCE.to_owned())],
            _ => Vec::new(),
        };
        let body = match self {
            Self::CreateContainer => Some(json!({ "Image": absent_image })),
            Self::ConnectNetwork | Self::DisconnectNetwork => {
                Some(json!({ "Container": absent_id }))
            }
            _ => None,
        };
        RawCall {
            method: self.method(),
            path: self.template().replace("{id}", id),
            query,
            body,
        }
    }
}

/// A repository has no capital letters, so an engine refuses this without a request to a registry.
const INVALID_REFERENCE: &str = "REFIT-PROBE";

impl fmt::Display for EngineCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method(), self.template())
    }
}

/// A call to send.
#[derive(Clone, Debug)]
pub struct RawCall {
    pub method: Method,
    /// Without the API version: `/containers/json`.
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<Value>,
}

/// The response, from the engine or any program before it.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    pub status: u16,
    /// The `message` of an error, or the whole body if it has none. Empty for a success.
    pub message: String,
}

/// Whether a call reaches the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    Allowed,
    /// A program before the engine, or the engine itself, does not execute this call. The text is its response.
    Refused(String),
    /// Refit could not try the call. The text contains the reason.
    Unknown(String),
}

/// The results of [`probe_calls`].
#[derive(Clone, Debug, Default)]
pub struct CallPermissions {
    permissions: BTreeMap<EngineCall, Permission>,
}

impl CallPermissions {
    /// Returns the result for a call; `None` if it was not tried.
    pub fn get(&self, call: EngineCall) -> Option<&Permission> {
        self.permissions.get(&call)
    }

    pub fn is_refused(&self, call: EngineCall) -> bool {
        matches!(self.get(call), Some(Permission::Refused(_)))
    }

    /// Lists the refused calls, each with its response.
    pub fn refused(&self) -> impl Iterator<Item = (EngineCall, &str)> {
        self.permissions
            .iter()
            .filter_map(|(call, permission)| match permission {
                Permission::Refused(answer) => Some((*call, answer.as_str())),
                Permission::Allowed | Permission::Unknown(_) => None,
            })
    }

    pub fn iter(&self) -> impl Iterator<Item = (EngineCall, &Permission)> {
        self.permissions
            .iter()
            .map(|(call, permission)| (*call, permission))
    }
}

/// Tries these calls, one after the other, in a form that changes nothing on the engine. Each has the usual time limit.
pub async fn probe_calls(engine: &dyn Engine, calls: &[EngineCall]) -> CallPermissions {
    let mut permissions = BTreeMap::new();
    for call in calls {
        if !permissions.contains_key(call) {
            permissions.insert(*call, probe_call(engine, *call, ABSENT_ID).await);
        }
    }
    CallPermissions { permissions }
}

async fn probe_call(engine: &dyn Engine, call: EngineCall, absent_id: &str) -> Permission {
    let raw = call.harmless(absent_id);
    let first = engine.send(&raw).await;
    let answer = match first {
        // A connection that was kept open may have ended for other reasons.
        Err(EngineError::Broken { .. }) => engine.send(&raw).await,
        answer => answer,
    };
    match answer {
        Ok(answer) => interpret(&answer, absent_id),
        // Some proxies refuse by closing the connection. Then other calls still work.
        Err(EngineError::Broken { .. })
            if call != EngineCall::Ping && is_responding(engine).await =>
        {
            Permission::Refused("the connection was closed without an answer".to_owned())
        }
        Err(error) => Permission::Unknown(Diagnostic::of(&error).sentence()),
    }
}

async fn is_responding(engine: &dyn Engine) -> bool {
    let ping = EngineCall::Ping.harmless("");
    engine
        .send(&ping)
        .await
        .is_ok_and(|answer| answer.status == 200)
}

fn interpret(answer: &RawAnswer, absent_id: &str) -> Permission {
    let message = answer.message.trim();
    match answer.status {
        200..=299 | 304 => Permission::Allowed,
        401 | 403 | 405 | 407 | 501 => refused(answer),
        _ if message.contains(absent_id) => Permission::Allowed,
        // The message is about the invalid reference, or about a body that the engine has parsed and rejects.
        400 | 404 | 409 | 500 if message.to_lowercase().contains("reference") => {
            Permission::Allowed
        }
        400 | 409 | 500 if !message.is_empty() && !message.starts_with('<') => Permission::Allowed,
        408 | 425 | 429 | 500..=599 => Permission::Unknown(quote(answer)),
        _ => refused(answer),
    }
}

fn refused(answer: &RawAnswer) -> Permission {
    Permission::Refused(quote(answer))
}

/// Quotes the status and the first text that is not markup.
fn quote(answer: &RawAnswer) -> String {
    let mut text = String::new();
    let mut in_tag = false;
    for character in answer.message.chars() {
        match character {
            '<' => in_tag = true,
            '>' if in_tag => {
                in_tag = false;
                text.push(' ');
            }
            _ if !in_tag => text.push(if character.is_control() {
                ' '
            } else {
                character
            }),
            _ => {}
        }
    }
    let text: Vec<&str> = text.split_whitespace().collect();
    let text: String = text.join(" ").chars().take(QUOTED_CHARS_MAX).collect();
    match text.as_str() {
        "" => format!("status {}", answer.status),
        text => format!("status {}: {text}", answer.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn answer(status: u16, message: &str) -> Permission {
        let message = message.to_owned();
        interpret(&RawAnswer { status, message }, ID)
    }

    #[test]
    fn engine_error_is_permission() {
        for (status, message) in [
            (200, ""),
            (404, &*format!("No such container: {ID}")),
            (
                404,
                &*format!("no container with name or ID \"{ID}\" found: no such container"),
            ),
            (404, &*format!("network {ID} not found")),
            (404, &*format!("No such image: sha256:{ID}")),
            (
                400,
                "invalid reference format: repository name must be lowercase",
            ),
            (500, "normalizing image: invalid reference format"),
            (400, "config cannot be empty in order to create a container"),
        ] {
            assert_eq!(answer(status, message), Permission::Allowed, "{message}");
        }
    }

    #[test]
    fn proxy_answer_is_refusal() {
        let html = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n";
        for (status, message) in [
            (403, html),
            (403, ""),
            (405, "Method Not Allowed"),
            (401, "who are you?"),
            (404, "404 page not found"),
            (404, "<html>404 Not Found</html>"),
            (400, "<html>400 Bad Request</html>"),
            (302, ""),
        ] {
            let found = answer(status, message);
            assert!(
                matches!(found, Permission::Refused(_)),
                "{status} {message}: {found:?}"
            );
        }
        assert_eq!(
            answer(403, html),
            Permission::Refused(
                "status 403: 403 Forbidden Request forbidden by administrative rules.".into()
            )
        );
    }

    #[test]
    fn overloaded_proxy_is_unknown() {
        for status in [408, 429, 502, 503, 504] {
            let found = answer(status, "<html>later</html>");
            assert!(
                matches!(found, Permission::Unknown(_)),
                "{status}: {found:?}"
            );
        }
    }

    #[test]
    fn harmless_call_has_shape_of_its_template() {
        for call in EngineCall::ALL {
            assert_eq!(EngineCall::from_label(&call.to_string()), Some(call));
            let raw = call.harmless(ID);
            assert!(!raw.path.contains('{'), "{}", raw.path);
            assert_eq!(
                raw.path.matches('/').count(),
                call.template().matches('/').count()
            );
        }
    }
}
