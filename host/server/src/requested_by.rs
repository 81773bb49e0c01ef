//! The name that clients give themselves in `X-Refit-By`. It is recorded for people, and decides nothing.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

pub(super) const HEADER: &str = "x-refit-by";

/// The length that the history stores.
const CHARACTERS_MAX: usize = 100;

/// The name without characters that move a cursor or reverse a line. `None` if nothing is left.
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
    let name = text.trim().chars().filter(|c| !is_hidden(*c));
    let name: String = name.take(CHARACTERS_MAX).collect();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Whether this is a control character, or a mark that changes the direction of the following text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_one_short_visible_line() {
        for (sent, name) in [
            ("publish.yml run 42", Some("publish.yml run 42")),
            ("  Ána \t", Some("Ána")),
            ("a\u{1b}[31mb\u{202e}c", Some("a[31mbc")),
            ("", None),
            (" \t", None),
        ] {
            assert_eq!(clean(sent.as_bytes()).as_deref(), name, "{sent:?}");
        }
        assert_eq!(clean(&[0xff]).as_deref(), Some("\u{fffd}"));
        assert_eq!(
            clean("é".repeat(500).as_bytes()).unwrap().chars().count(),
            100
        );
    }
}
