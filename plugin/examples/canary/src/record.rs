//! What is known of each image from earlier refreshes: whether its canary is being watched, came through, or failed.
//!
//! A few lines of text under one key of the host's state. Pure: it does not know the host. What it cannot read it forgets, which
//! costs no more than another canary.

use std::fmt::Write as _;

/// The key in the policy's state.
pub const KEY: &str = "images";

/// The host keeps 16 KiB under a key, and a line takes at most some 350 bytes.
const ENTRIES_MAX: usize = 40;

/// How an image's canary is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Soaking,
    Passed,
    Failed,
}

/// One image: how its canary is doing, since when, and which container that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub image: String,
    pub stage: Stage,
    /// Seconds since the Unix epoch.
    pub since: u64,
    pub canary: String,
}

/// All of them, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record(Vec<Entry>);

impl Record {
    /// A line that makes no sense is left out.
    pub fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let mut words = line.split(' ');
            let (image, stage) = (words.next()?, words.next()?);
            let (since, canary) = (words.next()?.parse().ok()?, words.next()?);
            let stage = match stage {
                "soaking" => Stage::Soaking,
                "passed" => Stage::Passed,
                "failed" => Stage::Failed,
                _ => return None,
            };
            words.next().is_none().then(|| Entry {
                image: image.to_owned(),
                stage,
                since,
                canary: canary.to_owned(),
            })
        };
        Self(text.lines().filter_map(entry).collect())
    }

    pub fn get(&self, image: &str) -> Option<&Entry> {
        self.0.iter().rfind(|entry| entry.image == image)
    }

    /// Instead of what was known of this image. Where there are too many, the one that was noted longest ago is forgotten.
    pub fn note(&mut self, entry: Entry) {
        self.0.retain(|other| other.image != entry.image);
        self.0.push(entry);
        let superfluous = self.0.len().saturating_sub(ENTRIES_MAX);
        self.0.drain(..superfluous);
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for Entry {
            image,
            stage,
            since,
            canary,
        } in &self.0
        {
            let stage = match stage {
                Stage::Soaking => "soaking",
                Stage::Passed => "passed",
                Stage::Failed => "failed",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{image} {stage} {since} {canary}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(image: &str, since: u64) -> Entry {
        Entry {
            image: image.to_owned(),
            stage: Stage::Soaking,
            since,
            canary: "a".to_owned(),
        }
    }

    #[test]
    fn what_was_written_is_read_again_and_garbage_is_forgotten() {
        let mut record = Record::default();
        record.note(entry("sha256:1", 5));
        record.note(Entry {
            stage: Stage::Failed,
            ..entry("sha256:2", u64::MAX)
        });
        assert_eq!(Record::parse(&record.text()), record);
        for garbage in [
            "",
            "\n\n",
            "sha256:1",
            "sha256:1 soaking",
            "sha256:1 soaking -1 a",
            "sha256:1 soaking 99999999999999999999 a",
            "sha256:1 dancing 1 a",
            "sha256:1 soaking 1 a b",
            "\u{0} \u{ffff}",
        ] {
            assert_eq!(Record::parse(garbage), Record::default(), "{garbage:?}");
        }
        let mixed = format!("garbage\n{}more", record.text());
        assert_eq!(Record::parse(&mixed), record, "good lines among bad ones");
    }

    #[test]
    fn the_record_never_outgrows_what_the_host_keeps() {
        let mut record = Record::default();
        for at in 0..100 {
            record.note(Entry {
                canary: "c".repeat(255),
                ..entry(&format!("sha256:{at:064}"), u64::MAX)
            });
        }
        assert!(record.text().len() < 16 << 10, "{}", record.text().len());
        assert!(record.get(&format!("sha256:{:064}", 99)).is_some());
        assert!(record.get(&format!("sha256:{:064}", 0)).is_none());
        // What is noted again is new again, and there once.
        record.note(entry(&format!("sha256:{:064}", 60), 1));
        record.note(entry("sha256:new", 1));
        assert_eq!(record.get(&format!("sha256:{:064}", 60)).unwrap().since, 1);
        assert_eq!(record.0.len(), ENTRIES_MAX);
    }
}
