//! The names that containers bear while one replaces another. They are all that is written down of a replacement under way,
//! so they say everything that is needed to finish or undo it.
//!
//! - The replacement, until it takes over: `refit-new.<old>`. It follows from the old container's id alone, and names are
//!   unique on an engine, so of two Refits only one can make it.
//! - The old container, once it has stopped: `refit-old.<old>.<new>.<name>`, with the name that it had.
//!
//! `<old>` and `<new>` are the first twelve digits of ids. No such name contains `ws-`: the platform's own healers remove what
//! does, so hyphens within a name are written `.-` and dots `..`.

use crate::container::ContainerId;

const CANDIDATE: &str = "refit-new.";
const PARKED: &str = "refit-old.";

/// The name of a replacement until it takes over.
pub fn candidate(old: &ContainerId) -> String {
    format!("{CANDIDATE}{}", old.short())
}

/// The name of the old container while its replacement proves itself.
pub fn parked(old: &ContainerId, new: &ContainerId, name: &str) -> String {
    let name = name.replace('.', "..").replace('-', ".-");
    format!("{PARKED}{}.{}.{name}", old.short(), new.short())
}

/// What a name of ours says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Made to replace the container whose id begins so.
    Candidate { old: String },
    /// To be replaced by the container whose id begins so, under the name.
    Parked {
        old: String,
        new: String,
        name: String,
    },
}

/// `None` for names that are not ours.
pub fn meaning(name: &str) -> Option<Meaning> {
    if let Some(old) = name.strip_prefix(CANDIDATE) {
        return is_short_id(old).then(|| Meaning::Candidate {
            old: old.to_owned(),
        });
    }
    let mut parts = name.strip_prefix(PARKED)?.splitn(3, '.');
    let (old, new, name) = (parts.next()?, parts.next()?, parts.next()?);
    let name = unescape(name)?;
    (is_short_id(old) && is_short_id(new)).then(|| Meaning::Parked {
        old: old.to_owned(),
        new: new.to_owned(),
        name,
    })
}

fn is_short_id(text: &str) -> bool {
    text.len() == 12
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn unescape(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        name.push(if c == '.' {
            characters.next().filter(|c| matches!(c, '.' | '-'))?
        } else {
            c
        });
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(digit: char) -> ContainerId {
        ContainerId::new(digit.to_string().repeat(64))
    }

    #[test]
    fn names_of_our_own_never_look_like_a_workspace() {
        for name in [
            candidate(&id('f')),
            parked(&id('a'), &id('b'), "ws-a86d2786-842"),
        ] {
            assert!(
                !name.contains("ws-"),
                "`{name}` would be removed by the platform's healers"
            );
        }
    }

    #[test]
    fn a_name_that_somebody_else_gave_is_not_ours() {
        for name in [
            "refit-new.",
            "refit-new.0123",
            "refit-new.0123456789ABC",
            "refit-old.0123456789ab",
            "refit",
            "ws-a",
            "refit-new.0123456789ab-x",
        ] {
            assert_eq!(meaning(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(name in "[a-zA-Z0-9][a-zA-Z0-9_.-]{1,60}") {
            let written = parked(&id('a'), &id('b'), &name);
            prop_assert!(!written.contains("ws-"));
            let read = Meaning::Parked { old: id('a').short().to_owned(), new: id('b').short().to_owned(), name };
            prop_assert_eq!(meaning(&written), Some(read));
        }
    }
}
