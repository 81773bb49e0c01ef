//! Limits the requests to a registry, and pauses them. Time is an argument: nothing here waits.
//!
//! Three things close a registry for a while: it requests that (429, 503, `Retry-After`, no requests remaining), it does not
//! respond, or Refit has reached its own limit.

use std::time::{Duration, Instant};

use http::HeaderMap;

/// The longest pause, whatever the registry requests: Docker Hub counts within six hours.
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);
/// The pause after a 429 without a time; doubled each time, up to an hour.
const LIMITED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
/// The pause after a 503 without a time, or after no response at all: usually something restarts. Up to five minutes.
const BROKEN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5 * 60));

/// The number of requests that Refit sends to a registry within a time window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub requests: u32,
    pub window: Duration,
}

/// Why requests to a registry are paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The registry requested it.
    Asked,
    /// The registry did not respond, or only that it is unavailable.
    Unavailable,
    /// Refit has reached its own limit.
    Budget,
}

/// The end of a pause, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    pub until: Instant,
    pub why: Why,
}

/// The budget of one registry.
#[derive(Debug)]
pub struct Budget {
    rate: Rate,
    window: Option<Instant>,
    used: u32,
    closed: Option<Closed>,
    /// The number of refusals and missing responses in a row that gave no time.
    limited: u32,
    broken: u32,
}

impl Budget {
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            window: None,
            used: 0,
            closed: None,
            limited: 0,
            broken: 0,
        }
    }

    /// Takes one request from the budget, unless the registry is closed.
    pub fn take(&mut self, now: Instant) -> Result<(), Closed> {
        if let Some(closed) = self.closed(now) {
            return Err(closed);
        }
        self.used += 1;
        Ok(())
    }

    /// Returns the current pause, if any.
    pub fn closed(&mut self, now: Instant) -> Option<Closed> {
        self.closed = self.closed.filter(|closed| closed.until > now);
        if self.closed.is_some() {
            return self.closed;
        }
        let began = *self.window.get_or_insert(now);
        if now.saturating_duration_since(began) >= self.rate.window {
            (self.window, self.used) = (Some(now), 0);
        }
        let until = self.window.unwrap_or(now) + self.rate.window;
        (self.used >= self.rate.requests).then_some(Closed {
            until,
            why: Why::Budget,
        })
    }

    /// Updates the budget from a response. `clock` is the same moment as `now`, for dates.
    pub fn answered(
        &mut self,
        status: u16,
        headers: &HeaderMap,
        now: Instant,
        clock: jiff::Timestamp,
    ) {
        let said = retry_after(headers, clock);
        let (wait, why) = match status {
            429 => {
                self.limited = self.limited.saturating_add(1);
                let said = said.or(none_remaining(headers, clock));
                (
                    Some(said.unwrap_or(doubled(LIMITED, self.limited))),
                    Why::Asked,
                )
            }
            // GitHub's response to too many concurrent requests. Any other 403 is about the login.
            403 => (said.or(none_remaining(headers, clock)), Why::Asked),
            503 => {
                self.broken = self.broken.saturating_add(1);
                match said {
                    Some(said) => (Some(said), Why::Asked),
                    None => (Some(doubled(BROKEN, self.broken)), Why::Unavailable),
                }
            }
            _ => {
                (self.limited, self.broken) = (0, 0);
                (none_remaining(headers, clock), Why::Asked)
            }
        };
        if let Some(wait) = wait {
            self.close(now, wait, why);
        }
    }

    /// Updates the budget after a request without a response.
    pub fn silent(&mut self, now: Instant) {
        // Requests that were in flight together count as one missing response.
        if self
            .closed(now)
            .is_some_and(|it| it.why == Why::Unavailable)
        {
            return;
        }
        self.broken = self.broken.saturating_add(1);
        self.close(now, doubled(BROKEN, self.broken), Why::Unavailable);
    }

    /// Reopens the registry, since it probably responds again. A pause that the registry itself requested stays.
    pub fn reconsider(&mut self) {
        self.broken = 0;
        self.closed = self.closed.filter(|closed| closed.why == Why::Asked);
    }

    fn close(&mut self, now: Instant, wait: Duration, why: Why) {
        let until = now + wait.min(LONGEST);
        // A response that was in flight does not shorten a pause from another response.
        if self
            .closed
            .is_none_or(|closed| closed.until < until || closed.why != Why::Asked)
        {
            self.closed = Some(Closed { until, why });
        }
    }
}

fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    let doublings = times.saturating_sub(1).min(16);
    first.saturating_mul(1 << doublings).min(most)
}

/// Parses seconds, a date, or a moment, which Docker Hub sent under another name.
fn retry_after(headers: &HeaderMap, clock: jiff::Timestamp) -> Option<Duration> {
    let named = ["retry-after", "x-retry-after"].into_iter();
    let text = named.filter_map(|name| headers.get(name)?.to_str().ok());
    text.map(str::trim).find_map(|text| {
        seconds(text, clock).or_else(|| {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Some(until(date, clock))
        })
    })
}

/// Parses a number of seconds, or of seconds since the Unix epoch if the number is too large for a pause.
fn seconds(text: &str, clock: jiff::Timestamp) -> Option<Duration> {
    /// A value of thirty years means a moment.
    const MOMENT: f64 = 1e9;
    let number = text.parse::<f64>().ok()?;
    if number >= MOMENT {
        let moment = jiff::Timestamp::from_second(number.min(1e11) as i64);
        return moment.ok().map(|moment| until(moment, clock));
    }
    Duration::try_from_secs_f64(number).ok()
}

/// Returns the time until a moment. A past moment is no reason for an immediate retry.
fn until(moment: jiff::Timestamp, clock: jiff::Timestamp) -> Duration {
    let wait = Duration::try_from(moment.duration_since(clock));
    wait.unwrap_or(Duration::from_secs(1))
}

