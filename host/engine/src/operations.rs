//! Lists the engine calls that each operation of Refit needs, for `refit doctor` and for docs/socket-proxies.md.
//!
//! The lists describe the rest of the program. The fault suite logs every call that a real engine gets, and fails if a call is
//! missing here or never happens. [`filled`] writes the tables of the page.

use std::collections::BTreeSet;
use std::fmt;

use http::Method;

use crate::permissions::{CallPermissions, EngineCall, EngineCall as Call};

/// An operation that a user can start on an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Plan,
    Watch,
    Replace,
    Overlap,
    Remove,
    Recover,
}

/// When an operation makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Always,
    /// Also during the rollback, if a replacement fails.
    WayBack,
    /// Without it, the operation does less. The text names the case in which it happens, or the loss.
    Sometimes(&'static str),
}

const SEVERAL_NETWORKS: Need = Need::Sometimes("for containers in several networks");
const FOLLOWING: Need =
    Need::Sometimes("without it, Refit asks for the state of the container again and again");
const GOES_AWAY: Need =
    Need::Sometimes("without it, the daemon notices later that the engine was restarted");
const ENGINE_CLOCK: Need =
    Need::Sometimes("without it, Refit compares the engine's times with its own clock");
const DISK_SPACE: Need = Need::Sometimes(
    "without it, Refit does not check before a pull whether the image fits on the engine's disk",
);
const NETWORK_AGAIN: Need =
    Need::Sometimes("to start a container whose network was removed and created again");
const KEEP_PREVIOUS: Need = Need::Sometimes("with `[images] keep_previous`");

impl Operation {
    pub const ALL: [Self; 6] = [
        Self::Plan,
        Self::Watch,
        Self::Replace,
        Self::Overlap,
        Self::Remove,
        Self::Recover,
    ];

    /// Returns the calls of this operation, each once.
    pub fn calls(self) -> Vec<(EngineCall, Need)> {
        use Need::{Always, Sometimes, WayBack};
        let mut calls = vec![
            (Call::Version, Always),
            (Call::ListContainers, Always),
            (Call::InspectContainer, Always),
        ];
        let replacing = [
            (Call::InspectImage, Always),
            (Call::PullImage, Always),
            (Call::CreateContainer, Always),
            (Call::StartContainer, WayBack),
            (Call::StopContainer, WayBack),
            (Call::RenameContainer, WayBack),
            (Call::RemoveContainer, WayBack),
            (Call::Events, FOLLOWING),
            (Call::ListImages, KEEP_PREVIOUS),
            (Call::RemoveImage, KEEP_PREVIOUS),
        ];
        match self {
            Self::Plan => calls.extend([
                (Call::InspectImage, Always),
                (
                    Call::InspectDistribution,
                    Sometimes("without it, `refit plan` reports images as `unknown`"),
                ),
            ]),
            Self::Watch => calls.extend([
                (Call::Ping, Always),
                (Call::InspectImage, Always),
                (Call::Events, GOES_AWAY),
            ]),
            Self::Replace => {
                calls.extend(replacing);
                calls.push((Call::ConnectNetwork, SEVERAL_NETWORKS));
                calls.push((Call::Info, DISK_SPACE));
                calls.push((Call::ListNetworks, NETWORK_AGAIN));
            }
            Self::Overlap => {
                calls.extend(replacing);
                calls.push((Call::Info, DISK_SPACE));
                calls.push((Call::ConnectNetwork, Always));
                calls.push((Call::DisconnectNetwork, Always));
            }
            Self::Remove => calls.extend([
                (Call::InspectImage, Always),
                (Call::PullImage, Always),
                (Call::RemoveContainer, Always),
                (Call::Info, DISK_SPACE),
                (Call::ListImages, KEEP_PREVIOUS),
            ]),
            Self::Recover => calls.extend([
                (Call::StartContainer, Always),
                (Call::StopContainer, Always),
                (Call::RenameContainer, Always),
                (Call::RemoveContainer, Always),
                (Call::Events, FOLLOWING),
                (Call::Info, ENGINE_CLOCK),
                (Call::ListNetworks, NETWORK_AGAIN),
                (Call::ConnectNetwork, NETWORK_AGAIN),
            ]),
        }
        calls
    }

