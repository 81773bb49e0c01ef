//! The policies in the benchmarks: the built-in one, and those that `cargo xtask guests` has built.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use refit::model::grants::{GrantPatterns, Verb};
use refit::sandbox::DEFAULT_POLICY;

/// The variable with the folder in which `cargo xtask bench` puts the guests in other languages. Not `REFIT_…`, since those are
/// keys of the configuration.
const FOLDER: &str = "BENCH_GUESTS";

pub(crate) fn all() -> Vec<(&'static str, Bytes)> {
    let folder = std::env::var_os(FOLDER);
    let folder = folder.expect("BENCH_GUESTS is not set: run this by `cargo xtask bench`");
    let read = |name: &str| -> Bytes {
        let path = Path::new(&folder).join(name);
        let bytes = std::fs::read(&path);
        bytes
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
            .into()
    };
    vec![
        ("rust", Bytes::from_static(DEFAULT_POLICY)),
        ("javascript", read("javascript.wasm")),
        ("python", read("python.wasm")),
    ]
}

#[allow(
    dead_code,
    reason = "one of two benches that share this has no use for it"
)]
pub(crate) fn everything() -> GrantPatterns {
    GrantPatterns {
        images: vec!["*".into()],
        containers: vec!["*".into()],
        labels: BTreeMap::new(),
        environment: vec![],
        verbs: vec![Verb::Inspect, Verb::Pull, Verb::Replace],
        followers: false,
    }
}
