//! Policies that misbehave, written by hand in WebAssembly's text, so that they do exactly that and nothing else.

/// Says who it is, accepts any configuration, and traps when it is to make a refresh.
pub(crate) fn traps_in_refresh() -> anyhow::Result<Vec<u8>> {
    Ok(wat::parse_str(include_str!("traps.wat"))?)
}
