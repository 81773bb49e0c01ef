//! What a call of a policy cost, for authors who measure theirs.

/// Counted by the host; the same each time for the same component, question and facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// WebAssembly's instructions, about one unit of wasmtime's fuel each. Only by a metering engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u64>,
    /// Linear memory of all of its modules at the end; it never shrinks.
    pub memory_bytes: usize,
    /// Calls of `docker` and `host`; each entry of a batch is one.
    pub host_calls: u64,
    /// Text that went both ways, and what the host keeps behind handles.
    pub host_bytes: usize,
}

/// Whether an engine counts instructions. One that does runs other machine code, a third to a half slower, so only those who
/// measure have it.
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

    /// Nothing is refused for want of it: computing is bounded by time.
    pub(super) fn fill<T>(self, store: &mut wasmtime::Store<T>) {
        if self == Self::Instructions {
            // Fails only where fuel is not configured, and it is.
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
