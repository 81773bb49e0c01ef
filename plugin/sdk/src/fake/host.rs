//! The host's small services, in memory.

use std::collections::BTreeMap;

use crate::docker::Host;
use crate::facts::{Level, StateError};

/// A log, a clock that a test moves, and state in memory. If several refreshes use the same host, each finds the state that the
/// previous one stored.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    pub log: Vec<(Level, String)>,
    /// Seconds since the Unix epoch.
    pub now: u64,
    pub state: BTreeMap<String, String>,
    /// The error of storing a value, if it has to fail.
    pub state_error: Option<StateError>,
}

impl FakeHost {
    /// A host at this time, in seconds since the Unix epoch.
    pub fn at(now: u64) -> Self {
        Self {
            now,
            ..Self::default()
        }
    }

    /// Move the clock forward by this many seconds.
    pub fn passes(&mut self, seconds: u64) {
        self.now = self.now.saturating_add(seconds);
    }

    /// Whether a line of the log contains this text.
    pub fn logged(&self, part: &str) -> bool {
        self.log.iter().any(|(_, line)| line.contains(part))
    }
}

impl Host for FakeHost {
    fn log(&mut self, level: Level, message: &str) {
        self.log.push((level, message.to_owned()));
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn state_get(&self, key: &str) -> Option<String> {
        self.state.get(key).cloned()
    }

    fn state_set(&mut self, key: &str, value: Option<&str>) -> Result<(), StateError> {
        if let Some(error) = &self.state_error {
            return Err(error.clone());
        }
        match value {
            Some(value) => self.state.insert(key.to_owned(), value.to_owned()),
            None => self.state.remove(key),
        };
        Ok(())
    }
}
