//! A window of time that opens on some days of the week. Pure arithmetic on seconds since 1970.
//!
//! It knows a fixed offset from UTC and no time zones: a component has no database of them, and a rule that is an hour off for half
//! of the year is better said than hidden. Where summer time matters, the operator changes the offset, or makes the window wider.

use std::fmt;

use refit_policy::ConfigProblem;

pub const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

const MINUTES_A_DAY: u16 = 24 * 60;
const SECONDS_A_DAY: i64 = 24 * 60 * 60;
/// The first of January 1970 was a Thursday.
const DAY_OF_EPOCH: i64 = 3;
/// No place is further from UTC.
const OFFSET_HOURS_MAX: u16 = 14;

/// When containers may be recreated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Minutes after midnight.
    from: u16,
    /// The same; not after `from` means: on the next day.
    to: u16,
    /// Whether it opens on that day, Monday first.
    opens: [bool; 7],
    offset_minutes: i16,
}

impl Window {
    /// From a configuration, or all that is wrong with it.
    pub fn new(
        from: &str,
        to: &str,
        days: &[String],
        offset: &str,
    ) -> Result<Self, Vec<ConfigProblem>> {
        let mut problems = Vec::new();
        let mut problem = |path: &str, problem: String| {
            problems.push(ConfigProblem::new(path, problem));
        };
        let from_minutes = minutes(from).filter(|&minutes| minutes < MINUTES_A_DAY);
        if from_minutes.is_none() {
            problem("from", no_time(from, "23:59"));
        }
        let to_minutes = minutes(to).filter(|&minutes| minutes <= MINUTES_A_DAY);
        if to_minutes.is_none() {
            problem("to", no_time(to, "24:00"));
        }
        if from_minutes.is_some() && from_minutes == to_minutes {
            problem(
                "to",
                format!("`{to}` is when the window opens; for whole days take `00:00` and `24:00`"),
            );
        }
        if days.is_empty() {
            problem("days", "must name at least one day".to_owned());
        }
        let mut opens = [false; 7];
        for (at, day) in days.iter().enumerate() {
            match DAYS.iter().position(|name| name == day) {
                Some(index) => opens[index] = true,
                None => problem(
                    &format!("days[{at}]"),
                    format!("`{day}` is none of {}", DAYS.join(", ")),
                ),
            }
        }
        let offset_minutes = offset_minutes(offset);
        if offset_minutes.is_none() {
            problem(
                "utc_offset",
                format!(
                    "`{offset}` is no offset from UTC: `+01:00` or `-05:30` is expected, at most {OFFSET_HOURS_MAX} hours"
                ),
            );
        }
        match (from_minutes, to_minutes, offset_minutes) {
            (Some(from), Some(to), Some(offset_minutes)) if problems.is_empty() => Ok(Self {
                from,
                to,
                opens,
                offset_minutes,
            }),
            _ => Err(problems),
        }
    }

    /// Whether it is open at this moment, in seconds since the epoch. The minute at which it closes is no longer in it.
    pub fn is_open(&self, now: u64) -> bool {
        // A clock beyond i64 is broken, and every answer as good as another: what matters is that there is one.
        let utc = i64::try_from(now).unwrap_or(i64::MAX);
        let local = utc.saturating_add(i64::from(self.offset_minutes) * 60);
        // With a negative offset the first hours of 1970 are in 1969, hence the Euclidean kind of division.
        let day = local.div_euclid(SECONDS_A_DAY);
        let minute = local.rem_euclid(SECONDS_A_DAY) / 60;
        let (from, to) = (i64::from(self.from), i64::from(self.to));
        if from < to {
            return self.opens_on(day) && (from..to).contains(&minute);
        }
        (self.opens_on(day) && minute >= from) || (self.opens_on(day - 1) && minute < to)
    }

    fn opens_on(&self, day: i64) -> bool {
        let weekday = usize::try_from((day + DAY_OF_EPOCH).rem_euclid(7));
        weekday.is_ok_and(|weekday| self.opens[weekday])
    }
}

/// For example `22:00 to 06:00 at UTC+01:00, opening mon, tue`.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        let sign = if self.offset_minutes < 0 { '-' } else { '+' };
        let offset = time(self.offset_minutes.unsigned_abs());
        write!(
            f,
            "{} to {} at UTC{sign}{offset}",
            time(self.from),
            time(self.to)
        )?;
        if self.opens == [true; 7] {
            return Ok(());
        }
        let days = DAYS.iter().zip(self.opens);
        let days: Vec<&str> = days
            .filter_map(|(day, opens)| opens.then_some(*day))
            .collect();
        write!(f, ", opening {}", days.join(", "))
    }
}

fn no_time(text: &str, latest: &str) -> String {
    format!("`{text}` is no time of day: `00:00` to `{latest}` is expected")
}