/// Returns the pause if a response says that no requests remain: Docker Hub's `0;w=21600`, with the length of its window, or
/// the IETF draft with a reset time. Many use both under a name with an `X-`.
fn none_remaining(headers: &HeaderMap, clock: jiff::Timestamp) -> Option<Duration> {
    let text = |name: &str| {
        let value = headers
            .get(name)
            .or_else(|| headers.get(format!("x-{name}")));
        value?.to_str().ok()
    };
    let first = |text: &str| text.split([';', ',']).next().map(|it| it.trim().to_owned());
    let remaining = text("ratelimit-remaining")?;
    if first(remaining)?.parse::<u64>().ok()? > 0 {
        return None;
    }
    let reset = text("ratelimit-reset").and_then(first);
    let reset = reset.and_then(|reset| seconds(&reset, clock));
    let window = remaining
        .split(';')
        .find_map(|part| part.trim().strip_prefix("w=")?.trim().parse::<u64>().ok());
    // In a window of hours some requests become available long before its end.
    let window = window.map(|window| Duration::from_secs(window.min(LIMITED.1.as_secs())));
    Some(reset.or(window).unwrap_or(LIMITED.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn budget(requests: u32) -> Budget {
        Budget::new(Rate {
            requests,
            window: 60 * SECOND,
        })
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    fn clock() -> jiff::Timestamp {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }

    /// Returns the pause after a response, in seconds.
    #[track_caller]
    fn alone(budget: &mut Budget, status: u16, pairs: &[(&'static str, &str)]) -> Option<u64> {
        let now = Instant::now();
        budget.answered(status, &headers(pairs), now, clock());
        let closed = budget.closed(now)?;
        Some((closed.until - now).as_secs())
    }

    #[test]
    fn so_many_requests_in_a_window_and_then_again() {
        let (mut budget, now) = (budget(2), Instant::now());
        assert_eq!(budget.take(now), Ok(()));
        assert_eq!(budget.take(now + SECOND), Ok(()));
        let closed = budget.take(now + 2 * SECOND).unwrap_err();
        assert_eq!(closed.why, Why::Budget);
        assert_eq!(closed.until, now + 60 * SECOND);
        assert_eq!(budget.take(closed.until), Ok(()));
    }

    #[test]
    fn a_registry_is_left_alone_for_as_long_as_it_says() {
        assert_eq!(alone(&mut budget(9), 429, &[("retry-after", "7")]), Some(7));
        assert_eq!(alone(&mut budget(9), 503, &[("retry-after", "8")]), Some(8));
        let date = [("retry-after", "Wed, 25 Nov 2026 12:02:00 GMT")];
        assert_eq!(alone(&mut budget(9), 429, &date), Some(120));
        let passed = [("retry-after", "Wed, 25 Nov 2026 11:00:00 GMT")];
        assert_eq!(alone(&mut budget(9), 429, &passed), Some(1));
        for ages in ["999999999", "999999999999", "1e300"] {
            let ages = [("retry-after", ages)];
            assert_eq!(alone(&mut budget(9), 429, &ages), Some(LONGEST.as_secs()));
        }
        assert_eq!(
            alone(&mut budget(9), 429, &[("retry-after", "1.5")]),
            Some(1)
        );
        // As Docker Hub's API sent it: a moment, here two minutes after the clock.
        let moment = (clock().as_second() + 120).to_string();
        for name in ["x-retry-after", "retry-after"] {
            assert_eq!(alone(&mut budget(9), 429, &[(name, &moment)]), Some(120));
        }
    }

    #[test]
    fn refusal_that_names_a_time_is_about_the_rate() {
        let moment = (clock().as_second() + 90).to_string();
        let github = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", moment.as_str()),
        ];
        assert_eq!(alone(&mut budget(9), 403, &github), Some(90));
        assert_eq!(alone(&mut budget(9), 429, &github), Some(90));
        assert_eq!(
            alone(&mut budget(9), 403, &[("retry-after", "30")]),
            Some(30)
        );
        assert_eq!(alone(&mut budget(9), 403, &[]), None);
    }

    #[test]
    fn one_that_does_not_say_is_left_alone_for_longer_each_time() {
        let mut budget = budget(9);
        let times: Vec<_> = (0..8).map(|_| alone(&mut budget, 429, &[])).collect();
        let expected = [60, 120, 240, 480, 960, 1920, 3600, 3600].map(Some);
        assert_eq!(times, expected);
        let mut budget = Budget::new(budget.rate);
        assert_eq!(
            alone(&mut budget, 429, &[("retry-after", "soon")]),
            Some(60)
        );
    }

    #[test]
    fn an_answer_ends_the_doubling() {
        let mut budget = budget(9);
        alone(&mut budget, 503, &[]);
        alone(&mut budget, 503, &[]);
        budget.closed = None;
        assert_eq!(alone(&mut budget, 200, &[]), None);
        assert_eq!(alone(&mut budget, 503, &[]), Some(5));
    }

    #[test]
    fn nothing_remaining_is_a_reason_to_wait() {
        let hub = [("ratelimit-remaining", "0;w=21600")];
        assert_eq!(alone(&mut budget(9), 200, &hub), Some(3600));
        let draft = [("ratelimit-remaining", "0"), ("ratelimit-reset", "30")];
        assert_eq!(alone(&mut budget(9), 200, &draft), Some(30));
        let some = [("ratelimit-remaining", "76;w=21600")];
        assert_eq!(alone(&mut budget(9), 200, &some), None);
    }

    #[test]
    fn those_that_were_silent_together_are_one_silence() {
        let (mut budget, now) = (budget(99), Instant::now());
        for _ in 0..16 {
            budget.silent(now);
        }
        let closed = budget.closed(now).unwrap();
        assert_eq!(
            (closed.until - now, closed.why),
            (5 * SECOND, Why::Unavailable)
        );
        budget.silent(closed.until);
        assert_eq!(
            budget.closed(closed.until).unwrap().until - closed.until,
            10 * SECOND
        );
        budget.reconsider();
        assert_eq!(budget.closed(closed.until), None);
    }

    #[test]
    fn what_a_registry_says_is_not_reconsidered_nor_shortened() {
        let (mut budget, now) = (budget(9), Instant::now());
        budget.answered(429, &headers(&[("retry-after", "100")]), now, clock());
        budget.answered(429, &headers(&[("retry-after", "10")]), now, clock());
        budget.silent(now);
        budget.reconsider();
        let closed = budget.closed(now).unwrap();
        assert_eq!((closed.until - now, closed.why), (100 * SECOND, Why::Asked));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_closes_for_ever(status in 100u16..600, said in "[ -~]{0,40}", remaining in "[ -~]{0,40}") {
            let (mut budget, now) = (budget(1), Instant::now());
            let said = said.trim();
            budget.answered(status, &headers(&[("retry-after", said), ("ratelimit-remaining", remaining.trim())]), now, clock());
            if let Some(closed) = budget.closed(now) {
                proptest::prop_assert!(closed.until <= now + LONGEST);
            }
        }
    }
}