    /// Returns the calls that change something on the engine once the images are there, and without which a container could be
    /// left halfway.
    pub fn changing_calls(self) -> Vec<EngineCall> {
        let calls = self.calls().into_iter();
        let changing = calls.filter(|(call, need)| {
            !matches!(need, Need::Sometimes(_))
                && call.method() != Method::GET
                && *call != Call::PullImage
        });
        changing.map(|(call, _)| call).collect()
    }

    /// Returns the calls that are known to be refused and without which this operation does not work at all.
    pub fn blocked_by(self, permissions: &CallPermissions) -> Vec<EngineCall> {
        self.refused(permissions, |need| !matches!(need, Need::Sometimes(_)))
    }

    /// Returns the calls that are known to be refused and without which this operation does less.
    pub fn limited_by(self, permissions: &CallPermissions) -> Vec<EngineCall> {
        self.refused(permissions, |need| matches!(need, Need::Sometimes(_)))
    }

    fn refused(
        self,
        permissions: &CallPermissions,
        wanted: impl Fn(Need) -> bool,
    ) -> Vec<EngineCall> {
        let calls = self.calls().into_iter();
        calls
            .filter(|(call, need)| wanted(*need) && permissions.is_refused(*call))
            .map(|(call, _)| call)
            .collect()
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "`refit plan`",
            Self::Watch => "watching (`[watch]`)",
            Self::Replace => "a refresh by `replace`",
            Self::Overlap => "a refresh by `overlap`",
            Self::Remove => "a refresh by `remove`",
            Self::Recover => "`refit recover`",
        })
    }
}

