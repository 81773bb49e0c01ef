//! Compares versions of policies.
//!
//! A signature is valid for as long as its key is trusted. An attacker with write access to a registry or a file, and without
//! the key, could bring a flawed old policy back. So Refit remembers the newest version of each signed policy that was active
//! (`RevisionHistory::newest`), and accepts an older one only if an operator allows it.

use std::cmp::Ordering;

use semver::Version;

/// Returns whether a version is older. Semantic versions follow their own rules. Any others (`2026-11-29`, `v12`) compare by
/// their numbers and words, from left to right.
pub(super) fn is_older(version: &str, than: &str) -> bool {
    let order = match (Version::parse(version), Version::parse(than)) {
        (Ok(version), Ok(than)) => version.cmp_precedence(&than),
        _ => parts(version).cmp(parts(than)),
    };
    order == Ordering::Less
}

/// A number of any length, or a word. `1.2.0` is newer than `1.2`, and `1.10` than `1.9`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Word(&'a str),
    /// The number of digits, without leading zeros, and the digits.
    Number(usize, &'a str),
}

fn parts(version: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = version;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let first = rest.chars().next()?;
        let is_number = first.is_ascii_digit();
        let end =
            rest.find(|c: char| !c.is_ascii_alphanumeric() || c.is_ascii_digit() != is_number);
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(if is_number {
            let digits = part.trim_start_matches('0');
            Part::Number(digits.len(), digits)
        } else {
            Part::Word(part)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_naturally() {
        for (older, newer) in [
            ("1.2.3", "1.2.4"),
            ("1.9.0", "1.10.0"),
            ("1.0.0-rc.1", "1.0.0"),
            ("1.0.0-rc.2", "1.0.0-rc.10"),
            ("1.2", "1.2.1"),
            ("1.9", "1.10"),
            ("v9", "v10"),
            ("2026-09-30", "2026-11-29"),
            ("2026.9", "2026.11"),
            ("1.0", "99999999999999999999999999.0"),
            ("beta", "1"),
        ] {
            assert!(is_older(older, newer), "{older} {newer}");
            assert!(!is_older(newer, older), "{newer} {older}");
            assert!(!is_older(newer, newer), "{newer}");
        }
        // Builds of one version, and one version in two spellings.
        for (one, other) in [("1.0.0+a", "1.0.0+b"), ("01.2", "1.02")] {
            assert!(!is_older(one, other) && !is_older(other, one));
        }
    }
}
