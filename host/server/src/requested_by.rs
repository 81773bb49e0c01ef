//! Who asks, as they say of themselves in `X-Refit-RequestedBy`. For people who look back; nothing is decided by it.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

pub(super) const HEADER: &str = "x-refit-by";

/// As much as the history keeps.
const CHARACTERS_MAX: usize = 100;

/// Without what would move a cursor or turn a line around. `None` where nothing is left.
pub(super) struct RequestedBy(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for RequestedBy {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let sent = parts.headers.get(HEADER);
        Ok(Self(sent.and_then(|sent| clean(sent.as_bytes()))))
    }
}

fn clean(sent: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(sent);
    let told = text.trim().chars().filter(|c| !hides(*c));
    let told: String = told.take(CHARACTERS_MAX).collect();
    Some(told.trim().to_owned()).filter(|told| !told.is_empty())
}

/// Controls, and the marks that change the direction of what follows.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_short_line_that_hides_nothing() {
        for (sent, told) in [
            ("publish.yml run 42", Some("publish.yml run 42")),
            ("  Ána \t", Some("Ána")),
            ("a\u{1b}[31mb\u{202e}c", Some("a[31mbc")),
            ("", None),
            (" \t", None),
        ] {
            assert_eq!(clean(sent.as_bytes()).as_deref(), told, "{sent:?}");
        }
        assert_eq!(clean(&[0xff]).as_deref(), Some("\u{fffd}"));
        assert_eq!(
            clean("é".repeat(500).as_bytes()).unwrap().chars().count(),
            100
        );
    }
}
