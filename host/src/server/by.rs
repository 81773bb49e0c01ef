//! Who asks, as they say of themselves in `X-Refit-By`. It is for people who look back: nothing is decided by it.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

const HEADER: &str = "x-refit-by";

/// As in the history.
const CHARACTERS_MAX: usize = 100;

/// `None` where nobody says.
#[derive(Debug)]
pub(super) struct By(pub(super) Option<String>);

impl<S: Sync> FromRequestParts<S> for By {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let said = parts.headers.get(HEADER).map(|value| value.as_bytes());
        Ok(Self(said.and_then(named)))
    }
}

/// One line that a terminal prints as it is.
fn named(said: &[u8]) -> Option<String> {
    // Headers are bytes; people's names are not all ASCII.
    let said = String::from_utf8_lossy(said);
    let words: Vec<&str> = said.split_whitespace().collect();
    let printable = words.join(" ");
    let printable = printable.chars().filter(|c| !c.is_control() && !turns(*c));
    let name: String = printable.take(CHARACTERS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// Marks that turn the direction of a text, and make a name look like another.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_printable_line_or_none() {
        assert_eq!(named(b" ana  bo "), Some("ana bo".into()));
        assert_eq!(named("Zoë".as_bytes()), Some("Zoë".into()));
        assert_eq!(named(b"a\x1b[31m\tb"), Some("a[31m b".into()));
        assert_eq!(named("a\u{202e}b".as_bytes()), Some("ab".into()));
        assert_eq!(named(&[b'x'; 1000]).map(|name| name.len()), Some(100));
        assert_eq!(named(b" \t"), None);
        assert_eq!(named(b"\xff\x01"), Some("\u{fffd}".into()));
    }
}
