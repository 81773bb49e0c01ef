//! When which container was last stopped for a new image: a few lines of text under one key of the host's state.
//!
//! Pure: it does not know the host. What it cannot read it forgets, and what is long ago too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The key in the policy's state.
pub const KEY: &str = "recreated";

/// The host keeps 16 KiB under a key.
const TEXT_BYTES_MAX: usize = 16_000;

/// Container names, and seconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cooldown(BTreeMap<String, u64>);

impl Cooldown {
    /// Those that have not cooled down yet. What was noted by a clock that has been put back since counts from now, or it would
    /// never end.
    pub fn parse(text: &str, now: u64, cooldown_seconds: u64) -> Self {
        let entry = |line: &str| {
            let (name, at) = line.split_once(' ')?;
            let at: u64 = at.parse().ok()?;
            Some((name.to_owned(), at.min(now)))
        };
        let entries = text.lines().filter_map(entry);
        Self(
            entries
                .filter(|(_, at)| now - at < cooldown_seconds)
                .collect(),
        )
    }

    /// Seconds until this one may be stopped again, where that is not now.
    pub fn seconds_left(&self, name: &str, now: u64, cooldown_seconds: u64) -> Option<u64> {
        let at = self.0.get(name)?;
        let left = cooldown_seconds.saturating_sub(now.saturating_sub(*at));
        (left > 0).then_some(left)
    }

    pub fn note(&mut self, name: &str, now: u64) {
        self.0.insert(name.to_owned(), now);
    }

    /// Forget those for which this does not hold.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_there(name));
    }

    /// As many of the latest as the host keeps.
    pub fn text(&self) -> String {
        let mut latest: Vec<_> = self.0.iter().collect();
        latest.sort_by_key(|(name, at)| (std::cmp::Reverse(**at), name.as_str()));
        let mut text = String::new();
        for (name, at) in latest {
            let before = text.len();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} {at}");
            if text.len() > TEXT_BYTES_MAX {
                text.truncate(before);
                break;
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_until_it_has_cooled_down() {
        let mut cooldown = Cooldown::default();
        cooldown.note("a", 100);
        cooldown.note("b", 150);
        let text = cooldown.text();
        assert_eq!(Cooldown::parse(&text, 150, 60), cooldown);
        let later = Cooldown::parse(&text, 160, 60);
        assert_eq!(later.seconds_left("a", 160, 60), None);
        assert_eq!(later.seconds_left("b", 160, 60), Some(50));
        assert_eq!(later.seconds_left("c", 160, 60), None);
        assert_eq!(Cooldown::parse(&text, 150, 0), Cooldown::default());
    }

    #[test]
    fn garbage_is_forgotten_and_a_future_counts_from_now() {
        for garbage in [
            "",
            "a",
            "a b",
            "a -1",
            "a 99999999999999999999",
            "a 1 2",
            "\u{0}\n \n",
        ] {
            assert_eq!(
                Cooldown::parse(garbage, 10, 60),
                Cooldown::default(),
                "{garbage:?}"
            );
        }
        let future = Cooldown::parse(&format!("a {}", u64::MAX), 10, 60);
        assert_eq!(future.seconds_left("a", 10, 60), Some(60));
        let end = Cooldown::parse("a 10", u64::MAX, u64::MAX);
        assert_eq!(end.seconds_left("a", u64::MAX, u64::MAX), Some(10));
    }

    #[test]
    fn the_text_never_outgrows_what_the_host_keeps_and_the_latest_stay() {
        let mut cooldown = Cooldown::default();
        for at in 0..2000 {
            cooldown.note(&format!("container-{at:04}"), at);
        }
        let text = cooldown.text();
        assert!(text.len() <= TEXT_BYTES_MAX, "{}", text.len());
        assert!(text.starts_with("container-1999 1999\n"), "{text:.40}");
        assert!(text.ends_with('\n'));
    }
}