/// `HH:MM`, up to `99:59`: what is too late depends on where it stands.
fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| {
        let is_pair = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        is_pair.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

fn offset_minutes(text: &str) -> Option<i16> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+')?),
    };
    let minutes = minutes(rest).filter(|&minutes| minutes <= OFFSET_HOURS_MAX * 60)?;
    i16::try_from(minutes).ok().map(|minutes| sign * minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * 60;
    const DAY: u64 = 24 * HOUR;
    /// Monday the 23rd of November 2026, 00:00 UTC.
    const MONDAY: u64 = 1_795_392_000;

    #[track_caller]
    fn window(from: &str, to: &str, days: &[&str], offset: &str) -> Window {
        let days: Vec<String> = days.iter().map(|&day| day.to_owned()).collect();
        Window::new(from, to, &days, offset).unwrap()
    }

    #[track_caller]
    fn check(window: &Window, now: u64, is_open: bool) {
        assert_eq!(window.is_open(now), is_open, "{window} at {now}");
    }

    #[test]
    fn a_window_within_a_day_opens_and_closes_to_the_minute() {
        let window = window("01:30", "04:00", &["mon"], "+00:00");
        check(&window, MONDAY + HOUR + 30 * 60 - 1, false);
        check(&window, MONDAY + HOUR + 30 * 60, true);
        check(&window, MONDAY + 4 * HOUR - 1, true);
        check(&window, MONDAY + 4 * HOUR, false);
        check(&window, MONDAY + DAY + 2 * HOUR, false);
        check(&window, MONDAY + 7 * DAY + 2 * HOUR, true);
    }

    #[test]
    fn a_window_across_midnight_belongs_to_the_day_on_which_it_opens() {
        let window = window("22:00", "06:00", &["fri", "sun"], "+00:00");
        let friday = MONDAY + 4 * DAY;
        check(&window, friday + 5 * HOUR, false);
        check(&window, friday + 22 * HOUR, true);
        check(&window, friday + DAY + 5 * HOUR, true);
        check(&window, friday + DAY + 6 * HOUR, false);
        check(&window, friday + DAY + 23 * HOUR, false);
        // From Sunday into Monday, where the week begins anew.
        check(&window, MONDAY + HOUR, true);
        check(&window, MONDAY + DAY + HOUR, false);
    }

    #[test]
    fn whole_days_have_neither_gap_nor_surplus() {
        let window = window("00:00", "24:00", &["mon", "tue"], "+00:00");
        check(&window, MONDAY - 1, false);
        check(&window, MONDAY, true);
        check(&window, MONDAY + DAY, true);
        check(&window, MONDAY + 2 * DAY - 1, true);
        check(&window, MONDAY + 2 * DAY, false);
        let to_the_end = self::window("22:00", "24:00", &["mon"], "+00:00");
        check(&to_the_end, MONDAY + DAY - 1, true);
        check(&to_the_end, MONDAY + DAY, false);
        let from_midnight = self::window("22:00", "00:00", &["mon"], "+00:00");
        check(&from_midnight, MONDAY + DAY - 1, true);
        check(&from_midnight, MONDAY + DAY, false);
    }

    #[test]
    fn the_offset_moves_the_hour_and_the_day() {
        // 23:30 on Sunday in UTC is half past midnight on Monday an hour further east.
        let east = window("00:00", "06:00", &["mon"], "+01:00");
        check(&east, MONDAY - HOUR / 2, true);
        check(&east, MONDAY + 5 * HOUR, false);
        let west = window("22:00", "23:00", &["sun"], "-05:30");
        check(&west, MONDAY + 4 * HOUR, true);
        check(&west, MONDAY + 3 * HOUR, false);
    }

    #[test]
    fn a_clock_at_either_end_has_an_answer() {
        // Thursday the first of January 1970, and with a negative offset the Wednesday before.
        check(&window("00:00", "24:00", &["thu"], "+00:00"), 0, true);
        check(&window("00:00", "24:00", &["wed"], "-14:00"), 0, true);
        check(&window("00:00", "24:00", &["thu"], "-14:00"), 0, false);
        for now in [u64::MAX, i64::MAX as u64, i64::MAX as u64 + 1] {
            for offset in ["+14:00", "-14:00"] {
                check(&window("00:00", "24:00", &DAYS, offset), now, true);
            }
        }
    }

    #[test]
    fn it_is_said_as_a_person_would_write_it() {
        assert_eq!(
            window("22:00", "06:00", &DAYS, "-05:30").to_string(),
            "22:00 to 06:00 at UTC-05:30"
        );
        assert_eq!(
            window("00:00", "24:00", &["sun", "sat"], "+00:00").to_string(),
            "00:00 to 24:00 at UTC+00:00, opening sat, sun"
        );
    }

    #[test]
    fn what_is_no_time_and_no_offset_is_refused() {
        for text in [
            "", ":", "6:00", "06:60", "0600", "06:0", "+6:00", "é1:00", "06:00:00",
        ] {
            assert_eq!(minutes(text), None, "{text:?}");
        }
        for text in [
            "", "01:00", "+1:00", "+14:01", "-15:00", "Z", "−01:00", "+-01:00",
        ] {
            assert_eq!(offset_minutes(text), None, "{text:?}");
        }
        assert_eq!(offset_minutes("-00:30"), Some(-30));
    }
}
