//! Names of containers during a replacement. Refit stores nothing else about a replacement in progress, so these names contain
//! everything that is needed to finish or undo it.
//!
//! - The new container, until it takes over: `refit-new.<old>`. The name follows from the old container's id alone, and names
//!   are unique on an engine, so if two Refits compete, only one can create it. While a container without a stop timeout is
//!   stopping, which may take any time, the name is `refit-new.<old>.stopping`: a process that finds the old container running
//!   then must not conclude that no stop was requested.
//! - The old container, once it has stopped: `refit-old.<old>.<new>.<time>.<name>`, with its original name. `<time>` is when
//!   the container got this name, in seconds since the Unix epoch by the engine's clock, after a letter: `t` for a container
//!   that ran before, `s` for a container that was already stopped and must stay stopped. Refit before 0.2 left out `<time>.`.
//!
//! `<old>` and `<new>` are the first twelve digits of ids. No such name contains `ws-`, since the platform's healers remove
//! containers whose names do, so Refit writes hyphens within a name as `.-` and dots as `..`.

use refit_model::container::{ContainerId, ContainerName};

const TEMPORARY: &str = "refit-new.";
const STOPPING: &str = ".stopping";
const BACKUP: &str = "refit-old.";

/// Returns the name of a new container until it takes over.
pub fn temporary_name(old: &ContainerId) -> ContainerName {
    temporary_name_of(old.short())
}

/// Returns the name of a new container while the old one takes any time to stop.
pub fn stopping_name(old: &ContainerId) -> ContainerName {
    ContainerName::new(format!("{TEMPORARY}{}{STOPPING}", old.short()))
}

fn temporary_name_of(old: &str) -> ContainerName {
    ContainerName::new(format!("{TEMPORARY}{old}"))
}

/// The parsed name of an old container while Refit waits for its replacement to become healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupName {
    /// The first digits of the old container's id.
    pub old: String,
    /// The first digits of the new container's id.
    pub new: String,
    /// When the container got this name, in seconds since the Unix epoch by the engine's clock; `None` in names from older
    /// versions of Refit.
    pub since: Option<i64>,
    /// Whether the old container ran before.
    pub ran: bool,
    /// The old container's original name.
    pub name: String,
}

impl BackupName {
    pub fn new(old: &ContainerId, new: &ContainerId, since: i64, ran: bool, name: &str) -> Self {
        Self {
            old: old.short().to_owned(),
            new: new.short().to_owned(),
            since: Some(since),
            ran,
            name: name.to_owned(),
        }
    }

    pub fn to_name(&self) -> ContainerName {
        let name = self.name.replace('.', "..").replace('-', ".-");
        let since = match (self.since, self.ran) {
            (Some(since), true) => format!("t{since}."),
            (Some(since), false) => format!("s{since}."),
            (None, _) => String::new(),
        };
        ContainerName::new(format!("{BACKUP}{}.{}.{since}{name}", self.old, self.new))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(BACKUP)?.splitn(3, '.');
        let (old, new, rest) = (parts.next()?, parts.next()?, parts.next()?);
        if !is_short_id(old) || !is_short_id(new) {
            return None;
        }
        // An escaped name never contains a single dot, so a time in front of it cannot be a part of the name.
        let (since, ran, name) = match unescape(rest) {
            Some(name) => (None, true, name),
            None => {
                let (time, name) = rest.split_once('.')?;
                let ran = match time.get(..1)? {
                    "t" => true,
                    "s" => false,
                    _ => return None,
                };
                (Some(time[1..].parse().ok()?), ran, unescape(name)?)
            }
        };
        let parsed = Self {
            old: old.to_owned(),
            new: new.to_owned(),
            since,
            ran,
            name,
        };
        // Refit writes each name in one spelling only: never `t+1`, or a hyphen without its dot.
        (parsed.to_name().as_str() == text).then_some(parsed)
    }
}

/// The content of a name that Refit gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedName {
    /// A new container, created to replace the container whose id starts with `old`.
    Temporary {
        old: String,
        /// Whether a stop of the old container was requested that may take any time.
        stopping: bool,
    },
    Backup(BackupName),
}

