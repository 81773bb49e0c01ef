//! The schedule of checks, and the backoff after failures. Time and randomness are arguments: nothing here waits.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use refit_model::diagnostic::Hints;
use ring::rand::{SecureRandom as _, SystemRandom};

/// An invalid schedule in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    #[error("`{0}`, and no time zone is called that: write it like `Europe/Berlin`")]
    Zone(String),
    #[error(
        "unset, and the environment's `TZ` is `{text}`, which is no time zone: write it like `Europe/Berlin`, or unset it ({problem})"
    )]
    Environment { text: String, problem: String },
    #[error("`{text}`, which cron does not understand: {problem}")]
    Cron { text: String, problem: String },
    #[error("`{0}`, which never comes")]
    Never(String),
    #[error("`{0}` is not a time of day: write it like `22:00`")]
    Time(String),
}

impl Hints for ScheduleError {}

/// Returns the time zone with this name; without a name, the time zone of the machine.
pub fn load_zone(name: Option<&str>) -> Result<TimeZone, ScheduleError> {
    match name {
        None => {
            let variable = std::env::var_os("TZ").map(|text| text.to_string_lossy().into_owned());
            system_zone(variable.as_deref(), || {
                TimeZone::try_system().map_err(|error| error.to_string())
            })
        }
        Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned())),
    }
}

/// Returns the system's time zone, or UTC if none is set. An invalid `TZ` in the environment is an error.
fn system_zone(
    variable: Option<&str>,
    system: impl FnOnce() -> Result<TimeZone, String>,
) -> Result<TimeZone, ScheduleError> {
    match (system(), variable.map(str::trim)) {
        (Ok(zone), _) => Ok(zone),
        (Err(_), None | Some("" | ":")) => Ok(TimeZone::UTC),
        (Err(problem), Some(text)) => Err(ScheduleError::Environment {
            text: text.to_owned(),
            problem,
        }),
    }
}

#[derive(Clone, Debug)]
enum Occurrences {
    Every(SignedDuration),
    Cron(Box<Cron>, TimeZone),
}

/// When to check all images.
#[derive(Clone, Debug)]
pub struct Schedule {
    occurrences: Occurrences,
    jitter: Duration,
}

impl Schedule {
    pub fn from_interval(seconds: u64) -> Self {
        Self {
            occurrences: Occurrences::Every(SignedDuration::from_secs(
                i64::try_from(seconds).unwrap_or(i64::MAX),
            )),
            jitter: Duration::ZERO,
        }
    }

    /// Parses a cron expression. Minutes are the finest unit: Refit does not check registries every second.
    pub fn from_cron(text: &str, zone: TimeZone) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(text).map_err(|error| ScheduleError::Cron {
            text: text.to_owned(),
            problem: error.to_string(),
        })?;
        let schedule = Self {
            occurrences: Occurrences::Cron(Box::new(cron), zone),
            jitter: Duration::ZERO,
        };
        // For example the thirtieth of February.
        match schedule.next_occurrence(Timestamp::now()) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never(text.to_owned())),
        }
    }

    #[must_use]
    pub fn with_jitter(mut self, seconds: u64) -> Self {
        self.jitter = Duration::from_secs(seconds);
        self
    }

    /// Returns the time of the check after one that started `now`. Checks missed while the machine slept are not made up.
    /// `chance` is 0 to 1.
    pub fn next(&self, now: Timestamp, chance: f64) -> Timestamp {
        let time = self.next_occurrence(now).unwrap_or(Timestamp::MAX);
        time.checked_add(self.jitter.mul_f64(chance.clamp(0.0, 1.0)))
            .unwrap_or(Timestamp::MAX)
    }

    fn next_occurrence(&self, now: Timestamp) -> Option<Timestamp> {
        match &self.occurrences {
            Occurrences::Every(interval) => now.checked_add(*interval).ok(),
            Occurrences::Cron(cron, zone) => {
                let local_time = now.to_zoned(zone.clone());
                let next = cron.find_next_occurrence(&local_time, false).ok()?;
                Some(next.timestamp())
            }
        }
    }
}

/// How long to wait after consecutive failures.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
}

