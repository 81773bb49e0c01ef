//! The pages of docs/ that are made of the program itself, as they are and as they would be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use refit::cli;
use refit::config;
use refit::engine::operations;

/// A page of which at least a part is not written by hand.
pub struct Page {
    /// Below the top of the checkout.
    pub name: &'static str,
    pub path: PathBuf,
    /// Empty where there is none.
    pub there: String,
    pub wanted: String,
}

impl Page {
    pub fn is_current(&self) -> bool {
        self.there == self.wanted
    }

    fn new(
        name: &'static str,
        wanted: impl FnOnce(&str) -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        let there = fs::read_to_string(&path).unwrap_or_default();
        let wanted = wanted(&there).with_context(|| format!("cannot make {name}"))?;
        Ok(Self {
            name,
            path,
            there,
            wanted,
        })
    }
}

/// All of them.
pub fn pages() -> anyhow::Result<Vec<Page>> {
    Ok(vec![
        Page::new("docs/commands.md", |_| Ok(cli::reference::commands()))?,
        Page::new("docs/configuration.md", |page| {
            Ok(config::reference::fill_page(page)?)
        })?,
        Page::new("docs/socket-proxies.md", |page| {
            Ok(operations::filled(page)?)
        })?,
    ])
}
