//! Detects a clock that is set back while the daemon runs. Future times came from the wrong clock, so Refit moves them by the
//! same amount, and each wait keeps its intended length.
//!
//! A clock that is set forward needs no correction: a wait ends early, once. The functions are pure.

use jiff::{SignedDuration, Timestamp};

/// A smaller step is an adjustment of the clock.
const STEP: SignedDuration = SignedDuration::from_secs(5);

/// Compares consecutive readings of the clock.
#[derive(Debug)]
pub(super) struct Clock {
    last: Timestamp,
}

/// How far the clock was set back. The exact step is larger by the time since the last reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetBack {
    pub(super) now: Timestamp,
    pub(super) by: SignedDuration,
}

impl Clock {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { last: now }
    }

    /// Reads the clock. Call it often: the time between two readings counts as not passed.
    pub(super) fn read(&mut self, now: Timestamp) -> Option<SetBack> {
        let last = std::mem::replace(&mut self.last, now);
        let by = last.duration_since(now);
        (by > STEP).then_some(SetBack { now, by })
    }
}

impl SetBack {
    /// Corrects a future time. A past time stays as it is.
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
    fn clock_set_back_moves_future_times() {
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
