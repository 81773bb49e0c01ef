//! The host's small services, in memory.

use std::collections::BTreeMap;

use crate::docker::Host;
use crate::facts::{Level, StateError};

/// A log, a clock that stands still, and state in memory.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    pub log: Vec<(Level, String)>,
    pub now: u64,
    pub state: BTreeMap<String, String>,
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
        match value {
            Some(value) => self.state.insert(key.to_owned(), value.to_owned()),
            None => self.state.remove(key),
        };
        Ok(())
    }
}