impl Backoff {
    /// Returns the wait: it doubles with each failure, plus up to a quarter at random, so that clients that failed together do
    /// not return together.
    pub fn wait(&self, failures: u32, chance: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let wait = self.first.saturating_mul(1 << doublings).min(self.most);
        wait.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
    }
}

/// Returns a random number from 0 to 1.
pub fn chance() -> f64 {
    let mut bytes = [0; 4];
    // If the system has no randomness, the times have none, which does no harm.
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn berlin() -> TimeZone {
        load_zone(Some("Europe/Berlin")).unwrap()
    }

    #[test]
    fn interval_counts_from_last_check() {
        let schedule = Schedule::from_interval(300).with_jitter(60);
        let now = at("2026-11-25T12:00:00Z");
        assert_eq!(schedule.next(now, 0.0), at("2026-11-25T12:05:00Z"));
        assert_eq!(schedule.next(now, 0.5), at("2026-11-25T12:05:30Z"));
    }

    #[test]
    fn cron_uses_its_time_zone() {
        let schedule = Schedule::from_cron("30 3 * * mon-fri", berlin()).unwrap();
        // A Friday; the next working day is in winter, too.
        let next = schedule.next(at("2026-11-27T12:00:00Z"), 0.0);
        assert_eq!(next, at("2026-11-30T02:30:00Z"));
        // In summer it is an hour earlier in UTC.
        let next = schedule.next(at("2026-07-01T12:00:00Z"), 0.0);
        assert_eq!(next, at("2026-07-02T01:30:00Z"));
    }

    #[test]
    fn skipped_or_repeated_hour_is_one_check() {
        let schedule = Schedule::from_cron("30 2 * * *", berlin()).unwrap();
        // 2026-03-29: from 2:00 to 3:00. 2026-10-25: from 3:00 back to 2:00.
        let spring = schedule.next(at("2026-03-28T12:00:00Z"), 0.0);
        assert!(spring < at("2026-03-29T12:00:00Z"), "{spring}");
        let autumn = schedule.next(at("2026-10-24T12:00:00Z"), 0.0);
        assert_eq!(autumn, at("2026-10-25T00:30:00Z"));
        assert_eq!(schedule.next(autumn, 0.0), at("2026-10-26T01:30:00Z"));
    }

    #[test]
    fn invalid_or_impossible_schedule_is_refused() {
        for text in [
            "",
            "* * * *",
            "61 * * * *",
            "* * * * * *",
            "0 0 30 2 *",
            "now",
        ] {
            let schedule = Schedule::from_cron(text, TimeZone::UTC);
            assert!(schedule.is_err(), "{text:?} gives {schedule:?}");
        }
        assert!(load_zone(Some("Europe/Atlantis")).is_err());
    }

    #[test]
    fn environment_time_zone_is_checked() {
        let fails = || Err("not found".to_owned());
        for unset in [None, Some(""), Some(" ")] {
            assert_eq!(system_zone(unset, fails).unwrap(), TimeZone::UTC);
        }
        let error = system_zone(Some("Europe/Atlantis"), fails).unwrap_err();
        assert!(error.to_string().contains("`Europe/Atlantis`"), "{error}");
        let berlin_zone = || Ok(berlin());
        assert_eq!(
            system_zone(Some("Europe/Berlin"), berlin_zone).unwrap(),
            berlin()
        );
    }

    proptest! {
        #[test]
        fn next_check_is_after_now(seconds in -10_000_000_000i64..10_000_000_000, chance: f64, interval in 1u64..700_000) {
            let now = Timestamp::from_second(seconds).unwrap();
            let schedules = [Schedule::from_interval(interval), Schedule::from_cron("*/7 1-5 * * *", berlin()).unwrap()];
            for schedule in schedules {
                let next = schedule.with_jitter(30).next(now, chance);
                prop_assert!(next > now);
            }
        }

        #[test]
        fn waits_grow_to_their_maximum(failures: u32, chance in 0.0..=1.0) {
            let backoff = Backoff { first: Duration::from_secs(5), most: Duration::from_secs(300) };
            let wait = backoff.wait(failures, chance);
            prop_assert!(wait >= backoff.first && wait <= backoff.most.mul_f64(1.25));
            prop_assert!(backoff.wait(failures.saturating_add(1), chance) >= wait);
        }
    }
}
