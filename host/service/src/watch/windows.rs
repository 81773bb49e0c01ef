//! The windows in which Refit may apply updates: days and times of day, each in its time zone. The time is an argument.
//!
//! A window belongs to the day on which it starts, and may end on the next. On a day with a clock change, it starts and ends at
//! the local times. A local time that does not exist means the first one after it, and one that occurs twice means the first.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

use super::schedule::ScheduleError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    #[serde(alias = "monday")]
    Mon,
    #[serde(alias = "tuesday")]
    Tue,
    #[serde(alias = "wednesday")]
    Wed,
    #[serde(alias = "thursday")]
    Thu,
    #[serde(alias = "friday")]
    Fri,
    #[serde(alias = "saturday")]
    Sat,
    #[serde(alias = "sunday")]
    Sun,
}

impl From<Day> for Weekday {
    fn from(day: Day) -> Self {
        match day {
            Day::Mon => Self::Monday,
            Day::Tue => Self::Tuesday,
            Day::Wed => Self::Wednesday,
            Day::Thu => Self::Thursday,
            Day::Fri => Self::Friday,
            Day::Sat => Self::Saturday,
            Day::Sun => Self::Sunday,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Window {
    /// The days on which it starts. None means each day.
    days: Vec<Weekday>,
    start: Time,
    end: Time,
    zone: TimeZone,
}

impl Window {
    pub fn new(
        days: &[Day],
        start: &str,
        end: &str,
        zone: TimeZone,
    ) -> Result<Self, ScheduleError> {
        let time = |text: &str| {
            let wrong = || ScheduleError::Time(text.to_owned());
            let plain = matches!(text.len(), 5 | 8) && text.is_ascii();
            match plain {
                true => text.parse::<Time>().map_err(|_| wrong()),
                false => Err(wrong()),
            }
        };
        Ok(Self {
            days: days.iter().map(|day| (*day).into()).collect(),
            start: time(start)?,
            end: time(end)?,
            zone,
        })
    }

    /// Returns the start and the end (exclusive) of the window that starts on this day, `None` if there is none.
    fn interval_on(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.is_empty() && !self.days.contains(&day.weekday()) {
            return None;
        }
        let last = match self.end > self.start {
            true => day,
            false => day.tomorrow().ok()?,
        };
        let moment = |day: Date, time| {
            let zoned = self.zone.to_ambiguous_zoned(day.to_datetime(time));
            Some(zoned.compatible().ok()?.timestamp())
        };
        let (from, until) = (moment(day, self.start)?, moment(last, self.end)?);
        (from < until).then_some((from, until))
    }

    /// Returns the windows around `now`: those that may have started before, and those of the next nine days.
    fn intervals_around(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let today = now.to_zoned(self.zone.clone()).date();
        let days = (-2..=9).filter_map(move |days| today.checked_add(days.days()).ok());
        days.filter_map(|day| self.interval_on(day))
    }
}

/// All windows. Without any, updates are always allowed.
#[derive(Clone, Debug, Default)]
pub struct Windows(pub Vec<Window>);

impl Windows {
    /// Returns when a window opens, `None` if one is open now.
    pub fn next_opening(&self, now: Timestamp) -> Option<Timestamp> {
        let all = || {
            self.0
                .iter()
                .flat_map(|window| window.intervals_around(now))
        };
        if self.0.is_empty() || all().any(|(from, until)| from <= now && now < until) {
            return None;
        }
        let ahead = all().map(|(from, _)| from).filter(|from| *from > now);
        // Each window opens at least once a week.
        Some(ahead.min().unwrap_or(Timestamp::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::load_zone;
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn windows(days: &[Day], start: &str, end: &str, name: &str) -> Windows {
        let zone = load_zone(Some(name)).unwrap();
        Windows(vec![Window::new(days, start, end, zone).unwrap()])
    }

    #[track_caller]
    fn assert_open(windows: &Windows, now: &str) {
        assert_eq!(windows.next_opening(at(now)), None, "it is open at {now}");
    }

    #[track_caller]
    fn assert_opens(windows: &Windows, now: &str, then: &str) {
        assert_eq!(windows.next_opening(at(now)), Some(at(then)), "at {now}");
    }

    #[test]
    fn no_windows_means_always_open() {
        assert_open(&Windows::default(), "2026-11-25T12:00:00Z");
    }

    #[test]
    fn window_includes_start_and_excludes_end() {
        let nights = windows(&[], "01:00", "05:00", "UTC");
        assert_opens(&nights, "2026-11-25T00:59:59Z", "2026-11-25T01:00:00Z");
        assert_open(&nights, "2026-11-25T01:00:00Z");
        assert_open(&nights, "2026-11-25T04:59:59Z");
        assert_opens(&nights, "2026-11-25T05:00:00Z", "2026-11-26T01:00:00Z");
    }

    #[test]
    fn window_over_midnight_belongs_to_its_first_day() {
        // A Friday.
        let weekend = windows(&[Day::Fri], "22:00", "06:00", "Europe/Berlin");
        assert_open(&weekend, "2026-11-27T21:00:00Z");
        assert_open(&weekend, "2026-11-28T04:59:00Z");
        assert_opens(&weekend, "2026-11-28T05:00:00Z", "2026-12-04T21:00:00Z");
        // The night before Friday belongs to Thursday, which has no window.
        assert_opens(&weekend, "2026-11-27T02:00:00Z", "2026-11-27T21:00:00Z");
    }

    #[test]
    fn window_with_equal_ends_is_a_whole_day() {
        let sundays = windows(&[Day::Sun], "00:00", "00:00", "UTC");
        assert_open(&sundays, "2026-11-29T00:00:00Z");
        assert_open(&sundays, "2026-11-29T23:59:59Z");
        assert_opens(&sundays, "2026-11-30T00:00:00Z", "2026-12-06T00:00:00Z");
    }

    #[test]
    fn clock_change_keeps_local_times_of_window() {
        let nights = windows(&[], "01:30", "04:00", "Europe/Berlin");
        // Spring: 2:00 is 3:00. An hour shorter.
        assert_open(&nights, "2026-03-29T00:30:00Z");
        assert_open(&nights, "2026-03-29T01:59:59Z");
        assert_opens(&nights, "2026-03-29T02:00:00Z", "2026-03-29T23:30:00Z");
        // Autumn: 3:00 is 2:00 again. An hour longer.
        assert_open(&nights, "2026-10-24T23:30:00Z");
        assert_open(&nights, "2026-10-25T02:59:59Z");
        assert_opens(&nights, "2026-10-25T03:00:00Z", "2026-10-26T00:30:00Z");
    }

    #[test]
    fn window_in_skipped_hour_moves_by_an_hour() {
        let short = windows(&[], "02:10", "02:50", "Europe/Berlin");
        // 2:10 and 2:50 become 3:10 and 3:50: it is an hour later on that day, by this clock.
        assert_opens(&short, "2026-03-29T00:00:00Z", "2026-03-29T01:10:00Z");
        assert_open(&short, "2026-03-29T01:30:00Z");
    }

    #[test]
    fn time_must_be_a_time_of_day() {
        for text in [
            "",
            "24:00",
            "9",
            "9:00",
            "22:00+01:00",
            "2026-01-01",
            "T22:00",
        ] {
            assert!(
                Window::new(&[], text, "06:00", TimeZone::UTC).is_err(),
                "{text}"
            );
        }
        assert!(Window::new(&[], "22:00:30", "06:00", TimeZone::UTC).is_ok());
    }

    proptest! {
        #[test]
        fn window_opens_at_the_computed_time(
            seconds in 1_700_000_000i64..1_900_000_000,
            start in 0i8..24,
            end in 0i8..24,
            days in proptest::collection::vec(0usize..7, 0..3),
            zone_at in 0usize..4,
            before in 0.0..1.0,
        ) {
            let names = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];
            let all = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];
            let days: Vec<Day> = days.into_iter().map(|at| all[at]).collect();
            let windows = windows(&days, &format!("{start:02}:10"), &format!("{end:02}:20"), names[zone_at]);
            let now = Timestamp::from_second(seconds).unwrap();
            if let Some(then) = windows.next_opening(now) {
                prop_assert!(then > now);
                prop_assert!(then.as_second() - seconds <= 8 * 24 * 3600, "once a week at least");
                prop_assert_eq!(windows.next_opening(then), None);
                let between = seconds + ((then.as_second() - seconds) as f64 * before) as i64;
                prop_assert_eq!(windows.next_opening(Timestamp::from_second(between).unwrap()), Some(then));
            }
        }
    }
}
