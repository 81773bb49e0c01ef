//! Makes untrusted text safe for a message: one line of limited length, without terminal control codes. This module knows no
//! other.

/// Returns one line that cannot move the cursor, change colors, reverse the direction of text or start a new line; cut at
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
    fn line_stays_one_line_without_color() {
        assert_eq!(
            printable("a\n{\"level\":\"x\"}\x1b[31m\u{202e}b", 100),
            "a\\n{\"level\":\"x\"}\\u{1b}[31m\\u{202e}b"
        );
    }

    #[test]
    fn long_line_is_cut_between_characters() {
        assert_eq!(printable("äää", 5), "ää…");
    }
}
