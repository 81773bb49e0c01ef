//! Writes those pages of docs/ that are made of the program itself, where they are not as they would be. `cargo xtask references`
//! runs it; a test in `tests/tests/architecture.rs` fails where it would write something.

use std::fs;

use anyhow::Context as _;
use refit_tests::references;

#[expect(
    clippy::print_stdout,
    reason = "it is run by a person, who wants to know what has changed"
)]
fn main() -> anyhow::Result<()> {
    for page in references::pages()? {
        if page.is_current() {
            continue;
        }
        fs::write(&page.path, &page.wanted)
            .with_context(|| format!("cannot write {}", page.path.display()))?;
        println!("written: {}", page.name);
    }
    Ok(())
}
