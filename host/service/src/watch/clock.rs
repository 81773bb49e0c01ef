//! A clock that is set back while the daemon runs. Times that lie ahead were taken from the wrong clock: each comes as much closer
//! as the clock went back, so that whoever waits for one waits as long as was meant.
//!
//! A clock that is set forward needs nothing: what waits is due early, once. Pure.

use jiff::{SignedDuration, Timestamp};

/// Less is a clock that is being adjusted.
const STEP: SignedDuration = SignedDuration::from_secs(5);

/// Notices the step.
#[derive(Debug)]
pub(super) struct Clock {
    last: Timestamp,
}

/// By how much the clock went back, as far as anybody knows: by that much less what has passed since it was last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetBack {
    pub(super) now: Timestamp,
    pub(super) by: SignedDuration,
}

impl Clock {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { last: now }
    }

    /// To be asked often: what passes in between counts as not passed.
    pub(super) fn read(&mut self, now: Timestamp) -> Option<SetBack> {
        let last = std::mem::replace(&mut self.last, now);
        let by = last.duration_since(now);
        (by > STEP).then_some(SetBack { now, by })
    }
}

impl SetBack {
    /// A time that has come already stays.
    pub(super) fn correct(self, at: Timestamp) -> Timestamp {
        match at > self.now {
            true => at.checked_sub(self.by).unwrap_or(self.now).max(self.now),
            false => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    const YEAR: i64 = 365 * 24 * 3600;

    #[test]
    fn clock_set_back_brings_what_lies_ahead_closer() {
        let mut clock = Clock::new(at(YEAR));
        assert_eq!(clock.read(at(YEAR + 10)), None);
        let back = clock.read(at(12)).unwrap();
        assert_eq!(back.by, SignedDuration::from_secs(YEAR - 2));
        assert_eq!(
            back.correct(at(YEAR + 300)),
            at(302),
            "a wait of five minutes"
        );
        assert_eq!(back.correct(at(5)), at(5), "it has come");
        assert_eq!(
            back.correct(at(60)),
            at(12),
            "of the right clock before: due now"
        );
        assert_eq!(clock.read(at(13)), None, "once");
    }

    #[test]
    fn adjusted_clock_is_not_set_back() {
        let mut clock = Clock::new(at(0));
        for now in [1, 0, -4, 100, 96] {
            assert_eq!(clock.read(at(now)), None, "{now}");
        }
    }
}