impl ParsedName {
    /// Parses a container name; `None` for names that Refit did not give.
    pub fn parse(name: &str) -> Option<Self> {
        let Some(rest) = name.strip_prefix(TEMPORARY) else {
            return BackupName::parse(name).map(Self::Backup);
        };
        let (old, stopping) = match rest.strip_suffix(STOPPING) {
            Some(old) => (old, true),
            None => (rest, false),
        };
        is_short_id(old).then(|| Self::Temporary {
            old: old.to_owned(),
            stopping,
        })
    }

    /// The first digits of the id of the old container.
    pub fn old(&self) -> &str {
        match self {
            Self::Temporary { old, .. } | Self::Backup(BackupName { old, .. }) => old,
        }
    }
}

fn is_short_id(text: &str) -> bool {
    text.len() == 12
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn unescape(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        name.push(match c {
            '.' => characters.next().filter(|c| matches!(c, '.' | '-'))?,
            // Refit writes a hyphen with its dot. So a time and the text after it are never read as one name.
            '-' => return None,
            c => c,
        });
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(digit: char) -> ContainerId {
        ContainerId::new(digit.to_string().repeat(64))
    }

    fn backup(name: &str) -> BackupName {
        BackupName::new(&id('a'), &id('b'), 1_795_428_000, true, name)
    }

    #[test]
    fn generated_names_never_look_like_workspaces() {
        for name in [
            temporary_name(&id('f')),
            stopping_name(&id('f')),
            backup("ws-a86d2786-842").to_name(),
        ] {
            assert!(
                !name.as_str().contains("ws-"),
                "`{name}` would be removed by the platform's healers"
            );
        }
    }

    #[test]
    fn foreign_name_is_not_parsed() {
        for name in [
            "refit-new.",
            "refit-new.0123",
            "refit-new.0123456789ABC",
            "refit-new.0123456789ab.stopped",
            "refit-old.0123456789ab",
            "refit-old.0123456789ab.0123456789ab.x1.a",
            "refit-old.0123456789ab.0123456789ab.t.a",
            "refit-old.0123456789ab.0123456789ab.t1x.a",
            "refit-old.0123456789ab.0123456789ab.t+1.a",
            "refit-old.0123456789ab.0123456789ab.t01.a",
            "refit-old.0123456789ab.0123456789ab.t1.ws-a",
            "refit",
            "ws-a",
            "refit-new.0123456789ab-x",
        ] {
            assert_eq!(ParsedName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn name_with_leading_separator_round_trips() {
        for name in ["-5", ".5", "..", ".-", "-"] {
            let written = backup(name).to_name();
            let parsed = ParsedName::parse(written.as_str());
            assert_eq!(parsed, Some(ParsedName::Backup(backup(name))), "{name}");
        }
    }

    #[test]
    fn backup_name_of_older_version_is_parsed() {
        let parsed = ParsedName::parse("refit-old.aaaaaaaaaaaa.bbbbbbbbbbbb.t1..ws.-a");
        let expected = BackupName {
            since: None,
            ..backup("t1.ws-a")
        };
        assert_eq!(parsed, Some(ParsedName::Backup(expected)));
    }

    proptest! {
        #[test]
        fn backup_name_round_trips(
            name in "[a-zA-Z0-9][a-zA-Z0-9_.-]{1,60}",
            since in proptest::option::of(-10_i64..i64::from(u32::MAX)),
            ran: bool,
        ) {
            let written = BackupName { since, ran: ran || since.is_none(), ..backup(&name) };
            prop_assert!(!written.to_name().as_str().contains("ws-"));
            let read = ParsedName::parse(written.to_name().as_str());
            prop_assert_eq!(read, Some(ParsedName::Backup(written)));
        }

        #[test]
        fn parsing_any_text_does_not_panic(text in "refit-(new|old)[.]\\PC{0,60}") {
            let _ = ParsedName::parse(&text);
        }
    }
}
