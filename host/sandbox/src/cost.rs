//! Measures the cost of a policy call, for authors.

/// The cost of a call. The host counts it; it is the same each time for the same component, question and facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// WebAssembly instructions, about one unit of wasmtime's fuel each. Only a metering engine counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u64>,
    /// The linear memory of all modules at the end of the call. Linear memory never shrinks.
    pub memory_bytes: usize,
    /// Calls of `docker` and `host`. Each entry of a batch counts as a call.
    pub host_calls: u64,
    /// The text in both directions, and the host's data behind handles.
    pub host_bytes: usize,
}

/// Whether an engine counts instructions. A counting engine runs different machine code, a third to a half slower, so only
/// measurements use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metering {
    #[default]
    Off,
    Instructions,
}

impl Metering {
    pub(super) fn apply(self, config: &mut wasmtime::Config) {
        config.consume_fuel(self == Self::Instructions);
    }

    /// Give the store as much fuel as possible: time limits the computing, not fuel.
    pub(super) fn fill<T>(self, store: &mut wasmtime::Store<T>) {
        if self == Self::Instructions {
            // This fails only if fuel is not configured, and it is.
            let _ = store.set_fuel(u64::MAX);
        }
    }

    pub(super) fn spent<T>(self, store: &wasmtime::Store<T>) -> Option<u64> {
        match self {
            Self::Off => None,
            Self::Instructions => store.get_fuel().ok().map(|left| u64::MAX - left),
        }
    }
}