/// The page has no place for a table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the page has no line `{0}` that is followed by a line `{END}`")]
pub struct NoPlace(&'static str);

const END: &str = "<!-- end -->";

/// Returns each generated part of docs/socket-proxies.md: the line before it, and its text.
fn generated_parts() -> [(&'static str, String); 3] {
    [
        ("<!-- engine calls -->", format_call_table()),
        ("<!-- tecnativa and linuxserver -->", format_variables()),
        ("<!-- wollomatic -->", format_flags()),
    ]
}

/// Returns the page with its generated parts up to date.
pub fn filled(page: &str) -> Result<String, NoPlace> {
    let mut filled = page.to_owned();
    for (begin, text) in generated_parts() {
        let line = format!("{begin}\n");
        let start = filled.find(&line).ok_or(NoPlace(begin))? + line.len();
        let length = filled[start..].find(END).ok_or(NoPlace(begin))?;
        filled.replace_range(start..start + length, &format!("\n{text}\n"));
    }
    Ok(filled)
}

fn format_call_table() -> String {
    let mut text = String::from("| call |");
    for operation in Operation::ALL {
        text += &format!(" {operation} |");
    }
    text += "\n| --- |";
    text += &" --- |".repeat(Operation::ALL.len());
    let mut notes: Vec<&str> = Vec::new();
    for call in EngineCall::ALL {
        let needs: Vec<Option<Need>> = Operation::ALL
            .iter()
            .map(|operation| {
                let calls = operation.calls();
                calls
                    .iter()
                    .find(|(it, _)| *it == call)
                    .map(|(_, need)| *need)
            })
            .collect();
        text += &format!("\n| `{call}` |");
        for need in needs {
            text += &match need {
                None => "  |".to_owned(),
                Some(Need::Always) => " yes |".to_owned(),
                Some(Need::WayBack) => " yes, and on the way back |".to_owned(),
                Some(Need::Sometimes(when)) => {
                    let number = notes
                        .iter()
                        .position(|note| *note == when)
                        .unwrap_or_else(|| {
                            notes.push(when);
                            notes.len() - 1
                        });
                    format!(" note {} |", number + 1)
                }
            };
        }
    }
    text += "\n\n";
    for (number, note) in notes.iter().enumerate() {
        text += &format!("{}. {note}\n", number + 1);
    }
    text
}

/// The groups of operations for which the page shows an allow-list.
const GROUPS: [(&str, &[Operation]); 3] = [
    (
        "plan and watch, change nothing",
        &[Operation::Plan, Operation::Watch],
    ),
    (
        "refresh by `replace` or `remove`, and recover",
        &[
            Operation::Plan,
            Operation::Watch,
            Operation::Replace,
            Operation::Remove,
            Operation::Recover,
        ],
    ),
    ("everything", &Operation::ALL),
];

/// Returns all calls of these operations. [`EngineCall::Ping`] is always included, since the daemon's readiness check needs it.
pub fn calls_of(operations: &[Operation]) -> BTreeSet<EngineCall> {
    let calls = operations.iter().flat_map(|operation| operation.calls());
    calls
        .map(|(call, _)| call)
        .chain([EngineCall::Ping])
        .collect()
}

/// Lists the variables for proxies in which, for example, `CONTAINERS=1` allows every call below `/containers`.
fn format_variables() -> String {
    let mut text = String::new();
    for (title, operations) in GROUPS {
        let calls = calls_of(operations);
        let mut sections: BTreeSet<String> = calls.iter().map(|call| section(*call)).collect();
        if calls.iter().any(|call| call.method() != Method::GET) {
            sections.insert("POST".to_owned());
        }
        // Only linuxserver's image needs these two: its `CONTAINERS` does not include them.
        if calls.contains(&EngineCall::StartContainer) {
            sections.insert("ALLOW_START".to_owned());
        }
        if calls.contains(&EngineCall::StopContainer) {
            sections.insert("ALLOW_STOP".to_owned());
        }
        let lines: Vec<String> = sections.iter().map(|name| format!("{name}=1")).collect();
        text += &format!(
            "To {}:\n\n```\n{}\n```\n\n",
            title_words(title),
            lines.join("\n")
        );
    }
    text.trim_end().to_owned() + "\n"
}

fn title_words(title: &str) -> &str {
    match title {
        "everything" => "do everything",
        other => other,
    }
}

/// Returns the variable for the first part of the path.
fn section(call: EngineCall) -> String {
    let first = call.template().trim_start_matches('/');
    let first = first.split('/').next().unwrap_or_default();
    first.trim_start_matches('_').to_uppercase()
}

fn format_flags() -> String {
    let mut text = String::new();
    for (title, operations) in GROUPS {
        let lines: Vec<String> = patterns(operations)
            .into_iter()
            .map(|(method, pattern)| format!("- '-allow{method}={pattern}'"))
            .collect();
        text += &format!(
            "To {}:\n\n```yaml\n{}\n```\n\n",
            title_words(title),
            lines.join("\n")
        );
    }
    text.trim_end().to_owned() + "\n"
}

/// Returns for each method a regular expression for the paths of these operations, in Go's syntax. The proxy anchors it.
pub fn patterns(operations: &[Operation]) -> Vec<(Method, String)> {
    let calls = calls_of(operations);
    let methods = [Method::GET, Method::POST, Method::DELETE];
    let pattern = |method: Method| {
        let calls = calls.iter().filter(|call| call.method() == method);
        let paths: Vec<String> = calls.map(|call| path_pattern(*call)).collect();
        let pattern = format!(r"(/v1\.[0-9]+)?/({})", paths.join("|"));
        (!paths.is_empty()).then_some((method, pattern))
    };
    methods.into_iter().filter_map(pattern).collect()
}

fn path_pattern(call: EngineCall) -> String {
    // The name of an image contains slashes.
    let id = match section(call).as_str() {
        "IMAGES" | "DISTRIBUTION" => ".+",
        _ => "[^/]+",
    };
    call.template().trim_start_matches('/').replace("{id}", id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_filled_between_its_lines() {
        let page = generated_parts()
            .map(|(begin, _)| format!("x\n{begin}\nold\n{END}\ny\n"))
            .concat();
        let filled = filled(&page).unwrap();
        assert!(
            !filled.contains("old") && filled.contains("| `GET /_ping` |"),
            "{filled}"
        );
        assert_eq!(super::filled(&filled).unwrap(), filled);
        assert_eq!(super::filled("x"), Err(NoPlace("<!-- engine calls -->")));
    }

    #[test]
    fn no_call_is_listed_twice() {
        for operation in Operation::ALL {
            let calls = operation.calls();
            let unique: BTreeSet<EngineCall> = calls.iter().map(|(call, _)| *call).collect();
            assert_eq!(unique.len(), calls.len(), "{operation}");
        }
    }
}
