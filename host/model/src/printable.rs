//! Strangers' words in a message: one line, bounded, and nothing in it that a terminal obeys. Knows nobody.

/// One line that cannot move the cursor, change colours, reverse the direction of text or begin a line of its own; cut at
/// `bytes_max`.
pub fn printable(text: &str, bytes_max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        if line.len() + c.len_utf8() > bytes_max {
            line.push('…');
            break;
        }
        let direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || direction || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_has_no_colour() {
        assert_eq!(
            printable("a\n{\"level\":\"x\"}\x1b[31m\u{202e}b", 100),
            "a\\n{\"level\":\"x\"}\\u{1b}[31m\\u{202e}b"
        );
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        assert_eq!(printable("äää", 5), "ää…");
    }
}
