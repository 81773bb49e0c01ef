//! Name patterns: `*` matches any run of characters (also none), `?` exactly one. Nothing else is special.
//!
//! A pattern is anchored: it matches a whole name or not at all, so `ws-*` is a prefix and never a substring. Container names are
//! one flat word, so this module needs no path separators, character classes or escapes; a pattern library would only make the
//! component larger.

/// Whether `pattern` matches the whole of `name`.
///
/// Takes at most `pattern.len() * name.len()` steps, whatever the pattern.
///
/// ```
/// use refit_policy::glob;
/// assert!(glob::matches("ws-*", "ws-7f3a"));
/// assert!(!glob::matches("ws-*", "my-ws-7f3a"));
/// ```
pub fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Only the latest star needs another try with more characters: any characters that an earlier star could take in addition, this
    // one can take as well. So the number of steps stays small.
    let mut latest_star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                latest_star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match latest_star {
                Some((star, taken)) => {
                    latest_star = Some((star, taken + 1));
                    p = star + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// The reason why no container's name can match this pattern, for its author. Without this check such a pattern would silently
/// refresh nothing.
pub fn problem(pattern: &str) -> Option<String> {
    let is_possible =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '*' | '?');
    if pattern.is_empty() {
        return Some("must not be empty: `*` stands for all names".to_owned());
    }
    if pattern.starts_with('/') {
        return Some(format!(
            "`{pattern}` matches no container: names have no leading slash"
        ));
    }
    pattern.chars().find(|&c| !is_possible(c)).map(|c| {
        format!("`{pattern}` matches no container: a name cannot hold `{c}`, and only `*` and `?` stand for other characters")
    })
}

#[cfg(test)]
mod tests {
    use super::matches;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_covers_the_whole_name_or_nothing() {
        for (pattern, name, fits) in [
            ("ws-*", "ws-1", true),
            ("ws-*", "ws-", true),
            ("ws-*", "ws", false),
            ("ws-*", "my-ws-1", false),
            ("*ws-*", "my-ws-1", true),
            ("ws-?", "ws-1", true),
            ("ws-?", "ws-12", false),
            ("ws-?", "ws-", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-cd", false),
            ("[ab]", "a", false),
            ("WS-*", "ws-1", false),
            ("ä?", "äö", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "`{pattern}` on `{name}`");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let name = "a".repeat(2_000);
        assert!(!matches(&format!("{}b", "a*".repeat(200)), &name));
    }

    /// The definition itself, which is too slow except for short words.
    fn by_definition(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => {
                (0..=name.len()).any(|taken| by_definition(rest, &name[taken..]))
            }
            (['?', p @ ..], [_, n @ ..]) => by_definition(p, n),
            ([a, p @ ..], [b, n @ ..]) if a == b => by_definition(p, n),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,7}", name in "[ab]{0,7}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), by_definition(&chars(&pattern), &chars(&name)));
        }

        #[test]
        fn a_name_without_wildcards_matches_itself_only(a in "[ab]{0,3}", b in "[ab]{0,3}") {
            prop_assert_eq!(matches(&a, &b), a == b);
        }
    }
}
